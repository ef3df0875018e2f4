//! What the engine counts. `status` and `/metrics` read the same counters.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::health::Change;
use crate::state::Class;

/// Bounds of the time a call awaits an endpoint, in seconds: from one round trip on a LAN to the
/// half minute after which people hang up.
const AWAITED_S: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How an attempt ended, as a label.
pub type AttemptEnd = &'static str;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabel {
    end: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabel {
    to: &'static str,
}

/// The engine's counters and histograms.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Placements committed.
    pub placements: Counter,
    /// Attempts sent to SFUs.
    pub attempts: Counter,
    /// Attempts that were the first of their call's need.
    pub first_attempts: Counter,
    /// Placements on another SFU than before.
    pub moves: Counter,
    /// Planned moves of calls from one SFU to another.
    pub planned_moves: Counter,
    /// Notices that an SFU is dead or has restarted.
    pub notices: Counter,
    /// Rooms ended.
    pub releases: Counter,
    /// Rooms that could not be remembered for release; the digests find them.
    pub releases_dropped: Counter,
    /// Orphan rooms found by digests.
    pub orphans: Counter,
    /// Rooms with people in them, found by digests and kept for their calls.
    pub found: Counter,
    /// Rooms of ours that an SFU no longer had.
    pub forgotten: Counter,
    /// Refusals because a higher term or epoch was there.
    pub fenced: Counter,
    /// Late answers whose room nobody wanted any more.
    pub stale: Counter,
    /// Writes refused by a limit.
    pub shed: Counter,
    /// Gateways found silent.
    pub gateways_vanished: Counter,
    /// Sessions taken out because their gateway vanished or did not tell them again.
    pub sessions_expired: Counter,
    /// Sessions of vanished gateways that are kept since people may still talk.
    pub sessions_kept: Gauge,
    /// Tasks that ended when they should not have, and were started again.
    pub restarts: Counter,
    ends: Family<EndLabel, Counter>,
    silences: Family<EndLabel, Counter>,
    pressure: Family<EndLabel, Counter>,
    verdicts: Family<VerdictLabel, Counter>,
    awaited: Family<ClassLabel, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            placements: Counter::default(),
            attempts: Counter::default(),
            first_attempts: Counter::default(),
            moves: Counter::default(),
            planned_moves: Counter::default(),
            notices: Counter::default(),
            releases: Counter::default(),
            releases_dropped: Counter::default(),
            orphans: Counter::default(),
            found: Counter::default(),
            forgotten: Counter::default(),
            fenced: Counter::default(),
            stale: Counter::default(),
            shed: Counter::default(),
            gateways_vanished: Counter::default(),
            sessions_expired: Counter::default(),
            sessions_kept: Gauge::default(),
            restarts: Counter::default(),
            ends: Family::default(),
            silences: Family::default(),
            pressure: Family::default(),
            verdicts: Family::default(),
            awaited: Family::new_with_constructor(|| Histogram::new(AWAITED_S)),
        }
    }
}

// === impl Metrics ===

impl Metrics {
    /// An attempt ended.
    pub fn attempt_ended(&self, end: AttemptEnd) {
        self.ends.get_or_create(&EndLabel { end }).inc();
    }

    /// A probe or a digest brought no good sign.
    pub fn no_sign(&self, why: &'static str) {
        self.silences.get_or_create(&EndLabel { end: why }).inc();
    }

    /// This syncer was short of something.
    pub fn pressed(&self, why: &'static str) {
        self.pressure.get_or_create(&EndLabel { end: why }).inc();
    }

    /// A verdict changed.
    pub fn verdict(&self, change: Change) {
        self.verdicts.get_or_create(&VerdictLabel { to: change.to.name() }).inc();
    }

    /// A call got an endpoint after `seconds`.
    pub fn awaited(&self, class: Class, seconds: f64) {
        self.awaited.get_or_create(&ClassLabel { class: class.name() }).observe(seconds);
    }

    /// Names them in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, c: &Counter| registry.register(name, help, c.clone());
        counter("placements", "Placements committed", &self.placements);
        counter("attempts", "Attempts to place a call, sent to SFUs", &self.attempts);
        counter("first_attempts", "Attempts that were the first of their call's need", &self.first_attempts);
        counter("moves", "Placements on another SFU than before", &self.moves);
        counter("planned_moves", "Planned moves of calls from one SFU to another", &self.planned_moves);
        counter("sfu_notices", "Notices that an SFU is dead or has restarted", &self.notices);
        counter("releases", "Rooms ended", &self.releases);
        counter("releases_dropped", "Rooms to end that were left to the digests", &self.releases_dropped);
        counter("orphan_rooms", "Orphan rooms found by digests", &self.orphans);
        counter("kept_rooms", "Rooms with people in them, found by digests and kept for their calls", &self.found);
        counter("forgotten_rooms", "Rooms that an SFU no longer had", &self.forgotten);
        counter("fenced", "Refusals because a higher term or epoch was there", &self.fenced);
        counter("stale_commits", "Late answers whose room nobody wanted any more", &self.stale);
        counter("shed", "Writes refused by a limit", &self.shed);
        counter("gateways_vanished", "Gateways found silent", &self.gateways_vanished);
        counter(
            "sessions_expired",
            "Sessions whose gateway vanished or did not tell them again",
            &self.sessions_expired,
        );
        counter("task_restarts", "Tasks that ended unexpectedly and were started again", &self.restarts);
        let help = "Sessions of vanished gateways kept since people may still talk, as of the last answers of SFUs";
        registry.register("sessions_kept", help, self.sessions_kept.clone());
        registry.register("attempt_ends", "Attempts by how they ended", self.ends.clone());
        let help = "Signs that this syncer is short of something, by what";
        registry.register("local_pressure", help, self.pressure.clone());
        registry.register("failed_looks", "Probes and digests without a good sign, by why", self.silences.clone());
        registry.register("sfu_verdicts", "Changes of verdict by the new one", self.verdicts.clone());
        registry.register_with_unit(
            "awaiting_endpoint",
            "Time calls awaited an endpoint",
            Unit::Seconds,
            self.awaited.clone(),
        );
    }
}
