//! Which gateways are there, and whose sessions have to go. Pure: events and `now` in, what is due out.
//!
//! A gateway that is gone leaves sessions behind that nobody will ever end. But media does not pass
//! through gateways, and whoever lost his gateway is back through another one within seconds: so a
//! session is taken out only on a broken promise or on the gateway's own word, late, and at a pace.
//!
//! ```text
//!            beat, stream                     resume window              paced
//! (unknown) ─────beat────▶ Here ──silent──▶ Vanished ─────────▶ its sessions expire, but of who talks ──▶ (unknown)
//!                           ▲ ◀──beat, stream──┘ (never while so many vanish at once that it is us)
//!                           │
//!                           └ begin ─ tells everything again ─ synced ─ resume window ─▶ what it did
//!                                                                       not tell again expires
//! ```
//!
//! - A **promise** is the first heartbeat. A gateway that never gave one is not held to it: its sessions
//!   stay until they leave.
//! - **Silent** is a gateway without a heartbeat for a lever's time that has no watch and no bulk stream
//!   open here. Syncers tell each other which gateways they hear from, since a gateway speaks to one. A restart gets
//!   round in the same way: one that knows it is not talked out of it by one that does not know it yet.
//! - A **round** is a gateway telling everything again. Only its explicit end makes the rest out of date:
//!   a stream that broke says nothing of what it would have told. Rounds may overlap (a process that was
//!   replaced and does not know it): the end of each counts for what was told before its own beginning. A process that
//!   was replaced and says which one it is ends none.
//! - **Who talks is still there**, whatever became of his gateway: once the window is over SFUs are asked, and say of
//!   each room how many are in it. A call with more people than sessions of gateways that are here [has some whose
//!   gateway is gone](Sight::next), and keeps the sessions of such, until its SFU says otherwise a few times in a row, has not
//!   said for long, or is dead, or they have been kept for a lever's longest time.
//! - Expiry **freezes** while more than a lever's share of the gateways is gone at once. Then it is
//!   probably this syncer that is cut off, and there is nothing to gain from hurry.

mod gateway;
mod sight;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use sfu_api::GatewayId;
use tokio::time::Instant;

use self::gateway::{Absence, Gateway};
pub use self::sight::{Failures, Sight};
use crate::state::Round;

/// Gateways that are looked after: 2.6 M users on 650 per gateway.
pub const GATEWAYS_MAX: usize = 4_096;

/// Fewer gateways than this that are gone at once say nothing of us: one of two may well die.
const FREEZE_MIN: usize = 3;

/// What is read from levers.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Silence after which a gateway has vanished.
    pub alive_for: Duration,
    /// How long its sessions are kept then, and those that it did not tell again.
    pub resume_window: Duration,
    /// How much longer at most those are kept whose people may still talk.
    pub kept_max: Duration,
    /// How often SFUs are asked of them.
    pub ask_every: Duration,
    /// Share of gateways that may be gone before expiry freezes.
    pub freeze_share: f64,
}

/// The gateways of this syncer.
#[derive(Debug, Default)]
pub struct Presence {
    gateways: HashMap<GatewayId, Gateway>,
    frozen: bool,
}

/// By which way a sign of life came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The gateway itself, on a connection of its own.
    Own,
    /// Another syncer, which it spoke to.
    Peer,
}

/// What a heartbeat is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The gateway should tell everything again: it was not heard of before, it restarted, or sessions
    /// of it have expired.
    pub resync: bool,
    /// It names another incarnation than before.
    pub restarted: bool,
}

/// Why a heartbeat or a round is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A newer process goes by the same name.
    #[error("another incarnation of this gateway has taken its place")]
    Superseded,
    /// [`GATEWAYS_MAX`] others are there.
    #[error("this syncer looks after no more gateways")]
    Full,
    /// This round was not begun here, or it has ended.
    #[error("no such round was begun here")]
    NotBegun,
}

/// Sessions that have to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Of this gateway.
    pub gateway: GatewayId,
    /// Told last before this round; all, when the gateway has vanished.
    pub before: Option<Round>,
    /// But those in calls where people may still talk.
    pub but_talking: bool,
}

/// What a look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Gateways that have vanished since the last look.
    pub vanished: Vec<GatewayId>,
    /// What may be expired now.
    pub due: Vec<Due>,
    /// SFUs are to be asked whether the people of these are still there; see [`Presence::told`].
    pub ask: Vec<GatewayId>,
    /// Sessions that are kept since people may still talk.
    pub kept: u64,
    /// Expiry froze (`true`) or thawed.
    pub turned: Option<bool>,
}

