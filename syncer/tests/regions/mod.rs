//! How far from its region a call is placed.

use std::collections::BTreeMap;

use serde_json::json;
use sfu_api::{GuildId, RegionId};
use syncer::config::RegionGroups;
use syncer::engine::{CallState, Explanation};
use tokio::time::Instant;

use crate::fake::{World, call_id};
use crate::{Duration, S};

/// Six SFUs in three regions.
const REGIONS: usize = 3;

fn world() -> World {
    World::new(6, REGIONS)
}

/// Takes the SFUs of a region out of selection, or puts them back.
fn cordon(world: &World, region: &str, cordoned: bool) {
    for sfu in world.engine.sfus().iter().filter(|sfu| sfu.region.as_str() == region) {
        world.engine.cordon(&sfu.id, cordoned).expect("known");
    }
}

fn group(world: &World, regions: [&str; 2]) {
    let regions = regions.map(|name| RegionId::new(name).expect("valid")).to_vec();
    let groups = RegionGroups::new(BTreeMap::from([("near".to_owned(), regions)]));
    world.engine.set_region_groups(groups.expect("valid"));
}

fn explain(world: &World, call: usize) -> Explanation {
    let guild = GuildId::new(format!("g{}", call / 4)).expect("valid");
    world.engine.explain(&guild, &call_id(call), Instant::now()).expect("there is such a call")
}

/// The regions in which calls are.
fn regions(world: &World, calls: std::ops::Range<usize>) -> Vec<String> {
    let sfus = world.engine.sfus();
    let of = |call| {
        let on = world.sfu_of(call).expect("placed");
        sfus.iter().find(|sfu| sfu.id == on).expect("listed").region.to_string()
    };
    let mut regions: Vec<String> = calls.map(of).collect();
    regions.sort_unstable();
    regions.dedup();
    regions
}

async fn placed(world: &World, calls: u64) {
    world.wait("placing", S(10), |s| s.placed == calls && s.awaiting == 0).await;
}

#[tokio::test(start_paused = true)]
async fn r07_calls_that_may_not_leave_their_region_wait_for_it() {
    let world = world();
    world.set("placement.any_region", &json!(false));
    cordon(&world, "r0", true);
    (0..20).for_each(|call| world.join_in(call, "r0"));
    (20..40).for_each(|call| world.join_in(call, "r1"));
    world.wait("the others", S(10), |s| s.placed == 20 && s.awaiting == 20).await;
    tokio::time::sleep(S(30)).await;
    assert_eq!(world.engine.status().awaiting, 20, "whatever the time, nobody left");
    let why = explain(&world, 3);
    assert_eq!((why.call.state, why.would_go), (CallState::Awaiting, None));
    assert!(why.waiting_for.is_some_and(|for_| for_.contains("region r0")));
    assert!(why.candidates.iter().all(|c| c.region.as_str() == "r0" && c.excluded.is_some()));
    cordon(&world, "r0", false);
    placed(&world, 40).await;
    assert_eq!(regions(&world, 0..20), ["r0"]);
}

#[tokio::test(start_paused = true)]
async fn r07_a_region_without_sfus_hands_its_calls_to_its_group_and_then_to_any() {
    let world = world();
    group(&world, ["r0", "r2"]);
    (0..20).for_each(|call| world.join_in(call, "r0"));
    placed(&world, 20).await;
    assert_eq!(regions(&world, 0..20), ["r0"]);
    assert!(explain(&world, 1).decision.is_some_and(|why| why.ends_with(" 2 in region r0")));

    cordon(&world, "r0", true);
    (20..40).for_each(|call| world.join_in(call, "r0"));
    placed(&world, 40).await;
    assert_eq!(regions(&world, 20..40), ["r2"], "its group, although r1 is as empty");
    let why = explain(&world, 21);
    assert!(why.decision.is_some_and(|why| why.ends_with("in group near of region r0")));
    assert!(why.would_go.is_some_and(|would| would.ends_with("in group near of region r0")));

    cordon(&world, "r2", true);
    (40..60).for_each(|call| world.join_in(call, "r0"));
    placed(&world, 60).await;
    assert_eq!(regions(&world, 40..60), ["r1"], "anywhere");
    assert!(explain(&world, 41).decision.is_some_and(|why| why.ends_with("in any region")));

    // Back up again.
    cordon(&world, "r0", false);
    tokio::time::sleep(Duration::from_millis(10)).await;
    (60..80).for_each(|call| world.join_in(call, "r0"));
    placed(&world, 80).await;
    assert_eq!(regions(&world, 60..80), ["r0"]);
}

#[tokio::test(start_paused = true)]
async fn r07_a_group_needs_no_leave_and_ends_where_others_begin() {
    let world = world();
    world.set("placement.any_region", &json!(false));
    group(&world, ["r0", "r1"]);
    cordon(&world, "r0", true);
    (0..20).for_each(|call| world.join_in(call, "r0"));
    placed(&world, 20).await;
    assert_eq!(regions(&world, 0..20), ["r1"]);
    cordon(&world, "r1", true);
    (20..40).for_each(|call| world.join_in(call, "r0"));
    tokio::time::sleep(S(30)).await;
    assert_eq!(world.engine.status().awaiting, 20, "r2 is no part of the group");
    assert_eq!(world.engine.recovery(Instant::now()).eta_s, None);
}

#[tokio::test(start_paused = true)]
async fn r07_a_group_that_is_merely_busy_keeps_its_calls() {
    let world = world();
    group(&world, ["r0", "r1"]);
    world.set("placement.region.rate", &json!(10.0));
    world.set("placement.region.burst", &json!(2));
    tokio::time::sleep(S(1)).await; // the loop reads levers at least four times a second
    cordon(&world, "r0", true);
    (0..40).for_each(|call| world.join_in(call, "r0"));
    let took = world.wait("placing", S(10), |s| s.placed == 40).await;
    assert!(took >= S(3), "the bucket of r1 lets ten a second through: {took:?}");
    assert_eq!(regions(&world, 0..40), ["r1"], "not to r2, to save a second");
}
