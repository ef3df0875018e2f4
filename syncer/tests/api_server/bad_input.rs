//! Bad input over real sockets, a test for each kind: its status, one shape, and no effect.

use reqwest::{Body, Method, RequestBuilder, StatusCode};
use serde_json::json;

use crate::support::{Fleet, answer};

const PARTICIPANT: &str = "/v1/guilds/g/calls/c/participants/s";

/// The request is refused with this status and code, and leaves no call behind.
async fn refused(fleet: &Fleet, what: &str, request: RequestBuilder, status: StatusCode, code: &str) -> String {
    let (got, body) = answer(request).await;
    assert_eq!((got, &body["error_code"]), (status, &json!(code)), "{what}: {body}");
    assert!(body["request_id"].is_string(), "{what}: {body}");
    assert_eq!(fleet.get(0, "/v1/status").await.1["calls"], 0, "{what}: it had an effect");
    body["message"].as_str().unwrap_or_else(|| panic!("{what}: {body}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_json_is_400_on_every_route_with_a_body() {
    let fleet = Fleet::start(1, 1).await;
    for (method, path) in [
        (Method::PUT, PARTICIPANT),
        (Method::PUT, "/v1/gateways/gw-1"),
        (Method::PATCH, "/v1/levers"),
        (Method::POST, "/v1/guilds/g/calls/c:report"),
    ] {
        for bytes in [&b"{"[..], b"[]", b"\xff\xfe", b"{\"no_such_key\":1}", b"{} {}"] {
            let request = fleet.request(0, method.clone(), path).body(bytes);
            let (status, body) = answer(request).await;
            // `no_such_key` is a lever by its place, and a wrong one.
            let wanted: &[u16] = if path == "/v1/levers" { &[400, 422] } else { &[400] };
            assert!(wanted.contains(&status.as_u16()), "{method} {path} {bytes:?}: {status} {body}");
            assert!(body["message"].is_string(), "{method} {path} {bytes:?}: {body}");
        }
    }
    assert_eq!(fleet.get(0, "/v1/status").await.1["calls"], 0, "nothing of it had an effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_body_is_413_whether_it_says_its_length_or_not() {
    let fleet = Fleet::start(1, 1).await;
    let big = || vec![b' '; 64 * 1024 + 1];
    let said = fleet.request(0, Method::PUT, PARTICIPANT).body(big());
    refused(&fleet, "said", said, StatusCode::PAYLOAD_TOO_LARGE, "too_large").await;
    let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(big())]);
    let unsaid = fleet.request(0, Method::PUT, PARTICIPANT).body(Body::wrap_stream(stream));
    refused(&fleet, "unsaid", unsaid, StatusCode::PAYLOAD_TOO_LARGE, "too_large").await;
    let fits = fleet.request(0, Method::PUT, PARTICIPANT).body([b"{}".to_vec(), vec![b' '; 64 * 1024 - 2]].concat());
    assert_eq!(answer(fits).await.0, StatusCode::OK, "the limit itself is allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_call_is_404() {
    let fleet = Fleet::start(1, 1).await;
    let report = json!({ "session": "s", "kind": "media_failed" });
    for (what, request) in [
        ("get", fleet.request(0, Method::GET, "/v1/guilds/g/calls/nowhere")),
        ("explain", fleet.request(0, Method::GET, "/v1/guilds/g/calls/nowhere:explain")),
        ("report", fleet.request(0, Method::POST, "/v1/guilds/g/calls/nowhere:report").json(&report)),
    ] {
        refused(&fleet, what, request, StatusCode::NOT_FOUND, "not_found").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_too_long_or_hold_control_characters_are_400_wherever_they_stand() {
    let fleet = Fleet::start(1, 1).await;
    let bad = ["x".repeat(129), "a%00b".into(), "a%0Ab".into(), "a%7Fb".into(), "%C2%85".into(), "%FF".into()];
    for id in &bad {
        for (method, path) in [
            (Method::PUT, format!("/v1/guilds/{id}/calls/c/participants/s")),
            (Method::PUT, format!("/v1/guilds/g/calls/{id}/participants/s")),
            (Method::PUT, format!("/v1/guilds/g/calls/c/participants/{id}")),
            (Method::DELETE, format!("/v1/guilds/g/calls/c/participants/{id}")),
            (Method::GET, format!("/v1/guilds/g/calls/{id}")),
            (Method::POST, format!("/v1/sfus/{id}:cordon")),
        ] {
            let what = format!("{method} {path}");
            let request = fleet.request(0, method, &path).body("{}");
            refused(&fleet, &what, request, StatusCode::BAD_REQUEST, "invalid").await;
        }
    }
    let body = json!({ "region": "x".repeat(129) });
    let region = fleet.request(0, Method::PUT, PARTICIPANT).json(&body);
    refused(&fleet, "region", region, StatusCode::BAD_REQUEST, "invalid").await;
    let longest = format!("/v1/guilds/{}/calls/c/participants/s", "x".repeat(128));
    assert_eq!(answer(fleet.request(0, Method::PUT, &longest).body("{}")).await.0, StatusCode::OK, "128 are allowed");
}
