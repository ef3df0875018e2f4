//! Failure verdicts over real sockets: syncers that tell each other what they see, clients that lost
//! their media.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sfu_api::SfuId;
use sfu_mock::{Fault, Target};
use syncer::Config;
use tokio::time::{Instant, sleep};

use crate::admission::set;
use crate::support::{Fleet, answer, nodes, until};

async fn status(fleet: &Fleet, n: usize) -> Value {
    fleet.get(n, "/v1/status").await.1
}

async fn witnesses(fleet: &Fleet, each: u32) {
    for n in 0..fleet.syncers.len() {
        until("witnesses", || async { fleet.syncers[n].engine().status().witnesses == each }).await;
    }
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

fn probed_often(config: &mut Config) {
    config.limits.insert("health.probe_timeout".to_owned(), "300ms".into());
    config.limits.insert("health.probe_interval".to_owned(), "300ms".into());
}

/// A call on `sfu-1`, with session `s` of `gw-1` in it. Of syncer `n`; its SFU is silent, and suspect.
struct Silent<'a> {
    fleet: &'a Fleet,
    n: usize,
    path: String,
}

// === impl Silent ===

impl<'a> Silent<'a> {
    async fn call(fleet: &'a Fleet, n: usize) -> Self {
        let guild = fleet.guild_of(n);
        for call in 0..10 {
            fleet.join_until_placed(n, &guild, &format!("c{call}"), "s").await;
        }
        let (_, page) = fleet.get(n, "/v1/calls?sfu=sfu-1").await;
        let call = page["calls"][0]["call"].as_str().expect("a call");
        fleet.sfus.fault(&node("sfu-1"), &Fault::BlackHole).await.expect("silent");
        until("suspicion", || async { status(fleet, n).await["sfus"]["suspect"] == 1 }).await;
        Self { fleet, n, path: format!("/v1/guilds/{guild}/calls/{call}") }
    }

