//! Draining: what it refuses, and whether people of rooms that are there still get in.

use sfu_api::OpId;
use syncer::drivers::{ErrorKind, RoomSpec};

use super::{Stand, boot, enter, soon, spec};

pub(crate) async fn r14_draining_refuses_new_rooms_only(stand: &mut impl Stand) {
    let driver = stand.driver();
    let boot = Some(boot(&*driver).await);
    let there = spec(&*driver, "there", 1, boot.clone());
    driver.ensure_room(there.clone(), soon()).await.expect("made");
    driver.set_draining(true, soon()).await.expect("drains");
    assert!(!driver.probe(false, soon()).await.expect("alive").accepting);
    let new = spec(&*driver, "new", 1, boot);
    let error = driver.ensure_room(new.clone(), soon()).await.expect_err("draining");
    assert_eq!(error.kind(), ErrorKind::Draining, "{error}");
    assert_eq!(driver.participants(there.room, soon()).await.expect("asked"), Some(0), "rooms stay");
    driver.set_draining(false, soon()).await.expect("serves");
    assert!(driver.probe(false, soon()).await.expect("alive").accepting);
    let again = RoomSpec { op_id: OpId::new("another").expect("valid"), ..new };
    assert!(driver.ensure_room(again, soon()).await.expect("made").created);
}

/// Who is there stays, whatever the SFU. Whether the next one gets in, its capabilities say, and they are believed: an
/// SFU that turns people away is told to drain only when no call is left there.
pub(crate) async fn what_is_said_of_people_while_it_drains_is_true(stand: &mut impl Stand) {
    let driver = stand.driver();
    let there = spec(&*driver, "there", 1, Some(boot(&*driver).await));
    let endpoint = driver.ensure_room(there.clone(), soon()).await.expect("made").endpoint;
    assert!(enter(stand, &*driver, &there, &endpoint, "before").await, "it does not drain yet");
    driver.set_draining(true, soon()).await.expect("drains");
    let people = async || driver.participants(there.room.clone(), soon()).await.expect("asked");
    assert_eq!(people().await, Some(1), "a drain throws nobody out");
    let let_in = enter(stand, &*driver, &there, &endpoint, "meanwhile").await;
    assert_eq!(let_in, driver.capabilities().drain_keeps_sessions, "what the driver says of the SFU is not true");
    assert_eq!(people().await, Some(1 + u32::from(let_in)));
    let asked = RoomSpec { op_id: OpId::new("another").expect("valid id"), ..there.clone() };
    let again = driver.ensure_room(asked, soon()).await.expect("a room that is there may be asked for");
    assert!(!again.created && again.endpoint == endpoint);
    driver.set_draining(false, soon()).await.expect("serves");
    assert!(enter(stand, &*driver, &there, &endpoint, "after").await, "it does not drain any more");
}
