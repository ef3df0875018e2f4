//! Holding a drill: start the gateways, follow the script, watch, settle, judge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{Targets, client, tls};
use crate::error::Error;
use crate::fleet::{Fleet, RoomAudit};
use crate::gateway::{Gateway, Shared};
use crate::ledger::Ledger;
use crate::media::Media;
use crate::observe::{Counts, Observer};
use crate::plan::{Metric, Plan};
use crate::population::Population;
use crate::reading::Reading;
use crate::report::{self, CheckReport, Outcome, PhaseReading, Report};
use crate::script::{Cue, Script};
use crate::stats::Stats;
use crate::syncers::Syncers;

/// How often the script looks and the observer is told.
const TICK: Duration = Duration::from_millis(100);
/// How often the series is sampled and the fleet polled.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at whether the drill has settled.
const SETTLE_LOOK: Duration = Duration::from_millis(500);
/// Settling of a drill that was ended from outside: what is on its way may arrive.
const SETTLE_CANCELLED_MAX: Duration = Duration::from_secs(2);
/// Everyone has left within this time, or does not.
const LEAVE_MAX: Duration = Duration::from_secs(15);
/// Tasks end within this time once told to: they wait for nothing but the network.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Calls without an endpoint that the report explains.
const EXPLAINED_MAX: usize = 5;

/// Holds a drill and reports. Numbers go to `observer` while it runs; `cancel` ends it early, with a report.
///
/// # Errors
///
/// When it cannot be held: a wrong target or CA, no syncer that answers, a control port that does
/// not, or levers that are refused.
///
/// # Cancel safety
///
/// Dropping the future stops the gateways without a report and without leaving.
pub async fn run(plan: Plan, targets: Targets, observer: Observer, cancel: CancellationToken) -> Result<Report, Error> {
    let stop = CancellationToken::new();
    let _stop_on_drop = stop.clone().drop_guard();
    let tracker = TaskTracker::new();
    let mut drill = Drill::prepare(plan, targets, observer, &stop, &tracker).await?;
    drill.start(&tracker);
    let ended = drill.play(&cancel).await;
    let report = match ended {
        Ok(missed) => Ok(drill.conclude(missed, &cancel).await),
        Err(error) => Err(error),
    };
    if report.is_ok() && drill.plan.leave_at_end && !cancel.is_cancelled() {
        drill.leave(&cancel).await;
    }
    stop.cancel();
    tracker.close();
    if tokio::time::timeout(STOP_MAX, tracker.wait()).await.is_err() {
        tracing::warn!(tasks = tracker.len(), "tasks of the drill did not end in time");
    }
    report
}

struct Drill {
    plan: Plan,
    shared: Arc<Shared>,
    gateways: Vec<Arc<Gateway>>,
    fleet: Arc<Fleet>,
    syncers: Arc<Syncers>,
    observer: Observer,
    started: Instant,
    started_at: u64,
    waves_due: usize,
    phases: Vec<PhaseReading>,
    series: Vec<Counts>,
}

// === impl Drill ===

