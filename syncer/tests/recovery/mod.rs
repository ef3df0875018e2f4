//! What a syncer says of a recovery while it is under way, on a fake fleet and a paused clock.

use std::time::Duration;

use serde_json::json;
use sfu_api::{CallKind, GuildId, SfuId};
use syncer::engine::{Explanation, Recovery};
use tokio::time::Instant;

use crate::fake::sfu::{Mode, overdrawn};
use crate::fake::{World, call_id};

const S: fn(u64) -> Duration = Duration::from_secs;

fn sfu(n: usize) -> SfuId {
    SfuId::new(format!("sfu-{n}")).expect("valid")
}

/// All of `calls` on `sfu-0`, and then the others are there too.
async fn all_on_one(sfus: usize, regions: usize, calls: usize) -> World {
    let world = World::new(sfus, regions);
    world.place_fast();
    for n in 1..sfus {
        world.engine.cordon(&sfu(n), true).expect("known");
    }
    for call in 0..calls {
        world.join_in(call, "r0");
    }
    world.wait("placing everything", S(120), |s| s.placed == calls as u64).await;
    for n in 1..sfus {
        world.engine.cordon(&sfu(n), false).expect("known");
    }
    world
}

fn recovery(world: &World) -> Recovery {
    world.engine.recovery(Instant::now())
}

fn explain(world: &World, call: usize) -> Explanation {
    let guild = GuildId::new(format!("g{}", call / 4)).expect("valid");
    world.engine.explain(&guild, &call_id(call), Instant::now()).expect("it is there")
}

/// The levers that hold it back, new calls per second meanwhile, and what is to be named.
struct Case {
    levers: &'static [(&'static str, u32)],
    new_per_s: u64,
    limit: &'static str,
}

const CASES: [Case; 4] = [
    Case { levers: &[("placement.overall.rate", 20), ("placement.overall.burst", 5)], new_per_s: 0, limit: "pace" },
    Case { levers: &[("placement.overall.rate", 20), ("placement.overall.burst", 5)], new_per_s: 2, limit: "pace" },
    Case { levers: &[("placement.region.rate", 20), ("placement.region.burst", 5)], new_per_s: 0, limit: "region" },
    Case { levers: &[("placement.sfu.rate", 4), ("placement.sfu.burst", 1)], new_per_s: 0, limit: "sfus" },
];

/// New calls that come while others are repaired.
struct Newcomers {
    per_s: u64,
    ticks: u64,
    next: usize,
}

impl Newcomers {
    /// A tenth of a second passes.
    async fn tick(&mut self, world: &World) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.ticks += 1;
        if self.per_s > 0 && self.ticks.is_multiple_of(10 / self.per_s) {
            world.join_in(self.next, "r0");
            self.next += 1;
        }
    }
}

/// Half-way through a paced repair the estimate is within a quarter of the truth, whatever the limit, and
/// whether or not others come in between.
#[tokio::test(start_paused = true)]
async fn r13_half_way_through_a_repair_the_estimate_is_within_a_quarter_of_the_truth() {
    for Case { levers, new_per_s, limit } in CASES {
        let calls = 600;
        let world = all_on_one(12, 2, calls).await;
        for (lever, value) in levers {
            let value = if lever.ends_with("rate") { json!(f64::from(*value)) } else { json!(value) };
            world.set(lever, &value);
        }
        tokio::time::sleep(S(1)).await; // the loop reads levers at least four times a second
        world.fleet.with("sfu-0", |n| n.mode = Mode::Refuses);
        world.engine.declare_dead(&sfu(0), Instant::now()).expect("known");
        let mut newcomers = Newcomers { per_s: new_per_s, ticks: 0, next: calls };
        let half = loop {
            newcomers.tick(&world).await;
            let now = recovery(&world);
            if now.classes[0].waiting <= calls as u64 / 2 && now.untold == 0 {
                break now;
            }
        };
        let eta = half.classes[0].eta_s.expect("it ends");
        let waited = half.classes[0].oldest_ms.expect("some wait");
        let named = serde_json::to_value(&half.limit).expect("JSON")["kind"].clone();
        assert!(named == limit || (new_per_s > 0 && named == "attempts"), "{named} for {limit}: {half:?}");
        let asked = Instant::now();
        while recovery(&world).classes[0].waiting > 0 {
            newcomers.tick(&world).await;
        }
        let truth = (Instant::now() - asked).as_secs_f64();
        assert!((0.75..=1.25).contains(&(eta / truth)), "{limit}: {eta:.1} s said, {truth:.1} s true: {half:?}");
        let rate = f64::from(u32::try_from(half.classes[0].waiting).expect("few")) / truth;
        let said = half.classes[0].rate_per_s;
        assert!((0.75..=1.25).contains(&(said / rate)), "{limit}: {said:.1} per second said, {rate:.1} true: {half:?}");
        let least = f64::from(u32::try_from(waited).expect("minutes")) / 1_000.0;
        assert!((0.75..=1.25).contains(&(least / truth)), "{limit}: the oldest waits for {least:.1} s at half-way");
        world.wait("the rest", S(60), |s| s.awaiting == 0).await;
        let done = recovery(&world);
        assert_eq!((done.waiting, done.eta_s, done.limit), (0, Some(0.0), None));
    }
}

