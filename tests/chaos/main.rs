//! Whole processes, broken on purpose: killed, frozen, lied to, flooded.

#[path = "../common/mod.rs"]
mod common;

mod syncer;

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::mock::Mock;
use crate::common::{PATIENCE, eventually};
use crate::syncer::Syncer;

/// Digests every second, so that orphans are found while a test waits.
const EAGER: [&str; 2] = ["limits.digest.interval=1s", "limits.health.probe_interval=500ms"];

fn on(calls: &[(String, String)], sfu: &str) -> usize {
    calls.iter().filter(|(_, at)| at == sfu).count()
}

fn fault(nodes: &[&str], fault: &Value) -> Value {
    json!({ "nodes": nodes, "fault": fault })
}

#[tokio::test]
async fn r19_an_sfu_that_lies_is_suspect_and_costs_nobody_else_anything() {
    let dir = tempfile::tempdir().expect("a directory");
    let mock = Mock::start(dir.path(), "sfu", 6).await;
    let syncer = Syncer::start(dir.path(), &mock, &EAGER).await;
    syncer.join(0..60).await;
    let before = syncer.placed(60).await;
    let lies = [("sfu-1", "body"), ("sfu-2", "content_type"), ("sfu-3", "huge"), ("sfu-4", "length")];
    for (sfu, what) in lies {
        mock.fault(&fault(&[sfu], &json!({"kind": "garbage", "what": what}))).await;
    }
    for (sfu, _) in lies {
        syncer.believes(sfu, &["suspect"]).await;
    }
    // What it said is counted for what it was: an answer that makes no sense.
    let text = syncer.text("/metrics").await;
    let nonsense = "trunkline_failed_looks_total{end=\"protocol\"} ";
    let counted = text.lines().find_map(|line| line.strip_prefix(nonsense)?.parse::<u64>().ok());
    assert!(counted.is_some_and(|n| n >= lies.len() as u64), "{counted:?} of {nonsense}");
    syncer.join(60..120).await;
    let after = syncer.placed(120).await;
    for (call, sfu) in &before {
        assert!(after.contains(&(call.clone(), sfu.clone())), "{call} was moved off {sfu}, which only lied");
    }
    for (sfu, _) in lies {
        assert_eq!(on(&after, sfu), on(&before, sfu), "a new call went to {sfu}");
    }
    assert!(syncer.process.is_running());
    mock.heal().await;
    for (sfu, _) in lies {
        syncer.believes(sfu, &["healthy"]).await;
    }
}

#[tokio::test]
async fn r17_a_black_hole_and_slowness_move_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mock = Mock::start(dir.path(), "sfu", 5).await;
    let syncer = Syncer::start(dir.path(), &mock, &EAGER).await;
    syncer.join(0..50).await;
    let before = syncer.placed(50).await;
    mock.fault(&fault(&["sfu-1"], &json!({"kind": "black_hole"}))).await;
    mock.fault(&fault(&["sfu-2"], &json!({"kind": "slow", "latency_ms": 1500}))).await;
    syncer.believes("sfu-1", &["suspect"]).await;
    syncer.believes("sfu-2", &["slow", "suspect"]).await;
    syncer.join(50..80).await;
    let after = syncer.placed(80).await;
    assert!(before.iter().all(|call| after.contains(call)), "a call was moved");
    assert_eq!((on(&after, "sfu-1"), on(&after, "sfu-2")), (on(&before, "sfu-1"), on(&before, "sfu-2")));
    assert_eq!(syncer.get("/v1/status").await["moves_total"], 0);
}

#[tokio::test]
async fn r14_sfus_that_ask_for_patience_get_it_and_every_call_is_placed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mock = Mock::start(dir.path(), "sfu", 4).await;
    let syncer = Syncer::start(dir.path(), &mock, &EAGER).await;
    let busy = json!({"kind": "error", "status": 503, "rate": 0.3, "retry_after_s": 1});
    mock.fault(&json!({"share": 1.0, "fault": busy})).await;
    syncer.join(0..100).await;
    syncer.placed(100).await;
    let status = syncer.get("/v1/status").await;
    let attempts = status["attempts_total"].as_f64().expect("a number");
    // Three in ten fail: 1.43 attempts a call are expected; windows and holds add no more.
    assert!(attempts <= 250.0, "{attempts} attempts for 100 calls");
    assert_eq!(mock.rooms().await, 100, "one room a call");
}

