//! The process that makes a storm with one contestant and says how it went.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use benches::machine;
use benches::stats::Latencies;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::contestants::{Contestant, Failure, Send_, Went};
use crate::lease::Leases;

/// Every request's deadline, from its intended start.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// When callers try again whose hosts are away: as the gateways of the drill do. After what the error says, within these
/// bounds and a little later, so that they do not come all together; else with full jitter from so little to so much.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(100);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
const BACKOFF_BASE: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How often the runtime's punctuality is looked at.
const LAG_EVERY: Duration = Duration::from_millis(2);

/// What is left over must be gone by then.
const SETTLE: Duration = Duration::from_secs(2);

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Storm {
    pub(crate) contestant: String,
    pub(crate) ca_pem: String,
    /// The hosts, and the registry last.
    pub(crate) addrs: Vec<SocketAddr>,
    /// Which hosts have a fault.
    pub(crate) faulty: Vec<bool>,
    pub(crate) tasks: usize,
    /// When the faulty hosts come back, if they do. Then whoever fails tries again.
    pub(crate) back_at: Option<SystemTime>,
    pub(crate) seed: u64,
}

/// How it went: names, units, numbers.
pub(crate) type Figures = Vec<(String, String, f64)>;

/// What one caller tells.
struct Told {
    host: usize,
    ended: Instant,
    went: Went,
    tries: u64,
}

/// Runs one storm.
pub(crate) async fn run(storm: Storm) -> Result<Figures> {
    let tasks = TaskTracker::new();
    let storm = Arc::new(storm);
    let contestant = Contestant::build(&storm.contestant, &storm, &tasks)?;
    let leases = Leases::warm(&contestant, storm.addrs.len() - 1).await?;
    let cpu_before = machine::cpu_s();
    let over = CancellationToken::new();
    let lag = tasks.spawn(watch_lag(over.clone()));
    let began = Instant::now();
    let away = storm.back_at.map(|at| at.duration_since(SystemTime::now())).transpose();
    let away = away.context("the client was not ready before the hosts were back")?;
    leases.start(&contestant, &over, began, &tasks);
    let told = burst(&storm, &contestant, began).await?;
    over.cancel();
    let cpu_s = machine::cpu_s() - cpu_before;
    let lag = lag.await?;
    let mut figures = weigh(&storm, &told, began, away);
    let mut add = |name: &str, unit: &str, value: f64| figures.push((name.to_owned(), unit.to_owned(), value));
    add("cpu", "s", cpu_s);
    add("rss", "MiB", machine::rss_peak_bytes() / f64::from(1 << 20));
    add("lag_p99", "ms", lag.ms(0.99));
    for (name, unit, value) in leases.figures().await {
        add(&name, &unit, value);
    }
    if let Some(supervisor) = &contestant.supervisor {
        add("scan", "ms", num(supervisor.scan_us()) / 1e3);
        add("mailbox_max", "", num(supervisor.queued_max() as u64));
    }
    if let Some(lane) = &contestant.lane {
        let settled = timeout(SETTLE, async {
            while lane.snapshot().in_use + lane.snapshot().dialling > 0 {
                sleep(LAG_EVERY).await;
            }
        });
        add("unsettled", "", f64::from(u8::from(settled.await.is_err())));
        add("permits_off", "", num(lane.snapshot().permits_off.unsigned_abs()));
    }
    Ok(figures)
}

async fn burst(storm: &Storm, contestant: &Contestant, began: Instant) -> Result<Vec<Told>> {
    let hosts = storm.addrs.len() - 1;
    let mut order: Vec<usize> = (0..storm.tasks).map(|n| n % hosts).collect();
    order.shuffle(&mut StdRng::seed_from_u64(storm.seed));
    let (deadline, again) = (began + DEADLINE, storm.back_at.is_some());
    let mut requests = JoinSet::new();
    for host in order {
        requests.spawn(call(Arc::clone(&contestant.send), host, deadline, again));
    }
    let mut told = Vec::with_capacity(storm.tasks);
    while let Some(one) = requests.join_next().await {
        told.push(one.context("a request panicked")?);
    }
    Ok(told)
}

