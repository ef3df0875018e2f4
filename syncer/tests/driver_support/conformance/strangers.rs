//! Rooms that somebody else made on the same SFU.

use sfu_api::{OpId, RoomId, SlotTerm};
use syncer::drivers::{DigestOutcome, DigestSpec, EndSpec, Ended, ListedRoom, SfuDriver};

use super::{Stand, boot, epoch, slot, soon, spec};

/// The engine ends what it finds and nobody claims, so what it is told of must be ours.
pub(crate) async fn foreign_rooms_are_load_and_nothing_else(stand: &mut impl Stand) {
    let driver = stand.driver();
    let boot = boot(&*driver).await;
    let foreign = stand.make_foreign().await;
    assert!(!foreign.is_empty());
    let ours = ["c", "d"].map(|call| spec(&*driver, call, 1, Some(boot.clone())));
    for spec in &ours {
        driver.ensure_room(spec.clone(), soon()).await.expect("made");
    }
    let listed = driver.list_rooms(soon()).await.expect("listed");
    let mut names: Vec<_> = listed.rooms.iter().map(|r| &r.room).collect();
    names.sort();
    assert_eq!(names, [&ours[0].room, &ours[1].room], "only ours are listed");
    let calls = ours.len() + foreign.len();
    assert_eq!(listed.load.map(|load| load.calls as usize), Some(calls), "all of it is load");
    for room in surplus(&*driver).await.iter().flatten() {
        assert!(!foreign.contains(room), "{room} is not ours, and a comparison tells of it as if it were");
    }
    assert!(foreign.iter().all(|room| driver.call_of(room).is_none()), "a stranger's room is taken for a call's");

    let (one, other) = listed.rooms.split_first().expect("two");
    let ended = driver.end_room(end_of(one, "e1"), true, soon()).await.expect("asked");
    assert_eq!(ended, Ended::Destroyed);
    let others = other.iter().map(|listed| end_of(listed, "e2")).collect();
    for ended in driver.end_rooms(others, soon()).await.expect("asked") {
        assert_eq!(ended.expect("asked"), Ended::Destroyed);
    }
    let left = driver.list_rooms(soon()).await.expect("listed");
    assert_eq!((left.rooms.len(), left.load.map(|load| load.calls as usize)), (0, Some(foreign.len())));
    for room in &foreign {
        assert!(stand.is_there(room).await, "{room} was not ours to end");
    }
}

/// What a digest that names no room tells of; `None` where there are no digests.
async fn surplus(driver: &dyn SfuDriver) -> Option<Vec<RoomId>> {
    let terms = vec![SlotTerm { slot: slot(), term: epoch(1).term }];
    let spec = DigestSpec { boot_id: None, terms, rooms: 0, hash: 0, named: Some(Vec::new()) };
    let DigestOutcome::Answer(answer) = driver.digest(spec, soon()).await.expect("answered") else { return None };
    let surplus: Vec<_> = answer.differences.expect("they differ").surplus.into_iter().map(|r| r.room).collect();
    assert_eq!(surplus.len(), 2, "ours are there: {surplus:?}");
    Some(surplus)
}

/// As the engine ends a room that it found.
fn end_of(listed: &ListedRoom, op: &str) -> EndSpec {
    let epoch = listed.epoch.expect("every kind tells");
    EndSpec {
        room: listed.room.clone(),
        slot: listed.slot.expect("every kind tells"),
        owner_term: epoch.term,
        epoch,
        op_id: OpId::new(op).expect("valid id"),
        boot_id: None,
    }
}
