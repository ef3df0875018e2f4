//! The quiet end of a drill: waiting for it, and what is judged only there.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Drill;
use crate::checker::Rule;
use crate::fleet::RoomAudit;
use crate::plan::Metric;

/// Between two looks at whether the drill has settled.
const SETTLE_LOOK: Duration = Duration::from_millis(500);
/// A room that is wrong for this long at the quiet end is a violation. Rooms of calls that moved are
/// ended right after, and again after a failure; most of this is for a busy machine.
const ROOMS_WRONG_MAX: Duration = Duration::from_secs(5);
/// Permits may be on their way for a moment; they are not a second later.
const PERMITS_SETTLE: Duration = Duration::from_secs(1);
/// Settling of a drill that was ended from outside: what is on its way may arrive.
const SETTLE_CANCELLED_MAX: Duration = Duration::from_secs(2);

// === impl Drill ===

impl Drill {
    /// I8 at the quiet end: off twice, a second apart, is off.
    pub(super) async fn judge_permits(&self) {
        if self.syncers.permits_off().is_empty() {
            return;
        }
        tokio::time::sleep(PERMITS_SETTLE).await;
        if self.syncers.poll().await.is_ok() {
            self.shared.ledger.lock().violated(Rule::Permits, &self.syncers.permits_off());
        }
    }

    /// Waits until the rooms are where the calls are and everyone knows it. What is unexcused in the
    /// audit it returns has been wrong for [`ROOMS_WRONG_MAX`]; when it cannot be judged there is none.
    pub(super) async fn settle(&self, cancel: &CancellationToken) -> Option<RoomAudit> {
        let begun = Instant::now();
        let mut wrong: HashMap<String, Instant> = HashMap::new();
        let is_about_rooms = |metric| matches!(metric, Metric::RoomsOrphaned | Metric::RoomsMissing);
        let about_rooms = self.plan.checks.iter().any(|check| check.expect.metrics().any(is_about_rooms));
        loop {
            let now = Instant::now();
            let counts = self.counts(now).0;
            self.observer.tell(&counts);
            let behind = self.shared.ledger.lock().checker.behind(0).0;
            let mut quiet = counts.placed == counts.calls && behind == 0 && counts.media_missing == 0;
            let calm = counts.placed == counts.calls && behind == 0;
            let mut audit = None;
            if calm && self.fleet.is_visible() {
                audit = self.fleet.audit(&self.shared.population, &self.shared.ledger).await.ok();
                let clean = |a: &RoomAudit| a.unexcused.is_empty() && (!about_rooms || a.orphaned + a.missing == 0);
                if let Some(audit) = &mut audit {
                    audit.unexcused.retain(|(rule, _)| *rule != Rule::OrphanRoom || self.syncers.remember());
                }
                quiet &= audit.as_ref().map_or(!about_rooms, clean);
            }
            keep_since(&mut wrong, audit.as_ref(), now);
            let max = if cancel.is_cancelled() { SETTLE_CANCELLED_MAX } else { self.plan.settle_max };
            if quiet || now.saturating_duration_since(begun) >= max {
                if let Some(audit) = &mut audit {
                    let lasts = |since: &Instant| now.saturating_duration_since(*since) >= ROOMS_WRONG_MAX;
                    audit.unexcused.retain(|(_, text)| wrong.get(text).is_some_and(lasts));
                }
                return match audit {
                    None if self.fleet.is_visible() => {
                        let audit = self.fleet.audit(&self.shared.population, &self.shared.ledger).await.ok();
                        audit.map(|audit| RoomAudit { unexcused: Vec::new(), ..audit })
                    }
                    audit => audit,
                };
            }
            tokio::time::sleep(SETTLE_LOOK).await;
        }
    }
}

/// Keeps since when each room is wrong; one that was right in between begins anew.
fn keep_since(wrong: &mut HashMap<String, Instant>, audit: Option<&RoomAudit>, now: Instant) {
    let before = std::mem::take(wrong);
    let texts = audit.into_iter().flat_map(|audit| audit.unexcused.iter().map(|(_, text)| text));
    wrong.extend(texts.map(|text| (text.clone(), before.get(text).copied().unwrap_or(now))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i06_a_room_that_was_right_in_between_begins_anew() {
        let audit = |texts: &[&str]| RoomAudit {
            unexcused: texts.iter().map(|text| (Rule::OrphanRoom, (*text).to_owned())).collect(),
            ..RoomAudit::default()
        };
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut wrong = HashMap::new();
        keep_since(&mut wrong, Some(&audit(&["a", "b"])), start);
        keep_since(&mut wrong, Some(&audit(&["a"])), start + second);
        keep_since(&mut wrong, Some(&audit(&["a", "b"])), start + 2 * second);
        assert_eq!((wrong["a"], wrong["b"]), (start, start + 2 * second));
        keep_since(&mut wrong, None, start + 3 * second);
        assert!(wrong.is_empty(), "a look that failed proves nothing");
    }
}
