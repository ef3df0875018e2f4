//! What a drill does: a population, phases that break and heal the fleet, and checks.
//!
//! A plan is a TOML file; the plans in `drill/plans/` are compiled in and are the best examples.
//! Everything a plan can ask for is bounded, so that a typing error cannot turn a drill into an
//! accident: see the constants here.

mod expect;
mod load;
mod validate;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::expect::{Expectation, Metric, Operand, Relation};
pub use self::load::{BUILT_IN, BuiltIn, PlanError, built_in};

/// Most gateways: each keeps a few connections to every syncer.
pub const GATEWAYS_MAX: u32 = 64;
/// Most calls: the checker keeps about 200 bytes for each.
pub const CALLS_MAX: u32 = 200_000;
/// Most participants, ten times the calls' limit is more than any call distribution needs.
pub const PARTICIPANTS_MAX: u32 = 1_000_000;
/// Longest drill: a day. Longer ones are a monitoring system.
pub const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
/// Most phases of a plan; a human has to follow them on a console.
pub const PHASES_MAX: usize = 64;
/// Most checks of a plan.
pub const CHECKS_MAX: usize = 128;

/// A drill from start to verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Short name, shown in reports.
    pub name: String,
    /// One sentence: what is broken and what must hold.
    #[serde(default)]
    pub about: String,
    /// Same seed, same population and same faults.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// From the first join to the last phase's end; absent: until cancelled.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// Ends this long after the last phase began, when that is before `duration` is over.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub linger: Option<Duration>,
    /// How long to wait at the end for quiescence (every call placed, no orphan room).
    #[serde(default = "defaults::settle_max", with = "humantime_serde")]
    pub settle_max: Duration,
    /// Whether the fleet is left as it was found once the verdict is known: every session leaves,
    /// SFUs are healed, levers go back.
    #[serde(default)]
    pub leave_at_end: bool,
    /// Who takes part.
    pub population: Population,
    /// Budgets that the mock SFUs count overdrafts against; absent: as the mocks were started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets: Option<Budgets>,
    /// What happens, in order.
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// What must hold.
    #[serde(default)]
    pub checks: Vec<Check>,
}

/// Who takes part in a drill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Population {
    /// Simulated gateways, 1 to [`GATEWAYS_MAX`].
    #[serde(default = "defaults::gateways")]
    pub gateways: u32,
    /// Guilds that the calls spread over.
    pub guilds: u32,
    /// Calls at the start, 1 to [`CALLS_MAX`] together with those that phases add.
    pub calls: u32,
    /// Sessions in the calls of the start; every call has at least one.
    pub participants: u32,
    /// Regions that calls ask for; empty: none; absent: the fleet's, as the mocks list them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<String>>,
    /// Share of the calls that are streams, 0 to 1.
    #[serde(default)]
    pub stream_share: f64,
    /// Share of the sessions that join with `PUT` instead of the bulk road, 0 to 1.
    #[serde(default = "defaults::put_share")]
    pub put_share: f64,
    /// Share of the sessions that connect to the endpoint they are given, 0 to 1.
    #[serde(default)]
    pub media_share: f64,
    /// Joins are spread evenly over this time.
    #[serde(default = "defaults::ramp", with = "humantime_serde")]
    pub ramp: Duration,
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Short name, shown on the console and named by checks.
    pub name: String,
    /// Begins at this time after the start.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub at: Option<Duration>,
    /// Begins this long after the phase before it (the start, for the first).
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub after: Option<Duration>,
    /// Begins once this holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Expectation>,
    /// With `when`: the drill fails when it does not hold within this time.
    #[serde(default = "defaults::within", with = "humantime_serde")]
    pub within: Duration,
    /// Break SFUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Heal every SFU.
    #[serde(default)]
    pub heal: bool,
    /// Levers to set on every syncer.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub levers: serde_json::Map<String, Value>,
    /// Add this many calls.
    #[serde(default)]
    pub add_calls: u32,
    /// With `add_calls`: their sessions join spread over this time.
    #[serde(default = "defaults::over", with = "humantime_serde")]
    pub over: Duration,
}

/// Which SFUs break, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What happens to them.
    pub kind: FaultKind,
    /// Share of the mock's SFUs, over 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// These SFUs instead of a share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Only SFUs of this region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Only SFUs of zones of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// `restart`: how long they are down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_ms: Option<u64>,
    /// `slow`: added latency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// `error`: HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// `error`: share of the requests that fail, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// `error`: what `Retry-After` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// `garbage`: which part of the answer is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
}

/// What can happen to an SFU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The process dies.
    Kill,
    /// The process dies and comes back without rooms.
    Restart,
    /// Connections are accepted, nothing is answered.
    Hang,
    /// The TLS handshake never ends.
    BlackHole,
    /// Answers come late.
    Slow,
    /// Requests fail.
    Error,
    /// Answers are nonsense.
    Garbage,
}

/// Creation budgets that the mock SFUs count against.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// Take the rates and bursts that the syncers' levers show; those below replace single ones.
    #[serde(default)]
    pub from_levers: bool,
    /// For each SFU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sfu: Option<Budget>,
    /// For each region of a mock process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Budget>,
    /// For all SFUs of a mock process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overall: Option<Budget>,
    /// Clock and network slack of a window.
    #[serde(default = "defaults::slack_ms")]
    pub slack_ms: u64,
}

/// One budget: a rate and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Room creations a second.
    pub rate: f64,
    /// Room creations at once.
    pub burst: u32,
}

/// Something that must hold at the end, or during one phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What must hold.
    pub expect: Expectation,
    /// Judge what this phase added (counters) or how it ended (gauges) instead of the whole drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub during: Option<String>,
}

// === impl Plan ===

impl Plan {
    /// Calls at the start and added by phases.
    #[must_use]
    pub fn calls_total(&self) -> u32 {
        self.phases.iter().fold(self.population.calls, |n, phase| n.saturating_add(phase.add_calls))
    }
}

/// Defaults, each with its reason.
mod defaults {
    use std::time::Duration;

    /// Any constant will do; this one replays.
    pub(super) fn seed() -> u64 {
        1
    }

    /// Long enough for a paced repair of a few hundred calls.
    pub(super) fn settle_max() -> Duration {
        Duration::from_secs(20)
    }

    /// More than one, so that a call's sessions are watched from several places.
    pub(super) fn gateways() -> u32 {
        4
    }

    /// Enough to exercise the single road, few enough to be carried by it.
    pub(super) fn put_share() -> f64 {
        0.05
    }

    /// A fleet's worth of sessions in a few seconds, without starting with a storm.
    pub(super) fn ramp() -> Duration {
        Duration::from_secs(5)
    }

    /// A trigger that has not come after a minute is a finding.
    pub(super) fn within() -> Duration {
        Duration::from_secs(60)
    }

    /// One second: added calls arrive as a burst.
    pub(super) fn over() -> Duration {
        Duration::from_secs(1)
    }

    /// Scheduling on a busy machine delays requests by up to this much.
    pub(super) fn slack_ms() -> u64 {
        1000
    }
}
