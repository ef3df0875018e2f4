//! The registry's lane: isolated, bounded, on a thread of its own.

mod common;

use std::time::Duration;

use common::{Ca, Server, after, get, soon, until};
use pool::{Metrics, Pool, RegistryLane, Sent};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;

fn lane(ca: &Ca) -> RegistryLane {
    let tls = pool::tls::client_config(ca.pem().as_bytes(), None).expect("tls");
    RegistryLane::start("registry", Some(&tls), &Metrics::default()).expect("lane")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_over_both_protocols_and_reuses_connections() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let (server, lane) = (Server::https(&ca, &[alpn]).await, lane(&ca));
        for _ in 0..10 {
            let response = lane.send(&server.origin, get("/ok"), soon()).await.expect("answered");
            assert_eq!(response.into_body().bytes(64).await.expect("body"), "ok");
        }
        assert_eq!((server.accepted(), server.requests(), lane.requests()), (1, 10, 0));
        drop(lane);
        until("its thread closed everything", || server.open() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_it_sheds_beyond_its_bound_and_every_wait_ends() {
    let ca = Ca::new();
    let (server, lane) = (Server::https(&ca, &["h2"]).await, lane(&ca));
    let other = Server::https(&ca, &["h2"]).await;
    let mut requests = JoinSet::new();
    for _ in 0..200 {
        let (lane, origin) = (lane.clone(), server.origin.clone());
        requests.spawn(async move { lane.send(&origin, get("/never"), after(Duration::from_secs(1))).await });
    }
    until("a member has all places that one may have", || lane.requests() == 128).await;
    lane.send(&other.origin, get("/ok"), soon()).await.expect("the other half is for the others");
    let (mut shed, mut late) = (0, 0);
    while let Some(outcome) = requests.join_next().await {
        let error = outcome.expect("no panic").expect_err("no answer");
        shed += u32::from(error.is_saturated());
        late += u32::from(error.is_timeout());
        assert!(error.is_timeout() || error.sent() == Sent::No);
    }
    assert_eq!((shed, late), (72, 128));
    lane.send(&server.origin, get("/ok"), soon()).await.expect("answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_all_members_together_have_a_bound() {
    let ca = Ca::new();
    let (one, two, three) =
        (Server::https(&ca, &["h2"]).await, Server::https(&ca, &["h2"]).await, Server::https(&ca, &["h2"]).await);
    let lane = lane(&ca);
    let mut requests = JoinSet::new();
    for server in [&one, &two] {
        for _ in 0..128 {
            let (lane, origin) = (lane.clone(), server.origin.clone());
            requests.spawn(async move { lane.send(&origin, get("/never"), soon()).await });
        }
    }
    until("all places are taken", || lane.requests() == 256).await;
    let error = lane.send(&three.origin, get("/ok"), soon()).await.expect_err("full");
    assert!(error.is_saturated() && error.retry_after().is_some(), "{error:?}");
    requests.abort_all();
    until("they are free", || lane.requests() == 0).await;
    lane.send(&three.origin, get("/ok"), soon()).await.expect("answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_an_operator_sees_its_members_and_a_drain_serves_what_is_under_way() {
    let ca = Ca::new();
    let tls = pool::tls::client_config(ca.pem().as_bytes(), None).expect("tls");
    for (path, patience, aborted) in [("/drip/40", common::PATIENCE, 0), ("/stall", Duration::from_millis(200), 1)] {
        let (server, metrics) = (Server::https(&ca, &["h2"]).await, Metrics::default());
        let lane = RegistryLane::start("registry", Some(&tls), &metrics).expect("lane");
        let pool = Pool::new().with_registry(lane.clone());
        let body = lane.send(&server.origin, get(path), soon()).await.expect("a head").into_body();
        let seen = pool.debug(10).remove(0);
        let row = &seen.top[0];
        assert_eq!((seen.lane.as_str(), seen.totals.live, seen.totals.in_use), ("registry", 1, 1));
        assert_eq!((row.origin.clone(), row.live, row.in_use), (server.origin.to_string(), 1, 1));

        let read = JoinSet::from_iter([async move { body.bytes(1024).await.is_ok() }]);
        let (draining, deadline) = (pool.clone(), after(patience));
        let drain = JoinSet::from_iter([async move { draining.drain(pool::Waiting::Serve, deadline).await }]);
        let error = loop {
            match lane.send(&server.origin, get("/ok"), soon()).await {
                Ok(_served) => tokio::task::yield_now().await, // The drain has not begun.
                Err(error) => break error,
            }
        };
        assert!(error.is_draining(), "{error:?}");
        assert_eq!(drain.join_all().await[0].connections_aborted, aborted, "{path}");
        assert_eq!(read.join_all().await, [aborted == 0], "{path}");
        until("its connections are closed", || lane.connections() == 0 && server.open() == 0).await;

        let mut shown = String::new();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        prometheus_client::encoding::text::encode(&mut shown, &registry).expect("text");
        for line in [
            r#"pool_requests_total{lane="registry",partition="0",connection="new",outcome="answered"} "#,
            r#"pool_dials_total{lane="registry",partition="0",outcome="connected"} "#,
            r#"pool_shed_total{lane="registry",partition="0",outcome="draining"} 1"#,
            r#"pool_live{lane="registry",partition="0"} 0"#,
        ] {
            assert!(shown.contains(line), "{line} is not in\n{shown}");
        }
    }
}

/// The test's own runtime has one thread, and that thread is blocked.
#[tokio::test]
async fn r05_it_works_while_the_process_s_own_threads_are_stuck() {
    let ca = Ca::new();
    let helper = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let server = {
        let ca = &ca;
        std::thread::scope(|scope| scope.spawn(|| helper.block_on(Server::https(ca, &["h2"]))).join().expect("server"))
    };
    let lane = lane(&ca);
    let (done, result) = std::sync::mpsc::channel();
    let (inside, origin) = (lane.clone(), server.origin.clone());
    lane.spawn(async move {
        let answer = inside.send(&origin, get("/ok"), soon()).await;
        drop(done.send(answer.map(|response| response.status())));
    });
    let status = result.recv_timeout(common::PATIENCE).expect("the lane's thread is not ours").expect("answered");
    assert_eq!(status, 200);
    helper.shutdown_background();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_connection_is_not_handed_out_again() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let (server, lane) = (Server::https(&ca, &[alpn]).await, lane(&ca));
        lane.send(&server.origin, get("/ok"), soon())
            .await
            .expect("answered")
            .into_body()
            .bytes(64)
            .await
            .expect("body");
        server.say_goodbye();
        until("the lane's own thread has seen it", || lane.connections() == 0).await;
        lane.send(&server.origin, get("/ok"), soon()).await.expect("on a new connection");
        assert_eq!((server.accepted(), lane.connections()), (2, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r05_new_authorities_count_from_the_next_request_on_and_cut_none_that_runs() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let trusts = |ca: &Ca| pool::tls::client_config(ca.pem().as_bytes(), None).expect("tls");
    let (server, lane) = (Server::https(&ca, &["h2"]).await, lane(&ca));
    let running = lane.send(&server.origin, get("/drip/40"), soon()).await.expect("a head").into_body();
    lane.send(&server.origin, get("/ok"), soon()).await.expect("answered").into_body().bytes(64).await.expect("body");
    assert_eq!(lane.connections(), 2);
    lane.set_tls(&trusts(&stranger));
    until("the idle one is closed", || lane.connections() == 1).await;
    let error = lane.send(&server.origin, get("/ok"), soon()).await.expect_err("a stranger's");
    assert!(error.is_tls(), "{error:?}");
    assert_eq!(running.bytes(1024).await.expect("it goes on").len(), 40 * 4);
    until("and closes after its request", || lane.connections() == 0).await;
    lane.set_tls(&trusts(&ca));
    lane.send(&server.origin, get("/ok"), soon()).await.expect("trusted again");
}

/// A member that takes connections and never says a word, and callers who leave long before a dial gives up.
#[tokio::test(flavor = "multi_thread")]
async fn r04_a_silent_member_costs_so_many_sockets_and_no_more() {
    let ca = Ca::new();
    let silent = Server::rude("https", |stream| async move {
        let mut byte = [0];
        while stream.readable().await.is_ok() && stream.try_read(&mut byte).is_ok_and(|read| read > 0) {}
        let _held_open: Option<()> = std::future::pending().await;
        drop(stream);
    })
    .await;
    let lane = lane(&ca);
    for _ in 0..3 {
        let mut callers = JoinSet::new();
        for _ in 0..16 {
            let (lane, origin) = (lane.clone(), silent.origin.clone());
            callers.spawn(async move { lane.send(&origin, get("/ok"), after(Duration::from_millis(200))).await });
        }
        while let Some(outcome) = callers.join_next().await {
            assert!(outcome.expect("no panic").expect_err("no answer").is_timeout());
        }
    }
    assert!(silent.accepted() <= 16, "{} dials at once", silent.accepted());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_takes_longer_to_reach_than_callers_have_time_is_reached() {
    let ca = Ca::new();
    let tls = tokio_rustls::TlsAcceptor::from(ca.server_config([127, 0, 0, 1].into(), &["h2"]));
    let slow = Server::rude("https", move |stream| {
        let tls = tls.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Ok(stream) = tls.accept(stream).await {
                common::serve(stream, std::sync::Arc::default(), std::sync::Arc::default()).await;
            }
        }
    })
    .await;
    let (lane, deadline) = (lane(&ca), soon());
    while lane.send(&slow.origin, get("/ok"), after(Duration::from_millis(100))).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "each dial worked, and nobody got a connection");
    }
}
