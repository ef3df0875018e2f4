//! Tens of gateways with many sessions each hear of an SFU that dies, over HTTPS, each of its own sessions and no others.
//!
//! By default at a size that fits a test run. With `TRUNKLINE_FULL=1` (in a release build) with 100,000 sessions for
//! each of twenty-one gateways.

#[path = "api_server/support.rs"]
#[allow(dead_code, reason = "another test's support")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sfu_mock::{ClusterConfig, Fault, Target};
use tokio::time::Instant;

use self::support::{Event, Events, Fleet, PATIENCE, answer, verifying};

/// Gateways that read what they hear.
const READERS: usize = 20;
/// And one that stops reading.
const LAGGARD: usize = READERS;
/// Sessions of each gateway in each call.
const OF_EACH: usize = 2;
const SFUS: usize = 5;
/// Lines in a request of the bulk road: well below its time limits in a debug build.
const LINES: usize = 10_000;
/// Longer than the whole test takes at full size.
const LONG: Duration = Duration::from_secs(900);
/// What the laggard's end takes before anybody reads: less than the first state of its calls has.
const WINDOW_BYTES: u32 = 65_535;

fn is_full() -> bool {
    std::env::var_os("TRUNKLINE_FULL").is_some()
}

/// Calls in which every gateway has sessions.
fn calls() -> usize {
    let sessions = if is_full() { 100_000 } else { 1_000 };
    sessions / OF_EACH
}

/// Where a call was last told to be.
type Told = BTreeMap<usize, String>;

/// One gateway's watch.
struct Watch {
    gateway: usize,
    events: Events,
}

// === impl Watch ===

impl Watch {
    async fn open(fleet: &Fleet, client: &Client, gateway: usize) -> Self {
        let request = client.get(fleet.url(0, "/v1/watch")).bearer_auth(format!("gw-{gateway}")).timeout(LONG);
        Self { gateway, events: Events::open(request).await }
    }

    /// The next news: its call, and the endpoint if it has one. Whatever it is of, it is of our sessions alone.
    fn read(&self, event: &Event) -> (usize, Option<String>) {
        let data = &event.data;
        assert_eq!(event.name, "endpoint", "gateway {}: {data}", self.gateway);
        let call: usize = data["call"].as_str().and_then(|c| c.strip_prefix('c')?.parse().ok()).expect("a call");
        let credentials = data["credentials"].as_array().expect("a list");
        let Some(endpoint) = data["endpoint"].as_str() else {
            assert!(data["phase"] == 2 && credentials.is_empty(), "{data}");
            return (call, None);
        };
        let mut sessions = BTreeSet::new();
        for credential in credentials {
            let claims = credential["token"].as_str().and_then(|t| t.split('.').nth(1)).expect("a token");
            let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64");
            let claims: Value = serde_json::from_slice(&claims).expect("claims");
            assert_eq!(claims["sub"], credential["session"], "{data}");
            sessions.insert(credential["session"].as_str().expect("a session"));
        }
        let mine: BTreeSet<_> = (0..OF_EACH).map(|nth| session(self.gateway, call, nth)).collect();
        assert_eq!(sessions, mine.iter().map(String::as_str).collect(), "a credential for each of ours: {data}");
        assert_eq!((&data["phase"], credentials.len()), (&json!(1), OF_EACH), "once: {data}");
        (call, Some(endpoint.to_owned()))
    }

    /// The state of so many calls: what a watch begins with.
    async fn state(&mut self, calls: usize) -> Told {
        let mut told = Told::new();
        while told.len() < calls {
            let event = self.events.next().await;
            let (call, endpoint) = self.read(&event);
            told.insert(call, endpoint.expect("placed"));
        }
        told
    }

    /// One piece of news for each of these calls and none of any other: all nulls, or all endpoints.
    async fn hears(&mut self, of: &BTreeSet<usize>, endpoints: bool) {
        let mut left = of.clone();
        while !left.is_empty() {
            let event = self.events.next().await;
            let (call, endpoint) = self.read(&event);
            assert_eq!(endpoint.is_some(), endpoints, "{}", event.data);
            assert!(left.remove(&call), "R16: once for each call, and I10: of no other: {}", event.data);
        }
    }
}

fn session(gateway: usize, call: usize, nth: usize) -> String {
    format!("s-{gateway}-{call}-{nth}")
}

async fn status(fleet: &Fleet) -> Value {
    fleet.get(0, "/v1/status").await.1
}

async fn levers(fleet: &Fleet, levers: &Value) {
    let (status, body) = answer(fleet.request(0, Method::PATCH, "/v1/levers").json(levers)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
}

/// News that is kept for all gateways together.
async fn held(fleet: &Fleet) -> usize {
    let answer = fleet.request(0, Method::GET, "/metrics").send().await.expect("an answer");
    let text = answer.text().await.expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix("trunkline_watch_news_held "));
    line.and_then(|held| held.parse().ok()).expect("the metric")
}

