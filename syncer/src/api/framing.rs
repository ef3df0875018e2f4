//! Where heads begin and end in what a client of HTTP/1.1 sends.
//!
//! hyper keeps two things to itself. Of a request with a length *and* chunks it removes the length before anybody sees it,
//! and part of a head that came behind another request waits in its buffer, where nobody knows since when. So the bytes
//! are followed on their way to it: a head is lines up to an empty one, then come as many bytes as its length
//! says. Nothing is decided here that hyper decides in another way: what it refuses (a length that is none, two that differ,
//! a folded line) ends the connection, so that it does not matter what is made of it; and a request with chunks is the last
//! on its connection ([`super::head::is_last`]), so that chunks need not be followed.
//!
//! Bodies are skipped by their length and lines of no interest by their end: a look at each head, once.

use std::num::NonZeroU64;

/// How HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const LENGTH: &[u8] = b"content-length";
const CODING: &[u8] = b"transfer-encoding";
/// No name that is of interest is longer.
const NAME_BYTES: usize = CODING.len();

/// Follows what one client sends.
#[derive(Clone, Debug)]
pub(super) struct Framing {
    at: At,
    head: Head,
    /// Bytes of [`PREFACE`] that came, until one is another.
    preface: Option<usize>,
    two_lengths: bool,
}

/// What is known of the head that arrives.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    length: Option<u64>,
    has_coding: bool,
}

#[derive(Clone, Copy, Debug)]
enum At {
    /// Before a head; empty lines there are none.
    Between,
    /// In the first line, or one of no interest.
    Line,
    /// In the name of a field.
    Name { bytes: [u8; NAME_BYTES], len: usize },
    /// In a length.
    Length { value: u64 },
    /// In a body of which so much is to come.
    Body(NonZeroU64),
    /// No head of interest comes any more.
    Over,
    /// It is HTTP/2.
    Http2,
}

// === impl Framing ===

impl Framing {
    pub(super) const fn new() -> Self {
        let head = Head { length: None, has_coding: false };
        Self { at: At::Between, head, preface: Some(0), two_lengths: false }
    }

    /// Whether part of a head has arrived, and its end has not. HTTP/2 is one long head: its own limits bound it.
    pub(super) const fn in_head(&self) -> bool {
        matches!(self.at, At::Line | At::Name { .. } | At::Length { .. } | At::Http2)
    }

    /// Whether a head said both how long its body is and that it comes in chunks.
    pub(super) const fn two_lengths(&self) -> bool {
        self.two_lengths
    }

    /// These bytes come next.
    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        if self.is_http2(bytes) {
            self.at = At::Http2;
        }
        while let Some((&byte, rest)) = bytes.split_first() {
            bytes = match self.at {
                At::Over | At::Http2 => return,
                At::Body(left) => self.skip(left, bytes),
                At::Line => match memchr::memchr(b'\n', bytes) {
                    Some(end) => {
                        self.at = At::name();
                        bytes.get(end + 1..).unwrap_or_default()
                    }
                    None => return,
                },
                At::Between => {
                    if !matches!(byte, b'\r' | b'\n') {
                        self.at = At::Line;
                    }
                    rest
                }
                At::Name { .. } | At::Length { .. } => {
                    self.byte(byte);
                    rest
                }
            };
        }
    }

    /// Of a body.
    fn skip<'a>(&mut self, left: NonZeroU64, bytes: &'a [u8]) -> &'a [u8] {
        let here = usize::try_from(left.get()).unwrap_or(usize::MAX).min(bytes.len());
        self.at = NonZeroU64::new(left.get() - here as u64).map_or(At::Between, At::Body);
        bytes.get(here..).unwrap_or_default()
    }

    /// Of a field.
    fn byte(&mut self, byte: u8) {
        self.at = match (self.at, byte) {
            (At::Name { len: 0, .. }, b'\n') => self.end(),
            (At::Name { .. }, b'\n') => At::name(),
            (at @ At::Name { len: 0, .. }, b'\r') => at,
            (At::Name { bytes, len }, b':') => match bytes.get(..len) {
                Some(name) if name.eq_ignore_ascii_case(LENGTH) => At::Length { value: 0 },
                Some(name) if name.eq_ignore_ascii_case(CODING) => {
                    self.head.has_coding = true;
                    At::Line
                }
                _ => At::Line,
            },
            (At::Name { mut bytes, len }, byte) => match bytes.get_mut(len) {
                Some(free) => {
                    *free = byte;
                    At::Name { bytes, len: len + 1 }
                }
                None => At::Line,
            },
            (At::Length { value }, b'\n') => {
                self.head.length = Some(value);
                At::name()
            }
            (At::Length { value }, b'0'..=b'9') => {
                At::Length { value: value.saturating_mul(10).saturating_add(u64::from(byte - b'0')) }
            }
            (at, _) => at, // white space; anything else is refused
        };
    }

    /// A head is complete.
    fn end(&mut self) -> At {
        let Head { length, has_coding } = std::mem::take(&mut self.head);
        if has_coding {
            self.two_lengths = length.is_some();
            return At::Over;
        }
        length.and_then(NonZeroU64::new).map_or(At::Between, At::Body)
    }

    fn is_http2(&mut self, bytes: &[u8]) -> bool {
        let Some(before) = self.preface else { return false };
        let wanted = PREFACE.get(before..).unwrap_or_default();
        let here = wanted.len().min(bytes.len());
        self.preface = (wanted.get(..here) == bytes.get(..here)).then_some(before + here);
        self.preface == Some(PREFACE.len())
    }
}

