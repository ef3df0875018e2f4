//! Joins that have nothing to do with the SFU that dies, timed from when they were meant to be sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Elapsed as _;
use super::rig::{Rig, guild};

/// Between two joins of one caller, and callers: 100 joins a second.
const EVERY: Duration = Duration::from_millis(40);
const CALLERS: usize = 4;
/// Between two new calls: a tenth of the pace of the small repair.
const NEW_EVERY: Duration = Duration::from_millis(100);

/// Joins under way.
pub(crate) struct Load {
    took_ms: Arc<Mutex<Vec<f64>>>,
    mark: Mutex<usize>,
    stop: Arc<AtomicBool>,
    joins: Vec<JoinHandle<()>>,
    new_calls: JoinHandle<Vec<New>>,
}

/// A new call that has its endpoint.
#[derive(Debug, Default)]
pub(crate) struct New {
    /// When it began.
    pub(crate) began: Option<Instant>,
    /// How long it waited for its endpoint, in seconds.
    pub(crate) waited_s: f64,
    /// What `:explain` said after every whole second of that.
    pub(crate) said: Vec<String>,
}

/// How long joins took.
#[derive(Debug)]
pub(crate) struct Took {
    pub(crate) p99_ms: f64,
    #[allow(dead_code, reason = "shown when the test fails")]
    pub(crate) joins: usize,
}

// === impl Load ===

impl Load {
    /// Joins into `others` calls, and a new call now and then.
    pub(crate) fn start(rig: &Rig, others: usize) -> Self {
        let (took_ms, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let mut joins = Vec::new();
        for caller in 0..CALLERS {
            let requests: Vec<_> = (0..others)
                .map(|n| {
                    let call = format!("other{n}");
                    let path = format!("/v1/guilds/{}/calls/{call}/participants/s{n}", guild(&call));
                    rig.request(Method::PUT, &path, n % 4).body("{}")
                })
                .collect();
            let (took_ms, stop) = (Arc::clone(&took_ms), Arc::clone(&stop));
            #[expect(clippy::disallowed_methods, reason = "the test joins it")]
            joins.push(tokio::spawn(async move {
                let mut tick = interval(EVERY);
                tick.set_missed_tick_behavior(MissedTickBehavior::Burst); // a join that comes late was meant to be earlier
                for n in (caller..).step_by(7) {
                    let meant = tick.tick().await;
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let request = requests[n % others].try_clone().expect("no stream");
                    let answer: Value = request.send().await.expect("an answer").json().await.expect("JSON");
                    took_ms.lock().push(meant.elapsed_s() * 1_000.0);
                    assert!(answer["endpoint"].is_string(), "a call on a healthy SFU lost its endpoint: {answer}");
                }
            }));
        }
        let new_calls = new_calls(rig, Arc::clone(&stop));
        Self { took_ms, mark: Mutex::new(0), stop, joins, new_calls }
    }

    /// From now on.
    pub(crate) fn mark(&self) {
        *self.mark.lock() = self.took_ms.lock().len();
    }

    /// Joins since the mark.
    pub(crate) fn since_mark(&self) -> Took {
        let mut took = self.took_ms.lock()[*self.mark.lock()..].to_vec();
        took.sort_by(f64::total_cmp);
        let p99_ms = took.get(took.len() * 99 / 100).copied().expect("some joins");
        Took { p99_ms, joins: took.len() }
    }

    /// Joins of the next while.
    pub(crate) async fn window(&self, length: Duration) -> Took {
        self.mark();
        tokio::time::sleep(length).await;
        self.since_mark()
    }

    /// Ends it; says how many calls were new, and which one waited longest.
    pub(crate) async fn stop(self) -> (usize, New) {
        self.stop.store(true, Ordering::Relaxed);
        for join in self.joins {
            join.await.expect("no join failed");
        }
        let new = self.new_calls.await.expect("no call failed");
        (new.len(), new.into_iter().max_by(|a, b| a.waited_s.total_cmp(&b.waited_s)).unwrap_or_default())
    }
}

/// Begins a call, waits for its endpoint, and so on.
fn new_calls(rig: &Rig, stop: Arc<AtomicBool>) -> JoinHandle<Vec<New>> {
    let requests = |n: usize| {
        let call = format!("new{n}");
        let path = format!("/v1/guilds/{}/calls/{call}", guild(&call));
        let join = rig.request(Method::PUT, &format!("{path}/participants/s"), 0).body("{}");
        (join, rig.request(Method::GET, &format!("{path}:explain"), 0))
    };
    let requests: Vec<_> = (0..5_000).map(requests).collect();
    #[expect(clippy::disallowed_methods, reason = "the test joins it")]
    tokio::spawn(async move {
        let mut all = Vec::new();
        for (join, explain) in requests {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let began = Instant::now();
            let mut said = Vec::new();
            while !ask(&join).await["endpoint"].is_string() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if began.elapsed_s() > (said.len() + 1) as f64 {
                    said.push(ask(&explain).await["waiting_for"].to_string());
                }
            }
            all.push(New { began: Some(began), waited_s: began.elapsed_s(), said });
            tokio::time::sleep(NEW_EVERY).await;
        }
        all
    })
}

async fn ask(request: &RequestBuilder) -> Value {
    let again = request.try_clone().expect("no stream");
    again.send().await.expect("an answer").json().await.expect("JSON")
}
