//! The Janus driver against Janus itself.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sfu_api::{BootId, CallId, CallKind, Epoch, GuildId, OpId, OwnerTerm, Slot};
use syncer::drivers::{EndSpec, Ended, ErrorKind, JanusPlugin, RoomSpec, SfuDriver};
use tokio::time::Instant;

use crate::janus::{ADMIN_KEY, ADMIN_SECRET, Janus, soon};
use crate::pki::Authority;

const PLUGINS: [JanusPlugin; 2] = [JanusPlugin::Videoroom, JanusPlugin::Audiobridge];

/// What to ensure for a call at epoch `1.1.n`.
pub(crate) fn room(driver: &dyn SfuDriver, call: &str, n: u64, boot_id: Option<BootId>) -> RoomSpec {
    let guild = GuildId::new("g").expect("valid id");
    let call = CallId::new(call).expect("valid id");
    let slot = Slot::new(7).expect("valid slot");
    let epoch = Epoch { term: OwnerTerm { generation: 1, revision: 1 }, n };
    RoomSpec {
        room: driver.room_name(&guild, &call, slot, epoch),
        op_id: OpId::new(format!("op-{call}-{n}")).expect("valid id"),
        guild,
        call,
        kind: CallKind::Voice,
        slot,
        owner_term: epoch.term,
        epoch,
        boot_id,
        capacity: 10,
    }
}

/// How to end the room of `spec`.
pub(crate) fn end_of(spec: &RoomSpec) -> EndSpec {
    EndSpec::of(spec, OpId::new("end").expect("valid id"))
}

/// A deadline that a frozen server misses.
fn shortly() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

#[tokio::test]
async fn rooms_come_and_go_in_januss_own_list() {
    let authority = Authority::new();
    let janus = Janus::start("sfu-1", &authority).await;
    for plugin in PLUGINS {
        let driver = janus.driver(plugin);
        let boot_id = driver.probe(false, soon()).await.expect("alive").boot_id;
        let spec = room(&*driver, "c", 3, boot_id);
        let ready = driver.ensure_room(spec.clone(), soon()).await.expect("made");
        assert!(ready.created);
        assert_eq!(janus.rooms(plugin).await, ["tl~7~1.1.3~g~c"]);
        assert!(!driver.ensure_room(spec.clone(), soon()).await.expect("there").created);
        let exists = janus.plugin(plugin, json!({ "request": "exists", "room": "tl~7~1.1.3~g~c" })).await;
        assert_eq!(exists["exists"], true);

        let listed = driver.list_rooms(soon()).await.expect("listed");
        assert_eq!((listed.rooms.len(), &listed.rooms[0].room), (1, &spec.room));
        assert_eq!(listed.load.map(|load| (load.calls, load.participants)), Some((1, 0)));
        assert_eq!(driver.participants(spec.room.clone(), soon()).await.expect("asked"), Some(0));

        let end = end_of(&spec);
        assert_eq!(driver.end_room(end.clone(), false, soon()).await.expect("ended"), Ended::Destroyed);
        assert_eq!(driver.end_room(end.clone(), false, soon()).await.expect("ended"), Ended::WasAbsent);
        assert_eq!(driver.end_room(end, true, soon()).await.expect("ended"), Ended::WasAbsent);
        assert_eq!(driver.participants(spec.room, soon()).await.expect("asked"), None);
        assert!(janus.rooms(plugin).await.is_empty());
    }
}

#[tokio::test]
async fn two_hundred_rooms_are_made_at_once_and_listed() {
    let authority = Authority::new();
    let janus = Janus::start("sfu-1", &authority).await;
    let driver = janus.driver(JanusPlugin::Videoroom);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let driver = Arc::clone(&driver);
        tasks.spawn(async move {
            let spec = room(&*driver, &format!("c{n}"), 1, None);
            driver.ensure_room(spec, soon()).await.map(|ready| ready.created)
        });
    }
    let made = tasks.join_all().await;
    assert!(made.iter().all(|made| made.as_ref().is_ok_and(|created| *created)), "{made:?}");
    let listed = driver.list_rooms(soon()).await.expect("listed");
    assert_eq!(listed.rooms.len(), 200);
    assert_eq!(listed.load.map(|load| load.calls), Some(200));
}

#[tokio::test]
async fn sixteen_syncers_agree_on_one_incarnation() {
    let authority = Authority::new();
    let mut janus = Janus::start("sfu-1", &authority).await;
    for plugin in PLUGINS {
        for _ in 0..2 {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..16 {
                let driver = janus.driver(plugin);
                tasks.spawn(async move { driver.probe(false, soon()).await.map(|probe| probe.boot_id) });
            }
            let mut seen: Vec<_> = tasks.join_all().await.into_iter().map(|seen| seen.expect("alive")).collect();
            seen.dedup();
            assert_eq!(seen.len(), 1, "{seen:?}");
            janus.start_again().await;
        }
    }
}

