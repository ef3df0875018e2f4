//! Whose gateway is gone, and who talks all the same.

use std::time::Duration;

use serde_json::json;
use sfu_api::{CallKind, GatewayId, GuildId, SessionId};
use syncer::engine::Join;
use syncer::presence::Via;
use tokio::time::Instant;

use crate::S;
use crate::fake::sfu::Mode;
use crate::fake::{World, call_id};

/// Silence, and the resume window.
const WINDOWS: Duration = Duration::from_secs(150);

fn gateway(name: &str) -> GatewayId {
    GatewayId::new(name).expect("valid")
}

/// A session of another gateway in a call of the first.
fn join_by(world: &World, by: &str, call: usize, session: &str) {
    let join = Join {
        guild: GuildId::new(format!("g{}", call / 4)).expect("valid"),
        call: call_id(call),
        session: SessionId::new(session).expect("valid"),
        gateway: gateway(by),
        seq: None,
        kind: CallKind::Voice,
        region: None,
    };
    world.engine.join(&join, Instant::now()).expect("joins");
}

fn people(world: &World, call: usize, people: u32) {
    let sfu = world.sfu_of(call).expect("placed");
    let guild = GuildId::new(format!("g{}", call / 4)).expect("valid");
    let room = world.engine.call(&guild, &call_id(call)).and_then(|call| call.room).expect("it has one");
    world.fleet.with(sfu.as_str(), |n| n.rooms.get_mut(&room).expect("it is there").participants = people);
}

fn sessions(world: &World, call: usize) -> u32 {
    let guild = GuildId::new(format!("g{}", call / 4)).expect("valid");
    world.engine.call(&guild, &call_id(call)).map_or(0, |call| call.participants)
}

/// Twelve calls of two sessions, whose gateway promises to beat and vanishes.
async fn world() -> World {
    let world = World::new(3, 1);
    world.place(12, 2).await;
    world.engine.beat(&gateway("gw"), "i", Via::Own, Instant::now()).expect("taken");
    world
}

#[tokio::test(start_paused = true)]
async fn r16_whoever_talks_stays_until_the_sfu_says_otherwise() {
    let world = world().await;
    for call in 0..4 {
        people(&world, call, 2);
    }
    people(&world, 4, 1); // one of two is enough
    // With one whose gateway is here (it never promised to beat): alone in the room, and not alone.
    join_by(&world, "here", 5, "t");
    people(&world, 5, 1);
    join_by(&world, "here", 6, "t");
    people(&world, 6, 2);
    tokio::time::sleep(WINDOWS - S(1)).await;
    assert_eq!(world.engine.status().participants, 26);
    world.wait("the others", S(5), |s| s.participants == 14).await;
    let each: Vec<u32> = (0..12).map(|call| sessions(&world, call)).collect();
    assert_eq!(each, [2, 2, 2, 2, 2, 1, 3, 0, 0, 0, 0, 0]);
    world.wait("the count", S(1), |s| s.gateways.sessions_kept == 12).await;
    assert_eq!(world.engine.gateways()[0].kept, 12);

    // They are asked again, once in a digest interval.
    tokio::time::sleep(S(600)).await;
    assert_eq!(world.engine.status().participants, 14);
    people(&world, 0, 0);
    people(&world, 6, 1);
    world.wait("whoever left", S(65), |s| s.participants == 10).await;
    assert_eq!([0, 1, 6].map(|call| sessions(&world, call)), [0, 2, 1]);

    // Whatever the SFU says, it ends.
    tokio::time::sleep(S(3_600 - 600 - 80)).await;
    assert_eq!(world.engine.status().participants, 10);
    world.wait("the longest time", S(90), |s| s.participants == 2).await;
    assert_eq!([5, 6].map(|call| sessions(&world, call)), [1, 1], "those whose gateway is here");
    assert_eq!(world.engine.status().gateways.sessions_kept, 0);
    assert!(world.engine.gateways().is_empty(), "and it is forgotten");
}