    async fn join(&self, gateway: &str, session: &str) {
        let url = self.fleet.url(self.n, &format!("{}/participants/{session}", self.path));
        let (status, body) = answer(self.fleet.client.put(url).bearer_auth(gateway).body("{}")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }

    /// The gateway tells syncer `at` that the session lost its media, or, without one, that somebody did.
    async fn report(&self, at: usize, gateway: &str, session: Option<&str>) -> (StatusCode, Value) {
        let body = match session {
            Some(session) => json!({ "session": session, "kind": "media_failed" }),
            None => json!({ "kind": "media_failed" }),
        };
        let url = self.fleet.url(at, &format!("{}:report", self.path));
        answer(self.fleet.client.post(url).bearer_auth(gateway).json(&body)).await
    }

    async fn verdict(&self) -> Value {
        self.fleet.get(self.n, "/v1/sfus/sfu-1").await.1["verdict"].clone()
    }

    async fn recovery(&self) {
        until("recovery", || async {
            let status = status(self.fleet, self.n).await;
            status["notices_total"] == 1 && status["awaiting"] == 0
        })
        .await;
        let (_, sfu) = self.fleet.get(self.n, "/v1/sfus/sfu-1").await;
        assert!(sfu["evidence"].as_str().expect("text").starts_with("MediaFailed"), "{sfu}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_black_hole_moves_when_two_gateways_lost_their_media() {
    let fleet = Fleet::start_tls(1, nodes(2), probed_often).await;
    let call = Silent::call(&fleet, 0).await;
    for gateway in ["gw-a", "gw-b"] {
        call.join(gateway, gateway).await;
    }
    assert_eq!(call.report(0, "gw-a", Some("gw-a")).await.0, StatusCode::ACCEPTED);
    assert_eq!(call.report(0, "gw-a", Some("gw-a")).await.0, StatusCode::ACCEPTED);
    assert_eq!(call.verdict().await, "suspect", "one gateway may be wrong");
    assert_eq!(status(&fleet, 0).await["notices_total"], 0);
    assert_eq!(call.report(0, "gw-b", Some("gw-b")).await.0, StatusCode::ACCEPTED);
    call.recovery().await;
}

/// Silence is no death. A fifth of the SFUs fall silent: nothing moves, and new calls go to the others. Once an operator
/// says how long silence may last, the calls move, at the pace and no faster.
#[tokio::test(flavor = "multi_thread")]
async fn r17_silent_sfus_keep_their_calls_until_silence_counts_and_then_the_pace_holds() {
    const PER_S: f64 = 5.0;
    let fleet = Fleet::start_tls(1, nodes(10), probed_often).await;
    let guild = fleet.guild_of(0);
    let join = async |call: usize| fleet.join_until_placed(0, &guild, &format!("c{call}"), "s").await;
    for call in 0..60 {
        join(call).await;
    }
    let mut affected = 0;
    for sfu in ["sfu-1", "sfu-2"] {
        affected += fleet.get(0, &format!("/v1/calls?sfu={sfu}")).await.1["total"].as_u64().expect("a number");
        fleet.sfus.fault(&node(sfu), &Fault::Hang).await.expect("silent");
    }
    assert!(affected >= 6, "{affected} of 60 calls are on two of ten SFUs");
    until("suspicion", || async { status(&fleet, 0).await["sfus"]["suspect"] == 2 }).await;
    for call in 60..100 {
        join(call).await;
    }
    let seen = status(&fleet, 0).await;
    assert_eq!((&seen["moves_total"], &seen["notices_total"]), (&json!(0), &json!(0)), "{seen}");

    set(&fleet, 0, &json!({"placement.overall.rate": PER_S, "placement.overall.burst": 1})).await;
    sleep(Duration::from_secs(1)).await; // levers are read at least four times a second
    let start = Instant::now();
    set(&fleet, 0, &json!({"health.suspect_max": "1s"})).await;
    until("its calls", || async {
        let moved = status(&fleet, 0).await["moves_total"].as_u64().expect("a number");
        // Two for what was in the bucket and what is rounded; a token is taken before a call has moved.
        let most = (Instant::now() - start).as_secs_f64() * PER_S + 2.0;
        assert!(moved as f64 <= most, "{moved} moves where {most:.1} may be");
        moved == affected
    })
    .await;
    assert_eq!(status(&fleet, 0).await["sfus"]["dead"], 2);
}

/// Whether the report comes to the owner or to another, and whatever it says of sessions.
#[tokio::test(flavor = "multi_thread")]
async fn r17_a_report_of_a_gateway_without_the_session_is_refused_and_moves_nothing() {
    let fleet = Fleet::start_tls(2, nodes(2), probed_often).await;
    let call = Silent::call(&fleet, 1).await;
    for (at, gateway, session) in [
        (0, "gw-a", Some("s")),
        (1, "gw-b", Some("s")),
        (0, "gw-b", None),
        (1, "gw-a", None),
        (0, "gw-a", Some("nobody")),
        (1, "gw-1", Some("nobody")),
    ] {
        let (status, body) = call.report(at, gateway, session).await;
        assert_eq!(
            (status, &body["error_code"]),
            (StatusCode::FORBIDDEN, &json!("no_session")),
            "{gateway} {session:?}"
        );
        assert!(body["message"].as_str().expect("text").contains("join"), "it says what to do: {body}");
        assert_eq!(call.verdict().await, "suspect", "{gateway} {session:?} at {at}");
    }
    // It counts for one gateway, and with a second one for both: forwarded, and while that tells everything again.
    assert_eq!(call.report(0, "gw-1", Some("s")).await.0, StatusCode::ACCEPTED);
    assert_eq!(call.verdict().await, "suspect", "those that were refused were not remembered");
    assert_eq!(status(&fleet, 1).await["notices_total"], 0);
    call.join("gw-a", "a").await;
    let sync = fleet.client.post(fleet.url(1, "/v1/voice-states")).bearer_auth("gw-a").body("{\"do\":\"sync\"}\n");
    assert_eq!(answer(sync).await.1["status"], 200);
    assert_eq!(call.report(0, "gw-a", Some("s")).await.0, StatusCode::FORBIDDEN, "not its own");
    assert_eq!(call.report(0, "gw-a", None).await.0, StatusCode::ACCEPTED);
    assert_eq!(call.report(1, "gw-a", Some("a")).await.0, StatusCode::ACCEPTED);
    call.recovery().await;
    let metrics = fleet.request(1, Method::GET, "/metrics").send().await.expect("an answer").text().await;
    let metrics = metrics.expect("text");
    assert!(metrics.lines().any(|line| line == "trunkline_media_reports_total 3"), "{metrics}");
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
    sleep(Duration::from_millis(50)).await;
    assert_eq!(status(&fleet, 0).await["notices_total"], 0, "a peer's word alone moves nothing");
    let metrics = fleet.client.get(fleet.url(0, "/metrics")).bearer_auth("gw-1").send().await.expect("an answer");
    let metrics = metrics.text().await.expect("text");
    assert!(metrics.contains("trunkline_peer_evidence_ignored_total 6"), "{metrics}");
}
