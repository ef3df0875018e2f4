//! Clients that take their time, each dropped by the limit that is meant for it.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Target, read_out};

const HALF_BODY: &str = "PUT /v1/guilds/g/calls/c/participants/s HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";

/// Writes a byte a second until the peer closes; what it answered.
async fn drip(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    for byte in bytes.iter().chain(std::iter::repeat(&b' ')).take(60) {
        if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        let more = tokio::time::timeout(Duration::from_secs(1), stream.read_buf(&mut answer)).await;
        if more.is_ok_and(|read| read.map_or(true, |n| n == 0)) {
            return answer;
        }
    }
    answer
}

/// All of them at once: the longest takes the 30 s that a body may take.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_dropped_each_by_its_limit() {
    let target = Target::start("http/1.1").await;
    let silent_tcp = async { read_out(&mut target.tcp().await).await };
    let half_hello = async {
        let mut stream = target.tcp().await;
        stream.write_all(&[22, 3, 1, 2, 0, 1]).await.expect("written");
        read_out(&mut stream).await
    };
    let after = |bytes: &'static str| {
        let target = &target;
        async move {
            let mut stream = target.connect().await;
            super::write_some(&mut stream, bytes.as_bytes()).await;
            read_out(&mut stream).await
        }
    };
    let dripped_head =
        async { drip(target.connect().await, b"GET /livez HTTP/1.1\r\nhost: x\r\nlonger: than it needs").await };
    let dripped_body = async {
        let mut stream = target.connect().await;
        super::write_some(&mut stream, HALF_BODY.as_bytes()).await;
        drip(stream, b"").await
    };
    let (tcp, hello, silent, half_head, preface, head, half_body, body) = tokio::join!(
        silent_tcp,
        half_hello,
        after(""),
        after("GET /livez HTTP/1.1\r\nhos"),
        after("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        dripped_head,
        after(HALF_BODY),
        dripped_body,
    );
    assert!(tcp.is_empty() && hello.is_empty() && silent.is_empty() && half_head.is_empty() && head.is_empty());
    assert!(!preface.starts_with(b"HTTP"), "HTTP/2 settings at most");
    for (name, answer) in [("half a body", half_body), ("a dripped body", body)] {
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 408") && text.contains("connection: close"), "{name}: {text}");
    }
    // The preface of HTTP/2 is the start of a head: settings and a request must follow.
    let counts = [("tls_timeout", 2), ("silent", 1), ("slow_head", 3)];
    for (why, wanted) in counts {
        assert_eq!(target.refused(why).await, wanted, "{why}");
    }
    target.serves_others("slow clients").await;
}

/// At the cap a newcomer that asks is served, and the oldest that never asked makes room.
#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_crowd_out_each_other_and_nobody_who_asks() {
    let fleet =
        crate::support::Fleet::start_with(1, 1, |c| drop(c.limits.insert("http.connections_max".into(), 8.into())))
            .await;
    let addr = fleet.syncers[0].addr();
    let mut polite = tokio::net::TcpStream::connect(addr).await.expect("connects");
    let ask = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut answer = [0; 4_096];
    polite.write_all(ask).await.expect("written");
    assert!(polite.read(&mut answer).await.expect("an answer") > 0);
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(tokio::net::TcpStream::connect(addr).await.expect("connects"));
    }
    let (status, _) = fleet.get(0, "/v1/status").await;
    assert_eq!(status, 200, "a newcomer is served");
    polite.write_all(ask).await.expect("still open");
    assert!(polite.read(&mut answer).await.expect("an answer") > 0, "whoever has asked stays");
    let closed = crate::support::soon("the oldest are gone", read_out(&mut silent[0])).await;
    assert!(closed.is_empty());
}
