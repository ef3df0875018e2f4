//! The whole engine on a fake fleet and a paused clock: what a storm does to it.

mod absent;
mod bounds;
mod door;
mod fake;
mod found;
mod recovery;
mod regions;
mod replay;
mod sharing;
mod windows;
mod writes;
mod zones;

use std::time::Duration;

use fake::sfu::{Mode, overdrawn};
use fake::{World, call_id};
use serde_json::json;
use tokio::time::Instant;

const S: fn(u64) -> Duration = Duration::from_secs;

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
    world.place(1_000, 2).await;
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
async fn r07_ten_thousand_allocations_on_stale_loads_exceed_no_bucket_and_stay_even() {
    let (sfus, calls) = (200, 10_000);
    let world = World::new(sfus, 2);
    world.fleet.each(|_, n| n.stale = true);
    world.set("admission.new_calls.burst", &json!(20_000));
    for (level, rate, burst) in [("overall", 10_000.0, 500), ("region", 6_000.0, 300), ("sfu", 60.0, 20)] {
        world.set(&format!("placement.{level}.rate"), &json!(rate));
        world.set(&format!("placement.{level}.burst"), &json!(burst));
    }
    tokio::time::sleep(S(10)).await; // by now every load is as old as that
    for call in 0..calls {
        world.join_in(call, if call % 2 == 0 { "r0" } else { "r1" });
    }
    let took = world.wait("placing", S(60), |s| s.placed == calls as u64).await;
    assert!(took <= Duration::from_millis(1_500), "10,000 allocations took {took:?}");
    let mut made: Vec<usize> = Vec::new();
    let mut by_region = [Vec::new(), Vec::new()];
    world.fleet.each(|id, n| {
        made.push(n.made.len());
        assert_eq!(overdrawn(&n.made, 60.0, 20.0 + 1.0), 0, "{id}");
        let number: usize = id.as_str().trim_start_matches("sfu-").parse().expect("a number");
        by_region[number % 2].extend(n.made.iter().copied());
    });
    for region in &mut by_region {
        region.sort();
        assert_eq!(overdrawn(region, 6_000.0, 300.0 + 6.0), 0, "a region");
    }
    assert_eq!(overdrawn(&world.fleet.made(), 10_000.0, 500.0 + 10.0), 0, "overall");
    let (most, mean) = (*made.iter().max().expect("some") as f64, calls as f64 / sfus as f64);
    assert!(most / mean <= 1.5, "R7: {most} on the fullest, {mean} on average");
}

