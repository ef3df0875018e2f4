//! The verdict machine.

use sfu_api::BootId;
use tokio::time::Instant;

use super::{Change, Evidence, Failure, Reason, Rules, Verdict};

/// Time-outs in a row that turn `Slow` into `Suspect`: one may be a lost packet, two are a pattern.
const TIME_OUTS_TO_SUSPECT: u32 = 2;
/// 5xx answers in a row that make an SFU suspect; below, it may be one bad room.
const SERVER_ERRORS_TO_SUSPECT: u32 = 3;
/// Late answers in a row that make an SFU slow.
const LATE_TO_SLOW: u32 = 3;

/// What is known of one SFU.
#[derive(Clone, Debug, Default)]
pub struct Health {
    verdict: Verdict,
    boot_id: Option<BootId>,
    /// When the present incarnation was first seen.
    boot_seen: Option<Instant>,
    /// When it last answered as it should.
    last_good: Option<Instant>,
    /// Start of the present run of refused or reset fresh connections, and its length.
    unreachable: Option<(Instant, u32)>,
    time_outs: u32,
    server_errors: u32,
    late: u32,
    /// Since when there was no good sign.
    bad_since: Option<Instant>,
    reason: Option<Reason>,
    /// An operator said that it is dead: its answers do not say otherwise.
    declared: bool,
}

// === impl Health ===

impl Health {
    /// The verdict now.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The incarnation last seen.
    #[must_use]
    pub fn boot_id(&self) -> Option<&BootId> {
        self.boot_id.as_ref()
    }

    /// Whether it refuses or resets fresh connections just now.
    #[must_use]
    pub fn is_refusing(&self) -> bool {
        self.unreachable.is_some()
    }

    /// When it last answered as it should.
    #[must_use]
    pub fn last_good(&self) -> Option<Instant> {
        self.last_good
    }

    /// The reason of the last change.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// Whether fresh connections are wanted to confirm or refute the verdict.
    #[must_use]
    pub fn wants_fresh_probe(&self) -> bool {
        matches!(self.verdict, Verdict::Suspect | Verdict::Dead)
    }

    /// Takes back an operator's word that it is dead: the next answer counts again.
    pub fn forgive(&mut self) {
        self.declared = false;
    }

    /// Takes one piece of evidence; returns the change of verdict it led to, if any.
    pub fn observe(&mut self, evidence: &Evidence, rules: &Rules, now: Instant) -> Option<Change> {
        match evidence {
            Evidence::Answered { boot_id, asked, took } => {
                self.answered(boot_id.as_ref(), *asked, *took > rules.slow_after, now)
            }
            Evidence::Failed { failure, fresh } => {
                self.bad_since.get_or_insert(now);
                self.failed(*failure, *fresh, rules, now)
            }
            Evidence::DeclaredDead => {
                self.declared = true;
                self.bad_since.get_or_insert(now);
                self.become_verdict(Verdict::Dead, Reason::Operator)
            }
            Evidence::Tick => self.tick(rules, now),
        }
    }

    fn answered(&mut self, boot_id: Option<&BootId>, asked: Instant, late: bool, now: Instant) -> Option<Change> {
        let restarted = matches!((&self.boot_id, boot_id), (Some(old), Some(new)) if old != new);
        if restarted && self.boot_seen.is_some_and(|seen| asked < seen) {
            return None; // the previous incarnation, heard late
        }
        self.last_good = Some(now);
        self.unreachable = None;
        self.time_outs = 0;
        self.server_errors = 0;
        self.bad_since = None;
        if let Some(boot) = boot_id.filter(|boot| self.boot_id.as_ref() != Some(boot)) {
            self.boot_id = Some(boot.clone());
            self.boot_seen = Some(now);
        }
        if restarted {
            self.late = 0;
            self.declared = false; // that was the one before
            return self.become_verdict(Verdict::Restarted, Reason::NewIncarnation);
        }
        if self.declared {
            return None;
        }
        self.late = if late { self.late.saturating_add(1) } else { 0 };
        if self.late >= LATE_TO_SLOW {
            return self.become_verdict(Verdict::Slow, Reason::Late);
        }
        if late && self.verdict == Verdict::Slow {
            return None;
        }
        self.become_verdict(Verdict::Healthy, Reason::Answered)
    }

    fn failed(&mut self, failure: Failure, fresh: bool, rules: &Rules, now: Instant) -> Option<Change> {
        if failure != Failure::Unreachable {
            // Whatever else it does, a host that took the connection is not one that refuses.
            self.unreachable = None;
        }
        match failure {
            Failure::Unreachable => self.failed_unreachable(fresh, rules, now),
            Failure::Tls => self.at_least_suspect(Reason::Tls),
            Failure::Garbage => self.at_least_suspect(Reason::Garbage),
            Failure::TimedOut => {
                self.time_outs = self.time_outs.saturating_add(1);
                if self.time_outs >= TIME_OUTS_TO_SUSPECT {
                    self.at_least_suspect(Reason::TimedOut)
                } else if self.verdict.takes_new() {
                    self.become_verdict(Verdict::Slow, Reason::TimedOut)
                } else {
                    None
                }
            }
            Failure::ServerError => {
                self.server_errors = self.server_errors.saturating_add(1);
                if self.server_errors >= SERVER_ERRORS_TO_SUSPECT {
                    self.at_least_suspect(Reason::ServerErrors)
                } else {
                    None
                }
            }
        }
    }

    fn failed_unreachable(&mut self, fresh: bool, rules: &Rules, now: Instant) -> Option<Change> {
        if fresh {
            let (since, count) = self.unreachable.map_or((now, 1), |(since, n)| (since, n.saturating_add(1)));
            self.unreachable = Some((since, count));
            let long_enough = now.saturating_duration_since(since) >= rules.dead_window;
            if count >= rules.dead_failures && long_enough {
                return self.become_verdict(Verdict::Dead, Reason::UnreachableConfirmed);
            }
        }
        self.at_least_suspect(Reason::Unreachable)
    }

    fn tick(&mut self, rules: &Rules, now: Instant) -> Option<Change> {
        if rules.suspect_max.is_zero() || self.verdict != Verdict::Suspect {
            return None;
        }
        let bad_for = now.saturating_duration_since(self.bad_since?);
        (bad_for >= rules.suspect_max).then(|| self.become_verdict(Verdict::Dead, Reason::SuspectTooLong)).flatten()
    }

    fn at_least_suspect(&mut self, reason: Reason) -> Option<Change> {
        if self.verdict == Verdict::Dead { None } else { self.become_verdict(Verdict::Suspect, reason) }
    }

    fn become_verdict(&mut self, to: Verdict, reason: Reason) -> Option<Change> {
        let from = self.verdict;
        // A second restart in a row is news again: the rooms made since the first are gone too.
        if from == to && to != Verdict::Restarted {
            return None;
        }
        self.verdict = to;
        self.reason = Some(reason);
        Some(Change { from, to, reason })
    }
}
