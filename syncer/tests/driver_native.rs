//! The native driver against scripted servers: what it sends, and what it makes of every answer.

mod driver_support;

use std::sync::Arc;
use std::time::Duration;

use driver_support::{built, closed_port, end, epoch, lane, native, raw_server, room, shortly, silent_server, soon};
use pool::{Lane, LaneLimits};
use serde_json::{Value, json};
use sfu_api::{BootId, Digest, EndRoom, EnsureRoom, OwnerTerm, RoomId, SessionId, Slot, SlotTerm};
use syncer::drivers::{CredentialRequest, DigestOutcome, DigestSpec, DriverError, Ended, ErrorKind};
use syncer::token::{Claims, ISSUER, Signer};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use wiremock::matchers::{any, method, path, query_param, query_param_is_missing};
use wiremock::{Mock, MockServer, ResponseTemplate};

fn load() -> Value {
    json!({ "calls": 3, "participants": 9, "capacity": 100, "sampled_at": 1_700_000_000_000_u64 })
}

fn ready() -> Value {
    json!({ "endpoint": "https://127.1.0.1:7443/media/g~c", "created": true, "boot_id": "b-1", "load": load() })
}

fn refusal(code: &str) -> Value {
    json!({ "request_id": "r-1", "error_code": code, "message": "no\nway", "boot_id": "b-2", "load": load() })
}

/// The error of an ensure against a server that always gives this answer.
async fn ensure_against(answer: ResponseTemplate) -> DriverError {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(answer).mount(&server).await;
    let driver = native(&lane(), &server.uri());
    let error = driver.ensure_room(room(&*driver, "c", 1, None), soon()).await.expect_err("must fail");
    let requests = server.received_requests().await.expect("recorded");
    assert_eq!(requests.len(), 1, "a driver never retries");
    error
}

#[tokio::test]
async fn ensure_sends_the_contract_and_reads_its_answer() {
    let server = MockServer::start().await;
    Mock::given(method("PUT"))
        .and(path("/v1/rooms/g~c"))
        .respond_with(ResponseTemplate::new(200).set_body_json(ready()))
        .expect(1)
        .mount(&server)
        .await;
    let driver = native(&lane(), &server.uri());
    let boot_id = Some(BootId::new("b-1").expect("valid id"));
    let answer = driver.ensure_room(room(&*driver, "c", 5, boot_id.clone()), soon()).await.expect("made");
    assert_eq!((&*answer.endpoint, answer.created), ("https://127.1.0.1:7443/media/g~c", true));
    assert_eq!((answer.boot_id, answer.load.map(|load| load.participants)), (boot_id.clone(), Some(9)));

    let requests = server.received_requests().await.expect("recorded");
    let sent: EnsureRoom = serde_json::from_slice(&requests[0].body).expect("the contract's body");
    assert_eq!((sent.fence.epoch, sent.fence.boot_id), (epoch(5), boot_id));
    assert_eq!((sent.syncer.as_str(), sent.op_id.as_str(), sent.capacity), ("syncer-1", "op-c-5", 10));
}

