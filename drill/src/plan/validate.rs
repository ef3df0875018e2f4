//! Limits of a plan that its types do not express.

use std::collections::HashSet;

use super::{
    Budget, CALLS_MAX, CHECKS_MAX, DURATION_MAX, Fault, FaultKind, GATEWAYS_MAX, PARTICIPANTS_MAX, PHASES_MAX, Phase,
    Plan, Population,
};

/// Longest name of a plan: ids begin with it and must stay within 128 bytes.
const NAME_BYTES_MAX: usize = 64;

/// The key to point at, and what is wrong with it.
type Problem = (&'static str, String);

fn ensure(ok: bool, key: &'static str, message: impl FnOnce() -> String) -> Result<(), Problem> {
    if ok { Ok(()) } else { Err((key, message())) }
}

fn share(value: f64, key: &'static str) -> Result<(), Problem> {
    ensure((0.0..=1.0).contains(&value), key, || format!("{key} must be from 0 to 1, got {value}"))
}

// === impl Plan ===

impl Plan {
    pub(super) fn validate(&self) -> Result<(), Problem> {
        let name_ok = (1..=NAME_BYTES_MAX).contains(&self.name.len())
            && self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        ensure(name_ok, "name", || {
            format!("a plan's name is 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`: ids begin with it")
        })?;
        if let Some(duration) = self.duration {
            ensure(!duration.is_zero() && duration <= DURATION_MAX, "duration", || {
                "duration must be over 0 and at most 24h".to_owned()
            })?;
        }
        ensure(self.settle_max <= DURATION_MAX, "settle_max", || "settle_max must be at most 24h".to_owned())?;
        self.population.validate()?;
        let total = self.calls_total();
        ensure(total <= CALLS_MAX, "calls", || format!("at most {CALLS_MAX} calls in all, got {total}"))?;
        ensure(self.phases.len() <= PHASES_MAX, "[[phases]]", || format!("at most {PHASES_MAX} phases"))?;
        ensure(self.checks.len() <= CHECKS_MAX, "[[checks]]", || format!("at most {CHECKS_MAX} checks"))?;
        let mut names = HashSet::new();
        for phase in &self.phases {
            ensure(names.insert(phase.name.as_str()), "[[phases]]", || format!("two phases named `{}`", phase.name))?;
            phase.validate()?;
        }
        for during in self.checks.iter().filter_map(|check| check.during.as_deref()) {
            ensure(names.contains(during), "during", || format!("no phase is named `{during}`"))?;
        }
        let budgets = self.budgets.iter().flat_map(|b| [b.sfu, b.region, b.overall]).flatten();
        for Budget { rate, .. } in budgets {
            ensure(rate.is_finite() && rate > 0.0, "rate", || format!("a budget's rate must be over 0, got {rate}"))?;
        }
        Ok(())
    }
}

// === impl Population ===

impl Population {
    fn validate(&self) -> Result<(), Problem> {
        let within = |n: u32, max: u32, key: &'static str| {
            ensure((1..=max).contains(&n), key, || format!("{key} must be from 1 to {max}, got {n}"))
        };
        within(self.gateways, GATEWAYS_MAX, "gateways")?;
        within(self.calls, CALLS_MAX, "calls")?;
        within(self.guilds, CALLS_MAX, "guilds")?;
        within(self.participants, PARTICIPANTS_MAX, "participants")?;
        ensure(self.participants >= self.calls, "participants", || {
            format!("every call has a participant, so participants must be at least {}", self.calls)
        })?;
        share(self.stream_share, "stream_share")?;
        share(self.put_share, "put_share")?;
        share(self.media_share, "media_share")
    }
}

// === impl Phase ===

impl Phase {
    fn validate(&self) -> Result<(), Problem> {
        let name = &self.name;
        let triggers = [self.at.is_some(), self.after.is_some(), self.when.is_some()];
        ensure(triggers.iter().filter(|t| **t).count() == 1, "[[phases]]", || {
            format!("phase `{name}` needs exactly one of `at`, `after` and `when`")
        })?;
        self.fault.as_ref().map_or(Ok(()), |fault| fault.validate(name))
    }
}

// === impl Fault ===

impl Fault {
    fn validate(&self, phase: &str) -> Result<(), Problem> {
        ensure(self.share.is_some() == self.nodes.is_empty(), "fault", || {
            format!("the fault of phase `{phase}` needs exactly one of `share` and `nodes`")
        })?;
        if let Some(value) = self.share {
            share(value, "share")?;
        }
        if let Some(value) = self.rate {
            share(value, "rate")?;
        }
        let missing = match self.kind {
            FaultKind::Slow if self.latency_ms.is_none() => Some("latency_ms"),
            FaultKind::Error if self.status.is_none() => Some("status"),
            FaultKind::Garbage if self.what.is_none() => Some("what"),
            _ => None,
        };
        match missing {
            Some(key) => Err(("kind", format!("the fault of phase `{phase}` needs `{key}`"))),
            None => Ok(()),
        }
    }
}
