//! `many_origins`: 25,000 origins through 10,000 connections.
//!
//! Every process here may open 20,000 files, so the origins live in several. Each request goes to an
//! origin whose connection may just have been closed to make room; what is reported is that nothing
//! runs out, how much had to be evicted, and what a connection and an origin cost in memory.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use benches::args::Args;
use benches::fleet::{self, Fleet, FleetSpec};
use benches::report::Report;
use benches::stats::Latencies;
use benches::{client, machine};
use clap::Parser;
use http::Request;
use parking_lot::Mutex;
use pool::{Body, Lane, LaneLimits, Origin, OriginHandle};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Server processes; each needs a listener per origin and its share of the connections.
const PROCESSES: u32 = 3;

/// Origins; a tenth of it in a quick run, with a tenth of the connections.
const ORIGINS: u32 = 25_000;

/// The lane's budget of connections.
const CONNECTIONS: usize = 10_000;

/// Requests at once.
const WORKERS: usize = 128;

/// A dial among 128 on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// How often descriptors are counted.
const WATCH_EVERY: Duration = Duration::from_millis(100);

struct Run {
    lane: Lane,
    handles: Vec<OriginHandle>,
    failed: AtomicU64,
    latencies: Mutex<Latencies>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = benches::runtime()?;
    if args.role.as_deref() == Some(fleet::ROLE) {
        let served = runtime.block_on(fleet::serve_until_told());
        runtime.shutdown_background();
        return served;
    }
    let divisor = if args.quick { 10 } else { 1 };
    let (origins, connections) = (ORIGINS / divisor, CONNECTIONS / divisor as usize);
    let each = origins.div_ceil(PROCESSES);
    let spec = |n: u32| FleetSpec {
        first: n * each,
        hosts: each.min(origins - n * each),
        handler_ms: 0,
        ..FleetSpec::healthy(0)
    };
    let fleets = (0..PROCESSES).map(|n| Fleet::start(&spec(n))).collect::<Result<Vec<_>>>()?;
    let scenario = format!("{origins}_origins_{connections}_connections");
    let mut report = Report::new("many_origins", "ours only");
    runtime.block_on(run(&fleets, connections, &scenario, args.seed, &mut report))?;
    report.finish("p99")
}

