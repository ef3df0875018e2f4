//! How calls get, keep and lose their place.

use serde::Serialize;

use super::*;
use crate::state::Blocker;

/// Attempts to keep a call where its people are. Beyond, its SFU has refused or timed out for seconds.
const FOUND_ATTEMPTS: u8 = 4;

/// A call that wants a place now.
#[derive(Clone, Debug)]
pub struct PlaceWork {
    /// The call.
    pub key: CallKey,
    /// Its guild.
    pub guild: GuildId,
    /// Its id.
    pub call: CallId,
    /// Slot of the guild.
    pub slot: Slot,
    /// Our term for it.
    pub term: OwnerTerm,
    /// Voice or stream.
    pub kind: CallKind,
    /// Region it asked for.
    pub region: Option<RegionId>,
    /// Class of the work.
    pub class: Class,
    /// Sessions in it.
    pub participants: u32,
    /// Attempts since the need arose.
    pub attempts: u32,
    /// Make the room again on this SFU if at all possible.
    pub in_place: Option<SfuIdx>,
    /// The room is there, with people in it.
    pub found: bool,
    /// Where it was last.
    pub last: Option<SfuIdx>,
    /// Since when it has wanted a place.
    pub since: Option<Instant>,
}

/// What shall become of a [`PlaceWork`].
#[derive(Clone, Debug)]
pub enum Decision {
    /// Try this SFU.
    Reserve {
        /// The SFU.
        sfu: SfuIdx,
        /// Why this one, for `explain`.
        why: Why,
    },
    /// Look again when this goes away.
    Block(Blocker),
    /// Look again at this moment.
    Defer(Instant),
}

/// Why a call went where it did, and what it takes to decide it again: small enough to be kept with each of a million.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Why {
    /// The chosen SFU.
    pub sfu: SfuIdx,
    /// How the choice was made.
    pub how: How,
}

/// How an SFU was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    /// The room was made again where it was.
    InPlace,
    /// By score.
    Drawn(Draw),
}

/// A choice by draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// The score that won.
    pub score: f32,
    /// Whom it won against; the chosen one itself when nobody else was fit. See [`Why::rival`].
    pub rival: SfuIdx,
    /// The score of the one it won against.
    pub rival_score: f32,
    /// From how many it was drawn.
    pub among: u32,
    /// What the draws came from.
    pub seed: Seed,
    /// The catalogue that was drawn from.
    pub revision: Revision,
    /// How far from its region they were.
    pub rung: Rung,
    /// Whom it took.
    pub care: Care,
}

/// What the draws of one decision come from. 32 bits: the same draws twice in four billion decisions harm nobody, and
/// with 64 what is kept with each call would take half as much again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = u64)] // it would be told as int32, which half of them are not
pub struct Seed(pub u32);

/// Which of the catalogue's snapshots: counted from the start of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = u64)]
pub struct Revision(pub u32);

/// Whom a choice takes. Each takes more than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Care {
    /// Those against whom nothing stands.
    Full,
    /// When nobody else of a rung is left: those whose zone is failing too.
    AnyZone,
    /// When nobody else is left: one that fell often is better than none.
    AtLast,
}

// === impl Why ===

impl Why {
    /// Whom the chosen one won against, and with what score; nobody else was fit otherwise.
    #[must_use]
    pub fn rival(&self) -> Option<(SfuIdx, f32)> {
        match self.how {
            How::Drawn(draw) if draw.rival != self.sfu => Some((draw.rival, draw.rival_score)),
            How::Drawn(_) | How::InPlace => None,
        }
    }
}

/// How far from its own region a call was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// In its region.
    Region,
    /// In the group of its region.
    Group,
    /// Anywhere.
    Any,
}

// === impl Rung ===

impl Rung {
    /// Every rung, the nearest first.
    pub const ALL: [Self; 3] = [Self::Region, Self::Group, Self::Any];
}

/// Decides where a call goes. Called under the shard's lock: no I/O, no waiting.
pub trait Placer {
    /// Chooses, and takes what the choice costs.
    fn decide(&mut self, work: &PlaceWork) -> Decision;
    /// The room's name on that SFU.
    fn room(&self, sfu: SfuIdx, work: &PlaceWork, epoch: Epoch) -> RoomId;
}

