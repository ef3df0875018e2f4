//! Who waits for the dial that finds out whether a failed origin is back.

use super::decisions::{join, refused_in};
use super::*;

#[tokio::test(start_paused = true)]
async fn r04_few_wait_for_the_probe_of_a_failed_origin_when_places_are_few() {
    let partitions = LaneLimits::default().partitions;
    for (places, most) in [(64, demand::HALF_OPEN_WAITERS_MAX), (800, 100), (8_192, 1_000)] {
        let waiting = wait_for_a_probe(1_000, places * partitions);
        assert_eq!(waiting, most, "of {places} places");
    }
}

/// How many of so many callers wait for the one dial of a half-open origin, in a lane with so many places.
fn wait_for_a_probe(callers: u32, waiters_max: usize) -> usize {
    let limits = LaneLimits { backoff_base: Duration::from_millis(50), waiters_max, ..LaneLimits::default() };
    let mut cell: CellState<Pipe, u32, &str> = CellState::new(Arc::new(Tuning::new(&limits, SLOTS)));
    let mut now = Instant::now();
    let patience = Duration::from_secs(9);
    join(&mut cell, 0, now + patience, now);
    cell.step(Event::Slot { fresh: false, life: 0 }, now);
    cell.step(refused_in(0), now);
    now += Duration::from_secs(1);
    assert_eq!(cell.breaker(now), BreakerState::HalfOpen);
    let mut refused = 0;
    for waiter in 0..callers {
        let (joined, _) = join(&mut cell, waiter, now + patience, now);
        refused += usize::from(matches!(joined, Joined::Answered(Answer::Refused(Refusal::Shared { .. }))));
        cell.step(Event::Slot { fresh: false, life: 0 }, now);
    }
    let counts = cell.counts();
    assert_eq!((counts.dialling, counts.waiters + refused), (1, callers as usize));
    cell.step(refused_in(1), now);
    assert_eq!(cell.counts().waiters, 0, "they are told at once");
    counts.waiters
}
