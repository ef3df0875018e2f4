//! What every driver has to do: one suite, run against each kind of SFU.
//!
//! A new driver implements [`Stand`] for a test server of its kind and calls [`conformance!`]. What an SFU
//! cannot do, its capabilities say; the suite then checks what the driver does instead.

mod door;
mod drain;
mod secrets;
mod strangers;

use std::sync::Arc;
use std::time::Duration;

use sfu_api::{
    BootId, CallId, CallKind, Epoch, GuildId, OpId, OwnerTerm, RoomId, RoomRef, SessionId, Slot, SlotTerm,
    room_set_hash,
};
use syncer::drivers::{CredentialRequest, DigestOutcome, DigestSpec, EndSpec, Ended, ErrorKind, RoomSpec, SfuDriver};
use tokio::time::Instant;

pub(crate) use self::door::Door;
pub(crate) use self::drain::{r14_draining_refuses_new_rooms_only, what_is_said_of_people_while_it_drains_is_true};
pub(crate) use self::secrets::{credentials_are_secret, secrets_are_in_no_error_and_no_debug};
pub(crate) use self::strangers::foreign_rooms_are_load_and_nothing_else;

/// An SFU to try a driver on. It starts well and without rooms.
pub(crate) trait Stand {
    /// A driver for it, as another syncer would have one.
    fn driver(&self) -> Arc<dyn SfuDriver>;
    /// Ends its process and starts it again: its rooms are gone.
    async fn restart(&mut self);
    /// Kills it for good, or gives the driver for one that was killed.
    async fn dead(&mut self) -> Arc<dyn SfuDriver>;
    /// Freezes it for good, or gives the driver for one that is frozen: it takes connections and never
    /// answers.
    async fn hung(&mut self) -> Arc<dyn SfuDriver>;
    /// A driver whose every connection goes through a door that counts them.
    async fn counted(&mut self) -> (Arc<dyn SfuDriver>, Door);
    /// Somebody goes into the room at `endpoint`, as the driver told, and stays. False: the SFU turned them away
    /// because it drains.
    async fn enter(&mut self, room: &RoomId, endpoint: &str, session: &SessionId, token: &str) -> bool;
    /// Makes rooms as somebody else would who uses the same SFU: by its own means, without a driver, empty, and with
    /// names that a driver has to tell from its own.
    async fn make_foreign(&mut self) -> Vec<RoomId>;
    /// Whether the server has this room, by its own account.
    async fn is_there(&mut self, room: &RoomId) -> bool;
    /// A driver for a server that, in one way or another, answers some of what it is asked with an error or nonsense,
    /// and repeats the secrets it was sent where it can. `None`: there are no more than `n` ways.
    async fn lying(&mut self, n: usize) -> Option<Arc<dyn SfuDriver>>;
    /// What opens this SFU and its rooms, as far as the stand knows by now; credentials the suite knows itself.
    fn secrets(&self) -> Vec<String>;
}

/// Runs the suite as tests of their own in a module called `$name`; `$start` makes a [`Stand`].
macro_rules! conformance {
    ($name:ident, $start:expr, $suite:path) => {
        mod $name {
            use super::*;
            use $suite as suite;
            conformance!(@each suite, $start;
                names_tell_calls_apart, rooms_come_and_go, an_incarnation_lasts_until_a_restart,
                a_request_meant_for_another_incarnation_is_refused, an_older_epoch_harms_no_newer_one,
                a_fresh_probe_has_a_connection_of_its_own,
                r13_a_crash_is_evidence_of_death, r17_a_hang_is_not, r14_draining_refuses_new_rooms_only,
                what_is_said_of_people_while_it_drains_is_true,
                credentials_are_secret, secrets_are_in_no_error_and_no_debug,
                rooms_with_people_in_them_end_by_force_only, foreign_rooms_are_load_and_nothing_else,
                what_is_there_can_be_compared, many_rooms_are_answered_in_order,
                r19_a_dropped_request_does_no_harm);
        }
    };
    (@each $suite:ident, $start:expr; $($check:ident),+) => {
        $(#[tokio::test]
        async fn $check() {
            $suite::$check(&mut $start.await).await;
        })+
    };
}
pub(crate) use conformance;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// A deadline that a server which never answers misses.
fn shortly() -> Instant {
    Instant::now() + Duration::from_millis(400)
}

fn slot() -> Slot {
    Slot::new(7).expect("valid slot")
}

fn epoch(n: u64) -> Epoch {
    Epoch { term: OwnerTerm { generation: 1, revision: 1 }, n }
}