#[tokio::test(start_paused = true)]
async fn r16_a_gateway_that_is_silent_itself_does_not_account_for_who_talks() {
    let world = world().await;
    join_by(&world, "late", 0, "t");
    people(&world, 0, 1);
    tokio::time::sleep(WINDOWS - S(50)).await;
    world.engine.beat(&gateway("late"), "i", Via::Own, Instant::now()).expect("taken");
    tokio::time::sleep(S(49)).await;
    world.wait("the others", S(5), |s| s.participants == 3).await;
    assert_eq!(sessions(&world, 0), 3, "it may be any of the three");
    assert_eq!(world.engine.status().gateways.sessions_kept, 2, "the window of one is not over");
}

/// Tasks that were started again.
fn restarts(world: &World) -> u32 {
    let mut registry = prometheus_client::registry::Registry::default();
    world.engine.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("it is text");
    let count = text.lines().find_map(|line| line.strip_prefix("task_restarts_total "));
    count.and_then(|count| count.parse().ok()).expect("it is counted")
}

/// Calls on an SFU.
fn on(world: &World, sfu: &str) -> u64 {
    (0..12).filter(|c| world.sfu_of(*c).is_some_and(|s| s.as_str() == sfu)).count() as u64
}

fn lists(world: &World, sfu: &str, mode: Option<Mode>) {
    world.fleet.with(sfu, |n| n.lists = mode);
}

#[tokio::test(start_paused = true)]
async fn r16_where_the_sfu_does_not_say_nobody_goes_for_a_while_and_where_it_is_dead_everybody() {
    let world = world().await;
    for call in 0..12 {
        people(&world, call, 2);
    }
    let (silent, dies) = (on(&world, "sfu-0"), on(&world, "sfu-1"));
    assert!(silent > 0 && dies > 0 && silent + dies < 12);

    // One does not say, from the first question on, and is healthy otherwise; another when it has said once.
    lists(&world, "sfu-0", Some(Mode::Hangs));
    tokio::time::sleep(WINDOWS + S(10)).await;
    assert_eq!(world.engine.status().participants, 24);
    lists(&world, "sfu-1", Some(Mode::Rejects));
    for _ in 0..5_000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(world.engine.status().sfus.healthy, 3, "no list is held against an SFU");
    }
    assert_eq!((world.engine.status().participants, world.engine.status().gateways.sessions_kept), (24, 24));
    world.wait("those where nothing was ever said", S(110), |s| s.participants == 24 - 2 * silent).await;
    // The other says so again, is full of our own requests for long, and dies.
    lists(&world, "sfu-1", None);
    tokio::time::sleep(S(61)).await;
    lists(&world, "sfu-1", Some(Mode::Saturated));
    tokio::time::sleep(S(900)).await;
    assert_eq!(world.engine.status().participants, 24 - 2 * silent, "what we are short of is nobody's word");
    // Its calls begin anew elsewhere, where nobody of the gateway's can have come, and that is said.
    lists(&world, "sfu-0", None);
    world.fleet.with("sfu-1", |n| n.mode = Mode::Refuses);
    world.wait("those on that", S(90), |s| s.participants == 24 - 2 * silent - 2 * dies).await;
    tokio::time::sleep(S(300)).await;
    assert_eq!(world.engine.status().participants, 24 - 2 * silent - 2 * dies, "the others stay");
}

#[tokio::test(start_paused = true)]
async fn r16_one_who_has_joined_and_is_not_there_yet_takes_nobody_out() {
    let world = world().await;
    join_by(&world, "here", 0, "t");
    people(&world, 0, 2);
    tokio::time::sleep(WINDOWS).await;
    world.wait("the others", S(5), |s| s.participants == 3).await;
    for _ in 0..100 {
        people(&world, 0, 1);
        tokio::time::sleep(S(2)).await;
        people(&world, 0, 2);
        tokio::time::sleep(S(1)).await;
        assert_eq!(sessions(&world, 0), 3);
    }
    people(&world, 0, 1);
    world.wait("whoever left", S(65), |s| s.participants == 1).await;
}

