//! Gateways that vanish, come back, and tell everything again.

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Events, Fleet, answer, nodes, soon, until};

/// A fleet behind TLS where silence is short.
pub(crate) async fn quick(syncers: usize, windows: &[(&str, &str)]) -> Fleet {
    Fleet::start_tls(syncers, nodes(2), |config| {
        for (lever, value) in windows {
            config.limits.insert((*lever).to_owned(), toml::Value::String((*value).to_owned()));
        }
    })
    .await
}

/// One gateway with a client of its own.
pub(crate) struct Gateway {
    pub(crate) client: Client,
    name: &'static str,
    url: String,
}

// === impl Gateway ===

impl Gateway {
    fn new(fleet: &Fleet, n: usize, name: &'static str) -> Self {
        Self { client: fleet.client.clone(), name, url: fleet.url(n, "") }
    }

    pub(crate) fn over_tls(fleet: &Fleet, name: &'static str, h2: bool) -> Self {
        let ca = std::fs::read(fleet.dir.path().join("api-ca.pem")).expect("written");
        let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
        let client = Client::builder().tls_certs_only([ca]);
        let client = if h2 { client } else { client.http1_only() };
        Self { client: client.build().expect("a client"), name, url: fleet.url(0, "") }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(self.name)
    }

    async fn beat(&self, incarnation: &str) -> (StatusCode, Value) {
        let path = format!("/v1/gateways/{}", self.name);
        answer(self.request(Method::PUT, &path).json(&json!({ "incarnation": incarnation }))).await
    }

    /// The results of these lines, in one stream.
    pub(crate) async fn say(&self, lines: &[Value]) -> Vec<Value> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let response = soon("an answer", self.request(Method::POST, "/v1/voice-states").body(text).send()).await;
        let text = response.expect("an answer").text().await.expect("a body");
        text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
    }

    async fn status(&self) -> Value {
        answer(self.request(Method::GET, "/v1/status")).await.1
    }
}

/// The body of an answer.
async fn answer_of(request: reqwest::RequestBuilder) -> bytes::Bytes {
    soon("an answer", request.send()).await.expect("an answer").bytes().await.expect("a body")
}

pub(crate) fn join(guild: &str, call: usize, session: usize, seq: u64) -> Value {
    json!({ "do": "join", "guild": guild, "call": format!("c{call}"), "session": format!("s{session}"), "seq": seq, "token": false })
}

fn round(lines: impl IntoIterator<Item = Value>) -> Vec<Value> {
    std::iter::once(json!({ "do": "sync" })).chain(lines).chain([json!({ "op": "end", "do": "synced" })]).collect()
}

