//! The native driver against the mock SFU over real TLS: both ends of the contract at once.

mod driver_support;

use std::sync::Arc;
use std::time::Duration;

use driver_support::{built, end, epoch, room, soon};
use pool::Lane;
use sfu_api::{RoomRef, SessionId, SfuId, Slot, SlotTerm, room_set_hash};
use sfu_mock::{Cluster, ClusterConfig, Fault, Garbage, Target};
use syncer::drivers::{CredentialRequest, DigestOutcome, DigestSpec, DriverError, Ended, ErrorKind, SfuDriver};
use syncer::token::Signer;
use tokio::time::Instant;

struct Rig {
    cluster: Cluster,
    tokens: Arc<Signer>,
    driver: Arc<dyn SfuDriver>,
}

impl Rig {
    async fn start() -> Self {
        let config = ClusterConfig { nodes: 1, ..ClusterConfig::default() };
        let cluster = Cluster::start(config).await.expect("a free address");
        let tls = pool::tls::client_config(cluster.ca_pem().as_bytes(), None).expect("a good authority");
        let lane = Lane::builder("sfu").tls(tls).build().expect("default limits are good");
        let tokens = Arc::new(Signer::generate().expect("randomness"));
        let entry = cluster.catalogue_toml().replace("[[sfus]]", "");
        let driver = built(&lane, &tokens, &entry);
        Self { cluster, tokens, driver }
    }

    async fn broken(&self, fault: Fault) {
        let node = self.cluster.nodes()[0].id.clone();
        self.cluster.fault(&Target::Nodes(vec![node]), &fault).await.expect("a valid fault");
    }

    async fn healed(&self) {
        self.cluster.heal_all().await.expect("the address is free");
    }

    /// Rooms as the SFU holds them.
    fn rooms(&self) -> Vec<String> {
        let node: SfuId = self.cluster.nodes()[0].id.clone();
        self.cluster.rooms(&node).expect("a node").into_iter().map(|room| room.room.to_string()).collect()
    }

    async fn ensure_fails(&self, deadline: Instant) -> DriverError {
        let spec = room(&*self.driver, "broken", 1, None);
        self.driver.ensure_room(spec, deadline).await.expect_err("broken")
    }
}

fn in_a_second() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

#[tokio::test]
async fn rooms_live_and_end() {
    let rig = Rig::start().await;
    let driver = &*rig.driver;
    let boot_id = driver.probe(true, soon()).await.expect("alive").boot_id;
    let spec = room(driver, "c", 1, boot_id.clone());
    let ready = driver.ensure_room(spec.clone(), soon()).await.expect("made");
    assert_eq!((ready.created, ready.boot_id.clone()), (true, boot_id));
    assert!(ready.endpoint.ends_with("/media/g~c"), "{}", ready.endpoint);
    let list = driver.list_rooms(soon()).await.expect("listed");
    assert_eq!((list.rooms.len(), list.rooms[0].epoch), (1, Some(epoch(1))));
    assert_eq!(list.rooms[0].call, Some(spec.call.clone()));
    assert_eq!(driver.participants(spec.room.clone(), soon()).await.expect("listed"), Some(0));
    for (op, expected) in [("end", Ended::Destroyed), ("end", Ended::Destroyed), ("again", Ended::WasAbsent)] {
        let ended = driver.end_room(end(&spec, op), false, soon()).await.expect("ended");
        assert_eq!(ended, expected, "the same operation gets the same answer");
    }
}

#[tokio::test]
async fn ids_that_no_url_likes_come_through() {
    let rig = Rig::start().await;
    for call in ["a/b", "..", "%2ee", "ä?x=1&y#z", "c_d~e", "\"quotes\"", &"x".repeat(120)] {
        let spec = room(&*rig.driver, call, 1, None);
        rig.driver.ensure_room(spec.clone(), soon()).await.expect("made");
        assert_eq!(rig.rooms(), [spec.room.to_string()], "{call}");
        let listed = rig.driver.list_rooms(soon()).await.expect("listed");
        assert!(listed.rooms[0].call.as_ref().is_none_or(|listed| listed.as_str() == call), "{listed:?}");
        let ended =
            rig.driver.end_room(end(&spec, &format!("end-{}", call.len())), false, soon()).await.expect("ended");
        assert_eq!(ended, Ended::Destroyed);
    }
}

