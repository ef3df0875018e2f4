//! The pool as operators see it and change it.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Fleet, PATIENCE, answer, nodes, until};

/// One lane of `GET /debug/pool`.
async fn lane(fleet: &Fleet, name: &str) -> Value {
    let (status, body) = fleet.get(0, "/debug/pool?top=500").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let lanes = body["lanes"].as_array().expect("lanes");
    lanes.iter().find(|l| l["lane"] == name).cloned().unwrap_or_else(|| panic!("no lane {name} in {body}"))
}

async fn patch(fleet: &Fleet, levers: Value) {
    let (status, body) = answer(fleet.request(0, Method::PATCH, "/v1/levers").json(&levers)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_the_pool_shows_its_lanes_and_as_many_origins_as_asked_for() {
    let fleet = Fleet::start_tls(1, nodes(3), |_| {}).await;
    until("the pool knows all SFUs", || async { lane(&fleet, "sfu").await["top"].as_array().map(Vec::len) == Some(3) })
        .await;
    let sfu = lane(&fleet, "sfu").await;
    assert_eq!(sfu["totals"]["origins"], 3, "{sfu}");
    assert_eq!(sfu["totals"]["permits_off"], 0, "{sfu}");
    assert!(sfu["top"][0]["origin"].as_str().expect("text").starts_with("https://127."), "{sfu}");
    assert_eq!(sfu["top"][0]["breaker"], "closed", "{sfu}");
    assert_eq!(lane(&fleet, "peer").await["top"], json!([]));
    let count = async |query: &str| {
        let (status, body) = fleet.get(0, &format!("/debug/pool{query}")).await;
        (status.as_u16(), body["lanes"][0]["top"].as_array().map(Vec::len))
    };
    assert_eq!(count("").await, (200, Some(3)));
    assert_eq!(count("?top=2").await, (200, Some(2)));
    assert_eq!(count("?top=0").await, (200, Some(0)));
    for wrong in ["?top=501", "?top=-1", "?top=all", "?top=", "?tip=1", "?top=99999999999999999999"] {
        assert_eq!(count(wrong).await, (400, None), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_limits_of_the_pool_are_levers_that_bite_while_it_runs() {
    let fleet = Fleet::start_tls(1, nodes(2), |config| {
        // No connection gets old: the lane dials all the time.
        let limits = "pool.sfu.age_max = \"100ms\"\npool.peer.dials_max = 9";
        config.limits = toml::from_str(limits).expect("limits");
    })
    .await;
    until("there is a connection", || async { lane(&fleet, "sfu").await["totals"]["live"] != 0 }).await;
    let value = async |name: &str| {
        let (_, all) = fleet.get(0, "/v1/levers").await;
        let found = all["levers"].as_array().expect("levers").iter().find(|l| l["name"] == name).cloned();
        found.unwrap_or_else(|| panic!("no lever {name}"))["value"].clone()
    };
    assert_eq!(value("pool.sfu.age_max").await, "100ms", "configured");
    assert_eq!(value("pool.peer.dials_max").await, 9, "configured");

    // No dial starts: whoever asks an SFU waits.
    patch(&fleet, json!({ "pool.sfu.dial_burst": 0 })).await;
    until("dials are held back", || async {
        let totals = lane(&fleet, "sfu").await["totals"].clone();
        totals["live"] == 0 && totals["dialling"] == 0 && totals["dial_queue"] != 0 && totals["waiters"] != 0
    })
    .await;
    patch(&fleet, json!({ "pool.sfu.dial_burst": 100, "pool.sfu.age_max": "10m" })).await;
    until("they are let go", || async { lane(&fleet, "sfu").await["totals"]["live"] != 0 }).await;
    fleet.join_until_placed(0, "g", "c", "s").await;

    patch(&fleet, json!({ "pool.sfu.waiters_max": 1600 })).await;
    until("the status shows the limit in force, and a quarter for probes", || async {
        fleet.get(0, "/v1/status").await.1["pool"]["waiters_max"] == 2000
    })
    .await;
}

/// The syncer has less under way at once while dials wait for their turn.
#[tokio::test(flavor = "multi_thread")]
async fn r14_a_long_line_for_dials_narrows_the_window_of_the_syncer() {
    let fleet = Fleet::start_tls(1, nodes(2), |config| {
        // No connection gets old: the lane dials all the time.
        config.limits = toml::from_str("pool.sfu.age_max = \"100ms\"").expect("limits");
    })
    .await;
    until("there is a connection", || async { lane(&fleet, "sfu").await["totals"]["live"] != 0 }).await;
    patch(&fleet, json!({ "pool.sfu.dial_burst": 0 })).await;
    until("it is said to be short of dials", || async {
        let metrics = fleet.request(0, Method::GET, "/metrics").send().await.expect("an answer");
        let text = metrics.text().await.expect("text");
        text.lines().any(|line| line.contains("local_pressure_total{") && line.contains("\"pool_wait\""))
    })
    .await;
    // Nothing is placed that could open it again.
    until("its window is narrower", || async {
        fleet.get(0, "/v1/recovery").await.1["window"].as_u64().is_some_and(|window| window < 64)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_where_an_sfu_or_a_peer_was_is_forgotten_by_the_pool() {
    let mut fleet = Fleet::start_tls(2, nodes(3), |_| {}).await;
    let origins = async |name: &str| lane(&fleet, name).await["totals"]["origins"].as_u64();
    until("both lanes are used", || async { origins("sfu").await == Some(3) && origins("peer").await == Some(1) })
        .await;

    // The third is now where the first is.
    let path = fleet.dir.path().join("sfus.toml");
    let list = std::fs::read_to_string(&path).expect("readable");
    let urls: Vec<&str> = list.lines().filter(|line| line.starts_with("url = ")).collect();
    std::fs::write(&path, list.replace(urls[2], urls[0])).expect("written");
    fleet.syncers[0].reload();
    until("where it was is forgotten", || async { origins("sfu").await == Some(2) }).await;
    fleet.join_until_placed(0, "g", "c", "s").await;

    let peer = fleet.syncers.pop().expect("two syncers");
    peer.shutdown(Instant::now() + PATIENCE).await;
    until("where the peer was is forgotten", || async { lane(&fleet, "peer").await["totals"]["origins"] == 0 }).await;
}