pub(crate) fn all_done(results: &[Value]) {
    for result in results {
        assert_eq!(result["status"], 200, "{result}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_full_resync_over_https_keeps_what_is_told_again_and_nothing_else() {
    let fleet = quick(1, &[("gateways.resume_window", "300ms")]).await;
    for h2 in [false, true] {
        let gateway = Gateway::over_tls(&fleet, if h2 { "gw-2" } else { "gw-1" }, h2);
        let guild = gateway.name;
        let people = |people: std::ops::Range<usize>| people.map(|n| join(guild, n / 4, n, 7));
        let first: Vec<Value> = people(0..2_000).collect();
        all_done(&gateway.say(&first).await);
        let call = format!("/v1/guilds/{guild}/calls/c1");
        let epoch = async || answer(gateway.request(Method::GET, &call)).await.1["epoch"].clone();
        until("a placement", || async { epoch().await.is_object() }).await;
        let before = epoch().await;

        // The process restarts, and forty of its people are gone. The same `seq` will do.
        let again = gateway.say(&round(people(0..1_960))).await;
        all_done(&again);
        assert_eq!(again.len(), 1_962);
        assert!(again[0]["round"].is_u64() && again[0]["round"] == again[1_961]["round"], "{}", again[0]);
        assert!(again[1..1_961].iter().all(|r| r["ignored"] == true), "by (session, seq) it is a repetition");
        let expected = if h2 { 1_958 + 1_960 } else { 1_960 };
        until("the rest to expire", || async { gateway.status().await["participants"] == expected }).await;
        // And again, each time without one more. Rounds are cleared in their order, so when the last of these two
        // has gone, all that the first put out of date has gone: that one and nobody else.
        let expired = gateway.status().await["sessions_expired_total"].as_u64().expect("a count");
        for gone in [1, 2] {
            all_done(&gateway.say(&round(people(0..1_960 - gone))).await);
            until("one to expire", || async {
                let total = gateway.status().await["sessions_expired_total"].as_u64().expect("a count");
                assert!(total <= expired + gone as u64, "{total} expired, {expired} before");
                total == expired + gone as u64
            })
            .await;
        }
        let status = gateway.status().await;
        assert_eq!(status["participants"], expected - 2, "{status}");
        assert_eq!(epoch().await, before, "found where it was, not placed anew");
        assert_eq!(status["invariant_violations"], 0, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_a_gateway_that_vanishes_loses_its_sessions_and_others_keep_theirs() {
    let fleet = quick(1, &[("gateways.alive_for", "400ms"), ("gateways.resume_window", "400ms")]).await;
    let [gone, watching, silent] = ["gw-1", "gw-2", "gw-3"].map(|name| Gateway::new(&fleet, 0, name));
    assert_eq!(watching.beat("i").await.0, StatusCode::OK);
    let mut events = Events::open(watching.request(Method::GET, "/v1/watch")).await;
    for (n, gateway) in [&gone, &watching, &silent].into_iter().enumerate() {
        all_done(&gateway.say(&[join("g", 0, n, 1), join("g", 1 + n, n, 1)]).await);
    }
    events.of_call("g", "c2").await;
    assert_eq!(gone.beat("i").await.1["resync"], true);
    all_done(&gone.say(&round([join("g", 0, 0, 1), join("g", 1, 0, 1)])).await);
    assert_eq!(gone.beat("i").await.1["resync"], false, "it has told everything");

    until("expiry", || async { silent.status().await["participants"] == 4 }).await;
    let status = silent.status().await;
    assert_eq!(status["sessions_expired_total"], 2, "{status}");
    assert_eq!((&status["gateways"]["here"], &status["expiry_frozen"]), (&json!(1), &json!(false)), "{status}");
    let (_, list) = answer(silent.request(Method::GET, "/v1/gateways")).await;
    let names: Vec<_> = list["gateways"].as_array().expect("a list").iter().map(|g| g["gateway"].clone()).collect();
    assert_eq!(names, ["gw-2"], "a vanished gateway is forgotten, one that never promised anything is not known");
    assert_eq!(gone.beat("i").await.1["resync"], true, "back, it is told that its sessions are gone");
    until("the call that only it was in ends", || async {
        answer(gone.request(Method::GET, "/v1/guilds/g/calls/c1")).await.1["state"] != "placed"
    })
    .await;
}

/// On real SFUs: whoever is connected stays, and whoever is not goes.
#[tokio::test(flavor = "multi_thread")]
async fn r16_whoever_is_connected_to_the_sfu_outlives_his_gateway() {
    let windows = [("gateways.alive_for", "400ms"), ("gateways.resume_window", "400ms"), ("digest.interval", "1s")];
    let fleet = quick(1, &windows).await;
    let gone = Gateway::over_tls(&fleet, "gw-1", true);
    let watcher = Gateway::over_tls(&fleet, "gw-2", true);
    let keys = answer_of(gone.client.get(format!("{}/.well-known/jwks.json", gone.url))).await;
    fleet.sfus.set_jwks(&keys).expect("a key set");
    let ca = reqwest::Certificate::from_pem(fleet.sfus.ca_pem().as_bytes()).expect("a certificate");
    let media = Client::builder().tls_certs_only([ca]).build().expect("a client");

    // Two in one call, of whom one connects, and one alone in another call.
    all_done(&gone.say(&[join("g", 0, 0, 1), join("g", 0, 1, 1), join("g", 1, 2, 1)]).await);
    let placed = || async {
        let (_, body) = answer(gone.request(Method::PUT, "/v1/guilds/g/calls/c0/participants/s0").body("{}")).await;
        body["endpoint"].as_str().zip(body["token"].as_str()).map(|(at, token)| (at.to_owned(), token.to_owned()))
    };
    until("a place", || async { placed().await.is_some() }).await;
    let (endpoint, token) = placed().await.expect("placed");
    let attach = media.put(format!("{endpoint}/s0")).bearer_auth(&token);
    assert_eq!(soon("an answer", attach.send()).await.expect("an answer").status(), StatusCode::NO_CONTENT);
    assert_eq!(gone.beat("i").await.0, StatusCode::OK);

    until("the one that nobody is in", || async { watcher.status().await["participants"] == 2 }).await;
    until("the count", || async { watcher.status().await["gateways"]["sessions_kept"] == 2 }).await;
    let (_, list) = answer(watcher.request(Method::GET, "/v1/gateways")).await;
    assert_eq!((&list["gateways"][0]["gateway"], &list["gateways"][0]["kept"]), (&json!("gw-1"), &json!(2)), "{list}");
    until("the metric", || async {
        let metrics = answer_of(gone.client.get(format!("{}/metrics", gone.url)).bearer_auth("gw-1")).await;
        String::from_utf8_lossy(&metrics).lines().any(|line| line == "trunkline_sessions_kept 2")
    })
    .await;

    let leave = media.delete(format!("{endpoint}/s0")).bearer_auth(&token);
    assert_eq!(soon("an answer", leave.send()).await.expect("an answer").status(), StatusCode::NO_CONTENT);
    until("those whose people left", || async { watcher.status().await["participants"] == 0 }).await;
    assert_eq!(watcher.status().await["sessions_expired_total"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_expiry_freezes_when_most_gateways_are_gone_at_once_and_a_lever_thaws_it() {
    let fleet = quick(1, &[("gateways.alive_for", "300ms"), ("gateways.resume_window", "0ms")]).await;
    let gateways = ["gw-1", "gw-2", "gw-3", "gw-4"].map(|name| Gateway::new(&fleet, 0, name));
    // Together, so that none is found silent long before the others.
    let beats = gateways.iter().map(|gateway| gateway.beat("i"));
    for (n, gateway) in gateways.iter().enumerate() {
        all_done(&gateway.say(&[join("g", n, n, 1)]).await);
    }
    futures_util::future::join_all(beats).await;
    until("the freeze", || async { gateways[0].status().await["expiry_frozen"] == true }).await;
    let before = gateways[0].status().await["participants"].as_u64().expect("a count");
    assert!(before >= 2, "a freeze begins with the third that is gone");
    // What a gateway says of itself is out of date even now: when its session has gone, a walk over all of them has
    // ended, and it took nothing of those who are silent.
    let speaks = Gateway::new(&fleet, 0, "gw-5");
    all_done(&speaks.say(&[join("g", 9, 9, 1)]).await);
    assert_eq!(gateways[0].status().await["participants"], before + 1);
    all_done(&speaks.say(&round([])).await);
    until("its own word", || async { gateways[0].status().await["participants"] != before + 1 }).await;
    let status = gateways[0].status().await;
    assert_eq!((&status["participants"], &status["expiry_frozen"]), (&json!(before), &json!(true)), "{status}");
    let thaw = fleet.request(0, Method::PATCH, "/v1/levers").json(&json!({ "gateways.freeze_share": 1.0 }));
    assert_eq!(answer(thaw).await.0, StatusCode::OK);
    until("expiry", || async { gateways[0].status().await["participants"] == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_never_beat_loses_on_an_operators_word_what_it_does_not_tell_again() {
    let fleet = quick(1, &[("gateways.resume_window", "2s")]).await;
    let [gone, other] = ["gw-1", "gw-2"].map(|name| Gateway::new(&fleet, 0, name));
    all_done(&gone.say(&[join("g", 0, 0, 1), join("g", 0, 1, 1), join("g", 1, 2, 1)]).await);
    all_done(&other.say(&[join("g", 0, 9, 1)]).await);
    let act = |verb: &str| answer(fleet.request(0, Method::POST, &format!("/v1/gateways/gw-1:{verb}?reason=gone")));
    assert_eq!(act("bury").await.0, StatusCode::NOT_FOUND);
    assert_eq!(act("expire").await.0, StatusCode::NO_CONTENT);
    all_done(&gone.say(&[join("g", 0, 1, 1)]).await); // it is there after all, with one of them
    until("expiry", || async { other.status().await["participants"] == 2 }).await;
    let status = other.status().await;
    assert_eq!(
        (&status["sessions_expired_total"], &status["invariant_violations"]),
        (&json!(2), &json!(0)),
        "{status}"
    );
    assert_eq!(gone.beat("i").await.1["resync"], true);
    let (_, levers) = fleet.get(0, "/v1/levers").await;
    let last = levers["changes"].as_array().expect("a list").last().expect("one").clone();
    assert_eq!((&last["name"], &last["reason"]), (&json!("gateways.expire.gateway"), &json!("gone")), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_round_at_one_syncer_counts_for_the_sessions_with_all() {
    let windows = [("gateways.alive_for", "1500ms"), ("gateways.resume_window", "200ms")];
    let fleet = quick(2, &windows).await;
    let (gateway, there) = (Gateway::new(&fleet, 0, "gw-1"), Gateway::new(&fleet, 1, "operator"));
    let guilds: Vec<String> = (0..2).flat_map(|n| fleet.guilds_of(n).take(5)).collect();
    let people = |people: std::ops::Range<usize>| -> Vec<Value> {
        guilds.iter().flat_map(|guild| people.clone().map(move |n| join(guild, 0, n, 1))).collect()
    };
    gateway.beat("i").await;
    all_done(&gateway.say(&people(0..4)).await);
    assert_eq!(
        (gateway.status().await["participants"].clone(), there.status().await["participants"].clone()),
        (json!(20), json!(20))
    );
    all_done(&gateway.say(&round(people(0..3))).await);
    for syncer in [&gateway, &there] {
        until("the rest to expire", || async { syncer.status().await["participants"] == 15 }).await;
    }
    // Beating at one of them keeps it alive with both, for longer than either would wait.
    let until_then = tokio::time::Instant::now() + std::time::Duration::from_secs(3);
    while tokio::time::Instant::now() < until_then {
        gateway.beat("i").await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(there.status().await["participants"], 15, "heard of through the other");
    for syncer in [&gateway, &there] {
        until("expiry with both", || async { syncer.status().await["participants"] == 0 }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_that_were_not_begun_and_processes_that_were_replaced_are_refused() {
    let fleet = quick(1, &[]).await;
    let gateway = Gateway::new(&fleet, 0, "gw-1");
    let lines = [
        json!({ "op": "a", "do": "synced" }),
        json!({ "op": "b", "do": "synced", "round": 5 }),
        json!({ "op": "c", "do": "sync", "guild": "g" }),
    ];
    let codes: Vec<_> =
        gateway.say(&lines).await.iter().map(|r| (r["status"].clone(), r["error_code"].clone())).collect();
    assert_eq!(
        codes,
        [(json!(409), json!("not_begun")), (json!(409), json!("not_begun")), (json!(400), json!("invalid"))]
    );
    gateway.beat("old").await;
    gateway.beat("new").await;
    let (status, body) = gateway.beat("old").await;
    assert_eq!((status, &body["error_code"]), (StatusCode::CONFLICT, &json!("superseded")));
    let heard = gateway.request(Method::POST, "/v1/gateways").json(&json!({ "gateways": [] }));
    assert_eq!(answer(heard).await.0, StatusCode::FORBIDDEN, "only syncers say who else is there");
}

/// A process that hung, was replaced and comes to again puts nothing of its successor's out of date, at whatever syncer.
#[tokio::test(flavor = "multi_thread")]
async fn r15_a_process_that_was_replaced_and_says_which_it_is_begins_and_ends_no_round() {
    let fleet = quick(2, &[("gateways.resume_window", "0ms")]).await;
    let [here, there] = [0, 1].map(|n| Gateway::new(&fleet, n, "gw-1"));
    let line = |what: &str, name: &str| json!({ "do": what, "incarnation": name });
    let told = |name: &str| vec![line("sync", name), join("g", 0, 0, 1), line("synced", name)];
    let codes = |results: Vec<Value>| -> Vec<(u64, String)> {
        let code = |r: &Value| (r["status"].as_u64().expect("one"), r["error_code"].as_str().unwrap_or("").to_owned());
        results.iter().map(code).collect()
    };
    let superseded = [(409, "superseded".to_owned())];
    there.beat("old").await;
    all_done(&there.say(&told("old")).await);
    // It begins, its successor comes, and it ends.
    let begun = there.say(&[line("sync", "old")]).await.remove(0)["round"].clone();
    there.beat("new").await;
    let mut end = line("synced", "old");
    end["round"] = begun;
    assert_eq!(codes(there.say(std::slice::from_ref(&end)).await), superseded);
    // A syncer that has not heard of it yet asks the one that has.
    for syncer in [&there, &here] {
        let codes = codes(syncer.say(&[line("sync", "old"), line("synced", "old")]).await);
        assert_eq!(codes[..1], superseded);
        assert_ne!(codes[1].0, 200, "nothing was begun");
        all_done(&syncer.say(&told("new")).await);
        all_done(&syncer.say(&told("never heard of")).await);
    }
    let unlisted = there.say(&[line("sync", ""), line("sync", &"x".repeat(129)), json!({ "do": "sync" })]).await;
    assert_eq!(codes(unlisted).iter().map(|c| c.0).collect::<Vec<_>>(), [400, 400, 200]);
    end.as_object_mut().expect("an object").remove("incarnation");
    assert_eq!(codes(there.say(&[end]).await), [(409, "not_begun".to_owned())], "as before without it");
}

/// It is not ended at syncers that have not heard of the successor either.
#[tokio::test(flavor = "multi_thread")]
async fn r15_a_round_that_was_begun_before_its_process_was_replaced_ends_nowhere() {
    let fleet = quick(2, &[("gateways.resume_window", "0ms")]).await;
    let [gateway, other] = ["gw-1", "gw-2"].map(|name| Gateway::new(&fleet, 1, name));
    let here = Gateway::new(&fleet, 0, "gw-3");
    let guild = fleet.guild_of(0);
    gateway.beat("old").await;
    all_done(&gateway.say(&[join(&guild, 0, 0, 1)]).await);
    all_done(&other.say(&[join(&guild, 0, 1, 1)]).await);

    let (lines, body) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(1);
    let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(body));
    let line = |what: &str| Ok(json!({ "do": what, "incarnation": "old" }).to_string() + "\n");
    lines.send(line("sync")).await.expect("there is room");
    let sent = gateway.request(Method::POST, "/v1/voice-states").body(body).send();
    let mut results = soon("the head", sent).await.expect("an answer");
    let mut result = async || -> Value {
        let chunk = soon("a result", results.chunk()).await.expect("open").expect("not ended");
        serde_json::from_slice(&chunk).expect("one result")
    };
    assert_eq!(result().await["status"], 200);
    gateway.beat("new").await;
    lines.send(line("synced")).await.expect("there is room");
    assert_eq!(result().await["error_code"], "superseded");

    // When what is due later has expired there, so has all that was due before.
    all_done(&other.say(&round([])).await);
    until("expiry of another's", || async { here.status().await["participants"] == 1 }).await;
    let (_, call) = answer(here.request(Method::GET, &format!("/v1/guilds/{guild}/calls/c0"))).await;
    assert_eq!(call["participants"], 1, "{call}");
    let status = here.status().await;
    assert_eq!(status["sessions_expired_total"], 1, "{status}");
}

/// Counts the events that were written to watchers.
async fn events_sent(fleet: &Fleet, gateway: &Gateway) -> u64 {
    let text = gateway.client.get(fleet.url(0, "/metrics")).send().await.expect("an answer").text().await;
    let text = text.expect("text");
    let line = text.lines().find_map(|l| l.strip_prefix("trunkline_watch_events_sent_total "));
    line.and_then(|n| n.trim().parse().ok()).expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_i09_a_reader_that_stalls_over_https_is_written_a_bounded_part_and_others_everything() {
    const CALLS: usize = 120;
    const PEOPLE: usize = 64;
    let fleet = quick(1, &[]).await;
    let lines: Vec<Value> = (0..CALLS * PEOPLE).map(|n| join("g", n / PEOPLE, n, 1)).collect();
    let gateway = Gateway::over_tls(&fleet, "gw-1", true);
    all_done(&gateway.say(&lines).await);
    until("placements", || async { gateway.status().await["placed"] == CALLS }).await;
    let before = events_sent(&fleet, &gateway).await;

    // Opens a watch and does not read it: ~3 MB of news, and a window of 64 KiB.
    let ca = std::fs::read(fleet.dir.path().join("api-ca.pem")).expect("written");
    let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
    let narrow = Client::builder().tls_certs_only([ca]).http2_initial_stream_window_size(64 * 1024);
    let narrow = narrow.http2_initial_connection_window_size(64 * 1024).build().expect("a client");
    let watch = |client: &Client| client.get(fleet.url(0, "/v1/watch")).bearer_auth("gw-1");
    let mut stalled = Events::open(watch(&narrow)).await;
    until("the first events", || async { events_sent(&fleet, &gateway).await > before }).await;

    // Two others read all of theirs meanwhile, one by each version of HTTP.
    for h2 in [false, true] {
        let reader = Gateway::over_tls(&fleet, "gw-1", h2);
        let mut events = Events::open(watch(&reader.client)).await;
        let mut credentials = 0;
        while credentials < CALLS * PEOPLE {
            credentials += events.next().await.data["credentials"].as_array().expect("a list").len();
        }
    }
    let to_stalled = events_sent(&fleet, &gateway).await - before - 2 * CALLS as u64;
    assert!(to_stalled < CALLS as u64 / 2, "{to_stalled} events wait for one that does not read");
    // It reads again, and lacks nothing.
    let mut credentials = 0;
    while credentials < CALLS * PEOPLE {
        credentials += stalled.next().await.data["credentials"].as_array().expect("a list").len();
    }
}
