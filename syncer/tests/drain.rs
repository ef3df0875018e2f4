//! Planned moves: an SFU is drained, on a fake fleet and a paused clock.

#[allow(dead_code, reason = "another test uses the rest")]
mod fake;

use std::time::Duration;

use fake::sfu::{Mode, overdrawn};
use fake::{World, call_id};
use serde_json::json;
use sfu_api::SfuId;
use syncer::engine::SfuView;
use tokio::time::Instant;

const S: fn(u64) -> Duration = Duration::from_secs;
const HOUR: Duration = Duration::from_secs(3_600);

fn id(sfu: &str) -> SfuId {
    SfuId::new(sfu).expect("valid")
}

fn drain(world: &World, sfu: &str, within: Duration) -> SfuView {
    world.engine.drain_sfu(&id(sfu), within, Instant::now()).expect("known")
}

fn progress(world: &World, sfu: &str) -> (String, u64, u64) {
    let drain = world.engine.sfu(&id(sfu)).expect("known").drain.expect("draining");
    let state = serde_json::to_value(drain.state).expect("a name");
    (state.as_str().expect("text").to_owned(), drain.moved, drain.left)
}

fn on(world: &World, sfu: &str, calls: usize) -> Vec<usize> {
    (0..calls).filter(|c| world.sfu_of(*c).is_some_and(|s| s.as_str() == sfu)).collect()
}

#[tokio::test(start_paused = true)]
async fn r16_i10_a_drained_sfu_loses_its_calls_without_a_null_within_the_budget() {
    let world = World::new(5, 1);
    world.set("moves.rate", &json!(10.0));
    world.set("moves.burst", &json!(3));
    world.place(300, 1).await;
    let theirs = on(&world, "sfu-1", 300);
    let before: Vec<_> = (0..300).map(|c| world.sfu_of(c)).collect();
    let began = Instant::now();
    assert_eq!(drain(&world, "sfu-1", HOUR).drain.expect("begun").at_start, theirs.len() as u64);
    world.wait("the drain", S(120), |_| progress(&world, "sfu-1").0 == "done").await;
    let took = (Instant::now() - began).as_secs_f64();
    assert!(took >= (theirs.len() as f64 - 4.0) / 10.0, "{} calls moved in {took} s", theirs.len());
    for (call, was) in before.iter().enumerate() {
        let heard: Vec<u8> = world.ear.of(&call_id(call)).iter().map(|(_, phase, _)| *phase).collect();
        if theirs.contains(&call) {
            assert_eq!(heard, [1, 1], "a new endpoint and no null");
        } else {
            assert_eq!(world.sfu_of(call), *was, "I10: a call elsewhere was moved");
            assert_eq!(heard, [1]);
        }
    }
    let mut made = world.fleet.made();
    made.retain(|at| *at > began);
    assert_eq!(overdrawn(&made, 10.0, 3.0 + 1.0), 0, "the move budget");
    world.wait("the end of the old rooms", S(60), |_| world.fleet.with("sfu-1", |n| n.rooms.is_empty())).await;
    let status = world.engine.status();
    assert_eq!((status.planned_moves_total, status.notices_total), (theirs.len() as u64, 0));
}

#[tokio::test(start_paused = true)]
async fn r20_a_budget_of_moves_that_is_cut_after_a_burst_is_in_force_and_not_a_stop() {
    let world = World::new(3, 1);
    world.set("moves.rate", &json!(1.0));
    world.set("moves.burst", &json!(60));
    world.place(300, 1).await;
    drain(&world, "sfu-0", HOUR);
    world.wait("the burst", S(10), |s| s.planned_moves_total >= 60).await;
    world.set("moves.burst", &json!(5));
    let before = world.engine.status().planned_moves_total;
    tokio::time::sleep(S(20)).await;
    let moved = world.engine.status().planned_moves_total - before;
    assert!((15..=22).contains(&moved), "{moved} in 20 s at one a second");
}

