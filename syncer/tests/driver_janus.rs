//! The Janus driver against a scripted Janus: the traps of its admin API, one by one.

mod driver_support;

use std::sync::Arc;

use driver_support::fake_janus::FakeJanus;
use driver_support::{KEY, SECRET, closed_port, end, epoch, janus, lane, room, shortly, silent_server, soon};
use serde_json::{Value, json};
use sfu_api::{GuildId, RoomId, SessionId};
use syncer::drivers::{
    CredentialRequest, DigestOutcome, DigestSpec, DriverError, Ended, ErrorKind, JanusPlugin, SfuDriver,
};
use wiremock::ResponseTemplate;

const PLUGINS: [JanusPlugin; 2] = [JanusPlugin::Videoroom, JanusPlugin::Audiobridge];

async fn pair(plugin: JanusPlugin) -> (FakeJanus, Arc<dyn SfuDriver>) {
    let fake = FakeJanus::start(plugin).await;
    let driver = janus(&lane(), &fake.url(), plugin);
    (fake, driver)
}

/// The error of an ensure whose `request` gets this answer.
async fn ensure_against(plugin: JanusPlugin, request: &str, answer: ResponseTemplate) -> DriverError {
    let (fake, driver) = pair(plugin).await;
    driver.probe(false, soon()).await.expect("alive");
    let before = fake.asked(request).len();
    fake.script(request, answer);
    let error = driver.ensure_room(room(&*driver, "c", 1, None), soon()).await.expect_err("must fail");
    assert_eq!(fake.asked(request).len(), before + 1, "a driver never retries");
    error
}

/// A plugin's error in HTTP 200, as the answer to the driver's next request but `skip`.
fn plugin_error(plugin: JanusPlugin, transaction: &str, code: i64) -> ResponseTemplate {
    let response = json!({ plugin.as_str(): "event", "error_code": code, "error": "not like this" });
    let body = json!({ "janus": "success", "transaction": transaction, "response": response });
    ResponseTemplate::new(200).set_body_json(body)
}

#[tokio::test]
async fn ensure_makes_a_private_room_whose_name_carries_the_epoch() {
    for plugin in PLUGINS {
        let (fake, driver) = pair(plugin).await;
        let ready = driver.ensure_room(room(&*driver, "c", 3, None), soon()).await.expect("made");
        assert!(ready.created && ready.boot_id.is_some());
        let name = plugin.as_str();
        assert_eq!(&*ready.endpoint, format!("janus+{}/janus?room=tl~7~1.1.3~g~c&plugin={name}", fake.url()));

        let created = fake.asked("create").pop().expect("asked");
        assert_eq!((&created["admin_secret"], &created["plugin"]), (&json!(SECRET), &json!(plugin.package())));
        let request = &created["request"];
        assert_eq!((&request["room"], &request["admin_key"]), (&json!("tl~7~1.1.3~g~c"), &json!(KEY)));
        assert_eq!(request["is_private"], true);
        assert_eq!(request["allow_rtp_participants"] == true, plugin == JanusPlugin::Audiobridge);
        assert_eq!(request["publishers"] == 10, plugin == JanusPlugin::Videoroom);

        let again = driver.ensure_room(room(&*driver, "c", 3, ready.boot_id), soon()).await.expect("there");
        assert!(!again.created, "ensuring twice makes one room");
    }
}

#[tokio::test]
async fn the_credential_is_the_rooms_pin_and_never_its_secret() {
    let (fake, driver) = pair(JanusPlugin::Videoroom).await;
    let spec = room(&*driver, "c", 1, None);
    let session = SessionId::new("s-1").expect("valid id");
    driver.ensure_room(spec.clone(), soon()).await.expect("made");
    let request = CredentialRequest { session: &session, room: &spec.room, epoch: spec.epoch };
    let pin = driver.credential(&request).expect("derived").into_token();
    let created = fake.asked("create").pop().expect("asked");
    assert_eq!(created["request"]["pin"], pin.as_str());
    assert_ne!(created["request"]["secret"], pin.as_str());
    let next = room(&*driver, "c", 2, None);
    let request = CredentialRequest { session: &session, room: &next.room, epoch: next.epoch };
    assert_ne!(driver.credential(&request).expect("derived").into_token(), pin, "a new epoch has a new credential");
}

