//! Permits are counted twice, by the budget that gives them and by those who have them, and a lost one is seen.

use super::*;
use crate::dial::scheduler::Class;

fn off(lane: &Lane) -> i64 {
    lane.snapshot().permits_off
}

#[tokio::test(start_paused = true)]
#[expect(clippy::mem_forget, reason = "the leak that is to be seen")]
async fn i08_a_permit_or_a_slot_that_never_comes_back_is_seen() {
    let lane = lane(Alpn::Http2);
    once(&lane.origin(&origin("a")), 2).await.expect("answered");
    let partition = partition(&lane);
    let want = Want { cell: partition.cell(&origin("a")), life: 0 };
    let granted = {
        let mut scheduler = partition.scheduler.lock();
        scheduler.enqueue(want, Class::Proven, 1, Instant::now());
        scheduler.next(Instant::now(), || Ok(()))
    };
    assert!(matches!(granted, Turn::Granted { class: Class::Proven, .. }));
    std::mem::forget(Grant::new(&partition, Class::Proven));
    assert_eq!(off(&lane), 2, "both");
    partition.scheduler.lock().release_slot(Class::Proven);
    assert_eq!(off(&lane), 1, "the permit");
    partition.scheduler.lock().release_connection();
    assert_eq!(off(&lane), 0);
    partition.scheduler.lock().release_connection();
    assert_eq!(off(&lane), -1, "one that came back twice");
}

#[tokio::test(start_paused = true)]
async fn i08_permits_of_dials_forgotten_origins_and_old_lives_are_not_off() {
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let lane = lane(alpn);
        let waits = stuck_caller(&lane, Instant::now() + 4 * PATIENCE);
        let mut held = Vec::new();
        for name in ["stays", "forgotten", "rebuilt"] {
            held.push(lane.origin(&origin(name)).hold(Instant::now() + PATIENCE).await.expect("a connection"));
        }
        assert_eq!((off(&lane), lane.snapshot().connections), (0, 4), "one of them a dial");
        lane.forget(&origin("forgotten"));
        assert_eq!((off(&lane), lane.snapshot().connections), (0, 4), "forgotten");
        partition(&lane).rebuild("test");
        assert_eq!((off(&lane), lane.snapshot().connections), (0, 4), "old lives");
        waits.await.expect("no panic").expect_err("rebuilt");
        drop(held);
        sleep(2 * PATIENCE).await; // The dial's time-out.
        assert_eq!((off(&lane), lane.snapshot().connections), (0, 0));
    }
}
