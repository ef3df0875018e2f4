//! Expectations: `placed >= 99%`, `moved == affected`, `awaiting_ms.p99 <= 5s`.
//!
//! A typed comparison rather than an expression language: a plan is read far more often than it is
//! written, and an unknown name must fail when the plan is loaded, not after the drill.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a drill measures and a check can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Calls that should exist by now.
    Calls,
    /// Calls whose endpoint is known.
    Placed,
    /// Calls with a join sent and no endpoint known.
    Awaiting,
    /// Calls whose endpoint went to another SFU.
    Moved,
    /// Calls placed anew on the same SFU.
    Replaced,
    /// Calls that were on an SFU when it was broken.
    Affected,
    /// Of these: calls that were placed anew since, wherever.
    Recovered,
    /// SFUs that were killed.
    SfusKilled,
    /// SFUs that were broken in any way.
    SfusHit,
    /// Calls that were first placed on an SFU while it was broken.
    NewOnHit,
    /// Room creations over budget, counted at the mocks.
    Overdrawn,
    /// Invariants seen broken, outside and inside.
    Violations,
    /// Requests that failed otherwise than by being throttled.
    Errors,
    /// Sessions refused for good.
    Refused,
    /// Median of the time awaiting an endpoint.
    AwaitingP50,
    /// 99th percentile of it.
    AwaitingP99,
    /// Longest of it.
    AwaitingMax,
    /// 99th percentile of the time from a lost endpoint to the next.
    RecoveryP99,
    /// Longest of it.
    RecoveryMax,
    /// Placement attempts for each first attempt, as the syncers count them.
    AttemptsPerFirst,
    /// Rooms that no placed call claims, at quiescence.
    RoomsOrphaned,
    /// Placed calls whose room is absent from a live SFU, at quiescence.
    RoomsMissing,
    /// Watchers that were not told a call's last state, at quiescence.
    WatchersBehind,
    /// Sessions that could not connect to their endpoint with their token.
    MediaMissing,
}

const NAMES: &[(&str, Metric)] = &[
    ("calls", Metric::Calls),
    ("placed", Metric::Placed),
    ("calls_awaiting", Metric::Awaiting),
    ("calls_moved", Metric::Moved),
    ("calls_replaced", Metric::Replaced),
    ("calls_affected", Metric::Affected),
    ("calls_recovered", Metric::Recovered),
    ("sfus_killed", Metric::SfusKilled),
    ("sfus_hit", Metric::SfusHit),
    ("calls_new_on_hit", Metric::NewOnHit),
    ("buckets_overdrawn", Metric::Overdrawn),
    ("invariant_violations", Metric::Violations),
    ("errors", Metric::Errors),
    ("refused", Metric::Refused),
    ("awaiting_ms.p50", Metric::AwaitingP50),
    ("awaiting_ms.p99", Metric::AwaitingP99),
    ("awaiting_ms.max", Metric::AwaitingMax),
    ("recovery_ms.p99", Metric::RecoveryP99),
    ("recovery_ms.max", Metric::RecoveryMax),
    ("attempts_per_first", Metric::AttemptsPerFirst),
    ("rooms_orphaned", Metric::RoomsOrphaned),
    ("rooms_missing", Metric::RoomsMissing),
    ("watchers_behind", Metric::WatchersBehind),
    ("media_missing", Metric::MediaMissing),
    // Short forms; the first entry of a metric is the one that is printed.
    ("awaiting", Metric::Awaiting),
    ("moved", Metric::Moved),
    ("replaced", Metric::Replaced),
    ("affected", Metric::Affected),
    ("recovered", Metric::Recovered),
    ("overdrawn", Metric::Overdrawn),
    ("violations", Metric::Violations),
];

/// How two values must relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// `==`
    Equal,
    /// `!=`
    Unequal,
    /// `<=`
    AtMost,
    /// `>=`
    AtLeast,
    /// `<`
    Below,
    /// `>`
    Above,
}

const RELATIONS: &[(&str, Relation)] = &[
    ("==", Relation::Equal),
    ("!=", Relation::Unequal),
    ("<=", Relation::AtMost),
    (">=", Relation::AtLeast),
    ("<", Relation::Below),
    (">", Relation::Above),
];

/// The right side of an expectation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    /// A plain number; times are in milliseconds.
    Number(f64),
    /// A share of the calls that should exist, 0 to 1.
    ShareOfCalls(f64),
    /// Another metric.
    Metric(Metric),
}

/// A comparison, kept with the text it was written as.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    /// Left side.
    pub metric: Metric,
    /// How they must relate.
    pub relation: Relation,
    /// Right side.
    pub operand: Operand,
    text: String,
}