#[tokio::test]
async fn a_batch_that_is_not_answered_one_for_one_is_no_answer() {
    for results in [json!([]), json!([ready()]), json!([{ "result": "nothing" }, ready()])] {
        let server = MockServer::start().await;
        let answer = ResponseTemplate::new(200).set_body_json(json!({ "results": results }));
        Mock::given(method("POST")).and(path("/v1/rooms:batch")).respond_with(answer).expect(1).mount(&server).await;
        let driver = native(&lane(), &server.uri());
        let specs = ["a", "b"].map(|call| room(&*driver, call, 1, None)).to_vec();
        let error = driver.ensure_rooms(specs, soon()).await.expect_err("must fail");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(error.room_may_exist());
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let table = [
        (409, "fenced", ErrorKind::Fenced),
        (409, "restarted", ErrorKind::Restarted),
        (422, "rejected", ErrorKind::Rejected),
        (400, "invalid", ErrorKind::Rejected),
        (404, "not_found", ErrorKind::Rejected),
        (413, "too_large", ErrorKind::Rejected),
        (429, "overloaded", ErrorKind::Overloaded),
        (503, "overloaded", ErrorKind::Overloaded),
        (503, "draining", ErrorKind::Draining),
        (500, "internal", ErrorKind::Internal),
        (500, "a code of the future", ErrorKind::Internal),
        (429, "a code of the future", ErrorKind::Overloaded),
    ];
    for (status, code, kind) in table {
        let error = ensure_against(ResponseTemplate::new(status).set_body_json(refusal(code))).await;
        assert_eq!(error.kind(), kind, "{status} {code}");
        assert!(error.is_answer() && !error.is_time_out() && !error.is_dead_evidence(), "{status} {code}");
        assert_eq!(error.boot_id().map(BootId::as_str), Some("b-2"));
        assert!(error.load().is_some());
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn r07_a_fence_names_the_highest_term_seen() {
    let mut body = refusal("fenced");
    body["highest_term"] = json!({ "generation": 2, "revision": 9 });
    let error = ensure_against(ResponseTemplate::new(409).set_body_json(body)).await;
    assert_eq!(error.highest_term(), Some(OwnerTerm { generation: 2, revision: 9 }));
    assert_eq!(error.highest_epoch(), None);
}

#[tokio::test]
async fn retry_after_is_clamped_whatever_it_says() {
    let table = [
        (Some("7"), Some(7_000)),
        (Some("0"), Some(100)),
        (Some("-5"), Some(100)),
        (Some("86400"), Some(30_000)),
        (Some("99999999999999999999999999"), Some(30_000)),
        (Some("Wed, 21 Oct 2015 07:28:00 GMT"), Some(100)),
        (Some("soon"), None),
        (Some(""), None),
        (None, None),
    ];
    for (header, wait_ms) in table {
        for status in [429, 503] {
            let mut answer = ResponseTemplate::new(status).set_body_string("busy");
            if let Some(header) = header {
                answer = answer.insert_header("retry-after", header);
            }
            let error = ensure_against(answer).await;
            assert_eq!(error.kind(), ErrorKind::Overloaded, "{header:?}");
            assert_eq!(error.retry_after(), wait_ms.map(Duration::from_millis), "{header:?}");
        }
    }
}

#[tokio::test]
async fn statuses_without_a_body_of_ours_still_mean_something() {
    for (status, kind) in [
        (500, ErrorKind::Internal),
        (502, ErrorKind::Internal),
        (403, ErrorKind::Rejected),
        (404, ErrorKind::Protocol),
        (301, ErrorKind::Protocol),
    ] {
        let error = ensure_against(ResponseTemplate::new(status).set_body_string("<html>")).await;
        assert_eq!(error.kind(), kind, "{status}");
    }
}

#[tokio::test]
async fn nonsense_is_an_error_of_that_sfu_alone() {
    let json = "application/json";
    let wrong_endpoint = ready().to_string().replace("https://127", "https://\\u0007127");
    let long_endpoint = ready().to_string().replace("https://127", &format!("https://{}", "x".repeat(4000)));
    let table = [
        ("html", ResponseTemplate::new(200).set_body_string("<html>hello</html>")),
        ("empty", ResponseTemplate::new(200)),
        ("wrong type", ResponseTemplate::new(200).set_body_raw(ready().to_string(), "text/plain")),
        ("cut json", ResponseTemplate::new(200).set_body_raw(r#"{"endpoint":"#, json)),
        ("other json", ResponseTemplate::new(200).set_body_json(json!({ "hello": 1 }))),
        ("not utf-8", ResponseTemplate::new(200).set_body_raw(vec![0xff; 64], json)),
        ("deep json", ResponseTemplate::new(200).set_body_raw("[".repeat(50_000), json)),
        ("10 MB", ResponseTemplate::new(200).set_body_raw(vec![b' '; 10_000_000], json)),
        ("control character in the endpoint", ResponseTemplate::new(200).set_body_raw(wrong_endpoint, json)),
        ("endless endpoint", ResponseTemplate::new(200).set_body_raw(long_endpoint, json)),
        ("10 MB of error", ResponseTemplate::new(500).set_body_raw(vec![b' '; 10_000_000], json)),
    ];
    for (what, answer) in table {
        let error = ensure_against(answer).await;
        assert_eq!(error.kind(), ErrorKind::Protocol, "{what}: {error}");
        assert!(error.room_may_exist(), "{what}: the room may have been made");
        assert!(!error.is_dead_evidence(), "{what}");
        assert!(error.to_string().len() < 400, "{what}: {error}");
    }
}

#[tokio::test]
async fn lies_about_the_length_are_noticed() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length:";
    let body = ready().to_string();
    for length in [body.len() + 1000, body.len() - 5] {
        let url = raw_server(format!("{head} {length}\r\n\r\n{body}").into_bytes());
        let driver = native(&lane(), &url);
        let error = driver.ensure_room(room(&*driver, "c", 1, None), soon()).await.expect_err("must fail");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{length}: {error}");
    }
    let driver = native(&lane(), &raw_server(b"\x00\x01 this is not http\r\n\r\n".to_vec()));
    let error = driver.probe(false, soon()).await.expect_err("must fail");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn r13_refused_and_reset_on_a_fresh_connection_are_evidence() {
    let driver = native(&lane(), &closed_port());
    let error = driver.probe(true, soon()).await.expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.is_dead_evidence() && !error.room_may_exist());

    let driver = native(&lane(), &raw_server(Vec::new()));
    let error = driver.probe(true, soon()).await.expect_err("closed at once");
    assert_eq!(error.kind(), ErrorKind::Reset, "{error}");
    assert!(error.is_dead_evidence());
}

#[tokio::test]
async fn r13_a_time_out_alone_is_no_evidence() {
    let driver = native(&lane(), &silent_server());
    let error = driver.ensure_room(room(&*driver, "c", 1, None), shortly()).await.expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::TimedOutAfterSend, "{error}");
    assert!(error.is_time_out() && !error.is_dead_evidence() && error.room_may_exist());
}

#[tokio::test]
async fn who_waits_behind_others_for_an_sfu_that_is_silent_says_nothing_of_it_or_of_us() {
    let limits = LaneLimits { connections_per_origin_max: 1, ..LaneLimits::default() };
    let lane = Lane::builder("sfu").limits(limits).build().expect("good limits");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let driver = native(&lane, &format!("http://{}", listener.local_addr().expect("bound")));
    let second = async {
        let (mut stream, _) = listener.accept().await.expect("the only connection");
        assert!(stream.read(&mut [0; 1]).await.is_ok_and(|n| n == 1));
        driver.ensure_room(room(&*driver, "second", 1, None), shortly()).await.expect_err("no turn")
    };
    let error = tokio::select! {
        first = driver.ensure_room(room(&*driver, "first", 1, None), soon()) => panic!("nobody answers: {first:?}"),
        error = second => error,
    };
    assert_eq!(error.kind(), ErrorKind::Queued, "{error}");
    assert!(error.is_local() && !error.is_time_out() && !error.is_overload() && !error.room_may_exist());
}

#[tokio::test]
async fn ending_a_room_tells_what_became_of_it() {
    let ended = |what: &str| json!({ "ended": what, "boot_id": "b-1", "load": load() });
    let table = [
        (200, ended("destroyed"), Some(Ended::Destroyed)),
        (200, ended("was_absent"), Some(Ended::WasAbsent)),
        (409, refusal("occupied"), Some(Ended::Occupied)),
        (409, refusal("fenced"), None),
    ];
    for (status, body, expected) in table {
        let server = MockServer::start().await;
        Mock::given(method("DELETE"))
            .and(path("/v1/rooms/g~c"))
            .respond_with(ResponseTemplate::new(status).set_body_json(body))
            .mount(&server)
            .await;
        let driver = native(&lane(), &server.uri());
        let end = end(&room(&*driver, "c", 1, None), "end");
        assert_eq!(driver.end_room(end, true, soon()).await.ok(), expected);
        let requests = server.received_requests().await.expect("recorded");
        let sent: EndRoom = serde_json::from_slice(&requests[0].body).expect("the contract's body");
        assert!(sent.force && sent.fence.epoch == epoch(1));
    }
}

fn page(rooms: &[&str], next: Option<&str>) -> Value {
    let room = |room: &&str| {
        json!({ "room": room, "slot": 7, "epoch": { "term": { "generation": 1, "revision": 1 }, "n": 2 },
                "syncer": "syncer-2", "guild": "g", "participants": 1 })
    };
    json!({ "rooms": rooms.iter().map(room).collect::<Vec<_>>(), "next": next, "boot_id": "b-1", "load": load() })
}

#[tokio::test]
async fn lists_follow_their_pages_and_skip_foreign_rooms() {
    let server = MockServer::start().await;
    let answer = |body: Value| ResponseTemplate::new(200).set_body_json(body);
    Mock::given(path("/v1/rooms"))
        .and(query_param_is_missing("cursor"))
        .respond_with(answer(page(&["demo", "g~a"], Some("g~a"))))
        .mount(&server)
        .await;
    Mock::given(path("/v1/rooms"))
        .and(query_param("cursor", "g~a"))
        .respond_with(answer(page(&["g~b"], None)))
        .mount(&server)
        .await;
    let driver = native(&lane(), &server.uri());
    let list = driver.list_rooms(soon()).await.expect("listed");
    let calls: Vec<_> = list.rooms.iter().map(|room| room.call.as_ref().expect("known").as_str()).collect();
    assert_eq!(calls, ["a", "b"]);
    assert_eq!(list.rooms[0].epoch, Some(epoch(2)));
    let present = driver.participants(RoomId::new("g~b").expect("valid id"), soon()).await.expect("listed");
    assert_eq!(present, Some(1));
    let absent = driver.participants(RoomId::new("g~z").expect("valid id"), soon()).await.expect("listed");
    assert_eq!(absent, None);
}

#[tokio::test]
async fn a_list_that_never_ends_is_cut() {
    let server = MockServer::start().await;
    let answer = ResponseTemplate::new(200).set_body_json(page(&["g~a"], Some("g~a")));
    Mock::given(path("/v1/rooms")).respond_with(answer).mount(&server).await;
    let driver = native(&lane(), &server.uri());
    let error = driver.list_rooms(soon()).await.expect_err("the cursor stands still");
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert_eq!(server.received_requests().await.expect("recorded").len(), 2);
}

#[tokio::test]
async fn digests_carry_terms_and_hash() {
    let server = MockServer::start().await;
    let body = json!({ "matches": true, "boot_id": "b-1", "load": load() });
    Mock::given(method("POST"))
        .and(path("/v1/digest"))
        .respond_with(ResponseTemplate::new(200).set_body_json(body))
        .mount(&server)
        .await;
    let driver = native(&lane(), &server.uri());
    let slot = Slot::new(7).expect("valid slot");
    let terms = vec![SlotTerm { slot, term: epoch(1).term }];
    let digest = DigestSpec { boot_id: None, terms: terms.clone(), rooms: 1, hash: 0xab, named: None };
    let outcome = driver.digest(digest, soon()).await.expect("answered");
    assert!(matches!(outcome, DigestOutcome::Answer(answer) if answer.matches));
    let requests = server.received_requests().await.expect("recorded");
    let sent: Digest = serde_json::from_slice(&requests[0].body).expect("the contract's body");
    assert_eq!((sent.hash.as_str(), sent.terms), ("00000000000000ab", terms));
}

#[tokio::test]
async fn draining_is_ordered_and_checked() {
    let server = MockServer::start().await;
    let health = |draining: bool| {
        let body = json!({ "accepting": !draining, "draining": draining, "boot_id": "b-1", "load": load() });
        ResponseTemplate::new(200).set_body_json(body)
    };
    Mock::given(method("POST")).and(path("/v1/drain")).respond_with(health(true)).mount(&server).await;
    // This server does not take the order back.
    Mock::given(method("DELETE")).and(path("/v1/drain")).respond_with(health(true)).mount(&server).await;
    Mock::given(path("/v1/health")).respond_with(health(true)).mount(&server).await;
    let driver = native(&lane(), &server.uri());
    driver.set_draining(true, soon()).await.expect("taken");
    assert!(!driver.probe(false, soon()).await.expect("alive").accepting);
    let error = driver.set_draining(false, soon()).await.expect_err("not taken");
    assert_eq!(error.kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn a_credential_is_a_token_that_the_published_keys_verify() {
    let tokens = Arc::new(Signer::generate().expect("randomness"));
    let entry = "id = \"a-1\"\nurl = \"http://127.0.0.1:1\"\nregion = \"a\"\ncapacity = 1";
    let driver = built(&lane(), &tokens, entry);
    let room = RoomId::new("g~c").expect("valid id");
    let session = SessionId::new("s-1").expect("valid id");
    let request = CredentialRequest { session: &session, room: &room, epoch: epoch(4) };
    let credential = driver.credential(&request).expect("signed");
    assert_eq!(format!("{credential:?}"), "Credential(redacted)");

    let jwks = tokens.jwks();
    let key = jsonwebtoken::DecodingKey::from_ed_components(&jwks.keys[0].x).expect("a public key");
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::EdDSA);
    validation.set_audience(&["a-1"]);
    validation.set_issuer(&[ISSUER]);
    let claims = jsonwebtoken::decode::<Claims>(credential.into_token(), &key, &validation).expect("verifies").claims;
    assert_eq!((claims.sub.as_str(), claims.room.as_str(), claims.epoch.as_str()), ("s-1", "g~c", "1.1.4"));
}