#[tokio::test(start_paused = true)]
async fn r16_a_question_is_over_when_the_next_is_due_and_when_we_stop() {
    let world = World::new(40, 1);
    world.set("placement.attempt_timeout", &json!("30s"));
    world.place(40, 2).await;
    world.engine.beat(&gateway("gw"), "i", Via::Own, Instant::now()).expect("taken");
    world.fleet.each(|_, n| n.lists = Some(Mode::Hangs));
    tokio::time::sleep(WINDOWS).await;
    // One list may take as long as a question: 40 of them eight at a time would take five times as long.
    world.wait("the answers", S(65), |s| s.gateways.sessions_kept == 80).await;
    tokio::time::sleep(S(65)).await;
    let stopped = Instant::now();
    let report = world.engine.drain(stopped + S(50)).await;
    assert!(report.attempts_left == 0 && Instant::now() < stopped + S(5), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_lost_is_counted_and_asked_again() {
    let world = world().await;
    world.fleet.each(|_, n| n.lists = Some(Mode::Panics));
    let restarts = || restarts(&world);
    tokio::time::sleep(WINDOWS + S(5)).await;
    assert!((3..=6).contains(&restarts()), "once a second: {}", restarts());
    assert_eq!(world.engine.status().participants, 24);
    world.fleet.each(|_, n| n.lists = None);
    world.wait("all of them", S(5), |s| s.participants == 0).await;
}

#[tokio::test(start_paused = true)]
async fn r16_nobody_is_kept_when_an_operator_wants_it_so_and_a_gateway_that_is_back_has_all_of_them() {
    let world = world().await;
    for call in 0..6 {
        people(&world, call, 2);
    }
    tokio::time::sleep(WINDOWS).await;
    world.wait("the others", S(5), |s| s.participants == 12 && s.gateways.sessions_kept == 12).await;
    let beat = world.engine.beat(&gateway("gw"), "i", Via::Own, Instant::now()).expect("taken");
    assert!(beat.resync, "others have expired");
    assert_eq!(world.engine.status().gateways.sessions_kept, 0, "they are no more than its sessions");
    (0..6).for_each(|call| people(&world, call, 0));
    tokio::time::sleep(S(29)).await;
    assert_eq!(world.engine.status().participants, 12);
    (0..6).for_each(|call| people(&world, call, 2));
    world.set("gateways.kept_max", &json!("0s"));
    tokio::time::sleep(WINDOWS - S(30)).await;
    assert_eq!(world.engine.status().participants, 12);
    world.wait("all of them", S(5), |s| s.participants == 0).await;
}

/// One list from an SFU tells of all of its rooms, whatever they are.
#[tokio::test(start_paused = true)]
async fn r16_sfus_are_asked_in_bulk_and_at_a_pace() {
    let world = World::new(3, 1);
    world.set("digest.paused", &json!(true));
    world.set("health.probe_interval", &json!("5m"));
    world.place(300, 2).await;
    for call in 0..300 {
        people(&world, call, 1);
    }
    for name in ["gw", "gw-1", "gw-2"] {
        world.engine.beat(&gateway(name), "i", Via::Own, Instant::now()).expect("taken");
    }
    world.set("gateways.freeze_share", &json!(1.0));
    tokio::time::sleep(WINDOWS + S(5)).await;
    world.wait("the answers", S(5), |s| s.gateways.sessions_kept == 600).await;
    let asked = |world: &World| {
        let mut asked = 0;
        world.fleet.each(|_, n| asked += n.asked);
        asked
    };
    let before = asked(&world);
    tokio::time::sleep(S(600)).await;
    let lists = asked(&world) - before;
    assert_eq!(world.engine.status().participants, 600);
    assert!((24..=40).contains(&lists), "three SFUs, ten times, and a few probes: {lists}");
}

#[tokio::test(start_paused = true)]
async fn r16_r20_the_pace_at_which_sessions_expire_is_a_lever() {
    for (rate, slow) in [(5_000.0, false), (1.0, true)] {
        let world = world().await;
        world.set("gateways.expire.rate", &json!(rate));
        world.wait("the first", WINDOWS + S(10), |s| s.participants < 24).await;
        let took = world.wait("the others", S(60), |s| s.participants == 0).await;
        assert_eq!(took > S(15), slow, "{rate} a second: {took:?}");
    }
}