fn spec(driver: &dyn SfuDriver, call: &str, n: u64, boot_id: Option<BootId>) -> RoomSpec {
    let (guild, call) = (GuildId::new("g").expect("valid id"), CallId::new(call).expect("valid id"));
    RoomSpec {
        room: driver.room_name(&guild, &call, slot(), epoch(n)),
        op_id: OpId::new(format!("op-{call}-{n}")).expect("valid id"),
        guild,
        call,
        kind: CallKind::Voice,
        slot: slot(),
        owner_term: epoch(n).term,
        epoch: epoch(n),
        boot_id,
        capacity: 10,
    }
}

fn end(spec: &RoomSpec, op: &str) -> EndSpec {
    EndSpec::of(spec, OpId::new(op).expect("valid id"))
}

async fn boot(driver: &dyn SfuDriver) -> BootId {
    driver.probe(false, soon()).await.expect("alive").boot_id.expect("every kind has an incarnation")
}

/// `session` goes into the room of `spec`; false when the SFU turns it away.
async fn enter(stand: &mut impl Stand, driver: &dyn SfuDriver, spec: &RoomSpec, endpoint: &str, session: &str) -> bool {
    let session = SessionId::new(session).expect("valid id");
    let request = CredentialRequest { session: &session, room: &spec.room, epoch: spec.epoch };
    let token = driver.credential(&request).expect("made").into_token();
    stand.enter(&spec.room, endpoint, &session, &token).await
}

pub(crate) async fn names_tell_calls_apart(stand: &mut impl Stand) {
    let driver = stand.driver();
    let ids = |guild: &str, call: &str| (GuildId::new(guild).expect("valid"), CallId::new(call).expect("valid"));
    let name = |guild: &str, call: &str, n| {
        let (guild, call) = ids(guild, call);
        driver.room_name(&guild, &call, slot(), epoch(n))
    };
    let long = "x".repeat(128);
    let names = [("g", "c"), ("g", "d"), ("h", "c"), ("g~c", "d"), ("g", "c~d"), (&long, "c"), (&long, &long)];
    let made: std::collections::BTreeSet<_> = names.iter().map(|(g, c)| name(g, c, 1)).collect();
    assert_eq!(made.len(), names.len(), "two calls share a name: {made:?}");
    assert_eq!(name("g", "c", 1), name("g", "c", 1));
    for (guild, call) in names {
        let told = driver.call_of(&name(guild, call, 1));
        assert!(
            told.is_none_or(|told| told == ids(guild, call)),
            "the room of {guild} and {call} is taken for another's"
        );
    }
    let told = driver.call_of(&name("g", "c", 1)).is_some();
    assert_eq!(told, driver.capabilities().fences, "a room may be kept where the SFU fences, and there alone");
}

pub(crate) async fn rooms_come_and_go(stand: &mut impl Stand) {
    let driver = stand.driver();
    let spec = spec(&*driver, "c", 3, Some(boot(&*driver).await));
    let ready = driver.ensure_room(spec.clone(), soon()).await.expect("made");
    assert!(ready.created && !ready.endpoint.is_empty());
    let again = driver.ensure_room(spec.clone(), soon()).await.expect("there");
    assert_eq!(again.endpoint, ready.endpoint, "the same room is somewhere else");
    let listed = driver.list_rooms(soon()).await.expect("listed");
    let found = listed.rooms.iter().find(|r| r.room == spec.room).expect("the room is listed");
    assert_eq!((found.participants, found.epoch, found.slot), (0, Some(epoch(3)), Some(slot())));
    assert_eq!(driver.participants(spec.room.clone(), soon()).await.expect("asked"), Some(0));
    assert_eq!(driver.end_room(end(&spec, "e1"), false, soon()).await.expect("ended"), Ended::Destroyed);
    assert_eq!(driver.end_room(end(&spec, "e2"), false, soon()).await.expect("ended"), Ended::WasAbsent);
    assert_eq!(driver.participants(spec.room, soon()).await.expect("asked"), None);
    assert!(driver.list_rooms(soon()).await.expect("listed").rooms.is_empty());
}

pub(crate) async fn an_incarnation_lasts_until_a_restart(stand: &mut impl Stand) {
    let (one, two) = (stand.driver(), stand.driver());
    let first = boot(&*one).await;
    assert_eq!((boot(&*one).await, boot(&*two).await), (first.clone(), first.clone()), "two syncers disagree");
    let spec = spec(&*one, "c", 1, Some(first.clone()));
    one.ensure_room(spec.clone(), soon()).await.expect("made");
    stand.restart().await;
    let second = boot(&*two).await;
    assert_ne!(second, first, "a restart was not noticed");
    assert_eq!(boot(&*one).await, second, "two syncers disagree");
    assert_eq!(two.participants(spec.room, soon()).await.expect("asked"), None, "rooms do not outlive it");
}

