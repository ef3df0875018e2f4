//! The whole engine on a fake fleet and a paused clock: what a storm does to it.

mod fake;

use std::time::Duration;

use fake::{Mode, World, call_id, overdrawn};
use serde_json::json;
use tokio::time::Instant;

const S: fn(u64) -> Duration = Duration::from_secs;

async fn placed(world: &World, calls: usize) {
    for call in 0..calls {
        world.join(call, 0);
        world.join(call, 1);
    }
    world.wait("placing everything", S(120), |s| s.placed == calls as u64 && s.awaiting == 0).await;
}

fn first(world: &World, share: usize, of: usize, mode: Mode) -> Vec<String> {
    let hit: Vec<String> = (0..of / share).map(|i| format!("sfu-{i}")).collect();
    for id in &hit {
        world.fleet.with(id, |n| n.mode = mode);
    }
    hit
}

#[tokio::test(start_paused = true)]
async fn r13_r16_a_fifth_of_the_fleet_dies_and_only_its_calls_move() {
    let world = World::new(50, 3);
    placed(&world, 1_000).await;
    let before: Vec<_> = (0..1_000).map(|c| world.sfu_of(c).expect("placed")).collect();
    let attempts = world.engine.status().attempts_total;
    let dead = first(&world, 5, 50, Mode::Refuses);
    let affected = before.iter().filter(|s| dead.contains(&s.to_string())).count() as u64;
    world.wait("notices", S(60), |s| s.notices_total == 10).await;
    world.wait("recovery", S(60), |s| s.awaiting == 0 && s.moves_total == affected).await;
    for (call, was) in before.iter().enumerate() {
        let is = world.sfu_of(call).expect("placed");
        let heard = world.ear.of(&call_id(call));
        let phases: Vec<u8> = heard.iter().map(|(_, phase, _)| *phase).collect();
        if dead.contains(&was.to_string()) {
            assert!(!dead.contains(&is.to_string()), "a call was put on a dead SFU");
            assert_eq!(phases, [1, 2, 1], "one null, one endpoint");
        } else {
            assert_eq!((&is, phases.as_slice()), (was, [1].as_slice()), "I10: a call on a healthy SFU was moved");
        }
    }
    let status = world.engine.status();
    let extra = (status.attempts_total - attempts) as f64 / affected as f64;
    assert!(extra <= 1.1, "R14: {extra:.2} attempts each");
}

#[tokio::test(start_paused = true)]
async fn i04_no_bucket_is_overdrawn_in_a_recovery() {
    let world = World::new(20, 2);
    world.set("placement.overall.rate", &json!(100.0));
    world.set("placement.overall.burst", &json!(10));
    world.set("placement.sfu.rate", &json!(10.0));
    world.set("placement.sfu.burst", &json!(5));
    tokio::time::sleep(S(1)).await; // the loop reads levers at least four times a second
    placed(&world, 600).await;
    first(&world, 5, 20, Mode::Refuses);
    world.wait("recovery", S(120), |s| s.notices_total == 4 && s.awaiting == 0).await;
    assert_eq!(overdrawn(&world.fleet.made(), 100.0, 10.0 + 1.0), 0, "overall");
    world.fleet.each(|id, n| assert_eq!(overdrawn(&n.made, 10.0, 5.0 + 1.0), 0, "{id}"));
}

#[tokio::test(start_paused = true)]
async fn r17_hanging_sfus_keep_their_calls_until_suspect_max() {
    let world = World::new(20, 2);
    placed(&world, 200).await;
    let hung = first(&world, 5, 20, Mode::Hangs);
    world.wait("suspicion", S(60), |s| s.sfus.suspect == 4).await;
    for call in 200..400 {
        world.join(call, 0);
    }
    world.wait("new calls", S(60), |s| s.placed == 400).await;
    assert!((200..400).all(|c| !hung.contains(&world.sfu_of(c).expect("placed").to_string())), "new calls avoid them");
    tokio::time::sleep(S(300)).await;
    let status = world.engine.status();
    assert_eq!((status.moves_total, status.notices_total), (0, 0), "a time-out moved calls");
    assert_eq!(world.ear.totals().0, 0, "a time-out sent nulls");
    world.set("health.suspect_max", &json!("5s"));
    world.wait("moves at last", S(60), |s| s.sfus.dead == 4 && s.awaiting == 0).await;
    assert!((0..400).all(|c| !hung.contains(&world.sfu_of(c).expect("placed").to_string())));
}

#[tokio::test(start_paused = true)]
async fn a_restarted_sfu_is_refilled_in_place() {
    let world = World::new(10, 1);
    placed(&world, 100).await;
    let before: Vec<_> = (0..100).map(|c| world.sfu_of(c)).collect();
    world.fleet.restart("sfu-3");
    world.wait("the notice", S(30), |s| s.notices_total == 1).await;
    world.wait("rooms", S(30), |s| s.awaiting == 0).await;
    assert_eq!(before, (0..100).map(|c| world.sfu_of(c)).collect::<Vec<_>>());
    assert_eq!(world.engine.status().moves_total, 0);
    let there = world.fleet.with("sfu-3", |n| n.rooms.len());
    assert_eq!(there, before.iter().flatten().filter(|s| s.as_str() == "sfu-3").count());
}

#[tokio::test(start_paused = true)]
async fn r14_an_outage_of_everything_is_not_hammered() {
    let world = World::new(10, 1);
    placed(&world, 100).await;
    let before = world.engine.status().attempts_total;
    world.fleet.each(|_, n| n.mode = Mode::Overloaded);
    for call in 100..300 {
        world.join(call, 0);
    }
    tokio::time::sleep(S(60)).await;
    let tries = world.engine.status().attempts_total - before;
    // Ten SFUs say "in 1 s". Each may be sent its window once a second, and the window falls from
    // 16 to 1 in eight steps (16 + 11 + 7 + 5 + 3 + 2 + 1 ...): ~50 openers and 60 probes per SFU.
    assert!(tries <= 10 * (50 + 60) + 100, "{tries} attempts in a minute");
    world.fleet.each(|_, n| n.mode = Mode::Well);
    world.wait("recovery", S(120), |s| s.placed == 300).await;
}