#[allow(clippy::cast_precision_loss)]
async fn run(fleets: &[Fleet], connections: usize, scenario: &str, seed: u64, report: &mut Report) -> Result<()> {
    let ca_pem: String = fleets.iter().map(|fleet| fleet.ready.ca_pem.as_str()).collect();
    let limits = LaneLimits { connections_max: connections, connections_per_origin_max: 4, ..LaneLimits::default() };
    let lane = Lane::builder("many").tls(Arc::new(client::tls(&ca_pem)?)).limits(limits).build()?;
    let mut registry = Registry::default();
    lane.metrics().register(&mut registry);
    let urls = fleets.iter().flat_map(|fleet| &fleet.ready.addrs).map(|addr| format!("https://{addr}"));
    let origins = urls.map(|url| Origin::parse(&url)).collect::<Result<Vec<_>, _>>()?;

    let bare = machine::rss_bytes();
    let handles: Vec<_> = origins.iter().map(|origin| lane.origin(origin)).collect();
    let with_origins = machine::rss_bytes();
    let mut add = |metric: &str, unit: &'static str, value: f64| report.add(scenario, "ours", metric, unit, value);
    add("per_origin", "B", (with_origins - bare) / handles.len() as f64);

    let run = Arc::new(Run { lane, handles, failed: AtomicU64::new(0), latencies: Mutex::default() });
    let over = CancellationToken::new();
    let fds_max = Arc::new(AtomicUsize::new(0));
    let live_max = Arc::new(AtomicUsize::new(0));
    let mut watching = JoinSet::new();
    watching.spawn(watch(Arc::clone(&run), over.clone(), Arc::clone(&fds_max), Arc::clone(&live_max)));

    // First only as many origins as there are connections: nothing is evicted, and memory is that of
    // idle connections.
    let began = Instant::now();
    visit(&run, (0..connections.min(run.handles.len())).collect()).await?;
    sleep(Duration::from_millis(500)).await;
    let live = run.lane.snapshot().live;
    add("per_idle_connection", "B", (machine::rss_bytes() - with_origins) / live.max(1) as f64);
    add("live_before_eviction", "", live as f64);

    // Then all in a circle, which is the worst order there is, and all in random order.
    let mut order: Vec<usize> = (0..run.handles.len()).collect();
    visit(&run, order.clone()).await?;
    let evicted_cyclic = counter(&registry, "spilled")?;
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    visit(&run, order).await?;
    let took = Instant::now().saturating_duration_since(began);
    over.cancel();
    watching.join_all().await;

    let requests = connections.min(run.handles.len()) + 2 * run.handles.len();
    let latencies = run.latencies.lock().clone();
    add("requests", "", requests as f64);
    add("failed", "", run.failed.load(Ordering::Relaxed) as f64);
    add("requests_per_s", "1/s", requests as f64 / took.as_secs_f64());
    add("p50", "ms", latencies.ms(0.5));
    add("p99", "ms", latencies.ms(0.99));
    add("evicted_cyclic", "", evicted_cyclic);
    add("evicted", "", counter(&registry, "spilled")?);
    add("live_max", "", live_max.load(Ordering::Relaxed) as f64);
    add("fds_max", "", fds_max.load(Ordering::Relaxed) as f64);
    add("rss", "MiB", machine::rss_peak_bytes() / f64::from(1 << 20));
    add("permits_off", "", run.lane.snapshot().permits_off as f64);
    let failed = run.failed.load(Ordering::Relaxed) as f64;
    report.judge(scenario, "requests failed (to 1)", Some(failed), Some(1.0), 0.0);
    let most = live_max.load(Ordering::Relaxed) as f64;
    report.judge(scenario, "most live connections to the budget", Some(most), Some(connections as f64), 1.0);
    Ok(())
}

/// One request to each, so many at once.
async fn visit(run: &Arc<Run>, order: Vec<usize>) -> Result<()> {
    let (order, next) = (Arc::new(order), Arc::new(AtomicUsize::new(0)));
    let mut running = JoinSet::new();
    for _ in 0..WORKERS {
        let (run, order, next) = (Arc::clone(run), Arc::clone(&order), Arc::clone(&next));
        running.spawn(async move {
            while let Some(origin) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                let began = Instant::now();
                let handle = &run.handles[*origin];
                let answered = match handle.send(Request::new(Body::empty()), began + DEADLINE).await {
                    Ok(response) => response.into_body().bytes(1_024).await.map(drop),
                    Err(error) => Err(error),
                };
                if let Err(error) = answered
                    && run.failed.fetch_add(1, Ordering::Relaxed) < 5
                {
                    eprintln!("{}: {error}", handle.origin());
                }
                run.latencies.lock().record(Instant::now().saturating_duration_since(began));
            }
        });
    }
    while let Some(worker) = running.join_next().await {
        worker.context("a worker panicked")?;
    }
    Ok(())
}

async fn watch(run: Arc<Run>, over: CancellationToken, fds_max: Arc<AtomicUsize>, live_max: Arc<AtomicUsize>) {
    while !over.is_cancelled() {
        fds_max.fetch_max(machine::fds(), Ordering::Relaxed);
        live_max.fetch_max(run.lane.snapshot().live, Ordering::Relaxed);
        sleep(WATCH_EVERY).await;
    }
}

/// The sum of a counter over partitions.
fn counter(registry: &Registry, name: &str) -> Result<f64> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    // By the whole name: labels may have the same word in them.
    let of_name = format!("pool_{name}_total{{");
    let lines = text.lines().filter(|line| line.starts_with(&of_name));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}
