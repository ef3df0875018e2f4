//! Probes wait beside ordinary callers, in places of their own, of which there are as many as their lever says.

use super::*;

/// Asks a host whose dials never end, as a probe or not, and tells whether there was a place.
fn is_admitted(callers: &mut JoinSet<()>, lane: &Lane, fresh: bool) -> bool {
    let (hole, before) = (lane.origin(&origin("hole")), lane.snapshot().waiters);
    let deadline = Instant::now() + PATIENCE;
    let mut asks = Box::pin(async move {
        let asked = if fresh { hole.fresh(get(), deadline).await } else { hole.send(get(), deadline).await };
        assert!(asked.expect_err("a black hole").is_saturated());
    });
    let refused = futures_util::FutureExt::now_or_never(asks.as_mut()).is_some();
    assert_eq!(lane.snapshot().waiters, before + usize::from(!refused));
    if !refused {
        callers.spawn(asks);
    }
    !refused
}

#[tokio::test(start_paused = true)]
async fn i09_a_full_line_with_probes_is_within_its_bound_and_the_lever_bounds_the_probes() {
    for (waiters_max, probes) in [(1, 1), (8, 2), (100, 25)] {
        let lane = lane(Alpn::Http1);
        lane.set_limits(LaneLimits { waiters_max, ..lane.limits() }).expect("limits");
        let mut callers = JoinSet::new();
        assert!((0..waiters_max).all(|_| is_admitted(&mut callers, &lane, false)));
        assert!(!is_admitted(&mut callers, &lane, false), "the line of {waiters_max} is full");
        assert!((0..probes).all(|_| is_admitted(&mut callers, &lane, true)), "{probes} probes beside {waiters_max}");
        assert!(!is_admitted(&mut callers, &lane, true), "no more than {probes} probes beside {waiters_max}");
        assert_eq!(lane.snapshot().waiters, lane.limits().waiters_bound());
    }
}