#[tokio::test]
async fn core_errors_in_http_200_are_errors() {
    let table = [
        (403, ErrorKind::Rejected),
        (454, ErrorKind::Rejected),
        (460, ErrorKind::Rejected),
        (490, ErrorKind::Internal),
    ];
    for (code, kind) in table {
        let body = json!({ "janus": "error", "error": { "code": code, "reason": "no" } });
        let answer = ResponseTemplate::new(200).set_body_json(body);
        let error = ensure_against(JanusPlugin::Videoroom, "create", answer).await;
        assert_eq!(error.kind(), kind, "{code}: {error}");
        assert!(error.to_string().contains(&code.to_string()), "{error}");
    }
}

#[tokio::test]
async fn plugin_errors_in_http_200_are_errors() {
    let table = [
        (JanusPlugin::Videoroom, 428, ErrorKind::Rejected),
        (JanusPlugin::Videoroom, 429, ErrorKind::Rejected),
        (JanusPlugin::Videoroom, 430, ErrorKind::Rejected),
        (JanusPlugin::Videoroom, 433, ErrorKind::Rejected),
        (JanusPlugin::Videoroom, 499, ErrorKind::Internal),
        (JanusPlugin::Audiobridge, 487, ErrorKind::Rejected),
        (JanusPlugin::Audiobridge, 489, ErrorKind::Rejected),
        (JanusPlugin::Audiobridge, 499, ErrorKind::Internal),
        // The other plugin's numbers mean nothing here.
        (JanusPlugin::Audiobridge, 427, ErrorKind::Rejected),
        (JanusPlugin::Videoroom, 486, ErrorKind::Rejected),
    ];
    for (plugin, code, kind) in table {
        let (fake, driver) = pair(plugin).await;
        driver.probe(false, soon()).await.expect("alive");
        // Transactions are counted, so the next `create` has this one: exists comes before it.
        let next = next_transaction(&fake, 1);
        fake.script("create", plugin_error(plugin, &next, code));
        let error = driver.ensure_room(room(&*driver, "c", 1, None), soon()).await.expect_err("must fail");
        assert_eq!(error.kind(), kind, "{plugin:?} {code}: {error}");
        assert!(error.is_answer());
    }
}

/// The transaction that the driver will use after `skip` more requests.
fn next_transaction(fake: &FakeJanus, skip: u64) -> String {
    let names = ["info", "list", "exists", "create"];
    let sent: usize = names.iter().map(|name| fake.asked(name).len()).sum();
    format!("tl{}", u64::try_from(sent).expect("few") + skip)
}

#[tokio::test]
async fn nonsense_is_an_error_of_that_sfu_alone() {
    let json_type = "application/json";
    let table = [
        ("html", ResponseTemplate::new(200).set_body_string("<html>")),
        ("empty", ResponseTemplate::new(200)),
        ("a list", ResponseTemplate::new(200).set_body_json(json!([1, 2]))),
        ("a string", ResponseTemplate::new(200).set_body_json(json!("janus"))),
        ("no transaction", ResponseTemplate::new(200).set_body_json(json!({ "janus": "success" }))),
        ("error without a code", ResponseTemplate::new(200).set_body_json(json!({ "janus": "error" }))),
        (
            "another's answer",
            ResponseTemplate::new(200).set_body_json(
                json!({ "janus": "success", "transaction": "x", "response": { "videoroom": "created" } }),
            ),
        ),
        ("10 MB", ResponseTemplate::new(200).set_body_raw(vec![b' '; 10_000_000], json_type)),
        ("wrong path", ResponseTemplate::new(404)),
    ];
    for (what, answer) in table {
        let error = ensure_against(JanusPlugin::Videoroom, "create", answer).await;
        assert_eq!(error.kind(), ErrorKind::Protocol, "{what}: {error}");
        assert!(error.room_may_exist(), "{what}");
    }
    let busy = ResponseTemplate::new(503).insert_header("retry-after", "900");
    let error = ensure_against(JanusPlugin::Videoroom, "create", busy).await;
    assert_eq!((error.kind(), error.retry_after().map(|wait| wait.as_secs())), (ErrorKind::Overloaded, Some(30)));
}

