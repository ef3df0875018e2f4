//! Who is in which call, as a plain map knows it.

use std::collections::BTreeMap;

use tokio::time::{Duration, Instant};

use super::Line;

/// Guild, call, session.
pub(super) type Who = (u8, u8, u8);

/// What is known of a session that is in its call.
#[derive(Clone, Copy, Debug)]
struct Kept {
    gateway: u8,
    /// The round in which the gateway told of it last.
    round: u64,
    seq: u64,
}

/// Writes and rounds, one after the other, without limits.
#[derive(Debug, Default)]
pub(super) struct Model {
    sessions: BTreeMap<Who, Kept>,
    /// The highest `seq` of the leaves.
    left: BTreeMap<Who, u64>,
    /// The last round that each gateway began.
    rounds: BTreeMap<u8, u64>,
    rounds_begun: u64,
    /// Rounds whose rest has not gone yet.
    ended: Vec<(u8, u64, Instant)>,
}

// === impl Model ===

impl Model {
    /// Takes a write; says whether it was late or repeated.
    pub(super) fn take(&mut self, line: &Line) -> bool {
        if line.joins {
            return self.join(line);
        }
        let kept = self.sessions.get(&line.who).copied();
        if let Some(seq) = line.seq.filter(|seq| kept.is_none_or(|kept| kept.seq <= *seq)) {
            let left = self.left.entry(line.who).or_insert(seq);
            *left = seq.max(*left);
        }
        let believed = |kept: Kept| line.seq.map_or(kept.gateway == line.at, |seq| seq >= kept.seq);
        if kept.is_some_and(believed) {
            self.sessions.remove(&line.who);
        }
        false
    }

    fn join(&mut self, line: &Line) -> bool {
        if line.seq.is_some_and(|seq| self.left.get(&line.who).is_some_and(|left| seq <= *left)) {
            return true;
        }
        let round = self.rounds.get(&line.at).copied().unwrap_or(0);
        let kept = self.sessions.get(&line.who).copied();
        let (seq, ignored) = match (kept, line.seq) {
            (None, seq) => (seq.unwrap_or(0), false),
            (Some(kept), None) => (kept.seq + 1, false),
            (Some(kept), Some(seq)) if seq > kept.seq => (seq, false),
            // The last write again: it counts as told.
            (Some(kept), Some(seq)) if seq == kept.seq && kept.gateway == line.at => (seq, true),
            (Some(_), Some(_)) => return true,
        };
        self.sessions.insert(line.who, Kept { gateway: line.at, round, seq });
        ignored
    }

    /// The gateway begins to tell everything again.
    pub(super) fn begin(&mut self, gateway: u8) -> u64 {
        self.rounds_begun += 1;
        self.rounds.insert(gateway, self.rounds_begun);
        self.rounds_begun
    }

    /// The gateway has told everything in that round.
    pub(super) fn end(&mut self, gateway: u8, round: u64, now: Instant) {
        self.ended.push((gateway, round, now));
    }

    /// What was not told again for so long after a round goes.
    pub(super) fn expire(&mut self, window: Duration, now: Instant) {
        let over = |ended: &mut (u8, u64, Instant)| now - ended.2 >= window;
        for (gateway, round, _) in self.ended.extract_if(.., over) {
            self.sessions.retain(|_, kept| kept.gateway != gateway || kept.round >= round);
        }
    }

    /// Sessions in a call.
    pub(super) fn count(&self, guild: u8, call: u8) -> u32 {
        self.sessions.keys().filter(|(g, c, _)| (*g, *c) == (guild, call)).count() as u32
    }

    /// Every session, with its gateway.
    pub(super) fn people(&self) -> Vec<(u8, Who)> {
        self.sessions.iter().map(|(who, kept)| (kept.gateway, *who)).collect()
    }
}
