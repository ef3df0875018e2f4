//! `handshake`: how many connections a second, next to a loop that does nothing else.
//!
//! The raw loop has no pool: so many workers each connect to the next host. It is run with a few numbers
//! of workers, because it depends on the machine how many finish soonest; the best one is the bar. Our pool is asked by as
//! many callers, who also take the next host when they have a connection, and by all of them at once.
//!
//! There are two kinds. `raw_http` ends with what a pool must have in hand, a connection on which a request can be
//! sent. `raw_tls` stops after TLS and shows what HTTP/2's preface, settings and driver task cost on top. The bar is judged
//! by both.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use benches::args::Args;
use benches::client::{self, Sender};
use benches::fleet::{self, Fleet, FleetSpec};
use benches::machine;
use benches::report::Report;
use clap::Parser;
use parking_lot::Mutex;
use pool::{Lane, LaneLimits, Origin};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Hosts of the scenarios with many.
const HOSTS: u32 = 250;

/// Connections to make; 8 to each of many hosts.
const CONNECTIONS: usize = 2_000;

/// Dials that our pool may have under way. One host may have most of a partition's eighth of them: more than the raw loop
/// has workers, so that it is the handshakes that are measured and not a limit that keeps one host from taking all.
const DIALS: usize = 1_024;

/// Far beyond what a run takes.
const DEADLINE: Duration = Duration::from_secs(60);

const CONTESTANTS: [&str; 9] = [
    "raw_tls_4",
    "raw_tls_16",
    "raw_tls_64",
    "raw_http_4",
    "raw_http_16",
    "raw_http_64",
    "ours_16",
    "ours_64",
    "ours_all",
];

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = benches::runtime()?;
    if args.role.as_deref() == Some(fleet::ROLE) {
        let served = runtime.block_on(fleet::serve_until_told());
        runtime.shutdown_background();
        return served;
    }
    let mut report = Report::new("handshake", "tokio 1.54, tokio-rustls 0.26, rustls 0.23 (aws-lc-rs), hyper 1");
    for (scenario, hosts, tickets) in
        [("full_many_hosts", HOSTS, false), ("resuming_many_hosts", HOSTS, true), ("full_one_host", 1, false)]
    {
        if !args.wants(scenario) {
            continue;
        }
        let mut servers = Fleet::start(&FleetSpec { handler_ms: 0, tickets, ..FleetSpec::healthy(hosts) })?;
        // Tickets come after the handshake: a loop that never reads does not get them.
        let fits = |name: &&str| args.wants_contestant(name) && !(tickets && name.starts_with("raw_tls"));
        let names: Vec<&str> = CONTESTANTS.iter().copied().filter(fits).collect();
        for (round, order) in args.orders(&names).into_iter().enumerate() {
            eprintln!("{scenario} round {} of {}: load {}", round + 1, args.rounds(), machine::load());
            for name in order {
                servers.seen()?;
                contest(scenario, name, &mut servers, &mut report)?;
            }
        }
        for raw in ["raw_http", "raw_tls"] {
            let best = |of: &str| {
                let names: Vec<&str> = CONTESTANTS.into_iter().filter(|name| name.starts_with(of)).collect();
                report.best(scenario, &names, "us_per_conn")
            };
            let (ours, theirs) = (best("ours"), best(raw));
            let what = format!("time per connection, best of ours to best {raw} (rate ≥ 0.9)");
            report.judge(scenario, &what, ours, theirs, 1.0 / 0.9);
        }
    }
    report.finish("us_per_conn")
}

#[allow(clippy::cast_precision_loss)]
fn contest(scenario: &str, name: &str, servers: &mut Fleet, report: &mut Report) -> Result<()> {
    let runtime = benches::runtime()?;
    let cpu_before = machine::cpu_s();
    let took = runtime.block_on(async {
        match name.rsplit_once('_') {
            Some(("ours", "all")) => ours(&servers.ready, CONNECTIONS).await,
            Some(("ours", callers)) => ours(&servers.ready, callers.parse()?).await,
            Some((kind, workers)) => raw(&servers.ready, workers.parse()?, kind == "raw_http").await,
            None => bail!("there is no contestant {name}"),
        }
    })?;
    let cpu_s = machine::cpu_s() - cpu_before;
    runtime.shutdown_timeout(Duration::from_secs(2));
    let seen = servers.seen()?;
    if (seen.handshakes as usize) < CONNECTIONS {
        bail!("{name} made {} connections of {CONNECTIONS}", seen.handshakes);
    }
    let count = CONNECTIONS as f64;
    report.add(scenario, name, "us_per_conn", "µs", took.as_secs_f64() * 1e6 / count);
    report.add(scenario, name, "conns_per_s", "1/s", count / took.as_secs_f64());
    report.add(scenario, name, "cpu_per_conn", "µs", cpu_s * 1e6 / count);
    report.add(scenario, name, "resumed", "share", seen.resumed as f64 / seen.handshakes as f64);
    Ok(())
}

async fn raw(ready: &fleet::Ready, workers: usize, http: bool) -> Result<Duration> {
    let tls = Arc::new(client::tls(&ready.ca_pem)?);
    let drivers = TaskTracker::new();
    let hosts = ready.addrs.iter().cycle().take(CONNECTIONS).copied();
    let work: Arc<Mutex<VecDeque<_>>> = Arc::new(Mutex::new(hosts.collect()));
    let mut running = JoinSet::new();
    let began = Instant::now();
    for _ in 0..workers {
        let (work, tls, drivers) = (Arc::clone(&work), Arc::clone(&tls), drivers.clone());
        running.spawn(async move {
            let (mut streams, mut senders) = (Vec::new(), Vec::new());
            loop {
                let next = work.lock().pop_front();
                let Some(addr) = next else { return anyhow::Ok((streams, senders)) };
                if http {
                    senders.push(Sender::open(addr, &tls, DEADLINE, &drivers).await?);
                } else {
                    streams.push(client::connect(addr, &tls).await?);
                }
            }
        });
    }
    let kept: Vec<_> = running.join_all().await;
    let took = Instant::now().saturating_duration_since(began);
    kept.into_iter().collect::<Result<Vec<_>>>().context("the raw loop")?;
    Ok(took)
}

async fn ours(ready: &fleet::Ready, callers: usize) -> Result<Duration> {
    let limits = LaneLimits {
        connections_per_origin_max: CONNECTIONS,
        connections_max: 8 * CONNECTIONS,
        dials_max: DIALS,
        dial_timeout: DEADLINE,
        ..LaneLimits::default()
    };
    let lane = Lane::builder("bench").tls(Arc::new(client::tls(&ready.ca_pem)?)).limits(limits).build()?;
    let origins: Result<Vec<_>, _> = ready.addrs.iter().map(|addr| Origin::parse(&format!("https://{addr}"))).collect();
    let handles: Vec<_> = origins?.iter().map(|origin| lane.origin(origin)).collect();
    let work: Arc<Mutex<VecDeque<_>>> =
        Arc::new(Mutex::new(handles.iter().cycle().take(CONNECTIONS).cloned().collect()));
    let mut running = JoinSet::new();
    let began = Instant::now();
    for _ in 0..callers {
        let work = Arc::clone(&work);
        running.spawn(async move {
            loop {
                let next = work.lock().pop_front();
                let Some(handle) = next else { return Ok(()) };
                handle.probe_dial(began + DEADLINE).await?;
            }
        });
    }
    let dialled = running.join_all().await;
    let took = Instant::now().saturating_duration_since(began);
    dialled.into_iter().collect::<Result<Vec<_>, pool::Error>>().context("our dials")?;
    Ok(took)
}
