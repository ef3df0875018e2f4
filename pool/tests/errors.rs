//! What an error says about the host, about us, and about the request.

mod common;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use common::{Ca, Server, get, quick_limits, settled, soon, until};
use http::Request;
use http_body_util::StreamBody;
use hyper::body::Frame;
use pool::{Alpn, Body, Connected, Lane, LaneLimits, Origin, Stage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

const KIB: usize = 1024;

#[tokio::test(flavor = "multi_thread")]
async fn r04_no_request_starts_after_its_deadline() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let (server, lane) = (Server::https(&ca, &[alpn]).await, ca.lane(quick_limits()));
        let sfu = lane.origin(&server.origin);
        let answer = sfu.send(get("/ok"), soon()).await.expect("answered");
        answer.into_body().bytes(KIB).await.expect("body");
        until("the connection is back", || lane.snapshot().idle == 1).await;
        let late = sfu.send(get("/ok"), Instant::now()).await.expect_err("too late");
        assert!(late.is_timeout() && late.is_retry_safe() && late.stage() == Stage::Queue, "{late:?}");
        let answer = sfu.send(get("/ok"), soon()).await.expect("answered");
        answer.into_body().bytes(KIB).await.expect("body");
        assert_eq!((server.requests(), server.accepted()), (2, 1), "it was sent, or cost the connection");
        settled(&lane).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_stream_says_that_it_was_not_processed() {
    let server = Server::rude("http", |stream| async move {
        let Ok(mut h2) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((_, mut answer))) = h2.accept().await {
            answer.send_reset(h2::Reason::REFUSED_STREAM);
        }
    })
    .await;
    let address = format!("{}:{}", server.origin.host(), server.origin.port());
    let connector = tower::service_fn(move |_: Origin| {
        let address = address.clone();
        async move { TcpStream::connect(address).await.map(|stream| Connected::ready(stream, Alpn::Http2)) }
    });
    let lane = Lane::builder("plain").connector(connector).build().expect("lane");
    let error = lane.origin(&server.origin).send(get("/ok"), soon()).await.expect_err("refused");
    assert!(error.is_not_processed() && error.is_retry_safe() && !error.is_protocol(), "{error:?}");
    settled(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r05_a_connection_whose_bodies_never_end_becomes_suspect() {
    let ca = Ca::new();
    let (server, lane) = (Server::https(&ca, &["h2"]).await, ca.lane(quick_limits()));
    let sfu = lane.origin(&server.origin);
    sfu.send(get("/ok"), soon()).await.expect("answered");
    for _ in 0..3 {
        let answer = sfu.send(get("/stall"), soon()).await.expect("a head");
        let silent = answer.into_body().idle_limited(Duration::from_millis(50)).bytes(KIB).await.expect_err("no end");
        assert!(silent.is_timeout(), "{silent:?}");
    }
    sfu.send(get("/ok"), soon()).await.expect("answered");
    assert_eq!(server.accepted(), 2, "three heads without a body are no answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_peer_that_answers_early_and_reads_no_further_keeps_no_connection() {
    let server = Server::rude("http", |mut stream| async move {
        let mut some = [0; 64];
        drop(stream.read(&mut some).await);
        drop(stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await);
        std::future::pending().await
    })
    .await;
    let lane = Lane::builder("plain").build().expect("lane");
    let endless = futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>();
    let request = Request::put("/").body(Body::wrap(StreamBody::new(endless))).expect("request");
    let answer = lane.origin(&server.origin).send(request, soon()).await.expect("answered early");
    assert_eq!(answer.status(), 413);
    drop(answer);
    settled(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_an_http2_request_whose_body_is_not_read_or_does_not_end_keeps_no_connection() {
    // Neither gives the streams' windows back nor resets them.
    let server = Server::rude("http", |stream| async move {
        let Ok(mut h2) = h2::server::handshake(stream).await else { return };
        let mut unread = Vec::new();
        while let Some(Ok((request, mut answer))) = h2.accept().await {
            let head = http::Response::builder().status(413).body(()).expect("head");
            drop(answer.send_response(head, true));
            unread.push((request, answer));
        }
    })
    .await;
    let address = format!("{}:{}", server.origin.host(), server.origin.port());
    let connector = tower::service_fn(move |_: Origin| {
        let address = address.clone();
        async move { TcpStream::connect(address).await.map(|stream| Connected::ready(stream, Alpn::Http2)) }
    });
    let limits = LaneLimits { idle_timeout: Duration::from_millis(100), ..quick_limits() };
    let lane = Lane::builder("plain").connector(connector).limits(limits).build().expect("lane");
    let chunk = || Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; KIB * KIB])));
    let endless = Body::wrap(StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>()));
    let large = Body::wrap(StreamBody::new(futures_util::stream::repeat_with(chunk)));
    for body in [endless, large] {
        let request = Request::put("/").body(body).expect("request");
        let answer = lane.origin(&server.origin).send(request, soon()).await.expect("answered early");
        assert_eq!(answer.status(), 413);
        drop(answer);
        until("the permit is back", || lane.snapshot().connections == 0).await;
        settled(&lane).await;
    }
}
