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
//! connection renews the promise. Whatever is not known, because few requests have been answered or the promise was
//! broken, is found out step by step: until it is, connections at most double.

use std::time::Duration;

use tokio::time::Instant;

use super::conns::Channel;
use super::estimate::Pace;
use super::event::{Action, Actions, Refusal};
use super::{CellState, FRESH_EXTRA};
use crate::dial::scheduler::Class;

/// Callers that may always wait for the one dial that finds out whether a failed origin is back. More may while the
/// partition has plenty of places; where it has not, they would only fill its line with callers of dead hosts, and so
/// they fail at once.
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
        if self.line.is_empty() || self.breaker.blocks(now).is_some() {
            return 0;
        }
        let dialling = self.dialling - self.dialling_fresh;
        let carries = self.conns.carries();
        let trusted = self.trusted(now);
        let best = self.far(now);
        let pace = trusted.or(best).or_else(|| self.slow(now));
        let served = |connections: usize| pace.map_or(0, |pace| pace.served(connections * carries));
        let waiting = self.line.len().saturating_sub(self.coming_back(now).max(served(self.conns.usable())));
        let each = served(1).max(carries);
        // Half of what a connection would serve is worth one; fewer than that wait a little longer for those there are,
        // unless they wait too long at best.
        let some_wait = pace.is_some() && best.is_none() && self.conns.usable() > 0;
        let worth = if some_wait { each.div_ceil(2) } else { 1 };
        let uncovered = ((waiting + each - worth) / each).saturating_sub(dialling);
        let room = self.tuning.connections_max().saturating_sub(self.permits);
        let known = trusted.is_some() && self.estimates.hold.trusted().is_some();
        let step = if known { usize::MAX } else { self.conns.usable().max(1) };
        uncovered.min(room).min(self.dials_allowed().min(step).saturating_sub(dialling))
    }

    /// Dials of this origin at once: slow start, within its share of the slots.
    fn dials_allowed(&self) -> usize {
        self.dial_window.min(self.tuning.dials_max())
    }

    /// Connections about to come back, each for one waiter; for a while, as they may be stuck.
    fn coming_back(&self, now: Instant) -> usize {
        if self.trust_ends().is_some_and(|at| now < at) { self.conns.returning() } else { 0 }
    }

    /// Until when what is measured, guessed, or about to come back, counts for the line.
    pub(super) fn trust_ends(&self) -> Option<Instant> {
        let ends = |(pace, since): (Pace, Instant)| since + pace.horizon;
        if let Some(at) =
            self.measured().or_else(|| Some((self.estimates.slow(self.shares())?, self.untried()?))).map(ends)
        {
            return Some(at);
        }
        let joined = self.line.front_joined().filter(|_| self.conns.returning() > 0)?;
        Some(joined + self.estimates.dial.get()?)
    }

    /// When demand is to be looked at again, whatever happens until then.
    pub(super) fn look_at(&self, now: Instant) -> Option<Instant> {
        let unanswered = self.untried().and_then(|since| Some(since + self.estimates.dial.get()?));
        unanswered.into_iter().chain(self.trust_ends()).filter(|at| now < *at).min()
    }

    /// Since when the first requests are under way, if none has been answered.
    fn untried(&self) -> Option<Instant> {
        self.opened_at.filter(|_| self.estimates.hold.get().is_none() && self.conns.usable() > 0)
    }

    /// What is made of them for one dial's time: the host is as far away as it is, so they may be no quicker than this.
    fn far(&self, now: Instant) -> Option<Pace> {
        let age = now.saturating_duration_since(self.untried()?);
        self.estimates.far(self.shares()).filter(|_| self.estimates.dial.get().is_some_and(|dial| age < dial))
    }

    /// And after that: they take longer than a dial.
    fn slow(&self, now: Instant) -> Option<Pace> {
        let age = now.saturating_duration_since(self.untried()?);
        self.estimates.slow(self.shares()).filter(|slow| age < slow.horizon)
    }

    /// Whether a connection carries several requests at once.
    fn shares(&self) -> bool {
        self.conns.carries() > 1
    }

    /// What is measured, while the line moves as it says.
    fn trusted(&self, now: Instant) -> Option<Pace> {
        self.measured().filter(|(pace, since)| now < *since + pace.horizon).map(|(pace, _)| pace)
    }

    /// What is measured, and since when the line has had time to move.
    fn measured(&self) -> Option<(Pace, Instant)> {
        let since = self.line_since.max(self.opened_at).filter(|_| !self.line.is_empty())?;
        Some((self.estimates.pace(self.shares())?, since))
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
        if self.conns.usable() > 0 || self.line.len() < HALF_OPEN_WAITERS_MAX || self.places.are_plenty() {
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
