//! Reads `text/event-stream`: what a peer's watch sends.

use bytes::Bytes;

/// Longest line from a peer: 256 credentials of ~400 bytes, and as much again.
const LINE_BYTES_MAX: usize = 256 * 1024;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its name.
    pub(crate) event: String,
    /// Its id, when it has one.
    pub(crate) id: Option<String>,
    /// Its data.
    pub(crate) data: String,
}

/// Cuts bytes into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: Vec<u8>,
    event: Event,
}

/// A line is longer than any that a peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

// === impl Parser ===

impl Parser {
    /// Takes bytes and gives the events they complete. Comments give none.
    pub(crate) fn push(&mut self, bytes: &Bytes) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.buffer.extend_from_slice(piece);
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(TooLong);
            }
            if piece.last() == Some(&b'\n') {
                let line = String::from_utf8_lossy(&self.buffer).into_owned();
                self.buffer.clear();
                events.extend(self.line(line.trim_end_matches(['\r', '\n'])));
            }
        }
        Ok(events)
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return (!event.event.is_empty() || !event.data.is_empty()).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
        match field {
            "event" => self.event.event = value,
            "id" => self.event.id = Some(value),
            "data" if self.event.data.is_empty() => self.event.data = value,
            "data" => {
                self.event.data.push('\n');
                self.event.data.push_str(&value);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_cut() {
        let text = ": hello\n\nretry: 5\n\nevent: endpoint\nid: x\ndata: {\"a\":1}\n\nevent: resync\r\ndata: 1\r\ndata: 2\r\n\r\n";
        let want = [
            Event { event: "endpoint".into(), id: Some("x".into()), data: "{\"a\":1}".into() },
            Event { event: "resync".into(), id: None, data: "1\n2".into() },
        ];
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let mut seen = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                seen.extend(parser.push(&Bytes::copy_from_slice(chunk)).expect("short lines"));
            }
            assert_eq!(seen, want, "cut every {size} bytes");
        }
    }

    #[test]
    fn endless_lines_are_refused() {
        let mut parser = Parser::default();
        let long = Bytes::from(vec![b'x'; LINE_BYTES_MAX + 1]);
        assert_eq!(parser.push(&long), Err(TooLong));
    }
}