/// Whether the pace over all SFUs is the limit or the bucket of the region that all of it happens in.
#[tokio::test(start_paused = true)]
async fn r10_r13_new_calls_have_their_turns_while_a_repair_goes_on_at_its_pace() {
    for limit in ["overall", "region"] {
        let world = all_on_one(12, 2, 400).await;
        world.set(&format!("placement.{limit}.rate"), &json!(20.0));
        world.set(&format!("placement.{limit}.burst"), &json!(5));
        tokio::time::sleep(S(1)).await;
        let start = Instant::now();
        world.engine.declare_dead(&sfu(0), start).expect("known");
        world.wait("the pass", S(5), |s| s.awaiting >= 390).await;
        for call in 400..406 {
            let at = world.engine.status().placed;
            world.join_in(call, "r0");
            world.wait("a new call", S(3), |_| world.sfu_of(call).is_some()).await;
            let ahead = world.engine.status().placed - at;
            assert!(ahead <= 30, "{limit}: {ahead} repairs went before one new call");
        }
        world.wait("the repair", S(60), |s| s.awaiting == 0).await;
        let took = (Instant::now() - start).as_secs_f64();
        assert!((19.0..=23.0).contains(&took), "{limit}: 406 calls at 20 per second took {took:.1} s");
        let made = world.fleet.made().into_iter().filter(|at| *at > start).collect::<Vec<_>>();
        assert_eq!(overdrawn(&made, 20.0, 5.0 + 1.0), 0);
    }
}

/// What a long repair leaves to new calls and to streams, in its turns and at the door, is what the levers say.
#[tokio::test(start_paused = true)]
async fn r10_r20_the_turns_of_new_calls_and_of_streams_are_levers() {
    let (new_calls, streams) = (("new_calls", CallKind::Voice), ("streams", CallKind::Stream));
    for ((lever, kind), turns) in [(new_calls, 1), (new_calls, 8), (streams, 1), (streams, 4)] {
        let world = all_on_one(12, 2, 600).await;
        world.set("placement.overall.rate", &json!(20.0));
        world.set("placement.overall.burst", &json!(1));
        world.set(&format!("placement.turns.{lever}"), &json!(turns));
        tokio::time::sleep(S(1)).await;
        world.engine.declare_dead(&sfu(0), Instant::now()).expect("known");
        world.wait("the pass", S(5), |s| s.awaiting >= 590).await;
        tokio::time::sleep(S(1)).await; // the gate looks several times a second
        let came_in: Vec<usize> = (600..800).filter(|call| world.may_begin_as(kind, *call)).collect();
        // As many as their turns serve within the 10 s that they may wait.
        let served = turns * 20 * 10 / 20;
        assert!((served - 2..=served + 4).contains(&came_in.len()), "{lever} {turns}: {} came in", came_in.len());
        let (before, wanted) = (world.engine.status().placed, turns * 4);
        let placed = || came_in.iter().filter(|call| world.sfu_of(**call).is_some()).count();
        world.wait("their turns", S(30), |_| placed() >= wanted).await;
        let all = usize::try_from(world.engine.status().placed - before).expect("few");
        let of_20 = wanted as f64 / all as f64 * 20.0;
        assert!((of_20 / turns as f64 - 1.0).abs() < 0.35, "{lever} {turns}: {wanted} of {all} placements");
    }
}

#[tokio::test(start_paused = true)]
async fn r13_the_largest_calls_come_back_first() {
    let world = all_on_one(4, 1, 60).await;
    for call in 40..44 {
        for session in 1..20 {
            world.join(call, session);
        }
    }
    world.set("placement.overall.rate", &json!(4.0));
    world.set("placement.overall.burst", &json!(1));
    tokio::time::sleep(S(1)).await;
    world.engine.declare_dead(&sfu(0), Instant::now()).expect("known");
    world.wait("the first", S(60), |s| s.awaiting > 0 && s.awaiting <= 54).await;
    assert!((40..44).all(|call| world.sfu_of(call).is_some()), "those of twenty before those of one");
}