/// How many gateways there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Heard of lately, or with a stream open.
    pub here: u32,
    /// Silent, with sessions that are still kept.
    pub vanished: u32,
    /// In the middle of telling everything again.
    pub syncing: u32,
    /// Sessions of vanished ones that are kept since people may still talk.
    pub kept: u64,
}

/// A gateway, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The gateway.
    pub gateway: GatewayId,
    /// The incarnation that beat last.
    pub incarnation: Option<String>,
    /// Watches and bulk streams open here.
    pub streams: u32,
    /// When it was heard of last.
    pub heard: Instant,
    /// When it was found silent.
    pub vanished: Option<Instant>,
    /// Sessions of it that are kept since people may still talk.
    pub kept: u64,
    /// Whether it has told everything since it started and nothing was expired since.
    pub synced: bool,
}

// === impl Presence ===

impl Presence {
    /// The gateway says that it lives.
    ///
    /// # Errors
    ///
    /// When the incarnation has been replaced by another, or there are too many gateways.
    pub fn beat(&mut self, id: &GatewayId, incarnation: &str, via: Via, now: Instant) -> Result<Beat, Refused> {
        self.entry(id, now)?.beat(incarnation, via, now)
    }

    /// Another syncer says that the gateway lives. Of two incarnations that are heard of within `settles` of each other
    /// such word does not say which is the newer; the gateway's own does.
    ///
    /// # Errors
    ///
    /// As [`Presence::beat`].
    pub fn passed_on(
        &mut self,
        id: &GatewayId,
        incarnation: &str,
        settles: Duration,
        now: Instant,
    ) -> Result<Beat, Refused> {
        self.entry(id, now)?.passed_on(incarnation, settles, now)
    }

    /// The gateway opened a watch or a bulk stream here. Counts until [`Presence::closed`].
    ///
    /// # Errors
    ///
    /// When there are too many gateways: then it is not to be closed either.
    pub fn opened(&mut self, id: &GatewayId, via: Via, now: Instant) -> Result<(), Refused> {
        self.entry(id, now)?.opened(via, now);
        Ok(())
    }

    /// The gateway's stream ended.
    pub fn closed(&mut self, id: &GatewayId, via: Via, now: Instant) {
        if let Some(gateway) = self.gateways.get_mut(id) {
            gateway.closed(via, now);
        }
        self.tidy(id, now);
    }

    /// Whether this process of the gateway may speak for it.
    ///
    /// # Errors
    ///
    /// When it has been replaced by another.
    pub fn admits(&self, id: &GatewayId, incarnation: &str) -> Result<(), Refused> {
        self.gateways.get(id).map_or(Ok(()), |gateway| gateway.admits(incarnation))
    }

    /// The gateway begins to tell everything again.
    ///
    /// # Errors
    ///
    /// When there are too many gateways.
    pub fn begin(&mut self, id: &GatewayId, round: Round, now: Instant) -> Result<(), Refused> {
        self.entry(id, now)?.begin(round);
        Ok(())
    }

    /// The gateway has told everything: what it did not tell since the round began expires after the
    /// resume window. Saying so again changes nothing.
    ///
    /// # Errors
    ///
    /// When the round was not begun here.
    pub fn synced(&mut self, id: &GatewayId, round: Round, now: Instant) -> Result<(), Refused> {
        self.gateways.get_mut(id).ok_or(Refused::NotBegun)?.synced(round, now)
    }

    /// Looks at every gateway: who has vanished, and what is due. O(gateways).
    pub fn look(&mut self, rules: &Rules, now: Instant) -> Look {
        let mut look = Look::default();
        let (mut promised, mut gone) = (0usize, 0usize);
        self.gateways.retain(|_, gateway| !gateway.is_nothing(now));
        for (id, gateway) in &mut self.gateways {
            if gateway.falls_silent(rules.alive_for, now) {
                look.vanished.push(id.clone());
            }
            // One of which only kept sessions are left went long ago, and says nothing of us now.
            if gateway.kept() == 0 {
                promised += usize::from(gateway.has_promised());
                gone += usize::from(gateway.vanished().is_some());
            }
        }
        let frozen = gone >= FREEZE_MIN && gone as f64 > rules.freeze_share * promised as f64;
        look.turned = (frozen != self.frozen).then_some(frozen);
        self.frozen = frozen;
        // Whoever is asked of one is asked of all: an SFU tells of every room at once.
        let mut ask = false;
        for (id, gateway) in &self.gateways {
            // What a gateway itself said is out of date is so whatever we believe of ourselves.
            if let Some(before) = gateway.outdated(rules.resume_window, now) {
                look.due.push(Due { gateway: id.clone(), before: Some(before), but_talking: false });
            }
            look.kept += gateway.kept();
            let Some(absence) = gateway.absence(rules, now).filter(|_| !frozen) else { continue };
            ask |= absence == Absence::Ask;
            if let Absence::Expires { but_talking } = absence {
                look.due.push(Due { gateway: id.clone(), before: None, but_talking });
            }
            if absence != (Absence::Expires { but_talking: false }) {
                look.ask.push(id.clone());
            }
        }
        if !ask {
            look.ask.clear();
        }
        look
    }

