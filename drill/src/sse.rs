//! A small parser of server-sent events, fed with whatever chunks the network delivers.
//!
//! Written here rather than taken from a library because a gateway needs three things together:
//! the last event id (kept even when later events carry none), the server's `retry` hint, and a
//! limit on what one event may hold. Follows the event stream rules of the WHATWG HTML standard;
//! chunk borders never change the result (a property test says so).

/// Most bytes of one line and of one event's data: an endpoint event with credentials for a few
/// thousand sessions is about 1 MiB.
pub const EVENT_BYTES_MAX: usize = 4 << 20;

/// One dispatched event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Event type; `message` when the stream named none.
    pub name: String,
    /// Data lines, joined by line feeds.
    pub data: String,
    /// The last event id of the stream at this point.
    pub id: Option<String>,
}

/// A line or an event was longer than [`EVENT_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {EVENT_BYTES_MAX} bytes")]
pub struct TooLong;

/// Parser state of one stream.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    started: bool,
    name: String,
    data: String,
    has_data: bool,
    /// Takes effect with the empty line that ends the event.
    next_id: Option<String>,
    id: Option<String>,
    retry_ms: Option<u64>,
    comments: u64,
}

// === impl Parser ===

impl Parser {
    /// A parser at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and appends the events they complete to `out`.
    ///
    /// # Errors
    ///
    /// When a line or an event exceeds [`EVENT_BYTES_MAX`]; the stream should then be dropped.
    pub fn feed(&mut self, chunk: &[u8], out: &mut Vec<Event>) -> Result<(), TooLong> {
        for &byte in chunk {
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                continue;
            }
            match byte {
                b'\r' => {
                    self.after_cr = true;
                    self.end_line(out)?;
                }
                b'\n' => self.end_line(out)?,
                _ if self.line.len() >= EVENT_BYTES_MAX => return Err(TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    /// The last event id seen: what to send as `Last-Event-ID` after a break.
    #[must_use]
    pub fn last_id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The server's wish for the time before a reconnect, in milliseconds.
    #[must_use]
    pub fn retry_ms(&self) -> Option<u64> {
        self.retry_ms
    }

    /// Comment lines seen (keep-alives).
    #[must_use]
    pub fn comments(&self) -> u64 {
        self.comments
    }

    fn end_line(&mut self, out: &mut Vec<Event>) -> Result<(), TooLong> {
        let bytes = std::mem::take(&mut self.line);
        let mut line = bytes.as_slice();
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            self.dispatch(out);
            return Ok(());
        }
        let (field, value) = match line.iter().position(|&b| b == b':') {
            Some(at) => {
                let value = &line[at + 1..];
                (&line[..at], value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &b""[..]),
        };
        self.field(field, &String::from_utf8_lossy(value))
    }

    fn field(&mut self, field: &[u8], value: &str) -> Result<(), TooLong> {
        match field {
            b"" => self.comments = self.comments.saturating_add(1),
            b"event" => value.clone_into(&mut self.name),
            b"data" => {
                if self.data.len() + value.len() > EVENT_BYTES_MAX {
                    return Err(TooLong);
                }
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                self.data.push_str(value);
            }
            b"id" if !value.contains('\0') => self.next_id = Some(value.to_owned()),
            b"retry" => self.retry_ms = value.parse().ok().or(self.retry_ms),
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self, out: &mut Vec<Event>) {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        self.id = self.next_id.take().or(self.id.take());
        if std::mem::take(&mut self.has_data) {
            let name = if name.is_empty() { "message".to_owned() } else { name };
            out.push(Event { name, data, id: self.id.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<Event> {
        let (mut parser, mut out) = (Parser::new(), Vec::new());
        for chunk in chunks {
            parser.feed(chunk, &mut out).expect("short");
        }
        out
    }

    #[test]
    fn fields_comments_and_ids() {
        let (mut parser, mut out) = (Parser::new(), Vec::new());
        let text =
            b"\xef\xbb\xbf: hello\nretry: 250\n\nevent: endpoint\nid: 7\ndata: {\ndata:}\n\ndata: x\n\nevent: none\n\n";
        parser.feed(text, &mut out).expect("short");
        assert_eq!(out.len(), 2, "an event without data is not dispatched");
        assert_eq!(out[0], Event { name: "endpoint".into(), data: "{\n}".into(), id: Some("7".into()) });
        assert_eq!(out[1], Event { name: "message".into(), data: "x".into(), id: Some("7".into()) });
        assert_eq!((parser.comments(), parser.retry_ms(), parser.last_id()), (1, Some(250), Some("7")));
    }

    #[test]
    fn every_line_ending_ends_a_line_once() {
        for end in ["\n", "\r\n", "\r"] {
            let text = format!("data: a{end}data: b{end}{end}data: c{end}{end}");
            let data: Vec<_> = parse(&[text.as_bytes()]).into_iter().map(|e| e.data).collect();
            assert_eq!(data, ["a\nb", "c"], "{end:?}");
        }
    }

    #[test]
    fn an_id_counts_once_its_event_is_complete() {
        let (mut parser, mut out) = (Parser::new(), Vec::new());
        parser.feed(b"id: 1\n\nid: 2\ndata: cut o", &mut out).expect("short");
        assert_eq!((parser.last_id(), out.len()), (Some("1"), 0));
        parser.feed(b"ff\n\n", &mut out).expect("short");
        assert_eq!((parser.last_id(), out[0].id.as_deref()), (Some("2"), Some("2")));
    }

    #[test]
    fn an_endless_line_is_refused() {
        let (mut parser, mut out) = (Parser::new(), Vec::new());
        let chunk = vec![b'x'; EVENT_BYTES_MAX];
        assert_eq!(parser.feed(&chunk, &mut out), Ok(()));
        assert_eq!(parser.feed(b"x", &mut out), Err(TooLong));
    }

    proptest! {
        #[test]
        fn chunking_never_changes_the_events(
            text in "((id|data|event|retry|): ?[a-z0-9é:]{0,6}(\n|\r\n|\r)|(\n|\r\n|\r)){0,40}",
            cuts in proptest::collection::vec(0usize..400, 0..12),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut from = 0;
            let mut chunks = Vec::new();
            for cut in cuts {
                chunks.push(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(parse(&chunks), parse(&[bytes]));
        }
    }
}
