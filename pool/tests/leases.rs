//! Leases live while everything else in the process does not.
//!
//! By default for a few leases' time. With `TRUNKLINE_FULL=1` for the five minutes of the requirement.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::{Ca, Callers, PATIENCE, Server, after, get};
use pool::{LaneLimits, Metrics, Origin, RegistryLane};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, interval, sleep};

/// The lease's life here, and how often it is renewed.
const TTL: Duration = Duration::from_secs(3);
const RENEW: Duration = Duration::from_millis(100);

/// How long the storm lasts: a few leases.
const STORM: Duration = Duration::from_secs(7);
const STORM_FULL: Duration = Duration::from_mins(5);

/// Callers of each lane in the storm, and what each computes between its requests: a round of all takes two threads
/// longer than a lease lives.
const CALLERS: usize = 1_000;
const COMPUTE: Duration = Duration::from_millis(4);

/// What the renewals of a lease saw.
#[derive(Debug, Default)]
struct Renewals {
    /// Of each, failed ones as long as they were waited for.
    took: Vec<Duration>,
    /// From one that worked to the next.
    longest_gap: Duration,
}

/// Lanes as a syncer has them, to SFUs and to peers; half of the hosts hold every handshake. The storm has all threads of
/// its runtime to itself; the registry is another process, here another runtime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r05_no_lease_is_lost_while_the_lanes_of_sfus_and_peers_are_in_a_storm() {
    let storm = if std::env::var_os("TRUNKLINE_FULL").is_some() { STORM_FULL } else { STORM };
    let ca = Ca::new();
    let (elsewhere, member) = elsewhere(&ca);
    let tls = pool::tls::client_config(ca.pem().as_bytes(), None).expect("tls");
    let registry = RegistryLane::start("registry", Some(&tls), &Metrics::default()).expect("lane");
    let stop = Arc::new(AtomicBool::new(false));
    let seen = renew(&registry, member.origin.clone(), Arc::clone(&stop));

    let (sfus, peers) = (storm_hosts(&ca, storm).await, storm_hosts(&ca, storm).await);
    let limits = || LaneLimits { dials_max: 64, ..LaneLimits::default() };
    let (callers, asked, end) = (Callers::new(), Arc::new(AtomicUsize::new(0)), after(storm));
    for (lane, hosts) in [(ca.lane(limits()), &sfus), (ca.lane(limits()), &peers)] {
        for n in 0..CALLERS {
            let (host, asked) = (lane.origin(&hosts[n % hosts.len()].origin), Arc::clone(&asked));
            callers.spawn(async move {
                while after(Duration::ZERO) < end {
                    asked.fetch_add(1, Ordering::Relaxed);
                    drop(host.fresh(get("/ok"), after(Duration::from_millis(200))).await);
                    let computed = after(COMPUTE);
                    while after(Duration::ZERO) < computed {}
                }
            });
        }
    }
    callers.close();
    callers.wait().await;
    stop.store(true, Ordering::SeqCst);
    let Renewals { mut took, longest_gap } = seen.recv_timeout(PATIENCE).expect("the lane's thread lives");
    assert!(asked.load(Ordering::Relaxed) > 2 * CALLERS, "that was no storm");
    took.sort_unstable();
    let p99 = took.get(took.len() * 99 / 100).copied().expect("renewed");
    println!("{} renewals, p99 {p99:?}, longest gap {longest_gap:?}, lease {TTL:?}", took.len());
    assert!(
        took.len() > 10 && longest_gap < TTL,
        "{} renewals, the longest gap {longest_gap:?} of {TTL:?}",
        took.len()
    );
    assert!(
        p99 < TTL / 6,
        "the slowest hundredth of {} renewals took {p99:?}, the lease lives for {TTL:?}",
        took.len()
    );
    elsewhere.shutdown_background();
}

/// A member of the registry, in a runtime of its own.
fn elsewhere(ca: &Ca) -> (Runtime, Server) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let serving = || runtime.block_on(Server::https(ca, &["h2"]));
    let member = std::thread::scope(|scope| scope.spawn(serving).join().expect("server"));
    (runtime, member)
}

/// Renews a lease on the lane's thread until told to stop.
fn renew(registry: &RegistryLane, member: Origin, stop: Arc<AtomicBool>) -> Receiver<Renewals> {
    let (done, seen) = channel();
    let lane = registry.clone();
    registry.spawn(async move {
        let (mut seen, mut tick, mut last) = (Renewals::default(), interval(RENEW), Instant::now());
        while !stop.load(Ordering::SeqCst) {
            tick.tick().await;
            let began = Instant::now();
            let answer = lane.send(&member, get("/ok"), began + TTL / 2).await;
            let renewed = match answer {
                Ok(answer) => answer.into_body().bytes(64).await.is_ok(),
                Err(_) => false,
            };
            let now = Instant::now();
            seen.took.push(now.saturating_duration_since(began));
            if renewed {
                seen.longest_gap = seen.longest_gap.max(now.saturating_duration_since(last));
                last = now;
            }
        }
        seen.longest_gap = seen.longest_gap.max(Instant::now().saturating_duration_since(last));
        drop(done.send(seen));
    });
    seen
}

/// Hosts that answer, and hosts that hold every handshake.
async fn storm_hosts(ca: &Ca, storm: Duration) -> Vec<Server> {
    let mut hosts = Vec::new();
    for _ in 0..4 {
        hosts.push(Server::https(ca, &["h2"]).await);
        hosts.push(
            Server::rude("https", move |stream| async move {
                sleep(storm).await;
                drop(stream);
            })
            .await,
        );
    }
    hosts
}
