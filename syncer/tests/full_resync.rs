//! A gateway with many sessions tells everything again, over HTTPS, in one stream and a round.
//!
//! By default at a size that fits a test run. With `TRUNKLINE_FULL=1` (in a release build) with 200,000 sessions.

#[path = "api_server/support.rs"]
#[allow(dead_code, reason = "another test's support")]
mod support;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use reqwest::{Body, Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use sfu_mock::ClusterConfig;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;

use self::support::{Fleet, PATIENCE, answer, verifying};

/// The gateway of [`Fleet::request`].
const GATEWAY: &str = "gw-1";
/// Its sessions in each call.
const OF_EACH: usize = 4;
/// Of so many sessions one is forgotten.
const ONE_OF: usize = 100;
/// Lines in a piece of the stream.
const LINES: usize = 100;
/// How long what was not told again is kept.
const WINDOW: Duration = Duration::from_secs(2);
/// Silence after which the gateway would have vanished, and how often it beats.
const ALIVE_FOR: Duration = Duration::from_secs(5);
const BEAT_EVERY: Duration = Duration::from_millis(500);
/// Longer than the whole test takes at full size.
const LONG: Duration = Duration::from_secs(300);

fn is_full() -> bool {
    std::env::var_os("TRUNKLINE_FULL").is_some()
}

fn sessions() -> usize {
    if is_full() { 200_000 } else { 5_000 }
}

/// The results of one stream, as they come.
struct Results {
    response: Response,
    text: String,
}

// === impl Results ===

impl Results {
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let result = serde_json::from_str(line).expect("JSON");
                self.text = rest.to_owned();
                return Some(result);
            }
            let chunk = self.response.chunk().await.expect("a whole answer")?;
            self.text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
    }
}

/// How the process that beats begins and ends a round.
const MARKS: [&str; 2] = ["{\"do\":\"sync\",\"incarnation\":\"i\"}\n", "{\"do\":\"synced\",\"incarnation\":\"i\"}\n"];

/// The gateway tells these sessions in one round. Returns of each whether that was a repetition.
async fn tell(fleet: &Fleet, client: &Client, people: &[usize]) -> Vec<bool> {
    let (to, body) = mpsc::channel::<Result<String, Infallible>>(1);
    to.send(Ok(MARKS[0].to_owned())).await.expect("room");
    let request = client.post(fleet.url(0, "/v1/voice-states")).bearer_auth(GATEWAY);
    let response = request.body(Body::wrap_stream(ReceiverStream::new(body))).send().await.expect("an answer");
    let mut results = Results { response, text: String::new() };
    let began = results.next().await.expect("what `sync` is answered, before anything is told");
    assert!(began["status"] == 200 && began["round"].is_u64(), "{began}");

    let writing = async {
        for people in people.chunks(LINES) {
            let mut text = String::new();
            for nth in people {
                let call = nth / OF_EACH;
                let line = json!({ "do": "join", "guild": format!("g{call}"), "call": format!("c{call}"),
                    "session": format!("s{nth}"), "seq": 7, "token": false });
                writeln!(text, "{line}").expect("a string takes all");
            }
            to.send(Ok(text)).await.expect("it is read");
        }
        to.send(Ok(MARKS[1].to_owned())).await.expect("it is read");
        drop(to);
    };
    let reading = async {
        let mut ignored = Vec::new();
        for _ in people {
            let result = results.next().await.expect("a result for each");
            assert_eq!(result["status"], 200, "{result}");
            ignored.push(result["ignored"] == true);
        }
        let ended = results.next().await.expect("what `synced` is answered");
        assert_eq!((&ended["status"], &ended["round"]), (&json!(200), &began["round"]), "{ended}");
        assert_eq!(results.next().await, None);
        ignored
    };
    tokio::join!(writing, reading).1
}

async fn status(fleet: &Fleet) -> Value {
    fleet.get(0, "/v1/status").await.1
}

/// How many are in calls, and how many have expired ever.
async fn count(fleet: &Fleet) -> (usize, usize) {
    let status = status(fleet).await;
    assert_eq!(status["invariant_violations"], 0, "{status}");
    let of = |key: &str| status[key].as_u64().and_then(|count| usize::try_from(count).ok()).expect("a count");
    (of("participants"), of("sessions_expired_total"))
}

/// Waits for what takes as long as the size is large.
async fn in_time(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + if is_full() { LONG } else { PATIENCE };
    while !is_so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Beats, for ever: it is always known.
async fn beats(fleet: &Fleet) {
    loop {
        let beat =
            fleet.request(0, Method::PUT, &format!("/v1/gateways/{GATEWAY}")).json(&json!({ "incarnation": "i" }));
        let (status, body) = answer(beat).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        sleep(BEAT_EVERY).await;
    }
}

/// Tells everything, tells it again, then all but some, and everything once more.
async fn rounds(fleet: &Fleet) {
    let client = verifying(fleet.dir.path(), LONG);
    let all: Vec<usize> = (0..sessions()).collect();
    let first = tell(fleet, &client, &all).await;
    assert!(first.iter().all(|ignored| !ignored), "all are new");
    in_time("all calls are placed", async || status(fleet).await["placed"] == all.len() / OF_EACH).await;

    let again = tell(fleet, &client, &all).await;
    assert!(again.iter().all(|ignored| *ignored), "by (session, seq) it is a repetition");
    assert_eq!(count(fleet).await, (all.len(), 0));

    // Rounds are cleared in their order, so when those have gone whom the next one forgets, all have gone whom this one
    // put out of date: nobody.
    let (forgotten, kept): (Vec<_>, Vec<_>) = all.iter().partition(|nth| **nth % ONE_OF == 0);
    tell(fleet, &client, &kept).await;
    in_time("the forgotten expire", async || {
        let (there, expired) = count(fleet).await;
        assert!(expired <= forgotten.len() && there >= kept.len(), "{there} are there, {expired} expired");
        there == kept.len() && expired == forgotten.len()
    })
    .await;

    // They, and nobody else: to the syncer they are new.
    let last = tell(fleet, &client, &all).await;
    let new: Vec<usize> = all.iter().zip(last).filter(|(_, ignored)| !ignored).map(|(nth, _)| *nth).collect();
    assert_eq!(new, forgotten);
    assert_eq!(count(fleet).await, (all.len(), forgotten.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_full_resync_in_one_stream_loses_nobody_but_who_is_not_told_again() {
    let cluster = ClusterConfig { nodes: 5, capacity: 1_000_000, ..ClusterConfig::default() };
    let fleet = Fleet::start_tls(1, cluster, |config| {
        for level in ["placement.overall", "placement.region", "placement.sfu"] {
            config.limits.insert(format!("{level}.rate"), 10_000.into());
            config.limits.insert(format!("{level}.burst"), 10_000.into());
        }
        config.limits.insert("admission.new_calls.rate".to_owned(), 1_000_000.into());
        config.limits.insert("admission.new_calls.burst".to_owned(), 1_000_000.into());
        for (window, lasts) in [("gateways.resume_window", WINDOW), ("gateways.alive_for", ALIVE_FOR)] {
            config.limits.insert(window.to_owned(), format!("{}s", lasts.as_secs()).into());
        }
    })
    .await;
    tokio::select! {
        () = beats(&fleet) => unreachable!("it beats for ever"),
        () = rounds(&fleet) => {}
    }
}
