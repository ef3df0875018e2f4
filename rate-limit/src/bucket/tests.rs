use proptest::prelude::*;

use super::*;

fn quota(rate_per_s: f64, burst: u32) -> Quota {
    Quota::new(rate_per_s, burst).expect("valid")
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Takes at the given steps and returns what was admitted, as (time since the start, tokens).
fn admitted(bucket: &Bucket, start: Instant, steps: &[(u64, u32)]) -> Vec<(f64, u32)> {
    let mut at = Duration::ZERO;
    let mut log = Vec::new();
    for &(step_us, n) in steps {
        at += Duration::from_micros(step_us);
        if bucket.try_take(n, start + at).is_ok() {
            log.push((at.as_secs_f64(), n));
        }
    }
    log
}

/// The most by which any window of `log` exceeds the law, in tokens. Looks at every window: slow and plain.
fn worst_excess(log: &[(f64, u32)], rate: f64, burst: u32) -> f64 {
    let mut worst = f64::MIN;
    for from in 0..log.len() {
        let mut sum = 0.0;
        for &(at, n) in &log[from..] {
            sum += f64::from(n);
            worst = worst.max(sum - (f64::from(burst) + rate * (at - log[from].0)));
        }
    }
    worst
}

fn steps() -> impl Strategy<Value = Vec<(u64, u32)>> {
    proptest::collection::vec((prop_oneof![0_u64..50, 0_u64..500_000], 1_u32..6), 1..200)
}

proptest! {
    #[test]
    fn r07_no_window_is_overdrawn(rate in 0.1_f64..5_000.0, burst in 1_u32..100, steps in steps()) {
        let start = Instant::now();
        let log = admitted(&Bucket::new(quota(rate, burst), start), start, &steps);
        prop_assert!(worst_excess(&log, rate, burst) <= 1e-5);
    }

    /// Whatever is taken, used at once, or given back later by whoever did not use it after all: what is used keeps
    /// within the law, in any window.
    #[test]
    fn r07_tokens_that_are_given_back_late_are_not_spent_twice(
        rate in 0.1_f64..500.0, burst in 1_u32..20,
        steps in proptest::collection::vec((prop_oneof![0_u64..50, 0_u64..500_000], 0_u8..4), 1..200),
    ) {
        let start = Instant::now();
        let (bucket, mut at, mut log) = (Bucket::new(quota(rate, burst), start), Duration::ZERO, Vec::new());
        let mut unused = std::collections::VecDeque::new();
        for (step_us, what) in steps {
            at += Duration::from_micros(step_us);
            match what {
                0 => unused.extend(bucket.try_take(1, start + at).is_ok().then_some(at)),
                1 => if let Some(taken) = unused.pop_front() { bucket.give_back_late(1, start + taken, start + at); },
                _ => log.extend(bucket.try_take(1, start + at).is_ok().then_some((at.as_secs_f64(), 1))),
            }
        }
        prop_assert!(worst_excess(&log, rate, burst) <= 1e-5);
    }

    #[test]
    fn decides_like_a_naive_token_count(rate in 1_u32..100, burst in 1_u32..50, steps in steps()) {
        // The model keeps whole millionths of a token, so it has no rounding: rate per second = rate per µs in millionths.
        let start = Instant::now();
        let bucket = Bucket::new(quota(f64::from(rate), burst), start);
        let cap = u64::from(burst) * 1_000_000;
        let (mut tokens, mut at_us) = (cap, 0);
        for (step_us, n) in steps {
            at_us += step_us;
            tokens = (tokens + step_us * u64::from(rate)).min(cap);
            let model = tokens >= u64::from(n) * 1_000_000;
            // Within ten millionths of a token of the edge, either answer is right.
            let edge = tokens.abs_diff(u64::from(n) * 1_000_000) <= 10;
            let real = bucket.try_take(n, start + Duration::from_micros(at_us)).is_ok();
            prop_assert!(real == model || edge, "at {at_us} µs: {real}, model {model} with {tokens}");
            tokens = if real { tokens.saturating_sub(u64::from(n) * 1_000_000) } else { tokens };
        }
    }

    #[test]
    fn r20_a_smaller_quota_bites_at_once(
        before in (1.0_f64..1_000.0, 2_u32..100),
        after in (0.1_f64..50.0, 1_u32..20),
        first in steps(),
        then in steps(),
    ) {
        let after = (after.0.min(before.0), after.1.min(before.1));
        let start = Instant::now();
        let bucket = Bucket::new(quota(before.0, before.1), start);
        let changed = start + ms(200_000); // later than any step of `first`
        admitted(&bucket, start, &first);
        bucket.try_take(bucket.available(changed), changed).expect("what is available can be taken");
        bucket.set_quota(quota(after.0, after.1), changed);
        prop_assert_eq!(bucket.available(changed), 0);
        let log = admitted(&bucket, changed, &then);
        prop_assert!(worst_excess(&log, after.0, after.1) <= 1e-5);
        // The drained bucket starts empty under the new quota as well.
        let spent: f64 = log.iter().map(|&(_, n)| f64::from(n)).sum();
        let last = log.last().map_or(0.0, |&(at, _)| at);
        prop_assert!(spent <= after.0 * last + 1e-5);
    }

    /// A limit that is cut while all of it is used: empty from then on, and not for longer than a token takes.
    #[test]
    fn r20_a_limit_that_is_cut_holds_at_once_and_admits_at_once(
        before in (1.0_f64..10_000.0, 1_u32..10_000), after in (0.1_f64..50.0, 1_u32..20), shut: bool, then in steps(),
    ) {
        let after = quota(after.0.min(before.0), after.1.min(before.1));
        let start = Instant::now();
        let bucket = Bucket::new(quota(before.0, before.1), start);
        bucket.try_take(before.1, start).expect("full");
        if shut {
            bucket.set_limit(Quota::CLOSED, start);
        }
        bucket.set_limit(after, start);
        prop_assert_eq!(bucket.available(start), 0);
        let soon = start + Duration::from_secs_f64(1.0 / after.rate_per_s) + Duration::from_micros(10);
        prop_assert!(bucket.ready_at(start) <= soon, "stopped for {:?}", bucket.ready_at(start) - start);
        let log = admitted(&bucket, start, &then);
        prop_assert!(worst_excess(&log, after.rate_per_s, after.burst) <= 1e-5);
        let spent: f64 = log.iter().map(|&(_, n)| f64::from(n)).sum();
        prop_assert!(spent <= after.rate_per_s * log.last().map_or(0.0, |&(at, _)| at) + 1e-5);
    }

    /// Whoever turns a limit down and up again has no more of it than if it had stayed up.
    #[test]
    fn i04_a_limit_that_is_turned_up_and_down_mints_nothing(
        turns in proptest::collection::vec((0_u32..50, 1_u32..60, 0_u64..200), 1..60),
    ) {
        const RATE: f64 = 20.0;
        const MOST: u32 = 50;
        let start = Instant::now();
        let (bucket, mut at, mut log) = (Bucket::new(quota(RATE, MOST), start), Duration::ZERO, Vec::new());
        for (burst, n, wait_ms) in turns {
            at += ms(wait_ms);
            bucket.set_limit(quota(RATE, burst + 1), start + at);
            for _ in 0..n {
                if bucket.try_take(1, start + at).is_ok() {
                    log.push((at.as_secs_f64(), 1));
                }
            }
        }
        prop_assert!(worst_excess(&log, RATE, MOST) <= 1e-5);
    }

    #[test]
    fn ready_at_is_true(rate in 0.5_f64..5_000.0, burst in 1_u32..100, n in 1_u32..100, late_us in 0_u64..1_000_000) {
        let n = n.min(burst);
        let start = Instant::now();
        let bucket = Bucket::new(quota(rate, burst), start);
        bucket.try_take(burst, start).expect("full");
        if let Err(not_yet) = bucket.try_take(n, start + Duration::from_micros(late_us)) {
            let early = not_yet.ready_at - Duration::from_micros(10);
            prop_assert!(bucket.try_take(n, early).is_err() || rate * 1e-5 > f64::from(n));
            let ready = bucket.try_take(n, not_yet.ready_at).is_ok();
            prop_assert!(ready || not_yet.ready_at == start + Duration::from_micros(late_us) + RECHECK_MAX);
        }
    }

    #[test]
    fn what_is_given_back_can_be_taken_again(rate in 0.1_f64..1_000.0, burst in 1_u32..100, n in 1_u32..100) {
        let now = Instant::now();
        let bucket = Bucket::new(quota(rate, burst), now);
        let taken = bucket.try_take(n, now).is_ok();
        prop_assert_eq!(taken, n <= burst);
        bucket.give_back(if taken { n } else { 0 }, now);
        prop_assert_eq!(bucket.available(now), burst);
        bucket.give_back(n, now);
        prop_assert_eq!(bucket.available(now), burst, "never above the burst");
    }
}

#[test]
fn a_refusal_changes_nothing() {
    let now = Instant::now();
    let bucket = Bucket::new(quota(1.0, 1), now);
    bucket.try_take(1, now).expect("full");
    for i in 0..1_000 {
        assert!(bucket.try_take(1, now + Duration::from_micros(999 * i)).is_err());
    }
    assert!(bucket.try_take(1, now + ms(1_000)).is_ok());
}

#[test]
fn an_older_clock_reading_earns_nothing() {
    let now = Instant::now() + ms(10_000);
    let bucket = Bucket::new(quota(10.0, 1), now);
    bucket.try_take(1, now).expect("full");
    assert!(bucket.try_take(1, now - ms(5_000)).is_err());
    assert!(bucket.try_take(1, now + ms(50)).is_err());
    assert!(bucket.try_take(1, now + ms(100)).is_ok());
}

#[test]
fn r20_closed_admits_nothing_until_it_is_opened() {
    let now = Instant::now();
    for closed in [Quota::CLOSED, quota(0.0, 5), quota(5.0, 0)] {
        let bucket = Bucket::new(closed, now);
        let not_yet = bucket.try_take(1, now + ms(3_600_000)).expect_err("closed");
        assert_eq!(not_yet.ready_at, now + ms(3_600_000) + RECHECK_MAX);
        assert_eq!(bucket.available(now + ms(3_600_000)), 0);
        bucket.set_quota(quota(1.0, 1), now);
        assert!(bucket.try_take(1, now).is_ok());
    }
}

#[test]
fn more_than_the_burst_is_never_there() {
    let now = Instant::now();
    let bucket = Bucket::new(quota(100.0, 3), now);
    assert_eq!(bucket.try_take(4, now).expect_err("too many").ready_at, now + RECHECK_MAX);
    assert_eq!(bucket.available(now), 3);
}

#[test]
fn quota_refuses_what_is_not_a_rate() {
    for bad in [-1.0, f64::NAN, f64::INFINITY, RATE_PER_S_MAX * 1.01] {
        assert!(Quota::new(bad, 1).is_err(), "{bad}");
    }
    assert!(Quota::new(0.0, 1).is_ok_and(|q| q.is_closed()));
}

#[test]
fn r09_shares_add_up_to_no_more_than_the_whole() {
    let whole = quota(90.0, 10);
    for parts in 1..=10 {
        let share = whole.share(parts);
        assert!(share.rate_per_s * f64::from(parts) <= whole.rate_per_s + 1e-9);
        assert!(share.burst * parts <= whole.burst);
    }
    assert_eq!(whole.share(0), whole);
    assert_eq!(whole.share(1_000).burst, 1, "a share that can never be used would be an outage");
    assert!(Quota::CLOSED.share(3).is_closed());
}

#[test]
fn r07_threads_cannot_overdraw() {
    let now = Instant::now();
    let bucket = Bucket::new(quota(1.0, 1_000), now);
    let taken: usize = std::thread::scope(|scope| {
        let take = || (0..1_000).filter(|_| bucket.try_take(1, now).is_ok()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).sum()
    });
    assert_eq!(taken, 1_000);
}

#[test]
fn r08_spare_tokens_are_those_of_the_upper_half() {
    let start = Instant::now();
    let bucket = Bucket::new(quota(10.0, 10), start);
    let spare = |at| std::iter::repeat_with(|| bucket.try_take_spare(1, at)).take_while(|taken| *taken).count();
    assert_eq!((spare(start), bucket.available(start)), (5, 5), "half of them are nobody's to spare");
    assert!(bucket.try_take(5, start).is_ok(), "and are there for who has to pay");
    assert_eq!(spare(start + ms(500)), 0, "half full is not more than half");
    assert_eq!(spare(start + ms(600)), 1);
    assert!(!bucket.try_take_spare(11, start + ms(5_000)), "all or none");
    assert_eq!(bucket.available(start + ms(5_000)), 10);
}