/// What [`Shard::place_next`] did.
#[derive(Clone, Debug)]
pub enum Next {
    /// Nothing was ready.
    Idle,
    /// The most urgent call was put aside, blocked or deferred.
    PutAside,
    /// The most urgent call now reserves.
    Reserved {
        /// The call.
        work: PlaceWork,
        /// Epoch of the attempt.
        epoch: Epoch,
        /// Room to make.
        room: RoomId,
    },
}

/// All rooms of an SFU are lost.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// The SFU.
    pub sfu: SfuIdx,
    /// Why.
    pub cause: Cause,
    /// Make the rooms again there, instead of choosing.
    pub in_place: bool,
    /// When it was found.
    pub at: Instant,
    /// The last [placement](Shard::placements) there was then.
    pub upto: u64,
}

/// What a commit did.
#[derive(Clone, Debug)]
pub enum Committed {
    /// The call is placed.
    Placed {
        /// What to tell the gateways; `None` when nobody is in the call any more.
        news: Option<News>,
        /// Whether it is on another SFU than before.
        moved: bool,
        /// How long the call had been without an endpoint.
        awaited: Option<Duration>,
        /// Class of the placement.
        class: Class,
        /// The room that a planned move left behind.
        left: Option<Box<Release>>,
    },
    /// The call has moved on; the room is to be released.
    Stale,
}

impl Shard {
    /// Lets `placer` decide on the most urgent ready call, of `class` or of all.
    pub fn place_next(&mut self, class: Option<Class>, placer: &mut impl Placer) -> Next {
        loop {
            let Some((at, number)) = self.dirty.first_ready(class) else { return Next::Idle };
            let key = self.key(number).expect("the dirty set holds calls that exist");
            let Some(work) = self.work(key) else {
                // Not live any more, or not ours: nothing to place.
                self.edit(key, |call, dirty| call.put_into(dirty, key, Place::Clean));
                if self.get(key).is_some_and(|c| !c.is_live() && c.placement.sfu().is_none()) {
                    self.forget(key);
                }
                continue;
            };
            let aside = match placer.decide(&work) {
                Decision::Reserve { sfu, why } => return self.reserve(work, sfu, why, placer),
                Decision::Block(on) => Place::Blocked(Box::new((on, self.dirty.tick(at)))),
                Decision::Defer(until) => Place::Waiting(until),
            };
            self.edit(key, |call, dirty| call.put_into(dirty, key, aside));
            return Next::PutAside;
        }
    }

    fn reserve(&mut self, work: PlaceWork, sfu: SfuIdx, why: Why, placer: &impl Placer) -> Next {
        let epoch = self.next_epoch(work.term);
        let room = placer.room(sfu, &work, epoch);
        self.edit(work.key, |call, dirty| {
            call.put_into(dirty, work.key, Place::InFlight); // while it is of the class that it is there with
            let last = match &call.placement {
                Placement::Lost { last, .. } => Some(*last),
                _ => None,
            };
            let in_place = work.in_place == Some(sfu);
            let found = match call.placement {
                Placement::Unplaced { found } => found.filter(|_| in_place),
                _ => None,
            };
            let attempt = Reserved { room: room.clone(), last, in_place, found };
            call.placement = Placement::Reserving { sfu, epoch, attempt: Box::new(attempt) };
            call.attempts = call.attempts.saturating_add(1);
            call.decision = Some(Box::new(why));
        });
        Next::Reserved { work, epoch, room }
    }

    fn work(&self, key: CallKey) -> Option<PlaceWork> {
        let call = self.get(key)?;
        let (last, in_place) = match call.placement {
            Placement::Unplaced { found } => (found.map(|at| at.sfu), found.is_some()),
            Placement::Lost { last, in_place } => (Some(last.sfu), in_place),
            Placement::Reserving { .. } | Placement::Placed { .. } | Placement::Moving(_) => return None,
        };
        if !call.is_live() {
            return None;
        }
        let found = call.placement.is_found();
        Some(PlaceWork { in_place: last.filter(|_| in_place), found, last, ..self.work_on(key, call)? })
    }

