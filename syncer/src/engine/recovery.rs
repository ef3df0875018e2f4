//! What waits for a place, how fast it gets one, and when all of it will have one.
//!
//! Read when somebody asks; nothing is kept for it but the [measure](crate::context::Pace) of the pace.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio::time::Instant;

use super::Engine;
use crate::context::Context;
use crate::reconcile::{Estimate, Flow, Limit, RegionSupply, Supply};
use crate::select::{Care, Excluded, Sfu};
use crate::state::{Blocker, Class, Demand, SfuIdx};

/// Calls of each line whose age is looked at. A line is in order of urgency, so the oldest is at most as
/// much older as size counts: 3.2 s.
const HEADS: usize = 64;

/// A recovery as this syncer sees it: its own calls, and its share of the limits.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Recovery {
    /// Calls that await an endpoint, by class, most urgent first.
    pub classes: Vec<ClassRecovery>,
    /// Calls that await an endpoint.
    pub waiting: u64,
    /// Calls of a lost SFU that are about to be told so; they will wait too.
    pub untold: u64,
    /// Attempts under way.
    pub in_flight: u32,
    /// Attempts that may be under way.
    pub window: u32,
    /// Placements per second over the last seconds.
    pub rate_per_s: f64,
    /// Seconds until everything that waits now is placed; null: never, as things are.
    pub eta_s: Option<f64>,
    /// What makes it take that long; null when nothing waits.
    pub limit: Option<Limit>,
    /// The same for people.
    pub limited_by: Option<String>,
    /// What single calls wait for.
    pub blocked: Vec<BlockedCalls>,
    /// Rooms waiting to be ended, with permits of their own.
    pub releases_waiting: u64,
}

/// The calls of one class that wait.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct ClassRecovery {
    /// `repair`, `new` or `stream`.
    pub class: &'static str,
    /// Calls that await an endpoint.
    pub waiting: u64,
    /// How long the first in line has waited, in milliseconds.
    pub oldest_ms: Option<u64>,
    /// Placements of this class per second over the last seconds.
    pub rate_per_s: f64,
    /// Seconds until those that wait now are placed; null: never, as things are.
    pub eta_s: Option<f64>,
}

/// Calls that cannot be placed for the same reason.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct BlockedCalls {
    /// The reason.
    pub on: String,
    /// How many.
    pub calls: u64,
}

impl Engine {
    /// What waits for a place, how fast it gets one, and when all of it will have one.
    #[must_use]
    pub fn recovery(&self, now: Instant) -> Recovery {
        recovery(&self.ctx, now)
    }

    /// When the calls of a class are placed, and what that depends on.
    pub(super) fn eta(&self, class: Class, now: Instant) -> Estimate {
        let ctx = &*self.ctx;
        class_eta(ctx, &supply(ctx, None, now), class, &demand(ctx), now)
    }

    /// When this syncer's calls would be repaired if this SFU died now, and what that would depend on.
    pub(super) fn eta_without(&self, sfu: SfuIdx, now: Instant) -> Estimate {
        let ctx = &*self.ctx;
        let mut demand = demand(ctx);
        for shard in &ctx.shards {
            demand.merge(&shard.lock().demand_of(sfu));
        }
        supply(ctx, Some(sfu), now).estimate_of(Class::Repair, &demand)
    }
}

/// See [`Engine::recovery`].
pub(super) fn recovery(ctx: &Context, now: Instant) -> Recovery {
    // First: what is told afterwards waits by then.
    let untold = ctx.losses.sfus().into_iter().map(|sfu| calls_on(ctx, sfu)).sum();
    let (demand, supply) = (demand(ctx), supply(ctx, None, now));
    let oldest = oldest(ctx);
    let classes: Vec<ClassRecovery> = Class::ALL
        .into_iter()
        .map(|class| ClassRecovery {
            class: class.name(),
            waiting: demand.of(class),
            oldest_ms: oldest[class as usize].map(|since| millis(now, since)),
            rate_per_s: ctx.pace.rate_per_s(class, now),
            eta_s: class_eta(ctx, &supply, class, &demand, now).seconds,
        })
        .collect();
    let mut all = supply.estimate(&demand);
    for class in Class::ALL {
        all = longer(all, class_eta(ctx, &supply, class, &demand, now));
    }
    let limit = (demand.total() > 0).then_some(all.limit);
    Recovery {
        waiting: demand.total(),
        untold,
        in_flight: ctx.window.in_flight(),
        window: ctx.window.limit(),
        rate_per_s: classes.iter().map(|class| class.rate_per_s).sum(),
        eta_s: all.seconds,
        limited_by: limit.as_ref().map(Limit::words),
        limit,
        blocked: blocked(ctx),
        releases_waiting: ctx.releases.len() as u64,
        classes,
    }
}

