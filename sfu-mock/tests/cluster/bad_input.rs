//! What a node makes of requests that no caller should send.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sfu_api::REQUEST_BODY_BYTES_MAX;

use crate::{Bench, ensure, fenced};

#[tokio::test]
async fn malformed_requests_get_an_error_of_the_contract() {
    let bench = Bench::new(1).await;
    let with = |mut body: Value, key: &str, value: Value| {
        body[key] = value;
        body.to_string()
    };
    let long = "x".repeat(129);
    let room = "/v1/rooms/r";
    let (put, post, delete, get) = (Method::PUT, Method::POST, Method::DELETE, Method::GET);
    let higher = json!({"term": {"generation": 2, "revision": 1}, "n": 1});
    let cases: Vec<(&Method, String, String, u16)> = vec![
        (&put, room.into(), "{".into(), 400),
        (&put, room.into(), String::new(), 400),
        (&put, room.into(), "[]".into(), 400),
        (&put, room.into(), "\u{0}".into(), 400),
        (&put, room.into(), with(ensure("o", 1, 1), "slot", json!(4096)), 400),
        (&put, room.into(), with(ensure("o", 1, 1), "slot", json!(-1)), 400),
        (&put, room.into(), with(ensure("o", 1, 1), "op_id", json!("")), 400),
        (&put, room.into(), with(ensure("o", 1, 1), "guild", json!(long)), 400),
        (&put, room.into(), with(ensure("o", 1, 1), "guild", json!("a\nb")), 400),
        (&put, room.into(), with(ensure("o", 1, 1), "kind", json!("video")), 400),
        (&put, room.into(), with(ensure("o", 1, 1), "epoch", higher), 400),
        (&put, room.into(), with(ensure("o", 1, 1), "owner_term", Value::Null), 400),
        (&put, format!("/v1/rooms/{long}"), ensure("o", 1, 1).to_string(), 400),
        (&put, "/v1/rooms/a%0Ab".into(), ensure("o", 1, 1).to_string(), 400),
        (&put, "/v1/rooms/%FF".into(), ensure("o", 1, 1).to_string(), 400),
        (&put, "/v1/rooms/".into(), ensure("o", 1, 1).to_string(), 400),
        (&put, "/v1/rooms/a/b".into(), ensure("o", 1, 1).to_string(), 404),
        (&delete, room.into(), "{}".into(), 400),
        (&delete, room.into(), with(fenced("o", 1, 1), "force", json!("yes")), 400),
        (&post, "/v1/rooms:batch".into(), r#"{"operations":[]}"#.into(), 400),
        (&post, "/v1/rooms:batch".into(), r#"{"operations":[{"do":"dance"}]}"#.into(), 400),
        (&post, "/v1/digest".into(), r#"{"syncer":"s","terms":[],"rooms":0,"hash":"xyz"}"#.into(), 400),
        (&post, "/v1/digest".into(), r#"{"syncer":"s","terms":[],"rooms":-1,"hash":"0"}"#.into(), 400),
        (&get, "/v1/rooms?cursor=".into(), String::new(), 400),
        (&get, "/v1/rooms?owner=a%20b".into(), String::new(), 400),
        (&get, "/v1/nothing".into(), String::new(), 404),
        (&get, "/".into(), String::new(), 404),
        (&post, room.into(), String::new(), 405),
        (&put, "/v1/health".into(), String::new(), 405),
    ];
    for (method, path, body, status) in cases {
        for client in [&bench.h1, &bench.h2] {
            let request = client.request(method.clone(), format!("{}{path}", bench.node(0).url)).body(body.clone());
            let answer = request.send().await.expect("an answer");
            assert_eq!(answer.status().as_u16(), status, "{method} {path} {body}");
            assert_eq!(answer.status() == StatusCode::METHOD_NOT_ALLOWED, answer.headers().contains_key("allow"));
            let error: sfu_api::ErrorAnswer = answer.json().await.expect("an error of the contract");
            assert!(!error.message.is_empty() && !error.request_id.is_empty());
        }
    }
    assert_eq!(bench.node(0).rooms, 0);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_one_at_it_is_read() {
    let bench = Bench::new(1).await;
    for client in [&bench.h1, &bench.h2] {
        let send = async |bytes: usize| {
            let request = client.put(format!("{}/v1/rooms/r", bench.node(0).url)).body(vec![b' '; bytes]);
            // The server may answer and close before all of it was sent; only an answer counts.
            request.send().await.map(|answer| answer.status())
        };
        assert_eq!(send(REQUEST_BODY_BYTES_MAX).await.expect("an answer"), StatusCode::BAD_REQUEST);
        match send(REQUEST_BODY_BYTES_MAX + 1).await {
            Ok(status) => assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE),
            Err(error) => assert!(error.is_request() || error.is_body(), "{}", crate::whole(&error)),
        }
    }
    assert_eq!(bench.get(0, "/v1/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_request_id_is_echoed() {
    let bench = Bench::new(1).await;
    let answer = bench.request(Method::GET, 0, "/v1/nothing").header("x-request-id", "abc").send().await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.headers()["x-request-id"], "abc");
    assert_eq!(answer.json::<Value>().await.expect("JSON")["request_id"], "abc");
}

#[tokio::test]
async fn ids_beyond_ascii_travel_through_paths_and_endpoints() {
    let bench = Bench::new(1).await;
    let (status, ready) = bench.ensure(0, "caf%C3%A9%2F1", &ensure("o", 1, 1)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(ready["endpoint"].as_str().is_some_and(|e| e.ends_with("/media/caf%C3%A9%2F1")), "{ready}");
    let rooms = bench.cluster.rooms(&bench.id(0)).expect("known");
    assert_eq!(rooms[0].room.as_str(), "café/1");
}
