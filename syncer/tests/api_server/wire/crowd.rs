//! More connections than there are places: who does nothing for anybody makes room.

use std::time::Duration;

use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::h2::{PREFACE, SETTINGS, Seen, frame, get};
use super::read_out;
use crate::support::{Events, Fleet, soon, until};

const PLACES: usize = 8;
const ASK: &str = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
const HALF_BODY: &str = "PUT /v1/guilds/g/calls/c/participants/s HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
/// Much less than half a body (10 s), silence (10 s) or an idle connection (75 s) may take.
const AT_ONCE: Duration = Duration::from_secs(4);

async fn crowded() -> Fleet {
    Fleet::start_with(1, 1, |c| drop(c.limits.insert("http.connections_max".into(), (PLACES as i64).into()))).await
}

async fn connect(fleet: &Fleet) -> TcpStream {
    TcpStream::connect(fleet.syncers[0].addr()).await.expect("connects")
}

/// So many connections that each send this.
async fn crowd(fleet: &Fleet, count: usize, bytes: &str) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = connect(fleet).await;
        stream.write_all(bytes.as_bytes()).await.expect("written");
        streams.push(stream);
    }
    streams
}

/// The next answer on this connection begins so.
async fn answers(stream: &mut TcpStream, begins: &str) {
    let mut answer = [0; 4_096];
    let read = timeout(AT_ONCE, stream.read(&mut answer)).await.expect("an answer at once");
    let text = String::from_utf8_lossy(&answer[..read.expect("open")]).into_owned();
    assert!(text.starts_with(begins), "{text:?}");
}

async fn a_newcomer_is_served(fleet: &Fleet) {
    let mut stream = connect(fleet).await;
    stream.write_all(ASK.as_bytes()).await.expect("written");
    answers(&mut stream, "HTTP/1.1 200").await;
}

/// Newcomers are served at the cost of those who are counted so, once the syncer has read what these sent.
async fn displaces(fleet: &Fleet, why: &str) {
    let line = format!("trunkline_http_connections_refused_total{{why=\"{why}\"}} ");
    until(why, || async {
        a_newcomer_is_served(fleet).await;
        let answer = fleet.client.get(fleet.url(0, "/metrics")).send().await.expect("an answer");
        answer.text().await.expect("text").lines().any(|l| l.starts_with(&line))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r19_a_crowd_of_half_bodies_keeps_nobody_out() {
    let fleet = crowded().await;
    let mut halves = crowd(&fleet, 3 * PLACES, HALF_BODY).await;
    a_newcomer_is_served(&fleet).await;
    let closed = soon("the oldest is gone", read_out(&mut halves[0])).await;
    assert!(closed.is_empty(), "{}", String::from_utf8_lossy(&closed));
    displaces(&fleet, "crowded_out_slow").await;
    assert_eq!(fleet.syncers[0].engine().status().calls, 0, "half a body is no join");
}

#[tokio::test(flavor = "multi_thread")]
async fn r19_a_crowd_that_asked_once_and_idles_keeps_nobody_out() {
    let fleet = crowded().await;
    let mut idle = Vec::new();
    for _ in 0..3 * PLACES {
        let mut stream = crowd(&fleet, 1, ASK).await.remove(0);
        answers(&mut stream, "HTTP/1.1 200").await;
        idle.push(stream);
    }
    a_newcomer_is_served(&fleet).await;
    assert!(soon("the oldest is gone", read_out(&mut idle[0])).await.is_empty());
    idle[3 * PLACES - 2].write_all(ASK.as_bytes()).await.expect("written");
    answers(&mut idle[3 * PLACES - 2], "HTTP/1.1 200").await; // the youngest but one is still there
    displaces(&fleet, "crowded_out_idle").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r19_who_makes_room_over_http2_is_told_to_go() {
    let fleet = crowded().await;
    let mut idle = Seen(connect(&fleet).await);
    let asks = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &get(1)].concat();
    idle.0.write_all(&asks).await.expect("written");
    assert_eq!(idle.next().await, (1, "200".to_owned()));
    let _crowd = crowd(&fleet, 3 * PLACES, ASK).await;
    assert_eq!([idle.next().await.1, idle.next().await.1], ["goaway 0", "closed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn r19_watches_and_bulk_streams_stay_whatever_crowd_comes() {
    let fleet = crowded().await;
    let mut watch = Events::open(fleet.request(0, Method::GET, "/v1/watch")).await;
    let mut bulk = connect(&fleet).await;
    let head =
        "POST /v1/voice-states HTTP/1.1\r\nhost: x\r\nauthorization: Bearer gw-1\r\ntransfer-encoding: chunked\r\n\r\n";
    bulk.write_all(head.as_bytes()).await.expect("written");
    answers(&mut bulk, "HTTP/1.1 200").await;
    for (round, bytes) in ["", HALF_BODY, ASK].into_iter().enumerate() {
        let _crowd = crowd(&fleet, 3 * PLACES, bytes).await;
        a_newcomer_is_served(&fleet).await;
        let call = format!("c{round}");
        let line = format!(r#"{{"op":"{call}","do":"join","guild":"g","call":"{call}","session":"s"}}"#) + "\n";
        bulk.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await.expect("the stream is open");
        let endpoint = watch.of_call("g", &call).await;
        assert!(endpoint["endpoint"].is_string(), "{endpoint}");
    }
}
