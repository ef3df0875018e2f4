//! Failure verdicts beyond one pair of eyes, on a fake fleet and a paused clock.

#[allow(dead_code, reason = "another test uses the rest")]
mod fake;

use std::time::Duration;

use fake::World;
use fake::sfu::Mode;
use serde_json::json;
use sfu_api::{CallId, CallKind, GatewayId, GuildId, SessionId, SfuId, SyncerId};
use syncer::engine::Join;
use syncer::health::{EvidenceMessage, SfuSight, Sight, Verdict, WIRE};
use tokio::time::Instant;

const S: fn(u64) -> Duration = Duration::from_secs;

fn id(sfu: &str) -> SfuId {
    SfuId::new(sfu).expect("valid")
}

fn verdict(world: &World, sfu: &str) -> Verdict {
    world.engine.sfu(&id(sfu)).expect("known").verdict
}

fn message(over: bool, sfus: Vec<SfuSight>) -> EvidenceMessage {
    EvidenceMessage { v: WIRE, from: SyncerId::new("peer").expect("valid"), over, sfus }
}

fn sees(sfu: &str, sight: Sight) -> EvidenceMessage {
    message(false, vec![SfuSight { sfu: id(sfu), sight, gateways: Vec::new() }])
}

/// A call on `sfu`, as a gateway would name it.
fn call_on(world: &World, sfu: &str, calls: usize) -> (GuildId, CallId) {
    let call = (0..calls).find(|c| world.sfu_of(*c) == Some(id(sfu))).expect("some call is there");
    (GuildId::new(format!("g{}", call / 4)).expect("valid"), fake::call_id(call))
}

#[tokio::test(start_paused = true)]
async fn r17_with_a_witness_calls_move_when_it_sees_the_refusals_too() {
    let world = World::new(5, 1);
    world.place(100, 1).await;
    world.engine.set_witnesses(1);
    world.fleet.with("sfu-1", |n| n.mode = Mode::Refuses);
    world.wait("suspicion", S(30), |s| s.sfus.suspect == 1).await;
    tokio::time::sleep(S(60)).await;
    assert_eq!(world.engine.status().notices_total, 0, "it may be our own network");
    let (told, _) = world.engine.sights(Instant::now());
    assert_eq!(told, [SfuSight { sfu: id("sfu-1"), sight: Sight::Refused, gateways: Vec::new() }]);
    world.engine.hear(sees("sfu-9", Sight::Refused), false, Instant::now());
    world.engine.hear(sees("sfu-1", Sight::Refused), false, Instant::now());
    world.wait("recovery", S(60), |s| s.notices_total == 1 && s.awaiting == 0).await;
}

