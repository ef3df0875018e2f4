//! Who may come in, over TLS: the same answer whichever road a join takes.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sfu_mock::ClusterConfig;
use tokio::time::{Instant, sleep};

use crate::support::{Fleet, PATIENCE, answer, behind_tls, until};

/// A fleet behind TLS, with these levers at every syncer.
pub(crate) async fn fleet(syncers: usize, sfus: usize, levers: &Value) -> Fleet {
    let cluster = ClusterConfig { nodes: sfus, ..ClusterConfig::default() };
    let fleet = Fleet::start_tls(syncers, cluster, |_| {}).await;
    for n in 0..syncers {
        set(&fleet, n, levers).await;
    }
    fleet
}

pub(crate) async fn set(fleet: &Fleet, n: usize, levers: &Value) {
    let (status, body) = answer(fleet.request(n, Method::PATCH, "/v1/levers").json(levers)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
}

/// What syncer `n` says of its door.
pub(crate) async fn door(fleet: &Fleet, n: usize) -> Value {
    fleet.get(n, "/v1/status").await.1["admission"].clone()
}

pub(crate) fn line(guild: &str, call: &str, session: &str, kind: &str) -> String {
    json!({"op": format!("{guild}/{call}"), "do": "join", "guild": guild, "call": call, "session": session, "kind": kind}).to_string() + "\n"
}

/// Sends lines on the bulk road; the results. Every line that did not come in has a moment to come back.
pub(crate) async fn say(fleet: &Fleet, n: usize, lines: &[String]) -> Vec<Value> {
    let sent = fleet.request(n, Method::POST, "/v1/voice-states").body(lines.concat()).send().await.expect("an answer");
    let text = sent.text().await.expect("text");
    let results: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(results.len(), lines.len(), "a result for each line");
    for result in results.iter().filter(|r| r["status"] != 200) {
        assert_eq!((&result["status"], &result["error_code"]), (&json!(429), &json!("limited")), "{result}");
        let wait = result["retry_after_ms"].as_u64().expect("a moment to come back");
        assert!((1..=31_000).contains(&wait), "{result}");
    }
    results
}

/// As [`say`]; how many came in.
pub(crate) async fn bulk(fleet: &Fleet, n: usize, lines: &[String]) -> usize {
    say(fleet, n, lines).await.iter().filter(|r| r["status"] == 200).count()
}

/// Joins with a request of its own; whether it came in. If not, there is a `Retry-After`.
pub(crate) async fn put(fleet: &Fleet, n: usize, guild: &str, call: &str, session: &str, kind: &str) -> bool {
    let path = format!("/v1/guilds/{guild}/calls/{call}/participants/{session}");
    let request = fleet.request(n, Method::PUT, &path).json(&json!({ "kind": kind }));
    let response = request.send().await.expect("an answer");
    if response.status() == StatusCode::OK {
        return true;
    }
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait = response.headers()["retry-after"].to_str().expect("text").parse::<u64>().expect("whole seconds");
    assert!((1..=31).contains(&wait), "{wait}");
    false
}

fn sheds(door: &Value, class: &str, reason: &str) -> u64 {
    let all = door["sheds"].as_array().expect("a list");
    all.iter().find(|s| s["class"] == class && s["reason"] == reason).map_or(0, |s| s["count"].as_u64().expect("n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn r08_one_guild_and_many_on_any_road_draw_on_one_bucket() {
    let levers = json!({"admission.new_calls.rate": 0.01, "admission.new_calls.burst": 20, "admission.guild_share": 1});
    let fleet = fleet(2, 1, &levers).await;
    until("each has its share", || async { door(&fleet, 1).await["new_calls_per_s"] == 0.005 }).await;
    // Through syncer 0 to the owner, 1: half of what the fleet may begin.
    let guilds: Vec<String> = fleet.guilds_of(1).take(40).collect();
    let kind = |n: usize| if n.is_multiple_of(2) { "voice" } else { "stream" };
    let one: Vec<String> = (0..60).map(|n| line(&guilds[0], &format!("c{n}"), "s", kind(n))).collect();
    assert_eq!(bulk(&fleet, 0, &one).await, 10, "one guild, calls and streams, by the bulk road");
    for n in 0..2 {
        set(&fleet, n, &json!({"admission.new_calls.burst": 40})).await;
    }
    until("the larger share is in force", || async { put(&fleet, 0, &guilds[1], "c", "s", "voice").await }).await;
    let mut more = 1;
    for (n, guild) in guilds.iter().enumerate().skip(2) {
        more += usize::from(put(&fleet, n % 2, guild, "c", "s", kind(n)).await);
    }
    assert_eq!(more, 10, "many guilds, one call each, forwarded and not");
    let door = door(&fleet, 1).await;
    assert!(sheds(&door, "new_call", "rate") > 0 && sheds(&door, "stream", "rate") > 0, "{door}");
    assert!(door["callers_out"].as_u64().expect("a number") > 0, "{door}");
}

/// New calls per second that syncer `n` admits while more are asked for, and the highest number of its calls.
async fn admitted_per_s(fleet: &Fleet, n: usize, prefix: &str, seconds: f64) -> f64 {
    let guilds: Vec<String> = fleet.guilds_of(n).take(20).collect();
    let batch = |of: usize| -> Vec<String> {
        (0..40).map(|i| line(&guilds[i % guilds.len()], &format!("{prefix}-{of}-{i}"), "s", "voice")).collect()
    };
    // Between two moments at which the bucket is empty, so that no burst counts.
    let mut of = 0;
    while bulk(fleet, n, &batch(of)).await == 40 {
        of += 1;
    }
    let (start, mut admitted) = (Instant::now(), 0);
    loop {
        sleep(Duration::from_millis(50)).await;
        of += 1;
        let now = bulk(fleet, n, &batch(of)).await;
        admitted += now;
        let took = (Instant::now() - start).as_secs_f64();
        if took >= seconds && now < 40 {
            return admitted as f64 / took;
        }
    }
}

fn assert_near(got: f64, want: f64) {
    assert!((got / want - 1.0).abs() <= 0.1, "{got:.1} per second instead of {want}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r09_the_admitted_rate_follows_the_ready_syncers_and_no_lever_is_touched() {
    let levers = json!({
        "admission.new_calls.rate": 60, "admission.new_calls.burst": 60, "admission.guild_share": 1,
        "admission.queue_age_max": "1h", "limits.grow_after": "1s",
    });
    let mut fleet = fleet(2, 2, &levers).await;
    let share = async |fleet: &Fleet| door(fleet, 0).await["new_calls_per_s"].as_f64().expect("a number");
    until("half of the fleet, half of the rate", || async { share(&fleet).await == 30.0 }).await;
    assert_near(admitted_per_s(&fleet, 0, "two", 2.0).await, 30.0);
    let gone = fleet.syncers.pop().expect("two");
    gone.shutdown(Instant::now() + Duration::from_secs(5)).await;
    until("alone, all of it", || async { share(&fleet).await == 60.0 }).await;
    assert_near(admitted_per_s(&fleet, 0, "one", 2.0).await, 60.0);
    // Another one comes: who is there gives up half at once, long before any share may grow.
    set(&fleet, 0, &json!({"limits.grow_after": "10m"})).await;
    fleet
        .restart("syncer-2", |config| {
            behind_tls(config);
            for (lever, value) in levers.as_object().expect("levers") {
                config.limits.insert(lever.clone(), toml::Value::try_from(value).expect("a value"));
            }
        })
        .await;
    until("half again", || async { share(&fleet).await == 30.0 }).await;
    until("half for the other", || async { door(&fleet, 1).await["new_calls_per_s"] == 30.0 }).await;
    // What it took at the old rate counts at the new one first: it is never above its half, and soon at it.
    let mut runs = Vec::new();
    while runs.last().is_none_or(|per_s| *per_s < 27.0) {
        assert!(runs.len() < 5, "{runs:?} per second instead of 30");
        runs.push(admitted_per_s(&fleet, 0, &format!("again-{}", runs.len()), 2.0).await);
        assert!(runs.iter().all(|per_s| *per_s <= 33.0), "{runs:?} per second instead of 30");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_streams_are_shed_before_calls_and_joins_and_leaves_never() {
    // A hundred calls may wait: ten seconds of ten placements each. None is placed for now.
    let levers = json!({
        "placement.overall.rate": 10, "placement.overall.burst": 1, "admission.queue_age_max": "10s",
        "admission.guild_share": 1, "admission.lag_max": "1m",
    });
    let fleet = fleet(1, 1, &levers).await;
    fleet.join_until_placed(0, "home", "c", "s").await;
    set(&fleet, 0, &json!({"placement.paused": true})).await;
    until("the window follows", || async { door(&fleet, 0).await["waiting_max"] == 100 }).await;
    let lines = |kind: &str, of: usize| -> Vec<String> {
        (0..of).map(|n| line(&format!("g{}", n / 4), &format!("{kind}-{n}"), "s", kind)).collect()
    };
    let first = bulk(&fleet, 0, &lines("stream", 90)).await;
    assert!((50..60).contains(&first), "streams fill half: {first}");
    let calls = bulk(&fleet, 0, &lines("voice", 150)).await;
    assert!((40..60).contains(&calls), "calls fill the rest: {calls}");
    let (streams, home) = (lines("stream", 180), line("home", "c", "another", "voice"));
    assert!(bulk(&fleet, 0, streams.get(90..).expect("the others")).await <= 1, "but for a trickle");
    assert_eq!(bulk(&fleet, 0, std::slice::from_ref(&home)).await, 1, "a join makes no call");
    assert!(put(&fleet, 0, "g0", "stream-0", "s2", "stream").await, "nor does one to a call that waits");
    let leave = fleet.request(0, Method::DELETE, "/v1/guilds/home/calls/c/participants/another");
    assert_eq!(answer(leave).await.0, StatusCode::NO_CONTENT);
    until("the ages are felt", || async {
        let door = door(&fleet, 0).await;
        let ages = &door["queue_age_ms"];
        assert_eq!(ages["repair"], 0);
        ages["new_call"].as_u64() > Some(0) && ages["stream"].as_u64() > Some(0)
    })
    .await;
    let seen = door(&fleet, 0).await;
    assert!(sheds(&seen, "stream", "queue") > 30 && sheds(&seen, "new_call", "queue") > 80, "{seen}");
    let metrics =
        fleet.request(0, Method::GET, "/metrics").send().await.expect("an answer").text().await.expect("text");
    for series in ["admission_sheds_total{class=\"stream\",reason=\"queue\"}", "queue_age_seconds{class=\"new_call\"}"]
    {
        assert!(metrics.contains(series), "{series} is not in\n{metrics}");
    }
    let fast = json!({"placement.paused": false, "placement.overall.rate": 1000, "placement.region.rate": 1000,
        "placement.sfu.rate": 1000});
    set(&fleet, 0, &fast).await;
    until("the queue is gone", || async { fleet.get(0, "/v1/status").await.1["awaiting"] == 0 }).await;
    assert!(put(&fleet, 0, "after", "c", "s", "stream").await, "and streams come in again");
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_near_the_limit_of_memory_new_work_is_shed_and_leaves_are_not() {
    let fleet = fleet(1, 1, &json!({})).await;
    fleet.join_until_placed(0, "g", "c", "s").await;
    let seen = door(&fleet, 0).await;
    assert!(
        seen["memory_bytes"].as_u64() > Some(0) && seen["memory_bytes"].as_u64() < seen["memory_bytes_max"].as_u64()
    );
    set(&fleet, 0, &json!({"admission.memory_max": 1})).await;
    until("it is felt", || async { door(&fleet, 0).await["memory_bytes_max"] == 1 }).await;
    assert!(!put(&fleet, 0, "g", "c", "s2", "voice").await, "a new session is shed");
    assert!(!put(&fleet, 0, "g", "c2", "s", "voice").await && !put(&fleet, 0, "g", "c3", "s", "stream").await);
    assert!(put(&fleet, 0, "g", "c", "s", "voice").await, "who repeats itself adds nothing");
    let leave = fleet.request(0, Method::DELETE, "/v1/guilds/g/calls/c/participants/s");
    assert_eq!(answer(leave).await.0, StatusCode::NO_CONTENT);
    assert!(sheds(&door(&fleet, 0).await, "join", "memory") > 0);
    set(&fleet, 0, &json!({"admission.memory_max": 0})).await;
    until("it may come in again", || async { put(&fleet, 0, "g", "c2", "s", "voice").await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_guild_is_blocked_with_a_reason_and_the_throttle_opens_in_steps() {
    let fleet = fleet(1, 1, &json!({})).await;
    fleet.join_until_placed(0, "raid", "c", "s").await;
    let act = |what: &str| answer(fleet.request(0, Method::POST, &format!("/v1/guilds/raid:{what}")));
    let (status, list) = act("block?reason=a+raid").await;
    assert_eq!(
        (status, &list["blocks"][0]["guild"], &list["blocks"][0]["reason"]),
        (StatusCode::OK, &json!("raid"), &json!("a raid"))
    );
    assert!(!put(&fleet, 0, "raid", "c", "s2", "voice").await && !put(&fleet, 0, "raid", "c2", "s", "voice").await);
    assert!(put(&fleet, 0, "raid", "c", "s", "voice").await, "who is in, stays");
    assert!(put(&fleet, 0, "other", "c", "s", "voice").await);
    assert_eq!(act("unblock").await.0, StatusCode::OK);
    assert_eq!(act("unblock").await.0, StatusCode::NOT_FOUND);
    assert!(put(&fleet, 0, "raid", "c", "s2", "voice").await);
    let (_, levers) = fleet.get(0, "/v1/levers").await;
    let acts: Vec<&Value> =
        levers["changes"].as_array().expect("a list").iter().filter(|c| c["name"] == "admission.block.guild").collect();
    assert_eq!((acts.len(), &acts[0]["by"], &acts[0]["reason"]), (2, &json!("gw-1"), &json!("a raid")), "audited");

    set(&fleet, 0, &json!({"admission.throttle": 0})).await;
    until("shut", || async { door(&fleet, 0).await["throttle"] == 0.0 }).await;
    assert!(!put(&fleet, 0, "other", "c2", "s", "voice").await);
    assert!(!put(&fleet, 0, "other", "c", "s3", "voice").await, "sessions wait outside as well");
    set(&fleet, 0, &json!({"admission.throttle": 1})).await;
    let mut steps = std::collections::BTreeSet::new();
    let start = Instant::now();
    while !steps.contains(&10) {
        assert!(Instant::now() - start < PATIENCE, "it came to {steps:?}");
        let open = door(&fleet, 0).await["throttle"].as_f64().expect("a number");
        steps.insert((open * 10.0).round() as u64);
        sleep(Duration::from_millis(100)).await;
    }
    assert!(steps.len() >= 5, "it passed through {steps:?}");

    let (status, _) =
        answer(fleet.request(0, Method::PATCH, "/v1/levers?dry_run=true").json(&json!({"admission.throttle": 0})))
            .await;
    assert_eq!(
        (status, &door(&fleet, 0).await["throttle"]),
        (StatusCode::OK, &json!(1.0)),
        "a dry run changes nothing"
    );
}

/// Callers who do as they are told come back evenly, whether they are told on the bulk road or by a header in whole
/// seconds, by the syncer that owns the guild or through another one: no second gets more than 1.5 times the mean.
#[tokio::test(flavor = "multi_thread")]
async fn r10_who_is_turned_away_over_https_comes_back_flat() {
    const BULK: usize = 3_000;
    const PUTS: usize = 1_500;
    let levers = json!({"admission.new_calls.rate": 40, "admission.new_calls.burst": 1, "placement.paused": true});
    let fleet = fleet(2, 1, &levers).await;
    until("each has its share", || async { door(&fleet, 0).await["new_calls_per_s"] == 20.0 }).await;
    let guilds: Vec<String> = fleet.guilds_of(0).take(30).collect();
    let start = Instant::now();
    let mut back = Vec::new();
    for part in 0..BULK / 100 {
        let lines: Vec<String> =
            (0..100).map(|n| line(&guilds[n % 30], &format!("c{part}-{n}"), "s", "voice")).collect();
        let results = say(&fleet, part % 2, &lines).await;
        let now = Instant::now();
        back.extend(
            results.iter().filter_map(|r| r["retry_after_ms"].as_u64()).map(|ms| now + Duration::from_millis(ms)),
        );
    }
    assert!(back.len() > BULK * 9 / 10, "{} were turned away", back.len());
    assert_flat(start, &back, "bulk road");
    let by_lines = back.len();
    for n in 0..PUTS {
        let path = format!("/v1/guilds/{}/calls/p{n}/participants/s", guilds[n % 30]);
        let answer = fleet.request(n % 2, Method::PUT, &path).json(&json!({})).send().await.expect("an answer");
        let Some(wait) = answer.headers().get("retry-after") else { continue };
        let wait = wait.to_str().expect("text").parse::<u64>().expect("whole seconds");
        back.push(Instant::now() + Duration::from_secs(wait));
    }
    assert!(back.len() - by_lines > PUTS / 2, "{} were turned away", back.len() - by_lines);
    assert_flat(start, &back, "both roads");
}

/// Wherever seconds begin: the door's begin elsewhere than ours, and every other one left out would not show in those that
/// begin halfway. The second in which the first comes back and that of the last are no whole ones. One without a caller
/// between them counts as well.
fn assert_flat(start: Instant, back: &[Instant], road: &str) {
    for offset_ms in [0, 250, 500, 750] {
        let mut by_second = std::collections::BTreeMap::<u64, u32>::new();
        for at in back {
            *by_second.entry((*at - start + Duration::from_millis(offset_ms)).as_secs()).or_default() += 1;
        }
        by_second.pop_first();
        by_second.pop_last();
        let (first, last) = by_second.keys().next().zip(by_second.keys().next_back()).expect("some");
        let span_s = last - first + 1;
        let mean = f64::from(by_second.values().sum::<u32>()) / span_s as f64;
        let max = f64::from(*by_second.values().max().expect("some"));
        let is_flat = span_s >= 10 && max <= 1.5 * mean;
        assert!(is_flat, "{road}: {max} in a second, {mean} on average: {by_second:?}");
    }
}
