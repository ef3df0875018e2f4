//! What comparing rooms with SFUs finds: people in rooms that nobody claims, and differences among many rooms.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;
use sfu_api::{OwnerTerm, SfuId, Slot, SyncerId};

use crate::fake::World;
use crate::fake::sfu::{Mode, Room};

const S: fn(u64) -> Duration = Duration::from_secs;

/// Places calls fast, and sets the pace back.
async fn fill(world: &World, calls: usize) {
    let levers = ["placement.overall", "placement.region", "placement.sfu"];
    for lever in levers {
        world.set(&format!("{lever}.rate"), &json!(5_000.0));
        world.set(&format!("{lever}.burst"), &json!(5_000));
    }
    for call in 0..calls {
        world.join(call, 0);
        if call % 500 == 499 {
            world.wait("placing these", S(60), |s| s.awaiting == 0).await;
        }
    }
    world.wait("placing the last", S(60), |s| s.awaiting == 0).await;
}

fn places(world: &World, calls: usize) -> Vec<Option<SfuId>> {
    (0..calls).map(|call| world.sfu_of(call)).collect()
}

/// Somebody is in each room.
fn people_come(world: &World) {
    world.fleet.each(|_, n| n.rooms.values_mut().for_each(|room| room.participants = 2));
}

fn rooms(world: &World) -> (usize, u32) {
    let (mut rooms, mut people) = (0, 0);
    world.fleet.each(|_, n| {
        rooms += n.rooms.len();
        people += n.rooms.values().map(|room| room.participants).sum::<u32>();
    });
    (rooms, people)
}

/// Whoever comes next, the same syncer or another one, leaves calls where their people are, although it takes longer than a
/// call waits for a new room in its old place.
#[tokio::test(start_paused = true)]
async fn r15_calls_stay_where_their_people_are_whoever_comes_after_their_syncer() {
    const CALLS: usize = 300;
    for id in ["s", "another"] {
        let world = World::new(2, 1);
        let idle = SfuId::new("sfu-1").expect("valid");
        world.engine.cordon(&idle, true).expect("known");
        fill(&world, CALLS).await;
        let before = places(&world, CALLS);
        people_come(&world);
        let made = world.fleet.made().len();
        let world = world.successor(id, 2);
        tokio::time::sleep(S(3)).await; // they are compared within two
        // All gateways tell at once what they have. One after the other takes longer than a lost room is waited for, and
        // beside it there is an SFU that has nothing to do.
        world.set("placement.sfu.in_flight_max", &json!(1));
        tokio::time::sleep(S(1)).await; // levers are read at least four times a second
        for call in 0..CALLS {
            world.join(call, 0);
            world.join(call, 1);
        }
        world.wait("all in their places", S(120), |s| s.placed == CALLS as u64 && s.awaiting == 0).await;
        assert!(before == places(&world, CALLS), "{id}: some were moved");
        assert_eq!(world.ear.totals(), (0, CALLS), "no null, and a new endpoint for each");
        tokio::time::sleep(S(120)).await;
        assert_eq!(rooms(&world), (CALLS, 2 * CALLS as u32), "{id}: each has its room, with everybody in it");
        assert_eq!(world.fleet.made().len(), made, "{id}: no room was made");
    }
}

/// Some gateways are faster than the digests: those of their calls that were not placed by then stay too, and a crowd of
/// them is no reason to put comparing off.
#[tokio::test(start_paused = true)]
async fn r15_calls_that_wait_when_their_rooms_are_found_go_there() {
    const CALLS: usize = 1_100;
    let world = World::new(60, 1);
    fill(&world, CALLS).await;
    let before = places(&world, CALLS);
    people_come(&world);
    let world = world.successor("s", 2);
    world.set("admission.queue_age_max", &json!("3s")); // so many more wait than a sweep that can be put off stands
    tokio::time::sleep(Duration::from_millis(300)).await; // levers are read at least four times a second
    for call in 0..CALLS {
        world.join(call, 0);
    }
    world.wait("all in their places", S(120), |s| s.placed == CALLS as u64 && s.awaiting == 0).await;
    let stayed = before.iter().zip(places(&world, CALLS)).filter(|(before, after)| **before == *after).count();
    // What was placed in less than two seconds at the 200 a second of a region, and its burst.
    assert!(stayed >= CALLS - 500, "{stayed} of {CALLS} stayed");
}

