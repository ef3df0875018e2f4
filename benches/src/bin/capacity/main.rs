//! `capacity`: how much one syncer holds, and what an operation costs it.
//!
//! Gateways send joins as lines over HTTPS to a syncer that places the calls on mock SFUs in another
//! process, and want results that lines share; beside them one sends single requests, and its times are what a user
//! would feel. A second contestant is the same syncer when each line has its own result, the third a bare hyper
//! server that reads the same lines with the same parser into the same types and does nothing with them. Then everything is placed, memory is read, and every gateway tells again
//! who is there, as it would to a syncer that came back.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::cast_precision_loss)]

mod load;
mod population;
mod role;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use benches::args::Args;
use benches::machine;
use benches::report::Report;
use clap::Parser;
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::load::{Sent, Target, Told};
use self::population::{Write, people};
use self::role::{PARSE_ONLY, Role, SFUS, SYNCER, Spec};

/// The command's allocator, for both contestants.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const SCENARIOS: [(&str, u64, bool); 5] = [
    ("calls_10k", 10_000, true),
    ("calls_50k", 50_000, true),
    ("calls_200k", 200_000, false),
    ("calls_500k", 500_000, false),
    ("calls_1m", 1_000_000, false),
];

/// The syncer where each line has its own result.
const EACH: &str = "syncer_each";

/// What costs are compared with.
const SMALLEST: &str = "calls_10k";
/// The published load that one process is to hold.
const LARGEST: &str = "calls_1m";

/// Calls of the single requests: after all others.
const PUT_CALLS: u64 = 10_000_000;
/// Calls whose people leave and come back, to see what an operation costs among so many.
const TOUCHED: u64 = 10_000;
/// Their writes then have numbers up to this.
const TOUCHED_UNTIL: u64 = 14;
/// Calls whose joins a server has read before it is timed, beside all others: a process that is new is slow.
const WARM_CALLS: Range<u64> = 20_000_000..20_001_000;
/// The first look at all SFUs takes no longer.
const WARM_WITHIN: Duration = Duration::from_secs(60);
/// Placing everything takes no longer.
const PLACED_WITHIN: Duration = Duration::from_secs(600);
/// How long joins by request are counted.
const PUTS_FOR: Duration = Duration::from_secs(2);
/// How often it is looked whether all is placed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = benches::runtime()?;
    if let Some(role) = &args.role {
        let played = runtime.block_on(role::play(role));
        runtime.shutdown_background();
        return played;
    }
    let dir = std::env::temp_dir().join(format!("trunkline-capacity-{}", std::process::id()));
    let measured = runtime.block_on(measure(&args, dir.clone()));
    let _removed = std::fs::remove_dir_all(&dir);
    measured?.finish("us_per_join")
}

async fn measure(args: &Args, dir: PathBuf) -> Result<Report> {
    let mut report = Report::new("capacity", "tokio 1.54, hyper 1, tokio-rustls 0.26, rustls 0.23 (aws-lc-rs)");
    let tls = role::client_tls(&role::certify(&dir)?)?;
    let spec = Spec { dir, limits: open_limits() };
    for (scenario, calls, quick) in SCENARIOS {
        if !args.wants(scenario) || (args.quick && !quick) {
            continue;
        }
        let names: Vec<&str> = [SYNCER, EACH, PARSE_ONLY].into_iter().filter(|n| args.wants_contestant(n)).collect();
        for (round, order) in args.orders(&names).into_iter().enumerate() {
            eprintln!("{scenario} round {} of {}: load {}", round + 1, args.rounds(), machine::load());
            for name in order {
                let mut run = Run { scenario, calls, report: &mut report };
                let start = |role| Role::start(role, &spec);
                if name == PARSE_ONLY {
                    let server = start(PARSE_ONLY)?;
                    run.parse_only(&server, Target { addr: server.addr, tls: tls.clone() }).await?;
                } else {
                    let sfus = start(SFUS)?;
                    let began = Instant::now();
                    let syncer = start(SYNCER)?; // it is ready when it says where it listens
                    run.add(name, "start", "s", Instant::now().saturating_duration_since(began).as_secs_f64());
                    let target = Target { addr: syncer.addr, tls: tls.clone() };
                    if name == SYNCER {
                        run.syncer(&syncer, target).await?;
                    } else {
                        run.joins(EACH, &syncer, &target, Told::Each).await?;
                    }
                    drop((syncer, sfus));
                }
            }
        }
        judge(&mut report, scenario);
    }
    Ok(report)
}

