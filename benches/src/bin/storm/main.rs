//! `storm`: thousands of requests at once to many hosts, some of them dead.
//!
//! Three processes: the hosts, the registry, and for every run a fresh client with one contestant, so
//! that CPU and memory are its own. What is compared with is not bare reqwest but reqwest as a careful
//! engineer would set it up: a limit on connects and a semaphore per host. It runs with two settings,
//! and the better one in each cell is the bar.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod cells;
mod contestants;
mod lease;
mod load;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use benches::args::Args;
use benches::fleet::{self, Fleet, FleetSpec};
use benches::report::Report;
use clap::Parser;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::cells::{Cell, cells};
use crate::contestants::{MAIN, OTHERS};
use crate::lease::TTL;
use crate::load::{Figures, Storm, num};

/// The role of a process that makes one storm.
const CLIENT: &str = "client";

/// The registry's address, away from the hosts.
const REGISTRY: u32 = 100_000;

const VERSIONS: &str =
    "reqwest 0.13, hyper-util 0.1, hyper 1, rustls 0.23 (aws-lc-rs), single supervisor: scan cost measured on gun 2.1";

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = benches::runtime()?;
    match args.role.as_deref() {
        Some(fleet::ROLE) => {
            let served = runtime.block_on(fleet::serve_until_told());
            runtime.shutdown_background(); // A read of the standard input may be under way.
            served
        }
        Some(CLIENT) => {
            let mut line = String::new();
            std::io::stdin().read_to_string(&mut line)?;
            let _first = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let figures = runtime.block_on(load::run(serde_json::from_str(&line)?))?;
            println!("{}", serde_json::to_string(&figures)?);
            runtime.shutdown_background();
            Ok(())
        }
        _ => bench(&args),
    }
}

fn bench(args: &Args) -> Result<()> {
    let mut report = Report::new("storm", VERSIONS);
    let registry = FleetSpec { first: REGISTRY, handler_ms: 0, ..FleetSpec::healthy(1) };
    let registry = Fleet::start(&registry)?;
    for cell in cells() {
        if args.wants(cell.name) && (cell.quick || !args.quick || args.only.is_some()) {
            run_cell(args, &cell, &registry, &mut report)?;
            judge(&cell, &mut report);
        }
    }
    report.finish("p99")
}

fn run_cell(args: &Args, cell: &Cell, registry: &Fleet, report: &mut Report) -> Result<()> {
    let mut hosts = Fleet::start(&cell.fleet)?;
    let mut names = MAIN.to_vec();
    if cell.all || !args.contestants.is_empty() {
        names.extend(OTHERS);
    }
    // Hosts that stay dead hold all of 16 places, so that setting is never the better one; it would only cost ten
    // seconds a run. And one connection per request, as bare reqwest makes them, is beyond 20,000 files.
    names.retain(|name| {
        !(cell.fleet.fault.kills() && cell.outage_ms.is_none() && *name == "bar_16" && args.contestants.is_empty())
    });
    names.retain(|name| !(cell.tasks > 20_000 && *name == "reqwest"));
    names.retain(|name| args.wants_contestant(name));
    for (round, order) in args.orders(&names).into_iter().enumerate() {
        eprintln!("{} round {} of {}: load {}", cell.name, round + 1, args.rounds(), benches::machine::load());
        let seed = args.seed + round as u64;
        let outage = cell.outage_ms.clone().map(|range| StdRng::seed_from_u64(seed).random_range(range));
        let outage = outage.map(Duration::from_millis);
        for name in order {
            let mut addrs = hosts.ready.addrs.clone();
            addrs.extend(&registry.ready.addrs);
            hosts.seen()?;
            if let Some(outage) = outage {
                hosts.heal_in(outage)?;
            }
            let storm = Storm {
                contestant: name.to_owned(),
                ca_pem: format!("{}{}", hosts.ready.ca_pem, registry.ready.ca_pem),
                addrs,
                faulty: hosts.ready.faulty.clone(),
                tasks: cell.tasks,
                back_at: outage.map(|outage| SystemTime::now() + outage),
                seed,
            };
            let figures = client(&storm).with_context(|| format!("{name} in {}", cell.name))?;
            for (metric, unit, value) in figures {
                report.add(cell.name, name, &metric, unit_of(&unit), value);
            }
            let seen = hosts.seen()?;
            report.add(cell.name, name, "connections", "", num(seen.accepted));
            let resumed = if seen.handshakes == 0 { 0.0 } else { num(seen.resumed) / num(seen.handshakes) };
            report.add(cell.name, name, "resumed", "share", resumed);
            if outage.is_some() {
                hosts.break_again()?;
            }
        }
    }
    Ok(())
}

fn client(storm: &Storm) -> Result<Figures> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--role", CLIENT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no input")?.write_all(serde_json::to_string(storm)?.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("the client failed: {}", output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn unit_of(unit: &str) -> &'static str {
    ["ms", "s", "MiB", "share"].into_iter().find(|known| *known == unit).unwrap_or("")
}

/// The share of the bar's connections that ours may open, from 100 hosts.
const CONNECTIONS_SHARE: f64 = 0.3;

/// The bars.
fn judge(cell: &Cell, report: &mut Report) {
    let name = cell.name;
    let bars = ["bar_16", "bar_256"];
    let dead = cell.fleet.fault.kills();
    let most = if dead { 0.8 } else { 1.05 };
    for metric in ["drain", "p99"] {
        let (ours, bar) = (report.figure(name, "ours", metric), report.best(name, &bars, metric));
        report.judge(name, &format!("{metric} to the better bar"), ours, bar, most);
    }
    if cell.outage_ms.is_some() {
        let metric = "drain_back"; // What came before is the outage, for all alike.
        let (ours, bar) = (report.figure(name, "ours", metric), report.best(name, &bars, metric));
        report.judge(name, "drain since the hosts are back to the better bar", ours, bar, most);
    }
    if cell.fleet.hosts >= 100 {
        let (ours, bar) = (report.figure(name, "ours", "connections"), report.best(name, &bars, "connections"));
        // Fewer than one for each host that is alive cannot be.
        let least = f64::from(cell.fleet.hosts) * if dead { 0.8 } else { 1.0 };
        let bar = bar.map(|bar| bar.map(|connections| connections.max(least / CONNECTIONS_SHARE)));
        report.judge(name, "connections to the thriftier bar (or one per live host)", ours, bar, CONNECTIONS_SHARE);
    }
    if cell.fleet.handler_ms == 200 {
        for metric in ["drain", "p99"] {
            let (ours, bare) = (report.figure(name, "ours", metric), report.figure(name, "reqwest", metric));
            report.judge(name, &format!("{metric} to bare reqwest"), ours, bare, 1.1);
        }
    }
    let lease = report.figure(name, "ours", "lease_p99");
    let sixth = TTL.as_secs_f64() * 1e3 / 6.0;
    report.judge(name, "lease p99 to a sixth of its time", lease.clone(), Some(sixth), 1.0);
    let same = report.figure(name, "ours", "same_on_storm_lane_p99");
    report.judge(name, "lease p99 to the same request on the storm's lane", lease, same, 0.1);
    let lost = report.summary(name, "ours", "leases_lost").map(|lost| lost.max);
    report.judge(name, "leases lost (most in a round, to 1)", lost, Some(1.0), 0.0);
    let failed = report.summary(name, "ours", "failed").map(|failed| failed.max);
    report.judge(name, "failed on healthy hosts (most in a round, to 1)", failed, Some(1.0), 0.0);
}
