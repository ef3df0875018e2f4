//! The pool against real servers on loopback: TLS, HTTP/1.1, HTTP/2, and the life of connections.

mod common;

use std::time::Duration;

use common::{Ca, PATIENCE, Server, after, get, quick_limits, settled, soon, until};
use http::{Request, Version};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use pool::{Body, BreakerState, LaneLimits};
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

/// Of a server that says how long it keeps an idle connection, and keeps it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_closes_before_the_server_s_keep_alive_ends() {
    let server = Server::rude("http", |mut stream| async move {
        let mut heard = [0; KIB];
        while let Ok(1..) = stream.read(&mut heard).await {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=1\r\ncontent-length: 2\r\n\r\nok").await);
        }
    })
    .await;
    // Far longer than anybody here waits.
    let lane = pool::Lane::builder("plain").limits(LaneLimits { idle_timeout: 10 * PATIENCE, ..quick_limits() });
    let lane = lane.build().expect("lane");
    let sfu = lane.origin(&server.origin);
    for _ in 0..2 {
        let answer = sfu.send(get("/ok"), soon()).await.expect("answered");
        assert_eq!(answer.into_body().bytes(KIB).await.expect("body"), "ok");
    }
    until("it is closed here", || lane.snapshot().live == 0).await;
    until("it is closed there", || server.open() == 0).await;
    settled(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_retire_at_their_age() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let lane = ca.lane(LaneLimits { age_max: Duration::from_millis(150), ..quick_limits() });
        let server = Server::https(&ca, &[alpn]).await;
        let sfu = lane.origin(&server.origin);
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

/// The peer is never waited for, so no timer tells: the body ends by the clock, once, and holds nothing afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn r03_a_body_whose_next_frame_is_always_there_ends_at_its_deadline_too() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let (server, lane) = (Server::https(&ca, &[alpn]).await, ca.lane(quick_limits()));
        let sfu = lane.origin(&server.origin);
        sfu.send(get("/ok"), soon()).await.expect("connected").into_body().bytes(KIB).await.expect("body");
        let deadline = after(Duration::from_secs(1));
        let path = format!("/big/{}", 64 * KIB * KIB);
        let mut body = sfu.send(get(&path), deadline).await.expect("answered").into_body();
        body.frame().await.expect("a frame").expect("in time");
        tokio::time::sleep_until(deadline).await;
        let mut at_hand = 0;
        let late = loop {
            match body.frame().await.expect("an error") {
                Ok(_) => at_hand += 1,
                Err(late) => break late,
            }
        };
        assert!(late.is_timeout() && at_hand < 16, "{late:?} after {at_hand} frames");
        assert!(body.frame().await.is_none() && body.is_end_stream(), "told once");
        until("the body holds nothing", || lane.snapshot().in_use == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r03_frames_without_data_do_not_keep_an_idle_limited_body_alive() {
    let ca = Ca::new();
    let (server, lane) = (Server::https(&ca, &["h2"]).await, ca.lane(quick_limits()));
    let response = lane.origin(&server.origin).send(get("/hollow"), soon()).await.expect("answered");
    let body = response.into_body().idle_limited(Duration::from_millis(300));
    let error = tokio::time::timeout(PATIENCE, body.bytes(KIB)).await.expect("ended").expect_err("no data");
    assert!(error.is_timeout(), "{error:?}");
}