#[tokio::test]
async fn a_plugin_that_answers_for_another_is_not_believed() {
    let (fake, driver) = pair(JanusPlugin::Videoroom).await;
    driver.probe(false, soon()).await.expect("alive");
    let response = json!({ "audiobridge": "created", "room": "tl~7~1.1.1~g~c" });
    let body = json!({ "janus": "success", "transaction": next_transaction(&fake, 1), "response": response });
    fake.script("create", ResponseTemplate::new(200).set_body_json(body));
    let error = driver.ensure_room(room(&*driver, "c", 1, None), soon()).await.expect_err("must fail");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn secrets_do_not_come_back_in_errors() {
    let echo = format!("you sent {SECRET} and {KEY}\nand more");
    let core = json!({ "janus": "error", "error": { "code": 403, "reason": echo } });
    let error = ensure_against(JanusPlugin::Videoroom, "create", ResponseTemplate::new(200).set_body_json(core)).await;
    let (_fake, driver) = pair(JanusPlugin::Videoroom).await;
    for shown in [error.to_string(), format!("{error:?}"), format!("{driver:?}")] {
        assert!(!shown.contains(SECRET) && !shown.contains(KEY), "{shown}");
    }
    assert!(error.to_string().contains("(redacted)") && !error.to_string().contains('\n'), "{error}");
}

#[tokio::test]
async fn two_syncers_agree_on_the_incarnation_and_see_its_end() {
    for plugin in PLUGINS {
        let (fake, one) = pair(plugin).await;
        let two = janus(&lane(), &fake.url(), plugin);
        let (a, b) = tokio::join!(one.probe(false, soon()), two.probe(true, soon()));
        let first = a.expect("alive").boot_id.expect("claimed");
        assert_eq!(b.expect("alive").boot_id.as_ref(), Some(&first));
        assert_eq!(fake.rooms(), ["_boot".to_owned(), format!("_boot.{first}")]);
        assert_eq!(one.probe(false, soon()).await.expect("alive").boot_id.as_ref(), Some(&first));

        fake.restart();
        let second = two.probe(false, soon()).await.expect("alive").boot_id.expect("claimed");
        assert_ne!(first, second);
        // The other syncer sees the restart although a new claim is there already.
        let stale = room(&*one, "c", 1, Some(first));
        let error = one.ensure_room(stale, soon()).await.expect_err("another incarnation");
        assert_eq!((error.kind(), error.boot_id()), (ErrorKind::Restarted, Some(&second)));
        assert!(!error.room_may_exist());
        assert_eq!(fake.rooms().len(), 2, "no room is made on an incarnation we do not know");
    }
}

#[tokio::test]
async fn a_claim_left_half_done_is_completed() {
    let (fake, one) = pair(JanusPlugin::Videoroom).await;
    let boot_id = one.probe(false, soon()).await.expect("alive").boot_id.expect("claimed");
    fake.remove_room(&format!("_boot.{boot_id}"));
    let two = janus(&lane(), &fake.url(), JanusPlugin::Videoroom);
    assert_eq!(two.probe(false, soon()).await.expect("alive").boot_id.as_ref(), Some(&boot_id));
    assert_eq!(one.probe(false, soon()).await.expect("alive").boot_id, Some(boot_id));
}

#[tokio::test]
async fn a_claim_that_is_not_ours_is_reported() {
    let (fake, driver) = pair(JanusPlugin::Videoroom).await;
    fake.add_room("_boot", 0);
    let error = driver.probe(false, soon()).await.expect_err("a stranger's room");
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("_boot"), "{error}");
}

#[tokio::test]
async fn a_draining_janus_gets_no_new_room_but_keeps_its_own() {
    let (fake, driver) = pair(JanusPlugin::Videoroom).await;
    driver.ensure_room(room(&*driver, "old", 1, None), soon()).await.expect("made");
    driver.set_draining(true, soon()).await.expect("taken");
    assert!(!driver.probe(false, soon()).await.expect("alive").accepting);
    // Another syncer honours the flag as well: it reads it before its first room.
    let other = janus(&lane(), &fake.url(), JanusPlugin::Videoroom);
    for driver in [&driver, &other] {
        let created = fake.asked("create").len();
        let error = driver.ensure_room(room(&**driver, "new", 1, None), soon()).await.expect_err("draining");
        assert_eq!(error.kind(), ErrorKind::Draining);
        assert!(!error.room_may_exist());
        let made: Vec<_> = fake.asked("create").split_off(created);
        assert!(made.iter().all(|asked| asked["request"]["room"].as_str().is_some_and(|r| r.starts_with("_boot"))));
        let old = driver.ensure_room(room(&**driver, "old", 1, None), soon()).await.expect("still there");
        assert!(!old.created);
    }
    driver.set_draining(false, soon()).await.expect("taken back");
    assert!(driver.ensure_room(room(&*driver, "new", 1, None), soon()).await.expect("made").created);
}

