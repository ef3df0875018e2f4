//! The verdict machine.

use sfu_api::{BootId, GatewayId, SyncerId};
use tokio::time::Instant;

use super::{Change, EVIDENCE_TTL, Evidence, Failure, Flaps, Reason, Rules, Sight, Verdict};

/// Time-outs in a row that turn `Slow` into `Suspect`: one may be a lost packet, two are a pattern.
const TIME_OUTS_TO_SUSPECT: u32 = 2;
/// 5xx answers in a row that make an SFU suspect; below, it may be one bad room.
const SERVER_ERRORS_TO_SUSPECT: u32 = 3;
/// Late answers in a row that make an SFU slow.
const LATE_TO_SLOW: u32 = 3;
/// Gateways whose reports are remembered, and peers whose sights are: two and one decide, the others are
/// there for when those are taken back.
const REMEMBERED_MAX: usize = 8;
/// Gateways that must have lost media on an SFU that cannot be reached.
const REPORTS_TO_DEAD: usize = 2;

/// What is known of one SFU.
#[derive(Clone, Debug, Default)]
pub struct Health {
    verdict: Verdict,
    boot_id: Option<BootId>,
    /// When the present incarnation was first seen.
    boot_seen: Option<Instant>,
    /// When it last answered as it should.
    last_good: Option<Instant>,
    /// The present run of refused or reset fresh connections.
    refusals: Option<Refusals>,
    time_outs: u32,
    server_errors: u32,
    late: u32,
    /// Since when there was no good sign.
    bad_since: Option<Instant>,
    reason: Option<Reason>,
    /// An operator said that it is dead: its answers do not say otherwise.
    declared: bool,
    /// It is no longer in the catalogue.
    unlisted: bool,
    /// Peers that see something wrong, and until when that counts.
    peers: Vec<(SyncerId, Sight, Instant)>,
    /// A peer has a doubt that we did not look into yet.
    asked_to_look: bool,
    /// Gateways whose clients lost media since it last answered.
    reports: Vec<Report>,
    flaps: Flaps,
}

/// A gateway's word that its clients have lost their media.
#[derive(Clone, Debug)]
struct Report {
    gateway: GatewayId,
    /// Given to us. What a peer heard is its own to tell, or two of us would remind each other for ever.
    here: bool,
    until: Instant,
}

