//! Tells the calls of an SFU that its rooms are lost, a few at a time.

use tokio::time::Instant;

use crate::context::{Context, Passing};

/// Calls told under one lock of a shard: ~100 µs.
const CHUNK: usize = 32;

/// Calls told in one round: ~5 ms, then others have their turn. An SFU with 40,000 calls takes 80
/// rounds, which is well below what its repair takes.
const CALLS_PER_ROUND: u64 = 512;

/// Goes on with the losses; returns when there is more to tell.
pub(super) fn pass(ctx: &Context, now: Instant) -> Option<Instant> {
    let mut left = CALLS_PER_ROUND;
    while left > 0 {
        let mut passing = ctx.losses.first()?;
        let before = passing.calls;
        let more = step(ctx, &mut passing, left);
        left = left.saturating_sub(passing.calls - before);
        ctx.losses.went(passing, more);
        if more {
            return Some(now);
        }
    }
    (!ctx.losses.is_empty()).then_some(now)
}

/// Tells at least `calls` calls, or all there are. Returns whether there are more.
fn step(ctx: &Context, passing: &mut Passing, calls: u64) -> bool {
    let goal = passing.calls + calls;
    while let Some(loss) = passing.loss() {
        if passing.calls >= goal {
            return true;
        }
        let news = ctx.shards[passing.shard].lock().sfu_lost(&loss, &mut passing.from, CHUNK);
        passing.calls += news.len() as u64;
        passing.shard += usize::from(passing.from.is_none());
        for n in news {
            ctx.announce(n);
        }
        if passing.loss().is_none() && passing.calls > 0 {
            let sfu = ctx.catalogue.get(loss.sfu).map(|sfu| sfu.id.clone());
            tracing::info!(?sfu, calls = passing.calls, cause = loss.cause.name(), "calls await a new endpoint");
        }
    }
    false
}