/// No limit but the work itself; creations stay at their usual pace until all have joined.
fn open_limits() -> BTreeMap<String, toml::Value> {
    let limits: [(&str, toml::Value); 13] = [
        ("admission.queue_age_max", "1d".into()),
        ("admission.lag_max", "1m".into()),
        ("admission.guild_share", 1.0.into()),
        ("admission.new_calls.rate", 1e6.into()),
        ("admission.new_calls.burst", 1_000_000.into()),
        ("placement.region.rate", 1e5.into()),
        ("placement.region.burst", 10_000.into()),
        ("placement.sfu.rate", 1e4.into()),
        ("placement.sfu.burst", 1_000.into()),
        ("placement.overall.rate", 400.0.into()),
        ("health.slow_after", "30s".into()),
        ("digest.paused", true.into()),
        ("calls.empty_grace", "60s".into()),
    ];
    limits.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn judge(report: &mut Report, scenario: &str) {
    let joins = |r: &Report, who| r.figure(scenario, who, "us_per_join");
    let (ours, bare) = (joins(report, SYNCER), joins(report, PARSE_ONLY));
    report.judge(scenario, "time per join to the parse-only server's (rate ≥ 0.5)", ours, bare, 2.0);
    let ours = |r: &Report, metric| r.median(scenario, SYNCER, metric);
    let bytes = ours(report, "bytes_per_person");
    if scenario == LARGEST {
        report.judge(scenario, "bytes per participant to 200", bytes, Some(200.0), 1.0);
        let resync = ours(report, "resync_s");
        report.judge(scenario, "seconds of a full re-sync to 60", resync, Some(60.0), 1.0);
    }
    let (here, least) = (ours(report, "cpu_per_op"), report.median(SMALLEST, SYNCER, "cpu_per_op"));
    if scenario != SMALLEST {
        report.judge(scenario, "cost of an operation to that among 10 k calls", here, least, 1.2);
    }
}

/// One contestant in one round.
struct Run<'a> {
    scenario: &'static str,
    calls: u64,
    report: &'a mut Report,
}

// === impl Run ===

