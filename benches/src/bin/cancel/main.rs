//! `cancel`: what it costs when callers that wait give up, and what waiting callers cost the others.
//!
//! The first half parks N callers and drops them in random order. The second asks how the cost of one
//! operation grows with N others in line, next to the single supervisor, whose every start searches its
//! mailbox.

#![allow(clippy::print_stderr)]

mod contestants;
mod supervisor;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result};
use benches::args::Args;
use benches::report::Report;
use clap::Parser;

use crate::contestants::{Parker, cancel_all, join_and_leave};

/// Callers parked.
const PARKED: [usize; 4] = [1_000, 4_000, 10_000, 40_000];

/// Others in line.
const WAITING: [usize; 4] = [10, 10_000, 100_000, 1_000_000];

const VERSIONS: &str =
    "hyper-util 0.1 (legacy pool; pool::cache), tokio 1.54 Semaphore, single supervisor: scan cost measured on gun 2.1";

fn main() -> Result<()> {
    let args = Args::parse();
    let mut report = Report::new("cancel", VERSIONS);
    for parked in PARKED {
        let scenario = format!("cancel_{parked}");
        if args.wants(&scenario) && !(args.quick && parked == 4_000) {
            cancel(&args, &scenario, parked, &mut report)?;
        }
    }
    for waiting in WAITING {
        let scenario = format!("among_{waiting}");
        if args.wants(&scenario) && !(args.quick && waiting == 1_000_000) {
            among(&args, &scenario, waiting, &mut report)?;
        }
    }
    judge(&mut report);
    report.finish("us_per_op")
}

fn cancel(args: &Args, scenario: &str, parked: usize, report: &mut Report) -> Result<()> {
    for (round, order) in args.orders(Parker::ALL).into_iter().enumerate() {
        eprintln!("{scenario} round {} of {}: load {}", round + 1, args.rounds(), benches::machine::load());
        for parker in order {
            if !args.wants_contestant(parker.name()) {
                continue;
            }
            let runtime = benches::runtime()?;
            let us = runtime.block_on(cancel_all(parker, parked, args.seed + round as u64))?;
            runtime.shutdown_background();
            report.add(scenario, parker.name(), "us_per_op", "µs", us);
        }
    }
    Ok(())
}

fn among(args: &Args, scenario: &str, waiting: usize, report: &mut Report) -> Result<()> {
    let mut names: Vec<&str> = Parker::ALL.iter().map(|parker| parker.name()).collect();
    // A line of a million is beyond the ones, and the others stand in none.
    names.retain(|name| !name.starts_with("hyper_util") && !name.starts_with("nothing"));
    names.push("supervisor");
    for (round, order) in args.orders(&names).into_iter().enumerate() {
        eprintln!("{scenario} round {} of {}: load {}", round + 1, args.rounds(), benches::machine::load());
        for name in order {
            if !args.wants_contestant(name) {
                continue;
            }
            let us = match name {
                "supervisor" => supervisor::us_per_start(waiting)?,
                name => {
                    let named = Parker::ALL.iter().find(|parker| parker.name() == name);
                    let parker = *named.context("no such contestant")?;
                    let runtime = benches::runtime()?;
                    let us = runtime.block_on(join_and_leave(parker, waiting))?;
                    runtime.shutdown_background();
                    us
                }
            };
            report.add(scenario, name, "us_per_op", "µs", us);
        }
    }
    Ok(())
}

fn judge(report: &mut Report) {
    for (ours, theirs) in [("ours", "semaphore"), ("ours_request", "semaphore_request")] {
        judge_one(report, ours, theirs);
    }
}

/// `ours` is a caller that only wants a connection, `ours_request` one with its whole request; a Semaphore is
/// measured in the same two ways.
fn judge_one(report: &mut Report, ours: &str, semaphore: &str) {
    let metric = "us_per_op";
    let (few, many) = (report.median("cancel_1000", ours, metric), report.median("cancel_40000", ours, metric));
    report.judge("cancel_40000", &format!("{ours} per op to that at 1,000"), many, few, 2.0);
    for parked in PARKED {
        let scenario = format!("cancel_{parked}");
        let (mine, theirs) = (report.figure(&scenario, ours, metric), report.figure(&scenario, semaphore, metric));
        report.judge(&scenario, &format!("{ours} per op to {semaphore}"), mine, theirs, 2.0);
    }
    // R3: the slope from 10 waiting on.
    let rise = |report: &Report, name: &str, waiting: usize| {
        let low = report.median("among_10", name, metric)?;
        Some((report.median(&format!("among_{waiting}"), name, metric)? - low).max(0.0))
    };
    for waiting in [100_000, 1_000_000] {
        let (mine, theirs) = (rise(report, ours, waiting), rise(report, "supervisor", waiting));
        report.judge(&format!("among_{waiting}"), &format!("{ours}' slope to the supervisor's"), mine, theirs, 0.01);
    }
}
