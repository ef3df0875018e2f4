//! `capacity`: how much one syncer holds, and what an operation costs it.
//!
//! Gateways send joins as lines over HTTPS to a syncer that places the calls on mock SFUs in another
//! process, and want results that lines share. A second contestant is the same syncer when each line has its own
//! result, the third a bare hyper server that reads the same lines with the same parser into the same types and does
//! nothing with them. Then everything is placed, memory is read, people of calls anywhere leave and come back, and every
//! gateway tells everything again in a round, to a syncer that knows it. At last people of other calls join by lines, and
//! beside them one gateway sends single requests: their times are what a user would feel.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::cast_precision_loss)]

mod load;
mod population;
mod role;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use benches::args::Args;
use benches::machine;
use benches::report::Report;
use clap::Parser;
use http::Method;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::load::{Puts, Sent, Target, Told};
use self::population::{Call, Write, calls, people};
use self::role::{PARSE_ONLY, Role, SFUS, SYNCER, Spec};

/// The command's allocator, for all contestants.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Its name, how many calls there are, and whether a quick run has it.
type Scenario = (&'static str, u64, bool);

const SCENARIOS: [Scenario; 5] = [
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

/// Calls that are placed in a second while people join.
const PLACED_PER_S: f64 = 400.0;
/// Calls of the single requests: after those of the scenario.
const PUT_CALLS: u64 = 10_000_000;
/// Calls whose people join by lines beside single requests: after all others.
const BESIDE_CALLS: u64 = 30_000_000;
/// As many as the scenario has, and no more than this at a time: about a second of joins.
const BESIDE_MAX: u64 = 500_000;
/// They are others so often at most: among few calls that makes fewer requests than wanted, and their number is reported.
const REPEATED_MAX: u64 = 8;
/// Single requests of a round, so that twenty are beyond the 99th of a hundred.
const PUTS_WANTED: u64 = 2_000;
/// Calls whose people leave and come back, to see what an operation costs among so many: as many at a time in every
/// scenario, for calls without people wait in a set of their own.
const TOUCHED: usize = 10_000;
/// Times that others do. CPU is counted in hundredths of a second, of which this is some tens.
const TOUCHES: usize = 6;
/// Decides which they are.
const TOUCHED_SEED: u64 = 1;
/// Calls that people join by request as fast as it goes.
const JOINED_BY_PUT: u64 = 10_000;
/// What a gateway did not tell again is kept no longer than this.
const RESUME_WINDOW: Duration = Duration::from_secs(1);
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
    let wanted = |(scenario, _, quick): &Scenario| args.wants(scenario) && (*quick || !args.quick);
    let sizes: Vec<Scenario> = SCENARIOS.into_iter().filter(wanted).collect();
    let mut turns = sizes.clone();
    let names: Vec<&str> = [SYNCER, EACH, PARSE_ONLY].into_iter().filter(|n| args.wants_contestant(n)).collect();
    // Sizes are compared with each other as well, so each round has all of them, and begins with another one than the last.
    for (round, order) in args.orders(&names).into_iter().enumerate() {
        for (scenario, calls, _) in turns.iter().copied() {
            eprintln!("round {} of {}, {scenario}: load {}", round + 1, args.rounds(), machine::load());
            for name in &order {
                Run { scenario, calls, report: &mut report }.contestant(name, &spec, &tls).await?;
            }
        }
        turns.rotate_left(1);
    }
    for (scenario, ..) in sizes {
        judge(&mut report, scenario);
    }
    Ok(report)
}

/// No limit but the work itself; creations stay at their usual pace until all have joined.
fn open_limits() -> BTreeMap<String, toml::Value> {
    let limits: [(&str, toml::Value); 14] = [
        ("admission.queue_age_max", "1d".into()),
        ("admission.lag_max", "1m".into()),
        ("admission.guild_share", 1.0.into()),
        ("admission.new_calls.rate", 1e6.into()),
        ("admission.new_calls.burst", 1_000_000.into()),
        ("placement.region.rate", 1e5.into()),
        ("placement.region.burst", 10_000.into()),
        ("placement.sfu.rate", 1e4.into()),
        ("placement.sfu.burst", 1_000.into()),
        ("placement.overall.rate", PLACED_PER_S.into()),
        ("health.slow_after", "30s".into()),
        ("digest.paused", true.into()),
        ("calls.empty_grace", "60s".into()),
        ("gateways.resume_window", format!("{}ms", RESUME_WINDOW.as_millis()).into()),
    ];
    limits.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn judge(report: &mut Report, scenario: &str) {
    let joins = |r: &Report, who| r.figure(scenario, who, "us_per_join");
    let bare = joins(report, PARSE_ONLY);
    for (who, what) in [
        (SYNCER, "time per join to the parse-only server's (rate ≥ 0.5)"),
        (EACH, "time per join with a result of its own to the parse-only server's (rate ≥ 0.5)"),
    ] {
        report.judge(scenario, what, joins(report, who), bare.clone(), 2.0);
    }
    let ours = |r: &Report, metric| r.median(scenario, SYNCER, metric);
    let bytes = ours(report, "bytes_per_person");
    if scenario == LARGEST {
        report.judge(scenario, "bytes per participant to 200", bytes, Some(200.0), 1.0);
        let resync = ours(report, "resync_s");
        report.judge(scenario, "seconds of a full re-sync to 60", resync, Some(60.0), 1.0);
    }
    let cpu = |scenario| report.figure(scenario, SYNCER, "cpu_per_op");
    let (here, least) = (cpu(scenario), cpu(SMALLEST));
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

    async fn contestant(&mut self, name: &'static str, spec: &Spec, tls: &Arc<ClientConfig>) -> Result<()> {
        if name == PARSE_ONLY {
            let server = Role::start(PARSE_ONLY, spec)?;
            return self.parse_only(&server, Target { addr: server.addr, tls: Arc::clone(tls) }).await;
        }
        let _sfus = Role::start(SFUS, spec)?;
        let began = Instant::now();
        let syncer = Role::start(SYNCER, spec)?; // it is ready when it says where it listens
        self.add(name, "start", "s", Instant::now().saturating_duration_since(began).as_secs_f64());
        let target = Target { addr: syncer.addr, tls: Arc::clone(tls) };
        if name == SYNCER {
            self.syncer(&syncer, target).await
        } else {
            self.joins(EACH, &syncer, &target, Told::Each).await.map(drop)
        }
    }

    async fn parse_only(&mut self, server: &Role, target: Target) -> Result<()> {
        target.lines(&calls(WARM_CALLS).into(), Write::Join, Told::Each).await?;
        let (all, cpu) = (calls(0..self.calls).into(), server.cpu_s());
        let sent = target.lines(&all, Write::Join, Told::Each).await?;
        self.joined(PARSE_ONLY, sent, server.cpu_s() - cpu);
        Ok(())
    }

    /// Everyone joins. Returns what was resident before.
    async fn joins(&mut self, who: &str, server: &Role, target: &Target, told: Told) -> Result<f64> {
        self.seen(target).await?;
        all_done(target.lines(&calls(WARM_CALLS).into(), Write::Join, told).await?)?;
        let (all, empty, cpu) = (calls(0..self.calls).into(), server.rss_bytes(), server.cpu_s());
        let sent = target.lines(&all, Write::Join, told).await?;
        all_done(sent)?;
        self.joined(who, sent, server.cpu_s() - cpu);
        let grown = server.rss_bytes() - empty;
        self.add(who, "bytes_per_person_unplaced", "B", grown / people(self.calls) as f64);
        Ok(empty)
    }

    async fn syncer(&mut self, server: &Role, target: Target) -> Result<()> {
        let empty = self.joins(SYNCER, server, &target, Told::Together).await?;
        self.place(&target).await?;
        let held = self.everyone(&target).await?;
        let rss = server.rss_bytes();
        self.add(SYNCER, "bytes_per_person", "B", (rss - empty) / people(self.calls) as f64);
        self.add(SYNCER, "rss_per_person", "B", rss / held as f64);

        let told = self.touch(server, &target).await?;
        self.resync(server, &target, told).await?;
        self.puts(&target).await
    }

    /// Everyone who joined is there, and nobody has expired. Returns how many they are.
    async fn everyone(&self, target: &Target) -> Result<u64> {
        let status = target.ask(Method::GET, "/v1/status", &Value::Null).await?;
        let joined = people(self.calls) + people(WARM_CALLS.end) - people(WARM_CALLS.start);
        let tells = |key: &str, what: u64| status[key] == what;
        if !tells("participants", joined) || !tells("sessions_expired_total", 0) || !tells("invariant_violations", 0) {
            bail!("not the {joined} participants who joined: {status}");
        }
        Ok(joined)
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

    /// People of calls anywhere leave and come back: what one operation costs among so many calls. Returns how far the
    /// writes of all calls are then.
    async fn touch(&mut self, server: &Role, target: &Target) -> Result<Vec<Call>> {
        let (mut all, mut rng) = (calls(0..self.calls), StdRng::seed_from_u64(TOUCHED_SEED));
        let cpu = server.cpu_s();
        let mut lines = 0;
        for _ in 0..TOUCHES {
            let drawn = index::sample(&mut rng, all.len(), TOUCHED.min(all.len()));
            for write in [Write::Leave, Write::Tell] {
                drawn.iter().for_each(|at| all[at].seq += 1);
                let sent = target.lines(&drawn.iter().map(|at| all[at]).collect(), write, Told::Together).await?;
                all_done(sent)?;
                lines += sent.lines;
            }
        }
        self.add(SYNCER, "cpu_per_op", "µs", (server.cpu_s() - cpu) * 1e6 / lines as f64);
        Ok(all)
    }

    /// Every gateway tells everything again, in a stream and a round: until the last of them hears that all was done, and
    /// the syncer knows what it was not told. That is nothing, so everyone is there when it would have expired.
    async fn resync(&mut self, server: &Role, target: &Target, mut told: Vec<Call>) -> Result<()> {
        told.extend(calls(WARM_CALLS));
        let (told, cpu) = (told.into(), server.cpu_s());
        let sent = target.lines(&told, Write::Resync, Told::Each).await?;
        all_done(sent)?;
        self.add(SYNCER, "resync_s", "s", sent.took.as_secs_f64());
        self.add(SYNCER, "resync_cpu_per_line", "µs", (server.cpu_s() - cpu) * 1e6 / sent.lines as f64);
        self.everyone(target).await?;
        sleep(RESUME_WINDOW * 2).await;
        self.everyone(target).await?;
        Ok(())
    }

    /// Single requests while the people of other, new calls join by lines at full speed. They leave again, with no
    /// request beside them, and others join, until there were requests enough.
    async fn puts(&mut self, target: &Target) -> Result<()> {
        let levers = json!({"placement.overall.rate": PLACED_PER_S});
        target.ask(Method::PATCH, "/v1/levers", &levers).await?;
        let beside = self.calls.min(BESIDE_MAX);
        let (mut puts, mut joined) = (Puts::new()?, Sent::default());
        for first in (0..REPEATED_MAX).map(|nth| BESIDE_CALLS + nth * beside) {
            let mut new = calls(first..first + beside);
            let stop = CancellationToken::new();
            let lines = async {
                let _stops = stop.clone().drop_guard();
                let sent = target.lines(&new.as_slice().into(), Write::Join, Told::Together).await?;
                all_done(sent)?;
                anyhow::Ok(sent)
            };
            let ((), sent) = tokio::try_join!(target.puts(PUT_CALLS, stop.clone(), &mut puts), lines)?;
            joined.lines += sent.lines;
            joined.took += sent.took;
            if puts.us.len() >= PUTS_WANTED {
                break;
            }
            new.iter_mut().for_each(|call| call.seq += 1);
            all_done(target.lines(&new.into(), Write::Leave, Told::Together).await?)?;
        }
        for (name, quantile) in [("put_p50", 0.5), ("put_p99", 0.99)] {
            self.add(SYNCER, name, "ms", puts.us.value_at_quantile(quantile) as f64 / 1e3);
        }
        self.add(SYNCER, "puts", "", puts.us.len() as f64);
        self.add(SYNCER, "puts_failed", "", puts.failed as f64);
        self.add(SYNCER, "joins_per_s_beside_puts", "1/s", joined.lines as f64 / joined.took.as_secs_f64());
        let joins = target.joins_by_put(0..self.calls.min(JOINED_BY_PUT), PUTS_FOR).await?;
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
