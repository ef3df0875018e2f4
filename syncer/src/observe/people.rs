//! Asks SFUs in which calls people talk whose gateways are gone.
//!
//! In bulk: a list from each SFU that holds calls of these gateways, which tells of all of its rooms, a few lists at a
//! time. What is kept of them is the calls with [what was seen of them](Sight). An SFU that is dead is not asked and keeps
//! nobody; one that does not say keeps whom it kept, for a while.
//!
//! How long such a list takes, and that there was none, is held against no SFU: it is the largest thing that any is
//! asked for, and says nothing of how it serves calls.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use sfu_api::{GatewayId, RoomId};
use tokio::time::Instant;

use crate::context::{Context, SHARDS};
use crate::drivers::DriverError;
use crate::health::{Evidence, Verdict};
use crate::presence::{Failures, Sight};
use crate::reconcile::evidence;
use crate::select::Sfu;
use crate::state::{Absent, CallKey, SfuIdx};

/// Lists under way: half as many as digests, since each may be ~1 MB and nobody waits for them.
const LISTS_MAX: usize = 8;

/// Calls looked at under one lock: some 100 µs.
const STEP_MAX: usize = 256;

/// Where people talk whose gateways are gone, as SFUs said when they were asked last.
#[derive(Clone, Debug)]
pub(super) struct Talking {
    /// Every call on an SFU that was asked that has sessions of gateways that were gone, by shard.
    calls: Vec<HashMap<CallKey, (SfuIdx, Sight)>>,
    /// SFUs that did not say.
    failures: HashMap<SfuIdx, Failures>,
    /// SFUs that said something that may mean either.
    doubtful: BTreeSet<SfuIdx>,
}

/// What came of a list.
enum Answer {
    /// How many people are in each room that has any.
    Told(HashMap<RoomId, u32>),
    /// The SFU did not say.
    Failed,
    /// It could not be asked, for reasons of our own.
    NotAsked,
}

// === impl Talking ===