/// One caller, until it has an answer or no time.
async fn call(send: Send_, host: usize, deadline: Instant, again: bool) -> Told {
    let mut tries = 0;
    loop {
        let went = send(host, deadline).await;
        tries += 1;
        let ended = Instant::now();
        match went {
            Err(failure) if again && ended < deadline => {
                let due = ended + pause(failure, tries);
                sleep_until(due.min(deadline)).await;
                if due >= deadline {
                    return Told { host, ended: deadline, went, tries };
                }
            }
            _ => return Told { host, ended, went, tries },
        }
    }
}

/// How long a caller waits after so many tries.
fn pause(failure: Failure, tries: u64) -> Duration {
    let jitter = |bound: Duration| bound.mul_f64(rand::rng().random());
    match failure.retry_after {
        Some(wait) => wait.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX) + jitter(BACKOFF_BASE),
        None => jitter(BACKOFF_BASE.saturating_mul(1 << (tries - 1).min(10)).min(BACKOFF_MAX)),
    }
}

/// A healthy host that fails a caller once has failed, whatever comes of trying again.
/// A failed request to a host that could have served it counts with its whole deadline: failing early is no way to be
/// fast. That is a healthy host, and one that came back in time.
fn weigh(storm: &Storm, told: &[Told], began: Instant, away: Option<Duration>) -> Figures {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (mut healthy, mut faulty) = (Latencies::default(), Latencies::default());
    let (mut drained_healthy, mut drained) = (Duration::ZERO, Duration::ZERO);
    let (mut failed_healthy, mut failed_faulty, mut shed) = (0_u64, 0_u64, 0_u64);
    let mut per_host = vec![(0_u64, 0.0); storm.addrs.len() - 1];
    for one in told {
        let (is_faulty, failed) = (storm.faulty[one.host], one.went.is_err());
        let ended = one.ended.saturating_duration_since(began);
        let took = if failed && (!is_faulty || away.is_some()) { DEADLINE } else { ended };
        drained = drained.max(took);
        shed += u64::from(one.went.is_err_and(|failure| failure.shed));
        if is_faulty {
            failed_faulty += u64::from(failed);
            faulty.record(took);
        } else {
            failed_healthy += u64::from(failed || one.tries > 1);
            drained_healthy = drained_healthy.max(ended);
            healthy.record(took);
            let (count, sum) = &mut per_host[one.host];
            *count += 1;
            *sum += ms(ended);
        }
    }
    let mut figures = Figures::new();
    let mut add = |name: &str, unit: &str, value: f64| figures.push((name.to_owned(), unit.to_owned(), value));
    add("drain", "ms", ms(drained_healthy));
    add("drain_all", "ms", ms(drained));
    add("p50", "ms", healthy.ms(0.5));
    add("p99", "ms", healthy.ms(0.99));
    add("p999", "ms", healthy.ms(0.999));
    add("failed", "", num(failed_healthy));
    add("shed", "", num(shed));
    if storm.faulty.contains(&true) {
        add("faulty_failed", "", num(failed_faulty));
        add("faulty_p99", "ms", faulty.ms(0.99));
    }
    if let Some(away) = away {
        add("away", "ms", ms(away));
        add("drain_back", "ms", ms(drained.saturating_sub(away)));
        add("tries", "", num(told.iter().map(|one| one.tries).sum()) / num(told.len() as u64));
    }
    add("fairness", "", jain(per_host.iter().filter(|(count, _)| *count > 0).map(|(count, sum)| sum / num(*count))));
    figures
}

/// Jain's index of the hosts' mean latencies: 1 when all are served alike, 1/n when one gets it all.
fn jain(means: impl Iterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for mean in means {
        count += 1.0;
        sum += mean;
        squares += mean * mean;
    }
    if squares > 0.0 { sum * sum / (count * squares) } else { 1.0 }
}

async fn watch_lag(over: CancellationToken) -> Latencies {
    let mut lag = Latencies::default();
    while !over.is_cancelled() {
        let due = Instant::now() + LAG_EVERY;
        sleep_until(due).await;
        lag.record(Instant::now().saturating_duration_since(due));
    }
    lag
}

#[allow(clippy::cast_precision_loss)]
pub(crate) fn num(count: u64) -> f64 {
    count as f64
}