/// A full SFU, one that is cordoned and one that takes no new rooms keep what they have. A dead or draining one does not.
#[tokio::test(start_paused = true)]
async fn r15_what_stands_against_new_rooms_does_not_stand_against_those_that_are_there() {
    const CALLS: usize = 60;
    for (what, stays) in [("full", true), ("cordoned", true), ("refuses", false), ("drained", false)] {
        let world = World::new(2, 1);
        fill(&world, CALLS).await;
        let before = places(&world, CALLS);
        people_come(&world);
        let world = world.successor("s", 2);
        let sfu = SfuId::new("sfu-0").expect("valid");
        match what {
            "full" => world.fleet.with("sfu-0", |n| n.capacity = u32::try_from(n.rooms.len()).expect("few")),
            "cordoned" => drop(world.engine.cordon(&sfu, true).expect("known")),
            "drained" => drop(world.engine.drain_sfu(&sfu, S(600), tokio::time::Instant::now()).expect("known")),
            _ => world.fleet.with("sfu-0", |n| n.mode = Mode::Refuses),
        }
        tokio::time::sleep(S(5)).await;
        for call in 0..CALLS {
            world.join(call, 0);
        }
        world.wait("all in their places", S(60), |s| s.placed == CALLS as u64 && s.awaiting == 0).await;
        let after = places(&world, CALLS);
        assert_eq!(before == after, stays, "{what}");
    }
}

/// An SFU with more rooms than a digest names: what it forgot is made again, what nobody claims is ended.
#[tokio::test(start_paused = true)]
async fn i06_differences_are_found_among_more_rooms_than_a_digest_names() {
    const CALLS: usize = 5_000;
    let world = World::new(1, 1);
    world.set("digest.interval", &json!("2s"));
    fill(&world, CALLS).await;
    let forgotten: Vec<_> = world.fleet.with("sfu-0", |n| {
        let all: Vec<_> = n.rooms.keys().cloned().collect();
        let some: Vec<_> = all.into_iter().step_by(50).collect();
        some.iter().for_each(|room| drop(n.rooms.remove(room)));
        let slot = Slot::new(9).expect("below 4,096");
        let epoch = sfu_api::Epoch { term: OwnerTerm { generation: 1, revision: 0 }, n: 1 };
        let guild = sfu_api::GuildId::new("left").expect("valid");
        let room = sfu_api::RoomId::new("left~behind").expect("valid");
        n.rooms.insert(room, Room { epoch, slot, guild, participants: 0 });
        some
    });
    let all_there = || world.fleet.with("sfu-0", |n| forgotten.iter().all(|room| n.rooms.contains_key(room)));
    world.wait("the forgotten rooms", S(60), |s| s.awaiting == 0 && all_there()).await;
    let ended = || world.fleet.with("sfu-0", |n| !n.rooms.contains_key("left~behind"));
    world.wait("the orphan's end", S(60), |_| ended()).await;
    assert_eq!(world.ear.totals().0, forgotten.len(), "no other call hears a null");
}

/// An SFU that has seen a higher term for some slot keeps nobody from finding the people of the others there, and that
/// slot is known to be claimed again, though none of its rooms are there.
#[tokio::test(start_paused = true)]
async fn i01_a_higher_term_for_one_slot_hides_no_rooms_of_the_others() {
    const CALLS: usize = 100;
    let world = World::new(2, 1);
    world.engine.cordon(&SfuId::new("sfu-1").expect("valid"), true).expect("known");
    fill(&world, CALLS).await;
    people_come(&world);
    let before = places(&world, CALLS);
    let made = world.fleet.made().len();
    let mut seen = Vec::new();
    world.fleet.with("sfu-0", |n| {
        let taken: HashSet<Slot> = n.rooms.values().map(|room| room.slot).collect();
        let other = (0..4096).filter_map(Slot::new).filter(|slot| !taken.contains(slot));
        seen = other.take(3).zip([7, 9, 8].map(|revision| OwnerTerm { generation: 1, revision })).collect();
        for (slot, term) in &seen {
            n.holders.insert(*slot, (*term, SyncerId::new("before").expect("valid")));
        }
    });
    let world = world.successor("another", 2);
    let fenced = world.engine.fences();
    tokio::time::sleep(S(3)).await; // rooms are compared within two
    for call in 0..CALLS {
        world.join(call, 0);
    }
    world.wait("all in their places", S(120), |s| s.placed == CALLS as u64 && s.awaiting == 0).await;
    tokio::time::sleep(S(120)).await;
    assert!(before == places(&world, CALLS), "some were moved to the SFU that has nothing to do");
    assert_eq!((rooms(&world), world.fleet.made().len()), ((CALLS, 2 * CALLS as u32), made));
    assert_eq!(*fenced.borrow(), seen.into_iter().collect());
}