pub(crate) async fn a_request_meant_for_another_incarnation_is_refused(stand: &mut impl Stand) {
    let driver = stand.driver();
    let first = boot(&*driver).await;
    driver.ensure_room(spec(&*driver, "c", 1, Some(first.clone())), soon()).await.expect("made");
    stand.restart().await;
    let stale = spec(&*driver, "c", 2, Some(first));
    let error = driver.ensure_room(stale.clone(), soon()).await.expect_err("for the one before");
    assert_eq!(error.kind(), ErrorKind::Restarted, "{error}");
    assert!(!error.is_dead_evidence());
    let fresh = RoomSpec { boot_id: Some(boot(&*driver).await), ..spec(&*driver, "c", 3, None) };
    assert!(driver.ensure_room(fresh, soon()).await.expect("made again").created);
}

pub(crate) async fn an_older_epoch_harms_no_newer_one(stand: &mut impl Stand) {
    let driver = stand.driver();
    let boot = Some(boot(&*driver).await);
    let (old, new) = (spec(&*driver, "c", 3, boot.clone()), spec(&*driver, "c", 5, boot));
    driver.ensure_room(new.clone(), soon()).await.expect("made");
    if driver.capabilities().fences {
        assert_eq!(old.room, new.room, "an SFU that fences needs one name for a call");
        let error = driver.ensure_room(old.clone(), soon()).await.expect_err("older");
        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
        let error = driver.end_room(end(&old, "e"), false, soon()).await.expect_err("older");
        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    } else {
        assert_ne!(old.room, new.room, "an SFU that does not fence needs a name for each epoch");
        driver.end_room(end(&old, "e"), false, soon()).await.expect("nothing to end");
    }
    assert_eq!(driver.participants(new.room, soon()).await.expect("asked"), Some(0), "the newer room is gone");
}

/// What it sees there is news of the host; a connection of long ago may hold while the host takes no new ones.
pub(crate) async fn a_fresh_probe_has_a_connection_of_its_own(stand: &mut impl Stand) {
    let (driver, door) = stand.counted().await;
    driver.probe(false, soon()).await.expect("alive");
    let warm = door.accepted();
    assert!(warm > 0, "the driver goes past the door");
    let ordinary = async || {
        driver.probe(false, soon()).await.expect("alive");
        driver.list_rooms(soon()).await.expect("listed");
    };
    ordinary().await;
    assert_eq!(door.accepted(), warm, "an ordinary request uses the connection that is there");
    for n in 1..=3 {
        driver.probe(true, soon()).await.expect("alive");
        assert_eq!(door.accepted(), warm + n, "a fresh probe opens one connection");
        ordinary().await;
        assert_eq!(door.accepted(), warm + n, "an ordinary request uses a connection that is there");
    }
}

pub(crate) async fn r13_a_crash_is_evidence_of_death(stand: &mut impl Stand) {
    let driver = stand.dead().await;
    let error = driver.probe(true, soon()).await.expect_err("dead");
    assert!(error.is_dead_evidence(), "{:?}: {error}", error.kind());
    let error = driver.ensure_room(spec(&*driver, "c", 1, None), soon()).await.expect_err("dead");
    assert!(!error.is_time_out() && !error.room_may_exist(), "{:?}: {error}", error.kind());
}

pub(crate) async fn r17_a_hang_is_not(stand: &mut impl Stand) {
    let driver = stand.hung().await;
    for fresh in [false, true] {
        let error = driver.probe(fresh, shortly()).await.expect_err("hung");
        assert!(error.is_time_out() && !error.is_dead_evidence(), "{:?}: {error}", error.kind());
    }
    // A probe that timed out before it was sent makes the next one fail at once: it is not asked twice.
    let error = driver.ensure_room(spec(&*driver, "c", 1, None), shortly()).await.expect_err("hung");
    let known = error.is_time_out() || error.kind() == ErrorKind::FailFast;
    assert!(known && !error.is_dead_evidence(), "{:?}: {error}", error.kind());
}

