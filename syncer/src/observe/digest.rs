//! Compares rooms with an SFU, and settles the differences.
//!
//! A room of ours that the SFU no longer has (amnesia) makes its call dirty. A room of ours that
//! nobody claims (an orphan, from a lost answer or from a life before) is ended, but never while
//! someone is in it, and never one whose call is placed or being placed there. While someone is in it,
//! it is kept: its call is placed there as soon as a gateway tells of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sfu_api::{BootId, DIGEST_ROOMS_MAX, Epoch, Load, OwnerTerm, RoomId, RoomRef, Slot, SlotTerm, room_set_hash};
use tokio::time::Instant;

use crate::context::Context;
use crate::drivers::{DigestOutcome, DigestSpec, DriverError, ErrorKind, ListedRoom};
use crate::health::Evidence;
use crate::ownership::slot_of;
use crate::reconcile::evidence;
use crate::select::Sfu;
use crate::state::{Last, Release, RoomOn};

/// Times that a digest is sent without the slots for which it was refused. An SFU names all of them; those that
/// somebody claims meanwhile are few.
const LEFT_OUT_MAX: usize = 3;

/// A comparison under way.
struct Comparison<'a> {
    ctx: &'a Context,
    sfu: &'a Arc<Sfu>,
    /// Our rooms there.
    named: Vec<RoomOn>,
    spec: DigestSpec,
    /// When it was asked last.
    asked: Instant,
    deadline: Instant,
    /// Some slots are left out: the SFU has seen higher terms for them.
    partial: bool,
}

/// Compares once. Bounded by twice the lever `placement.attempt_timeout`. The `first` time after we came to own slots
/// it says so of all of them: an SFU shows the rooms of a slot to the one who holds it. Returns whether some were
/// left out, which are to be compared again soon.
pub(super) async fn run(ctx: &Context, sfu: &Arc<Sfu>, first: bool) -> bool {
    let mut comparison = Comparison::new(ctx, sfu, first, Instant::now());
    let result = comparison.run().await;
    let now = Instant::now();
    if let Err(error) = &result {
        ctx.metrics.no_sign(error.kind().as_str());
        tracing::debug!(sfu = %sfu.id, %error, "digest failed");
        if let Some(evidence) = evidence(error, comparison.asked, now) {
            ctx.observe(sfu, &evidence, now);
        }
    }
    comparison.partial
}

fn ours(ctx: &Context, sfu: &Sfu) -> Vec<RoomOn> {
    ctx.shards.iter().flat_map(|s| s.lock().rooms_on(sfu.idx)).collect()
}

// === impl Comparison ===

impl<'a> Comparison<'a> {
    fn new(ctx: &'a Context, sfu: &'a Arc<Sfu>, first: bool, now: Instant) -> Self {
        let named: Vec<RoomOn> = ours(ctx, sfu).into_iter().filter(|o| o.confirmed).collect();
        let all = if first { ctx.terms() } else { Vec::new() };
        let terms: HashMap<Slot, OwnerTerm> = named.iter().map(|o| (o.slot, o.term)).chain(all).collect();
        let spec = DigestSpec {
            boot_id: sfu.with_health(|h| h.boot_id().cloned()),
            terms: terms.into_iter().map(|(slot, term)| SlotTerm { slot, term }).collect(),
            rooms: 0,
            hash: 0,
            named: None,
        };
        let deadline = now + ctx.levers.attempt_timeout.get() * 2;
        let mut comparison = Self { ctx, sfu, named, spec, asked: now, deadline, partial: false };
        comparison.describe(false);
        comparison
    }