    /// What there is to know of placing `call`, wherever it is.
    pub(super) fn work_on(&self, key: CallKey, call: &Call) -> Option<PlaceWork> {
        Some(PlaceWork {
            key,
            guild: call.guild.clone(),
            call: call.id.clone(),
            slot: call.slot,
            term: self.term(call.slot)?,
            kind: call.kind,
            region: call.region.clone(),
            class: call.class(),
            participants: u32::try_from(call.participants.len()).unwrap_or(u32::MAX),
            attempts: call.attempts.into(),
            in_place: None,
            found: false,
            last: call.placement.sfu(),
            since: call.awaiting_since,
        })
    }

    /// The SFU has made the room. Counts only while the call still reserves, or moves, at `epoch`.
    pub fn commit(
        &mut self,
        key: CallKey,
        epoch: Epoch,
        endpoint: Arc<str>,
        limits: &Limits,
        now: Instant,
    ) -> Committed {
        let sessions = self.sessions(key);
        if matches!(self.get(key), Some(call) if matches!(call.placement, Placement::Moving(_))) {
            return self.commit_move(key, epoch, &endpoint);
        }
        let on = self.get(key).and_then(|call| call.placement.sfu());
        let mut base = on.and_then(|sfu| self.bases.get(&sfu).cloned()).flatten();
        let committed = self.edit(key, |call, dirty| {
            let Placement::Reserving { sfu, epoch: reserved, ref attempt } = call.placement else { return None };
            if reserved != epoch {
                return None;
            }
            let (Reserved { room, last, .. }, class) = (Reserved::clone(attempt), call.class());
            let seat = Seat::new(&call.guild, &call.id, &room, &endpoint, &mut base);
            let awaited = call.awaiting_since.map(|since| now.saturating_duration_since(since));
            call.placement = Placement::Placed { sfu, epoch, seat };
            call.attempts = 0;
            call.awaiting_since = None;
            call.put_into(dirty, key, Place::Clean);
            if !call.is_live() {
                people::empty(key, call, dirty, limits, now);
            }
            let news = call.is_live().then(|| News {
                guild: call.guild.clone(),
                call: call.id.clone(),
                epoch,
                phase: 1,
                endpoint: Some(endpoint),
                at: Some((sfu, room)),
                cause: Cause::Placed,
                sessions,
            });
            Some(Committed::Placed { news, moved: last.is_some_and(|l| l.sfu != sfu), awaited, class, left: None })
        });
        if let Some(sfu) = on {
            self.bases.insert(sfu, base);
        }
        committed.flatten().unwrap_or(Committed::Stale)
    }

    /// The attempt at `epoch` failed; look again at `not_before`. One that was never `sent` does not
    /// count as an attempt.
    pub fn fail(&mut self, key: CallKey, epoch: Epoch, sent: bool, not_before: Instant) {
        let failed = self.edit(key, |call, dirty| {
            moving::stay(call, epoch);
            let Placement::Reserving { epoch: reserved, ref attempt, .. } = call.placement else { return false };
            if reserved != epoch {
                return false;
            }
            let in_place = attempt.in_place && !sent;
            call.placement = match attempt.last {
                Some(last) => Placement::Lost { last, in_place },
                // People are in there: it is worth some more attempts.
                None => {
                    Placement::Unplaced { found: attempt.found.filter(|_| !sent || call.attempts < FOUND_ATTEMPTS) }
                }
            };
            call.attempts = call.attempts.saturating_sub(u8::from(!sent));
            let to = if call.is_live() { Place::Waiting(not_before) } else { Place::Clean };
            call.put_into(dirty, key, to);
            true
        });
        if failed == Some(true) && self.get(key).is_some_and(|c| !c.is_live()) {
            self.forget(key);
        }
    }

    /// The placements there are: a loss concerns those up to here.
    #[must_use]
    pub const fn placements(&self) -> u64 {
        self.placements
    }

    /// The SFU has lost all rooms: its calls need a place, those up to the placement `upto`. What is
    /// placed there later has a room. Attempts under way on it end by themselves. At most `max` calls
    /// after the one named by `from`, so that the lock is not held for long; call again with `from` as it
    /// was left until it is `None`.
    pub fn sfu_lost(&mut self, loss: &Loss, from: &mut Option<CallKey>, max: usize) -> Vec<News> {
        let keys: Vec<CallKey> = self.on(loss.sfu, *from).map(|(key, _)| key).take(max).collect();
        *from = keys.last().copied().filter(|_| keys.len() == max);
        let of_loss = |shard: &Self, key: &CallKey| {
            let seated = shard.get(*key).and_then(|c| c.placement.seated());
            seated.is_some_and(|(on, epoch, _)| on == loss.sfu && epoch.n <= loss.upto)
        };
        let lost = keys.into_iter().filter(|key| of_loss(self, key)).collect::<Vec<_>>();
        lost.into_iter().filter_map(|key| self.lose(key, loss.sfu, loss.cause, loss.in_place, loss.at)).collect()
    }