#[tokio::test(start_paused = true)]
async fn i06_rooms_of_lost_answers_are_ended_and_the_call_is_placed() {
    let world = World::new(4, 1);
    world.set("digest.interval", &json!("5s"));
    first(&world, 2, 4, Mode::LosesAnswers);
    for call in 0..40 {
        world.join(call, 0);
    }
    world.wait("placing", S(60), |s| s.placed == 40).await;
    world.fleet.each(|_, n| n.mode = Mode::Well);
    world.wait("cleaning", S(120), |s| s.releases_waiting == 0).await;
    let start = Instant::now();
    loop {
        let mut rooms = 0;
        world.fleet.each(|_, n| rooms += n.rooms.len());
        if rooms == 40 {
            break;
        }
        assert!(Instant::now() - start < S(120), "{rooms} rooms for 40 calls");
        tokio::time::sleep(S(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn i06_an_orphan_is_ended_only_when_empty() {
    let world = World::new(2, 1);
    world.set("digest.interval", &json!("2s"));
    placed(&world, 10).await;
    let slot = sfu_api::Slot::new(9).expect("below 4,096");
    let epoch = sfu_api::Epoch { term: sfu_api::OwnerTerm { generation: 1, revision: 0 }, n: 1 };
    for (room, participants) in [("left~behind", 0), ("someone~inside", 2)] {
        let guild = sfu_api::GuildId::new("left").expect("valid");
        let room = (sfu_api::RoomId::new(room).expect("valid"), fake::Room { epoch, slot, guild, participants });
        world.fleet.with("sfu-0", |n| n.rooms.insert(room.0, room.1));
    }
    world
        .wait("the empty one's end", S(60), |_| world.fleet.with("sfu-0", |n| !n.rooms.contains_key("left~behind")))
        .await;
    tokio::time::sleep(S(30)).await;
    assert!(world.fleet.with("sfu-0", |n| n.rooms.contains_key("someone~inside")), "a room with people was ended");
    world.fleet.with("sfu-0", |n| n.rooms.get_mut("someone~inside").expect("there").participants = 0);
    world
        .wait("the other's end", S(60), |_| world.fleet.with("sfu-0", |n| !n.rooms.contains_key("someone~inside")))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_room_is_made_again() {
    let world = World::new(2, 1);
    world.set("digest.interval", &json!("2s"));
    placed(&world, 10).await;
    world.fleet.with("sfu-1", |n| n.rooms.clear());
    world.wait("nulls", S(60), |_| world.ear.totals().0 > 0).await;
    world.wait("rooms", S(60), |s| s.awaiting == 0).await;
    assert!(world.fleet.with("sfu-1", |n| !n.rooms.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn r19_a_driver_that_panics_costs_one_attempt() {
    let world = World::new(4, 1);
    first(&world, 2, 4, Mode::Panics);
    for call in 0..20 {
        world.join(call, 0);
    }
    // Its SFU is never suspect (nothing was heard of it), so some calls draw it more than once.
    tokio::time::sleep(S(5)).await;
    world.fleet.each(|_, n| n.mode = Mode::Well);
    world.wait("placing", S(60), |s| s.placed == 20).await;
}

#[tokio::test(start_paused = true)]
async fn r20_the_pause_lever_holds_and_releases_placements() {
    let world = World::new(4, 1);
    world.set("placement.paused", &json!(true));
    tokio::time::sleep(S(1)).await;
    for call in 0..20 {
        world.join(call, 0);
    }
    tokio::time::sleep(S(30)).await;
    assert_eq!(world.engine.status().awaiting, 20);
    world.set("placement.paused", &json!(false));
    world.wait("placing", S(2), |s| s.placed == 20).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_without_sessions_is_ended_on_the_sfu_too() {
    let world = World::new(2, 1);
    placed(&world, 10).await;
    for call in 0..10 {
        world.leave(call, 0);
        world.leave(call, 1);
    }
    world.wait("ends", S(60), |s| s.calls == 0 && s.ending == 0 && s.releases_total == 10).await;
    world.fleet.each(|_, n| assert!(n.rooms.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_cordoned_sfu_gets_no_new_calls_and_keeps_its_own() {
    let world = World::new(2, 1);
    placed(&world, 20).await;
    let id = sfu_api::SfuId::new("sfu-0").expect("valid");
    let before = world.engine.cordon(&id, true).expect("known").calls;
    for call in 20..60 {
        world.join(call, 0);
    }
    world.wait("placing", S(60), |s| s.placed == 60).await;
    let after = world.engine.sfus().into_iter().find(|s| s.id == id).expect("known");
    assert_eq!((after.calls, after.cordoned), (before, true));
}

#[tokio::test(start_paused = true)]
async fn r17_an_operators_word_moves_calls_at_once() {
    let world = World::new(4, 1);
    placed(&world, 40).await;
    let id = sfu_api::SfuId::new("sfu-2").expect("valid");
    world.fleet.with("sfu-2", |n| n.mode = Mode::Hangs);
    let calls = world.engine.sfus().into_iter().find(|s| s.id == id).expect("known").calls;
    assert!(calls > 0);
    world.engine.declare_dead(&id, Instant::now()).expect("known");
    world.wait("moves", S(10), |s| s.awaiting == 0 && s.moves_total == u64::from(calls)).await;
}