#[tokio::test]
async fn a_batch_does_each_operation_on_its_own() {
    let rig = Rig::start().await;
    let driver = &*rig.driver;
    driver.ensure_room(room(driver, "taken", 9, None), soon()).await.expect("made");
    let specs = ["a", "taken", "b"].map(|call| room(driver, call, 1, None));
    let made = driver.ensure_rooms(specs.to_vec(), soon()).await.expect("an exchange");
    let kinds: Vec<_> = made.iter().map(|r| r.as_ref().map(|ready| ready.created).map_err(DriverError::kind)).collect();
    assert_eq!(kinds, [Ok(true), Err(ErrorKind::Fenced), Ok(true)]);
    assert_eq!(made[1].as_ref().expect_err("fenced").highest_epoch(), Some(epoch(9)));
    let endpoint = |n: usize| made[n].as_ref().map(|ready| ready.endpoint.to_string()).expect("made");
    assert!(endpoint(0) != endpoint(2) && endpoint(2).ends_with("~b"), "answers are in the order of the questions");

    let ends = ["b", "never", "taken"].map(|call| end(&room(driver, call, 1, None), &format!("end-{call}")));
    let ended = driver.end_rooms(ends.to_vec(), soon()).await.expect("an exchange");
    let ended: Vec<_> = ended.into_iter().map(|r| r.map_err(|error| error.kind())).collect();
    assert_eq!(ended, [Ok(Ended::Destroyed), Ok(Ended::WasAbsent), Err(ErrorKind::Fenced)]);
    assert_eq!(rig.rooms(), ["g~a", "g~taken"]);
    let whole = driver.ensure_rooms(specs.to_vec(), in_a_second());
    rig.broken(Fault::Kill).await;
    assert!(whole.await.is_err(), "an exchange that fails, fails once for all");
}

#[tokio::test]
async fn the_media_door_takes_our_tokens_and_no_others() {
    let rig = Rig::start().await;
    let jwks = serde_json::to_vec(&rig.tokens.jwks()).expect("JSON");
    rig.cluster.set_jwks(&jwks).expect("our keys are keys");
    let spec = room(&*rig.driver, "c", 1, None);
    let ready = rig.driver.ensure_room(spec.clone(), soon()).await.expect("made");
    let session = SessionId::new("s-1").expect("valid id");
    let request = CredentialRequest { session: &session, room: &spec.room, epoch: spec.epoch };
    let token = rig.driver.credential(&request).expect("signed").into_token();

    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let ca = reqwest::Certificate::from_pem(rig.cluster.ca_pem().as_bytes()).expect("a certificate");
    let http = reqwest::Client::builder().tls_certs_only([ca]).build().expect("a client");
    let attach = async |session: &str, token: &str| {
        let url = format!("{}/{session}", ready.endpoint);
        http.put(url).bearer_auth(token).send().await.expect("answered").status().as_u16()
    };
    assert_eq!(attach("s-1", &token).await, 204);
    assert_eq!(attach("s-2", &token).await, 401, "another session's token");
    assert_eq!(attach("s-1", "garbage").await, 401);
    assert_eq!(rig.driver.participants(spec.room.clone(), soon()).await.expect("listed"), Some(1));
    assert_eq!(rig.driver.end_room(end(&spec, "end"), false, soon()).await.expect("asked"), Ended::Occupied);
}

#[tokio::test]
async fn r07_a_lower_term_is_fenced_and_learns_the_higher() {
    let rig = Rig::start().await;
    let mut newer = room(&*rig.driver, "c", 1, None);
    newer.owner_term.revision = 9;
    newer.epoch.term = newer.owner_term;
    rig.driver.ensure_room(newer.clone(), soon()).await.expect("made");
    let older = room(&*rig.driver, "c", 2, None);
    let error = rig.driver.ensure_room(older.clone(), soon()).await.expect_err("stale");
    assert_eq!((error.kind(), error.highest_term()), (ErrorKind::Fenced, Some(newer.owner_term)));
    // A digest is refused whole, and learns for which of its slots.
    let other = Slot::new((older.slot.get() + 1) % 4096).expect("a slot");
    let terms = [older.slot, other].map(|slot| SlotTerm { slot, term: older.owner_term }).to_vec();
    let digest = DigestSpec { boot_id: None, terms, rooms: 0, hash: 0, named: None };
    let error = rig.driver.digest(digest, soon()).await.expect_err("stale");
    assert_eq!(error.fenced_slots(), [SlotTerm { slot: newer.slot, term: newer.owner_term }]);
}