/// Waits for what takes as long as the size is large.
async fn in_time(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + if is_full() { LONG } else { PATIENCE };
    while !is_so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The sessions of a gateway join these calls.
async fn join(fleet: &Fleet, gateway: usize, calls: std::ops::Range<usize>) {
    let people: Vec<_> = calls.flat_map(|call| (0..OF_EACH).map(move |nth| (call, nth))).collect();
    for chunk in people.chunks(LINES) {
        let mut body = String::new();
        for (call, nth) in chunk {
            let line = json!({ "do": "join", "guild": format!("g{call}"), "call": format!("c{call}"),
                "session": session(gateway, *call, *nth), "token": false });
            writeln!(body, "{line}").expect("a string takes all");
        }
        let request = fleet.client.post(fleet.url(0, "/v1/voice-states")).bearer_auth(format!("gw-{gateway}"));
        let text = request.body(body).send().await.expect("an answer").text().await.expect("results");
        assert_eq!(text.lines().find(|line| !line.contains("\"status\":200")), None);
    }
}

/// Every gateway has sessions in every call, and every call has a place.
async fn filled(calls: usize) -> Fleet {
    let cluster = ClusterConfig {
        nodes: SFUS,
        capacity: 1_000_000,
        empty_room_ttl: Duration::from_secs(3_600),
        ..ClusterConfig::default()
    };
    let fleet = Fleet::start_tls(1, cluster, |config| {
        for level in ["placement.overall", "placement.region", "placement.sfu"] {
            config.limits.insert(format!("{level}.rate"), 10_000.into());
            config.limits.insert(format!("{level}.burst"), 10_000.into());
        }
        config.limits.insert("admission.new_calls.rate".to_owned(), 1_000_000.into());
        config.limits.insert("admission.new_calls.burst".to_owned(), 1_000_000.into());
        config.limits.insert("admission.guild_share".to_owned(), 1.into());
        // One that does not read stays: what becomes of it is what is looked at.
        config.limits.insert("http.stream_idle_timeout".to_owned(), "1h".into());
        config.limits.insert("http.write_timeout".to_owned(), "10m".into());
    })
    .await;
    for gateway in 0..=LAGGARD {
        join(&fleet, gateway, 0..calls).await;
    }
    in_time("all calls are placed", async || status(&fleet).await["placed"] == calls).await;
    assert_eq!(status(&fleet).await["participants"], calls * OF_EACH * (READERS + 1));
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_i07_every_gateway_hears_of_its_own_sessions_once_and_a_laggard_costs_nobody() {
    let calls = calls();
    let fleet = filled(calls).await;
    let narrow = {
        let ca = std::fs::read(fleet.dir.path().join("api-ca.pem")).expect("written");
        let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
        Client::builder().tls_certs_only([ca]).http2_initial_stream_window_size(WINDOW_BYTES).build().expect("a client")
    };
    let mut laggard = Watch::open(&fleet, &narrow, LAGGARD).await;
    let mut readers = Vec::new();
    for gateway in 0..READERS {
        readers.push(Watch::open(&fleet, &verifying(fleet.dir.path(), LONG), gateway).await);
    }
    let told = join_all(readers.iter_mut().map(|reader| reader.state(calls))).await;
    let victim = &fleet.sfus.nodes()[0];
    let lost: BTreeSet<usize> =
        told[0].iter().filter(|(_, at)| at.starts_with(&victim.url)).map(|(call, _)| *call).collect();
    assert!(lost.len() > calls / SFUS / 2 && told.iter().all(|other| *other == told[0]), "{} lost", lost.len());
    let kept_max = 2 * (READERS + 1) * lost.len();
    let kept = json!({ "watch.events_max": kept_max, "watch.resume_window": "1h", "placement.paused": true });
    levers(&fleet, &kept).await;

    // While nothing is placed, no null can be overtaken by its endpoint.
    fleet.sfus.fault(&Target::node(victim.id.clone()), &Fault::Kill).await.expect("killed");
    join_all(readers.iter_mut().map(|reader| reader.hears(&lost, false))).await;
    assert!(held(&fleet).await <= kept_max);
    levers(&fleet, &json!({ "placement.paused": false })).await;
    join_all(readers.iter_mut().map(|reader| reader.hears(&lost, true))).await;
    in_time("all calls are placed", async || status(&fleet).await["awaiting"] == 0).await;
    let news = (READERS + 1) * lost.len();
    assert!((news..=kept_max).contains(&held(&fleet).await), "one note for each call and gateway, at most as set");
    // Nothing else came: the next that each hears is of a call that begins now.
    for reader in &mut readers {
        let new = calls + reader.gateway;
        join(&fleet, reader.gateway, new..new + 1).await;
        reader.hears(&BTreeSet::from([new]), true).await;
    }

    // All that has come to pass while the laggard read nothing. What it missed is let go; it hears how things are.
    levers(&fleet, &json!({ "watch.events_max": 64 })).await;
    in_time("news is let go", async || held(&fleet).await <= 64).await;
    let resync = loop {
        let event = laggard.events.next().await;
        if event.name == "resync" {
            break event;
        }
        laggard.read(&event);
    };
    assert_eq!(resync.data, json!({ "reason": "fell_behind" }));
    let now = laggard.state(calls).await;
    for (call, at) in now {
        let before = &told[0][&call];
        assert_eq!(at == *before, !lost.contains(&call), "the last state of each: c{call} at {at}, before {before}");
    }
    assert_eq!(status(&fleet).await["invariant_violations"], 0);
}
