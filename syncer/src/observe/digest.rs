//! Compares rooms with an SFU, and settles the differences.
//!
//! A room of ours that the SFU no longer has (amnesia) makes its call dirty. A room of ours that
//! nobody claims (an orphan, from a lost answer or from a life before) is ended, but never while
//! someone is in it, and never one whose call is placed or being placed there. While someone is in it,
//! it is kept: its call is placed there as soon as a gateway tells of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sfu_api::{DIGEST_ROOMS_MAX, Epoch, OwnerTerm, RoomId, RoomRef, Slot, SlotTerm, room_set_hash};
use tokio::time::Instant;

use crate::context::Context;
use crate::drivers::{DigestOutcome, DigestSpec, DriverError, ErrorKind, ListedRoom};
use crate::health::Evidence;
use crate::ownership::slot_of;
use crate::reconcile::evidence;
use crate::select::Sfu;
use crate::state::{Last, Release, RoomOn};

/// Compares once. Bounded by twice the lever `placement.attempt_timeout`. The `first` time after we came to own slots
/// it says so of all of them: an SFU shows the rooms of a slot to the one who holds it.
pub(super) async fn run(ctx: &Context, sfu: &Arc<Sfu>, first: bool) {
    let asked = Instant::now();
    let deadline = asked + ctx.levers.attempt_timeout.get() * 2;
    let result = compare(ctx, sfu, first, deadline).await;
    let now = Instant::now();
    if let Err(error) = result {
        ctx.metrics.no_sign(error.kind().as_str());
        tracing::debug!(sfu = %sfu.id, %error, "digest failed");
        if error.kind() == ErrorKind::Fenced
            && error.fenced_slots().is_empty()
            && let Some(term) = error.highest_term()
        {
            // The answer does not say for which slot. Claiming one again costs its calls nothing.
            for slot in ours(ctx, sfu).into_iter().filter(|o| o.term < term).map(|o| o.slot) {
                ctx.fenced_by(slot, term);
            }
        }
        if let Some(evidence) = evidence(&error, asked, now) {
            ctx.observe(sfu, &evidence, now);
        }
    }
}

fn ours(ctx: &Context, sfu: &Sfu) -> Vec<RoomOn> {
    ctx.shards.iter().flat_map(|s| s.lock().rooms_on(sfu.idx)).collect()
}

async fn compare(ctx: &Context, sfu: &Arc<Sfu>, first: bool, deadline: Instant) -> Result<(), DriverError> {
    let mut asked = Instant::now();
    let mut named: Vec<RoomOn> = ours(ctx, sfu).into_iter().filter(|o| o.confirmed).collect();
    let mut spec = spec(sfu, &named, first.then(|| ctx.terms()));
    let mut answer = sfu.driver().digest(spec.clone(), deadline).await;
    if let Some(fenced) = answer.as_ref().err().and_then(|error| fenced_slots(ctx, &spec, error)) {
        // Theirs are to be claimed again; the others need not wait for that.
        named.retain(|o| !fenced.contains(&o.slot));
        let terms = spec.terms.into_iter().filter(|own| !fenced.contains(&own.slot)).collect();
        spec = count(DigestSpec { terms, ..spec }, &named);
        asked = Instant::now();
        answer = sfu.driver().digest(spec.clone(), deadline).await;
    }
    let answer = match answer? {
        DigestOutcome::Unsupported => return compare_list(ctx, sfu, &named, deadline).await,
        DigestOutcome::Answer(answer) if answer.matches => answer,
        // Too many to name in one request: the list has pages.
        DigestOutcome::Answer(_) if named.len() > DIGEST_ROOMS_MAX => {
            return compare_list(ctx, sfu, &named, deadline).await;
        }
        DigestOutcome::Answer(_) => {
            spec.named = Some(named.iter().map(|o| RoomRef { room: o.room.clone(), epoch: o.epoch }).collect());
            match sfu.driver().digest(spec, deadline).await? {
                DigestOutcome::Answer(answer) => answer,
                DigestOutcome::Unsupported => return Ok(()),
            }
        }
    };
    let now = Instant::now();
    let took = now.saturating_duration_since(asked);
    ctx.observe(sfu, &Evidence::Answered { boot_id: Some(answer.boot_id), asked, took }, now);
    sfu.report(answer.load, now);
    let Some(differences) = answer.differences else { return Ok(()) };
    if differences.surplus.len() >= DIGEST_ROOMS_MAX {
        return compare_list(ctx, sfu, &named, deadline).await; // there may be more
    }
    let missing: HashSet<&RoomId> = differences.missing.iter().collect();
    forgotten(ctx, sfu, named.iter().filter(|o| missing.contains(&o.room)), now);
    let surplus = differences.surplus.into_iter();
    orphans(
        ctx,
        sfu,
        surplus.map(|r| Unclaimed { room: r.room, slot: r.slot, epoch: r.epoch, people: r.participants }),
        now,
    );
    Ok(())
}

