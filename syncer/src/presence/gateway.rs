//! What is known of one gateway.

use std::collections::VecDeque;
use std::time::Duration;

use sfu_api::GatewayId;
use tokio::time::Instant;

use super::{Beat, Refused, Rules, Seen, Via};
use crate::state::Round;

/// Incarnations remembered as replaced: a process that hangs may come to after its successor's
/// successor, hardly later.
const REPLACED_MAX: usize = 4;
/// Rounds begun and not ended. Streams that break off leave them; one gateway has one or two at work.
const ROUNDS_MAX: usize = 8;
/// A round of a gateway without a promise that says nothing for this long has broken off. Its lines
/// come at least once a minute, or its stream is ended.
const ROUND_SILENCE_MAX: Duration = Duration::from_secs(600);
/// Ended rounds whose rest still waits for its window; the window is two minutes and a round takes
/// seconds, so one or two. Beyond, the last is put off, never the first.
const ENDED_MAX: usize = 8;

/// One gateway.
#[derive(Debug)]
pub(super) struct Gateway {
    /// The process that beat last; without one there is no promise.
    incarnation: Option<String>,
    /// When it was first heard of here.
    since: Instant,
    replaced: VecDeque<String>,
    heard: Instant,
    streams: u32,
    /// Those of `streams` that it opened here itself.
    own_streams: u32,
    /// When it spoke to this syncer itself.
    spoke: Option<Instant>,
    vanished: Option<Instant>,
    /// What SFUs said of its people since the resume window was over.
    people: People,
    begun: VecDeque<Round>,
    ended: VecDeque<(Round, Instant)>,
    /// The last round that ended, for whoever says so again.
    last: Option<Round>,
    synced: bool,
}

/// What SFUs said of a vanished gateway's people.
#[derive(Clone, Copy, Debug)]
enum People {
    /// Nothing that is still known. So many were kept when it was.
    Unknown(u64),
    /// Who is there. Sessions of others may be left; the last time it was so many that were kept.
    Told(Instant, u64),
    /// Who is there. So many sessions are left, and no others.
    Kept(Instant, u64),
}

/// What is to become of a vanished gateway's sessions, after the resume window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// SFUs are to be asked, or asked again.
    Ask,
    /// They expire, all or but those whose people may still talk.
    Expires { but_talking: bool },
    /// Those that are left are kept for now.
    Kept,
}

// === impl Gateway ===

