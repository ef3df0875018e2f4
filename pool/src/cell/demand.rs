//! Wait or dial, and whether waiting can pay at all.
//!
//! A static cap fails when handlers are slow (464 of 2,000 requests at a cap of 64 and a handler of
//! 200 ms), dialling for every waiter fails when they are quick (8,000 connections for 8,000 requests).
//! So the cell compares what it has measured: waiters whom the existing connections will serve within the
//! time of some dials cause none ([`Estimates::pace`](super::estimate::Estimates::pace)). What a new connection will
//! serve in that time counts too.
//!
//! The comparison can be wrong, for the connections may be stuck, or callers may keep coming. Its escape: when the line
//! has not been empty for longer than promised, the estimate no longer counts, and everybody in line is demand. Each new
//! connection renews the promise.

use std::time::Duration;

use tokio::time::Instant;

use super::conns::Channel;
use super::estimate::Pace;
use super::event::{Action, Actions, Refusal};
use super::{CellState, FRESH_EXTRA};
use crate::dial::scheduler::Class;

/// Callers that may wait for the one dial that finds out whether a failed origin is back. More would only
/// fill the partition's line with callers of a dead host; the rest fail at once.
pub(crate) const HALF_OPEN_WAITERS_MAX: usize = 16;

/// Slot time that counts as one unit of an origin's turn: a handshake inside a region with time to spare.
const COST_UNIT: Duration = Duration::from_millis(25);

/// Largest cost of a dial: an origin whose dials take whole time-outs gets every eighth turn, not none.
const COST_MAX: u32 = 8;

impl<C: Channel, W, E: Clone> CellState<C, W, E> {
    pub(super) fn wanted_fresh(&self) -> usize {
        let uncovered = self.fresh_len().saturating_sub(self.dialling_fresh);
        let room = self.tuning.connections_max().saturating_add(FRESH_EXTRA).saturating_sub(self.permits);
        uncovered.min(room).min(self.dials_allowed().saturating_sub(self.dialling_fresh))
    }

    pub(super) fn wanted_normal(&self, now: Instant) -> usize {
        let untried = self.untried_until().is_some_and(|at| now < at);
        if self.line.is_empty() || untried || self.breaker.blocks(now).is_some() {
            return 0;
        }
        let dialling = self.dialling - self.dialling_fresh;
        let carries = self.conns.carries();
        let pace = self.trusted(now).map(|(pace, _)| pace);
        let served = |connections: usize| pace.map_or(0, |pace| pace.served(connections * carries));
        let waiting = self.line.len().saturating_sub(self.coming_back(now).max(served(self.conns.usable())));
        let uncovered = waiting.div_ceil(served(1).max(carries)).saturating_sub(dialling);
        let room = self.tuning.connections_max().saturating_sub(self.permits);
        uncovered.min(room).min(self.dials_allowed().saturating_sub(dialling))
    }

    /// Dials of this origin at once: slow start, within its share of the slots.
    fn dials_allowed(&self) -> usize {
        self.dial_window.min(self.tuning.dials_max())
    }

    /// Connections about to come back, each for one waiter; for a while, as they may be stuck.
    fn coming_back(&self, now: Instant) -> usize {
        if self.trust_ends().is_some_and(|at| now < at) { self.conns.returning() } else { 0 }
    }

    /// Until when what is measured, or is about to come back, counts for the line.
    pub(super) fn trust_ends(&self) -> Option<Instant> {
        if let Some(at) = self.distrust_at().map(|(_, at)| at).or_else(|| self.untried_until()) {
            return Some(at);
        }
        let joined = self.line.front_joined().filter(|_| self.conns.returning() > 0)?;
        Some(joined + self.estimates.dial.get()?)
    }

