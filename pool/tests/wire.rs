//! The pool against real servers on loopback: TLS, HTTP/1.1, HTTP/2, and what goes wrong with them.

mod common;

use std::time::Duration;

use common::{Ca, Server, after, get, quick_limits, reset, settled, soon, until};
use http::{Request, Version};
use http_body_util::BodyExt;
use pool::{Body, BreakerState, LaneLimits, Origin, Sent, Stage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tower::{Service, ServiceExt};

const KIB: usize = 1024;

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_carry_bodies_both_ways() {
    let ca = Ca::new();
    for (alpn, version) in [("h2", Version::HTTP_2), ("http/1.1", Version::HTTP_11)] {
        let (server, lane) = (Server::https(&ca, &[alpn]).await, ca.lane(quick_limits()));
        let sfu = lane.origin(&server.origin);
        let payload = vec![7; 200 * KIB];
        let request = Request::put("/echo").body(Body::from(payload.clone())).expect("request");
        let response = sfu.send(request, soon()).await.expect("answered");
        assert_eq!(response.version(), version);
        assert_eq!(response.into_body().bytes(KIB * KIB).await.expect("body"), payload);
        settled(&lane).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http1_connections_are_reused_after_the_body_ended() {
    let ca = Ca::new();
    let (server, lane) = (Server::https(&ca, &["http/1.1"]).await, ca.lane(quick_limits()));
    let sfu = lane.origin(&server.origin);
    for n in 0..50 {
        let response = sfu.send(get(&format!("/big/{}", n * 1_000)), soon()).await.expect("answered");
        assert_eq!(response.into_body().bytes(KIB * KIB).await.expect("body").len(), n * 1_000);
        until("the connection is back", || lane.snapshot().idle == 1).await;
    }
    assert_eq!((server.accepted(), server.requests()), (1, 50));
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_origins_need_no_tls() {
    let server = Server::http().await;
    let lane = pool::Lane::builder("plain").build().expect("lane");
    let response = lane.origin(&server.origin).send(get("/ok"), soon()).await.expect("answered");
    assert_eq!(response.into_body().bytes(KIB).await.expect("body"), "ok");
    let url = format!("{}/ok", server.origin);
    let mut client = lane.clone();
    let response = client.ready().await.expect("ready").call(get(&url)).await.expect("answered");
    assert_eq!(response.into_body().bytes(KIB).await.expect("body"), "ok");
    assert_eq!(server.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_a_thousand_requests_to_one_http2_origin_share_few_connections() {
    let ca = Ca::new();
    let (server, lane) = (Server::https(&ca, &["h2", "http/1.1"]).await, ca.lane(quick_limits()));
    let sfu = lane.origin(&server.origin);
    let mut requests = JoinSet::new();
    for _ in 0..1_000 {
        let sfu = sfu.clone();
        requests.spawn(async move {
            let response = sfu.send(get("/slow/20"), soon()).await?;
            response.into_body().bytes(KIB).await
        });
    }
    while let Some(answer) = requests.join_next().await {
        assert_eq!(answer.expect("no panic").expect("answered"), "slow");
    }
    assert!(server.accepted() <= 10, "{} connections", server.accepted());
    assert_eq!(server.requests(), 1_000);
    settled(&lane).await;
}

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
async fn r17_a_fresh_request_uses_a_new_connection_and_its_success_ends_the_back_off() {
    let ca = Ca::new();
    let (server, lane) = (Server::https(&ca, &["h2"]).await, ca.lane(quick_limits()));
    let sfu = lane.origin(&server.origin);
    for connections in 1..=3 {
        sfu.fresh(get("/ok"), soon()).await.expect("answered");
        assert_eq!(server.accepted(), connections);
    }
    sfu.send(get("/ok"), soon()).await.expect("answered");
    assert_eq!(server.accepted(), 3);
    sfu.probe_dial(soon()).await.expect("connected");
    assert_eq!((server.accepted(), sfu.breaker()), (4, BreakerState::Closed));
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
        sfu.send(get("/ok"), soon()).await.expect("never lost to a goaway");
    }
    let slow = slow.join_next().await.expect("one task").expect("no panic");
    assert_eq!(slow.expect("finished").into_body().bytes(KIB).await.expect("body"), "slow");
    assert!(server.accepted() >= 2);
    settled(&lane).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_close_after_their_time() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let lane = ca.lane(LaneLimits { idle_timeout: Duration::from_millis(100), ..quick_limits() });
        let server = Server::https(&ca, &[alpn]).await;
        lane.origin(&server.origin).probe_dial(soon()).await.expect("connected");
        until("it is closed here", || lane.snapshot().live == 0).await;
        until("it is closed there", || server.open() == 0).await;
        settled(&lane).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_retire_at_their_age() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let lane = ca.lane(LaneLimits { age_max: Duration::from_millis(150), ..quick_limits() });
        let server = Server::https(&ca, &[alpn]).await;
        let sfu = lane.origin(&server.origin);
        until("a second connection was opened", || server.accepted() >= 1 || server.open() == 0).await;
        let deadline = soon();
        while server.accepted() < 3 {
            assert!(tokio::time::Instant::now() < deadline, "connections never retire");
            sfu.send(get("/slow/5"), soon()).await.expect("answered").into_body().bytes(KIB).await.expect("body");
        }
        settled(&lane).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http1_connections_stay_within_their_cap_and_serve_everyone() {
    let ca = Ca::new();
    let limits = LaneLimits { connections_per_origin_max: 4, ..quick_limits() };
    let (server, lane) = (Server::https(&ca, &["http/1.1"]).await, ca.lane(limits));
    let sfu = lane.origin(&server.origin);
    let mut requests = JoinSet::new();
    for _ in 0..200 {
        let sfu = sfu.clone();
        requests.spawn(async move { sfu.send(get("/slow/3"), soon()).await?.into_body().bytes(KIB).await });
    }
    while let Some(answer) = requests.join_next().await {
        answer.expect("no panic").expect("answered");
    }
    assert!(server.accepted() <= 4, "{} connections", server.accepted());
    settled(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_requests_finish_and_cuts_those_that_do_not() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let server = Server::https(&ca, &[alpn]).await;
        let (kind, stubborn) = (ca.lane(quick_limits()), ca.lane(quick_limits()));
        let mut requests = JoinSet::new();
        for (lane, path) in [(&kind, "/slow/200"), (&stubborn, "/never")] {
            let sfu = lane.origin(&server.origin);
            requests.spawn(async move { sfu.send(get(path), soon()).await?.into_body().bytes(KIB).await });
        }
        until("both are there", || server.requests() == 2).await;
        assert_eq!(kind.drain(soon()).await, pool::DrainReport::default());
        assert_eq!(stubborn.drain(after(Duration::from_millis(50))).await.connections_aborted, 1);
        let outcomes: Vec<_> = requests.join_all().await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
        let refused = kind.origin(&server.origin).send(get("/ok"), soon()).await.expect_err("draining");
        assert!(refused.is_draining() && refused.is_retry_safe());
        until("both lanes are empty", || kind.snapshot().live + stubborn.snapshot().live == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_origin_closes_and_its_next_handle_works() {
    let ca = Ca::new();
    let (server, lane) = (Server::https(&ca, &["h2"]).await, ca.lane(quick_limits()));
    let old = lane.origin(&server.origin);
    old.send(get("/ok"), soon()).await.expect("answered");
    lane.forget(&server.origin);
    until("its connection is closed", || server.open() == 0).await;
    assert!(old.send(get("/ok"), soon()).await.expect_err("forgotten").is_draining());
    lane.origin(&server.origin).send(get("/ok"), soon()).await.expect("answered");
    assert_eq!(lane.snapshot().origins, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_handle_closes_everything() {
    let ca = Ca::new();
    let server = Server::https(&ca, &["h2", "http/1.1"]).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let lane = ca.lane(quick_limits());
    let sfu = lane.origin(&server.origin);
    sfu.send(get("/ok"), soon()).await.expect("answered");
    drop(lane);
    sfu.send(get("/ok"), soon()).await.expect("a handle keeps its lane");
    drop(sfu);
    until("all is closed", || server.open() == 0).await;
    until("every task of the lane has ended", || tasks() <= before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_sessions_are_resumed_with_more_servers_than_rustls_remembers_by_default() {
    let ca = Ca::new();
    let lane = ca.lane(quick_limits());
    let mut servers = Vec::new();
    for host in 1..=40 {
        servers.push(Server::https_at(&ca, host, &["h2"]).await);
    }
    for _ in 0..2 {
        for server in &servers {
            lane.origin(&server.origin).fresh(get("/ok"), soon()).await.expect("answered");
        }
    }
    let mut registry = prometheus_client::registry::Registry::default();
    lane.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
    let resumed: u64 = text
        .lines()
        .filter(|line| line.starts_with("pool_tls_handshakes_total") && line.contains("resumed"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(resumed, 40, "{text}");
    assert!(text.contains("pool_permits_off{lane=\"test\",partition=\"0\"} 0"), "{text}");
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
async fn a_client_certificate_can_be_given_later_and_open_connections_stay() {
    let ca = Ca::new();
    let (strict, plain) = (ca.mutual().await, Server::https(&ca, &["h2"]).await);
    let lane = ca.lane(LaneLimits { backoff_base: Duration::from_millis(1), ..quick_limits() });
    let (sfu, other) = (lane.origin(&strict.origin), lane.origin(&plain.origin));
    other.send(get("/ok"), soon()).await.expect("needs no certificate");
    sfu.send(get("/ok"), after(Duration::from_secs(5))).await.expect_err("without a certificate");
    assert_eq!(strict.requests(), 0);
    let with_cert = pool::tls::client_config(ca.pem().as_bytes(), Some(&ca.client_cert())).expect("tls");
    lane.set_tls(&with_cert);
    sfu.fresh(get("/ok"), soon()).await.expect("with a certificate");
    other.send(get("/ok"), soon()).await.expect("answered");
    assert_eq!(plain.accepted(), 1, "the open connection is still used");
    // Another authority: what is open stays, what is new is checked against it.
    let stranger = Ca::new();
    lane.set_tls(&pool::tls::client_config(stranger.pem().as_bytes(), None).expect("tls"));
    other.send(get("/ok"), soon()).await.expect("still open");
    let error = other.fresh(get("/ok"), soon()).await.expect_err("not signed by the new authority, nor resumed");
    assert!(error.is_tls(), "{error:?}");
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