#[tokio::test]
async fn a_restart_is_noticed_and_rooms_can_be_made_again() {
    let authority = Authority::new();
    let mut janus = Janus::start("sfu-1", &authority).await;
    for plugin in PLUGINS {
        let (one, two) = (janus.driver(plugin), janus.driver(plugin));
        let first = one.probe(false, soon()).await.expect("alive").boot_id;
        assert_eq!(two.probe(false, soon()).await.expect("alive").boot_id, first);
        one.ensure_room(room(&*one, "c", 1, first.clone()), soon()).await.expect("made");

        janus.kill();
        let error = one.probe(true, soon()).await.expect_err("gone");
        assert!(error.is_dead_evidence(), "{error}");
        janus.start_again().await;

        let second = two.probe(false, soon()).await.expect("alive").boot_id;
        assert!(second.is_some() && second != first);
        // The failed dial is remembered for a moment; the reconciler would come back just so.
        let deadline = soon();
        let error = loop {
            let stale = room(&*one, "c", 1, first.clone());
            let error = one.ensure_room(stale, soon()).await.expect_err("another incarnation");
            if !matches!(error.kind(), ErrorKind::FailFast | ErrorKind::Reset) || Instant::now() >= deadline {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!((error.kind(), error.boot_id()), (ErrorKind::Restarted, second.as_ref()));
        assert!(janus.rooms(plugin).await.is_empty());
        let ready = one.ensure_room(room(&*one, "c", 1, second), soon()).await.expect("made again");
        assert!(ready.created);
        assert_eq!(janus.rooms(plugin).await, ["tl~7~1.1.1~g~c"]);
    }
}

#[tokio::test]
async fn a_frozen_server_times_out_and_is_the_same_when_it_thaws() {
    let authority = Authority::new();
    let janus = Janus::start("sfu-1", &authority).await;
    let driver = janus.driver(JanusPlugin::Videoroom);
    let ready = driver.ensure_room(room(&*driver, "c", 1, None), soon()).await.expect("made");
    janus.freeze().await;
    for fresh in [false, true] {
        let error = driver.probe(fresh, shortly()).await.expect_err("frozen");
        assert!(error.is_time_out() && !error.is_dead_evidence(), "fresh {fresh}: {error}");
    }
    janus.thaw();
    let probe = driver.probe(true, soon()).await.expect("alive again");
    assert_eq!(probe.boot_id, ready.boot_id);
    assert_eq!(janus.rooms(JanusPlugin::Videoroom).await, ["tl~7~1.1.1~g~c"]);
}

#[tokio::test]
async fn draining_is_janus_own_switch_and_is_honoured() {
    let authority = Authority::new();
    let janus = Janus::start("sfu-1", &authority).await;
    let (one, two) = (janus.driver(JanusPlugin::Audiobridge), janus.driver(JanusPlugin::Audiobridge));
    one.ensure_room(room(&*one, "old", 1, None), soon()).await.expect("made");
    one.set_draining(true, soon()).await.expect("taken");
    for driver in [&one, &two] {
        assert!(!driver.probe(false, soon()).await.expect("alive").accepting);
        let error = driver.ensure_room(room(&**driver, "new", 1, None), soon()).await.expect_err("draining");
        assert_eq!(error.kind(), ErrorKind::Draining);
        assert!(!driver.ensure_room(room(&**driver, "old", 1, None), soon()).await.expect("there").created);
    }
    assert_eq!(janus.rooms(JanusPlugin::Audiobridge).await, ["tl~7~1.1.1~g~old"]);
    one.set_draining(false, soon()).await.expect("taken");
    assert!(one.ensure_room(room(&*one, "new", 1, None), soon()).await.expect("made").created);
}

#[tokio::test]
async fn wrong_secrets_and_certificates_are_named_and_not_shown() {
    let authority = Authority::new();
    let janus = Janus::start("sfu-1", &authority).await;
    let entry = janus.entry(JanusPlugin::Videoroom);
    let table = [
        (entry.replace(ADMIN_SECRET, "wrong-one"), authority.pem().to_owned(), ErrorKind::Rejected, "admin_secret"),
        (entry.replace(ADMIN_KEY, "wrong-one"), authority.pem().to_owned(), ErrorKind::Rejected, "admin_key"),
        (entry.replace("/admin\"", "/nowhere\""), authority.pem().to_owned(), ErrorKind::Protocol, "404"),
        (entry, Authority::new().pem().to_owned(), ErrorKind::Tls, "TLS"),
    ];
    for (entry, ca_pem, kind, hint) in table {
        let driver = janus.driver_with(&entry, &ca_pem);
        let error = driver.ensure_room(room(&*driver, "c", 1, None), soon()).await.expect_err("must fail");
        assert_eq!(error.kind(), kind, "{error}");
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(hint) && !shown.contains("wrong-one"), "{shown}");
    }
    assert!(janus.rooms(JanusPlugin::Videoroom).await.is_empty());
}