#[tokio::test]
async fn lists_show_our_rooms_only_and_count_all_load() {
    let (fake, driver) = pair(JanusPlugin::Audiobridge).await;
    let spec = room(&*driver, "c", 4, None);
    driver.ensure_room(spec.clone(), soon()).await.expect("made");
    fake.people(spec.room.as_str(), 3);
    fake.add_room("demo", 5);
    fake.add_room("1234", 0);
    fake.add_room("tl~bogus", 0);
    let list = driver.list_rooms(soon()).await.expect("listed");
    assert_eq!(list.rooms.len(), 1, "{list:?}");
    let listed = &list.rooms[0];
    assert_eq!((&listed.room, listed.participants), (&spec.room, 3));
    assert_eq!((listed.epoch, listed.guild.as_ref().map(GuildId::as_str)), (Some(epoch(4)), Some("g")));
    let load = list.load.expect("counted");
    assert_eq!((load.calls, load.participants, load.capacity), (4, 8, 100), "sentinels are no calls");
}

#[tokio::test]
async fn rooms_with_numbers_for_names_are_foreign() {
    let (fake, driver) = pair(JanusPlugin::Videoroom).await;
    driver.probe(false, soon()).await.expect("alive");
    let rooms = json!({ "videoroom": "success", "list": [{ "room": 1234, "num_participants": 2 }] });
    let body = json!({ "janus": "success", "transaction": next_transaction(&fake, 1), "response": rooms });
    fake.script("list", ResponseTemplate::new(200).set_body_json(body));
    let list = driver.list_rooms(soon()).await.expect("listed");
    assert_eq!((list.rooms.len(), list.load.map(|load| load.participants)), (0, Some(2)));
}

#[tokio::test]
async fn rooms_with_people_in_them_end_by_force_only() {
    for plugin in PLUGINS {
        let (fake, driver) = pair(plugin).await;
        let spec = room(&*driver, "c", 1, None);
        let end = end(&spec, "end");
        driver.ensure_room(spec.clone(), soon()).await.expect("made");
        fake.people(spec.room.as_str(), 1);
        assert_eq!(driver.end_room(end.clone(), false, soon()).await.expect("answered"), Ended::Occupied);
        assert!(fake.asked("destroy").is_empty());
        assert_eq!(driver.participants(spec.room.clone(), soon()).await.expect("answered"), Some(1));
        fake.people(spec.room.as_str(), 0);
        assert_eq!(driver.end_room(end.clone(), false, soon()).await.expect("answered"), Ended::Destroyed);
        let secret = |asked: &Value| asked["request"]["secret"].clone();
        assert_eq!(secret(&fake.asked("destroy")[0]), secret(&fake.asked("create").pop().expect("asked")));
        assert_eq!(driver.end_room(end.clone(), false, soon()).await.expect("answered"), Ended::WasAbsent);
        assert_eq!(driver.end_room(end.clone(), true, soon()).await.expect("answered"), Ended::WasAbsent);
        assert_eq!(driver.participants(spec.room.clone(), soon()).await.expect("answered"), None);
        driver.ensure_room(spec.clone(), soon()).await.expect("made");
        fake.people(spec.room.as_str(), 2);
        assert_eq!(driver.end_room(end, true, soon()).await.expect("answered"), Ended::Destroyed);
    }
}

#[tokio::test]
async fn probes_count_the_load_but_not_each_time() {
    let (fake, driver) = pair(JanusPlugin::Videoroom).await;
    driver.probe(false, soon()).await.expect("alive");
    let lists = fake.asked("list").len();
    let probe = driver.probe(false, soon()).await.expect("alive");
    assert!(probe.accepting && probe.load.is_some_and(|load| load.capacity == 100));
    assert_eq!(fake.asked("list").len(), lists, "a list of a large server is dear");
}

#[tokio::test]
async fn r13_crash_and_hang_are_told_apart() {
    let driver = janus(&lane(), &closed_port(), JanusPlugin::Videoroom);
    let error = driver.probe(true, soon()).await.expect_err("nobody there");
    assert!(error.is_dead_evidence(), "{error}");
    let driver = janus(&lane(), &silent_server(), JanusPlugin::Videoroom);
    let error = driver.probe(true, shortly()).await.expect_err("silence");
    assert!(error.is_time_out() && !error.is_dead_evidence(), "{error}");
}

#[tokio::test]
async fn there_are_no_digests() {
    let (_fake, driver) = pair(JanusPlugin::Videoroom).await;
    let digest = DigestSpec { boot_id: None, terms: Vec::new(), rooms: 0, hash: 0, named: None };
    assert_eq!(driver.digest(digest, soon()).await.expect("known"), DigestOutcome::Unsupported);
    assert!(!driver.capabilities().digests && !driver.capabilities().fences);
    let room = RoomId::new("x").expect("valid id");
    assert_eq!(driver.participants(room, soon()).await.expect("answered"), None);
}
