//! Whatever is asked of an SFU ends, and is never more than it takes.

use std::time::Duration;

use serde_json::json;
use sfu_api::{BATCH_OPERATIONS_MAX, SfuId};

use crate::fake::World;
use crate::fake::sfu::Mode;

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;

/// How late something is seen to end: it is looked at so often.
const SEEN_LATE: Duration = Duration::from_millis(40);

/// One SFU that was heard of, and from then on is asked for nothing but placements.
async fn quiet() -> World {
    let world = World::new(1, 1);
    world.set("health.probe_interval", &json!("300s"));
    world.set("digest.paused", &json!(true));
    world.wait("the first sign of life", S(10), |s| s.sfus.healthy == 1).await;
    tokio::time::sleep(S(2)).await; // what was under way ends, and levers are read
    world
}

fn lasted(what: &str, took: Duration, limit: Duration) {
    assert!(took + SEEN_LATE >= limit && took <= limit + SEEN_LATE, "{what}: {took:?} of {limit:?}");
}

#[tokio::test(start_paused = true)]
async fn r20_an_attempt_on_an_sfu_that_hangs_ends_when_the_lever_says() {
    for (lever, limit) in [("400ms", MS(400)), ("3s", S(3)), ("11s", S(11))] {
        let world = quiet().await;
        world.set("placement.attempt_timeout", &json!(lever));
        world.fleet.with("sfu-0", |n| n.mode = Mode::Hangs);
        world.join(0, 0);
        world.wait("the attempt", S(1), |s| s.attempts_in_flight == 1).await;
        let took = world.wait("its end", S(60), |s| s.attempts_in_flight == 0).await;
        lasted("the attempt", took, limit);
    }
}

#[tokio::test(start_paused = true)]
async fn r20_a_probe_of_an_sfu_that_hangs_ends_when_the_lever_says() {
    for (lever, limit) in [("300ms", MS(300)), ("2s", S(2)), ("9s", S(9))] {
        let world = World::new(1, 1);
        world.set("digest.paused", &json!(true));
        world.set("health.probe_timeout", &json!(lever));
        world.wait("the first sign of life", S(10), |s| s.sfus.healthy == 1).await;
        let sfu = SfuId::new("sfu-0").expect("valid");
        let verdict = || world.engine.sfu(&sfu).expect("known").verdict;
        let before = verdict();
        let asked = world.fleet.with("sfu-0", |n| {
            n.mode = Mode::Hangs;
            n.asked
        });
        world.wait("a probe", S(60), |_| world.fleet.with("sfu-0", |n| n.asked) > asked).await;
        assert_eq!(verdict(), before, "it is under way");
        let took = world.wait("its end", S(60), |_| verdict() != before).await;
        lasted("the probe", took, limit);
    }
}

/// The largest request to the only SFU, since this was asked last.
fn largest(world: &World) -> usize {
    world.fleet.with("sfu-0", |n| std::mem::take(&mut n.batch_largest))
}

/// How many rooms are made at once, windows say: fewer. Nothing else holds back those to be ended.
#[tokio::test(start_paused = true)]
async fn r19_a_crowd_on_one_sfu_is_told_in_requests_of_as_many_operations_as_it_takes() {
    let calls = 10 * BATCH_OPERATIONS_MAX;
    let world = quiet().await;
    world.place_fast();
    for lever in ["placement.in_flight_max", "placement.sfu.in_flight_max"] {
        world.set(lever, &json!(10_000));
    }
    tokio::time::sleep(S(1)).await; // the loop reads levers at least four times a second
    world.place(calls, 1).await;
    assert!((2..=BATCH_OPERATIONS_MAX).contains(&largest(&world)), "rooms to be made");
    (0..calls).for_each(|call| world.leave(call, 0));
    let all_ended = || world.fleet.with("sfu-0", |n| n.rooms.is_empty());
    world.wait("the end of all rooms", S(120), |_| all_ended()).await;
    assert_eq!(largest(&world), BATCH_OPERATIONS_MAX, "rooms to be ended");
}