pub(crate) async fn rooms_with_people_in_them_end_by_force_only(stand: &mut impl Stand) {
    let driver = stand.driver();
    let boot = Some(boot(&*driver).await);
    let [spec, other] = [("c", 1), ("d", 2)].map(|(call, n)| spec(&*driver, call, n, boot.clone()));
    let endpoint = driver.ensure_room(spec.clone(), soon()).await.expect("made").endpoint;
    driver.ensure_room(other.clone(), soon()).await.expect("made");
    assert!(enter(stand, &*driver, &spec, &endpoint, "somebody").await);
    assert_eq!(driver.participants(spec.room.clone(), soon()).await.expect("asked"), Some(1));
    assert_eq!(driver.end_room(end(&spec, "e1"), false, soon()).await.expect("asked"), Ended::Occupied);
    let ends = vec![end(&spec, "e2"), end(&other, "e3")];
    let ended = driver.end_rooms(ends, soon()).await.expect("answered").into_iter();
    let ended: Vec<Ended> = ended.map(|ended| ended.expect("asked")).collect();
    assert_eq!(ended, [Ended::Occupied, Ended::Destroyed], "of many, those with people stay");
    assert_eq!(driver.end_room(end(&spec, "e4"), true, soon()).await.expect("asked"), Ended::Destroyed);
    assert_eq!(driver.participants(spec.room, soon()).await.expect("asked"), None);
}

pub(crate) async fn what_is_there_can_be_compared(stand: &mut impl Stand) {
    let driver = stand.driver();
    let boot = boot(&*driver).await;
    let spec = spec(&*driver, "c", 1, Some(boot.clone()));
    driver.ensure_room(spec.clone(), soon()).await.expect("made");
    let digest = |rooms: &[(&RoomId, Epoch)], named: Option<Vec<RoomRef>>| DigestSpec {
        boot_id: Some(boot.clone()),
        terms: vec![SlotTerm { slot: slot(), term: epoch(1).term }],
        rooms: u32::try_from(rooms.len()).expect("few"),
        hash: room_set_hash(rooms.iter().copied()),
        named,
    };
    let same = driver.digest(digest(&[(&spec.room, spec.epoch)], None), soon()).await.expect("answered");
    if !driver.capabilities().digests {
        assert_eq!(same, DigestOutcome::Unsupported);
        return;
    }
    assert!(matches!(same, DigestOutcome::Answer(answer) if answer.matches));
    let nothing = driver.digest(digest(&[], Some(Vec::new())), soon()).await.expect("answered");
    let DigestOutcome::Answer(nothing) = nothing else { panic!("{nothing:?}") };
    let surplus = nothing.differences.expect("they differ").surplus;
    assert!(!nothing.matches && surplus.iter().map(|r| &r.room).eq([&spec.room]), "{surplus:?}");
}

pub(crate) async fn many_rooms_are_answered_in_order(stand: &mut impl Stand) {
    let driver = stand.driver();
    let boot = Some(boot(&*driver).await);
    let specs: Vec<RoomSpec> = (0..10).map(|n| spec(&*driver, &format!("c{n}"), n + 1, boot.clone())).collect();
    if !driver.capabilities().batches {
        return; // it is never asked for more than one
    }
    let made = driver.ensure_rooms(specs.clone(), soon()).await.expect("answered");
    assert_eq!(made.len(), specs.len());
    for (spec, ready) in specs.iter().zip(made) {
        let endpoint = ready.expect("made").endpoint;
        assert!(endpoint.contains(spec.room.as_str()), "{endpoint} is not for {}", spec.room);
    }
    let ends = specs.iter().enumerate().filter(|(n, _)| n % 2 == 0);
    let ended = driver.end_rooms(ends.map(|(n, spec)| end(spec, &format!("e{n}"))).collect(), soon()).await;
    let ended: Vec<Ended> = ended.expect("answered").into_iter().map(|ended| ended.expect("ended")).collect();
    assert_eq!(ended, [Ended::Destroyed; 5]);
    for (n, spec) in specs.into_iter().enumerate() {
        let there = driver.participants(spec.room, soon()).await.expect("asked");
        assert_eq!(there, (n % 2 == 1).then_some(0), "room {n}");
    }
}

pub(crate) async fn r19_a_dropped_request_does_no_harm(stand: &mut impl Stand) {
    let driver = stand.driver();
    let boot = Some(boot(&*driver).await);
    for (n, wait_us) in (1..=8).zip([0, 50, 100, 200, 400, 800, 1_600, 3_200]) {
        let spec = spec(&*driver, &format!("c{n}"), n, boot.clone());
        let sent = tokio::time::timeout(Duration::from_micros(wait_us), driver.ensure_room(spec.clone(), soon())).await;
        drop(sent);
        // The same operation again: it is done once, whether or not the first one arrived.
        driver.ensure_room(spec.clone(), soon()).await.expect("made");
        assert_eq!(driver.participants(spec.room, soon()).await.expect("asked"), Some(0));
    }
    assert_eq!(driver.list_rooms(soon()).await.expect("listed").rooms.len(), 8);
}
