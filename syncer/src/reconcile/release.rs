//! Ends rooms that are no longer wanted, with permits of its own: a recovery never waits for it,
//! and it never waits for a recovery (R10).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rate_limit::Backoff;
use sfu_api::BATCH_OPERATIONS_MAX;
use tokio::time::Instant;

use super::{InFlight, evidence};
use crate::context::Context;
use crate::drivers::{DriverError, EndSpec, Ended, ErrorKind};
use crate::health::{Evidence, Verdict};
use crate::select::Sfu;
use crate::state::{Release, SfuIdx};

/// Wait between two tries. Rooms with participants are tried again too: their last client leaves
/// some seconds after the call has ended.
const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(30) };

/// Tries before a room is left to the digests, which come back to it every minute.
const TRIES_MAX: u32 = 8;

/// Releases in flight on one SFU, so that a slow one does not hold all permits.
const PER_SFU_MAX: u64 = 4;

/// Wait before a busy SFU's next release is looked at: a few round trips.
const BUSY: Duration = Duration::from_millis(20);

/// Wait before a release on an SFU in doubt is looked at again.
const LATER: Duration = Duration::from_secs(5);

/// Releases looked at in one round: four full batches.
const LOOKS_MAX: usize = 1_024;

/// Rooms to be ended on one SFU, in one request, and the permits that it holds.
struct Ending {
    sfu: Arc<Sfu>,
    rooms: Vec<(Release, u32)>,
    _permits: (InFlight, InFlight),
}

/// Starts releases whose moment has come, within their permits. Returns when the next one is due.
pub(super) fn start(ctx: &Arc<Context>, in_flight: &Arc<AtomicU64>, now: Instant) -> Option<Instant> {
    let mut endings: BTreeMap<SfuIdx, Ending> = BTreeMap::new();
    let next = collect(ctx, in_flight, now, &mut endings);
    for ending in endings.into_values() {
        let ctx = ctx.clone();
        ctx.tracker.clone().spawn(async move {
            run(&ctx, ending).await;
            ctx.wake.notify_one();
        });
    }
    next
}

fn collect(
    ctx: &Context,
    in_flight: &Arc<AtomicU64>,
    now: Instant,
    endings: &mut BTreeMap<SfuIdx, Ending>,
) -> Option<Instant> {
    for _ in 0..LOOKS_MAX {
        let Some((release, tries)) = ctx.releases.pop(now) else { return ctx.releases.next_at() };
        let Some(sfu) = ctx.catalogue.get(release.sfu) else { continue };
        if sfu.is_quarantined() {
            continue; // its rooms are what somebody wants to look at
        }
        match sfu.verdict() {
            // Its rooms are gone, or the digest finds them when it is back.
            Verdict::Dead => continue,
            // Would only hold a permit until its time-out.
            Verdict::Slow | Verdict::Suspect => {
                put_back(ctx, release, tries, now + LATER);
                continue;
            }
            Verdict::Healthy | Verdict::Restarted => {}
        }
        if let Some(then) = sfu.releases_at(now) {
            put_back(ctx, release, tries, then);
            continue;
        }
        let most = if sfu.driver().capabilities().batches { BATCH_OPERATIONS_MAX } else { 1 };
        if let Some(ending) = endings.get_mut(&sfu.idx) {
            if ending.rooms.len() < most {
                ending.rooms.push((release, tries));
            } else {
                put_back(ctx, release, tries, now + BUSY);
            }
            continue;
        }
        let Some(permit) = InFlight::enter(in_flight, ctx.levers.release_in_flight_max.get()) else {
            put_back(ctx, release, tries, now);
            return None; // a release that ends wakes the loop
        };
        let Some(mine) = InFlight::enter(&sfu.releasing, PER_SFU_MAX) else {
            put_back(ctx, release, tries, now + BUSY);
            continue;
        };
        endings.insert(sfu.idx, Ending { sfu, rooms: vec![(release, tries)], _permits: (permit, mine) });
    }
    Some(now)
}

fn put_back(ctx: &Context, release: Release, tries: u32, not_before: Instant) {
    if !ctx.releases.push(release, tries, not_before) {
        ctx.metrics.releases_dropped.inc();
    }
}

async fn run(ctx: &Context, ending: Ending) {
    let Ending { sfu, rooms, _permits: _held } = ending;
    let asked = Instant::now();
    let deadline = asked + ctx.levers.attempt_timeout.get();
    let mut ends: Vec<EndSpec> = rooms.iter().map(|(release, tries)| end_of(ctx, release, *tries)).collect();
    let results = match ends.pop() {
        Some(only) if ends.is_empty() => {
            sfu.driver().end_room(only, false, deadline).await.map(|ended| vec![Ok(ended)])
        }
        last => sfu.driver().end_rooms(ends.into_iter().chain(last).collect(), deadline).await,
    };
    let now = Instant::now();
    let took = now.saturating_duration_since(asked);
    let blamed = results.as_ref().err().or_else(|| results.as_ref().ok()?.iter().find_map(|r| r.as_ref().err()));
    let answered = Some(Evidence::Answered { boot_id: None, asked, took });
    if let Some(evidence) = blamed.map_or(answered, |error| evidence(error, asked, now)) {
        ctx.observe(&sfu, &evidence, now);
    }
    let results = results.unwrap_or_else(|error| vec![Err(error); rooms.len()]);
    if let Some(wait) = results.iter().filter_map(overloaded_for).max() {
        sfu.overloaded_until(now + wait);
    }
    for ((release, tries), result) in rooms.into_iter().zip(results) {
        ended(ctx, release, tries, &result, now);
    }
}

/// How long the SFU wants to be left alone, if that is why the room has not ended: as it says, or a little.
fn overloaded_for(result: &Result<Ended, DriverError>) -> Option<Duration> {
    let error = result.as_ref().err().filter(|error| error.kind() == ErrorKind::Overloaded)?;
    Some(error.retry_after().unwrap_or(BACKOFF.base))
}

fn end_of(ctx: &Context, release: &Release, tries: u32) -> EndSpec {
    EndSpec {
        room: release.room.clone(),
        slot: release.slot,
        owner_term: release.term,
        epoch: release.epoch,
        op_id: ctx.op_id("end", release.slot, release.epoch, tries),
        boot_id: None,
    }
}

fn ended(ctx: &Context, release: Release, tries: u32, result: &Result<Ended, DriverError>, now: Instant) {
    let again = match result {
        Ok(Ended::Destroyed | Ended::WasAbsent) => {
            ctx.metrics.releases.inc();
            false
        }
        Ok(Ended::Occupied) => true,
        // Fenced: somebody has put the room to use again. Rejected: it never will be ended.
        Err(error) => !matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Rejected | ErrorKind::Restarted),
    };
    if again && tries + 1 < TRIES_MAX {
        let wait = overloaded_for(result).unwrap_or_default().max(BACKOFF.base)
            + ctx.with_rng(|rng| BACKOFF.full_jitter(tries, rng));
        put_back(ctx, release, tries + 1, now + wait);
    } else if again {
        ctx.metrics.releases_dropped.inc();
    }
}