/// A run of refused or reset fresh connections.
#[derive(Clone, Copy, Debug)]
struct Refusals {
    first: Instant,
    last: Instant,
    count: u32,
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
        self.refusals.is_some()
    }

    /// Until when it is kept out of selection because it falls and gets up again and again.
    #[must_use]
    pub fn held_until(&self) -> Option<Instant> {
        self.flaps.held_until()
    }

    /// Whether a peer has a doubt that was not looked into yet.
    #[must_use]
    pub fn is_asked_to_look(&self) -> bool {
        self.asked_to_look
    }

    /// What peers are to be told: our own evidence, never theirs.
    #[must_use]
    pub fn sight(&self, rules: &Rules) -> Sight {
        if self.is_refused(rules) {
            Sight::Refused
        } else if self.refusals.is_some() || self.time_outs > 0 {
            Sight::Doubted
        } else {
            Sight::Fine
        }
    }

    /// Gateways that told us, and not a peer, of lost media since it last answered.
    pub fn reporters(&self, now: Instant) -> impl Iterator<Item = &GatewayId> {
        self.reports.iter().filter(move |r| r.here && r.until > now).map(|r| &r.gateway)
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
        self.asked_to_look || matches!(self.verdict, Verdict::Suspect | Verdict::Dead)
    }

    /// Takes back an operator's word that it is dead: the next answer counts again. Its falls are
    /// forgotten too.
    pub fn forgive(&mut self) {
        self.declared = false;
        self.flaps = Flaps::default();
    }

    /// Takes one piece of evidence; returns the change of verdict it led to, if any.
    pub fn observe(&mut self, evidence: &Evidence, rules: &Rules, now: Instant) -> Option<Change> {
        match evidence {
            Evidence::Answered { boot_id, asked, took } => {
                self.answered(boot_id.as_ref(), *asked, *took > rules.slow_after, rules, now)
            }
            Evidence::Failed { failure, fresh } => {
                self.bad_since.get_or_insert(now);
                self.failed(*failure, *fresh, rules, now)
            }
            Evidence::DeclaredDead => {
                self.declared = true;
                self.bad_since.get_or_insert(now);
                self.become_verdict(Verdict::Dead, Reason::Operator, rules, now)
            }
            Evidence::Witnessed { by, sight } => self.witnessed(by, *sight, rules, now),
            Evidence::MediaFailed { gateway, here } => self.reported(gateway, *here, rules, now),
            Evidence::Listed(listed) => {
                self.unlisted = !listed;
                self.judge(rules, now)
            }
            Evidence::Tick { silence_counts } => self.tick(*silence_counts, rules, now),
        }
    }

    fn witnessed(&mut self, by: &SyncerId, sight: Sight, rules: &Rules, now: Instant) -> Option<Change> {
        self.peers.retain(|(peer, _, until)| peer != by && *until > now);
        if sight != Sight::Fine && self.peers.len() < REMEMBERED_MAX {
            self.peers.push((by.clone(), sight, now + EVIDENCE_TTL));
            self.asked_to_look |= self.bad_since.is_none();
        }
        self.judge(rules, now)
    }

    fn reported(&mut self, gateway: &GatewayId, here: bool, rules: &Rules, now: Instant) -> Option<Change> {
        // What was said to us is not replaced by what we are told of it.
        self.reports.retain(|r| r.until > now && (r.gateway != *gateway || r.here && !here));
        if self.reports.iter().all(|r| r.gateway != *gateway) {
            self.reports.push(Report { gateway: gateway.clone(), here, until: now + EVIDENCE_TTL });
            let surplus = self.reports.len().saturating_sub(REMEMBERED_MAX);
            self.reports.drain(..surplus);
        }
        self.judge(rules, now)
    }

    /// Whether it refused or reset fresh connections, often enough and for long enough.
    fn is_refused(&self, rules: &Rules) -> bool {
        self.refusals.is_some_and(|r| {
            r.count >= rules.dead_failures && r.last.saturating_duration_since(r.first) >= rules.dead_window
        })
    }

    /// Dead, if there is hard evidence for it.
    fn judge(&mut self, rules: &Rules, now: Instant) -> Option<Change> {
        if self.verdict == Verdict::Dead {
            return None;
        }
        let seen_by_peer = || self.peers.iter().any(|(_, sight, until)| *sight == Sight::Refused && *until > now);
        let unreachable = self.refusals.is_some() || self.time_outs >= TIME_OUTS_TO_SUSPECT;
        let reason = if self.is_refused(rules) && (rules.witnesses == 0 || seen_by_peer()) {
            Reason::UnreachableConfirmed
        } else if unreachable && self.unlisted {
            Reason::Unlisted
        } else if unreachable && self.reports.iter().filter(|r| r.until > now).count() >= REPORTS_TO_DEAD {
            Reason::MediaFailed
        } else {
            return None;
        };
        self.become_verdict(Verdict::Dead, reason, rules, now)
    }

    fn answered(
        &mut self,
        boot_id: Option<&BootId>,
        asked: Instant,
        late: bool,
        rules: &Rules,
        now: Instant,
    ) -> Option<Change> {
        let restarted = matches!((&self.boot_id, boot_id), (Some(old), Some(new)) if old != new);
        if restarted && self.boot_seen.is_some_and(|seen| asked < seen) {
            return None; // the previous incarnation, heard late
        }
        self.last_good = Some(now);
        self.refusals = None;
        self.asked_to_look = false;
        self.reports.clear(); // its control path answers: a client cannot tell it from a broken network
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
            return self.become_verdict(Verdict::Restarted, Reason::NewIncarnation, rules, now);
        }
        if self.declared {
            return None;
        }
        self.late = if late { self.late.saturating_add(1) } else { 0 };
        if self.late >= LATE_TO_SLOW {
            return self.become_verdict(Verdict::Slow, Reason::Late, rules, now);
        }
        if late && self.verdict == Verdict::Slow {
            return None;
        }
        self.become_verdict(Verdict::Healthy, Reason::Answered, rules, now)
    }

    fn failed(&mut self, failure: Failure, fresh: bool, rules: &Rules, now: Instant) -> Option<Change> {
        self.asked_to_look = false;
        if failure != Failure::Unreachable {
            // Whatever else it does, a host that took the connection is not one that refuses.
            self.refusals = None;
        }
        let change = self.after_failure(failure, fresh, rules, now);
        self.judge(rules, now).map(|dead| Change { from: change.map_or(dead.from, |c| c.from), ..dead }).or(change)
    }

    fn after_failure(&mut self, failure: Failure, fresh: bool, rules: &Rules, now: Instant) -> Option<Change> {
        match failure {
            Failure::Unreachable => {
                if fresh {
                    let (first, count) = self.refusals.map_or((now, 0), |r| (r.first, r.count));
                    self.refusals = Some(Refusals { first, last: now, count: count.saturating_add(1) });
                }
                self.at_least_suspect(Reason::Unreachable, rules, now)
            }
            Failure::Tls => self.at_least_suspect(Reason::Tls, rules, now),
            Failure::Garbage => self.at_least_suspect(Reason::Garbage, rules, now),
            Failure::TimedOut => {
                self.time_outs = self.time_outs.saturating_add(1);
                if self.time_outs >= TIME_OUTS_TO_SUSPECT {
                    self.at_least_suspect(Reason::TimedOut, rules, now)
                } else if self.verdict.takes_new() {
                    self.become_verdict(Verdict::Slow, Reason::TimedOut, rules, now)
                } else {
                    None
                }
            }
            Failure::ServerError => {
                self.server_errors = self.server_errors.saturating_add(1);
                if self.server_errors >= SERVER_ERRORS_TO_SUSPECT {
                    self.at_least_suspect(Reason::ServerErrors, rules, now)
                } else {
                    None
                }
            }
        }
    }

    fn tick(&mut self, silence_counts: bool, rules: &Rules, now: Instant) -> Option<Change> {
        if let Some(dead) = self.judge(rules, now) {
            return Some(dead);
        }
        if !silence_counts || rules.suspect_max.is_zero() || self.verdict != Verdict::Suspect {
            return None;
        }
        let bad_for = now.saturating_duration_since(self.bad_since?);
        let too_long = bad_for >= rules.suspect_max;
        too_long.then(|| self.become_verdict(Verdict::Dead, Reason::SuspectTooLong, rules, now)).flatten()
    }

    fn at_least_suspect(&mut self, reason: Reason, rules: &Rules, now: Instant) -> Option<Change> {
        if self.verdict == Verdict::Dead { None } else { self.become_verdict(Verdict::Suspect, reason, rules, now) }
    }

    fn become_verdict(&mut self, to: Verdict, reason: Reason, rules: &Rules, now: Instant) -> Option<Change> {
        let from = self.verdict;
        // A second restart in a row is news again: the rooms made since the first are gone too.
        if from == to && to != Verdict::Restarted {
            return None;
        }
        // A death and the restart after it are one fall.
        if to == Verdict::Dead || to == Verdict::Restarted && from != Verdict::Dead {
            self.flaps.fell(&rules.flaps, now);
        }
        if to == Verdict::Restarted || to == Verdict::Healthy && from == Verdict::Dead {
            self.flaps.rose(&rules.flaps, now);
        }
        self.verdict = to;
        self.reason = Some(reason);
        Some(Change { from, to, reason })
    }
}