/// Where somebody holds slots with higher terms, the people in their rooms are found as soon as those slots are claimed
/// again, however high the terms are that the SFU makes up for others.
#[tokio::test(start_paused = true)]
async fn i01_people_in_slots_of_a_higher_term_are_found_once_these_are_claimed_again() {
    const CALLS: usize = 100;
    let world = World::new(2, 1);
    world.engine.cordon(&SfuId::new("sfu-1").expect("valid"), true).expect("known");
    fill(&world, CALLS).await;
    people_come(&world);
    let (before, made) = (places(&world, CALLS), world.fleet.made().len());
    let lie = Slot::new(9).expect("below 4,096");
    let mut higher = HashSet::new();
    world.fleet.with("sfu-0", |n| {
        higher = n.rooms.values().map(|room| room.slot).take(10).collect();
        let term = |slot: &Slot| if *slot == lie { u64::MAX } else { 9 };
        for slot in higher.iter().chain([&lie]) {
            let term = OwnerTerm { generation: term(slot).max(10) - 9, revision: term(slot) };
            n.holders.insert(*slot, (term, SyncerId::new("before").expect("valid")));
        }
    });
    let world = world.successor("another", 2);
    let mut fenced = world.engine.fences();
    fenced.wait_for(|fenced| fenced.contains_key(&lie)).await.expect("it lives");
    let believed = fenced.borrow().clone();
    assert_eq!(believed.keys().copied().collect::<HashSet<_>>(), higher.into_iter().chain([lie]).collect());
    assert!(believed.values().all(|term| term.generation < 2_000 && term.revision < 1 << 62), "{believed:?}");
    world.own_everything(20);
    tokio::time::sleep(S(6)).await; // they are compared again within two, or four
    for call in 0..CALLS {
        world.join(call, 0);
    }
    world.wait("all in their places", S(120), |s| s.placed == CALLS as u64 && s.awaiting == 0).await;
    assert!(before == places(&world, CALLS), "some were moved to the SFU that has nothing to do");
    assert_eq!(world.fleet.made().len(), made, "no room was made");
}

/// While it is paused no rooms are compared, so an orphan stays; and it is ended when it no longer is.
#[tokio::test(start_paused = true)]
async fn r20_the_pause_of_anti_entropy_keeps_orphans_and_its_end_ends_them() {
    let world = World::new(2, 1);
    world.set("digest.interval", &json!("2s"));
    world.place(10, 2).await;
    world.set("digest.paused", &json!(true));
    tokio::time::sleep(S(10)).await; // what was under way ends
    world.fleet.with("sfu-0", |n| {
        let slot = Slot::new(9).expect("below 4,096");
        let epoch = sfu_api::Epoch { term: OwnerTerm { generation: 1, revision: 0 }, n: 1 };
        let guild = sfu_api::GuildId::new("left").expect("valid");
        let room = sfu_api::RoomId::new("left~behind").expect("valid");
        n.rooms.insert(room, Room { epoch, slot, guild, participants: 0 });
    });
    let is_there = || world.fleet.with("sfu-0", |n| n.rooms.contains_key("left~behind"));
    tokio::time::sleep(S(30)).await; // many intervals
    assert!(is_there(), "rooms were compared in the pause");
    world.set("digest.paused", &json!(false));
    world.wait("the orphan's end", S(60), |_| !is_there()).await;
    assert_eq!(rooms(&world).0, 10, "and no other room's");
}
