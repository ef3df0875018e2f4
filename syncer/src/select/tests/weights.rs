//! Weights skew the comparison, and only that.

use std::sync::Arc;

use rate_limit::Outcome;

use super::fleet::{Fleet, entry};
use super::*;

/// SFUs of these weights and capacities.
fn sfus(each: &[(f64, u32)], now: Instant) -> Vec<Arc<Sfu>> {
    let entry = |(i, (weight, capacity)): (usize, &(f64, u32))| {
        entry(i, "r", &format!("capacity = {capacity}\nweight = {weight:?}"))
    };
    let entries: Vec<_> = each.iter().enumerate().map(entry).collect();
    Fleet::new(&entries, quotas(1e6, 1_000_000), now).catalogue.now().all.clone()
}

/// Places so many calls; how many each SFU got.
fn place(sfus: &[Arc<Sfu>], calls: u32, seed: u64, now: Instant) -> Vec<u32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut made = vec![0; sfus.len()];
    for _ in 0..calls {
        let Some(choice) = choose(sfus.len(), &mut rng, |i| sfus[i].fit(now).ok()) else { break };
        let taken = sfus[choice.index].reserve(now).expect("nobody else asks");
        taken.settle(Outcome::Success, true, now);
        made[choice.index] += 1;
    }
    made
}

proptest! {
    /// Each gets its part by capacity × weight. None of these would get more than twice the average, which is as much
    /// as a draw of two can give.
    #[test]
    fn r07_shares_follow_capacity_and_weight(
        each in prop::collection::vec((0.7..1.3f64, 70_000u32..130_000), 2..20), seed: u64,
    ) {
        let now = Instant::now();
        let total: f64 = each.iter().map(|(weight, capacity)| weight * f64::from(*capacity)).sum();
        let due = |(weight, capacity): (f64, u32)| weight * f64::from(capacity) / total;
        let most = each.iter().map(|of| due(*of)).fold(0.0, f64::max);
        prop_assume!(most < 1.6 / each.len() as f64);
        let calls = 500 * u32::try_from(each.len()).expect("few");
        let made = place(&sfus(&each, now), calls, seed, now);
        for (of, made) in each.iter().zip(made) {
            let due = due(*of) * f64::from(calls);
            prop_assert!((f64::from(made) / due - 1.0).abs() < 0.1, "{made} of {due:.0} due to {of:?}");
        }
    }

    /// However heavy or light, an SFU is full at its capacity and not before.
    #[test]
    fn r07_a_weight_is_no_capacity(each in prop::collection::vec((0.01..100.0f64, 1u32..60), 1..12), seed: u64) {
        let now = Instant::now();
        let sfus = sfus(&each, now);
        let made = place(&sfus, u32::MAX, seed, now);
        for ((sfu, (_, capacity)), made) in sfus.iter().zip(&each).zip(made) {
            prop_assert_eq!(made, *capacity);
            prop_assert_eq!(sfu.fit(now), Err(Excluded::Full));
            prop_assert_eq!(sfu.room(), 0);
        }
    }
}

#[test]
fn r07_half_the_weight_is_half_the_calls() {
    let now = Instant::now();
    let each: Vec<_> = (0..20).map(|i| (if i % 2 == 0 { 1.0 } else { 0.5 }, 10_000)).collect();
    let made = place(&sfus(&each, now), 30_000, 7, now);
    for (i, made) in made.into_iter().enumerate() {
        let due = if i % 2 == 0 { 2_000.0 } else { 1_000.0 };
        assert!((f64::from(made) / due - 1.0).abs() < 0.05, "{made} on sfu-{i}, {due} due");
    }
}
