//! When the next phase begins. Pure: time and readings in, a decision out.

use std::time::Duration;

use crate::plan::{Phase, Plan};
use crate::reading::Reading;

/// What the script says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cue {
    /// Nothing yet.
    Wait,
    /// This phase begins.
    Begin(usize),
    /// This phase's condition did not hold in time.
    Missed(usize),
    /// The drill is over.
    Over,
}

/// Where in its plan a drill is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Script {
    next: usize,
    /// When the last phase began, since the start.
    began: Duration,
}

// === impl Script ===

impl Script {
    /// The cue at `elapsed` since the start.
    pub(crate) fn cue(&mut self, plan: &Plan, elapsed: Duration, reading: &Reading) -> Cue {
        let Some(phase) = plan.phases.get(self.next) else {
            let lingered = plan.linger.is_some_and(|linger| elapsed >= self.began + linger);
            return if lingered || is_over(plan, elapsed) { Cue::Over } else { Cue::Wait };
        };
        if self.begins(phase, elapsed, reading) {
            self.began = elapsed;
            self.next += 1;
            return Cue::Begin(self.next - 1);
        }
        if phase.when.is_some() && elapsed >= self.began + phase.within {
            return Cue::Missed(self.next);
        }
        if is_over(plan, elapsed) { Cue::Missed(self.next) } else { Cue::Wait }
    }

    fn begins(&self, phase: &Phase, elapsed: Duration, reading: &Reading) -> bool {
        let at = phase.at.or_else(|| phase.after.map(|after| self.began + after));
        match (&phase.when, at) {
            (Some(when), _) => when.holds(|metric| reading.value(metric)) == Some(true),
            (None, Some(at)) => elapsed >= at,
            (None, None) => false,
        }
    }
}

fn is_over(plan: &Plan, elapsed: Duration) -> bool {
    plan.duration.is_some_and(|duration| elapsed >= duration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Counts;

    fn plan(rest: &str) -> Plan {
        let text = format!("name = \"t\"\n{rest}\n[population]\nguilds = 1\ncalls = 10\nparticipants = 10\n");
        Plan::parse(&text, "t").expect("valid")
    }

    fn with_phases(mut plan: Plan, phases: &str) -> Plan {
        let text = format!("name = \"t\"\n[population]\nguilds = 1\ncalls = 10\nparticipants = 10\n{phases}");
        plan.phases = Plan::parse(&text, "t").expect("valid").phases;
        plan
    }

    fn placed(placed: u64) -> Reading {
        Reading { counts: Counts { calls: 10, placed, ..Counts::default() }, ..Reading::default() }
    }

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn phases_begin_in_order_by_time_after_and_condition() {
        let plan = with_phases(
            plan("linger = \"2s\""),
            "[[phases]]\nname = \"a\"\nat = \"3s\"\n[[phases]]\nname = \"b\"\nwhen = \"placed >= 100%\"\n\
             [[phases]]\nname = \"c\"\nafter = \"1s\"\n",
        );
        let mut script = Script::default();
        assert_eq!(script.cue(&plan, S(2), &placed(10)), Cue::Wait);
        assert_eq!(script.cue(&plan, S(3), &placed(0)), Cue::Begin(0));
        assert_eq!(script.cue(&plan, S(4), &placed(9)), Cue::Wait);
        assert_eq!(script.cue(&plan, S(5), &placed(10)), Cue::Begin(1));
        assert_eq!(script.cue(&plan, S(5), &placed(10)), Cue::Wait);
        assert_eq!(script.cue(&plan, S(6), &placed(10)), Cue::Begin(2));
        assert_eq!(script.cue(&plan, S(7), &placed(10)), Cue::Wait);
        assert_eq!(script.cue(&plan, S(8), &placed(10)), Cue::Over);
    }

    #[test]
    fn a_condition_that_never_holds_is_missed() {
        let phases = "[[phases]]\nname = \"a\"\nwhen = \"placed >= 100%\"\nwithin = \"5s\"\n";
        let plan = with_phases(plan(""), phases);
        let mut script = Script::default();
        assert_eq!(script.cue(&plan, S(4), &placed(9)), Cue::Wait);
        assert_eq!(script.cue(&plan, S(5), &placed(9)), Cue::Missed(0));
    }

    #[test]
    fn without_a_duration_only_cancelling_ends_it() {
        assert_eq!(Script::default().cue(&plan(""), S(1_000_000), &placed(0)), Cue::Wait);
        assert_eq!(Script::default().cue(&plan("duration = \"9s\""), S(9), &placed(0)), Cue::Over);
    }
}
