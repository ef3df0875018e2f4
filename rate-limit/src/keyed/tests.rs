use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn quota(rate_per_s: f64, burst: u32) -> Quota {
    Quota::new(rate_per_s, burst).expect("valid")
}

proptest! {
    #[test]
    fn r04_memory_is_bounded_and_the_table_is_consistent(
        keys_max in 1_usize..20,
        takes in proptest::collection::vec((0_u32..60, 1_u32..4, 0_u64..2_000), 1..300),
    ) {
        let mut now = Instant::now();
        let keyed = Keyed::new(quota(2.0, 4), keys_max);
        for (key, n, step_ms) in takes {
            now += Duration::from_millis(step_ms);
            let before = keyed.available(&key, now);
            let taken = keyed.try_take(&key, n, now).is_ok();
            prop_assert!(!taken || n <= before);
            let table = keyed.table.lock();
            prop_assert!(table.seats.len() <= keys_max);
            prop_assert_eq!(table.index.len(), table.seats.len());
            prop_assert!(table.index.iter().all(|(key, &seat)| table.seats[seat].0 == *key));
        }
    }

    #[test]
    fn r07_many_keys_cannot_wash_off_their_debt(
        keys_max in 1_usize..10,
        takes in proptest::collection::vec((0_u32..1_000, 0_u64..100), 1..500),
    ) {
        let start = Instant::now();
        let (rate, burst) = (3.0, 5);
        let keyed = Keyed::new(quota(rate, burst), keys_max);
        let (mut at_ms, mut admitted) = (0, 0_u32);
        for (key, step_ms) in takes {
            at_ms += step_ms;
            admitted += u32::from(keyed.try_take(&key, 1, start + Duration::from_millis(at_ms)).is_ok());
        }
        let seconds = Duration::from_millis(at_ms).as_secs_f64();
        let law = keys_max as f64 * (f64::from(burst) + rate * seconds);
        prop_assert!(f64::from(admitted) <= law + 1e-5, "{admitted} > {law}");
    }
}

#[test]
fn keys_do_not_share_tokens() {
    let now = Instant::now();
    let keyed = Keyed::new(quota(1.0, 1), 10);
    assert!(keyed.try_take(&"a", 1, now).is_ok());
    assert!(keyed.try_take(&"a", 1, now).is_err());
    assert!(keyed.try_take(&"b", 1, now).is_ok());
    keyed.give_back(&"a", 1, now);
    assert_eq!((keyed.available(&"a", now), keyed.available(&"b", now), keyed.available(&"new", now)), (1, 0, 1));
}

#[test]
fn an_idle_key_goes_before_a_busy_one() {
    let now = Instant::now();
    let keyed = Keyed::new(quota(1.0, 100), 3);
    for (key, n) in [("busy", 100), ("idle", 1), ("busier", 100)] {
        keyed.try_take(&key, n, now).expect("full");
    }
    let later = now + Duration::from_secs(2);
    assert!(keyed.try_take(&"new", 100, later).is_ok(), "the idle seat came without debt");
    assert_eq!(keyed.len(), 3);
    assert_eq!(keyed.available(&"busy", later), 2, "the busy keep their debt");
    assert_eq!(keyed.available(&"busier", later), 2);
}

#[test]
fn a_newcomer_to_a_busy_table_inherits_the_least_debt() {
    let now = Instant::now();
    let keyed = Keyed::new(quota(1.0, 10), 2);
    keyed.try_take(&"most", 10, now).expect("full");
    keyed.try_take(&"least", 4, now).expect("full");
    assert!(keyed.try_take(&"new", 7, now).is_err());
    assert!(keyed.try_take(&"new", 6, now).is_ok());
}

#[test]
fn r20_a_smaller_quota_bites_every_key_at_once() {
    let now = Instant::now();
    let keyed = Keyed::new(quota(1.0, 10), 5);
    keyed.try_take(&"a", 4, now).expect("full");
    keyed.set_limit(quota(1.0, 5), now);
    assert_eq!((keyed.available(&"a", now), keyed.available(&"b", now)), (1, 5));
    keyed.set_limit(Quota::CLOSED, now);
    assert!(keyed.try_take(&"a", 1, now + Duration::from_secs(100)).is_err());
    assert!(keyed.quota().is_closed());
    assert!(!keyed.is_empty());
}
