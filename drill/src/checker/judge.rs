//! Which moves were right: broken SFUs, and verdicts that wait until a break could be known.

use std::time::Duration;

use tokio::time::Instant;

use super::{Checker, Hit, Rule};
use crate::population::CallIx;

/// How much later than a move the news of its cause may come. A process killed from outside is
/// noticed when its control port has been silent for two polls of a second each; a busy machine
/// may take that long again.
pub(super) const HIT_KNOWN_WITHIN: Duration = Duration::from_secs(5);

// === impl Checker ===

impl Checker {
    /// The SFU at this `host:port` was broken. `lasting` when it stays so until healed: what is
    /// placed on it from now on counts as affected too. Calls that left it a moment ago left it for
    /// this: a syncer may notice a break before its news comes here.
    pub fn hit(&mut self, authority: &str, lasting: bool, now: Instant) {
        let node = self.node(authority);
        self.hits.entry(node).or_insert(Hit { since: now, active: lasting }).active = lasting;
        for seen in self.calls.iter_mut().filter(|seen| seen.affected.is_none()) {
            let is_on = seen.node == Some(node) && seen.endpoint.is_some();
            let left = seen.left.filter(|(from, _)| *from == node).map(|(_, at)| at);
            if !is_on && left.is_none_or(|at| now.saturating_duration_since(at) > HIT_KNOWN_WITHIN) {
                continue;
            }
            seen.affected = Some(now);
            self.tally.affected += 1;
            if !is_on && seen.endpoint.is_some() {
                seen.recovered = true;
                self.tally.recovered += 1;
            }
        }
    }

    /// The SFU at this `host:port` works again.
    pub fn healed(&mut self, authority: &str) {
        if let Some(hit) = self.nodes.get(authority).and_then(|node| self.hits.get_mut(node)) {
            hit.active = false;
        }
    }

    /// Judges the moves that are old enough; all of them when `last`.
    pub fn judge(&mut self, now: Instant, last: bool) {
        while let Some(oldest) = self.moves.front() {
            if !last && now.saturating_duration_since(oldest.at) < HIT_KNOWN_WITHIN {
                return;
            }
            self.judge_oldest();
        }
    }

    /// An SFU that was ever broken may lose calls from then on, healed or not: what it held was
    /// lost or suspect. All others may not.
    pub(super) fn judge_oldest(&mut self) {
        let Some(moved) = self.moves.pop_front() else { return };
        let hit = self.hits.get(&moved.from);
        if hit.is_some_and(|hit| hit.since <= moved.at + HIT_KNOWN_WITHIN) {
            return;
        }
        let from = self.nodes.iter().find(|(_, node)| **node == moved.from).map_or("?", |(name, _)| name);
        let text = format!("c{} moved off {from}, which was not broken", moved.call);
        self.violate(Rule::Untouched, &text);
    }

    /// Forgets the moves that wait for a verdict: without a view of the SFUs there is none.
    pub fn forgive_moves(&mut self) {
        self.moves.clear();
    }

    /// Watchers that do not know the last state of a call of theirs, with up to `examples_max` of them.
    #[must_use]
    pub fn behind(&self, examples_max: usize) -> (u64, Vec<(u16, CallIx)>) {
        let (mut count, mut examples) = (0, Vec::new());
        for (watcher, calls) in (0..).zip(&self.watchers) {
            for (&call, watched) in calls {
                if watched.known < self.calls[call as usize].last {
                    count += 1;
                    if examples.len() < examples_max {
                        examples.push((watcher, call));
                    }
                }
            }
        }
        (count, examples)
    }

    /// Takes the watchers that are behind as violations; for the end of a drill.
    pub fn settle(&mut self) {
        for (watcher, call) in self.behind(usize::MAX).1 {
            self.violate(Rule::LastState, &format!("gateway {watcher} does not know the last state of c{call}"));
        }
    }
}