/// The slots without which a digest may be sent again, if it was refused for some of those that it has. Notes their terms.
fn fenced_slots(ctx: &Context, spec: &DigestSpec, error: &DriverError) -> Option<HashSet<Slot>> {
    let sent: HashMap<Slot, OwnerTerm> = spec.terms.iter().map(|own| (own.slot, own.term)).collect();
    let higher = error.fenced_slots().iter().filter(|seen| sent.get(&seen.slot).is_some_and(|own| *own < seen.term));
    let fenced: HashSet<Slot> =
        higher.inspect(|seen| ctx.fenced_by(seen.slot, seen.term)).map(|seen| seen.slot).collect();
    (!fenced.is_empty()).then_some(fenced)
}

fn spec(sfu: &Sfu, named: &[RoomOn], all: Option<Vec<(Slot, OwnerTerm)>>) -> DigestSpec {
    let terms: HashMap<Slot, OwnerTerm> =
        named.iter().map(|o| (o.slot, o.term)).chain(all.into_iter().flatten()).collect();
    let spec = DigestSpec {
        boot_id: sfu.with_health(|h| h.boot_id().cloned()),
        terms: terms.into_iter().map(|(slot, term)| SlotTerm { slot, term }).collect(),
        rooms: 0,
        hash: 0,
        named: None,
    };
    count(spec, named)
}

/// Has a digest say how many rooms there are, and which, in short.
fn count(spec: DigestSpec, rooms: &[RoomOn]) -> DigestSpec {
    DigestSpec {
        rooms: u32::try_from(rooms.len()).unwrap_or(u32::MAX),
        hash: room_set_hash(rooms.iter().map(|o| (&o.room, o.epoch))),
        ..spec
    }
}

/// For SFUs without digests, and for those with more rooms than a digest names: the whole list of rooms that carry our names.
async fn compare_list(ctx: &Context, sfu: &Arc<Sfu>, named: &[RoomOn], deadline: Instant) -> Result<(), DriverError> {
    let asked = Instant::now();
    let list = sfu.driver().list_rooms(deadline).await?;
    let now = Instant::now();
    let took = now.saturating_duration_since(asked);
    let boot_id = list.boot_id.clone();
    ctx.observe(sfu, &Evidence::Answered { boot_id, asked, took }, now);
    if let Some(load) = list.load {
        sfu.report(load, now);
    }
    let there: HashMap<&RoomId, Option<Epoch>> = list.rooms.iter().map(|r| (&r.room, r.epoch)).collect();
    let is_there = |o: &&RoomOn| there.get(&o.room).is_some_and(|epoch| epoch.is_none_or(|epoch| epoch == o.epoch));
    forgotten(ctx, sfu, named.iter().filter(|o| !is_there(o)), now);
    let known =
        |r: ListedRoom| Some(Unclaimed { room: r.room, slot: r.slot?, epoch: r.epoch?, people: r.participants });
    orphans(ctx, sfu, list.rooms.into_iter().filter_map(known), now);
    Ok(())
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
