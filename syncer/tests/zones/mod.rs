//! What becomes of calls when a zone fails, and when it is well again.

use serde_json::json;
use sfu_api::{GuildId, SfuId, ZoneId};
use syncer::engine::Explanation;
use tokio::time::Instant;

use crate::fake::sfu::Mode;
use crate::fake::{World, call_id};
use crate::{Duration, S};

/// Seven SFUs of one region, in turn in two zones: 0, 2, 4 and 6, and 1, 3 and 5.
const SFUS: usize = 7;

fn world() -> World {
    let world = World::new(SFUS, 1);
    world.recatalogue(SFUS, 1, |specs| {
        for (i, spec) in specs.iter_mut().enumerate() {
            spec.zone = Some(ZoneId::new(["even", "odd"][i % 2]).expect("valid"));
        }
    });
    world
}

fn id(sfu: usize) -> SfuId {
    SfuId::new(format!("sfu-{sfu}")).expect("valid")
}

/// The zones that fail, as operators see them.
fn failing(world: &World) -> Vec<String> {
    let failing = world.engine.sfus().into_iter().filter(|sfu| sfu.zone_failing);
    let mut zones: Vec<_> = failing.map(|sfu| sfu.zone.expect("it has one").to_string()).collect();
    zones.dedup();
    zones.sort_unstable();
    zones.dedup();
    zones
}

/// Half of the zone `even` refuses all connections, and is known to.
async fn half_of_a_zone_dies(world: &World) {
    for sfu in [0, 2] {
        world.fleet.with(id(sfu).as_str(), |n| n.mode = Mode::Refuses);
    }
    world.wait("notices", S(60), |s| s.sfus.dead == 2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(failing(world), ["even"]);
}

fn explain(world: &World, call: usize) -> Explanation {
    let guild = GuildId::new(format!("g{}", call / 4)).expect("valid");
    world.engine.explain(&guild, &call_id(call), Instant::now()).expect("there is such a call")
}

fn on(world: &World, calls: std::ops::Range<usize>) -> Vec<String> {
    let mut sfus: Vec<_> = calls.map(|call| world.sfu_of(call).expect("placed").to_string()).collect();
    sfus.sort_unstable();
    sfus.dedup();
    sfus
}

#[tokio::test(start_paused = true)]
async fn r07_repairs_and_new_calls_leave_what_is_left_of_a_failing_zone_alone() {
    let world = world();
    world.place(280, 1).await;
    let stayed: Vec<_> = (0..280).map(|call| world.sfu_of(call)).collect();
    half_of_a_zone_dies(&world).await;
    world.wait("the repair", S(60), |s| s.awaiting == 0).await;
    (280..320).for_each(|call| world.join(call, 0));
    world.wait("new calls", S(60), |s| s.placed == 320).await;
    assert_eq!(on(&world, 280..320), ["sfu-1", "sfu-3", "sfu-5"]);
    for (call, before) in stayed.iter().enumerate().filter(|(_, on)| [id(4), id(6)].map(Some).contains(on)) {
        assert_eq!(world.sfu_of(call), *before, "what is there stays");
    }
    let candidates = explain(&world, 300).candidates;
    let left: Vec<_> = candidates.iter().filter(|c| [id(4), id(6)].contains(&c.sfu)).collect();
    assert!(left.len() == 2 && left.iter().all(|c| c.excluded.as_deref() == Some("its zone is failing")));

    // It is well again: an SFU that was dead answers, and a while later its zone is as good as any.
    for sfu in [0, 2] {
        world.fleet.with(id(sfu).as_str(), |n| n.mode = Mode::Well);
    }
    world.wait("their return", S(60), |s| s.sfus.dead == 0).await;
    tokio::time::sleep(S(11)).await;
    assert!(failing(&world).is_empty());
    (320..480).for_each(|call| world.join(call, 0));
    world.wait("more calls", S(60), |s| s.placed == 480).await;
    assert_eq!(on(&world, 320..480).len(), SFUS, "everywhere");
}

#[tokio::test(start_paused = true)]
async fn r07_what_is_left_of_a_failing_zone_is_taken_when_nobody_else_is_left() {
    let world = world();
    half_of_a_zone_dies(&world).await;
    for sfu in [1, 3, 5] {
        world.engine.cordon(&id(sfu), true).expect("known");
    }
    (0..40).for_each(|call| world.join(call, 0));
    world.wait("placing", S(20), |s| s.placed == 40).await;
    assert_eq!(on(&world, 0..40), ["sfu-4", "sfu-6"]);
    tokio::time::sleep(S(1)).await; // until they have tokens again
    let would = explain(&world, 1).would_go.expect("one of them");
    assert!(would.starts_with("sfu-4 ") || would.starts_with("sfu-6 "), "{would}");
    assert!(world.engine.recovery(Instant::now()).eta_s.is_some());
    // And no longer when somebody is.
    world.engine.cordon(&id(3), false).expect("known");
    tokio::time::sleep(Duration::from_millis(10)).await;
    (40..60).for_each(|call| world.join(call, 0));
    world.wait("placing", S(20), |s| s.placed == 60).await;
    assert_eq!(on(&world, 40..60), ["sfu-3"]);
}

#[tokio::test(start_paused = true)]
async fn r07_rooms_are_made_again_in_place_in_a_failing_zone() {
    let world = world();
    world.place(140, 1).await;
    half_of_a_zone_dies(&world).await;
    world.wait("the repair", S(60), |s| s.awaiting == 0).await;
    let before: Vec<_> = (0..140).map(|call| world.sfu_of(call)).collect();
    let (moves, notices) = (world.engine.status().moves_total, world.engine.status().notices_total);
    world.fleet.restart("sfu-4");
    world.wait("the notice", S(30), |s| s.notices_total > notices).await;
    world.wait("rooms", S(60), |s| s.awaiting == 0).await;
    assert_eq!(failing(&world), ["even"]);
    assert_eq!(before, (0..140).map(|call| world.sfu_of(call)).collect::<Vec<_>>());
    assert_eq!(world.engine.status().moves_total, moves);
}

#[tokio::test(start_paused = true)]
async fn r07_r20_the_share_of_a_zone_that_fails_it_is_a_lever() {
    let world = world();
    half_of_a_zone_dies(&world).await;
    for (share, wanted) in [(0.6, &[][..]), (0.5, &["even".to_owned()][..])] {
        world.set("placement.zone_failing_share", &json!(share));
        tokio::time::sleep(S(15)).await; // a zone is failing for a while longer than its SFUs are
        assert_eq!(failing(&world), wanted, "{share}");
    }
}