    async fn run(&mut self) -> Result<(), DriverError> {
        let answer = match self.ask().await? {
            DigestOutcome::Unsupported => return self.compare_list().await,
            DigestOutcome::Answer(answer) if answer.matches => answer,
            // Too many to name in one request: the list has pages.
            DigestOutcome::Answer(_) if self.named.len() > DIGEST_ROOMS_MAX => return self.compare_list().await,
            DigestOutcome::Answer(_) => {
                self.describe(true);
                match self.ask().await? {
                    DigestOutcome::Answer(answer) => answer,
                    DigestOutcome::Unsupported => return Ok(()),
                }
            }
        };
        let (ctx, sfu, now) = (self.ctx, self.sfu, Instant::now());
        self.answered(Some(answer.boot_id), Some(answer.load), now);
        let Some(differences) = answer.differences else { return Ok(()) };
        if differences.surplus.len() >= DIGEST_ROOMS_MAX {
            return self.compare_list().await; // there may be more
        }
        let missing: HashSet<&RoomId> = differences.missing.iter().collect();
        forgotten(ctx, sfu, self.named.iter().filter(|o| missing.contains(&o.room)), now);
        let surplus = differences.surplus.into_iter();
        orphans(
            ctx,
            sfu,
            surplus.map(|r| Unclaimed { room: r.room, slot: r.slot, epoch: r.epoch, people: r.participants }),
            now,
        );
        Ok(())
    }

    /// Asks, and again without the slots for which it is refused: theirs are to be claimed again, and the others need not
    /// wait for that.
    async fn ask(&mut self) -> Result<DigestOutcome, DriverError> {
        for _ in 0..LEFT_OUT_MAX {
            let error = match self.ask_once().await {
                Err(error) if error.kind() == ErrorKind::Fenced => error,
                result => return result,
            };
            if !self.leave_out(&error) {
                return Err(error);
            }
            self.answered(error.boot_id().cloned(), error.load(), Instant::now());
        }
        self.ask_once().await.inspect_err(|error| {
            self.leave_out(error);
        })
    }

    async fn ask_once(&mut self) -> Result<DigestOutcome, DriverError> {
        self.asked = Instant::now();
        self.sfu.driver().digest(self.spec.clone(), self.deadline).await
    }

    /// Notes the terms that an SFU refuses a digest for, and leaves their slots out of it. Returns whether that makes it
    /// another one.
    fn leave_out(&mut self, error: &DriverError) -> bool {
        if error.kind() != ErrorKind::Fenced {
            return false;
        }
        let sent: HashMap<Slot, OwnerTerm> = self.spec.terms.iter().map(|own| (own.slot, own.term)).collect();
        let mut higher = HashMap::new();
        for seen in error.fenced_slots() {
            if sent.get(&seen.slot).is_some_and(|own| *own < seen.term) {
                let highest = higher.entry(seen.slot).or_insert(seen.term);
                *highest = seen.term.max(*highest);
            }
        }
        if higher.is_empty() {
            // It does not say for which slot. Claiming one again costs its calls nothing.
            let Some(term) = error.highest_term() else { return false };
            self.ctx.fenced_by(self.named.iter().filter(|o| o.term < term).map(|o| (o.slot, term)));
            return false;
        }
        self.partial = true;
        self.named.retain(|o| !higher.contains_key(&o.slot));
        self.spec.terms.retain(|own| !higher.contains_key(&own.slot));
        self.describe(self.spec.named.is_some());
        self.ctx.fenced_by(higher);
        true
    }

    /// Has the digest say what rooms there are, in short or by name.
    fn describe(&mut self, by_name: bool) {
        let named = || self.named.iter().map(|o| RoomRef { room: o.room.clone(), epoch: o.epoch }).collect();
        self.spec.named = by_name.then(named);
        self.spec.rooms = u32::try_from(self.named.len()).unwrap_or(u32::MAX);
        self.spec.hash = room_set_hash(self.named.iter().map(|o| (&o.room, o.epoch)));
    }

    fn answered(&self, boot_id: Option<BootId>, load: Option<Load>, now: Instant) {
        let (asked, took) = (self.asked, now.saturating_duration_since(self.asked));
        self.ctx.observe(self.sfu, &Evidence::Answered { boot_id, asked, took }, now);
        if let Some(load) = load {
            self.sfu.report(load, now);
        }
    }