#[tokio::test(start_paused = true)]
async fn r15_a_thousand_requests_to_repair_a_call_make_one_allocation() {
    let world = World::new(4, 1);
    for session in 0..1_000 {
        world.join(0, session);
    }
    world.wait("placing", S(10), |s| s.placed == 1).await;
    assert_eq!(world.fleet.made().len(), 1);
    let on = world.sfu_of(0).expect("placed");
    // Everybody says that it is gone, over and over, while it is being placed anew.
    for n in 0..1_000 {
        world.engine.declare_dead(&on, Instant::now()).expect("known");
        world.join(0, n);
        if n % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    world.wait("the repair", S(10), |s| s.awaiting == 0 && s.moves_total == 1).await;
    assert_eq!(world.fleet.made().len(), 2, "one allocation for a thousand requests");
    assert_eq!(world.ear.of(&call_id(0)).iter().map(|(_, phase, _)| *phase).collect::<Vec<_>>(), [1, 2, 1]);
    let mut rooms = Vec::new();
    world.fleet.each(|id, n| rooms.extend(n.rooms.keys().map(|_| id.clone())));
    rooms.retain(|id| *id != on);
    assert_eq!(rooms, [world.sfu_of(0).expect("placed")], "hosted once, but for the one that is gone");
}

#[tokio::test(start_paused = true)]
async fn i04_no_bucket_is_overdrawn_in_a_recovery() {
    let world = World::new(20, 2);
    world.set("placement.overall.rate", &json!(100.0));
    world.set("placement.overall.burst", &json!(10));
    world.set("placement.sfu.rate", &json!(10.0));
    world.set("placement.sfu.burst", &json!(5));
    tokio::time::sleep(S(1)).await; // the loop reads levers at least four times a second
    world.place(600, 2).await;
    first(&world, 5, 20, Mode::Refuses);
    world.wait("recovery", S(120), |s| s.notices_total == 4 && s.awaiting == 0).await;
    assert_eq!(overdrawn(&world.fleet.made(), 100.0, 10.0 + 1.0), 0, "overall");
    world.fleet.each(|id, n| assert_eq!(overdrawn(&n.made, 10.0, 5.0 + 1.0), 0, "{id}"));
}

#[tokio::test(start_paused = true)]
async fn r17_hanging_sfus_keep_their_calls_until_suspect_max() {
    let world = World::new(20, 2);
    world.place(200, 2).await;
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
async fn a_restarted_sfu_is_refilled_in_place_at_its_own_pace() {
    let world = World::new(3, 1);
    world.place(300, 2).await;
    let before: Vec<_> = (0..300).map(|c| world.sfu_of(c)).collect();
    let held = before.iter().flatten().filter(|s| s.as_str() == "sfu-1").count();
    assert!(held > 40, "more than the burst of 15, or the test shows nothing: {held}");
    world.fleet.restart("sfu-1");
    world.wait("the notice", S(30), |s| s.notices_total == 1).await;
    world.wait("rooms", S(60), |s| s.awaiting == 0).await;
    assert_eq!(before, (0..300).map(|c| world.sfu_of(c)).collect::<Vec<_>>());
    assert_eq!(world.engine.status().moves_total, 0);
    assert_eq!(world.fleet.with("sfu-1", |n| n.rooms.len()), held);
}

#[tokio::test(start_paused = true)]
async fn r14_an_outage_of_everything_is_not_hammered() {
    let world = World::new(10, 1);
    world.place(100, 2).await;
    let before = world.engine.status().attempts_total;
    world.fleet.each(|_, n| n.mode = Mode::Overloaded);
    for call in 100..300 {
        world.join(call, 0);
    }
    tokio::time::sleep(S(60)).await;
    let tries = world.engine.status().attempts_total - before;
    // Ten SFUs say "in 1 s". Each is sent its window of 16, and then one call a second.
    assert!(tries <= 10 * (16 + 60), "{tries} attempts in a minute");
    world.fleet.each(|_, n| n.mode = Mode::Well);
    world.wait("recovery", S(120), |s| s.placed == 300).await;
}

#[tokio::test(start_paused = true)]
async fn a_crowd_for_one_sfu_is_one_request_and_a_call_alone_does_not_wait_for_company() {
    let world = World::new(1, 1);
    world.set("health.probe_interval", &json!("300s"));
    world.set("digest.paused", &json!(true));
    world.wait("the first sign of life", S(10), |s| s.sfus.healthy == 1).await;
    tokio::time::sleep(S(2)).await;
    let asked = |world: &World| world.fleet.with("sfu-0", |n| n.asked);
    let before = asked(&world);
    let crowd = 10; // below the burst of the SFU's bucket and its window
    for call in 0..crowd {
        world.join(call, 0);
    }
    world.wait("placing the crowd", S(1), |s| s.placed == crowd as u64).await;
    assert_eq!(asked(&world) - before, 1, "one exchange");
    world.join(crowd, 0);
    let took = world.wait("placing one", S(1), |s| s.placed == crowd as u64 + 1).await;
    assert!(took <= Duration::from_millis(20), "one round trip and one look at the clock: {took:?}");
    assert_eq!(asked(&world) - before, 2);
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
    world.place(10, 2).await;
    let slot = sfu_api::Slot::new(9).expect("below 4,096");
    let epoch = sfu_api::Epoch { term: sfu_api::OwnerTerm { generation: 1, revision: 0 }, n: 1 };
    for (room, participants) in [("left~behind", 0), ("someone~inside", 2)] {
        let guild = sfu_api::GuildId::new("left").expect("valid");
        let room = (sfu_api::RoomId::new(room).expect("valid"), fake::sfu::Room { epoch, slot, guild, participants });
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
    world.place(10, 2).await;
    world.fleet.with("sfu-1", |n| n.rooms.clear());
    world.wait("nulls", S(60), |_| world.ear.totals().0 > 0).await;
    world.wait("rooms", S(60), |s| s.awaiting == 0).await;
    assert!(world.fleet.with("sfu-1", |n| !n.rooms.is_empty()));
}

/// It may be late for hours: its calls are there, so what it forgets is made again, elsewhere.
#[tokio::test(start_paused = true)]
async fn r13_what_a_slow_sfu_forgets_is_noticed_too() {
    let world = World::new(2, 1);
    world.set("digest.interval", &json!("2s"));
    world.place(10, 2).await;
    let forgotten = world.fleet.with("sfu-1", |n| n.rooms.len());
    world.fleet.with("sfu-1", |n| n.late = Duration::from_millis(1_500));
    world.wait("its verdict", S(60), |s| s.sfus.slow == 1).await;
    world.fleet.with("sfu-1", |n| n.rooms.clear());
    world.wait("nulls", S(60), |_| world.ear.totals().0 == forgotten).await;
    world.wait("rooms", S(60), |s| s.awaiting == 0).await;
    assert_eq!(world.engine.status().sfus.slow, 1, "it stayed slow");
    assert_eq!(world.fleet.with("sfu-0", |n| n.rooms.len()), 10);
}

#[tokio::test(start_paused = true)]
async fn r19_a_driver_that_panics_costs_one_attempt_and_no_permit() {
    let world = World::new(4, 1);
    first(&world, 2, 4, Mode::Panics);
    for call in 0..20 {
        world.join(call, 0);
    }
    // Its SFU is never suspect (nothing was heard of it), so some calls draw it more than once.
    tokio::time::sleep(S(5)).await;
    world.fleet.each(|_, n| n.mode = Mode::Well);
    world.wait("placing", S(60), |s| s.placed == 20 && s.attempts_in_flight == 0).await;
    let asked = world.fleet.with("sfu-0", |n| n.asked) + world.fleet.with("sfu-1", |n| n.asked);
    assert!(asked > 0, "no panic happened");
    // Every permit came back: as many calls as the windows hold go through at once.
    for call in 20..200 {
        world.join(call, 0);
    }
    world.wait("placing more", S(60), |s| s.placed == 200 && s.attempts_in_flight == 0).await;
}

/// Attempts under way are bounded by levers: on one SFU, and of the syncer.
#[tokio::test(start_paused = true)]
async fn r20_how_much_is_under_way_at_once_is_a_lever() {
    for (lever, most) in [("placement.sfu.in_flight_max", 3), ("placement.in_flight_max", 8)] {
        let world = World::new(1, 1);
        world.set(lever, &json!(most));
        world.wait("the first sign of life", S(10), |s| s.sfus.healthy == 1).await;
        tokio::time::sleep(S(1)).await; // levers are read at least four times a second
        world.fleet.with("sfu-0", |n| n.mode = Mode::Hangs);
        for call in 0..40 {
            world.join(call, 0);
        }
        let mut seen = 0;
        for _ in 0..100 {
            seen = seen.max(world.engine.status().attempts_in_flight);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(seen, most, "{lever}");
    }
}

/// Rooms are ended by permits of their own: placements that hang and fill every window do not keep them.
#[tokio::test(start_paused = true)]
async fn r20_rooms_are_ended_while_placements_hang() {
    let world = World::new(2, 1);
    world.set("calls.empty_grace", &json!("1s"));
    world.set("release.in_flight_max", &json!(2));
    world.set("placement.in_flight_max", &json!(8));
    world.engine.cordon(&sfu_api::SfuId::new("sfu-1").expect("valid"), true).expect("known");
    world.place(20, 1).await;
    world.engine.cordon(&sfu_api::SfuId::new("sfu-1").expect("valid"), false).expect("known");
    world.engine.cordon(&sfu_api::SfuId::new("sfu-0").expect("valid"), true).expect("known");
    world.fleet.with("sfu-1", |n| n.mode = Mode::Hangs);
    for call in 100..140 {
        world.join(call, 0);
    }
    world.wait("a full window", S(10), |s| s.attempts_in_flight >= 8).await;
    for call in 0..20 {
        world.leave(call, 0);
    }
    let rooms = || world.fleet.with("sfu-0", |n| n.rooms.len());
    // Well before the first of the placements gives up and lets another one go.
    world.wait("the end of the rooms", S(3), |_| rooms() == 0).await;
}

/// An SFU that is overloaded and asks for patience is left alone with all rooms that end there, and one that drains is not.
#[tokio::test(start_paused = true)]
async fn r14_rooms_are_not_ended_before_an_overloaded_sfu_wants_to_hear_of_it() {
    let world = World::new(1, 1);
    world.set("calls.empty_grace", &json!("1s"));
    world.place_fast();
    world.place(4_000, 1).await;
    tokio::time::sleep(S(3)).await; // it was looked at once, and its rooms were compared
    world.fleet.with("sfu-0", |n| n.mode = Mode::Overloaded);
    for call in 0..4_000 {
        world.leave(call, 0);
    }
    let asked = || world.fleet.with("sfu-0", |n| n.asked);
    let before = asked();
    world.wait("the first releases", S(3), |_| asked() >= before + 4).await;
    tokio::time::sleep(Duration::from_millis(900)).await; // it asks for a second
    // Four requests are under way when the first answer comes, and there are probes; 4,000 rooms are sixteen requests.
    assert!(asked() - before <= 4 + 3, "{} requests to an SFU that asked to be left alone", asked() - before);
    world.fleet.with("sfu-0", |n| n.mode = Mode::Well);
    world.wait("the end of the rooms", S(30), |_| world.fleet.with("sfu-0", |n| n.rooms.is_empty())).await;
}

/// Patience that an SFU asks for in part of a request is as good as that for the whole.
#[tokio::test(start_paused = true)]
async fn r14_an_sfu_that_does_part_of_a_request_is_left_alone_with_the_rest() {
    let world = World::new(1, 1);
    world.set("calls.empty_grace", &json!("1s"));
    world.place_fast();
    let rooms = || world.fleet.with("sfu-0", |n| n.rooms.len());
    let asked = || world.fleet.with("sfu-0", |n| n.asked);
    world.place(1_000, 1).await;
    tokio::time::sleep(S(3)).await; // it was looked at once, and its rooms were compared
    world.fleet.with("sfu-0", |n| n.batch_max = 2);
    let before = asked();
    for call in 1_000..2_000 {
        world.join(call, 0);
    }
    world.wait("the first of them", S(3), |_| rooms() >= 1_002).await;
    tokio::time::sleep(Duration::from_millis(900)).await; // it asks for a second
    let (requests, made) = (asked() - before, rooms() - 1_000);
    assert!(made <= 8 && requests <= 4, "{made} rooms made by {requests} requests"); // with probes
    world.fleet.with("sfu-0", |n| n.batch_max = usize::MAX);
    world.wait("all of them", S(60), |_| rooms() == 2_000).await;

    world.fleet.with("sfu-0", |n| n.batch_max = 2);
    let before = asked();
    for call in 0..2_000 {
        world.leave(call, 0);
    }
    world.wait("the end of the first", S(3), |_| rooms() < 2_000).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(asked() - before <= 4 + 3, "{} requests to an SFU that asked to be left alone", asked() - before);
    world.fleet.with("sfu-0", |n| n.batch_max = usize::MAX);
    world.wait("the end of all", S(60), |_| rooms() == 0).await;
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
    world.place(10, 2).await;
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
    world.place(20, 2).await;
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
async fn r17_an_operators_word_moves_calls_and_holds_although_the_sfu_answers() {
    let world = World::new(4, 1);
    world.place(40, 2).await;
    let id = sfu_api::SfuId::new("sfu-2").expect("valid");
    let view = || world.engine.sfus().into_iter().find(|s| s.id == id).expect("known");
    let calls = view().calls;
    assert!(calls > 0);
    world.engine.declare_dead(&id, Instant::now()).expect("known");
    world.wait("moves", S(10), |s| s.awaiting == 0 && s.moves_total == u64::from(calls)).await;
    for call in 40..80 {
        world.join(call, 0);
    }
    tokio::time::sleep(S(60)).await;
    assert_eq!((view().calls, view().verdict.name()), (0, "dead"), "its answers do not overrule the operator");
    world.engine.cordon(&id, false).expect("known");
    world.wait("its return", S(60), |s| s.sfus.dead == 0).await;
}

#[tokio::test(start_paused = true)]
async fn r17_a_catalogue_change_leaves_calls_observed_and_in_place() {
    let world = World::new(4, 1);
    world.set("digest.interval", &json!("2s"));
    world.place(80, 2).await;
    let before: Vec<_> = (0..80).map(|c| world.sfu_of(c)).collect();
    // One entry changes, one goes.
    world.recatalogue(4, 1, |specs| {
        specs[0].capacity = 5_000;
        specs.remove(3);
    });
    tokio::time::sleep(S(30)).await;
    assert_eq!(before, (0..80).map(|c| world.sfu_of(c)).collect::<Vec<_>>(), "calls stay");
    let rooms = |id| world.fleet.with(id, |n| n.rooms.len());
    assert_eq!(rooms("sfu-0") + rooms("sfu-1") + rooms("sfu-2") + rooms("sfu-3"), 80, "no room was ended");
    // Both are still looked after: their calls move when they die.
    world.fleet.with("sfu-0", |n| n.mode = Mode::Refuses);
    world.fleet.with("sfu-3", |n| n.mode = Mode::Refuses);
    world.wait("both notices", S(60), |s| s.notices_total == 2).await;
    world.wait("recovery", S(60), |s| s.awaiting == 0).await;
    assert!((0..80).all(|c| !["sfu-0", "sfu-3"].contains(&world.sfu_of(c).expect("placed").as_str())));
}

#[tokio::test(start_paused = true)]
async fn i05_a_higher_term_for_our_slots_keeps_their_calls() {
    let world = World::new(4, 1);
    world.place(40, 2).await;
    let before: Vec<_> = (0..40).map(|c| world.sfu_of(c)).collect();
    world.own_everything(9);
    assert_eq!(before, (0..40).map(|c| world.sfu_of(c)).collect::<Vec<_>>());
    world.fleet.with("sfu-1", |n| n.mode = Mode::Refuses);
    world.wait("recovery under the new term", S(60), |s| s.notices_total == 1 && s.awaiting == 0).await;
}

#[tokio::test(start_paused = true)]
async fn r14_an_sfu_that_rejects_everything_is_no_sinkhole() {
    let world = World::new(3, 1);
    world.place(30, 2).await;
    let before = world.engine.status().attempts_total;
    world.fleet.with("sfu-1", |n| n.mode = Mode::Rejects);
    for call in 30..330 {
        world.join(call, 0);
    }
    world.wait("placing", S(60), |s| s.placed == 330).await;
    let extra = world.engine.status().attempts_total - before - 300;
    // Its window of 16; then it is tried again after ever longer pauses, by one call each time.
    assert!(extra <= 32, "{extra} attempts were wasted on it");
}

#[tokio::test(start_paused = true)]
async fn a_draining_sfu_sends_calls_elsewhere_at_once() {
    let world = World::new(3, 1);
    world.fleet.with("sfu-1", |n| n.mode = Mode::Draining);
    for call in 0..60 {
        world.join(call, 0);
    }
    let took = world.wait("placing", S(60), |s| s.placed == 60).await;
    assert!(took < S(10), "its Retry-After of 30 s held up calls that others could take: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn r17_when_most_of_the_fleet_falls_silent_it_is_probably_us() {
    let world = World::new(10, 1);
    world.place(100, 2).await;
    world.set("health.suspect_max", &json!("5s"));
    world.fleet.each(|_, n| n.mode = Mode::Hangs);
    world.wait("the freeze", S(120), |s| s.frozen).await;
    tokio::time::sleep(S(600)).await;
    let status = world.engine.status();
    assert_eq!((status.sfus.dead, status.notices_total), (0, 0), "silence of everything was taken for death");
    world.fleet.each(|_, n| n.mode = Mode::Well);
    world.wait("the thaw", S(120), |s| !s.frozen && s.sfus.healthy == 10).await;
    assert_eq!(world.engine.status().moves_total, 0);
}

#[tokio::test(start_paused = true)]
async fn a_region_that_is_cordoned_whole_hands_its_calls_to_others() {
    let world = World::new(4, 2);
    for sfu in ["sfu-0", "sfu-2"] {
        world.engine.cordon(&sfu_api::SfuId::new(sfu).expect("valid"), true).expect("known");
    }
    for call in 0..20 {
        world.join_in(call, "r0");
    }
    world.wait("placing", S(30), |s| s.placed == 20).await;
    assert!((0..20).all(|c| ["sfu-1", "sfu-3"].contains(&world.sfu_of(c).expect("placed").as_str())));
}

#[tokio::test(start_paused = true)]
async fn r20_a_pace_that_is_cut_in_a_crowd_slows_it_and_does_not_stop_it() {
    let world = World::new(40, 1);
    let pace = |rate: f64, burst: u32| {
        for level in ["overall", "region", "sfu"] {
            world.set(&format!("placement.{level}.rate"), &json!(rate));
            world.set(&format!("placement.{level}.burst"), &json!(burst));
        }
    };
    world.set("admission.queue_age_max", &json!("1h")); // the crowd is let in whole
    pace(100.0, 4_000);
    tokio::time::sleep(S(45)).await; // the loop reads levers at least four times a second, and the buckets fill
    world.place(4_000, 1).await;
    pace(50.0, 10); // what the burst took would take more than a minute to pay back
    tokio::time::sleep(S(1)).await;
    let cut = Instant::now();
    for call in 4_000..4_200 {
        world.join(call, 0);
    }
    world.wait("the first", S(2), |s| s.placed >= 4_010).await;
    world.wait("all", S(10), |s| s.placed == 4_200).await;
    let mut made = world.fleet.made();
    made.retain(|at| *at >= cut);
    assert_eq!(overdrawn(&made, 50.0, 10.0 + 1.0), 0, "and it holds at once");
}
