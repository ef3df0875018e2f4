//! Weights skew the comparison, and only that.

use std::sync::Arc;

use rand::RngExt as _;
use rate_limit::Outcome;

use super::fleet::{Fleet, entry};
use super::*;
use crate::state::{Rung, Seed};

/// SFUs of these weights and capacities.
fn sfus(each: &[(f64, u32)], now: Instant) -> Arc<Snapshot> {
    let entry = |(i, (weight, capacity)): (usize, &(f64, u32))| {
        entry(i, "r", &format!("capacity = {capacity}\nweight = {weight:?}"))
    };
    let entries: Vec<_> = each.iter().enumerate().map(entry).collect();
    Fleet::new(&entries, quotas(1e6, 1_000_000), now).catalogue.now()
}

/// Places so many calls; how many each SFU got.
fn place(snapshot: &Snapshot, calls: u32, seed: u64, now: Instant) -> Vec<u32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let step = snapshot.ladder(None, true)[0];
    let mut made = vec![0; step.sfus.len()];
    for _ in 0..calls {
        let seed = Seed(rng.random());
        let Some(choice) = step.choose(Care::Full, seed, |sfu, care| sfu.fit_by(care, now)) else { break };
        let taken = step.sfus[choice.index].reserve(now).expect("nobody else asks");
        taken.settle(Outcome::Success, now);
        made[choice.index] += 1;
    }
    made
}

proptest! {
    /// Each gets its part by capacity × weight.
    #[test]
    fn r07_shares_follow_capacity_and_weight(
        each in prop::collection::vec((0.1..1.0f64, 70_000u32..130_000), 2..20), seed: u64,
    ) {
        let now = Instant::now();
        let total: f64 = each.iter().map(|(weight, capacity)| weight * f64::from(*capacity)).sum();
        let due = |(weight, capacity): (f64, u32)| weight * f64::from(capacity) / total;
        let calls = 1_000 * u32::try_from(each.len()).expect("few");
        let made = place(&sfus(&each, now), calls, seed, now);
        for (of, made) in each.iter().zip(made) {
            let due = due(*of) * f64::from(calls);
            prop_assert!((f64::from(made) / due - 1.0).abs() < 0.2, "{made} of {due:.0} due to {of:?}");
        }
    }

    /// However heavy or light, an SFU is full at its capacity and not before.
    #[test]
    fn r07_a_weight_is_no_capacity(each in prop::collection::vec((0.01..100.0f64, 1u32..60), 1..12), seed: u64) {
        let now = Instant::now();
        let sfus = sfus(&each, now);
        let made = place(&sfus, u32::MAX, seed, now);
        for ((sfu, (_, capacity)), made) in sfus.all.iter().zip(&each).zip(made) {
            prop_assert_eq!(made, *capacity);
            prop_assert_eq!(sfu.fit(now), Err(Excluded::Full));
            prop_assert_eq!(sfu.room(), 0);
        }
    }
}

/// Also where most are light: among equal draws, two light ones would meet so often that they get a quarter.
#[test]
fn r07_a_tenth_of_the_weight_is_a_tenth_of_the_calls() {
    let now = Instant::now();
    let each: Vec<_> = (0..20).map(|i| (if i % 2 == 0 { 1.0 } else { 0.1 }, 10_000)).collect();
    for (i, made) in place(&sfus(&each, now), 22_000, 7, now).into_iter().enumerate() {
        let due = if i % 2 == 0 { 2_000.0 } else { 200.0 };
        assert!((f64::from(made) / due - 1.0).abs() < 0.1, "{made} on sfu-{i}, {due} due");
    }
}

#[test]
fn chances_are_known_while_weights_differ() {
    let now = Instant::now();
    let of = |weights: &[f64]| {
        let entry = |(i, weight): (usize, &f64)| entry(i, "r", &format!("capacity = 1\nweight = {weight:?}"));
        let entries: Vec<_> = weights.iter().enumerate().map(entry).collect();
        Fleet::new(&entries, quotas(1.0, 1), now).catalogue.now().chances[Rung::Any as usize].clone()
    };
    assert_eq!([of(&[]), of(&[2.0, 2.0])], [[0.0; 0]; 2]);
    assert_eq!([of(&[1.0, 0.5]), of(&[1.0, 4.0])], [[1.0, 0.5], [0.25, 1.0]]);
}

/// A heavy SFU on the other side of the world makes nobody lighter who is not drawn together with it.
#[test]
fn chances_are_among_those_of_a_rung() {
    let now = Instant::now();
    let of = |i: usize, region: &str, weight: f64| entry(i, region, &format!("capacity = 1\nweight = {weight:?}"));
    let entries = [of(0, "near", 1.0), of(1, "near", 0.5), of(2, "next", 2.0), of(3, "far", 100.0)];
    let fleet = Fleet::new(&entries, quotas(1.0, 1), now);
    let region = |name: &str| sfu_api::RegionId::new(name).expect("valid");
    let groups = [("both".to_owned(), vec![region("near"), region("next")])].into();
    fleet.catalogue.set_groups(crate::config::RegionGroups::new(groups).expect("valid"));
    let snapshot = fleet.catalogue.now();
    let chances: Vec<Vec<f64>> = snapshot
        .ladder(Some(&region("near")), true)
        .iter()
        .map(|step| (0..step.sfus.len()).map(|i| step.chance(i)).collect())
        .collect();
    let by_rung = [vec![1.0, 0.5], vec![0.5, 0.25, 1.0], vec![0.01, 0.005, 0.02, 1.0]];
    assert_eq!(chances, by_rung);
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