// === impl Metric ===

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(_, m)| m == self).map_or("?", |(name, _)| name))
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Some((_, metric)) = NAMES.iter().find(|(name, _)| *name == s) {
            return Ok(*metric);
        }
        let nearest = NAMES.iter().min_by_key(|(name, _)| strsim::damerau_levenshtein(name, s)).map_or("", |n| n.0);
        Err(format!("unknown metric `{s}`, did you mean `{nearest}`?"))
    }
}

// === impl Relation ===

impl Relation {
    fn holds(self, left: f64, right: f64) -> bool {
        // Counts are whole numbers below 2^53 and compare exactly.
        #[expect(clippy::float_cmp, reason = "both sides are counts or were measured once")]
        match self {
            Self::Equal => left == right,
            Self::Unequal => left != right,
            Self::AtMost => left <= right,
            Self::AtLeast => left >= right,
            Self::Below => left < right,
            Self::Above => left > right,
        }
    }
}

// === impl Expectation ===

impl Expectation {
    /// The metrics it names.
    pub fn metrics(&self) -> impl Iterator<Item = Metric> {
        let right = if let Operand::Metric(metric) = self.operand { Some(metric) } else { None };
        std::iter::once(self.metric).chain(right)
    }

    /// Whether it holds, given how to look up a metric; `None` when a side was not measured.
    #[must_use]
    pub fn holds(&self, value: impl Fn(Metric) -> Option<f64>) -> Option<bool> {
        let left = value(self.metric)?;
        let right = match self.operand {
            Operand::Number(n) => n,
            Operand::ShareOfCalls(share) => value(Metric::Calls)? * share,
            Operand::Metric(metric) => value(metric)?,
        };
        Some(self.relation.holds(left, right))
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Expectation {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut words = s.split_whitespace();
        let (Some(left), Some(op), Some(right), None) = (words.next(), words.next(), words.next(), words.next()) else {
            return Err(format!("`{s}` is not `metric relation value`, for example `calls_awaiting == 0`"));
        };
        let relation = RELATIONS.iter().find(|(text, _)| *text == op).map(|(_, r)| *r);
        let relation = relation.ok_or_else(|| format!("unknown relation `{op}`, use one of == != <= >= < >"))?;
        Ok(Self { metric: left.parse()?, relation, operand: operand(right)?, text: s.to_owned() })
    }
}

fn operand(s: &str) -> Result<Operand, String> {
    if let Some(percent) = s.strip_suffix('%') {
        let percent: f64 = percent.parse().map_err(|_| format!("`{s}` is not a percentage"))?;
        return Ok(Operand::ShareOfCalls(percent / 100.0));
    }
    if let Ok(number) = s.parse::<f64>() {
        return Ok(Operand::Number(number));
    }
    if s.starts_with(|c: char| c.is_ascii_digit()) {
        let time = humantime::parse_duration(s).map_err(|e| format!("`{s}` is neither a number nor a time: {e}"))?;
        return Ok(Operand::Number(time.as_secs_f64() * 1000.0));
    }
    s.parse().map(Operand::Metric)
}

impl<'de> Deserialize<'de> for Expectation {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Expectation {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(text: &str) -> Option<bool> {
        let expectation: Expectation = text.parse().expect("parses");
        expectation.holds(|metric| match metric {
            Metric::Calls => Some(200.0),
            Metric::Placed => Some(198.0),
            Metric::Moved | Metric::Affected => Some(7.0),
            Metric::AwaitingP99 => Some(4_500.0),
            _ => None,
        })
    }

    #[test]
    fn compares_numbers_shares_times_and_metrics() {
        assert_eq!(holds("placed >= 99%"), Some(true));
        assert_eq!(holds("placed >= 100%"), Some(false));
        assert_eq!(holds("moved == affected"), Some(true));
        assert_eq!(holds("calls_moved < 7"), Some(false));
        assert_eq!(holds("awaiting_ms.p99 <= 4.5e3"), Some(true));
        assert_eq!(holds("awaiting_ms.p99 < 4s"), Some(false));
    }

    #[test]
    fn what_was_not_measured_neither_holds_nor_fails() {
        assert_eq!(holds("overdrawn == 0"), None);
        assert_eq!(holds("placed == replaced"), None);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| text.parse::<Expectation>().expect_err("refused");
        assert!(error("calls_awaitin == 0").contains("did you mean `calls_awaiting`"));
        assert!(error("placed => 3").contains("unknown relation `=>`"));
        assert!(error("placed").contains("is not `metric relation value`"));
        assert!(error("placed >= 3x").contains("neither a number nor a time"));
    }
}
