//! HTTP/2 by hand-made frames: floods, and frames that are wrong.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Target, write_some};
use crate::support::soon;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

// Flags.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field in HPACK: a literal, never indexed, not compressed.
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |s: &str| {
        let mut out = Vec::new();
        match u8::try_from(s.len()).ok().filter(|n| *n < 127) {
            Some(n) => out.push(n),
            None => {
                out.push(127);
                let mut rest = s.len() - 127;
                while rest >= 128 {
                    out.push(u8::try_from(rest % 128).expect("below 128") | 128);
                    rest /= 128;
                }
                out.push(u8::try_from(rest).expect("below 128"));
            }
        }
        out.extend_from_slice(s.as_bytes());
        out
    };
    [vec![0x10], text(name), text(value)].concat()
}

fn head(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let fixed = [(":method", method), (":scheme", "https"), (":path", path), (":authority", "x")];
    fixed.iter().chain(more).flat_map(|(name, value)| field(name, value)).collect()
}

pub(super) fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &head("GET", "/livez", &[]))
}

/// The status that an answer begins with, in HPACK: an entry of the static table, or a literal for a name of it.
fn status(block: &[u8]) -> Option<u16> {
    match *block {
        [entry @ 0x88..=0x8e, ..] => Some([200, 204, 206, 304, 400, 404, 500][usize::from(entry - 0x88)]),
        // In Huffman's code: digits 0, 1 and 2 have 5 bits, the others 6.
        [0x08 | 0x18 | 0x48, length @ 0x82..=0x83, ref text @ ..] => {
            let bytes = text.get(..usize::from(length & 0x7f))?;
            let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1)));
            let mut digit = || {
                let mut take = |n: u32| (0..n).try_fold(0, |code, _| Some(code << 1 | bits.next()?));
                match take(5)? {
                    few @ 0..=2 => Some(few),
                    more => (more << 1 | take(1)?).checked_sub(0x19 - 3),
                }
            };
            Some(digit()? * 100 + digit()? * 10 + digit()?)
        }
        [0x08 | 0x18 | 0x48, 3, a, b, c, ..] => std::str::from_utf8(&[a, b, c]).ok()?.parse().ok(),
        _ => None,
    }
}

/// A join whose body begins and does not end.
pub(super) fn half_body(stream: u32) -> Vec<u8> {
    let put = head("PUT", "/v1/guilds/g/calls/c/participants/s", &[]);
    [frame(HEADERS, END_HEADERS, stream, &put), frame(DATA, 0, stream, b"{")].concat()
}

/// What the server did: an answer's status, `head` for what is none, `reset N`, `goaway N`, `closed`.
pub(super) struct Seen<S>(pub(super) S);

// === impl Seen ===

impl Seen<TlsStream<TcpStream>> {
    pub(super) async fn open(target: &Target, bytes: &[u8]) -> Self {
        let mut stream = target.connect().await;
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[]), bytes].concat();
        write_some(&mut stream, &hello).await;
        Self(stream)
    }
}

impl<S: AsyncRead + Unpin> Seen<S> {
    /// The next thing worth telling, and its stream.
    pub(super) async fn next(&mut self) -> (u32, String) {
        loop {
            let mut head = [0; 9];
            if soon("a frame", self.0.read_exact(&mut head)).await.is_err() {
                return (0, "closed".into());
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length];
            if soon("its payload", self.0.read_exact(&mut payload)).await.is_err() {
                return (0, "closed".into());
            }
            let code =
                |at: usize| payload.get(at..at + 4).map_or(99, |b| u32::from_be_bytes(b.try_into().expect("4 bytes")));
            match head[3] {
                HEADERS => return (stream, status(&payload).map_or_else(|| "head".into(), |s| s.to_string())),
                RST_STREAM => return (stream, format!("reset {}", code(0))),
                GOAWAY => return (0, format!("goaway {}", code(4))),
                _ => {}
            }
        }
    }
}

