//! `attack`: what clients that finish nothing do to those that do.
//!
//! A syncer in a process of its own serves a steady load, with and without a crowd of idle attackers in
//! a third process: connections that say nothing, half a head, or half a body, over plain TCP, over TLS before its
//! handshake or after it ([`scenario::SCENARIOS`]). Attackers are cheap here on purpose: what is measured
//! is what *standing* connections cost, not a flood of handshakes.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod attackers;
mod load;
mod scenario;
mod server;

use std::time::Duration;

use anyhow::{Context as _, Result};
use benches::args::Args;
use benches::machine;
use benches::report::Report;
use clap::Parser;

use self::attackers::Attackers;
use self::scenario::{SCENARIOS, Scenario};
use self::server::Server;

/// The crowd: what the syncer takes by default is as many.
const ATTACKERS_FULL: u32 = 10_000;
const ATTACKERS_QUICK: u32 = 1_000;

/// Ratio of the p99 with attackers to the one without, at most.
const RATIO_MAX: f64 = 2.0;

/// How long the load runs each time: 2,000 requests, so that the p99 has 20 beyond it.
const MEASURED: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok(); // the first thing of this process
    let args = Args::parse();
    let runtime = benches::runtime()?;
    let named = |name: &str| Scenario::named(name).with_context(|| format!("no scenario {name}"));
    match args.role.as_deref().map(|role| role.split(' ').collect::<Vec<_>>()).as_deref() {
        Some(["server", name]) => return runtime.block_on(server::serve_until_told(named(name)?)),
        Some(["attackers", name, addr, count]) => {
            return runtime.block_on(attackers::stand_until_told(named(name)?, addr.parse()?, count.parse()?));
        }
        _ => {}
    }
    let crowd = if args.quick { ATTACKERS_QUICK } else { ATTACKERS_FULL };
    let mut report = Report::new("attack", "axum 0.8, hyper 1, tokio-rustls 0.26, reqwest 0.13");
    // A crowd that does not come back takes a minute for each round.
    for scenario in SCENARIOS.iter().filter(|s| args.wants(s.name) && (s.come_back || !args.quick)) {
        let server = Server::start(scenario)?;
        runtime.block_on(load::run(&server.ready, Duration::from_secs(2)))?; // warm
        for (round, order) in args.orders(&["alone", "attacked"]).into_iter().enumerate() {
            eprintln!("{} round {} of {}: load {}", scenario.name, round + 1, args.rounds(), machine::load());
            for name in order {
                let crowd =
                    if name == "attacked" { Some(Attackers::start(&server.ready, scenario, crowd)?) } else { None };
                runtime.block_on(measure(&mut report, scenario, name, &server, crowd))?;
            }
        }
        judge(&mut report, scenario, crowd);
    }
    report.finish("p99")
}

/// One contestant in one round.
async fn measure(
    report: &mut Report,
    scenario: &Scenario,
    name: &str,
    server: &Server,
    crowd: Option<Attackers>,
) -> Result<()> {
    let mut add = |metric: &str, unit: &'static str, value: f64| report.add(scenario.name, name, metric, unit, value);
    let before = load::seen(&server.ready).await?;
    let done = load::run(&server.ready, MEASURED).await?;
    let after = load::seen(&server.ready).await?;
    for (quantile, metric) in [(0.5, "p50"), (0.99, "p99")] {
        add(metric, "ms", done.latencies.ms(quantile));
    }
    add("failed", "", done.failed);
    add("connections", "", after.connections);
    add("server cpu", "s", after.cpu_s - before.cpu_s);
    add("server rss", "MiB", after.rss_bytes / f64::from(1 << 20));
    if let Some(crowd) = crowd {
        let left = crowd.end()?;
        add("dropped", "", left.dropped);
        add("stood, longest", "s", left.longest_s);
        add("never dropped", "", left.never_dropped);
    }
    Ok(())
}

fn judge(report: &mut Report, scenario: &Scenario, crowd: u32) {
    let name = scenario.name;
    let (attacked, alone) = (report.figure(name, "attacked", "p99"), report.figure(name, "alone", "p99"));
    report.judge(name, "p99 with attackers to p99 without", attacked, alone, RATIO_MAX);
    let most = |report: &Report, metric| report.summary(name, "attacked", metric).map(|s| s.max);
    let never = most(report, "never dropped");
    report.judge(name, "attackers that were never dropped", never, Some(0.0), 1.0);
    let stood = most(report, "stood, longest");
    let allowed = scenario.allowed.as_secs_f64() + 1.0;
    report.judge(name, "the longest stay to what the server allows and a second", stood, Some(allowed), 1.0);
    let failed = most(report, "failed");
    report.judge(name, "requests of others that failed", failed, Some(0.0), 1.0);
    if !scenario.come_back {
        // Those who are served have the place of a few.
        let least = report.summary(name, "attacked", "connections").map(|s| s.min);
        report.judge(name, "the crowd to what of it stands at the end", Some(f64::from(crowd)), least, 1.01);
    }
}