    /// For SFUs without digests, and for those with more rooms than a digest names: the whole list of rooms that carry our names.
    async fn compare_list(&mut self) -> Result<(), DriverError> {
        self.asked = Instant::now();
        let list = self.sfu.driver().list_rooms(self.deadline).await?;
        let (ctx, sfu, now) = (self.ctx, self.sfu, Instant::now());
        self.answered(list.boot_id.clone(), list.load, now);
        let there: HashMap<&RoomId, Option<Epoch>> = list.rooms.iter().map(|r| (&r.room, r.epoch)).collect();
        let is_there = |o: &&RoomOn| there.get(&o.room).is_some_and(|epoch| epoch.is_none_or(|epoch| epoch == o.epoch));
        forgotten(ctx, sfu, self.named.iter().filter(|o| !is_there(o)), now);
        let known =
            |r: ListedRoom| Some(Unclaimed { room: r.room, slot: r.slot?, epoch: r.epoch?, people: r.participants });
        orphans(ctx, sfu, list.rooms.into_iter().filter_map(known), now);
        Ok(())
    }
}

fn forgotten<'a>(ctx: &Context, sfu: &Arc<Sfu>, rooms: impl Iterator<Item = &'a RoomOn>, now: Instant) {
    let mut lost = 0_u64;
    for RoomOn { key, room, slot, epoch, .. } in rooms {
        let news = ctx.shard(*slot).lock().room_lost(*key, sfu.idx, *epoch, now);
        if let Some(news) = news {
            tracing::debug!(sfu = %sfu.id, %room, %epoch, "the sfu forgot a room");
            ctx.metrics.forgotten.inc();
            ctx.announce(news);
            lost += 1;
        }
    }
    if lost > 0 {
        tracing::warn!(sfu = %sfu.id, rooms = lost, "the sfu forgot rooms");
        ctx.wake.notify_one();
    }
}

/// A room of ours on an SFU, of which we may know nothing.
struct Unclaimed {
    room: RoomId,
    slot: Slot,
    epoch: Epoch,
    /// Participants in it.
    people: u32,
}

/// Rooms that nobody claims: ended if they are empty, else kept for their calls.
fn orphans(ctx: &Context, sfu: &Arc<Sfu>, rooms: impl Iterator<Item = Unclaimed>, now: Instant) {
    // Looked up again after the answer: a placement may have come meanwhile.
    let claimed: HashSet<RoomId> = ours(ctx, sfu).into_iter().map(|o| o.room).collect();
    let (mut ended, mut found) = (0_u64, 0_u64);
    for Unclaimed { room, slot, epoch, people } in rooms {
        let Some(term) = ctx.shard(slot).lock().term(slot) else { continue }; // another syncer's to judge
        if claimed.contains(&room) || epoch.term > term {
            continue;
        }
        if people > 0 {
            found += u64::from(is_kept(ctx, sfu, &room, slot, epoch, now));
            continue;
        }
        tracing::debug!(sfu = %sfu.id, %room, %epoch, "ending an orphan room");
        ctx.metrics.orphans.inc();
        ctx.release(Release { sfu: sfu.idx, room, slot, term, epoch }, now);
        ended += 1;
    }
    if ended > 0 {
        tracing::info!(sfu = %sfu.id, rooms = ended, "ending orphan rooms");
    }
    if found > 0 {
        ctx.metrics.found.inc_by(found);
        tracing::info!(sfu = %sfu.id, rooms = found, "keeping rooms with people for their calls");
        ctx.wake.notify_one();
    }
}

/// Whether a room with people in it is kept for its call.
fn is_kept(ctx: &Context, sfu: &Arc<Sfu>, room: &RoomId, slot: Slot, epoch: Epoch, now: Instant) -> bool {
    let Some((guild, call)) = sfu.driver().call_of(room) else { return false };
    // What an SFU says of a slot is no reason to look for a guild elsewhere.
    slot_of(&guild) == slot && ctx.shard(slot).lock().room_found(slot, &guild, &call, Last { sfu: sfu.idx, epoch }, now)
}
