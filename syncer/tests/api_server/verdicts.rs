//! Failure verdicts over real sockets: syncers that tell each other what they see, clients that lost
//! their media.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sfu_api::SfuId;
use sfu_mock::{ClusterConfig, Fault, Target};

use crate::support::{Fleet, answer, until};

async fn status(fleet: &Fleet, n: usize) -> Value {
    fleet.get(n, "/v1/status").await.1
}

async fn witnesses(fleet: &Fleet, each: u32) {
    for n in 0..fleet.syncers.len() {
        until("witnesses", || async { fleet.syncers[n].engine().status().witnesses == each }).await;
    }
}

fn nodes(nodes: usize) -> ClusterConfig {
    ClusterConfig { nodes, ..ClusterConfig::default() }
}

fn node(id: &str) -> Target {
    Target::node(SfuId::new(id).expect("an id"))
}

/// Calls of every syncer; returns how many are on `sfu`.
async fn calls(fleet: &Fleet, sfu: &str) -> u64 {
    let mut on = 0;
    for n in 0..fleet.syncers.len() {
        for guild in fleet.guilds_of(n).take(8) {
            fleet.join_until_placed(n, &guild, "c", "s").await;
        }
        on += fleet.get(n, &format!("/v1/calls?sfu={sfu}")).await.1["total"].as_u64().expect("a number");
    }
    on
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_r17_syncers_confirm_each_other_and_the_calls_move() {
    let fleet = Fleet::start_tls(3, nodes(4), |_| {}).await;
    witnesses(&fleet, 2).await;
    assert!(calls(&fleet, "sfu-1").await > 0);
    fleet.sfus.fault(&node("sfu-1"), &Fault::Kill).await.expect("killed");
    for n in 0..3 {
        until("its death", || async { status(&fleet, n).await["sfus"]["dead"] == 1 }).await;
        until("its calls", || async { status(&fleet, n).await["awaiting"] == 0 }).await;
        let (_, sfu) = fleet.get(n, "/v1/sfus/sfu-1").await;
        assert!(sfu["evidence"].as_str().expect("text").starts_with("UnreachableConfirmed"), "{sfu}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_whoever_is_left_alone_decides_alone() {
    let mut fleet = Fleet::start_tls(2, nodes(3), |_| {}).await;
    witnesses(&fleet, 1).await;
    drop(fleet.syncers.pop()); // as if killed: its lease goes on, and nobody answers there
    fleet.sfus.fault(&node("sfu-1"), &Fault::Kill).await.expect("killed");
    until("its death", || async { status(&fleet, 0).await["sfus"]["dead"] == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_black_hole_moves_when_two_gateways_lost_their_media() {
    let fleet = Fleet::start_tls(1, nodes(2), |config| {
        config.limits.insert("health.probe_timeout".to_owned(), "300ms".into());
        config.limits.insert("health.probe_interval".to_owned(), "300ms".into());
    })
    .await;
    let guild = fleet.guild_of(0);
    for n in 0..10 {
        fleet.join_until_placed(0, &guild, &format!("c{n}"), "s").await;
    }
    let (_, page) = fleet.get(0, "/v1/calls?sfu=sfu-1").await;
    let call = page["calls"][0]["call"].as_str().expect("a call").to_owned();
    fleet.sfus.fault(&node("sfu-1"), &Fault::BlackHole).await.expect("silent");
    until("suspicion", || async { status(&fleet, 0).await["sfus"]["suspect"] == 1 }).await;
    let report = |gateway: &'static str| {
        let path = fleet.url(0, &format!("/v1/guilds/{guild}/calls/{call}:report"));
        let body = json!({ "session": "s", "kind": "media_failed" });
        answer(fleet.client.post(path).bearer_auth(gateway).json(&body))
    };
    assert_eq!(report("gw-a").await.0, StatusCode::ACCEPTED);
    assert_eq!(report("gw-a").await.0, StatusCode::ACCEPTED);
    tokio::task::yield_now().await;
    assert_eq!(status(&fleet, 0).await["notices_total"], 0, "one gateway may be wrong");
    assert_eq!(report("gw-b").await.0, StatusCode::ACCEPTED);
    until("recovery", || async {
        let status = status(&fleet, 0).await;
        status["notices_total"] == 1 && status["awaiting"] == 0
    })
    .await;
    let (_, sfu) = fleet.get(0, "/v1/sfus/sfu-1").await;
    assert!(sfu["evidence"].as_str().expect("text").starts_with("MediaFailed"), "{sfu}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r19_what_is_no_message_of_a_peer_is_refused_counted_and_harmless() {
    let fleet = Fleet::start(2, 2).await;
    witnesses(&fleet, 1).await;
    let say = |secret: Option<&str>, body: String| {
        let request = fleet.request(0, Method::POST, "/v1/peers/evidence").body(body);
        answer(match secret {
            Some(secret) => request.header("trunkline-peer", secret).header("trunkline-forwarded", "syncer-2"),
            None => request,
        })
    };
    let dead = json!([{ "sfu": "sfu-1", "sight": "refused", "gateways": ["a", "b"] }]);
    let message = json!({ "v": 1, "from": "syncer-2", "sfus": dead });
    assert_eq!(say(None, message.to_string()).await.0, StatusCode::FORBIDDEN, "a gateway is no peer");
    assert_eq!(say(Some("wrong"), message.to_string()).await.0, StatusCode::UNAUTHORIZED);
    let many: Vec<Value> = (0..5_000).map(|_| json!({ "sfu": "s", "sight": "fine" })).collect();
    for (body, code) in [
        ("garbage".to_owned(), 400),
        (json!({ "v": 1 }).to_string(), 400),
        (json!({ "v": 9, "from": "syncer-2", "sfus": dead }).to_string(), 400),
        (json!({ "v": 1, "from": "syncer-2", "sfus": [{ "sfu": "sfu-1", "sight": "exploded" }] }).to_string(), 400),
        (json!({ "v": 1, "from": "syncer-9", "sfus": dead }).to_string(), 403),
        (json!({ "v": 1, "from": "syncer-1", "sfus": dead }).to_string(), 403),
        (json!({ "v": 1, "from": "syncer-2", "sfus": many }).to_string(), 413),
    ] {
        assert_eq!(say(Some("open"), body.clone()).await.0.as_u16(), code, "{} bytes", body.len());
    }
    assert_eq!(say(Some("open"), message.to_string()).await, (StatusCode::OK, json!({ "v": 1 })));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(status(&fleet, 0).await["notices_total"], 0, "a peer's word alone moves nothing");
    let metrics = fleet.client.get(fleet.url(0, "/metrics")).bearer_auth("gw-1").send().await.expect("an answer");
    let metrics = metrics.text().await.expect("text");
    assert!(metrics.contains("trunkline_peer_evidence_ignored_total 6"), "{metrics}");
}