// === impl At ===

impl At {
    const fn name() -> Self {
        Self::Name { bytes: [0; NAME_BYTES], len: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// Whatever way the bytes are cut: part of a head is there, a head had two lengths.
    fn after(text: &str) -> (bool, bool) {
        let ends = [1, 2, 7, text.len().max(1)].map(|size| {
            let mut framing = Framing::new();
            text.as_bytes().chunks(size).for_each(|bytes| framing.take(bytes));
            (framing.in_head(), framing.two_lengths())
        });
        assert!(ends.iter().all(|end| *end == ends[0]), "{text:?}: {ends:?}");
        ends[0]
    }

    fn put(fields: &str, body: &str) -> String {
        format!("PUT / HTTP/1.1\r\nhost: x\r\n{fields}\r\n{body}")
    }

    #[test]
    fn part_of_a_head_is_told_from_all_else() {
        for (text, wanted) in [
            (String::new(), false),
            (GET.into(), false),
            (format!("{GET}{GET}"), false),
            ("\r\n\r\n".into(), false),
            (format!("\r\n{GET}\n"), false),
            ("G".into(), true),
            ("GET / HTTP/1.1\r\n".into(), true),
            ("GET / HTTP/1.1\r\nhost: x\r\n\r".into(), true),
            ("GET / HTTP/1.1\nhost: x\n\n".into(), false),
            (format!("{GET}GET"), true),
            (put("content-length: 5\r\n", "GET /"), false),
            (put("Content-Length:\t 5 \r\n", "GET /G"), true),
            (put("content-length: 5\r\ncontent-length: 5\r\n", "GET /"), false),
            (put("content-length: 0\r\n", "GET /"), true),
            (put("content-lengths: 5\r\nx-content-length: 5\r\n", ""), false),
            (put("content-length: 99999999999999999999\r\n", GET), false),
            (put(&format!("a: {}\r\n{}: x\r\n", "y".repeat(99), "n".repeat(99)), ""), false),
            (put("transfer-encoding: chunked\r\n", "5\r\nGET /\r\n0\r\n\r\nGET"), false),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), true),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}".into(), true),
            ("PRI * HTTP/1.1\r\n\r\n".into(), false),
        ] {
            assert_eq!(after(&text).0, wanted, "{text:?}");
        }
    }

    #[test]
    fn a_length_beside_chunks_is_seen_wherever_it_stands_and_only_there() {
        let (length, chunks) = ("content-length: 2\r\n", "Transfer-Encoding:chunked\r\n");
        for text in [
            put(&format!("{length}{chunks}"), ""),
            put(&format!("{chunks}a: b\r\n{length}"), ""),
            put(&format!("{chunks}CONTENT-LENGTH: 2\n"), ""),
            put(&format!("{chunks}content-length:\r\n"), ""),
            format!("{GET}{}", put(&format!("{length}{chunks}"), "")),
            format!("{}{}", put(length, "{}"), put(&format!("{chunks}{length}"), "")),
            format!("PRI * HTTP/1.1\r\n{length}{chunks}\r\n"),
            format!("PRI * HTTP/2.0\r\n\r\n{}", put(&format!("{length}{chunks}"), "")),
        ] {
            assert_eq!(after(&text), (false, true), "{text:?}");
        }
        let hidden = put(&format!("{length}{chunks}"), "");
        for text in [
            put(chunks, &format!("0\r\n\r\n{hidden}")),
            put(&format!("content-length: {}\r\n", hidden.len()), &hidden),
            format!("{}{}", put(length, "{}"), put(chunks, "")),
            put(&format!("x: {length}{chunks}"), ""),
        ] {
            assert_eq!(after(&text), (false, false), "{text:?}");
        }
    }
}