    /// The SFU no longer has the room of this call, at this epoch.
    pub fn room_lost(&mut self, key: CallKey, sfu: SfuIdx, epoch: Epoch, now: Instant) -> Option<News> {
        let (on, at, _) = self.get(key)?.placement.seated()?;
        (on == sfu && at == epoch).then(|| self.lose(key, sfu, Cause::RoomForgotten, true, now)).flatten()
    }

    fn lose(&mut self, key: CallKey, on: SfuIdx, cause: Cause, in_place: bool, now: Instant) -> Option<News> {
        let sessions = self.sessions(key);
        let news = self.edit(key, |call, dirty| {
            let (_, epoch, _) = call.placement.seated().filter(|(sfu, ..)| *sfu == on)?;
            if let Some(next) = moving::repairing(&call.placement) {
                call.placement = next;
                call.put_into(dirty, key, Place::InFlight);
            } else {
                call.placement = Placement::Lost { last: Last { sfu: on, epoch }, in_place };
                call.put_into(dirty, key, Place::Clean);
            }
            if !call.is_live() {
                return None;
            }
            call.awaiting_since = Some(now);
            if matches!(call.placement, Placement::Lost { .. }) {
                // The lowest repair priority where the evidence is only silence.
                let late = if cause == Cause::SfuSilent { Class::Stream.handicap() } else { Duration::ZERO };
                let at = rank(call, dirty, now).later(late);
                call.put_into(dirty, key, Place::Ready(at));
            }
            Some(News {
                guild: call.guild.clone(),
                call: call.id.clone(),
                epoch,
                phase: 2,
                endpoint: None,
                at: None,
                cause,
                sessions,
            })
        });
        if self.get(key).is_some_and(|c| !c.is_live() && c.placement.sfu().is_none()) {
            self.forget(key);
        }
        news.flatten()
    }

    /// Looks at every call whose moment has come: ready again, or ended. Returns the rooms to
    /// release. At most `max` calls, so that the lock is not held for long; call again while it
    /// returns `true`.
    pub fn tick(&mut self, now: Instant, max: usize, releases: &mut Vec<Release>) -> bool {
        for _ in 0..max {
            let Some((_, key)) = self.dirty.first_waiting().filter(|(at, _)| *at <= now) else { return false };
            let ended = self.edit(key, |call, dirty| {
                let at = rank(call, dirty, now);
                let to = if call.is_awaiting() { Place::Ready(at) } else { Place::Clean };
                call.put_into(dirty, key, to);
                !call.is_live()
            });
            if ended == Some(true) {
                releases.extend(self.end(key));
            }
        }
        true
    }

    /// Ends a call: it is forgotten, and its room is to be released.
    fn end(&mut self, key: CallKey) -> Option<Release> {
        let call = self.forget(key)?;
        release_of(&call, self.term(call.slot)?)
    }

    /// Makes the most urgent call ready that `on` blocks, of `class` or of all; says whether there was one.
    pub fn unblock(&mut self, on: &Blocker, class: Option<Class>, now: Instant) -> bool {
        let Some((_, number)) = self.dirty.first_blocked(on, class) else { return false };
        let key = self.key(number).expect("the dirty set holds calls that exist");
        let unblocked = self.edit(key, |call, dirty| {
            let at = rank(call, dirty, now);
            call.put_into(dirty, key, Place::Ready(at));
        });
        unblocked.is_some()
    }
}

/// The room that clients of `call` have now, to be released.
pub(super) fn release_of(call: &Call, term: OwnerTerm) -> Option<Release> {
    let (sfu, epoch, seat) = call.placement.seated()?;
    Some(Release { sfu, room: seat.room(&call.guild, &call.id), slot: call.slot, term, epoch })
}