impl Gateway {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            incarnation: None,
            since: now,
            replaced: VecDeque::new(),
            heard: now,
            streams: 0,
            own_streams: 0,
            spoke: None,
            vanished: None,
            people: People::Unknown(0),
            begun: VecDeque::new(),
            ended: VecDeque::new(),
            last: None,
            synced: false,
        }
    }

    pub(super) fn beat(&mut self, incarnation: &str, via: Via, now: Instant) -> Result<Beat, Refused> {
        self.admits(incarnation)?;
        let restarted = self.incarnation.as_ref().is_some_and(|known| known != incarnation);
        if self.incarnation.as_deref() != Some(incarnation) {
            self.since = now;
            if let Some(old) = self.incarnation.replace(incarnation.to_owned()) {
                self.replaced.truncate(REPLACED_MAX - 1);
                self.replaced.push_front(old);
                self.synced = false;
            }
        }
        self.hear(via, now);
        Ok(Beat { resync: !self.synced, restarted })
    }

    /// As [`Gateway::beat`], of what another syncer heard. It may not know yet what we do: while the incarnation that is
    /// known here is as young as `settles`, another one may as well be the one before, and is a sign of life and no more.
    /// If it is the newer one it is told again.
    pub(super) fn passed_on(&mut self, incarnation: &str, settles: Duration, now: Instant) -> Result<Beat, Refused> {
        self.admits(incarnation)?;
        let differs = self.incarnation.as_ref().is_some_and(|known| known != incarnation);
        if differs && now.saturating_duration_since(self.since) < settles {
            self.hear(Via::Peer, now);
            return Ok(Beat { resync: !self.synced, restarted: false });
        }
        self.beat(incarnation, Via::Peer, now)
    }

    /// Refuses what a process says that was replaced. One that is not known may be newer than those that are.
    pub(super) fn admits(&self, incarnation: &str) -> Result<(), Refused> {
        if self.replaced.iter().any(|old| old == incarnation) { Err(Refused::Superseded) } else { Ok(()) }
    }

    pub(super) fn opened(&mut self, via: Via, now: Instant) {
        self.streams += 1;
        self.own_streams += u32::from(via == Via::Own);
        self.hear(via, now);
    }

    pub(super) fn closed(&mut self, via: Via, now: Instant) {
        self.streams = self.streams.saturating_sub(1);
        self.own_streams = self.own_streams.saturating_sub(u32::from(via == Via::Own));
        self.hear(via, now);
    }

    fn hear(&mut self, via: Via, now: Instant) {
        self.heard = now;
        self.vanished = None;
        self.people = People::Unknown(0);
        if via == Via::Own {
            self.spoke = Some(now);
        }
    }

    /// The incarnation, if the gateway speaks to this syncer itself: since `since`, or on a stream.
    pub(super) fn spoke(&self, since: Instant) -> Option<&str> {
        let speaks = self.own_streams > 0 || self.spoke.is_some_and(|at| at >= since);
        self.incarnation.as_deref().filter(|_| speaks)
    }

    /// Whether it has just vanished.
    pub(super) fn falls_silent(&mut self, alive_for: Duration, now: Instant) -> bool {
        let silent = self.streams == 0 && now.saturating_duration_since(self.heard) >= alive_for;
        let falls = self.vanished.is_none() && self.has_promised() && silent;
        if falls {
            self.vanished = Some(now);
        }
        falls
    }

    /// What is to become of its sessions, if it has vanished and the resume window is over.
    pub(super) fn absence(&self, rules: &Rules, now: Instant) -> Option<Absence> {
        let over = now.saturating_duration_since(self.vanished?).checked_sub(rules.resume_window)?;
        let again = |told: Instant| now.saturating_duration_since(told) >= rules.ask_every;
        Some(match self.people {
            _ if over >= rules.kept_max => Absence::Expires { but_talking: false },
            People::Unknown(_) => Absence::Ask,
            People::Told(told, _) | People::Kept(told, _) if again(told) => Absence::Ask,
            People::Told(..) => Absence::Expires { but_talking: true },
            People::Kept(..) => Absence::Kept,
        })
    }

    /// What SFUs told is not known any more.
    pub(super) const fn forget_people(&mut self) {
        self.people = People::Unknown(self.kept());
    }

    /// SFUs in doubt have told again; when all are asked again is as before.
    pub(super) const fn told_again(&mut self) {
        if let People::Kept(at, sessions) = self.people {
            self.people = People::Told(at, sessions);
        }
    }

    /// SFUs have told who is there, as they were asked to at `asked`.
    pub(super) fn told(&mut self, asked: Instant, now: Instant) {
        if self.vanished.is_some_and(|at| at <= asked) {
            self.people = People::Told(now, self.kept());
        }
    }

    /// So many sessions are left, whose people may still talk.
    pub(super) fn keep(&mut self, sessions: u64) {
        if let People::Told(at, _) = self.people {
            self.people = People::Kept(at, sessions);
        }
    }

    /// Sessions that are left since people may still talk.
    pub(super) const fn kept(&self) -> u64 {
        match self.people {
            People::Unknown(sessions) | People::Told(_, sessions) | People::Kept(_, sessions) => sessions,
        }
    }

    pub(super) fn begin(&mut self, round: Round) {
        if self.begun.len() == ROUNDS_MAX {
            self.begun.pop_front();
        }
        self.begun.push_back(round);
    }

    pub(super) fn synced(&mut self, round: Round, now: Instant) -> Result<(), Refused> {
        if self.last == Some(round) {
            return Ok(());
        }
        if !self.begun.contains(&round) {
            return Err(Refused::NotBegun);
        }
        // Whoever began earlier has nothing more to say: its rest is part of this one's.
        self.begun.retain(|begun| *begun > round);
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_back();
        }
        self.ended.push_back((round, now));
        self.last = Some(round);
        self.synced = true;
        Ok(())
    }

    /// The round before which everything is out of date by now.
    pub(super) fn outdated(&self, resume_window: Duration, now: Instant) -> Option<Round> {
        let (round, at) = self.ended.front()?;
        (now.saturating_duration_since(*at) >= resume_window).then_some(*round)
    }

    /// Nothing is left of what was told before this round.
    pub(super) fn cleared(&mut self, before: Round) {
        self.ended.retain(|(round, _)| *round > before);
    }

    /// Sessions of it have expired because it had vanished.
    pub(super) fn lost(&mut self) {
        self.synced = false;
    }

    pub(super) fn has_promised(&self) -> bool {
        self.incarnation.is_some()
    }

    pub(super) const fn vanished(&self) -> Option<Instant> {
        self.vanished
    }

    pub(super) fn is_syncing(&self) -> bool {
        self.streams > 0 && !self.begun.is_empty()
    }

    /// Whether nothing would be lost by forgetting it: no promise, no stream, and no round that could
    /// still end.
    pub(super) fn is_nothing(&self, now: Instant) -> bool {
        let over = || now.saturating_duration_since(self.heard) >= ROUND_SILENCE_MAX;
        let open = !self.begun.is_empty() && !over();
        self.incarnation.is_none() && self.streams == 0 && self.ended.is_empty() && !open
    }

    pub(super) fn seen(&self, gateway: GatewayId) -> Seen {
        Seen {
            gateway,
            incarnation: self.incarnation.clone(),
            streams: self.streams,
            heard: self.heard,
            vanished: self.vanished,
            kept: self.kept(),
            synced: self.synced,
        }
    }
}
