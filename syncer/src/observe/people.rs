//! Asks SFUs in which calls people talk whose gateways are gone.
//!
//! In bulk: a list from each SFU that holds calls of these gateways, which tells of all of its rooms, a few lists at a
//! time. What is kept of them is the calls alone. An SFU that is dead is not asked, and whoever does not answer cannot tell:
//! then nobody there is kept for it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use sfu_api::{GatewayId, RoomId};
use tokio::time::Instant;

use super::digest::{list, no_sign};
use crate::context::{Context, SHARDS};
use crate::health::Verdict;
use crate::presence::is_talking;
use crate::select::Sfu;
use crate::state::CallKey;

/// Lists under way: half as many as digests, since each may be ~1 MB and nobody waits for them.
const LISTS_MAX: usize = 8;

/// Calls in which people talk whose gateways are gone, by shard.
pub(super) type Talking = Vec<HashSet<CallKey>>;

/// Nobody.
pub(super) fn nobody() -> Talking {
    vec![HashSet::new(); SHARDS]
}

/// Asks once, of the people of these gateways; `gone` are all that have vanished. Each list is bounded by twice the lever
/// `placement.attempt_timeout`.
pub(super) async fn ask(ctx: &Context, of: &[GatewayId], gone: &[GatewayId]) -> Talking {
    let mut sfus = BTreeSet::new();
    for gateway in of {
        for shard in &ctx.shards {
            shard.lock().sfus_of(gateway, &mut sfus);
        }
        tokio::task::yield_now().await;
    }
    let sfus = sfus.into_iter().filter_map(|idx| ctx.catalogue.get(idx)).filter(|sfu| sfu.verdict() != Verdict::Dead);
    let mut told = stream::iter(sfus).map(|sfu| counted(ctx, sfu)).buffer_unordered(LISTS_MAX);
    let mut talking = nobody();
    while let Some((sfu, people)) = told.next().await {
        let keeps = |room: &RoomId, here| is_talking(people.get(room).copied().unwrap_or(0), here);
        for (calls, shard) in talking.iter_mut().zip(&ctx.shards) {
            calls.extend(shard.lock().calls_with_absent(sfu.idx, gone, keeps));
        }
    }
    talking
}

/// How many people are in each of its rooms; none, if it cannot tell.
async fn counted(ctx: &Context, sfu: Arc<Sfu>) -> (Arc<Sfu>, HashMap<RoomId, u32>) {
    let asked = Instant::now();
    let answer = list(ctx, &sfu, asked + ctx.levers.attempt_timeout.get() * 2).await;
    let rooms = answer.map(|list| list.rooms).unwrap_or_else(|error| {
        no_sign(ctx, &sfu, &error, asked);
        Vec::new()
    });
    (sfu, rooms.into_iter().filter(|room| room.participants > 0).map(|room| (room.room, room.participants)).collect())
}