#[tokio::test(start_paused = true)]
async fn explain_says_what_holds_a_call_back_and_what_would_become_of_it() {
    let world = all_on_one(3, 2, 100).await;
    let before = explain(&world, 7);
    assert!(before.waiting_for.is_none() && before.eta_s.is_none(), "{before:?}");
    assert!(before.decision.as_ref().is_some_and(|d| d.starts_with("sfu-0 with score")), "{before:?}");
    assert!(before.would_go.as_ref().is_some_and(|w| w.starts_with("sfu-2 ")), "in its region there is one more");
    world.set("placement.overall.rate", &json!(5.0));
    world.set("placement.overall.burst", &json!(1));
    tokio::time::sleep(S(1)).await;
    let fate = explain(&world, 7).if_sfu_died;
    assert!(fate.contains("100 calls on sfu-0") && fate.contains("after about 19.8 s"), "{fate}");
    assert!(fate.contains("placement.overall.rate"), "{fate}");

    world.engine.declare_dead(&sfu(0), Instant::now()).expect("known");
    world.wait("the pass", S(5), |s| s.awaiting >= 95).await;
    let waiting = (0..100).find(|call| world.sfu_of(*call).is_none()).expect("one waits");
    let during = explain(&world, waiting);
    let why = during.waiting_for.as_deref().expect("it waits");
    assert!(why.contains("its turn") && why.contains("placement.overall.rate"), "{why}");
    assert!(during.eta_s.is_some_and(|eta| (15.0..=21.0).contains(&eta)), "{during:?}");

    world.set("placement.paused", &json!(true));
    tokio::time::sleep(S(1)).await;
    let paused = explain(&world, waiting);
    assert!(paused.eta_s.is_none() && paused.waiting_for.as_ref().is_some_and(|w| w.contains("paused")), "{paused:?}");
    let all = recovery(&world);
    assert!(all.eta_s.is_none() && all.limited_by.as_ref().is_some_and(|w| w.contains("paused")), "{all:?}");

    // Nobody is left who could take it: neither its own region nor another.
    world.set("placement.paused", &json!(false));
    for n in 1..3 {
        world.engine.cordon(&sfu(n), true).expect("known");
    }
    tokio::time::sleep(S(1)).await;
    let stuck = recovery(&world);
    assert!(stuck.eta_s.is_none() && !stuck.blocked.is_empty(), "{stuck:?}");
    assert_eq!(serde_json::to_value(&stuck.limit).expect("JSON")["kind"], "no_sfu");
    let blocked: u64 = stuck.blocked.iter().map(|b| b.calls).sum();
    assert_eq!(blocked, stuck.waiting, "every one says what it waits for");
    let why = explain(&world, waiting).waiting_for.expect("it waits");
    assert!(why.contains("region r0") && why.contains("none is now"), "{why}");
    let (fit, against): (Vec<_>, Vec<_>) =
        explain(&world, waiting).candidates.into_iter().partition(|c| c.excluded.is_none());
    assert!(fit.is_empty() && against.iter().any(|c| c.excluded.as_deref() == Some("it is cordoned")), "{against:?}");
}

/// SFUs that answer slowly hold a repair back more than any bucket: the estimate follows what is measured.
#[tokio::test(start_paused = true)]
async fn an_estimate_follows_what_is_measured_when_no_limit_explains_it() {
    let world = all_on_one(3, 1, 400).await;
    world.fleet.with("sfu-1", |n| n.mode = Mode::Overloaded);
    world.engine.declare_dead(&sfu(0), Instant::now()).expect("known");
    // One of two SFUs serves a few at a time, the other says "in a second" to everyone.
    world.set("placement.sfu.rate", &json!(10.0));
    world.set("placement.sfu.burst", &json!(1));
    world.wait("half of it", S(120), |s| s.awaiting > 0 && s.awaiting <= 200).await;
    let half = recovery(&world);
    let asked = Instant::now();
    world.wait("the rest", S(120), |s| s.awaiting == 0).await;
    let truth = (Instant::now() - asked).as_secs_f64();
    let eta = half.eta_s.expect("it ends");
    assert!((0.75..=1.25).contains(&(eta / truth)), "{eta:.1} s said, {truth:.1} s true: {half:?}");
}

/// At 20 a second a restarted SFU takes its hundred calls back within the usual 10 s.
#[tokio::test(start_paused = true)]
async fn r17_r20_how_long_calls_wait_for_their_own_sfu_is_a_lever() {
    for (max, all) in [("10s", true), ("0s", false)] {
        let world = World::new(3, 1);
        world.place(300, 1).await;
        world.set("placement.in_place_max", &json!(max));
        let before: Vec<_> = (0..300).map(|call| world.sfu_of(call)).collect();
        world.fleet.restart("sfu-1");
        world.wait("the notice", S(30), |s| s.notices_total == 1).await;
        world.wait("rooms", S(60), |s| s.awaiting == 0).await;
        let after: Vec<_> = (0..300).map(|call| world.sfu_of(call)).collect();
        assert_eq!(before == after, all, "{max}");
    }
}