#[tokio::test(start_paused = true)]
async fn an_undone_drain_leaves_what_moved_and_stops_the_rest() {
    let world = World::new(4, 1);
    world.set("moves.rate", &json!(5.0));
    world.place(200, 1).await;
    drain(&world, "sfu-1", HOUR);
    world.wait("the first moves", S(60), |s| s.planned_moves_total >= 10).await;
    let view = world.engine.undrain_sfu(&id("sfu-1")).expect("known");
    let moved = view.drain.expect("was draining").moved;
    tokio::time::sleep(S(60)).await;
    let (state, after, left) = progress(&world, "sfu-1");
    // What was in flight when it was undone may still arrive.
    assert!(state == "undone" && after - moved <= 5 && left > 0, "{state} {moved} {after} {left}");
    for call in 200..300 {
        world.join(call, 0);
    }
    world.wait("placing", S(60), |s| s.placed == 300).await;
    assert!(!(200..300).all(|c| world.sfu_of(c) != Some(id("sfu-1"))), "it is in service again");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_at_the_deadline_stays_and_is_listed() {
    let world = World::new(3, 1);
    world.set("moves.rate", &json!(2.0));
    world.place(120, 1).await;
    drain(&world, "sfu-0", S(5));
    world.wait("the deadline", S(60), |_| progress(&world, "sfu-0").0 == "overdue").await;
    tokio::time::sleep(S(30)).await;
    let drain = world.engine.sfu(&id("sfu-0")).expect("known").drain.expect("draining");
    let left = on(&world, "sfu-0", 120);
    assert!(!left.is_empty() && drain.left == left.len() as u64 && drain.remaining_ms == 0);
    assert!(drain.moved <= 5 + 2 * 6, "the deadline did not stop it: {}", drain.moved);
    let mut listed: Vec<String> = drain.left_calls.iter().map(|c| c.call.to_string()).collect();
    let mut expected: Vec<String> = left.iter().map(|c| call_id(*c).to_string()).collect();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    world.join(500, 0);
    world.wait("placing", S(60), |s| s.placed == 121).await;
    assert_ne!(world.sfu_of(500), Some(id("sfu-0")), "nothing new is placed there");
}

/// Whichever bucket repairs wait for, elsewhere or where they were. The SFUs' own hold back as many in all as the others.
#[tokio::test(start_paused = true)]
async fn r10_repair_goes_before_planned_moves() {
    let levels = [("overall", 20.0, 5), ("region", 20.0, 1), ("sfu", 4.0, 1)];
    for ((level, rate, burst), restarts) in levels.into_iter().flat_map(|level| [(level, false), (level, true)]) {
        let world = World::new(6, 1);
        world.set(&format!("placement.{level}.rate"), &json!(rate));
        world.set(&format!("placement.{level}.burst"), &json!(burst));
        world.set("moves.rate", &json!(100.0));
        world.place(600, 1).await;
        match restarts {
            true => world.fleet.restart("sfu-2"),
            false => world.fleet.with("sfu-2", |n| n.mode = Mode::Refuses),
        }
        world.wait("the loss", S(30), |s| s.awaiting >= 20).await;
        drain(&world, "sfu-1", HOUR);
        world.wait("the repair", S(60), |s| s.awaiting <= 5).await;
        let moved = world.engine.status().planned_moves_total;
        assert!(moved <= 6, "{level}, {restarts}: {moved} moves took what repairs were waiting for");
        world.wait("the drain", S(120), |_| progress(&world, "sfu-1").0 == "done").await;
    }
}

/// A region of which every SFU is down, or makes no rooms: its calls wait for that and not for tokens.
#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_repairs_that_no_token_would_bring_on() {
    for down in [true, false] {
        let world = World::new(6, 2);
        world.set("placement.any_region", &json!(false));
        (0..60).for_each(|call| world.join_in(call, ["r0", "r1"][call % 2]));
        world.wait("placing", S(60), |s| s.placed == 60).await;
        for sfu in ["sfu-1", "sfu-3", "sfu-5"] {
            match down {
                true => world.fleet.with(sfu, |n| n.mode = Mode::Refuses),
                false => {
                    world.fleet.with(sfu, |n| n.makes = Some(Mode::Overloaded));
                    world.fleet.restart(sfu);
                }
            }
        }
        world.wait("their calls", S(60), |s| s.awaiting == 30).await;
        tokio::time::sleep(S(60)).await; // who makes no rooms is seen to make none
        drain(&world, "sfu-0", HOUR);
        world.wait("the drain", S(120), |_| progress(&world, "sfu-0").0 == "done").await;
        assert_eq!(world.engine.status().awaiting, 30, "{down}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_with_nowhere_to_go_waits_and_breaks_nothing() {
    let world = World::new(2, 1);
    world.place(40, 1).await;
    world.engine.cordon(&id("sfu-1"), true).expect("known");
    drain(&world, "sfu-0", HOUR);
    tokio::time::sleep(S(20)).await;
    assert_eq!((progress(&world, "sfu-0").1, world.ear.totals().0), (0, 0));
    world.engine.cordon(&id("sfu-1"), false).expect("known");
    world.wait("the drain", S(120), |_| progress(&world, "sfu-0").0 == "done").await;
}

#[tokio::test(start_paused = true)]
async fn moves_to_an_sfu_that_fails_stay_where_they_are() {
    let world = World::new(2, 1);
    world.place(40, 1).await;
    let theirs = on(&world, "sfu-0", 40).len() as u64;
    world.fleet.with("sfu-1", |n| n.mode = Mode::Hangs);
    drain(&world, "sfu-0", HOUR);
    tokio::time::sleep(S(30)).await;
    let status = world.engine.status();
    assert_eq!((status.awaiting, status.placed, progress(&world, "sfu-0").1), (0, 40, 0));
    world.fleet.with("sfu-1", |n| n.mode = Mode::Well);
    world.wait("the drain", S(300), |_| progress(&world, "sfu-0").0 == "done").await;
    assert_eq!(world.engine.status().planned_moves_total, theirs);
    assert_eq!(world.ear.totals().0, 0, "a planned move sent a null");
}

#[tokio::test(start_paused = true)]
async fn a_quarantined_sfu_is_emptied_and_what_stays_on_it_is_not_swept() {
    let world = World::new(3, 1);
    world.set("digest.interval", &json!("2s"));
    world.place(60, 1).await;
    world.fleet.with("sfu-1", |n| n.rooms.values_mut().for_each(|r| r.participants = 1));
    let rooms = world.fleet.with("sfu-1", |n| n.rooms.len());
    let view = world.engine.quarantine(&id("sfu-1"), true, Instant::now()).expect("known");
    assert!(view.quarantined && rooms > 0);
    world.wait("the drain", S(120), |_| progress(&world, "sfu-1").0 == "done").await;
    world.fleet.with("sfu-1", |n| n.rooms.values_mut().for_each(|r| r.participants = 0));
    tokio::time::sleep(S(60)).await;
    assert_eq!(world.fleet.with("sfu-1", |n| n.rooms.len()), rooms, "its rooms are what somebody looks at");
    let view = world.engine.quarantine(&id("sfu-1"), false, Instant::now()).expect("known");
    assert!(!view.quarantined);
    world.wait("the sweep", S(120), |_| world.fleet.with("sfu-1", |n| n.rooms.is_empty())).await;
}

#[tokio::test(start_paused = true)]
async fn a_drained_sfu_is_told_so_that_others_hear_it_again_when_it_forgets_and_no_longer_when_it_is_over() {
    let world = World::new(4, 1);
    let other = World::beside(&world, "other");
    world.place(80, 1).await;
    let told = |sfu: &str| world.fleet.with(sfu, |n| n.draining);
    drain(&world, "sfu-1", HOUR);
    world.wait("the word", S(30), |_| told("sfu-1")).await;
    assert!(world.engine.sfu(&id("sfu-1")).expect("known").drain.expect("draining").told);
    // A syncer that nobody told hears it from the SFU.
    other
        .wait("the other's probe", S(30), |_| {
            let seen = other.engine.sfus().into_iter().find(|s| s.id == id("sfu-1")).expect("known");
            !seen.accepting
        })
        .await;
    for call in 1_000..1_060 {
        other.join(call, 0);
    }
    other.wait("placing", S(60), |s| s.placed == 60).await;
    assert!((1_000..1_060).all(|c| other.sfu_of(c) != Some(id("sfu-1"))));

    world.fleet.restart("sfu-1");
    assert!(!told("sfu-1"), "it forgot");
    world.wait("the word again", S(60), |_| told("sfu-1")).await;
    world.engine.undrain_sfu(&id("sfu-1")).expect("known");
    world.wait("the end", S(30), |_| !told("sfu-1")).await;
    // What somebody else told it is not ours to take back, unless an operator says so.
    world.fleet.with("sfu-2", |n| n.draining = true);
    tokio::time::sleep(S(60)).await;
    assert!(told("sfu-2"));
    world.engine.undrain_sfu(&id("sfu-2")).expect("known");
    world.wait("the operator's word", S(30), |_| !told("sfu-2")).await;
}
