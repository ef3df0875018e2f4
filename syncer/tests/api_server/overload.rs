//! Ten times the load that is admitted, for a while: what is promised of it, measured in one run.
//!
//! `TRUNKLINE_OVERLOAD_S=60` makes it a minute of overload, instead of the seconds that a gate can spare.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sfu_mock::{Fault, Target};
use tokio::time::{Instant, interval, sleep};

use crate::admission::{bulk, door, fleet, line, put};
use crate::support::{Fleet, answer, until};

/// New calls that the fleet admits per second.
const ADMITTED_PER_S: u64 = 30;

/// Calls asked for in one line of the crowd, ten times a second.
const PER_TICK: u64 = ADMITTED_PER_S;

/// Asks for `per_tick` calls ten times a second, until told to stop.
async fn crowd(fleet: Arc<Fleet>, per_tick: u64, stop: Arc<AtomicBool>, admitted: Arc<AtomicU64>, name: &'static str) {
    let mut ticks = interval(Duration::from_millis(100));
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let lines: Vec<String> = (0..per_tick)
            .map(|i| {
                line(
                    &format!("{name}-{}", i % 50),
                    &format!("c{n}-{i}"),
                    "s",
                    if i % 5 == 0 { "stream" } else { "voice" },
                )
            })
            .collect();
        n += 1;
        admitted.fetch_add(bulk(&fleet, 0, &lines).await as u64, Ordering::Relaxed);
    }
}

/// Calls admitted per second while `per_tick` are asked for ten times a second; the first second, in which the
/// bucket is emptied, does not count.
async fn goodput(
    fleet: &Arc<Fleet>,
    per_tick: u64,
    lasting: Duration,
    name: &'static str,
    during: impl Future<Output = ()>,
) -> f64 {
    let (stop, admitted) = (Arc::default(), Arc::new(AtomicU64::new(0)));
    #[expect(clippy::disallowed_methods, reason = "awaited below")]
    let crowd = tokio::spawn(crowd(Arc::clone(fleet), per_tick, Arc::clone(&stop), Arc::clone(&admitted), name));
    sleep(Duration::from_secs(2)).await;
    let (start, before) = (Instant::now(), admitted.load(Ordering::Relaxed));
    tokio::join!(during, sleep(lasting));
    let (took, after) = ((Instant::now() - start).as_secs_f64(), admitted.load(Ordering::Relaxed));
    stop.store(true, Ordering::Relaxed);
    crowd.await.expect("no refusal without a moment to come back");
    (after - before) as f64 / took
}

/// The upper tenth of the times a join and a leave of a call that exists take.
async fn latency(fleet: &Fleet) -> Duration {
    let mut times = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        assert!(put(fleet, 0, "home", "c0", "probe", "voice").await);
        times.push(Instant::now() - start);
        let leave = fleet.request(0, Method::DELETE, "/v1/guilds/home/calls/c0/participants/probe");
        assert!(answer(leave).await.0.is_success(), "leaves are never shed");
    }
    times.sort();
    times[18]
}

/// Looks at every queue until told to stop; the most memory it saw in the first and in the second half.
async fn watch_queues(fleet: &Fleet, lasting: Duration) -> [u64; 2] {
    let start = Instant::now();
    let mut memory = [0, 0];
    while Instant::now() - start < lasting {
        let (_, status) = fleet.get(0, "/v1/status").await;
        let (door, pool) = (&status["admission"], &status["pool"]);
        let number = |v: &Value| v.as_u64().unwrap_or_else(|| panic!("no number in {status}"));
        // A line that was being answered while the window shrank may be above it, and a trickle.
        assert!(number(&door["waiting"]) <= number(&door["waiting_max"]) + PER_TICK + 10, "{door}");
        assert!(number(&pool["waiters"]) <= number(&pool["waiters_max"]), "{pool}");
        assert_eq!(status["invariant_violations"], 0);
        let half = usize::from(Instant::now() - start > lasting / 2);
        memory[half] = number(&door["memory_bytes"]).max(memory[half]);
        sleep(Duration::from_millis(100)).await;
    }
    memory
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_r10_ten_times_the_load_costs_the_rest_nothing() {
    let levers = json!({
        "admission.new_calls.rate": ADMITTED_PER_S, "admission.new_calls.burst": ADMITTED_PER_S,
        "admission.queue_age_max": "3s", "admission.lag_max": "5s", "health.dead_window": "500ms",
    });
    let fleet = Arc::new(fleet(1, 5, &levers).await);
    let homes: Vec<String> = (0..60).map(|n| format!("c{n}")).collect();
    for call in &homes {
        until("a home", || put(&fleet, 0, "home", call, "s", "voice")).await;
    }
    until("all at home", || async { fleet.get(0, "/v1/status").await.1["awaiting"] == 0 }).await;
    let calm = latency(&fleet).await;
    let unloaded = goodput(&fleet, ADMITTED_PER_S / 8, Duration::from_secs(3), "calm", async {}).await;

    let seconds = std::env::var("TRUNKLINE_OVERLOAD_S").ok().and_then(|s| s.parse().ok()).unwrap_or(6);
    let lasting = Duration::from_secs(seconds);
    let victim = fleet.sfus.nodes()[0].id.clone();
    let (mut memory, mut affected) = ([0, 0], 0);
    let loaded = goodput(&fleet, PER_TICK, lasting, "storm", async {
        // In the middle of it an SFU dies, and its calls have to come back.
        affected = fleet.sfus.rooms(&victim).expect("known").len();
        fleet.sfus.fault(&Target::Nodes(vec![victim.clone()]), &Fault::Kill).await.expect("killed");
        memory = watch_queues(&fleet, lasting).await;
    })
    .await;
    let ended = Instant::now();
    assert!(affected > 5, "the SFU that died had calls: {affected}");
    assert!((loaded / unloaded - 1.0).abs() <= 0.15, "goodput {loaded:.1} per second, {unloaded:.1} without overload");
    assert!(memory[1] as f64 <= memory[0] as f64 * 1.2 + 32e6, "memory grew from {} to {}", memory[0], memory[1]);

    until("repaired", || async {
        let (_, status) = fleet.get(0, "/v1/status").await;
        status["awaiting"] == 0 && status["moves_total"].as_u64() >= Some(affected as u64 * 99 / 100)
    })
    .await;
    let (_, dead) = fleet.get(0, &format!("/v1/calls?sfu={victim}")).await;
    assert_eq!(dead["total"], 0, "every call of the dead SFU was repaired");
    sleep(Duration::from_secs(5).saturating_sub(Instant::now() - ended)).await;
    let after = latency(&fleet).await;
    assert!(after <= calm * 3 + Duration::from_millis(50), "{after:?} after the storm, {calm:?} before");
    let shed = door(&fleet, 0).await["sheds"].clone();
    assert!(!shed.to_string().contains("repair"), "{shed}");
}
