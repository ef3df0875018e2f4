//! Limits that are turned while connections are there: who comes later has the new ones, who was there keeps its own.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::h2::{PREFACE, SETTINGS, Seen, frame, get, half_body};
use super::{Target, read_out, write_some};
use crate::support::{Events, Fleet, answer, soon, until};

const HALF_HEAD: &str = "GET /livez HTTP/1.1\r\nhos";
const HALF_BODY: &str = "PUT /v1/guilds/g/calls/c/participants/s HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
const ASK: &str = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";

fn turn(fleet: &Fleet, levers: &Value) {
    let levers = levers.as_object().expect("names and values");
    let values = levers.iter().map(|(name, value)| (name.as_str(), value));
    fleet.syncers[0].engine().levers().set_all(values, "test", None, 0).expect("in range");
}

/// A client that says this and no more; what it is answered until the connection closes.
async fn stalls(target: &Target, bytes: &str) -> Vec<u8> {
    let mut stream = target.connect().await;
    write_some(&mut stream, bytes.as_bytes()).await;
    read_out(&mut stream).await
}

/// Each of the later ones ends before any of the earlier, though those began to stall first.
#[tokio::test(flavor = "multi_thread")]
async fn r20_time_outs_of_connections_turn_while_it_runs() {
    let target = Target::start("http/1.1").await;
    let limits = |time: &str| {
        json!({"http.handshake_timeout": time, "http.first_request_timeout": time, "http.head_timeout": time,
            "http.body_idle_timeout": time, "http.write_timeout": time, "http.answer_timeout": time})
    };
    turn(&target.fleet, &limits("60s"));
    let mut early = Vec::new();
    for bytes in ["", HALF_HEAD, ASK] {
        let mut stream = target.connect().await;
        write_some(&mut stream, bytes.as_bytes()).await;
        if bytes == ASK {
            soon("an answer", stream.read_u8()).await.expect("an answer");
        }
        early.push(stream);
    }
    let mut half_hello = target.tcp().await;
    half_hello.write_all(&[22, 3, 1, 2, 0, 1]).await.expect("written");
    // Connected is not accepted yet. Whoever asks is the fifth.
    until("all are accepted", || async { target.metric("trunkline_http_connections").await >= 5 }).await;
    let soon = |lever: &str| turn(&target.fleet, &json!({ lever: "1s" }));
    soon("http.handshake_timeout");
    let hello = read_out(&mut target.tcp().await).await;
    turn(&target.fleet, &json!({"http.handshake_timeout": "60s"}));
    soon("http.head_timeout");
    soon("http.body_idle_timeout");
    let (head, body) = tokio::join!(stalls(&target, HALF_HEAD), stalls(&target, HALF_BODY));
    soon("http.first_request_timeout");
    let silent = stalls(&target, "").await;
    turn(&target.fleet, &json!({"http.first_request_timeout": "60s"}));
    soon("http.idle_timeout");
    let asked = stalls(&target, ASK).await;
    turn(&target.fleet, &json!({"http.head_timeout": "60s", "http.idle_timeout": "60s"}));
    assert!(hello.is_empty() && silent.is_empty() && head.is_empty(), "no answer to what is no request");
    assert!(asked.starts_with(b"HTTP/1.1 200") && body.starts_with(b"HTTP/1.1 408"));
    for (why, count) in [("tls_timeout", 1), ("silent", 1), ("slow_head", 1)] {
        assert_eq!(target.refused(why).await, count, "{why}: those from before are not meant");
    }
    for mut stream in early {
        write_some(&mut stream, b"more").await;
        let read = tokio::time::timeout(Duration::from_millis(1), read_out(&mut stream)).await;
        assert!(read.is_err(), "it keeps the limits that it came with");
    }
}

/// What a new HTTP/2 connection is told first: its settings.
async fn streams_max(target: &Target) -> u32 {
    let mut stream = target.connect().await;
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.expect("written");
    let settings = soon("settings", async {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("a frame");
        assert_eq!(head[3], SETTINGS);
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await.expect("its payload");
        payload
    })
    .await;
    let max = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("SETTINGS_MAX_CONCURRENT_STREAMS");
    u32::from_be_bytes(max[2..].try_into().expect("four bytes"))
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_streams_of_a_connection_turn_while_it_runs() {
    let target = Target::start("h2").await;
    assert_eq!(streams_max(&target).await, 256);
    turn(&target.fleet, &json!({"http.streams_max": 3}));
    assert_eq!(streams_max(&target).await, 3);
}

/// Over HTTP/2 a body that does not come ends its request alone: by its silence or as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn r20_time_outs_of_bodies_over_http2_turn_while_it_runs() {
    let target = Target::start("h2").await;
    turn(&target.fleet, &json!({"http.request_timeout": "600s"}));
    for (idle, whole) in [("1s", "600s"), ("600s", "1s")] {
        turn(&target.fleet, &json!({"http.body_idle_timeout": idle, "http.body_timeout": whole}));
        let mut seen = Seen::open(&target, &half_body(1)).await;
        // A PING comes meanwhile if it takes long: the patience is for all of it.
        let given_up = soon("the request is given up", seen.next()).await;
        assert_eq!(given_up, (1, "408".to_owned()), "silence {idle}, whole {whole}");
        write_some(&mut seen.0, &get(3)).await;
        let next = loop {
            let (stream, what) = seen.next().await;
            if stream != 1 {
                break (stream, what);
            }
        };
        assert_eq!(next, (3, "200".to_owned()), "others on it are served");
    }
    assert_eq!(target.fleet.syncers[0].engine().status().calls, 0, "half a body is no join");
}