impl Talking {
    /// Nobody, nowhere.
    pub(super) fn nobody() -> Self {
        Self { calls: vec![HashMap::new(); SHARDS], failures: HashMap::new(), doubtful: BTreeSet::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.failures.is_empty() && self.calls.iter().all(HashMap::is_empty)
    }

    /// Whether the call of this shard keeps its sessions.
    pub(super) fn keeps(&self, shard: usize, call: CallKey) -> bool {
        self.calls[shard].get(&call).is_some_and(|(_, sight)| sight.keeps())
    }

    /// SFUs to ask again soon.
    pub(super) const fn doubtful(&self) -> &BTreeSet<SfuIdx> {
        &self.doubtful
    }

    /// These SFUs have been asked again.
    pub(super) fn take(&mut self, sfus: &BTreeSet<SfuIdx>, told: Self) {
        for (calls, told) in self.calls.iter_mut().zip(told.calls) {
            calls.retain(|_, (on, _)| !sfus.contains(on));
            calls.extend(told);
        }
        self.failures.retain(|sfu, _| !sfus.contains(sfu));
        self.failures.extend(told.failures);
        self.doubtful = told.doubtful;
    }
}

/// The SFUs that may have people of these gateways.
pub(super) async fn sfus_of(ctx: &Context, gateways: &[GatewayId]) -> BTreeSet<SfuIdx> {
    let (gateways, mut sfus) = (Arc::from(gateways), BTreeSet::new());
    for shard in &ctx.shards {
        shard.lock().sfus_with(&gateways, &mut sfus);
        tokio::task::yield_now().await;
    }
    sfus
}

/// Asks these SFUs once; `gone` are all gateways that have vanished, and `before` is what was known. Each list is bounded
/// by twice the lever `placement.attempt_timeout`; all of them by `digest.interval` or, if that is longer, by one list:
/// then the next question is due, and it asks whoever was not asked by this one.
pub(super) async fn ask(ctx: &Context, sfus: BTreeSet<SfuIdx>, gone: &[GatewayId], before: &Talking) -> Talking {
    let every = ctx.levers.digest_interval.get();
    let deadline = Instant::now() + every.max(ctx.levers.attempt_timeout.get() * 2);
    let (gone, mut absent): (Arc<[GatewayId]>, Vec<Absent>) = (Arc::from(gone), Vec::new());
    for shard in &ctx.shards {
        absent.push(shard.lock().absent(&gone));
        tokio::task::yield_now().await;
    }
    let sfus = sfus.into_iter().filter_map(|idx| ctx.catalogue.get(idx)).filter(|sfu| sfu.verdict() != Verdict::Dead);
    let mut sfus: Vec<Arc<Sfu>> = sfus.collect();
    sfus.sort_by_key(|sfu| before.failures.contains_key(&sfu.idx)); // who did not say holds up nobody who may
    let mut told = stream::iter(sfus).map(|sfu| counted(ctx, sfu, deadline)).buffer_unordered(LISTS_MAX);
    let mut talking = Talking::nobody();
    while let Some((sfu, asked, answer)) = told.next().await {
        let (idx, known) = (sfu.idx, before.failures.get(&sfu.idx).copied());
        let failures = match answer {
            Answer::Told(_) => None,
            Answer::Failed => Some(Failures::next(known, every, asked)),
            Answer::NotAsked => known,
        };
        talking.failures.extend(failures.map(|failures| (idx, failures)));
        if !failures.is_some_and(Failures::are_too_many) {
            compare(ctx, idx, &answer, &mut absent, before, &mut talking).await;
        }
    }
    talking
}

/// Holds an answer against the sessions there are now.
async fn compare(
    ctx: &Context,
    sfu: SfuIdx,
    answer: &Answer,
    absent: &mut [Absent],
    before: &Talking,
    talking: &mut Talking,
) {
    let people = |room: &RoomId| match answer {
        Answer::Told(people) => Some(people.get(room).copied().unwrap_or(0)),
        Answer::Failed | Answer::NotAsked => None,
    };
    let mut doubtful = false;
    for (i, shard) in ctx.shards.iter().enumerate() {
        let mut after = None;
        loop {
            after = shard.lock().calls_with_absent(sfu, &mut absent[i], after, STEP_MAX, |call, room, here| {
                let known = before.calls[i].get(&call).filter(|(on, _)| *on == sfu).map(|(_, sight)| *sight);
                let sight = Sight::next(known, people(room), here);
                doubtful |= sight.is_doubtful() && matches!(answer, Answer::Told(_));
                talking.calls[i].insert(call, (sfu, sight));
            });
            if after.is_none() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    if doubtful {
        talking.doubtful.insert(sfu);
    }
}

/// Asks one SFU for its rooms.
async fn counted(ctx: &Context, sfu: Arc<Sfu>, deadline: Instant) -> (Arc<Sfu>, Instant, Answer) {
    let asked = Instant::now();
    if asked >= deadline {
        return (sfu, asked, Answer::NotAsked);
    }
    let answer = sfu.driver().list_rooms(deadline.min(asked + ctx.levers.attempt_timeout.get() * 2)).await;
    let now = Instant::now();
    let answered = |boot_id| ctx.observe(&sfu, &Evidence::Answered { boot_id, asked, took: Duration::ZERO }, now);
    let answer = match answer {
        Ok(list) => {
            answered(list.boot_id);
            if let Some(load) = list.load {
                sfu.report(load, now);
            }
            let rooms = list.rooms.into_iter().filter(|room| room.participants > 0);
            Answer::Told(rooms.map(|room| (room.room, room.participants)).collect())
        }
        Err(error) => {
            ctx.metrics.no_sign(error.kind().as_str());
            tracing::debug!(sfu = %sfu.id, %error, "an sfu did not say who is there");
            if let Some(Evidence::Answered { boot_id, .. }) = evidence(&error, asked, now) {
                answered(boot_id);
            }
            failed(&error)
        }
    };
    (sfu, asked, answer)
}

fn failed(error: &DriverError) -> Answer {
    if error.is_local() { Answer::NotAsked } else { Answer::Failed }
}
