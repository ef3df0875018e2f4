//! What goes wrong on the wire: held and cut handshakes, connections closed while idle, GOAWAY, silence, slow and
//! endless bodies, lies and garbage, by real servers on loopback.

mod common;

use std::time::Duration;

use common::{Ca, Server, after, get, quick_limits, reset, settled, soon, until};
use http::Request;
use http_body_util::BodyExt;
use pool::{BreakerState, LaneLimits, Origin, Sent, Stage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

const KIB: usize = 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_dial_says_so_and_a_fresh_one_goes_past_the_back_off() {
    let ca = Ca::new();
    let gone = Server::https(&ca, &["h2"]).await.origin.clone();
    until("nobody listens", || std::net::TcpStream::connect((gone.host(), gone.port())).is_err()).await;
    let lane = ca.lane(LaneLimits {
        backoff_base: Duration::from_secs(3_600),
        backoff_max: Duration::from_secs(3_600),
        ..quick_limits()
    });
    let sfu = lane.origin(&gone);
    let first = sfu.send(get("/ok"), soon()).await.expect_err("refused");
    assert!(first.is_refused() && !first.is_fail_fast(), "{first:?}");
    assert_eq!((first.stage(), first.sent()), (Stage::Tcp, Sent::No));
    let second = sfu.send(get("/ok"), soon()).await.expect_err("refused");
    assert!(second.is_refused() && second.is_fail_fast() && second.retry_after().is_some(), "{second:?}");
    assert!(matches!(sfu.breaker(), BreakerState::Open { .. }));
    let probe = sfu.fresh(get("/ok"), soon()).await.expect_err("refused");
    assert!(probe.is_refused() && !probe.is_fail_fast(), "{probe:?}");
    settled(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_in_the_tls_handshake_is_a_reset() {
    let ca = Ca::new();
    let server = Server::rude("https", |mut stream| async move {
        let mut hello = [0; 16];
        drop(stream.read_exact(&mut hello).await);
        reset(stream);
    })
    .await;
    let lane = ca.lane(quick_limits());
    let error = lane.origin(&server.origin).send(get("/ok"), soon()).await.expect_err("reset");
    assert!(error.is_reset() && error.stage() == Stage::Tls && error.is_retry_safe(), "{error:?}");
    settled(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_certificate_is_a_tls_failure() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (server, lane) = (Server::https(&other, &["h2"]).await, ca.lane(quick_limits()));
    let error = lane.origin(&server.origin).send(get("/ok"), soon()).await.expect_err("untrusted");
    assert!(error.is_tls() && error.stage() == Stage::Tls && error.sent() == Sent::No, "{error:?}");
    assert_eq!(server.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_held_tls_handshake_times_out_for_the_dial_and_for_the_caller() {
    let ca = Ca::new();
    let server = Server::rude("https", |stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let lane = ca.lane(LaneLimits { dial_timeout: Duration::from_millis(150), ..quick_limits() });
    let sfu = lane.origin(&server.origin);
    let error = sfu.send(get("/ok"), soon()).await.expect_err("held");
    assert!(error.is_timeout() && error.stage() == Stage::Tls && error.sent() == Sent::No, "{error:?}");
    let lane = ca.lane(LaneLimits { dial_timeout: Duration::from_secs(60), ..quick_limits() });
    let sfu = lane.origin(&server.origin);
    let error = sfu.send(get("/ok"), after(Duration::from_millis(150))).await.expect_err("held");
    assert!(error.is_timeout() && error.stage() == Stage::Tls && error.sent() == Sent::No, "{error:?}");
    assert_eq!(lane.snapshot().dialling, 1, "the dial outlives its caller");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_after_sending_says_that_the_server_may_have_acted() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let (server, lane) = (Server::https(&ca, &[alpn]).await, ca.lane(quick_limits()));
        let sfu = lane.origin(&server.origin);
        sfu.probe_dial(soon()).await.expect("connected");
        let error = sfu.send(get("/never"), after(Duration::from_millis(300))).await.expect_err("no answer");
        assert!(error.is_timeout() && !error.is_retry_safe(), "{error:?}");
        assert_eq!((error.sent(), error.stage()), (Sent::Maybe, Stage::Response));
        sfu.send(get("/ok"), soon()).await.expect("the origin still works");
        settled(&lane).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_that_the_server_closed_is_not_used() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let (server, lane) = (Server::https(&ca, &[alpn]).await, ca.lane(quick_limits()));
        let sfu = lane.origin(&server.origin);
        sfu.send(get("/ok"), soon()).await.expect("answered").into_body().bytes(KIB).await.expect("body");
        assert_eq!(lane.snapshot().live, 1);
        server.say_goodbye();
        until("the end is noticed while idle", || lane.snapshot().live == 0).await;
        settled(&lane).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn goaway_moves_new_requests_to_a_new_connection_and_lets_old_ones_finish() {
    let ca = Ca::new();
    let (server, lane) = (Server::https(&ca, &["h2"]).await, ca.lane(quick_limits()));
    let sfu = lane.origin(&server.origin);
    let mut slow = JoinSet::new();
    let handle = sfu.clone();
    slow.spawn(async move { handle.send(get("/slow/400"), soon()).await });
    until("the slow request is there", || server.requests() == 1).await;
    server.say_goodbye();
    for _ in 0..20 {
        // One that was on its way when the server left is told so; what comes after it finds a new connection.
        match sfu.send(get("/ok"), soon()).await {
            Err(error) if error.is_not_processed() => drop(sfu.send(get("/ok"), soon()).await.expect("not twice")),
            answer => drop(answer.expect("never lost to a goaway")),
        }
    }
    let slow = slow.join_next().await.expect("one task").expect("no panic");
    assert_eq!(slow.expect("finished").into_body().bytes(KIB).await.expect("body"), "slow");
    assert!(server.accepted() >= 2);
    settled(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_is_read_to_its_end_and_holds_its_connection_until_then() {
    let ca = Ca::new();
    for (alpn, idle) in [("h2", 1), ("http/1.1", 0)] {
        let (server, lane) = (Server::https(&ca, &[alpn]).await, ca.lane(quick_limits()));
        let sfu = lane.origin(&server.origin);
        let mut body = sfu.send(get("/drip/40"), soon()).await.expect("a head").into_body();
        assert!(body.frame().await.expect("a frame").is_ok());
        assert_eq!((lane.snapshot().in_use, server.accepted()), (1, 1), "{alpn}");
        let other = sfu.send(get("/ok"), soon()).await.expect("served beside it");
        assert_eq!(other.into_body().bytes(KIB).await.expect("body"), "ok");
        assert_eq!(server.accepted(), 2 - idle, "{alpn}: a slow body is in nobody's way on HTTP/2 only");
        assert_eq!(body.bytes(KIB).await.expect("the rest").len(), 39 * 4, "{alpn}");
        let body = sfu.send(get("/drip/100000"), after(Duration::from_millis(200))).await.expect("a head").into_body();
        let late = body.bytes(KIB * KIB).await.expect_err("it never ends");
        assert!(late.is_timeout() && late.sent() == Sent::Maybe, "{alpn}: {late:?}");
        settled(&lane).await;
    }
}

/// A server that reads one request over TLS and answers with exactly these bytes, then closes.
async fn liar(ca: &Ca, answer: &'static str) -> Server {
    let config = ca.server_config([127, 0, 0, 1].into(), &["http/1.1"]);
    let tls = tokio_rustls::TlsAcceptor::from(config);
    Server::rude("https", move |stream| {
        let tls = tls.clone();
        async move {
            let Ok(mut stream) = tls.accept(stream).await else { return };
            let mut request = [0; 4096];
            drop(stream.read(&mut request).await);
            drop(stream.write_all(answer.as_bytes()).await);
            drop(stream.shutdown().await);
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_length_that_lies_is_an_error_and_never_a_short_body() {
    let ca = Ca::new();
    let server = liar(&ca, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort").await;
    let lane = ca.lane(quick_limits());
    let response = lane.origin(&server.origin).send(get("/ok"), soon()).await.expect("head");
    let error = response.into_body().bytes(KIB).await.expect_err("too short");
    assert!(error.is_reset() && error.sent() == Sent::Maybe && error.stage() == Stage::Response, "{error:?}");
    until("the connection is gone", || lane.snapshot().live == 0).await;
    settled(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_a_body_is_no_answer_to_the_next_request() {
    let ca = Ca::new();
    let lie = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    let (server, lane) = (liar(&ca, lie).await, ca.lane(quick_limits()));
    for connections in 1..=3 {
        let answer = lane.origin(&server.origin).send(get("/ok"), soon()).await.expect("head");
        assert_eq!(answer.into_body().bytes(KIB).await.expect("as long as it says"), "ok");
        until("the connection is given up", || lane.snapshot().live == 0).await;
        assert_eq!(server.accepted(), connections);
    }
    settled(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_content_length_that_lies_costs_its_stream_only() {
    let ca = Ca::new();
    let tls = tokio_rustls::TlsAcceptor::from(ca.server_config([127, 0, 0, 1].into(), &["h2"]));
    let server = Server::rude("https", move |stream| {
        let tls = tls.clone();
        async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let Ok(mut h2) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut answer))) = h2.accept().await {
                let said = if request.uri().path() == "/lie" { "100" } else { "5" };
                let head = http::Response::builder().header("content-length", said).body(()).expect("head");
                let Ok(mut body) = answer.send_response(head, false) else { continue };
                drop(body.send_data(bytes::Bytes::from_static(b"short"), true));
            }
        }
    })
    .await;
    let lane = ca.lane(quick_limits());
    let sfu = lane.origin(&server.origin);
    let answer = sfu.send(get("/lie"), soon()).await;
    let error = match answer {
        Ok(answer) => {
            let mut body = answer.into_body();
            let error = loop {
                if let Err(error) = body.frame().await.expect("too short") {
                    break error;
                }
            };
            assert!(body.frame().await.is_none(), "a body that broke is over");
            error
        }
        Err(error) => error,
    };
    assert!(error.sent() == Sent::Maybe && error.stage() == Stage::Response, "{error:?}");
    let answer = sfu.send(get("/truth"), soon()).await.expect("answered");
    assert_eq!(answer.into_body().bytes(KIB).await.expect("body"), "short");
    assert_eq!(server.accepted(), 1, "one stream is to blame, not the connection");
    settled(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_early_ends_are_errors_that_may_have_been_seen() {
    let ca = Ca::new();
    for (answer, protocol) in [("not http at all\r\n\r\n", true), ("", false)] {
        let (server, lane) = (liar(&ca, answer).await, ca.lane(quick_limits()));
        let error = lane.origin(&server.origin).send(get("/ok"), soon()).await.expect_err("no answer");
        assert_eq!((error.is_protocol(), error.is_reset()), (protocol, !protocol), "{error:?}");
        assert_eq!(error.sent(), Sent::Maybe);
        until("the connection is gone", || lane.snapshot().live == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_is_a_dns_failure() {
    let lane = Ca::new().lane(quick_limits());
    let nowhere = Origin::parse("https://nowhere.invalid:7443").expect("origin");
    let error = lane.origin(&nowhere).send(get("/ok"), soon()).await.expect_err("no such name");
    assert!(error.is_dns() && error.stage() == Stage::Dns, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_under_a_request_is_a_reset_that_may_have_been_seen() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let (server, lane) = (Server::https(&ca, &[alpn]).await, ca.lane(quick_limits()));
        let sfu = lane.origin(&server.origin);
        let mut request = JoinSet::new();
        request.spawn(async move { sfu.send(get("/never"), soon()).await });
        until("the request is there", || server.requests() == 1).await;
        drop(server);
        let error = request.join_next().await.expect("one task").expect("no panic").expect_err("died");
        assert!(error.is_reset() && error.sent() == Sent::Maybe && !error.is_retry_safe(), "{alpn}: {error:?}");
        until("the connection is gone", || lane.snapshot().live == 0).await;
        settled(&lane).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_http2_connection_is_found_by_ping() {
    let ca = Ca::new();
    let tls = tokio_rustls::TlsAcceptor::from(ca.server_config([127, 0, 0, 1].into(), &["h2"]));
    let server = Server::rude("https", move |stream| {
        let tls = tls.clone();
        async move {
            let stream = tls.accept(stream).await;
            std::future::pending::<()>().await;
            drop(stream);
        }
    })
    .await;
    let ping = Duration::from_millis(50);
    let lane = ca.lane(LaneLimits { ping_interval: ping, ping_timeout: ping, ..quick_limits() });
    lane.origin(&server.origin).probe_dial(soon()).await.expect("connected");
    until("the connection is given up", || lane.snapshot().live == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_outs_in_a_row_retire_an_http2_connection() {
    let ca = Ca::new();
    let (server, lane) = (Server::https(&ca, &["h2"]).await, ca.lane(quick_limits()));
    let sfu = lane.origin(&server.origin);
    for n in 1..=3 {
        sfu.send(get("/never"), after(Duration::from_millis(200))).await.expect_err("no answer");
        assert_eq!(server.accepted(), 1, "request {n}");
    }
    sfu.send(get("/ok"), soon()).await.expect("answered");
    assert_eq!(server.accepted(), 2);
    settled(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_a_ping_outstanding_is_passed_over_until_it_is_answered() {
    let ca = Ca::new();
    let tls = tokio_rustls::TlsAcceptor::from(ca.server_config([127, 0, 0, 1].into(), &["h2"]));
    let frozen = std::sync::Arc::new(tokio::sync::watch::Sender::new(false));
    let switch = std::sync::Arc::clone(&frozen);
    let server = Server::rude("https", move |stream| {
        let (tls, mut frozen) = (tls.clone(), switch.subscribe());
        async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = hyper::service::service_fn(|_: Request<hyper::body::Incoming>| async {
                Ok::<_, std::convert::Infallible>(http::Response::new(String::from("ok")))
            });
            let executor = hyper_util::rt::TokioExecutor::new();
            let http = hyper::server::conn::http2::Builder::new(executor);
            let mut conn = std::pin::pin!(http.serve_connection(hyper_util::rt::TokioIo::new(stream), service));
            // The first connection freezes on command; those made while it is frozen do not.
            let mine = !*frozen.borrow_and_update();
            loop {
                tokio::select! {
                    _ = conn.as_mut() => return,
                    _ = frozen.changed() => if mine && *frozen.borrow() {
                        drop(frozen.wait_for(|frozen| !frozen).await);
                    },
                }
            }
        }
    })
    .await;
    let (ping_interval, ping_timeout) = (Duration::from_millis(200), Duration::from_secs(60));
    let lane = ca.lane(LaneLimits { ping_interval, ping_timeout, ..quick_limits() });
    let sfu = lane.origin(&server.origin);
    sfu.send(get("/ok"), soon()).await.expect("answered");
    tokio::time::sleep(Duration::from_millis(700)).await;
    sfu.send(get("/ok"), soon()).await.expect("pings keep it usable");
    assert_eq!(server.accepted(), 1);
    frozen.send_replace(true);
    tokio::time::sleep(Duration::from_millis(700)).await;
    sfu.send(get("/ok"), after(Duration::from_secs(10))).await.expect("on a new connection");
    assert_eq!((server.accepted(), lane.snapshot().live), (2, 2));
    frozen.send_replace(false);
    tokio::time::sleep(Duration::from_millis(300)).await;
    sfu.send(get("/ok"), soon()).await.expect("answered");
    assert_eq!(server.accepted(), 2, "both are usable");
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_bodies_are_limited_in_size_and_in_time() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let (server, lane) = (Server::https(&ca, &[alpn]).await, ca.lane(quick_limits()));
        let sfu = lane.origin(&server.origin);
        let at = |path: &'static str, limit: usize| {
            let sfu = sfu.clone();
            async move { sfu.send(get(path), soon()).await.expect("head").into_body().bytes(limit).await }
        };
        assert_eq!(at("/big/1000", 1000).await.expect("exactly the limit").len(), 1000);
        assert!(at("/big/1001", 1000).await.expect_err("one too many").is_too_large());
        assert!(at("/big/5000000", 1000).await.expect_err("far too many").is_too_large());
        let body = sfu.send(get("/stall"), after(Duration::from_secs(1))).await.expect("head").into_body();
        let error = body.bytes(KIB).await.expect_err("stalled");
        assert!(error.is_timeout() && error.stage() == Stage::Response, "{error:?}");
        let body = sfu.send(get("/stall"), soon()).await.expect("head").into_body();
        let mut body = body.idle_limited(Duration::from_millis(100));
        assert!(body.frame().await.expect("first frame").is_ok());
        assert!(body.frame().await.expect("silence").expect_err("silence").is_timeout());
        drop(body);
        sfu.send(get("/ok"), soon()).await.expect("the origin still works");
        settled(&lane).await;
    }
}
