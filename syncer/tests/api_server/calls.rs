//! Joins, leaves and what is refused.

use reqwest::{Client, Method, StatusCode};
use serde_json::json;
use syncer::token::{CLOCK_SKEW_S, Claims};

use crate::support::{Events, Fleet, answer, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_join_is_placed_told_and_admitted_by_the_sfu() {
    let fleet = Fleet::start(1, 2).await;
    let mut events = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    let (status, body) = fleet.join(0, "g", "c", "s").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!((body["durable"].clone(), body["ignored"].clone()), (json!(false), json!(false)));

    let news = events.of_call("g", "c").await;
    assert_eq!((news["phase"].clone(), news["cause"].clone()), (json!(1), json!("placed")));
    let (endpoint, token) = (news["endpoint"].as_str().expect("an endpoint"), &news["credentials"][0]);
    assert_eq!(token["session"], "s");

    // The token opens the room on the SFU, verified with the syncer's own keys.
    let keys = fleet.client.get(fleet.url(0, "/.well-known/jwks.json")).send().await.expect("keys");
    fleet.sfus.set_jwks(&keys.bytes().await.expect("keys")).expect("a key set");
    let ca = reqwest::Certificate::from_pem(fleet.sfus.ca_pem().as_bytes()).expect("a certificate");
    let media = Client::builder().tls_certs_only([ca]).build().expect("a client");
    let attach = media.put(format!("{endpoint}/s")).bearer_auth(token["token"].as_str().expect("a token"));
    assert_eq!(attach.send().await.expect("an answer").status(), StatusCode::NO_CONTENT);

    let again = fleet.join_until_placed(0, "g", "c", "s").await;
    assert_eq!(again["endpoint"], news["endpoint"]);
    let (status, _) = answer(fleet.request(0, Method::DELETE, "/v1/guilds/g/calls/c/participants/s?seq=9")).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, _) = answer(fleet.request(0, Method::DELETE, "/v1/guilds/g/calls/c/participants/s")).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "leaving twice is no error");
}