/// What a blocked call waits for.
pub(super) fn reason(ctx: &Context, on: &Blocker) -> String {
    let of = |region: &Option<_>| region.as_ref().map_or_else(String::new, |r| format!(" of region {r}"));
    match on {
        Blocker::Limits(region) => format!("buckets or windows of the SFUs{}", of(region)),
        Blocker::NoCandidate(region) => format!("an SFU{} that is fit; none is now", of(region)),
        Blocker::Busy(sfu) => {
            let name = ctx.catalogue.get(*sfu).map_or_else(String::new, |sfu| format!(" {}", sfu.id));
            format!("the bucket or window of its own SFU{name}, which is refilled in place")
        }
    }
}

fn blocked(ctx: &Context) -> Vec<BlockedCalls> {
    let mut calls = BTreeMap::<Blocker, u64>::new();
    for shard in &ctx.shards {
        let shard = shard.lock();
        for on in shard.dirty().blockers() {
            *calls.entry(on.clone()).or_default() += shard.dirty().blocked_on(on) as u64;
        }
    }
    calls.into_iter().map(|(on, calls)| BlockedCalls { on: reason(ctx, &on), calls }).collect()
}

/// The longer of what the limits allow and what was measured while work waited all the time.
fn class_eta(ctx: &Context, supply: &Supply, class: Class, demand: &Demand, now: Instant) -> Estimate {
    let modelled = supply.estimate_of(class, demand);
    let Some(rate) = ctx.pace.steady_per_s(class, now) else { return modelled };
    let measured = demand.of(class) as f64 / rate;
    if !measured.is_finite() {
        return modelled; // nothing was placed, and the limits know better why than we do
    }
    longer(modelled, Estimate { seconds: Some(measured), limit: Limit::Attempts })
}

/// Which of two takes longer. One that is within a fifth of the other is the same, but for noise, and the
/// name of the first stands.
fn longer(one: Estimate, other: Estimate) -> Estimate {
    match (one.seconds, other.seconds) {
        (Some(a), Some(b)) if b > a * 1.2 => other,
        (Some(a), Some(b)) => Estimate { seconds: Some(a.max(b)), ..one },
        (Some(_), None) => other,
        (None, _) => one,
    }
}

fn demand(ctx: &Context) -> Demand {
    let mut demand = Demand::default();
    for shard in &ctx.shards {
        demand.merge(shard.lock().demand());
    }
    demand
}

/// What the fleet can take, but for one SFU.
fn supply(ctx: &Context, without: Option<SfuIdx>, now: Instant) -> Supply {
    let snapshot = ctx.catalogue.now();
    let flow = |bucket: &rate_limit::Bucket| Flow {
        rate_per_s: if bucket.quota().is_closed() { 0.0 } else { bucket.quota().rate_per_s },
        tokens: bucket.available(now),
    };
    let regions = snapshot.by_region.iter().map(|(region, sfus)| {
        let able = || sfus.iter().filter(|sfu| Some(sfu.idx) != without && is_able(sfu, now));
        // While there are others, those of failing zones take nothing.
        let elsewhere = able().any(|sfu| !sfu.is_zone_failing());
        let (mut all, mut room) = (Flow::default(), 0u64);
        for sfu in able() {
            let own = if elsewhere && sfu.is_zone_failing() { Flow::default() } else { flow(&sfu.bucket) };
            all.rate_per_s += own.rate_per_s;
            all.tokens = all.tokens.saturating_add(own.tokens);
            room = room.saturating_add(sfu.room());
        }
        RegionSupply { region: region.clone(), bucket: flow(&ctx.budget.region(region, now)), sfus: all, room }
    });
    Supply {
        paused: ctx.levers.paused.get(),
        turns: ctx.levers.turns(),
        overall: flow(ctx.budget.overall()),
        regions: regions.collect(),
        any_region: ctx.levers.any_region.get(),
        groups: snapshot.groups.clone(),
        window: ctx.window.limit(),
        attempt_s: ctx.pace.attempt_s(),
    }
}

fn is_able(sfu: &Sfu, now: Instant) -> bool {
    sfu.fit_by(Care::AnyZone, now).err().is_none_or(Excluded::is_passing)
}

fn calls_on(ctx: &Context, sfu: SfuIdx) -> u64 {
    ctx.shards.iter().map(|shard| shard.lock().calls_on(sfu) as u64).sum()
}

fn oldest(ctx: &Context) -> [Option<Instant>; Class::ALL.len()] {
    let mut oldest = [None; Class::ALL.len()];
    for shard in &ctx.shards {
        let shard = shard.lock();
        for call in shard.dirty().next_in_line(HEADS).filter_map(|number| shard.numbered(number)) {
            if let (Some(class), Some(since)) = (call.demand(), call.awaiting_since) {
                let first: &mut Option<Instant> = &mut oldest[class as usize];
                *first = Some(first.map_or(since, |first| first.min(since)));
            }
        }
    }
    oldest
}

fn millis(now: Instant, since: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX)
}
