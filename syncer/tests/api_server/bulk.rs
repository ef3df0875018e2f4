//! The bulk road.

use std::time::Duration;

use reqwest::{Body, Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{Fleet, soon};

fn line(op: &str, what: &str, guild: &str, call: &str, session: &str) -> String {
    json!({ "op": op, "do": what, "guild": guild, "call": call, "session": session }).to_string() + "\n"
}

async fn results(response: reqwest::Response) -> Vec<Value> {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let text = response.text().await.expect("a body");
    text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_fails_that_line_only() {
    let fleet = Fleet::start(1, 1).await;
    let body = [
        line("o1", "join", "g", "c", "s1"),
        "not json\n".to_owned(),
        "{\"op\":\"o3\",\"do\":\"dance\"}\n".to_owned(),
        format!("{}\n", "x".repeat(9_000)),
        line("o5", "join", &"g".repeat(129), "c", "s"),
        line("o6", "join", "g", "c", "s2"),
        line("o7", "leave", "g", "c", "s1"),
        "\n".to_owned(),
        line("o8", "leave", "g", "nowhere", "s1"),
        "[\"o9\",\"join\",\"g\",\"list\",\"s\"]\n".to_owned(),
    ];
    let sent = fleet.request(0, Method::POST, "/v1/voice-states").body(body.concat()).send();
    let results = results(sent.await.expect("an answer")).await;
    let seen: Vec<_> = results.iter().map(|r| (r["op"].as_str(), r["status"].as_u64().expect("a status"))).collect();
    let want = [
        (Some("o1"), 200),
        (None, 400),
        (Some("o3"), 400),
        (None, 400),
        (Some("o5"), 400),
        (Some("o6"), 200),
        (Some("o7"), 200),
        (Some("o8"), 200),
        (None, 400),
    ];
    assert_eq!(seen, want, "{results:?}");
    let (_, call) = fleet.get(0, "/v1/guilds/g/calls/c").await;
    assert_eq!(call["participants"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_told_again_without_a_token_gets_everything_else() {
    let fleet = Fleet::start(1, 1).await;
    let placed = fleet.join_until_placed(0, "g", "c", "s").await;
    let with = line("o1", "join", "g", "c", "s");
    let without = with.replace('}', ",\"token\":false}");
    let sent = fleet.request(0, Method::POST, "/v1/voice-states").body(with + &without).send();
    let results = results(sent.await.expect("an answer")).await;
    assert!(results[0]["token"].is_string() && results[1]["token"].is_null(), "{results:?}");
    assert!(results.iter().all(|r| r["endpoint"] == placed["endpoint"]), "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn results_stream_while_operations_still_come() {
    let fleet = Fleet::start(1, 1).await;
    for client in [Client::builder().http1_only(), Client::builder().http2_prior_knowledge()] {
        let client = client.build().expect("a client");
        let (to, body) = mpsc::channel::<Result<String, std::io::Error>>(1);
        let request = client.post(fleet.url(0, "/v1/voice-states")).bearer_auth("gw-1");
        let request = request.body(Body::wrap_stream(ReceiverStream::new(body)));
        to.send(Ok(line("o1", "join", "g", "c", "s"))).await.expect("taken");
        let mut response = soon("the head", request.send()).await.expect("an answer");
        for n in 1..4 {
            let chunk = soon("a result", response.chunk()).await.expect("open").expect("not ended");
            let result: Value = serde_json::from_slice(&chunk).expect("one result a line");
            assert_eq!((result["op"].as_str(), &result["status"]), (Some(&*format!("o{n}")), &json!(200)));
            let next = line(&format!("o{}", n + 1), "join", "g", "c", "s");
            to.send(Ok(next)).await.expect("taken");
        }
        drop(to);
        while soon("the end", response.chunk()).await.expect("open").is_some() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_line_keeps_no_result_back() {
    let fleet = Fleet::start(1, 1).await;
    let (to, body) = mpsc::channel::<Result<String, std::io::Error>>(2);
    let client = Client::builder().http2_prior_knowledge().build().expect("a client");
    let request = client.post(fleet.url(0, "/v1/voice-states")).bearer_auth("gw-1");
    let request = request.body(Body::wrap_stream(ReceiverStream::new(body)));
    let mut rest = String::new();
    let mut response = None;
    let mut request = Some(request);
    for n in 0..50 {
        // A line is whole, and of the next there is half, in a frame of its own.
        to.send(Ok(rest + &line(&format!("a{n}"), "join", "g", "c", "s"))).await.expect("taken");
        let next = line(&format!("b{n}"), "join", "g", "c", "s");
        let (half, end) = next.split_at(next.len() / 2);
        to.send(Ok(half.to_owned())).await.expect("taken");
        rest = end.to_owned();
        if let Some(request) = request.take() {
            response = Some(soon("the head", request.send()).await.expect("an answer"));
        }
        let response = response.as_mut().expect("it was sent");
        let mut text = String::new();
        while !text.contains(&format!("\"a{n}\"")) {
            let chunk = soon("the result", response.chunk()).await.expect("open").expect("not ended");
            text += std::str::from_utf8(&chunk).expect("text");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_other_owners_are_forwarded_in_order_or_refused() {
    let fleet = Fleet::start(3, 2).await;
    let guilds: Vec<String> = (0..3).flat_map(|n| fleet.guilds_of(n).take(20)).collect();
    let mut body = String::new();
    let mut want = Vec::new();
    for (n, guild) in guilds.iter().enumerate() {
        for (step, what) in ["join", "leave", "join"].iter().enumerate() {
            let op = format!("{n}.{step}");
            body += &line(&op, what, guild, "c", "s");
            want.push(op);
        }
    }
    let sent = fleet.request(0, Method::POST, "/v1/voice-states").body(body.clone()).send();
    let answers = results(sent.await.expect("an answer")).await;
    assert!(answers.iter().all(|r| r["status"] == 200), "{answers:?}");
    let mut ops: Vec<String> = answers.iter().map(|r| r["op"].as_str().expect("an op").to_owned()).collect();
    for n in 0..guilds.len() {
        let prefix = format!("{n}.");
        let of_session: Vec<_> = ops.iter().filter(|o| o.starts_with(&prefix)).cloned().collect();
        assert_eq!(of_session, [format!("{n}.0"), format!("{n}.1"), format!("{n}.2")], "in the session's order");
    }
    ops.sort_unstable();
    want.sort_unstable();
    assert_eq!(ops, want, "every operation has one result");
    for (n, syncer) in fleet.syncers.iter().enumerate() {
        assert_eq!(syncer.engine().status().calls, 20, "syncer {n}");
    }

    let sent = fleet.request(0, Method::POST, "/v1/voice-states").header("prefer", "redirect").body(body).send();
    let answers = results(sent.await.expect("an answer")).await;
    let refused: Vec<_> = answers.iter().filter(|r| r["status"] == 421).collect();
    assert_eq!(refused.len(), 120, "two thirds are others'");
    let urls = [fleet.syncers[1].url(), fleet.syncers[2].url()];
    assert!(refused.iter().all(|r| urls.contains(&r["owner"].as_str().expect("an owner"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn minimal_results_are_shared_by_lines_that_follow_each_other() {
    let fleet = Fleet::start(2, 2).await;
    let guilds: Vec<String> = (0..2).flat_map(|n| fleet.guilds_of(n).take(1)).collect();
    let [ours, theirs] = &guilds[..] else { panic!("two syncers own guilds") };
    let join = |op: &str, guild: &str| line(op, "join", guild, op, "s"); // a new call: there is no endpoint to tell
    let body = [
        join("1", ours),
        join("2", ours),
        "\n".to_owned(),
        join("3", ours),
        "not json\n".to_owned(),
        join("4", ours),
        join("5", theirs),
        join("6", ours),
        join("7", ours),
        line("8", "leave", ours, "1", "s"),
    ];
    let sent = fleet.request(0, Method::POST, "/v1/voice-states").header("prefer", "return=minimal");
    let response = sent.body(body.concat()).send().await.expect("an answer");
    assert_eq!(response.headers()["preference-applied"], "return=minimal");
    let results = results(response).await;
    let (of_theirs, of_ours): (Vec<_>, Vec<_>) = results.into_iter().partition(|r| r["op"] == "5");
    assert_eq!(of_theirs.iter().map(|r| &r["status"]).collect::<Vec<_>>(), [200]);
    assert_eq!(of_ours.len(), 4, "{of_ours:?}");
    assert_eq!(of_ours[0], json!({"op": "1", "status": 200, "through": "3", "lines": 3}));
    assert_eq!((&of_ours[1]["status"], &of_ours[1]["op"]), (&json!(400), &Value::Null));
    assert_eq!(of_ours[2], json!({"op": "4", "status": 200}), "the next line is another owner's");
    assert_eq!(of_ours[3], json!({"op": "6", "status": 200, "through": "8", "lines": 3}));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_its_results_is_not_read_either() {
    let fleet = Fleet::start(1, 1).await;
    let mut stream = tokio::net::TcpStream::connect(fleet.syncers[0].addr()).await.expect("connects");
    let head = "POST /v1/voice-states HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("written");
    // Each of these lines of 2 bytes is answered with more than 100.
    let chunk = format!("{:x}\r\n{}\r\n", 2 * 8_192, "x\n".repeat(8_192));
    let mut sent = 0;
    let stalled = async {
        while sent < 64 << 20 {
            if tokio::time::timeout(Duration::from_secs(3), stream.write_all(chunk.as_bytes())).await.is_err() {
                return true;
            }
            sent += chunk.len();
        }
        false
    };
    assert!(soon("the stall", stalled).await, "64 MiB were taken while nothing was read");
    let (status, _) = fleet.get(0, "/v1/status").await;
    assert_eq!(status, StatusCode::OK, "others are served meanwhile");
}
