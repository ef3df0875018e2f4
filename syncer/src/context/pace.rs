//! How fast placements really go, measured over the last seconds.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::state::{Class, Demand};

/// Resolution: four ticks a second are what an operator can read.
const TICK: Duration = Duration::from_millis(250);

/// Ticks kept: 5 s even out a region's bucket that opens ten times a second, and follow a change of pace
/// while somebody still looks.
const TICKS: usize = 20;

/// Work has to have waited so long without a break before its rate says how fast it can go. Before, the
/// burst of the buckets shows, or the rate at which calls came.
const STEADY: Duration = Duration::from_secs(2);

/// Part that one attempt has in the mean duration: about the last sixteen count.
const SMOOTHING: f64 = 1.0 / 16.0;

type ByClass<T> = [T; Class::ALL.len()];

/// The measure.
#[derive(Debug, Default)]
pub struct Pace {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Placements in each tick; the last one is under way.
    ticks: Vec<ByClass<u32>>,
    tick_at: Option<Instant>,
    /// Since when calls of a class have waited without a break.
    busy: ByClass<Option<Instant>>,
    attempt_s: f64,
}

// === impl Pace ===

impl Pace {
    /// A call of this class got its place.
    pub fn placed(&self, class: Class, now: Instant) {
        let inner = &mut *self.inner.lock();
        inner.turn(now);
        if let Some(tick) = inner.ticks.last_mut() {
            tick[class as usize] += 1;
        }
    }

    /// An attempt took so long.
    pub fn attempt(&self, took: Duration) {
        let inner = &mut *self.inner.lock();
        inner.attempt_s += (took.as_secs_f64() - inner.attempt_s) * SMOOTHING;
    }

    /// Takes note of what waits now.
    pub fn look(&self, demand: &Demand, now: Instant) {
        let inner = &mut *self.inner.lock();
        inner.turn(now);
        for class in Class::ALL {
            let busy = &mut inner.busy[class as usize];
            *busy = (demand.of(class) > 0).then(|| busy.unwrap_or(now));
        }
    }

    /// Limits have changed: what was measured before says nothing of what comes.
    pub fn forget(&self, now: Instant) {
        let inner = &mut *self.inner.lock();
        for busy in inner.busy.iter_mut().flatten() {
            *busy = now;
        }
    }

    /// How long an attempt takes on average, in seconds.
    #[must_use]
    pub fn attempt_s(&self) -> f64 {
        self.inner.lock().attempt_s
    }

    /// Placements of a class per second, over the last seconds.
    #[must_use]
    pub fn rate_per_s(&self, class: Class, now: Instant) -> f64 {
        self.inner.lock().rate(class, TICK * u32::try_from(TICKS).unwrap_or(u32::MAX), now)
    }

    /// Placements of a class per second while there was always one waiting; `None` as long as that is not
    /// yet known.
    #[must_use]
    pub fn steady_per_s(&self, class: Class, now: Instant) -> Option<f64> {
        let inner = &mut *self.inner.lock();
        let busy = now.saturating_duration_since(inner.busy[class as usize]?);
        (busy >= STEADY).then(|| inner.rate(class, busy, now))
    }
}

// === impl Inner ===

impl Inner {
    /// Begins the tick of `now`.
    fn turn(&mut self, now: Instant) {
        let at = *self.tick_at.get_or_insert(now);
        let passed = now.saturating_duration_since(at).as_nanos() / TICK.as_nanos();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        self.tick_at = Some(at + TICK * passed);
        let begun = if self.ticks.is_empty() { 1 } else { (passed as usize).min(TICKS + 1) };
        self.ticks.extend(std::iter::repeat_n(ByClass::default(), begun));
        let kept = self.ticks.len().saturating_sub(TICKS + 1);
        self.ticks.drain(..kept);
    }

    /// Over whole ticks within the last `within`.
    fn rate(&mut self, class: Class, within: Duration, now: Instant) -> f64 {
        self.turn(now);
        let whole = (within.as_nanos() / TICK.as_nanos()).min(TICKS as u128) as usize;
        let whole = whole.min(self.ticks.len().saturating_sub(1)).max(1);
        let count: u32 = self.ticks.iter().rev().skip(1).take(whole).map(|tick| tick[class as usize]).sum();
        f64::from(count) / (TICK * u32::try_from(whole).unwrap_or(1)).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting() -> Demand {
        let mut demand = Demand::default();
        demand.add(None, Class::Repair, 1);
        demand
    }

    #[test]
    fn a_steady_rate_is_measured_and_only_while_work_waited() {
        let (pace, start) = (Pace::default(), Instant::now());
        let mut now = start;
        for n in 0..400 {
            pace.look(&waiting(), now);
            pace.placed(Class::Repair, now);
            now = start + Duration::from_millis(20) * (n + 1);
            let known = pace.steady_per_s(Class::Repair, now);
            assert_eq!(known.is_some(), now - start >= STEADY, "{known:?} after {:?}", now - start);
            assert!(known.is_none_or(|rate| (rate - 50.0).abs() <= 4.0), "{known:?} after {:?}", now - start);
        }
        assert!((pace.rate_per_s(Class::Repair, now) - 50.0).abs() <= 4.0);
        assert_eq!(pace.steady_per_s(Class::New, now), None);
        pace.look(&Demand::default(), now);
        assert_eq!(pace.steady_per_s(Class::Repair, now), None, "nothing waits");
        assert!(pace.rate_per_s(Class::Repair, now + Duration::from_secs(60)) == 0.0, "long ago");
        pace.look(&waiting(), now);
        pace.forget(now + Duration::from_secs(3));
        assert_eq!(pace.steady_per_s(Class::Repair, now + Duration::from_secs(4)), None, "limits have changed");
    }

    #[test]
    fn the_mean_duration_follows() {
        let pace = Pace::default();
        for _ in 0..100 {
            pace.attempt(Duration::from_millis(50));
        }
        assert!((pace.attempt_s() - 0.05).abs() < 0.001, "{}", pace.attempt_s());
    }
}
