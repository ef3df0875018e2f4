//! Which SFU, how often, and only once: over TLS to the syncer and from it to the SFUs, counted where the
//! requests arrive.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sfu_api::SfuId;
use sfu_mock::{Budget, Budgets, Fault, Target};
use tokio::time::{Instant, sleep};

use crate::admission::{bulk, fleet, line, put, set};
use crate::support::{Events, Fleet, answer, soon, until};

/// What was sent in time may be read late on a busy machine.
const SLACK_MS: u64 = 250;

fn lines(name: &str, calls: usize) -> Vec<String> {
    (0..calls).map(|n| line(&format!("{name}-{}", n / 4), &format!("c{n}"), "s", "voice")).collect()
}

async fn status(fleet: &Fleet) -> Value {
    fleet.get(0, "/v1/status").await.1
}

async fn placed(fleet: &Fleet, calls: usize) {
    until("placing", || async {
        let status = status(fleet).await;
        assert_eq!(status["invariant_violations"], 0, "{status}");
        status["placed"] == calls && status["awaiting"] == 0
    })
    .await;
}

fn count(status: &Value, name: &str) -> u64 {
    status[name].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"))
}

/// The SFUs that hold a room of this call.
fn hosts(fleet: &Fleet, guild: &str, call: &str) -> Vec<SfuId> {
    let name = format!("{guild}~{call}");
    let holds = |sfu: &SfuId| fleet.sfus.rooms(sfu).expect("known").iter().any(|room| room.room.as_str() == name);
    fleet.sfus.nodes().into_iter().map(|node| node.id).filter(holds).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn r07_a_crowd_over_https_exceeds_no_bucket_and_stays_even_on_late_loads() {
    let (sfus, calls) = (30, 900);
    let levers = json!({
        "placement.overall.rate": 300, "placement.overall.burst": 30, "placement.region.rate": 250,
        "placement.region.burst": 25, "placement.sfu.rate": 20, "placement.sfu.burst": 10,
        "admission.guild_share": 1, "admission.lag_max": "1m",
    });
    let fleet = fleet(1, sfus, &levers).await;
    // Each answer, and the load in it, is late: all that is known at a choice is what was reserved since.
    let all = Target::share(1.0);
    fleet.sfus.fault(&all, &Fault::Slow { latency_ms: 100 }).await.expect("slow");
    until("the buckets of the levers", || async {
        status(&fleet).await["admission"]["waiting_max"] == 3_000 // ten seconds of the pace
    })
    .await;
    let budget = |rate, burst| Some(Budget { rate, burst });
    let budgets =
        Budgets { overall: budget(300.0, 30), region: budget(250.0, 25), sfu: budget(20.0, 10), slack_ms: SLACK_MS };
    fleet.sfus.set_budgets(budgets).expect("valid");
    let began = Instant::now();
    assert_eq!(bulk(&fleet, 0, &lines("crowd", calls)).await, calls);
    placed(&fleet, calls).await;
    let took = (Instant::now() - began).as_secs_f64();
    let stats = fleet.sfus.stats();
    let over = stats.overdrawn;
    assert_eq!((over.sfu, over.region, over.overall), (0, 0, 0), "I4: {stats:?}");
    assert_eq!(stats.creates, calls as u64, "one room for each");
    let at_pace = (calls as f64 - 25.0) / 250.0;
    assert!(took >= 0.9 * at_pace, "{calls} calls in {took:.1} s: the buckets were never the limit");
    let most = stats.per_node.iter().map(|node| node.creates).max().expect("some") as f64;
    let mean = calls as f64 / sfus as f64;
    // Drawn at random, the fullest would have 1.4 times the mean.
    assert!(most / mean <= 1.25, "{most} on the fullest, {mean} on average");
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_sfus_that_all_fail_over_https_are_tried_once_a_step_and_then_once_a_call() {
    const SFUS: u64 = 5;
    const FAILING: Duration = Duration::from_secs(3);
    for (error, retry_after_s) in [(503, Some(1)), (500, None)] {
        let fleet = fleet(1, 5, &json!({ "admission.guild_share": 1 })).await;
        assert_eq!(bulk(&fleet, 0, &lines("before", 50)).await, 50);
        placed(&fleet, 50).await;
        let before = status(&fleet).await;
        let fault = Fault::Error { status: error, rate: 1.0, retry_after_s, ghost: false };
        fleet.sfus.fault(&Target::share(1.0), &fault).await.expect("failing");
        assert_eq!(bulk(&fleet, 0, &lines("during", 150)).await, 150, "they wait inside");
        let (began, mut injected, mut most) = (Instant::now(), 0, 0);
        while Instant::now() - began < FAILING {
            sleep(Duration::from_millis(100)).await;
            let now = fleet.sfus.stats().injected;
            if Instant::now() - began > Duration::from_secs(1) {
                most = (now - injected).max(most); // after the openers
            }
            injected = now;
        }
        let failing = status(&fleet).await;
        let tried = count(&failing, "attempts_total") - count(&before, "attempts_total");
        // The openers of an SFU are its window, 16 and what it has grown by; then one in each back-off step, the
        // first of which are the shortest.
        assert!(tried <= SFUS * (24 + 4 * FAILING.as_secs()), "{error}: {tried} attempts");
        assert!(most <= 4 * SFUS, "{error}: {most} requests came within a tenth of a second");
        assert_eq!(count(&failing, "placed"), 50, "{error}: whoever has a place keeps it");
        assert_eq!(count(&failing, "moves_total"), 0);

        fleet.sfus.heal_all().await.expect("healed");
        placed(&fleet, 200).await;
        let well = status(&fleet).await;
        assert_eq!(bulk(&fleet, 0, &lines("after", 200)).await, 200);
        placed(&fleet, 400).await;
        let after = status(&fleet).await;
        let tried = count(&after, "attempts_total") - count(&well, "attempts_total");
        assert!(tried <= 220, "{error}: {tried} attempts for 200 calls when all is well");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_thousand_requests_over_https_to_repair_a_call_make_one_room() {
    let fleet = fleet(1, 4, &json!({})).await;
    fleet.join_until_placed(0, "g", "once", "s0").await;
    let on = hosts(&fleet, "g", "once").pop().expect("it is placed");
    let made = fleet.sfus.stats().creates;
    let requests = (0..1_000).map(|n| {
        let call = "/v1/guilds/g/calls/once";
        answer(match n % 4 {
            0 => fleet.request(0, Method::POST, &format!("/v1/sfus/{on}:declare-dead")),
            1 => fleet
                .request(0, Method::POST, &format!("{call}:report"))
                .json(&json!({ "session": "s0", "kind": "media_failed" })),
            _ => fleet.request(0, Method::PUT, &format!("{call}/participants/s{}", n % 7)).body("{}"),
        })
    });
    let answers = soon("a thousand answers", futures_util::future::join_all(requests)).await;
    assert!(answers.iter().all(|(status, _)| status.is_success()), "{:?}", answers.iter().find(|a| !a.0.is_success()));
    until("the repair", || async { status(&fleet).await["awaiting"] == 0 }).await;
    let after = status(&fleet).await;
    assert_eq!((count(&after, "moves_total"), fleet.sfus.stats().creates - made), (1, 1), "{after}");
    let now = fleet.join_until_placed(0, "g", "once", "s0").await;
    let mut hosts = hosts(&fleet, "g", "once");
    hosts.retain(|sfu| *sfu != on); // nothing is asked of one that is dead
    assert_eq!(hosts.len(), 1, "hosted once: {hosts:?}, {now}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_an_answer_that_comes_after_the_call_has_moved_on_is_ignored_and_its_room_ended() {
    let fleet = fleet(1, 2, &json!({ "digest.interval": "1s", "health.probe_interval": "200ms" })).await;
    let ids: Vec<SfuId> = fleet.sfus.nodes().into_iter().map(|node| node.id).collect();
    let act = async |sfu: &SfuId, verb: &str| {
        let (status, body) = answer(fleet.request(0, Method::POST, &format!("/v1/sfus/{sfu}:{verb}"))).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    };
    let mut watch = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    act(&ids[1], "cordon").await;
    fleet.sfus.fault(&Target::node(ids[0].clone()), &Fault::Slow { latency_ms: 1_500 }).await.expect("slow");
    assert!(put(&fleet, 0, "g", "late", "s", "voice").await);
    until("the room is made and its answer on the way", || async { hosts(&fleet, "g", "late") == ids[..1] }).await;
    act(&ids[0], "declare-dead").await;
    act(&ids[1], "uncordon").await;
    let endpoint = fleet.join_until_placed(0, "g", "late", "s").await["endpoint"].clone();
    let heard = watch.of_call("g", "late").await;
    assert_eq!(heard["endpoint"], endpoint, "the first that is heard of is the one that counts");
    fleet.sfus.heal_all().await.expect("healed");
    act(&ids[0], "uncordon").await;
    until("the other room's end", || async { hosts(&fleet, "g", "late") == ids[1..] }).await;
    assert_eq!(fleet.join_until_placed(0, "g", "late", "s").await["endpoint"], endpoint, "it stayed where it went");
    assert_eq!(fleet.get(0, "/v1/guilds/g/calls/late").await.1["sfu"], json!(ids[1]));
    // Whatever came of the late answer was said by now: another call's news come after it.
    set(&fleet, 0, &json!({ "placement.paused": false })).await;
    assert!(put(&fleet, 0, "g", "mark", "s", "voice").await);
    let next = loop {
        let event = soon("the mark", watch.next()).await;
        if event.name == "endpoint" {
            break event.data;
        }
    };
    assert_eq!(next["call"], "mark", "nothing more was said of the call: {next}");
}
