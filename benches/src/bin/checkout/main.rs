//! `checkout`: what it costs to take a connection out of a pool and give it back.
//!
//! The others pool nothing at all; ours pools real HTTP/1.1 connections, because it pools nothing else.
//! With more tasks than connections every pool has waiters, and a low median may be bought by letting
//! newcomers barge past them; so it is throughput and p99.9 that count there, and waits are corrected for
//! coordinated omission: a task that starves makes no calls, which a closed loop would not count.

#![allow(clippy::print_stderr)]

mod contestants;
mod ours;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use benches::args::Args;
use benches::report::Report;
use benches::stats::Latencies;
use clap::Parser;
use tokio::sync::Barrier;
use tokio::task::{JoinSet, yield_now};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::contestants::{Actor, Bb8, Contestant, Deadpool, HyperUtil, Pingora};
use crate::ours::Ours;

/// Checkouts measured together when nobody waits: reading the clock costs as much as a checkout.
const BATCH: u32 = 64;

/// Batches of the uncontended scenario.
const BATCHES: u32 = 4_000;

/// Checkouts of a contended scenario, all tasks together: half a second, so that one preemption by a neighbour
/// is not the whole tail.
const CHECKOUTS: usize = 1_000_000;

/// Tasks and connections.
const SCENARIOS: [(usize, usize); 8] =
    [(1, 1), (64, 64), (64, 8), (64, 1), (1_000, 64), (1_000, 1_000), (10_000, 64), (10_000, 10_000)];

const QUICK: [(usize, usize); 3] = [(1, 1), (64, 8), (1_000, 64)];

/// Those that have waiters and could be chosen instead of ours.
const PEERS: [&str; 4] = ["deadpool", "bb8", "hyper_util", "actor"];

const CONTESTANTS: &[&str] = &["deadpool", "bb8", "hyper_util", "pingora", "actor", "ours_p1", "ours_p8"];

const VERSIONS: &str = "deadpool 0.13 (managed), bb8 0.9, hyper-util 0.1 (legacy pool), pingora-pool 0.9";

fn main() -> Result<()> {
    let args = Args::parse();
    let mut report = Report::new("checkout", VERSIONS);
    for (tasks, conns) in SCENARIOS {
        let scenario = format!("{tasks}_tasks_{conns}_conns");
        if !args.wants(&scenario) || (args.quick && args.only.is_none() && !QUICK.contains(&(tasks, conns))) {
            continue;
        }
        let mut names = CONTESTANTS.to_vec();
        names.retain(|name| args.wants_contestant(name) && (*name != "pingora" || tasks <= conns));
        for (round, order) in args.orders(&names).into_iter().enumerate() {
            eprintln!("{scenario} round {} of {}: load {}", round + 1, args.rounds(), benches::machine::load());
            for name in order {
                // A runtime of its own: what one leaves behind does not burden the next.
                let runtime = benches::runtime()?;
                let (wall, latencies) = runtime.block_on(contest(name, tasks, conns))?;
                runtime.shutdown_timeout(Duration::from_secs(2));
                note(&mut report, &scenario, name, tasks, wall, &latencies);
            }
        }
        judge(&mut report, &scenario, tasks);
    }
    report.finish("ns_per_op")
}

async fn contest(name: &str, tasks: usize, conns: usize) -> Result<(Duration, Latencies)> {
    let tracker = TaskTracker::new();
    match name {
        "deadpool" => measure(Deadpool::new(conns)?, tasks).await,
        "bb8" => measure(Bb8::new(conns).await?, tasks).await,
        "hyper_util" => measure(HyperUtil::new(conns), tasks).await,
        "pingora" => measure(Pingora::new(conns), tasks).await,
        "actor" => measure(Actor::new(conns, &tracker), tasks).await,
        "ours_p1" => measure(Ours::new(conns, 1).await?, tasks).await,
        "ours_p8" => measure(Ours::new(conns, 8).await?, tasks).await,
        _ => anyhow::bail!("there is no contestant {name}"),
    }
}