async fn ask(fleet: &Fleet) -> TcpStream {
    ask_at(fleet.syncers[0].addr()).await
}

async fn ask_at(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(ASK.as_bytes()).await.expect("written");
    stream
}

async fn is_answered(stream: &mut TcpStream) {
    let mut answer = [0; 4_096];
    let read = soon("an answer", stream.read(&mut answer)).await.expect("open");
    assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
}

/// Where nobody idles a stream makes room, so that nobody is locked out by a limit that is too low; a higher one has room
/// for all, and under one that is lowered again the idle make room for the next.
#[tokio::test(flavor = "multi_thread")]
async fn r20_places_turn_while_it_runs() {
    let fleet = Fleet::start(1, 1).await;
    turn(&fleet, &json!({"http.connections_max": 2}));
    let mut first = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    let _second = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    let mut newcomer = ask(&fleet).await;
    is_answered(&mut newcomer).await;
    soon("the first watch ends", first.ended()).await;
    turn(&fleet, &json!({"http.connections_max": 8}));
    let _again = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;

    let mut idle = vec![newcomer];
    for _ in 0..5 {
        let mut stream = ask(&fleet).await;
        is_answered(&mut stream).await;
        idle.push(stream);
    }
    turn(&fleet, &json!({"http.connections_max": 3}));
    let mut last = ask(&fleet).await;
    is_answered(&mut last).await;
    for mut stream in idle {
        assert!(read_out(&mut stream).await.is_empty(), "two work and the last asked: there is no place for it");
    }
    last.write_all(ASK.as_bytes()).await.expect("open");
    is_answered(&mut last).await;
}

/// On the listener of operators the longest idle makes room too, so that nobody is locked out there.
#[tokio::test(flavor = "multi_thread")]
async fn r20_places_of_operators_turn_while_it_runs() {
    let fleet = Fleet::start_with(1, 1, |c| c.admin_listen = Some("127.0.0.1:0".parse().expect("an address"))).await;
    let address = fleet.syncers[0].admin_addr().expect("listens");
    let mut idle = VecDeque::new();
    for _ in 0..9 {
        let mut stream = ask_at(address).await;
        is_answered(&mut stream).await;
        idle.push_back(stream);
    }
    turn(&fleet, &json!({"http.admin_connections_max": 9}));
    for _ in 0..3 {
        let mut newcomer = ask_at(address).await;
        is_answered(&mut newcomer).await;
        let mut longest = idle.pop_front().expect("nine");
        assert!(read_out(&mut longest).await.is_empty(), "there is no place for it");
        idle.push_back(newcomer);
    }
    assert!(fleet.syncers[0].engine().levers().set("http.admin_connections_max", &1.into(), "test", None, 0).is_err());
    for mut stream in idle {
        stream.write_all(ASK.as_bytes()).await.expect("open");
        is_answered(&mut stream).await;
    }
}

/// Seconds that callers are told to wait, where nobody can say when it is their turn.
async fn waits(fleet: &Fleet, path: &str) -> Vec<u64> {
    let mut waits = Vec::new();
    for _ in 0..30 {
        let answer = fleet.request(0, Method::PUT, path).body("{}").send().await.expect("an answer");
        assert!(answer.status() == 503 || answer.status() == 429, "{}", answer.status());
        waits.push(answer.headers()["retry-after"].to_str().expect("text").parse().expect("whole seconds"));
    }
    waits
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_the_span_of_retry_after_turns_while_it_runs() {
    let mut fleet = Fleet::start(2, 1).await;
    let path = |guild: String| format!("/v1/guilds/{guild}/calls/c/participants/s");
    let (here, there) = (path(fleet.guild_of(0)), path(fleet.guild_of(1)));
    drop(fleet.syncers.remove(1));
    // Without a slot of its own: after a second at least.
    for (span, seen) in [("1s", 1..=7), ("30s", 8..=31)] {
        turn(&fleet, &json!({"admission.retry_span_min": span}));
        let longest = waits(&fleet, &there).await.into_iter().max().expect("some");
        assert!(seen.contains(&longest), "{span}: {longest}");
    }
    // With one: as late as slots go, since what is blocked will be for long.
    turn(&fleet, &json!({"admission.block.joins": true, "admission.block.new_calls": true}));
    let mut tried = 0;
    until("the block", || {
        tried += 1; // another session each time: one that is in its call is not asked
        let request = fleet.request(0, Method::PUT, &format!("{here}-{tried}")).body("{}");
        async { answer(request).await.0 == 429 }
    })
    .await;
    for (span, seen) in [("1s", 30..=31), ("20s", 27..=29)] {
        turn(&fleet, &json!({"admission.retry_span_min": span}));
        until(span, || async { seen.contains(waits(&fleet, &here).await.iter().min().expect("some")) }).await;
    }
}