/// Each has one exact end. Codes: 1 protocol, 3 flow control, 6 frame size, 7 refused, 11 calm down.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_frames_have_one_exact_end_and_harm_nobody() {
    let ended = END_STREAM | END_HEADERS;
    let put = |more: &[(&str, &str)]| head("PUT", "/v1/guilds/g/calls/c/participants/s", more);
    let endless = || {
        let mut bytes = frame(HEADERS, END_STREAM, 1, &head("GET", "/livez", &[]));
        for _ in 0..2_000 {
            bytes.extend(frame(CONTINUATION, 0, 1, &field("a", &"y".repeat(100))));
        }
        bytes
    };
    let bomb: Vec<u8> = (0..400).flat_map(|_| field("a", &"y".repeat(30))).collect();
    let bomb = [head("GET", "/livez", &[]), bomb].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a request", get(1), "200"),
        (
            "half a request, then a ping",
            [frame(HEADERS, 0, 1, &head("GET", "/livez", &[])), frame(PING, 0, 0, &[0; 8])].concat(),
            "goaway 1",
        ),
        ("a header block without end", endless(), "goaway 11"),
        ("a header list of 25 kB", frame(HEADERS, ended, 1, &bomb), "431"),
        ("65 fields", frame(HEADERS, ended, 1, &head("GET", "/livez", &[("a", "b"); 65])), "431"),
        ("headers on stream 0", frame(HEADERS, ended, 0, &head("GET", "/livez", &[])), "goaway 1"),
        ("a stream of the server's", frame(HEADERS, ended, 2, &head("GET", "/livez", &[])), "goaway 1"),
        ("data on a stream that is not open", frame(DATA, 0, 1, b"{}"), "goaway 1"),
        ("a frame beyond 16 KiB", frame(DATA, 0, 1, &[0; 16_385]), "goaway 6"),
        ("a ping of 7 bytes", frame(PING, 0, 0, &[0; 7]), "goaway 1"),
        ("settings of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5]), "goaway 1"),
        ("a window beyond 31 bits", frame(SETTINGS, 0, 0, &[0, 4, 255, 255, 255, 255]), "goaway 1"),
        ("a window that grows by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), "goaway 1"),
        ("a window that overflows", frame(WINDOW_UPDATE, 0, 0, &[127, 255, 255, 255]), "goaway 3"),
        ("a field from an empty table", frame(HEADERS, ended, 1, &[0xff, 0xff, 0xff, 0x7f]), "goaway 1"),
        ("a name in capitals", frame(HEADERS, ended, 1, &head("GET", "/livez", &[("Big", "b")])), "goaway 1"),
        ("a `connection` field", frame(HEADERS, ended, 1, &head("GET", "/livez", &[("connection", "x")])), "reset 1"),
        ("chunks", frame(HEADERS, ended, 1, &head("GET", "/livez", &[("transfer-encoding", "chunked")])), "reset 1"),
        ("a NUL in a value", frame(HEADERS, ended, 1, &head("GET", "/livez", &[("a", "b\0c")])), "goaway 1"),
        ("two methods", frame(HEADERS, ended, 1, &head("GET", "/livez", &[(":method", "PUT")])), "reset 1"),
        ("no path", frame(HEADERS, ended, 1, &[field(":method", "GET"), field(":scheme", "https")].concat()), "400"),
        (
            "an authority and no path",
            frame(
                HEADERS,
                ended,
                1,
                &[field(":method", "GET"), field(":scheme", "https"), field(":authority", "x")].concat(),
            ),
            "reset 1",
        ),
        (
            "a tunnel",
            frame(HEADERS, ended, 1, &[field(":method", "CONNECT"), field(":authority", "x:443")].concat()),
            "404",
        ),
        ("a path that is none", frame(HEADERS, ended, 1, &head("GET", "", &[])), "reset 1"),
        (
            "more data than its length",
            [frame(HEADERS, END_HEADERS, 1, &put(&[("content-length", "1")])), frame(DATA, END_STREAM, 1, b"{ }")]
                .concat(),
            "reset 1",
        ),
        (
            "less data than its length",
            [frame(HEADERS, END_HEADERS, 1, &put(&[("content-length", "9")])), frame(DATA, END_STREAM, 1, b"{ }")]
                .concat(),
            "reset 1",
        ),
    ];
    let target = Target::start("h2").await;
    let mut wrong = Vec::new();
    for (name, bytes, wanted) in cases {
        let (_, seen) = Seen::open(&target, &bytes).await.next().await;
        if seen != wanted {
            wrong.push(format!("{name}: {seen} and not {wanted}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    target.serves_others("all of them").await;
    assert!(target.refused("protocol").await > 0, "they are counted");
    assert_eq!(target.fleet.syncers[0].engine().status().calls, 0, "none was a join");
}

/// "Rapid reset": requests that are taken back at once cost the client its connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_resets_ends_the_connection() {
    let target = Target::start("h2").await;
    let pairs = (0..5_000).flat_map(|n| [get(2 * n + 1), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat());
    let mut seen = Seen::open(&target, &pairs.collect::<Vec<_>>()).await;
    let end = loop {
        let (stream, what) = seen.next().await;
        if stream == 0 {
            break what;
        }
    };
    assert_eq!(end, "goaway 11");
    target.serves_others("a flood of resets").await;
}

/// The 257th request at once is refused; those within the limit are served, and so are others.
#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_are_refused_and_the_others_served() {
    let target = Target::start("h2").await;
    let put = head("PUT", "/v1/guilds/g/calls/c/participants/s", &[]);
    let streams: Vec<u32> = (0..256 + 8).map(|n| 2 * n + 1).collect();
    let open: Vec<u8> = streams.iter().flat_map(|n| frame(HEADERS, END_HEADERS, *n, &put)).collect();
    let mut seen = Seen::open(&target, &open).await;
    for refused in &streams[256..] {
        assert_eq!(seen.next().await, (*refused, "reset 7".to_owned()));
    }
    target.serves_others("a flood of streams").await;
    let end: Vec<u8> = streams[..256].iter().flat_map(|n| frame(DATA, END_STREAM, *n, b"{}")).collect();
    seen.0.write_all(&end).await.expect("written");
    seen.0.flush().await.expect("written");
    for _ in 0..256 {
        assert_eq!(seen.next().await.1, "200");
    }
}