#[tokio::test(flavor = "multi_thread")]
async fn late_writes_are_ignored() {
    let fleet = Fleet::start(1, 1).await;
    let put = |seq: u64| {
        answer(fleet.request(0, Method::PUT, "/v1/guilds/g/calls/c/participants/s").json(&json!({ "seq": seq })))
    };
    assert_eq!(put(5).await.1["ignored"], false);
    let (status, body) = put(5).await;
    assert_eq!((status, &body["ignored"]), (StatusCode::OK, &json!(true)));
    assert_eq!(put(4).await.1["ignored"], true);
    assert_eq!(put(6).await.1["ignored"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_in_one_shape() {
    let fleet = Fleet::start(1, 1).await;
    let participant = "/v1/guilds/g/calls/c/participants/s";
    let long = format!("/v1/guilds/{}/calls/c/participants/s", "x".repeat(129));
    let put = |path: &str, body: Vec<u8>| fleet.request(0, Method::PUT, path).body(body);
    let big = vec![b' '; 70_000];
    let cases = [
        (put(participant, b"{".to_vec()), 400, "invalid"),
        (put(participant, b"\xff\xfe".to_vec()), 400, "invalid"),
        (put(participant, b"{\"seqq\":1}".to_vec()), 400, "invalid"),
        (put(participant, b"{\"seq\":-1}".to_vec()), 400, "invalid"),
        (put(participant, b"{\"region\":\"\"}".to_vec()), 400, "invalid"),
        (put(participant, big), 413, "too_large"),
        (put(&long, b"{}".to_vec()), 400, "invalid"),
        (put("/v1/guilds/a%00b/calls/c/participants/s", b"{}".to_vec()), 400, "invalid"),
        (put("/v1/guilds/a%0Ab/calls/c/participants/s", b"{}".to_vec()), 400, "invalid"),
        (put("/v1/guilds/%FF/calls/c/participants/s", b"{}".to_vec()), 400, "invalid"),
        (fleet.request(0, Method::DELETE, &format!("{participant}?seq=x")), 400, "invalid"),
        (fleet.request(0, Method::DELETE, &format!("{participant}?sqe=1")), 400, "invalid"),
        (fleet.request(0, Method::GET, "/v1/guilds/g/calls/nowhere"), 404, "not_found"),
        (fleet.request(0, Method::GET, "/v1/guilds/g/calls/nowhere:explain"), 404, "not_found"),
        (fleet.request(0, Method::GET, "/v1/nothing"), 404, "not_found"),
        (fleet.request(0, Method::POST, participant), 405, "method_not_allowed"),
        (fleet.request(0, Method::GET, "/v1/calls?limit=0"), 400, "invalid"),
        (fleet.request(0, Method::GET, "/v1/calls?cursor=zzz"), 400, "cursor_invalid"),
        (fleet.request(0, Method::POST, "/v1/sfus/none:cordon"), 404, "not_found"),
        (fleet.request(0, Method::POST, "/v1/sfus/sfu-1:explode"), 404, "not_found"),
        (fleet.request(0, Method::POST, "/v1/guilds/g/calls/c:report").body("{}"), 400, "invalid"),
        (fleet.request(0, Method::PUT, "/v1/gateways/gw-1").body("{}"), 400, "invalid"),
    ];
    for (n, (request, status, code)) in cases.into_iter().enumerate() {
        let (got, body) = answer(request).await;
        assert_eq!((got.as_u16(), &body["error_code"]), (status, &json!(code)), "case {n}: {body}");
        assert!(body["request_id"].is_string() && body["message"].is_string(), "case {n}: {body}");
    }
    let (_, status) = fleet.get(0, "/v1/status").await;
    assert_eq!(status["calls"], 0, "nothing of it had an effect: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http1_and_http2_share_the_port() {
    let fleet = Fleet::start(1, 1).await;
    let h2 = Client::builder().http2_prior_knowledge().build().expect("a client");
    let response = h2.get(fleet.url(0, "/v1/status")).send().await.expect("an answer");
    assert_eq!((response.status(), response.version()), (StatusCode::OK, reqwest::Version::HTTP_2));
    let h1 = Client::builder().http1_only().build().expect("a client");
    let response = h1.get(fleet.url(0, "/v1/status")).send().await.expect("an answer");
    assert_eq!((response.status(), response.version()), (StatusCode::OK, reqwest::Version::HTTP_11));

    // A join and the watch over HTTP/2.
    let put = h2.put(fleet.url(0, "/v1/guilds/g/calls/c/participants/s")).bearer_auth("gw-1").body("{}");
    assert_eq!(put.send().await.expect("an answer").status(), StatusCode::OK);
    let mut events = Events::open(h2.get(fleet.url(0, "/v1/watch")).bearer_auth("gw-1")).await;
    assert_eq!(events.of_call("g", "c").await["phase"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_listed_in_pages_and_explained() {
    let fleet = Fleet::start(1, 2).await;
    for n in 0..5 {
        fleet.join_until_placed(0, "g", &format!("c{n}"), "s").await;
    }
    let mut seen = Vec::new();
    let mut path = "/v1/calls?limit=2&state=placed".to_owned();
    loop {
        let (status, page) = fleet.get(0, &path).await;
        assert_eq!((status, &page["total"]), (StatusCode::OK, &json!(5)), "{page}");
        seen.extend(page["calls"].as_array().expect("calls").iter().map(|c| c["call"].as_str().map(str::to_owned)));
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/calls?limit=2&state=placed&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.into_iter().flatten().collect::<Vec<_>>(), ["c0", "c1", "c2", "c3", "c4"]);
    let (status, call) = fleet.get(0, "/v1/guilds/g/calls/c1").await;
    assert_eq!((status, &call["state"], &call["participants"]), (StatusCode::OK, &json!("placed"), &json!(1)));
    let (status, why) = fleet.get(0, "/v1/guilds/g/calls/c1:explain").await;
    assert_eq!(status, StatusCode::OK, "{why}");
    assert!(why["decision"].is_string() && why["if_sfu_died"].is_string(), "{why}");
    let replay = &why["replay"];
    assert_eq!((&replay["state"], &replay["as_recorded"]), (&json!("made"), &json!(true)), "{why}");
    let looks = replay["looks"].as_array().expect("those that were drawn");
    let taken = |look: &&serde_json::Value| look["taken"] == true;
    let names: Vec<_> = looks.iter().filter(taken).map(|look| &look["sfu"]).collect();
    assert_eq!(names, [&call["sfu"]], "{why}");
    let of = |look: &serde_json::Value| format!("{} with", look["sfu"].as_str().unwrap_or("?"));
    let decision = why["decision"].as_str().expect("in words");
    assert!(decision.starts_with(&of(looks.iter().find(taken).expect("one was"))), "{why}");
    for look in looks.iter().filter(|look| look["fate"] == "compared") {
        assert!(decision.contains(look["sfu"].as_str().expect("an id")), "both are named: {why}");
    }
    let report = json!({ "session": "s", "kind": "media_failed" });
    let (status, _) = answer(fleet.request(0, Method::POST, "/v1/guilds/g/calls/c1:report").json(&report)).await;
    assert_eq!(status, StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_watches_and_leaves_nothing() {
    let mut fleet = Fleet::start(1, 1).await;
    fleet.join_until_placed(0, "g", "c", "s").await;
    let mut watch = fleet.request(0, Method::GET, "/v1/watch").send().await.expect("an answer");
    assert!(watch.chunk().await.expect("open").is_some());
    let syncer = fleet.syncers.remove(0);
    let url = format!("{}/livez", syncer.url());
    let report = syncer.shutdown(tokio::time::Instant::now() + crate::support::PATIENCE).await;
    assert!(report.is_clean(), "{report:?}");
    while let Ok(Some(_)) = watch.chunk().await {}
    until("the port is closed", || async { fleet.client.get(&url).send().await.is_err() }).await;
}

/// Of tokens of one session, how long each admits: `nbf` lies 30 s before it was made.
#[tokio::test(flavor = "multi_thread")]
async fn r20_how_long_tokens_admit_is_a_lever() {
    let fleet = Fleet::start(1, 1).await;
    let lasts = async || {
        let body = fleet.join_until_placed(0, "g", "c", "s").await;
        let token = jsonwebtoken::dangerous::insecure_decode::<Claims>(body["token"].as_str().expect("a token"));
        let claims = token.expect("claims").claims;
        claims.exp - claims.nbf - CLOCK_SKEW_S
    };
    assert_eq!(lasts().await, 600);
    let levers = json!({"credentials.ttl": "90s"});
    assert_eq!(answer(fleet.request(0, Method::PATCH, "/v1/levers").json(&levers)).await.0, StatusCode::OK);
    assert_eq!(lasts().await, 90);
}