    /// The gateways that have vanished, whether their window is over or not.
    #[must_use]
    pub fn gone(&self) -> Vec<GatewayId> {
        self.gateways.iter().filter(|(_, g)| g.vanished().is_some()).map(|(id, _)| id.clone()).collect()
    }

    /// What SFUs told is not known any more: they are asked again. What was kept is, until they have answered.
    pub fn forget_people(&mut self) {
        self.gateways.values_mut().for_each(Gateway::forget_people);
    }

    /// SFUs in doubt were asked again: what is kept may not be any more.
    pub fn told_again(&mut self) {
        self.gateways.values_mut().for_each(Gateway::told_again);
    }

    /// SFUs have told who is there, as they were asked to at `asked`: those of these gateways' sessions whose people are
    /// not may expire.
    pub fn told(&mut self, gateways: &[GatewayId], asked: Instant, now: Instant) {
        for id in gateways {
            if let Some(gateway) = self.gateways.get_mut(id) {
                gateway.told(asked, now);
            }
        }
    }

    /// Whether this is still to be done: a vanished gateway may be back.
    #[must_use]
    pub fn is_due(&self, due: &Due) -> bool {
        self.gateways.get(&due.gateway).is_some_and(|g| due.before.is_some() || g.vanished().is_some())
    }

    /// Sessions of the gateway have expired.
    pub fn expired(&mut self, due: &Due) {
        if let Some(gateway) = self.gateways.get_mut(&due.gateway)
            && due.before.is_none()
        {
            gateway.lost();
        }
    }

    /// All of it is done, but for `kept` sessions whose people may still talk.
    pub fn finished(&mut self, due: &Due, kept: u64, now: Instant) {
        let Some(gateway) = self.gateways.get_mut(&due.gateway) else { return };
        match due.before {
            Some(before) => gateway.cleared(before),
            None if kept > 0 => gateway.keep(kept),
            None if gateway.vanished().is_some() => {
                self.gateways.remove(&due.gateway);
                return;
            }
            None => {}
        }
        self.tidy(&due.gateway, now);
    }

    /// The gateways that spoke to this syncer itself since `since`, with their incarnations: what the
    /// other syncers have to know.
    #[must_use]
    pub fn spoke(&self, since: Instant) -> Vec<(GatewayId, String)> {
        self.gateways.iter().filter_map(|(id, g)| Some((id.clone(), g.spoke(since)?.to_owned()))).collect()
    }

    fn tidy(&mut self, id: &GatewayId, now: Instant) {
        if self.gateways.get(id).is_some_and(|gateway| gateway.is_nothing(now)) {
            self.gateways.remove(id);
        }
    }

    /// Whether so many gateways are gone at once that none is believed to be.
    #[must_use]
    pub const fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// How many there are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for gateway in self.gateways.values() {
            match gateway.vanished() {
                Some(_) => counts.vanished += 1,
                None => counts.here += 1,
            }
            counts.syncing += u32::from(gateway.is_syncing());
            counts.kept += gateway.kept();
        }
        counts
    }

    /// Every gateway, for operators, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Seen> {
        let mut all: Vec<Seen> = self.gateways.iter().map(|(id, g)| g.seen(id.clone())).collect();
        all.sort_by(|a, b| a.gateway.cmp(&b.gateway));
        all
    }

    fn entry(&mut self, id: &GatewayId, now: Instant) -> Result<&mut Gateway, Refused> {
        if !self.gateways.contains_key(id) {
            if self.gateways.len() >= GATEWAYS_MAX {
                return Err(Refused::Full);
            }
            self.gateways.insert(id.clone(), Gateway::new(now));
        }
        self.gateways.get_mut(id).ok_or(Refused::Full)
    }
}