impl Run<'_> {
    fn add(&mut self, who: &str, metric: &str, unit: &'static str, value: f64) {
        self.report.add(self.scenario, who, metric, unit, value);
    }

    fn joined(&mut self, who: &str, sent: Sent, cpu_s: f64) {
        let lines = sent.lines as f64;
        self.add(who, "us_per_join", "µs", sent.took.as_secs_f64() * 1e6 / lines);
        self.add(who, "joins_per_s", "1/s", lines / sent.took.as_secs_f64());
        self.add(who, "cpu_per_join", "µs", cpu_s * 1e6 / lines);
    }

    async fn parse_only(&mut self, server: &Role, target: Target) -> Result<()> {
        target.lines(WARM_CALLS, Write::Join { seq: 1 }, Told::Each).await?;
        let cpu = server.cpu_s();
        let sent = target.lines(0..self.calls, Write::Join { seq: 1 }, Told::Each).await?;
        self.joined(PARSE_ONLY, sent, server.cpu_s() - cpu);
        Ok(())
    }

    /// Everyone joins. Returns what was resident before.
    async fn joins(&mut self, who: &str, server: &Role, target: &Target, told: Told) -> Result<f64> {
        self.seen(target).await?;
        all_done(target.lines(WARM_CALLS, Write::Join { seq: 1 }, told).await?)?;
        let (empty, cpu) = (server.rss_bytes(), server.cpu_s());
        let sent = target.lines(0..self.calls, Write::Join { seq: 1 }, told).await?;
        all_done(sent)?;
        self.joined(who, sent, server.cpu_s() - cpu);
        let grown = server.rss_bytes() - empty;
        self.add(who, "bytes_per_person_unplaced", "B", grown / people(self.calls) as f64);
        Ok(empty)
    }

    async fn syncer(&mut self, server: &Role, target: Target) -> Result<()> {
        let empty = self.joins(SYNCER, server, &target, Told::Together).await?;
        self.place(&target).await?;
        let status = target.ask(Method::GET, "/v1/status", &Value::Null).await?;
        let held = status["participants"].as_u64().context("status tells the participants")?;
        let sent = people(self.calls);
        if held != sent + people(WARM_CALLS.end) - people(WARM_CALLS.start) || status["invariant_violations"] != 0 {
            bail!("{held} participants of {sent}: {status}");
        }
        self.add(SYNCER, "bytes_per_person", "B", (server.rss_bytes() - empty) / sent as f64);

        self.touch(server, &target).await?;
        let cpu = server.cpu_s();
        let sent = target.lines(0..self.calls, Write::Tell { seq: 1 }, Told::Together).await?;
        all_done(sent)?;
        self.add(SYNCER, "resync_s", "s", sent.took.as_secs_f64());
        self.add(SYNCER, "resync_cpu_per_line", "µs", (server.cpu_s() - cpu) * 1e6 / sent.lines as f64);

        self.puts(&target).await
    }

    /// Waits until the syncer has looked at each SFU once: the first look at a hundred of them is a hundred
    /// handshakes, which a syncer has behind it when gateways tell it anything.
    async fn seen(&self, target: &Target) -> Result<()> {
        let by = Instant::now() + WARM_WITHIN;
        loop {
            let sfus = target.ask(Method::GET, "/v1/sfus", &Value::Null).await?;
            let sfus = sfus["sfus"].as_array().context("a list of SFUs")?;
            if sfus.len() == role::NODES && sfus.iter().all(|sfu| sfu["load"].is_object()) {
                return Ok(());
            }
            if Instant::now() > by {
                bail!("the syncer has not looked at all SFUs in time");
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Lets everything be placed as fast as it goes.
    async fn place(&mut self, target: &Target) -> Result<()> {
        let levers = json!({"placement.overall.rate": 1e5, "placement.overall.burst": 1_000});
        target.ask(Method::PATCH, "/v1/levers", &levers).await?;
        let began = Instant::now();
        let status = |status: &Value, key: &str| status[key].as_u64().unwrap_or(u64::MAX);
        let before = target.ask(Method::GET, "/v1/status", &Value::Null).await?;
        loop {
            let now = target.ask(Method::GET, "/v1/status", &Value::Null).await?;
            let took = Instant::now().saturating_duration_since(began);
            if status(&now, "awaiting") == 0 {
                let placed = status(&now, "placed").saturating_sub(status(&before, "placed"));
                self.add(SYNCER, "placed_per_s", "1/s", placed as f64 / took.as_secs_f64());
                return Ok(());
            }
            if took > PLACED_WITHIN {
                bail!("not all calls were placed in time: {now}");
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// People of some calls leave and come back: what one operation costs among so many calls.
    async fn touch(&mut self, server: &Role, target: &Target) -> Result<()> {
        let first = (self.calls - TOUCHED) / 2 / 5 * 5;
        let cpu = server.cpu_s();
        let mut lines = 0;
        // CPU is counted in hundredths of a second: so many that one of them is little.
        for seq in 2..TOUCHED_UNTIL {
            let write = if seq % 2 == 0 { Write::Leave { seq } } else { Write::Tell { seq } };
            let sent = target.lines(first..first + TOUCHED, write, Told::Together).await?;
            all_done(sent)?;
            lines += sent.lines;
        }
        self.add(SYNCER, "cpu_per_op", "µs", (server.cpu_s() - cpu) * 1e6 / lines as f64);
        Ok(())
    }

    /// Single requests, beside the lines of as many new sessions.
    async fn puts(&mut self, target: &Target) -> Result<()> {
        let stop = CancellationToken::new();
        let lines = async {
            let began = Instant::now();
            let mut seq = TOUCHED_UNTIL;
            while Instant::now().saturating_duration_since(began) < Duration::from_secs(3) {
                target.lines(0..self.calls.min(TOUCHED), Write::Tell { seq }, Told::Together).await?;
                seq += 1;
            }
            stop.cancel();
            anyhow::Ok(())
        };
        let (puts, lines) = tokio::join!(target.puts(PUT_CALLS, stop.clone()), lines);
        lines?;
        let puts = puts?;
        for (name, quantile) in [("put_p50", 0.5), ("put_p99", 0.99)] {
            self.add(SYNCER, name, "ms", puts.us.value_at_quantile(quantile) as f64 / 1e3);
        }
        self.add(SYNCER, "puts_failed", "", puts.failed as f64);
        let joins = target.joins_by_put(0..self.calls.min(TOUCHED), PUTS_FOR).await?;
        self.add(SYNCER, "put_joins_per_s", "1/s", joins);
        Ok(())
    }
}

fn all_done(sent: Sent) -> Result<()> {
    if sent.done != sent.lines {
        bail!("{} of {} lines were done", sent.done, sent.lines);
    }
    Ok(())
}