#[tokio::test]
async fn r13_a_restart_is_named_and_the_room_made_again() {
    let rig = Rig::start().await;
    let first = rig.driver.probe(true, soon()).await.expect("alive").boot_id;
    rig.broken(Fault::Kill).await;
    let error = rig.driver.probe(true, soon()).await.expect_err("dead");
    assert!(error.is_dead_evidence(), "{error}");
    rig.healed().await;
    let second = rig.driver.probe(true, soon()).await.expect("alive").boot_id;
    assert!(second.is_some() && second != first);
    let error = rig.driver.ensure_room(room(&*rig.driver, "c", 1, first), soon()).await.expect_err("restarted");
    assert_eq!((error.kind(), error.boot_id()), (ErrorKind::Restarted, second.as_ref()));
    assert!(rig.driver.ensure_room(room(&*rig.driver, "c", 1, second), soon()).await.expect("made").created);
}

#[tokio::test]
async fn r13_silence_is_told_apart_by_how_far_the_request_came() {
    let rig = Rig::start().await;
    rig.driver.probe(true, soon()).await.expect("alive");
    rig.broken(Fault::Hang).await;
    let error = rig.ensure_fails(in_a_second()).await;
    assert_eq!(error.kind(), ErrorKind::TimedOutAfterSend, "{error}");
    assert!(error.room_may_exist() && !error.is_dead_evidence());
    rig.healed().await;

    let rig = Rig::start().await;
    rig.broken(Fault::BlackHole).await;
    let error = rig.driver.probe(true, in_a_second()).await.expect_err("silent");
    assert_eq!(error.kind(), ErrorKind::TimedOutBeforeSend, "{error}");
    assert!(!error.room_may_exist() && !error.is_dead_evidence());
    rig.healed().await;
}

#[tokio::test]
async fn errors_and_garbage_harm_nobody() {
    let rig = Rig::start().await;
    rig.broken(Fault::Error { status: 503, rate: 1.0, retry_after_s: Some(2), ghost: true }).await;
    let error = rig.ensure_fails(soon()).await;
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Overloaded, Some(Duration::from_secs(2))));
    rig.healed().await;
    for what in [Garbage::Body, Garbage::ContentType, Garbage::Huge, Garbage::Length] {
        rig.broken(Fault::Garbage { what }).await;
        let error = rig.ensure_fails(soon()).await;
        assert_eq!(error.kind(), ErrorKind::Protocol, "{what:?}: {error}");
        assert!(error.room_may_exist());
        rig.healed().await;
        let probe = rig.driver.probe(false, soon()).await;
        assert!(probe.is_ok(), "{what:?}: {probe:?}");
    }
    assert_eq!(rig.rooms(), ["g~broken"], "the work was done behind the garbage");
}

#[tokio::test]
async fn draining_refuses_new_rooms() {
    let rig = Rig::start().await;
    rig.driver.set_draining(true, soon()).await.expect("taken");
    assert!(!rig.driver.probe(false, soon()).await.expect("alive").accepting);
    assert_eq!(rig.ensure_fails(soon()).await.kind(), ErrorKind::Draining);
    rig.driver.set_draining(false, soon()).await.expect("taken");
    assert!(rig.driver.ensure_room(room(&*rig.driver, "c", 1, None), soon()).await.expect("made").created);
}

#[tokio::test]
async fn digests_find_what_differs() {
    let rig = Rig::start().await;
    let (kept, lost) = (room(&*rig.driver, "kept", 1, None), room(&*rig.driver, "lost", 1, None));
    let surplus = room(&*rig.driver, "surplus", 1, None);
    for spec in [&kept, &surplus] {
        rig.driver.ensure_room(spec.clone(), soon()).await.expect("made");
    }
    let ours = [&kept, &lost];
    let mut digest = DigestSpec {
        boot_id: None,
        terms: vec![SlotTerm { slot: kept.slot, term: kept.owner_term }],
        rooms: 2,
        hash: room_set_hash(ours.iter().map(|spec| (&spec.room, spec.epoch))),
        named: None,
    };
    let ask = async |digest: &DigestSpec| match rig.driver.digest(digest.clone(), soon()).await.expect("answered") {
        DigestOutcome::Answer(answer) => answer,
        DigestOutcome::Unsupported => panic!("the native contract has digests"),
    };
    assert!(!ask(&digest).await.matches);
    digest.named = Some(ours.iter().map(|spec| RoomRef { room: spec.room.clone(), epoch: spec.epoch }).collect());
    let found = ask(&digest).await.differences.expect("differences");
    assert_eq!(found.missing, [lost.room]);
    assert_eq!(found.surplus.iter().map(|state| &state.room).collect::<Vec<_>>(), [&surplus.room]);
}