/// Checkouts of each task before those.
fn warm(tasks: usize) -> usize {
    each(tasks).div_ceil(10)
}

/// Checkouts of each task that are timed.
fn each(tasks: usize) -> usize {
    (CHECKOUTS / tasks).max(4)
}

async fn measure<C: Contestant>(contestant: C, tasks: usize) -> Result<(Duration, Latencies)> {
    if tasks == 1 { alone(contestant).await } else { crowd(contestant, tasks).await }
}

/// One task; the time of a checkout and its return, averaged over a batch.
async fn alone<C: Contestant>(contestant: C) -> Result<(Duration, Latencies)> {
    let mut running = JoinSet::new();
    running.spawn(async move {
        let mut latencies = Latencies::default();
        for _ in 0..BATCHES / 10 {
            drop(contestant.checkout().await); // Warm.
        }
        let began = Instant::now();
        for _ in 0..BATCHES {
            let before = Instant::now();
            for _ in 0..BATCH {
                drop(contestant.checkout().await);
            }
            latencies.record(Instant::now().saturating_duration_since(before) / BATCH);
        }
        (Instant::now().saturating_duration_since(began), latencies)
    });
    Ok(running.join_all().await.swap_remove(0))
}

/// Many tasks; each lets others run while it holds a connection. What is timed is the wait, when all have made a tenth as many
/// before: a connection that nobody has used yet is in no cache, and a thousand first checkouts of a million would be all
/// of p99.9. They begin together, so that who starves is seen.
async fn crowd<C: Contestant>(contestant: C, tasks: usize) -> Result<(Duration, Latencies)> {
    let (each, warm) = (each(tasks), warm(tasks));
    let (mut running, warmed) = (JoinSet::new(), Arc::new(Barrier::new(tasks + 1)));
    for _ in 0..tasks {
        let (contestant, warmed) = (contestant.clone(), Arc::clone(&warmed));
        running.spawn(async move {
            let mut waits = Vec::with_capacity(each);
            for _ in 0..warm {
                let held = contestant.checkout().await;
                yield_now().await;
                drop(held);
            }
            warmed.wait().await;
            for _ in 0..each {
                let before = Instant::now();
                let held = contestant.checkout().await;
                waits.push(Instant::now().saturating_duration_since(before));
                yield_now().await;
                drop(held);
            }
            waits
        });
    }
    warmed.wait().await;
    let began = Instant::now();
    let waits = running.join_all().await;
    let wall = Instant::now().saturating_duration_since(began);
    let fair = wall / u32::try_from(each).unwrap_or(u32::MAX);
    let mut latencies = Latencies::default();
    waits.into_iter().flatten().for_each(|wait| latencies.record_corrected(wait, fair));
    Ok((wall, latencies))
}

#[allow(clippy::cast_precision_loss)]
fn note(report: &mut Report, scenario: &str, name: &str, tasks: usize, wall: Duration, latencies: &Latencies) {
    let ops = if tasks == 1 { f64::from(BATCH) * f64::from(BATCHES) } else { (each(tasks) * tasks) as f64 };
    report.add(scenario, name, "ns_per_op", "ns", wall.as_secs_f64() * 1e9 / ops);
    for (metric, quantile) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)] {
        report.add(scenario, name, metric, "ns", latencies.ns(quantile));
    }
}

fn judge(report: &mut Report, scenario: &str, tasks: usize) {
    for ours in ["ours_p1", "ours_p8"] {
        if tasks == 1 {
            let (mine, theirs) = (report.figure(scenario, ours, "p50"), report.figure(scenario, "deadpool", "p50"));
            report.judge(scenario, &format!("{ours} p50 to deadpool"), mine, theirs, 0.6);
            continue;
        }
        for metric in ["ns_per_op", "p999"] {
            let (mine, theirs) = (report.figure(scenario, ours, metric), report.best(scenario, &PEERS, metric));
            report.judge(scenario, &format!("{ours} {metric} to the best peer with waiters"), mine, theirs, 1.0);
        }
    }
}
