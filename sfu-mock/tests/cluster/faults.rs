//! Faults: what a client sees of each.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use sfu_mock::{Fault, Garbage, Target};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::{Bench, PATIENCE, SILENCE, ensure, whole};

fn address(bench: &Bench, node: usize) -> SocketAddr {
    let url = bench.node(node).url;
    url.strip_prefix("https://").expect("https").parse().expect("an address")
}

/// Waits until the node holds as many rooms: condition, not sleep.
async fn until_rooms(bench: &Bench, node: usize, rooms: u32) {
    let reached = async {
        while bench.node(node).rooms != rooms {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reached).await.expect("in time");
}

#[tokio::test]
async fn a_killed_node_resets_live_connections_and_refuses_new_ones() {
    let bench = Bench::new(2).await;
    assert_eq!(bench.get(0, "/v1/health").await.0, StatusCode::OK);
    let at = address(&bench, 0);
    let mut live = tokio::task::spawn_blocking(move || TcpStream::connect(at)).await.expect("ran").expect("connects");
    live.set_read_timeout(Some(PATIENCE)).expect("set");
    // A request that is under way when the node dies.
    bench.fault(0, Fault::Slow { latency_ms: 60_000 }).await;
    let under_way = bench.request(Method::PUT, 0, "/v1/rooms/r").json(&ensure("o1", 1, 1));
    let mut tasks = JoinSet::new();
    tasks.spawn(under_way.send());
    until_rooms(&bench, 0, 1).await;

    bench.fault(0, Fault::Kill).await;
    let error =
        timeout(PATIENCE, tasks.join_next()).await.expect("in time").expect("one").expect("ran").expect_err("broken");
    assert!(!error.is_timeout(), "{}", whole(&error));
    let read = tokio::task::spawn_blocking(move || live.read(&mut [0; 16])).await.expect("ran");
    assert_eq!(read.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
    assert_eq!(TcpStream::connect(at).map(|_| ()).map_err(|e| e.kind()), Err(ErrorKind::ConnectionRefused));
    let error = bench.request(Method::GET, 0, "/v1/health").send().await.expect_err("refused");
    assert!(error.is_connect(), "{}", whole(&error));
    assert_eq!((bench.node(0).state.as_str(), bench.node(0).rooms), ("killed", 0));
    // The neighbour does not notice; the dead comes back as another.
    assert_eq!(bench.get(1, "/v1/health").await.0, StatusCode::OK);
    let before = bench.node(0).boot_id;
    bench.cluster.heal(&bench.id(0)).await.expect("heals");
    let (status, health) = bench.get(0, "/v1/health").await;
    assert_eq!((status, bench.node(0).state.as_str()), (StatusCode::OK, "up"));
    assert_eq!(health["boot_id"], serde_json::json!(before), "what was shown while it was down comes true");
    assert_eq!(health["load"]["calls"], 0);
}

#[tokio::test]
async fn a_restarted_node_is_another_incarnation_without_rooms() {
    let bench = Bench::new(1).await;
    assert_eq!(bench.ensure(0, "r", &ensure("o1", 9, 1)).await.0, StatusCode::OK);
    let before = bench.node(0).boot_id;
    bench.fault(0, Fault::Restart { down_ms: 0 }).await;
    let (status, health) = bench.get(0, "/v1/health").await;
    assert_eq!(status, StatusCode::OK);
    assert_ne!(health["boot_id"], serde_json::json!(before));
    assert_eq!(health["load"]["calls"], 0);
    assert!(bench.node(0).faults.is_empty());
    // Even terms are forgotten, which is why mutations name the incarnation.
    assert_eq!(bench.ensure(0, "r", &ensure("o2", 1, 1)).await.0, StatusCode::OK);
    assert_eq!(bench.cluster.stats().creates, 2, "counts outlive the incarnation");
}

#[tokio::test]
async fn a_restart_takes_its_time_and_a_kill_overtakes_it() {
    let bench = Bench::new(2).await;
    bench.fault(0, Fault::Restart { down_ms: 200 }).await;
    bench.fault(1, Fault::Restart { down_ms: 100 }).await;
    assert_eq!((bench.node(0).state.as_str(), bench.node(1).state.as_str()), ("restarting", "restarting"));
    bench.fault(1, Fault::Kill).await;
    let back = async {
        while bench.request(Method::GET, 0, "/v1/health").send().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, back).await.expect("in time");
    assert_eq!((bench.node(0).state.as_str(), bench.node(1).state.as_str()), ("up", "killed"));
    assert!(bench.request(Method::GET, 1, "/v1/health").send().await.is_err_and(|e| e.is_connect()));
}

#[tokio::test]
async fn a_hung_node_accepts_and_never_answers_until_it_is_healed() {
    let bench = Bench::new(1).await;
    let url = format!("{}/v1/health", bench.node(0).url);
    for client in [&bench.h1, &bench.h2] {
        assert!(client.get(&url).send().await.is_ok());
    }
    bench.fault(0, Fault::Hang).await;
    let fresh = crate::client(bench.cluster.ca_pem(), true);
    let mut waiting = vec![];
    for client in [&bench.h1, &bench.h2, &fresh] {
        let mut request = Box::pin(client.get(&url).send());
        assert!(timeout(SILENCE, &mut request).await.is_err(), "a hung node answered");
        waiting.push(request);
    }
    bench.cluster.heal(&bench.id(0)).await.expect("heals");
    for request in waiting {
        let answer = timeout(PATIENCE, request).await.expect("in time").expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_black_hole_completes_no_handshake_and_silences_live_connections() {
    let bench = Bench::new(1).await;
    let url = format!("{}/v1/health", bench.node(0).url);
    assert!(bench.h2.get(&url).send().await.is_ok());
    bench.fault(0, Fault::BlackHole).await;
    assert!(TcpStream::connect(address(&bench, 0)).is_ok(), "the kernel still accepts");
    let mut live = Box::pin(bench.h2.get(&url).send());
    assert!(timeout(SILENCE, &mut live).await.is_err(), "a live connection carried something");
    let fresh = crate::client(bench.cluster.ca_pem(), false);
    assert!(timeout(SILENCE, fresh.get(&url).send()).await.is_err(), "a handshake completed");
    bench.cluster.heal(&bench.id(0)).await.expect("heals");
    assert!(timeout(PATIENCE, live).await.expect("in time").is_ok());
    assert!(fresh.get(&url).send().await.is_ok());
}

#[tokio::test]
async fn killing_a_hung_or_silent_node_breaks_those_who_wait() {
    let bench = Bench::new(2).await;
    for (node, fault) in [(0, Fault::Hang), (1, Fault::BlackHole)] {
        assert_eq!(bench.get(node, "/v1/health").await.0, StatusCode::OK);
        bench.fault(node, fault).await;
        let mut waiting = Box::pin(bench.request(Method::GET, node, "/v1/health").send());
        assert!(timeout(SILENCE, &mut waiting).await.is_err());
        bench.fault(node, Fault::Kill).await;
        let broken = timeout(PATIENCE, waiting).await.expect("in time");
        assert!(broken.is_err_and(|e| !e.is_timeout()));
    }
}

#[tokio::test]
async fn a_slow_node_does_the_work_before_it_answers() {
    let bench = Bench::new(1).await;
    bench.fault(0, Fault::Slow { latency_ms: 60_000 }).await;
    let request = bench.request(Method::PUT, 0, "/v1/rooms/r").json(&ensure("o1", 1, 1));
    let mut tasks = JoinSet::new();
    tasks.spawn(request.send());
    until_rooms(&bench, 0, 1).await;
    assert!(tasks.try_join_next().is_none(), "the answer must still be under way");
    tasks.shutdown().await;
    bench.cluster.heal_all().await.expect("heals");
    assert_eq!(bench.ensure(0, "r", &ensure("o1", 1, 1)).await.1["created"], true);
    assert_eq!(bench.cluster.stats().creates, 1);
}

#[tokio::test]
async fn errors_come_at_their_rate_with_retry_after_and_without_work() {
    let bench = Bench::new(1).await;
    let fault = |status, rate, ghost| Fault::Error { status, rate, retry_after_s: Some(7), ghost };
    bench.fault(0, fault(429, 1.0, false)).await;
    let answer = bench.request(Method::PUT, 0, "/v1/rooms/r").json(&ensure("o1", 1, 1)).send().await.expect("one");
    assert_eq!(
        (answer.status(), &answer.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"7".parse().expect("value"))
    );
    assert_eq!(
        answer.json::<sfu_api::ErrorAnswer>().await.expect("an error").error_code,
        sfu_api::ErrorCode::Overloaded
    );
    assert_eq!(bench.node(0).rooms, 0);
    bench.fault(0, fault(500, 1.0, true)).await;
    assert_eq!(bench.ensure(0, "ghost", &ensure("o2", 1, 1)).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(bench.node(0).rooms, 1, "a ghost is made though its caller saw an error");
    bench.fault(0, fault(503, 0.5, false)).await;
    let mut failed = 0;
    for _ in 0..200 {
        failed += usize::from(bench.get(0, "/v1/health").await.0 == StatusCode::SERVICE_UNAVAILABLE);
    }
    assert!((60..=140).contains(&failed), "{failed} of 200 at a rate of 0.5");
    assert_eq!(bench.cluster.stats().injected, 2 + u64::try_from(failed).expect("small"));
}

#[tokio::test]
async fn garbage_is_what_it_says_on_both_http_versions() {
    let bench = Bench::new(1).await;
    let url = format!("{}/v1/health", bench.node(0).url);
    for client in [&bench.h1, &bench.h2] {
        bench.fault(0, Fault::Garbage { what: Garbage::Body }).await;
        let answer = client.get(&url).send().await.expect("an answer");
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert!(answer.json::<serde_json::Value>().await.is_err());
        bench.fault(0, Fault::Garbage { what: Garbage::ContentType }).await;
        let answer = client.get(&url).send().await.expect("an answer");
        assert_eq!(
            (answer.status(), &answer.headers()["content-type"]),
            (StatusCode::OK, &"text/html".parse().expect("value"))
        );
        bench.fault(0, Fault::Garbage { what: Garbage::Huge }).await;
        let answer = client.get(&url).send().await.expect("an answer");
        assert_eq!(answer.bytes().await.expect("a body").len(), 10_000_000);
        bench.fault(0, Fault::Garbage { what: Garbage::Length }).await;
        let broken = match client.get(&url).send().await {
            Ok(answer) => answer.bytes().await.is_err(),
            Err(_) => true,
        };
        assert!(broken, "a lying length went unnoticed");
    }
    bench.cluster.heal_all().await.expect("heals");
    assert_eq!(bench.get(0, "/v1/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn faults_add_up_and_healing_removes_them_all() {
    let bench = Bench::new(5).await;
    bench.fault(0, Fault::Hang).await;
    bench.fault(0, Fault::Slow { latency_ms: 10 }).await;
    assert_eq!((bench.node(0).faults.len(), bench.node(0).state.as_str()), (2, "hung"));
    let hit = bench.cluster.fault(&Target::share(0.4), &Fault::Kill).await.expect("applies");
    assert_eq!(hit.len(), 2);
    let healed = bench.cluster.heal_all().await.expect("heals");
    assert!(healed.contains(&bench.id(0)) && hit.iter().all(|id| healed.contains(id)));
    for node in 0..5 {
        assert_eq!(bench.get(node, "/v1/health").await.0, StatusCode::OK);
    }
}
