//! The watch over real sockets.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sfu_api::SfuId;
use sfu_mock::{Fault, Target};

use crate::support::{Events, Fleet, answer, nodes, until};

#[tokio::test(flavor = "multi_thread")]
async fn r16_an_operators_word_sends_one_null_and_one_endpoint_per_call() {
    let fleet = Fleet::start_tls(1, nodes(2), |_| {}).await;
    let mut events = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    fleet.join(0, "g", "c", "s").await;
    let first = events.of_call("g", "c").await;
    let (_, call) = fleet.get(0, "/v1/guilds/g/calls/c").await;
    let sfu = call["sfu"].as_str().expect("placed");
    let id = SfuId::new(sfu).expect("an id");
    fleet.sfus.fault(&Target::node(id), &Fault::Kill).await.expect("killed");
    let (status, _) = answer(fleet.request(0, Method::POST, &format!("/v1/sfus/{sfu}:declare-dead"))).await;
    assert_eq!(status, StatusCode::OK);

    let gone = events.of_call("g", "c").await;
    assert_eq!((&gone["phase"], &gone["endpoint"], &gone["epoch"]), (&json!(2), &json!(null), &first["epoch"]));
    let back = events.of_call("g", "c").await;
    assert_eq!(back["phase"], 1);
    assert_ne!(back["endpoint"], first["endpoint"]);
    assert_ne!(back["credentials"][0]["token"], first["credentials"][0]["token"]);
    assert!(back["epoch"]["n"].as_u64() > first["epoch"]["n"].as_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_where_it_was_and_a_fresh_one_sees_the_present() {
    let fleet = Fleet::start(1, 1).await;
    let mut events = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    fleet.join(0, "g", "c1", "s").await;
    events.of_call("g", "c1").await;
    let id = events.last_id.clone().expect("an id");
    drop(events);
    fleet.join(0, "g", "c2", "s").await;

    let resume = fleet.request(0, Method::GET, "/v1/watch").header("last-event-id", &id);
    let mut events = Events::open(resume).await;
    let event = events.next().await;
    assert_eq!((event.name.as_str(), &event.data["call"]), ("endpoint", &json!("c2")), "only what is new");

    let mut fresh = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    let mut calls = [fresh.next().await.data["call"].clone(), fresh.next().await.data["call"].clone()];
    calls.sort_by_key(ToString::to_string);
    assert_eq!(calls, [json!("c1"), json!("c2")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_from_the_future_and_garbage_are_refused() {
    let fleet = Fleet::start(1, 1).await;
    let mut events = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    fleet.join(0, "g", "c", "s").await;
    events.of_call("g", "c").await;
    let id = events.last_id.clone().expect("an id");
    let watch = |id: String| answer(fleet.request(0, Method::GET, "/v1/watch").header("last-event-id", id));

    use base64::Engine as _;
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let text = String::from_utf8(engine.decode(&id).expect("base64")).expect("JSON");
    let future = text.replace(".1\"", ".999999\"");
    assert_ne!(future, text, "the cursor of the first news ends in 1");
    for bad in [engine.encode(future), "garbage".to_owned(), "7".to_owned()] {
        let (status, body) = watch(bad).await;
        assert_eq!((status, &body["error_code"]), (StatusCode::BAD_REQUEST, &json!("cursor_invalid")), "{body}");
    }
    // A cursor of an earlier process of the same name: told to resync, then the present state.
    let mut cursor: Value = serde_json::from_str(&text).expect("JSON");
    cursor["syncer-1"] = json!("00000000deadbeef.1");
    let old = engine.encode(cursor.to_string());
    let mut events = Events::open(fleet.request(0, Method::GET, "/v1/watch").header("last-event-id", old)).await;
    assert_eq!(events.next().await.name, "resync");
    assert_eq!(events.next().await.data["call"], "c");
}

/// A call with more sessions of one gateway than an event holds credentials: each once, at every epoch and phase.
#[tokio::test(flavor = "multi_thread")]
async fn r16_a_call_in_parts_brings_every_sessions_credential_once_over_https() {
    const SESSIONS: usize = 150; // 64 + 64 + 22
    let fleet = Fleet::start_tls(1, nodes(2), |_| {}).await;
    let join =
        |n: usize| json!({ "do": "join", "guild": "g", "call": "c", "session": format!("s{n}") }).to_string() + "\n";
    let lines: String = (0..SESSIONS).map(join).collect();
    let sent = fleet.request(0, Method::POST, "/v1/voice-states").body(lines).send().await.expect("an answer");
    assert_eq!(sent.text().await.expect("text").lines().count(), SESSIONS);
    fleet.join_until_placed(0, "g", "c", "s0").await;

    let mut events = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    let sfu = fleet.get(0, "/v1/guilds/g/calls/c").await.1["sfu"].as_str().expect("placed").to_owned();
    let first = parts(&mut events, SESSIONS).await;
    let dead = fleet.request(0, Method::POST, &format!("/v1/sfus/{sfu}:declare-dead"));
    assert_eq!(answer(dead).await.0, StatusCode::OK);
    let gone = events.of_call("g", "c").await;
    assert_eq!((&gone["phase"], &gone["epoch"]), (&json!(2), &first), "{gone}");
    assert_eq!((&gone["credentials"], &gone["parts"]), (&json!([]), &json!(null)), "nothing to connect with");
    let second = parts(&mut events, SESSIONS).await;
    assert!(second["n"].as_u64() > first["n"].as_u64(), "{second} after {first}");
}

/// Reads an endpoint that comes in parts with as many credentials; its epoch.
async fn parts(events: &mut Events, sessions: usize) -> Value {
    let (mut seen, mut epoch) = (BTreeSet::new(), Value::Null);
    let count = sessions.div_ceil(64);
    for part in 1..=count {
        let event = events.of_call("g", "c").await;
        assert_eq!((&event["part"], &event["parts"], &event["phase"]), (&json!(part), &json!(count), &json!(1)));
        assert!(part == 1 || event["epoch"] == epoch, "parts of one epoch: {event}");
        epoch = event["epoch"].clone();
        for credential in event["credentials"].as_array().expect("a list") {
            assert!(credential["token"].is_string(), "{credential}");
            assert!(seen.insert(credential["session"].to_string()), "twice: {}", credential["session"]);
        }
    }
    assert_eq!(seen.len(), sessions, "every session");
    epoch
}

/// Nothing is kept for a gateway that was not there: a cursor from before is too old, and the present state is to be had.
#[tokio::test(flavor = "multi_thread")]
async fn r16_a_cursor_that_is_too_old_is_gone_and_a_new_watch_shows_the_present() {
    let fleet = Fleet::start_tls(1, nodes(1), |_| {}).await;
    let mut events = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    fleet.join(0, "g", "c1", "s").await;
    events.of_call("g", "c1").await;
    let early = events.last_id.clone().expect("an id");
    fleet.join(0, "g", "c2", "s").await;
    events.of_call("g", "c2").await;
    let watch = || fleet.client.get(fleet.url(0, "/v1/watch")).bearer_auth("gw-late");
    let (status, body) = answer(watch().header("last-event-id", early)).await;
    assert_eq!((status, &body["error_code"]), (StatusCode::GONE, &json!("cursor_too_old")), "{body}");
    assert!(body["message"].as_str().is_some_and(|m| m.contains("without")), "it says what to do: {body}");
    let join = fleet.client.put(fleet.url(0, "/v1/guilds/g/calls/c1/participants/late")).bearer_auth("gw-late");
    assert_eq!(answer(join).await.0, StatusCode::OK);
    let mut events = Events::open(watch()).await;
    assert_eq!(events.of_call("g", "c1").await["phase"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_may_pass_its_token_in_the_query_and_sees_only_its_own() {
    let fleet = Fleet::start(1, 1).await;
    fleet.join_until_placed(0, "g", "mine", "s").await;
    let other =
        fleet.client.put(fleet.url(0, "/v1/guilds/g/calls/other/participants/s")).bearer_auth("gw-2").body("{}");
    assert_eq!(other.send().await.expect("an answer").status(), StatusCode::OK);
    let url = fleet.url(0, "/v1/watch?access_token=gw-1");
    let mut events = Events::open(fleet.client.get(url)).await;
    assert_eq!(events.next().await.data["call"], "mine");
    fleet.join(0, "g", "mine-2", "s").await;
    assert_eq!(events.next().await.data["call"], "mine-2", "gw-2's call is not for us");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watch_of_one_syncer_shows_the_whole_fleet() {
    let fleet = Fleet::start(3, 3).await;
    let guilds: Vec<String> = (0..3).map(|n| fleet.guild_of(n)).collect();
    let mut events = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    for guild in &guilds {
        fleet.join(0, guild, "c", "s").await;
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let event = events.next().await;
        assert_eq!(event.name, "endpoint");
        assert!(event.data["credentials"][0]["token"].is_string(), "{event:?}");
        seen.push(event.data["guild"].as_str().expect("a guild").to_owned());
    }
    seen.sort_unstable();
    let mut want = guilds.clone();
    want.sort_unstable();
    assert_eq!(seen, want);

    // Resumed at another syncer, by the same cursor, nothing is told twice and nothing is lost.
    let id = events.last_id.clone().expect("an id");
    drop(events);
    fleet.join(2, &guilds[1], "c2", "s").await;
    let mut events = Events::open(fleet.request(1, Method::GET, "/v1/watch").header("last-event-id", &id)).await;
    let event = events.next().await;
    assert_eq!((event.name.as_str(), &event.data["call"]), ("endpoint", &json!("c2")), "{event:?}");

    let mut local = Events::open(fleet.request(2, Method::GET, "/v1/watch?scope=local")).await;
    assert_eq!(local.next().await.data["guild"], json!(guilds[2]), "local shows one syncer's calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_restarts_gives_resync_and_its_news_go_on() {
    let mut fleet = Fleet::start(2, 2).await;
    let guild = fleet.guild_of(1);
    let mut events = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    fleet.join(0, &guild, "c", "s").await;
    let first = events.of_call(&guild, "c").await;
    drop(fleet.syncers.remove(1)); // a crash: no drain, the roster still names it
    fleet.restart("syncer-2", |_| {}).await;
    loop {
        let event = events.next().await;
        if event.name == "resync" {
            break;
        }
    }
    until("the new process serves", || async { fleet.join(0, &guild, "c", "s").await.0 == StatusCode::OK }).await;
    let again = events.of_call(&guild, "c").await;
    assert!(again["epoch"]["term"]["revision"].as_u64() > first["epoch"]["term"]["revision"].as_u64(), "{again}");
}