    /// How long requests take is about to be known: the first ones are under way. It decides how many connections
    /// are needed, so one dial's time is spent to learn it before there are more.
    fn untried_until(&self) -> Option<Instant> {
        let untried = self.estimates.hold.get().is_none() && self.conns.usable() > 0;
        Some(self.opened_at.filter(|_| untried)? + self.estimates.dial.get()?)
    }

    /// What is measured, while the line moves as it says.
    fn trusted(&self, now: Instant) -> Option<(Pace, Instant)> {
        self.distrust_at().filter(|(_, at)| now < *at)
    }

    /// What is measured, and when to stop believing it.
    fn distrust_at(&self) -> Option<(Pace, Instant)> {
        let pace = self.estimates.pace()?;
        let since = self.line_since.max(self.opened_at).filter(|_| !self.line.is_empty())?;
        Some((pace, since + pace.horizon))
    }

    /// The expected wait of a newcomer, if enough is known. It assumes the best: that every dial it may
    /// cause works, so that nobody is sent away who could have been served.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn expected_wait(&self) -> Option<Duration> {
        let hold = self.estimates.hold.trusted()?;
        let turns = |connections: usize| {
            let slots = connections.saturating_mul(self.conns.carries()).max(1);
            hold.mul_f64(self.line.len() as f64 / slots as f64)
        };
        let connections = self.conns.usable() + self.dialling;
        let connections_max = self.tuning.connections_max();
        let as_it_is = (connections > 0).then(|| turns(connections));
        let grown = (self.permits < connections_max)
            .then(|| self.estimates.dial.get().map(|dial| dial + turns(connections_max)))
            .flatten();
        match (as_it_is, grown) {
            (Some(as_it_is), Some(grown)) => Some(as_it_is.min(grown)),
            // A dial of unknown length may change everything.
            (Some(_), None) if self.permits < connections_max => None,
            (as_it_is, grown) => as_it_is.or(grown),
        }
    }

    /// Whether a newcomer would wait beyond its deadline. Nobody is sent away from an empty line: whoever
    /// comes first finds out how things are.
    pub(super) fn wont_make(&self, deadline: Instant, now: Instant) -> Option<Refusal<E>> {
        if self.line.is_empty() {
            return None;
        }
        let left = deadline.saturating_duration_since(now);
        let wait = self.expected_wait()?;
        (wait > left).then(|| Refusal::WontMakeDeadline { excess: wait - left })
    }

    /// The reason to fail at once: no connection, none coming, and a back-off to wait for; or the one dial
    /// of a half-open origin has its audience.
    pub(super) fn hopeless(&self, now: Instant) -> Option<Refusal<E>> {
        if !self.deserted() {
            return None;
        }
        let (error, retry_after) = self.breaker.blocks(now)?;
        Some(Refusal::Shared { error: error.clone(), retry_after })
    }

    pub(super) fn crowded(&self) -> Option<Refusal<E>> {
        if self.conns.usable() > 0 || self.line.len() < HALF_OPEN_WAITERS_MAX {
            return None;
        }
        let error = self.breaker.last_error()?.clone();
        Some(Refusal::Shared { error, retry_after: self.tuning.backoff().base })
    }

    /// Tells the scheduler that the cell wants to dial, once for each of its lines.
    pub(super) fn ask(&mut self, now: Instant, out: &mut Actions<C, W, E>) {
        let slot = self.estimates.slot.get().unwrap_or_default();
        let units = u32::try_from(slot.as_micros().div_ceil(COST_UNIT.as_micros())).unwrap_or(COST_MAX);
        let cost = units.clamp(1, COST_MAX);
        if !self.queued_fresh && self.wanted_fresh() > 0 {
            self.queued_fresh = true;
            out.push(Action::WantSlot { class: Class::Fresh, cost, life: self.life });
        }
        if !self.queued && self.wanted_normal(now) > 0 {
            self.queued = true;
            let class = if self.proven && !self.silent { Class::Proven } else { Class::Unproven };
            out.push(Action::WantSlot { class, cost, life: self.life });
        }
    }
}
