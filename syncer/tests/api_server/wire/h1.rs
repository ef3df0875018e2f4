//! HTTP/1.1: smuggling, broken framing, heads that are too much.

use tokio::io::AsyncWriteExt as _;

use super::{Target, read_out, write_some};

const PUT: &str = "PUT /v1/guilds/g/calls/c/participants/s HTTP/1.1\r\nhost: x\r\n";
/// What an attacker hides behind a request: answered, it would be a second status.
const HIDDEN: &str = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";

/// The statuses of all answers.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect()
}

/// Each ends with the server closing the connection, after exactly these answers.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_have_one_exact_end_and_harm_nobody() {
    let many: String = (0..80).map(|n| format!("x-{n}: 1\r\n")).collect();
    let (long, longer) = ("y".repeat(20_000), "y".repeat(70_000));
    let get = |rest: &str| format!("GET /livez HTTP/1.1\r\nhost: x\r\n{rest}");
    let put = |rest: &str| format!("{PUT}{rest}");
    let chunks = |rest: &str| put(&format!("transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n{rest}"));
    let bare = |text: &str| text.replace("\r\n", "\n");
    let cases: Vec<(&str, String, &[u16])> = vec![
        // Two lengths.
        (
            "length, then chunks",
            put(&format!("content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
            &[400],
        ),
        (
            "chunks, then length",
            put(&format!("transfer-encoding: chunked\r\ncontent-length: 60\r\n\r\n0\r\n\r\n{HIDDEN}")),
            &[400],
        ),
        (
            "length and chunks behind another request",
            get("\r\n") + &put(&format!("content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
            &[200, 400],
        ),
        (
            "length and chunks behind a body",
            put("content-length: 3\r\n\r\n{}\n")
                + &put(&format!("transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n{HIDDEN}")),
            &[200, 400],
        ),
        (
            "chunks alone, and what is behind them",
            put(&format!("transfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
            &[200],
        ),
        ("two lengths", put(&format!("content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}{HIDDEN}")), &[400]),
        ("a list of lengths", put("content-length: 2, 3\r\n\r\n{}"), &[400]),
        ("the same length twice", put("connection: close\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}"), &[200]),
        ("a negative length", put("content-length: -1\r\n\r\n"), &[400]),
        ("a signed length", put("content-length: +2\r\n\r\n{}"), &[400]),
        ("a hexadecimal length", put("content-length: 0x2\r\n\r\n{}"), &[400]),
        ("an empty length", put("content-length: \r\n\r\n{}"), &[400]),
        ("a length beyond 64 bits", put("content-length: 99999999999999999999\r\n\r\n"), &[400]),
        // Transfer codings that two servers read differently.
        ("an unknown coding", put("transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"), &[400]),
        ("chunks that are not last", put("transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"), &[400]),
        (
            "chunks after another coding",
            put(&format!("transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
            &[400],
        ),
        (
            "chunks twice",
            put(&format!("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
            &[400],
        ),
        ("a space before the colon", put("transfer-encoding : chunked\r\n\r\n0\r\n\r\n"), &[400]),
        ("a space before the colon of a length", put("content-length : 2\r\n\r\n{}"), &[400]),
        ("a folded length", put("content-length:\r\n 2\r\n\r\n{}"), &[400]),
        ("a folded field", put("a: b\r\n c\r\ncontent-length: 2\r\n\r\n{}"), &[400]),
        ("a vertical tab", put("transfer-encoding:\u{b}chunked\r\n\r\n0\r\n\r\n"), &[400]),
        ("a folded coding", put("transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n"), &[400]),
        (
            "chunks in HTTP/1.0",
            PUT.replace("HTTP/1.1", "HTTP/1.0") + "transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            &[400],
        ),
        // Chunks.
        ("a chunk size that is none", put("transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"), &[400]),
        ("a chunk size beyond 64 bits", put("transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}"), &[400]),
        ("a chunk longer than it says", put("transfer-encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n"), &[400]),
        (
            "an endless chunk extension",
            put(&format!("transfer-encoding: chunked\r\n\r\n2;{long}\r\n{{}}\r\n0\r\n\r\n")),
            &[400],
        ),
        ("chunks whose lines end with LF", put("transfer-encoding: chunked\r\n\r\n2\n{}\n0\n\n"), &[400]),
        ("a chunk size that ends with LF", put("transfer-encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n"), &[400]),
        ("a chunk that ends with LF", put("transfer-encoding: chunked\r\n\r\n2\r\n{}\n0\r\n\r\n"), &[400]),
        ("LF in an extension", put("transfer-encoding: chunked\r\n\r\n2;a\nb\r\n{}\r\n0\r\n\r\n"), &[400]),
        ("a last chunk that ends with LF", chunks(&format!("0\n\r\n{HIDDEN}")), &[400]),
        ("trailers that end with LF", chunks(&format!("0\r\n\n{HIDDEN}")), &[200]),
        ("LF in trailers", chunks(&format!("0\r\na: b\ncontent-length: 3\r\n\r\n{HIDDEN}")), &[400]),
        // What trailers say of lengths is ignored: nothing that follows is a request.
        ("a length in trailers", chunks(&format!("0\r\ncontent-length: 3\r\n\r\n{{}}\n{HIDDEN}")), &[200]),
        ("a coding in trailers", chunks(&format!("0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")), &[200]),
        ("a host in trailers", chunks(&format!("0\r\nhost: y\r\n\r\n{HIDDEN}")), &[200]),
        // Too much.
        ("a body that says it is too large", put("content-length: 65537\r\n\r\n"), &[413]),
        (
            "chunks that are too much",
            put(&format!("transfer-encoding: chunked\r\n\r\n11170\r\n{longer}\r\n0\r\n\r\n")),
            &[413],
        ),
        ("80 fields", get(&format!("{many}\r\n")), &[431]),
        ("a field of 20 kB", get(&format!("a: {long}\r\n\r\n")), &[431]),
        ("a field of 70 kB", get(&format!("a: {longer}\r\n\r\n")), &[431]),
        ("a target of 70 kB", format!("GET /{longer} HTTP/1.1\r\nhost: x\r\n\r\n"), &[431]),
        // Heads.
        ("garbage", "\u{1}\u{2}\u{3}garbage\r\n\r\n".into(), &[400]),
        ("no host", "GET /livez HTTP/1.1\r\n\r\n".into(), &[400]),
        ("two hosts", get("host: y\r\n\r\n"), &[400]),
        ("a NUL in a value", get("a: b\0c\r\n\r\n"), &[400]),
        ("a NUL in a name", get("a\0: b\r\n\r\n"), &[400]),
        ("a NUL in the target", "GET /li\0vez HTTP/1.1\r\nhost: x\r\n\r\n".into(), &[400]),
        ("a bare CR in a value", get("a: b\rc\r\n\r\n"), &[400]),
        ("a fold before any field", "GET /livez HTTP/1.1\r\n host: x\r\n\r\n".into(), &[400]),
        ("a space in the target", "GET /li vez HTTP/1.1\r\nhost: x\r\n\r\n".into(), &[400]),
        ("HTTP/3.0 by name", "GET /livez HTTP/3.0\r\nhost: x\r\n\r\n".into(), &[400]),
        ("no version", "GET /livez\r\n\r\n".into(), &[400]),
        // RFC 9112, 2.2: a line may be taken to end at an LF alone. Then so it is throughout.
        ("a head whose lines end with LF", bare(HIDDEN) + &get("connection: close\r\n\r\n"), &[200, 200]),
        (
            "a length whose line ends with LF",
            bare(&put(&format!("content-length: {}\r\n\r\n", HIDDEN.len())))
                + HIDDEN
                + &get("connection: close\r\n\r\n"),
            &[400, 200], // it is no JSON
        ),
        ("LF hides no length", put("a: b\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), &[400]),
        (
            "LF hides no chunks",
            put(&format!("content-length: 2\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
            &[400],
        ),
        ("CR LF and LF end a head", get("connection: close\r\n\n"), &[200]),
        // Odd and right.
        (
            "the absolute form",
            "GET http://elsewhere/livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(),
            &[200],
        ),
        ("two at once", format!("{HIDDEN}{}", get("connection: close\r\n\r\n")), &[200, 200]),
        ("a method of its own", "BREW /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(), &[405]),
        ("a tunnel", "CONNECT elsewhere:443 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(), &[404]),
    ];
    let target = Target::start("http/1.1").await;
    let mut wrong = Vec::new();
    for (name, bytes, wanted) in cases {
        let mut stream = target.connect().await;
        write_some(&mut stream, bytes.as_bytes()).await;
        let answer = read_out(&mut stream).await;
        if statuses(&answer) != wanted {
            wrong.push(format!("{name}: {:?} and not {wanted:?}", statuses(&answer)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    target.serves_others("all of them").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_in_the_middle_cost_nothing() {
    let target = Target::start("http/1.1").await;
    let half = format!("{PUT}content-length: 100\r\n\r\n{{");
    for (politely, bytes) in [(true, half.as_str()), (false, &half), (true, "GET /li"), (false, "GET /li"), (true, "")]
    {
        let mut stream = target.connect().await;
        write_some(&mut stream, bytes.as_bytes()).await;
        if politely {
            stream.shutdown().await.ok();
            assert!(!statuses(&read_out(&mut stream).await).contains(&200), "{bytes:?} is no request");
        }
        drop(stream);
    }
    target.serves_others("clients that left").await;
    let status = target.fleet.syncers[0].engine().status();
    assert_eq!(status.calls, 0, "half a body is no join");
}