impl Drill {
    async fn prepare(
        mut plan: Plan,
        targets: Targets,
        observer: Observer,
        stop: &CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<Self, Error> {
        let targets = targets.validated()?;
        if targets.ca_pem.is_none() && plan.population.media_share > 0.0 {
            tracing::warn!("without a CA no session can connect to its SFU, so none tries");
            plan.population.media_share = 0.0;
        }
        let tls = tls(targets.ca_pem.as_deref())?;
        let operator = client(&tls)?;
        let syncers = Syncers::new(&targets, operator.clone());
        syncers.find().await?;
        let fleet = Fleet::new(&targets.controls, &operator);
        fleet.find().await?;
        if let Some(budgets) = &plan.budgets {
            fleet.set_budgets(&syncers.budgets(budgets).await?).await?;
        }
        if plan.population.media_share > 0.0 && fleet.is_visible() {
            match syncers.jwks().await {
                Ok(jwks) => fleet.set_jwks(&jwks).await?,
                Err(error) => tracing::warn!(%error, "a syncer's keys are unknown, so the mocks check claims only"),
            }
        }
        let population = Population::generate(&plan, regions(&plan, &fleet, &syncers).await);
        let gateways_count = u16::try_from(plan.population.gateways).unwrap_or(u16::MAX);
        let started_at = unix_ms();
        let shared = Arc::new(Shared {
            ledger: Mutex::new(Ledger::new(population.calls(), gateways_count)),
            stats: Stats::default(),
            media: Arc::new(Media::new(&population, client(&tls)?, tracker.clone(), stop.clone())),
            population,
            targets,
            cancel: stop.clone(),
            leaving: AtomicBool::new(false),
        });
        let gateways = (0..gateways_count).map(|ix| Gateway::new(ix, Arc::clone(&shared), &tls, started_at));
        Ok(Self {
            gateways: gateways.collect::<Result<_, _>>()?,
            plan,
            shared,
            fleet: Arc::new(fleet),
            syncers: Arc::new(syncers),
            observer,
            started: Instant::now(),
            started_at,
            waves_due: 0,
            phases: Vec::new(),
            series: Vec::new(),
        })
    }

    fn start(&mut self, tracker: &TaskTracker) {
        self.started = Instant::now();
        for gateway in &self.gateways {
            gateway.start(tracker);
        }
        self.next_wave();
        let (fleet, syncers, shared) = (Arc::clone(&self.fleet), Arc::clone(&self.syncers), Arc::clone(&self.shared));
        let stop = self.shared.cancel.clone();
        tracker.spawn(stop.run_until_cancelled_owned(async move {
            let mut ticks = tokio::time::interval(SAMPLE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // Silence is the answer of a dead fleet; the report shows it.
                let (_, polled) = tokio::join!(fleet.poll(&shared.ledger), syncers.poll());
                if let Err(error) = polled {
                    tracing::debug!(%error, "no syncer answers");
                }
            }
        }));
    }

    fn next_wave(&mut self) {
        let now = Instant::now();
        let wave = self.shared.population.waves()[self.waves_due].clone();
        self.waves_due += 1;
        self.shared.ledger.lock().due(&wave);
        for gateway in &self.gateways {
            gateway.join_wave(&wave, now);
        }
    }

    /// Follows the script to its end; the phase that was missed, if one was.
    async fn play(&mut self, cancel: &CancellationToken) -> Result<Option<usize>, Error> {
        let mut script = Script::default();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sample_at = self.started;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = cancel.cancelled() => return Ok(None),
            }
            let now = Instant::now();
            let reading = self.reading(now);
            self.observer.tell(&reading.counts);
            if now >= sample_at {
                sample_at += SAMPLE_EVERY;
                report::sample(&mut self.series, &reading.counts);
            }
            match script.cue(&self.plan, now.saturating_duration_since(self.started), &reading) {
                Cue::Wait => {}
                Cue::Over => return Ok(None),
                Cue::Missed(phase) => return Ok(Some(phase)),
                Cue::Begin(phase) => self.begin(phase, reading).await?,
            }
        }
    }

    async fn begin(&mut self, ix: usize, reading: Reading) -> Result<(), Error> {
        let phase = self.plan.phases[ix].clone();
        self.end_phase(&reading);
        self.shared.ledger.lock().begin_phase();
        self.phases.push(PhaseReading { name: phase.name.clone(), start: reading.clone(), end: reading });
        tracing::info!(phase = phase.name, "phase begins");
        if phase.heal {
            self.fleet.heal().await?;
        }
        if let Some(fault) = &phase.fault {
            if !self.fleet.is_visible() {
                return Err(Error::target(format!("phase `{}` breaks SFUs, so it needs --control", phase.name)));
            }
            let seed = self.plan.seed.wrapping_add(u64::try_from(ix).unwrap_or(0));
            let hit = self.fleet.fault(fault, seed, &self.shared.ledger).await?;
            tracing::info!(phase = phase.name, sfus = hit, "broken");
        }
        if !phase.levers.is_empty() {
            self.syncers.set_levers(&phase.levers).await?;
        }
        if phase.add_calls > 0 {
            self.next_wave();
        }
        Ok(())
    }

    /// The running phase ends with `reading`, but with its own times.
    fn end_phase(&mut self, reading: &Reading) {
        if let Some(phase) = self.phases.last_mut() {
            let (awaiting, recovery) = self.shared.ledger.lock().phase_times();
            phase.end = Reading { awaiting, recovery, ..reading.clone() };
        }
    }

    fn reading(&self, now: Instant) -> Reading {
        let (counts, awaiting, recovery) = self.counts(now);
        Reading {
            counts,
            awaiting,
            recovery,
            attempts: self.syncers.attempts(),
            fleet_visible: self.fleet.is_visible(),
            media_on: self.shared.media.is_on(),
            ..Reading::default()
        }
    }

    fn counts(&self, now: Instant) -> (Counts, crate::ledger::Spread, crate::ledger::Spread) {
        let stats = &self.shared.stats;
        let (sfus_hit, sfus_killed) = self.fleet.broken();
        let (media_attached, media_missing) = self.shared.media.counts();
        let buckets_overdrawn = self.fleet.counted().map(|counted| counted.overdrawn.total());
        let inside = self.syncers.added(|status| status.invariant_violations);
        let mut ledger = self.shared.ledger.lock();
        if self.fleet.is_visible() {
            ledger.checker.judge(now, false);
        } else {
            ledger.checker.forgive_moves();
        }
        let (calls, placed, calls_awaiting) = ledger.counts();
        let tally = ledger.checker.tally();
        let (awaiting, recovery) = ledger.times();
        let counts = Counts {
            at_ms: ms(now.saturating_duration_since(self.started)),
            phase: self.phases.last().map(|phase| phase.name.clone()).unwrap_or_default(),
            calls,
            placed,
            calls_awaiting,
            calls_moved: tally.moved,
            calls_replaced: tally.replaced,
            calls_affected: tally.affected,
            calls_recovered: tally.recovered,
            calls_new_on_hit: tally.new_on_hit,
            sfus_hit,
            sfus_killed,
            joined: stats.joined.get(),
            throttled: stats.throttled.get(),
            retries: stats.retries.get(),
            errors: stats.errors_total(),
            refused: stats.refused.get(),
            watches: stats.watches.get(),
            media_attached,
            media_missing,
            buckets_overdrawn,
            invariant_violations: tally.violations + inside,
        };
        (counts, awaiting, recovery)
    }

    /// Waits for quiescence, takes the last readings, judges.
    async fn conclude(&mut self, missed: Option<usize>, cancel: &CancellationToken) -> Report {
        let now = Instant::now();
        let reading = self.reading(now);
        self.end_phase(&reading);
        let audit = self.settle(cancel).await;
        let cancelled = cancel.is_cancelled();
        self.fleet.poll(&self.shared.ledger).await;
        if let Err(error) = self.syncers.poll().await {
            tracing::warn!(%error, "no syncer answers at the end");
        }
        let now = Instant::now();
        let behind = {
            let mut ledger = self.shared.ledger.lock();
            if self.fleet.is_visible() {
                ledger.checker.judge(now, true);
            }
            let behind = ledger.checker.behind(0).0;
            if !cancelled {
                ledger.checker.settle();
            }
            ledger.close(now);
            behind
        };
        let mut end = self.reading(now);
        end.rooms_orphaned = audit.as_ref().map(|audit| audit.orphaned);
        end.rooms_missing = audit.as_ref().map(|audit| audit.missing);
        end.watchers_behind = Some(behind);
        self.observer.tell(&end.counts);
        report::sample(&mut self.series, &end.counts);
        let findings = self.findings(audit).await;
        self.report(&end, missed, cancelled, findings)
    }

    async fn settle(&self, cancel: &CancellationToken) -> Option<RoomAudit> {
        let begun = Instant::now();
        let is_about_rooms = |metric| matches!(metric, Metric::RoomsOrphaned | Metric::RoomsMissing);
        let about_rooms = self.plan.checks.iter().any(|check| check.expect.metrics().any(is_about_rooms));
        loop {
            let now = Instant::now();
            let counts = self.counts(now).0;
            self.observer.tell(&counts);
            let behind = self.shared.ledger.lock().checker.behind(0).0;
            let mut quiet = counts.placed == counts.calls && behind == 0 && counts.media_missing == 0;
            let mut audit = None;
            if quiet && self.fleet.is_visible() {
                audit = self.fleet.audit(&self.shared.population, &self.shared.ledger).await.ok();
                quiet = !about_rooms || audit.as_ref().is_some_and(|a| a.orphaned == 0 && a.missing == 0);
            }
            let max = if cancel.is_cancelled() { SETTLE_CANCELLED_MAX } else { self.plan.settle_max };
            if quiet || now.saturating_duration_since(begun) >= max {
                return match audit {
                    None if self.fleet.is_visible() => {
                        self.fleet.audit(&self.shared.population, &self.shared.ledger).await.ok()
                    }
                    audit => audit,
                };
            }
            tokio::time::sleep(SETTLE_LOOK).await;
        }
    }

    async fn findings(&self, audit: Option<RoomAudit>) -> Vec<String> {
        let mut findings = self.shared.ledger.lock().checker.violations().1.to_vec();
        findings.extend(audit.into_iter().flat_map(|audit| audit.examples));
        let awaiting = self.shared.ledger.lock().awaiting(EXPLAINED_MAX);
        for call in awaiting {
            let population = &self.shared.population;
            let (guild, name) = (population.guild_name(call), population.call_name(call));
            findings.push(format!("{guild}/{name} awaits an endpoint: {}", self.syncers.call(&guild, &name).await));
        }
        findings
    }

    fn report(&self, end: &Reading, missed: Option<usize>, cancelled: bool, findings: Vec<String>) -> Report {
        let mut checks: Vec<_> = self.plan.checks.iter().map(|check| report::judge(check, end, &self.phases)).collect();
        if let Some(phase) = missed.and_then(|ix| self.plan.phases.get(ix)) {
            let when = phase.when.as_ref().map_or_else(|| "its time".to_owned(), ToString::to_string);
            let expect = format!("phase {} begins: {when}", phase.name);
            let value = phase.when.as_ref().and_then(|when| end.value(when.metric));
            checks.push(CheckReport { expect, during: None, outcome: Outcome::Failed, value });
        }
        let stats = &self.shared.stats;
        let (by_rule, repeats, outage_ms) = {
            let ledger = self.shared.ledger.lock();
            (ledger.checker.violations().0, ledger.checker.tally().repeats, ledger.outages())
        };
        let counts = &end.counts;
        Report {
            plan: self.plan.name.clone(),
            seed: self.plan.seed,
            passed: report::passed(&checks, cancelled),
            cancelled,
            started_at: self.started_at,
            duration_ms: counts.at_ms,
            calls: counts.calls,
            participants: counts.joined,
            placed: counts.placed,
            calls_awaiting: counts.calls.saturating_sub(counts.placed),
            calls_moved: counts.calls_moved,
            calls_replaced: counts.calls_replaced,
            calls_affected: counts.calls_affected,
            calls_recovered: counts.calls_recovered,
            sfus_hit: counts.sfus_hit,
            sfus_killed: counts.sfus_killed,
            awaiting_ms: end.awaiting,
            recovery_ms: end.recovery,
            outage_ms,
            attempts_per_first: end.attempts_per_first(),
            buckets_overdrawn: counts.buckets_overdrawn,
            invariant_violations: counts.invariant_violations,
            violations: by_rule.into_iter().map(|(rule, n)| (rule.to_string(), n)).collect(),
            violations_inside: self.syncers.added(|status| status.invariant_violations),
            findings,
            rooms_orphaned: end.rooms_orphaned,
            rooms_missing: end.rooms_missing,
            watchers_behind: end.watchers_behind.unwrap_or(0),
            repeats,
            reconnects: stats.reconnects.get(),
            resyncs: stats.resyncs.get(),
            events: stats.events.get(),
            errors: stats.errors(),
            phases: self.phases.iter().map(PhaseReading::report).collect(),
            checks,
            end: counts.clone(),
            mocks: self.fleet.counted(),
            syncers: self.syncers.statuses(),
            series: self.series.clone(),
        }
    }

    /// Everyone hangs up, SFUs are healed and levers go back: the fleet is left as it was found.
    async fn leave(&self, cancel: &CancellationToken) {
        if self.plan.phases.iter().any(|phase| phase.fault.is_some())
            && let Err(error) = self.fleet.heal().await
        {
            tracing::warn!(%error, "the SFUs stay broken");
        }
        if let Err(error) = self.syncers.restore_levers().await {
            tracing::warn!(%error, "the levers stay as the drill set them");
        }
        self.shared.leaving.store(true, Ordering::Relaxed);
        self.shared.media.stop();
        let begun = Instant::now();
        for gateway in &self.gateways {
            gateway.leave_all(begun);
        }
        loop {
            let now = Instant::now();
            let idle = self.gateways.iter().all(|gateway| gateway.is_idle(now));
            let late = now.saturating_duration_since(begun) >= LEAVE_MAX;
            if idle || late || cancel.is_cancelled() {
                return;
            }
            tokio::time::sleep(TICK).await;
        }
    }
}

async fn regions(plan: &Plan, fleet: &Fleet, syncers: &Syncers) -> Vec<String> {
    if let Some(regions) = &plan.population.regions {
        return regions.clone();
    }
    let mut regions = if fleet.is_visible() { fleet.regions() } else { syncers.regions().await };
    regions.sort_unstable();
    regions.dedup();
    regions
}

fn unix_ms() -> u64 {
    ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