#[tokio::test]
async fn i06_a_killed_syncer_comes_back_without_memory_and_leaves_no_orphans() {
    let dir = tempfile::tempdir().expect("a directory");
    let mock = Mock::start(dir.path(), "sfu", 4).await;
    let mut syncer = Syncer::start(dir.path(), &mock, &EAGER).await;
    syncer.join(0..80).await;
    syncer.placed(80).await;
    assert_eq!(mock.rooms().await, 80);
    syncer.kill_and_restart(dir.path()).await;
    // Half of the calls are joined again by their gateway; nobody is in the rooms of the others.
    syncer.join(0..40).await;
    syncer.placed(40).await;
    eventually("the other rooms are ended", PATIENCE, || async { (mock.rooms().await == 40).then_some(()) }).await;
    let stats = mock.says("stats").await;
    assert_eq!(syncer.placed(40).await.len(), 40, "{stats}");
}

/// People talk on while the only syncer is killed and comes back: nobody is sent to another SFU.
#[tokio::test]
async fn r15_calls_with_people_stay_where_they_are_when_their_syncer_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mock = Mock::start(dir.path(), "sfu", 4).await;
    let mut syncer = Syncer::start(dir.path(), &mock, &EAGER).await;
    syncer.join(0..40).await;
    let before = syncer.placed(40).await;
    for call in 0..40 {
        syncer.connect(call, &mock).await;
    }
    let stats = mock.says("stats").await;
    syncer.kill_and_restart(dir.path()).await;
    let kept = || async {
        let metrics = syncer.text("/metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix("trunkline_kept_rooms_total "));
        // Each digest finds them again.
        line.and_then(|count| count.parse::<u64>().ok()).filter(|count| *count >= 40).map(drop)
    };
    eventually("the rooms are found", PATIENCE, kept).await;
    syncer.join(0..40).await;
    assert_eq!(syncer.placed(40).await, before);
    let rooms = mock.all_rooms().await;
    assert_eq!(rooms.len(), 40);
    assert!(rooms.iter().all(|room| room["participants"] == 1), "somebody was cut off: {rooms:?}");
    assert_eq!(mock.says("stats").await["creates"], stats["creates"], "no room was made");
}

#[tokio::test]
async fn i03_a_frozen_syncer_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let mock = Mock::start(dir.path(), "sfu", 5).await;
    let syncer = Syncer::start(dir.path(), &mock, &EAGER).await;
    syncer.lever("placement.overall.rate", &json!(40.0)).await;
    syncer.join(0..120).await;
    syncer.process.signal("STOP");
    mock.fault(&fault(&["sfu-1"], &json!({"kind": "restart", "down_ms": 200}))).await;
    eventually("the SFU is back", PATIENCE, || async {
        let nodes = mock.says("nodes").await;
        let node = nodes["nodes"].as_array()?.iter().find(|node| node["id"] == "sfu-1")?.clone();
        (node["state"] == "up").then_some(())
    })
    .await;
    syncer.process.signal("CONT");
    syncer.placed(120).await;
    // What the restart took is made again, and nothing twice.
    eventually("one room a call", PATIENCE, || async { (mock.rooms().await == 120).then_some(()) }).await;
    syncer.placed(120).await;
}

#[tokio::test]
async fn every_sfu_gone_and_back_is_survived_without_help() {
    let dir = tempfile::tempdir().expect("a directory");
    let mock = Mock::start(dir.path(), "sfu", 4).await;
    let syncer = Syncer::start(dir.path(), &mock, &EAGER).await;
    syncer.join(0..60).await;
    syncer.placed(60).await;
    mock.fault(&json!({"share": 1.0, "fault": {"kind": "kill"}})).await;
    eventually("all calls await", PATIENCE, || async {
        let status = syncer.get("/v1/status").await;
        (status["awaiting"] == 60 && status["sfus"]["dead"] == 4).then_some(())
    })
    .await;
    let idle = syncer.get("/v1/status").await["attempts_total"].clone();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let later = syncer.get("/v1/status").await["attempts_total"].clone();
    assert_eq!(idle, later, "nothing is tried while there is nobody to try");
    mock.heal().await;
    syncer.placed(60).await;
    eventually("one room a call", PATIENCE, || async { (mock.rooms().await == 60).then_some(()) }).await;
}
