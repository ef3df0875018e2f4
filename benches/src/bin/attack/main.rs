//! `attack`: what clients that finish nothing do to those that do.
//!
//! A syncer in a process of its own serves a steady load, with and without a crowd of idle attackers in
//! a third process: connections that say nothing, half a head, or half a body. Whoever is dropped comes
//! back a second later, so that the crowd stands. Attackers are cheap here on purpose: what is measured
//! is what *standing* connections cost, not a flood of handshakes.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod attackers;
mod load;
mod server;

use std::time::Duration;

use anyhow::Result;
use benches::args::Args;
use benches::machine;
use benches::report::Report;
use clap::Parser;

use self::attackers::Attackers;
use self::server::Server;

/// The crowd: what the syncer takes by default is as many.
const ATTACKERS_FULL: usize = 10_000;
const ATTACKERS_QUICK: usize = 1_000;

/// Ratio of the p99 with attackers to the one without, at most.
const RATIO_MAX: f64 = 2.0;

/// What the server allows the slowest of them, in seconds: half a body, and silence before a handshake.
const BODY_IDLE_S: f64 = 10.0;
const HANDSHAKE_S: f64 = 5.0;

/// How long the load runs each time: 2,000 requests, so that the p99 has 20 beyond it.
const MEASURED: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok(); // the first thing of this process
    let args = Args::parse();
    let runtime = benches::runtime()?;
    match args.role.as_deref().map(|role| role.split(' ').collect::<Vec<_>>()).as_deref() {
        Some(["server", scheme]) => return runtime.block_on(server::serve_until_told(scheme)),
        Some(["attackers", addr, kinds, count]) => {
            return runtime.block_on(attackers::stand_until_told(addr.parse()?, kinds, count.parse()?));
        }
        _ => {}
    }
    let crowd = if args.quick { ATTACKERS_QUICK } else { ATTACKERS_FULL };
    let mut report = Report::new("attack", "axum 0.8, hyper 1, tokio-rustls 0.26, reqwest 0.13");
    // Over TLS the attackers do not even begin a handshake: silence is all they need.
    for (scenario, scheme, kinds, limit) in
        [("http_half_requests", "http", "mixed", BODY_IDLE_S), ("https_silence", "https", "silent", HANDSHAKE_S)]
    {
        if !args.wants(scenario) {
            continue;
        }
        let server = Server::start(scheme)?;
        runtime.block_on(load::run(&server.ready, Duration::from_secs(2)))?; // warm
        for (round, order) in args.orders(&["alone", "attacked"]).into_iter().enumerate() {
            eprintln!("{scenario} round {} of {}: load {}", round + 1, args.rounds(), machine::load());
            for name in order {
                let attackers = match name {
                    "attacked" => Some(Attackers::start(&server.ready.addr, kinds, crowd)?),
                    _ => None,
                };
                let before = runtime.block_on(load::seen(&server.ready))?;
                let done = runtime.block_on(load::run(&server.ready, MEASURED))?;
                let after = runtime.block_on(load::seen(&server.ready))?;
                for (quantile, metric) in [(0.5, "p50"), (0.99, "p99")] {
                    report.add(scenario, name, metric, "ms", done.latencies.ms(quantile));
                }
                report.add(scenario, name, "failed", "", done.failed);
                report.add(scenario, name, "connections", "", after.connections);
                report.add(scenario, name, "server cpu", "s", after.cpu_s - before.cpu_s);
                report.add(scenario, name, "server rss", "MiB", after.rss_bytes / f64::from(1 << 20));
                if let Some(attackers) = attackers {
                    let left = attackers.end()?;
                    report.add(scenario, name, "dropped", "", left.dropped);
                    report.add(scenario, name, "stood, longest", "s", left.longest_s);
                    report.add(scenario, name, "never dropped", "", left.never_dropped);
                }
            }
        }
        let (attacked, alone) = (report.figure(scenario, "attacked", "p99"), report.figure(scenario, "alone", "p99"));
        report.judge(scenario, "p99 with attackers to p99 without", attacked, alone, RATIO_MAX);
        let never = report.summary(scenario, "attacked", "never dropped").map(|s| s.max);
        report.judge(scenario, "attackers that were never dropped", never, Some(0.0), 1.0);
        let stood = report.summary(scenario, "attacked", "stood, longest").map(|s| s.max);
        report.judge(
            scenario,
            "the longest stay to what the server allows and a second",
            stood,
            Some(limit + 1.0),
            1.0,
        );
        let failed = report.summary(scenario, "attacked", "failed").map(|s| s.max);
        report.judge(scenario, "requests of others that failed", failed, Some(0.0), 1.0);
    }
    report.finish("p99")
}
