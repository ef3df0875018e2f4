use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

proptest! {
    #[test]
    fn r14_a_wait_is_within_its_bound(base_ms in 0_u64..10_000, max_ms in 0_u64..100_000, attempt: u32, seed: u64) {
        let backoff = Backoff { base: Duration::from_millis(base_ms), max: Duration::from_millis(max_ms) };
        let wait = backoff.full_jitter(attempt, &mut StdRng::seed_from_u64(seed));
        prop_assert!(wait <= backoff.bound(attempt));
        prop_assert!(backoff.bound(attempt) <= backoff.max);
        prop_assert!(backoff.bound(attempt) <= backoff.bound(attempt.saturating_add(1)));
    }

    #[test]
    fn r14_any_header_is_refused_or_clamped(header in ".{0,80}") {
        if let Some(wait) = clamp_retry_after(&header, SystemTime::UNIX_EPOCH) {
            prop_assert!((RETRY_AFTER_MIN..=RETRY_AFTER_MAX).contains(&wait));
        }
    }

    #[test]
    fn r14_any_number_is_clamped(seconds in -1e30_f64..1e30) {
        let wait = clamp_retry_after(&format!("{seconds:.3}").chars().take(60).collect::<String>(), SystemTime::UNIX_EPOCH);
        prop_assert!(wait.is_some_and(|w| (RETRY_AFTER_MIN..=RETRY_AFTER_MAX).contains(&w)));
    }
}

#[test]
fn r14_waits_are_spread_over_the_whole_range() {
    let backoff = Backoff { base: Duration::from_millis(1_000), max: Duration::from_secs(60) };
    let mut rng = StdRng::seed_from_u64(1);
    let mut tenths = [0_u32; 10];
    for _ in 0..10_000 {
        let wait_ms = backoff.full_jitter(2, &mut rng).as_millis();
        tenths[usize::try_from(wait_ms / 400).expect("small").min(9)] += 1;
    }
    assert!(tenths.iter().all(|&n| (800..1_200).contains(&n)), "{tenths:?}");
}

#[test]
fn doubles_until_the_maximum() {
    let backoff = Backoff { base: Duration::from_millis(50), max: Duration::from_secs(1) };
    let bounds: Vec<_> = (0..7).map(|n| backoff.bound(n).as_millis()).collect();
    assert_eq!(bounds, [50, 100, 200, 400, 800, 1_000, 1_000]);
}

#[test]
fn retry_after_takes_seconds_and_dates_and_clamps_both() {
    let now = httpdate::parse_http_date("Wed, 25 Mar 2026 10:00:00 GMT").expect("a date");
    let ms = |header| clamp_retry_after(header, now).map(|wait| wait.as_millis());
    assert_eq!(ms("2"), Some(2_000));
    assert_eq!(ms(" 1.5 "), Some(1_500));
    assert_eq!(ms("0"), Some(100));
    assert_eq!(ms("-7"), Some(100));
    assert_eq!(ms("86400"), Some(30_000));
    assert_eq!(ms("99999999999999999999999999999999999999999999"), Some(30_000));
    assert_eq!(ms("Wed, 25 Mar 2026 10:00:05 GMT"), Some(5_000));
    assert_eq!(ms("Wed, 25 Mar 2026 09:00:00 GMT"), Some(100));
    assert_eq!(ms("Wed, 25 Mar 2099 09:00:00 GMT"), Some(30_000));
    for garbage in ["", "soon", "nan", "inf", "1e9", "--1", "1 2", "0x10", &"9".repeat(65)] {
        assert_eq!(ms(garbage), None, "{garbage}");
    }
}