#[tokio::test(start_paused = true)]
async fn r13_two_syncers_that_talk_declare_the_dead_as_fast_as_one() {
    let one = World::new(6, 1);
    let other = World::beside(&one, "other");
    one.place(120, 1).await; // the other one has no calls there, and asks an idle SFU every ten seconds
    for world in [&one, &other] {
        world.engine.set_witnesses(1);
    }
    one.fleet.with("sfu-1", |n| n.mode = Mode::Refuses);
    one.wait("a first doubt", S(30), |s| s.sfus.suspect == 1).await;
    let doubt = Instant::now();
    let name = |id: &str| SyncerId::new(id).expect("valid");
    while one.engine.status().notices_total == 0 || verdict(&other, "sfu-1") != Verdict::Dead {
        for (from, to, id) in [(&one, &other, "s"), (&other, &one, "other")] {
            let (sfus, over) = from.engine.sights(Instant::now());
            to.engine.hear(EvidenceMessage { v: WIRE, from: name(id), over, sfus }, true, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        assert!(Instant::now() - doubt < S(6), "the second pair of eyes slowed the recovery");
    }
    one.wait("recovery", S(60), |s| s.awaiting == 0).await;
}

#[tokio::test(start_paused = true)]
async fn r17_a_hung_sfu_moves_when_two_gateways_lost_their_media_and_not_when_one_did() {
    let world = World::new(5, 1);
    world.place(100, 1).await;
    let (guild, call) = call_on(&world, "sfu-2", 100);
    let report = |gateway: &str| {
        let gateway = GatewayId::new(gateway).expect("valid");
        assert_eq!(world.engine.report(&guild, &call, &gateway, None, Instant::now()), Ok(()));
    };
    for gateway in ["gw-1", "gw-2", "gw-3"] {
        let join = Join {
            guild: guild.clone(),
            call: call.clone(),
            session: SessionId::new(gateway).expect("valid"),
            gateway: GatewayId::new(gateway).expect("valid"),
            seq: None,
            kind: CallKind::Voice,
            region: None,
        };
        world.engine.join(&join, Instant::now()).expect("joins");
        report(gateway);
    }
    tokio::time::sleep(S(30)).await;
    assert_eq!(verdict(&world, "sfu-2"), Verdict::Healthy, "it answers, so it may be their network");
    world.fleet.with("sfu-2", |n| n.mode = Mode::Hangs);
    world.wait("suspicion", S(60), |s| s.sfus.suspect == 1).await;
    for _ in 0..5 {
        report("gw-1");
        tokio::time::sleep(S(1)).await;
    }
    assert_eq!(world.engine.status().notices_total, 0, "one gateway may be wrong");
    report("gw-2");
    world.wait("recovery", S(60), |s| s.notices_total == 1 && s.awaiting == 0).await;
}

#[tokio::test(start_paused = true)]
async fn r17_a_hung_sfu_moves_when_its_entry_is_gone() {
    let world = World::new(4, 1);
    world.place(80, 1).await;
    world.recatalogue(4, 1, |specs| specs.retain(|s| s.id.as_str() != "sfu-3"));
    tokio::time::sleep(S(30)).await;
    assert_eq!(world.engine.status().notices_total, 0, "it answers: an entry may be gone by mistake");
    world.fleet.with("sfu-3", |n| n.mode = Mode::Hangs);
    world.wait("recovery", S(60), |s| s.notices_total == 1 && s.awaiting == 0).await;
}

/// Machines come and go under new names: what is known of those that went has an end, too.
#[tokio::test(start_paused = true)]
async fn r04_an_sfu_that_left_the_catalogue_long_ago_is_forgotten_unless_it_has_calls() {
    let world = World::new(4, 1);
    world.place(80, 1).await;
    let known = |world: &World| [0, 1, 2, 3].map(|i| world.engine.sfu(&id(&format!("sfu-{i}"))).is_some());
    let _view = world.engine.cordon(&id("sfu-2"), true).expect("known");
    world.recatalogue(4, 1, |specs| specs.truncate(1));
    for gone in ["sfu-1", "sfu-2"] {
        world.fleet.with(gone, |n| n.mode = Mode::Hangs);
    }
    world.wait("recovery", S(120), |s| s.notices_total == 2 && s.awaiting == 0).await;
    tokio::time::sleep(S(3_500)).await;
    assert_eq!(known(&world), [true; 4], "its entry may be gone by mistake");
    tokio::time::sleep(S(200)).await;
    assert_eq!(known(&world), [true, false, true, true], "one is listed, one has calls, and of one somebody decided");
    let _view = world.engine.cordon(&id("sfu-2"), false).expect("known");
    tokio::time::sleep(S(2)).await;
    assert_eq!(known(&world), [true, false, false, true], "it was taken back");

    // Under its old name it is as new, in a number of its own.
    world.fleet.restart("sfu-1");
    world.recatalogue(4, 1, |specs| specs.truncate(2));
    (100..140).for_each(|call| world.join(call, 0));
    world.wait("the new calls", S(120), |s| s.placed == 120 && s.awaiting == 0).await;
    let rooms = |sfu: &str| world.fleet.with(sfu, |n| n.rooms.len());
    assert!(rooms("sfu-1") > 0);
    assert_eq!(["sfu-0", "sfu-1", "sfu-3"].map(rooms).iter().sum::<usize>(), 120);
}

async fn silent(world: &World) {
    world.place(100, 1).await;
    world.set("health.suspect_max", &json!("5s"));
    world.fleet.each(|id, n| {
        if id.as_str() != "sfu-0" && id.as_str() != "sfu-1" {
            n.mode = Mode::Hangs;
        }
    });
    world.wait("the freeze", S(120), |s| s.frozen).await;
    tokio::time::sleep(S(300)).await;
    let status = world.engine.status();
    assert_eq!(status.notices_total, 0, "silence of most was taken for death");
    assert!(status.freeze.over_ms.is_some_and(|ms| ms > 200_000) && status.freeze.silent_share > 0.7);
}

#[tokio::test(start_paused = true)]
async fn r17_a_freeze_ends_when_a_syncer_of_another_zone_sees_the_same() {
    let world = World::new(10, 1);
    silent(&world).await;
    world.engine.hear(message(true, Vec::new()), false, Instant::now());
    tokio::time::sleep(S(5)).await;
    assert!(world.engine.status().frozen, "one of our own zone sees what we see");
    let start = Instant::now();
    while world.engine.status().notices_total < 8 {
        world.engine.hear(message(true, Vec::new()), true, Instant::now());
        tokio::time::sleep(S(3)).await;
        assert!(Instant::now() - start < S(120), "{:?}", world.engine.status().freeze);
    }
    world.wait("recovery", S(120), |s| s.awaiting == 0).await;
}

#[tokio::test(start_paused = true)]
async fn r17_a_freeze_ends_by_the_lever_and_never_holds_back_hard_evidence() {
    let world = World::new(10, 1);
    silent(&world).await;
    world.fleet.with("sfu-5", |n| n.mode = Mode::Refuses);
    world.wait("the hard one", S(60), |s| s.notices_total == 1 && s.frozen).await;
    assert_eq!(verdict(&world, "sfu-5"), Verdict::Dead);
    world.set("health.freeze_lifted", &json!(true));
    world.wait("the rest", S(120), |s| s.notices_total == 8 && s.awaiting == 0).await;
}

#[tokio::test(start_paused = true)]
async fn r17_r20_the_share_that_freezes_is_a_lever() {
    let world = World::new(10, 1);
    silent(&world).await;
    world.set("health.freeze_share", &json!(0.9));
    world.wait("all that are silent", S(120), |s| !s.frozen && s.notices_total == 8 && s.awaiting == 0).await;
}

/// How long a death by refusals takes with these levers.
async fn death(levers: &[(&str, serde_json::Value)]) -> Duration {
    let world = World::new(4, 1);
    levers.iter().for_each(|(name, value)| world.set(name, value));
    world.place(40, 1).await;
    world.fleet.with("sfu-1", |n| n.mode = Mode::Refuses);
    world.wait("death", S(120), |s| s.sfus.dead == 1).await
}

#[tokio::test(start_paused = true)]
async fn r13_r20_how_many_refusals_are_a_death_and_how_often_a_suspect_is_tried_are_levers() {
    let failures = ("health.dead_failures", json!(30));
    let usual = death(&[]).await;
    let sure = death(std::slice::from_ref(&failures)).await;
    let eager = death(&[failures, ("health.suspect_probe_interval", json!("200ms"))]).await;
    assert!(usual < S(8) && sure > S(15) && eager < sure / 2, "{usual:?}, {sure:?}, {eager:?}");
}

#[tokio::test(start_paused = true)]
async fn r13_r20_what_is_late_is_a_lever() {
    let world = World::new(2, 1);
    world.place(10, 1).await;
    world.fleet.with("sfu-1", |n| n.late = Duration::from_millis(300));
    tokio::time::sleep(S(60)).await; // some thirty signs of life
    assert_eq!(world.engine.status().sfus.slow, 0, "300 ms are not late");
    world.set("health.slow_after", &json!("100ms"));
    world.wait("the verdict", S(60), |s| s.sfus.slow == 1).await;
    world.set("health.slow_after", &json!("500ms"));
    world.wait("its end", S(60), |s| s.sfus.slow == 0).await;
}

/// How long an SFU is held back after each of three falls.
async fn falls(world: &World) -> Vec<u64> {
    world.place(40, 1).await;
    let mut held = Vec::new();
    for n in 1..=3 {
        world.fleet.with("sfu-1", |n| n.mode = Mode::Refuses);
        world.wait("death", S(60), |s| s.notices_total == 2 * n - 1 || s.sfus.dead == 1).await;
        world.fleet.restart("sfu-1");
        world.wait("return", S(60), |s| s.sfus.dead == 0 && s.sfus.suspect == 0).await;
        held.push(world.engine.sfu(&id("sfu-1")).expect("known").flapping_ms.unwrap_or(0));
    }
    held
}

#[tokio::test(start_paused = true)]
async fn r17_r20_how_long_an_sfu_that_falls_is_kept_out_and_when_falls_are_forgotten_are_levers() {
    let world = World::new(4, 1);
    world.set("health.flap_hold_max", &json!("6s"));
    let held = falls(&world).await;
    assert!(held[0] == 0 && held[1] > 4_000 && (5_000..=6_000).contains(&held[2]), "{held:?}");
    let world = World::new(4, 1);
    world.set("health.flap_forget", &json!("1s"));
    assert_eq!(falls(&world).await, [0; 3], "each fall is the first");
}

#[tokio::test(start_paused = true)]
async fn r17_an_sfu_that_keeps_dying_is_kept_out_for_longer_each_time() {
    let world = World::new(4, 1);
    let held = falls(&world).await;
    assert!(held[0] == 0 && (4_000..=5_000).contains(&held[1]) && (8_000..=10_000).contains(&held[2]), "{held:?}");
    for call in 100..160 {
        world.join(call, 0);
    }
    world.wait("placing", S(5), |s| s.placed == 100).await;
    assert!((100..160).all(|c| world.sfu_of(c) != Some(id("sfu-1"))), "it is given time to settle");
    tokio::time::sleep(S(12)).await;
    for call in 200..260 {
        world.join(call, 0);
    }
    world.wait("placing more", S(60), |s| s.placed == 160).await;
    assert!((200..260).any(|c| world.sfu_of(c) == Some(id("sfu-1"))), "and then it is in service again");
}

#[tokio::test(start_paused = true)]
async fn an_sfu_that_keeps_dying_is_better_than_none() {
    let world = World::new(1, 1);
    world.set("health.flap_hold", &json!("10m"));
    world.place(5, 1).await;
    for n in 1..=3 {
        world.fleet.restart("sfu-0");
        world.wait("the restart", S(60), |s| s.notices_total == n).await;
        world.wait("recovery", S(60), |s| s.placed == 5).await;
    }
    assert!(world.engine.sfu(&id("sfu-0")).expect("known").flapping_ms.is_some());
}
