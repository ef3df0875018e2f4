//! Who may come in, by the levers of admission, on a fake fleet and a paused clock.

use std::time::Duration;

use serde_json::json;
use sfu_api::CallKind;

use crate::fake::World;

const S: fn(u64) -> Duration = Duration::from_secs;

#[tokio::test(start_paused = true)]
async fn r08_r20_the_limit_of_new_calls_is_a_lever() {
    let world = World::new(2, 1);
    world.set("admission.new_calls.burst", &json!(10));
    world.set("admission.new_calls.rate", &json!(1.0));
    tokio::time::sleep(S(1)).await;
    let admitted = (0..100).filter(|c| world.may_begin(*c)).count();
    assert!((10..=11).contains(&admitted), "{admitted} of 100 calls began");
}

#[tokio::test(start_paused = true)]
async fn r10_r20_a_block_turns_away_new_ones_of_its_class_alone_until_it_is_lifted() {
    let world = World::new(2, 1);
    world.place(1, 1).await;
    let mut ids = 1..;
    let blocked =
        [("joins", [false, true, true]), ("new_calls", [true, false, true]), ("streams", [true, true, false])];
    for (lever, while_blocked) in blocked {
        for (block, wanted) in [(true, while_blocked), (false, [true; 3])] {
            world.set(&format!("admission.block.{lever}"), &json!(block));
            tokio::time::sleep(S(1)).await; // the gate looks several times a second
            let id = ids.next().expect("endless");
            let begins = |kind, call| world.may_begin_as(kind, call);
            let may = [world.may_join(0, id), begins(CallKind::Voice, 2 * id), begins(CallKind::Stream, 2 * id + 1)];
            assert_eq!(may, wanted, "{lever}: {block}");
        }
    }
}
