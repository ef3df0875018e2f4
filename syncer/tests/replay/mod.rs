//! Decisions that were made are made again for those who ask why.

use serde_json::json;
use sfu_api::GuildId;
use syncer::drivers::{SfuSpec, Weight};
use syncer::engine::{Explanation, ReplayView};
use tokio::time::Instant;

use crate::S;
use crate::fake::{World, call_id};

fn explain(world: &World, call: usize) -> Explanation {
    let guild = GuildId::new(format!("g{}", call / 4)).expect("valid");
    world.engine.explain(&guild, &call_id(call), Instant::now()).expect("there is such a call")
}

/// One of six weighs as little as `n` says, the others as much as they may.
fn weigh(n: usize) -> impl Fn(&mut Vec<SfuSpec>) {
    move |specs| specs[0].weight = Weight::new(0.1 + n as f64 / 100.0).expect("valid")
}

/// Whom the replay names as taken, where it came to what is recorded.
fn taken(why: &Explanation) -> String {
    let Some(ReplayView::Made { looks, as_recorded: true, .. }) = &why.replay else {
        panic!("not made again: {why:?}")
    };
    let mut taken = looks.iter().filter(|look| look.taken).map(|look| look.sfu.to_string());
    let one = taken.next().expect("one was taken");
    assert_eq!(taken.next(), None, "{why:?}");
    one
}

#[tokio::test(start_paused = true)]
async fn r07_every_decision_can_be_made_again_whatever_has_become_of_the_sfus() {
    let world = World::new(6, 1);
    world.recatalogue(6, 1, weigh(0));
    world.place(100, 2).await;
    let on: Vec<_> = (0..100).map(|call| world.sfu_of(call).expect("placed").to_string()).collect();
    // Nothing is now as it was then.
    world.engine.cordon(&"sfu-1".parse().expect("valid"), true).expect("known");
    world.set("placement.sfu.rate", &json!(1.0));
    world.recatalogue(4, 1, weigh(90));
    let mut drawn = 0;
    for (call, on) in on.iter().enumerate() {
        let why = explain(&world, call);
        assert_eq!(taken(&why), *on, "{why:?}");
        assert!(why.decision.as_ref().is_some_and(|decision| decision.starts_with(&format!("{on} with"))), "{why:?}");
        let Some(ReplayView::Made { looks, .. }) = why.replay else { unreachable!("it was made again") };
        drawn += looks.iter().filter(|look| look.sfu.as_str() == "sfu-0" && look.chance < 0.2).count();
    }
    assert!(drawn > 20, "one of six, with the chance it had then: {drawn}");
}

#[tokio::test(start_paused = true)]
async fn r07_what_is_not_known_any_more_is_said_to_be() {
    let world = World::new(6, 1);
    world.place(10, 1).await;
    for n in 0..17 {
        assert!(matches!(explain(&world, 3).replay, Some(ReplayView::Made { as_recorded: true, .. })), "after {n}");
        world.recatalogue(6, 1, weigh(n));
    }
    let why = explain(&world, 3);
    let Some(ReplayView::Unknown { revision, now }) = why.replay else { panic!("it is not kept: {why:?}") };
    assert_eq!(now.0, revision.0 + 17);
    assert!(why.decision.is_some_and(|decision| decision.contains(" with score ")), "what is recorded stays");
    world.join(11, 1);
    world.wait("one more", S(5), |s| s.placed == 11).await;
    taken(&explain(&world, 11));
}

#[tokio::test(start_paused = true)]
async fn r07_a_room_that_is_made_again_in_place_was_not_drawn() {
    let world = World::new(3, 1);
    world.place(30, 1).await;
    let call = (0..30).find(|call| world.sfu_of(*call).is_some_and(|sfu| sfu.as_str() == "sfu-1")).expect("a third");
    world.fleet.restart("sfu-1");
    world.wait("the notice", S(60), |s| s.notices_total > 0).await;
    world.wait("repair", S(60), |s| s.awaiting == 0).await;
    let why = explain(&world, call);
    assert_eq!(why.decision.as_deref(), Some("its room is made again in place on sfu-1"));
    assert!(why.replay.is_none(), "{why:?}");
}
