//! Ends rooms that are no longer wanted, with permits of its own: a recovery never waits for it,
//! and it never waits for a recovery (R10).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rate_limit::Backoff;
use tokio::time::Instant;

use super::{InFlight, evidence};
use crate::context::Context;
use crate::drivers::{EndSpec, Ended, ErrorKind};
use crate::health::{Evidence, Verdict};
use crate::select::Sfu;
use crate::state::Release;

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

/// Starts releases whose moment has come, within their permits. Returns when the next one is due.
pub(super) fn start(ctx: &Arc<Context>, in_flight: &Arc<AtomicU64>, now: Instant) -> Option<Instant> {
    while let Some(permit) = InFlight::enter(in_flight, ctx.levers.release_in_flight_max.get()) {
        let Some((release, tries)) = ctx.releases.pop(now) else { return ctx.releases.next_at() };
        let Some(sfu) = ctx.catalogue.get(release.sfu) else { continue };
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
        let Some(mine) = InFlight::enter(&sfu.releasing, PER_SFU_MAX) else {
            put_back(ctx, release, tries, now + BUSY);
            continue;
        };
        let ctx = ctx.clone();
        ctx.tracker.clone().spawn(async move {
            run(&ctx, &sfu, release, tries).await;
            drop((permit, mine));
            ctx.wake.notify_one();
        });
    }
    None // a release that ends wakes the loop
}

fn put_back(ctx: &Context, release: Release, tries: u32, not_before: Instant) {
    if !ctx.releases.push(release, tries, not_before) {
        ctx.metrics.releases_dropped.inc();
    }
}

async fn run(ctx: &Context, sfu: &Arc<Sfu>, release: Release, tries: u32) {
    let asked = Instant::now();
    let end = EndSpec {
        room: release.room.clone(),
        slot: release.slot,
        owner_term: release.term,
        epoch: release.epoch,
        op_id: ctx.op_id("end", release.slot, release.epoch, tries),
        boot_id: None,
    };
    let result = sfu.driver().end_room(end, false, asked + ctx.levers.attempt_timeout.get()).await;
    let now = Instant::now();
    let again = match result {
        Ok(Ended::Destroyed | Ended::WasAbsent) => {
            ctx.metrics.releases.inc();
            let took = now.saturating_duration_since(asked);
            ctx.observe(sfu, &Evidence::Answered { boot_id: None, asked, took }, now);
            false
        }
        Ok(Ended::Occupied) => true,
        Err(error) => {
            if let Some(evidence) = evidence(&error, asked, now) {
                ctx.observe(sfu, &evidence, now);
            }
            // Fenced: somebody has put the room to use again. Rejected: it never will be ended.
            !matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Rejected | ErrorKind::Restarted)
        }
    };
    if again && tries + 1 < TRIES_MAX {
        let wait = BACKOFF.base + ctx.with_rng(|rng| BACKOFF.full_jitter(tries, rng));
        put_back(ctx, release, tries + 1, now + wait);
    } else if again {
        ctx.metrics.releases_dropped.inc();
    }
}
