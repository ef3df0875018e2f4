//! Raw sockets: what no client library would send.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Fleet, soon};

/// Sends bytes and reads until the peer closes.
async fn exchange(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("connects");
    // The peer may close before it has read everything.
    stream.write_all(bytes).await.ok();
    let mut answer = Vec::new();
    soon("the connection closes", stream.read_to_end(&mut answer)).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_and_harm_nobody() {
    let fleet = Fleet::start(1, 1).await;
    let addr = fleet.syncers[0].addr();
    let many: String = (0..80).map(|n| format!("x-{n}: 1\r\n")).collect();
    let long = "y".repeat(40_000);
    let put = "PUT /v1/guilds/g/calls/c/participants/s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    // First line wanted; empty: closed without a word, which is a refusal too.
    let cases: [(&str, String, &[&str]); 11] = [
        ("garbage", "\u{1}\u{2}\u{3}garbage\r\n\r\n".into(), &["400", ""]),
        ("nul in a header", "GET /livez HTTP/1.1\r\nhost: x\r\na: b\0c\r\n\r\n".into(), &["400", ""]),
        ("different lengths", format!("{put}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"), &["400"]),
        (
            "length and chunks",
            format!("{put}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
            &["400", "200"],
        ),
        ("bad chunk", format!("{put}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"), &["400", ""]),
        ("negative length", format!("{put}content-length: -1\r\n\r\n"), &["400"]),
        ("too many fields", format!("GET /livez HTTP/1.1\r\nhost: x\r\n{many}\r\n"), &["431"]),
        ("a head too long", format!("GET /livez HTTP/1.1\r\nhost: x\r\na: {long}\r\n\r\n"), &["431"]),
        ("a space in the target", "GET /li vez HTTP/1.1\r\nhost: x\r\n\r\n".into(), &["400"]),
        ("HTTP/3.0 by name", "GET /livez HTTP/3.0\r\nhost: x\r\n\r\n".into(), &["400", "505", ""]),
        ("chunks that are not last", format!("{put}transfer-encoding: chunked, x\r\n\r\n0\r\n\r\n"), &["400"]),
    ];
    for (name, bytes, wanted) in cases {
        let answer = exchange(addr, bytes.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(wanted.contains(&status), "{name}: {:?}", answer.lines().next());
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{name}: one answer at most: {answer}");
    }
    let absolute = "GET http://elsewhere/livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert!(exchange(addr, absolute.as_bytes()).await.ends_with("alive\n"), "the absolute form is served");
    let lied = format!("{put}content-length: 100\r\n\r\n{{");
    let mut stream = TcpStream::connect(addr).await.expect("connects");
    stream.write_all(lied.as_bytes()).await.expect("written");
    drop(stream); // closes in the middle of the body
    let (status, _) = fleet.get(0, "/v1/status").await;
    assert_eq!(status, 200, "others are served");
}

/// The limits of 5 s (head), 10 s (first request, stalled body) are waited out together.
#[tokio::test(flavor = "multi_thread")]
async fn silent_and_half_finished_clients_are_dropped() {
    let fleet = Fleet::start(1, 1).await;
    let addr = fleet.syncers[0].addr();
    let put = "PUT /v1/guilds/g/calls/c/participants/s HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{";
    let h2_preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let clients = ["", "GET /livez HTTP/1.1\r\nhos", "PRI * HT", h2_preface, put].map(|bytes| async move {
        let mut stream = TcpStream::connect(addr).await.expect("connects");
        stream.write_all(bytes.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "still open after 30 s: {bytes:?}");
        String::from_utf8_lossy(&answer).into_owned()
    });
    let answers = futures_util::future::join_all(clients).await;
    assert!(answers[4].starts_with("HTTP/1.1 408"), "a stalled body is told so: {:?}", answers[4]);
    let metrics = fleet.client.get(fleet.url(0, "/metrics")).send().await.expect("an answer");
    let metrics = metrics.text().await.expect("text");
    assert!(metrics.contains("trunkline_http_connections_refused_total{why=\"silent\"}"), "{metrics}");
}
