//! How much is under way at once follows from how it goes: on each SFU, and of the syncer.

use std::time::Duration;

use serde_json::json;
use syncer::engine::Shortage;
use tokio::time::Instant;

use crate::fake::World;
use crate::fake::sfu::Mode;

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;

/// The window of an SFU of which nothing is known.
const OF_SFU: u32 = 16;

/// That of a syncer, and its floor.
const OF_SYNCER: u32 = 64;
const FLOOR_OF_SYNCER: u32 = 8;

/// SFUs that were heard of and are asked for placements alone, as fast as windows allow.
async fn quiet(sfus: u32) -> World {
    let world = World::new(sfus as usize, 1);
    world.place_fast();
    world.set("health.probe_interval", &json!("300s"));
    world.set("digest.paused", &json!(true));
    world.wait("the first signs of life", S(10), |s| s.sfus.healthy == sfus).await;
    tokio::time::sleep(S(2)).await; // what was under way ends, and levers are read
    world
}

/// One call fails so often on the only SFU, which is well again afterwards and takes it: nothing but its window is left
/// of that. One that is alone opens no window beyond two.
async fn fail(world: &World, mode: Mode, times: u64) {
    world.fleet.with("sfu-0", |n| n.mode = mode);
    let before = world.engine.status().attempts_total;
    world.join(0, 0);
    let tried = |total, in_flight: u32| total - before + u64::from(in_flight) >= times;
    world.wait("the last attempt", S(300), |s| tried(s.attempts_total, s.attempts_in_flight)).await;
    world.set("placement.paused", &json!(true));
    world.wait("its end", S(10), |s| s.attempts_in_flight == 0).await;
    world.fleet.with("sfu-0", |n| n.mode = Mode::Well);
    world.wait("its return", S(120), |s| s.sfus.healthy == 1).await;
    world.set("placement.paused", &json!(false));
    world.wait("the call", S(60), |s| s.placed == 1).await;
}

/// Most attempts that are under way at once while none ends and more wait.
async fn most_under_way(world: &World) -> u32 {
    world.fleet.each(|_, n| n.mode = Mode::Hangs);
    (100..200).for_each(|call| world.join(call, 0));
    let mut most = 0;
    for _ in 0..100 {
        most = most.max(world.engine.status().attempts_in_flight);
        tokio::time::sleep(MS(10)).await;
    }
    most
}

fn of_syncer(world: &World) -> u32 {
    world.engine.recovery(Instant::now()).window
}

/// One that has too much to do, by its own word or by its silence, is given less at once: seven tenths each time.
#[tokio::test(start_paused = true)]
async fn r14_an_sfu_that_has_too_much_to_do_is_given_less_at_once() {
    // The last is at its floor of one, from where the call that it took in the end opened it to two.
    for (mode, times, window) in
        [(Mode::Overloaded, 1, 11), (Mode::Overloaded, 2, 7), (Mode::Hangs, 1, 11), (Mode::Overloaded, 12, 2)]
    {
        let world = quiet(1).await;
        fail(&world, mode, times).await;
        assert_eq!(most_under_way(&world).await, window, "{mode:?} {times} times");
    }
}

/// One that fails otherwise, or cannot be reached, has not too much to do.
#[tokio::test(start_paused = true)]
async fn r14_an_sfu_that_cannot_be_reached_or_refuses_is_given_as_much_as_before() {
    for mode in [Mode::Well, Mode::Refuses, Mode::NoWay, Mode::Rejects, Mode::LosesAnswers, Mode::Queues] {
        let world = quiet(1).await;
        fail(&world, mode, 1).await;
        assert_eq!(most_under_way(&world).await, OF_SFU, "{mode:?}");
    }
}

/// Whatever SFUs do, one of them or all, the syncer has as many attempts under way as before for the others.
#[tokio::test(start_paused = true)]
async fn r14_failures_of_sfus_do_not_narrow_the_window_of_the_syncer() {
    for mode in
        [Mode::Overloaded, Mode::Hangs, Mode::Refuses, Mode::NoWay, Mode::Rejects, Mode::LosesAnswers, Mode::Queues]
    {
        let world = quiet(1).await;
        fail(&world, mode, 1).await;
        assert_eq!(of_syncer(&world), OF_SYNCER, "one that {mode:?}");

        let world = quiet(8).await;
        let mut before = 0;
        world.fleet.each(|_, n| {
            n.mode = mode;
            before += n.asked;
        });
        (0..100).for_each(|call| world.join(call, 0));
        tokio::time::sleep(S(10)).await;
        let mut asked = 0;
        world.fleet.each(|_, n| asked += n.asked);
        assert!(asked - before > 20, "{mode:?}: {before} and {asked}");
        assert_eq!(of_syncer(&world), OF_SYNCER, "eight that {mode:?}");
    }
}

/// No room on our side is a sign of our own load: it narrows the syncer's window, and that of no SFU.
#[tokio::test(start_paused = true)]
async fn r14_no_room_on_our_side_narrows_the_window_of_the_syncer_alone() {
    let world = quiet(1).await;
    world.fleet.with("sfu-0", |n| n.mode = Mode::Saturated);
    world.join(0, 0);
    world.wait("a narrower window", S(10), |_| of_syncer(&world) < OF_SYNCER).await;
    world.fleet.with("sfu-0", |n| n.mode = Mode::Well);
    world.wait("the call", S(10), |s| s.placed == 1).await;
    assert_eq!(of_syncer(&world), 44, "seven tenths, once");
    assert_eq!(most_under_way(&world).await, OF_SFU);
}

/// A syncer that is short of something has less under way at once. An episode counts once; the window has a floor, and
/// opens again with what goes well.
#[tokio::test(start_paused = true)]
async fn r14_a_syncer_that_is_short_of_something_does_less_at_once() {
    for of in [Shortage::PoolWait, Shortage::LoopLag, Shortage::Memory] {
        let world = quiet(8).await;
        let start = Instant::now();
        let press = |ms| {
            world.engine.press(of, start + MS(ms));
            of_syncer(&world)
        };
        assert_eq!([0, 0, 100, 199, 200, 399, 400].map(press), [44, 44, 44, 44, 31, 31, 21], "{of:?}");
        assert_eq!(most_under_way(&world).await, 21, "{of:?}: eight SFUs would take more");
        for n in 3..30 {
            press(n * 200);
        }
        assert_eq!(of_syncer(&world), FLOOR_OF_SYNCER, "{of:?}");
        world.fleet.each(|_, n| n.mode = Mode::Well);
        world.wait("placing", S(60), |s| s.placed == 100 && s.awaiting == 0).await;
        assert!(of_syncer(&world) > FLOOR_OF_SYNCER, "{of:?}: it opens again");
    }
}

/// The syncer feels by itself that its memory is short.
#[tokio::test(start_paused = true)]
async fn r14_a_syncer_whose_memory_is_short_does_less_at_once() {
    let world = quiet(8).await;
    assert_eq!(of_syncer(&world), OF_SYNCER);
    world.set("admission.memory_max", &json!(1));
    world.wait("the floor", S(10), |_| of_syncer(&world) == FLOOR_OF_SYNCER).await;
}
