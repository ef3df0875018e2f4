mod crowd;
mod fleet;
mod ladder;
mod replay;
mod weights;
mod zones;

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rate_limit::Quota;
use sfu_api::SyncerId;
use tokio::time::Instant;

use super::*;
use crate::drivers;
use crate::state::SfuIdx;
use crate::token::Signer;

fn quota(rate: f64, burst: u32) -> Quota {
    Quota::new(rate, burst).expect("a valid quota")
}

fn quotas(rate: f64, burst: u32) -> Quotas {
    let q = quota(rate, burst);
    Quotas { overall: q, region: q, sfu: q, grow_after: Duration::from_secs(10) }
}

#[test]
fn r07_ten_thousand_choices_on_stale_loads_stay_even() {
    // Reports are never refreshed: only the reservations made since tell the SFUs apart.
    let n = 200;
    let mut reserved = vec![0u32; n];
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..10_000 {
        let chosen = choose(n, &mut rng, |i| Some(f64::from(reserved[i]))).expect("all are fit");
        reserved[chosen.index] += 1;
    }
    let max = f64::from(*reserved.iter().max().expect("not empty"));
    let mean = 10_000.0 / 200.0;
    assert!(max / mean <= 1.5, "max {max} over mean {mean}");
}

#[test]
fn r04_what_is_forgotten_frees_its_name_and_never_its_number() {
    let now = Instant::now();
    let entries = [0, 1].map(|i| fleet::entry(i, "a", "capacity = 10"));
    let fleet = fleet::Fleet::new(&entries, quotas(100.0, 10), now);
    fleet.list(&entries[..1], now);
    let before = fleet.catalogue.now();
    fleet.catalogue.forget([SfuIdx(0), SfuIdx(1), SfuIdx(7)]);
    let after = fleet.catalogue.now();
    assert_eq!(after.known().map(|sfu| sfu.idx).collect::<Vec<_>>(), [SfuIdx(0)], "the other is in the catalogue");
    assert_eq!((after.revision, after.named(&entries[1].id).is_some()), (before.revision, false));
    fleet.list(&entries, now);
    let known = fleet.catalogue.now();
    assert_eq!(known.named(&entries[1].id).map(|sfu| sfu.idx), Some(SfuIdx(2)));
    assert!(known.get(SfuIdx(1)).is_none() && before.get(SfuIdx(1)).is_some(), "the past is as it was");
}

/// Whoever has a handle to what the pool has forgotten is refused for ever, so an origin that two share is kept.
#[tokio::test]
async fn r04_the_pool_forgets_what_an_sfu_was_connected_to_when_nobody_talks_to_it_any_more() {
    let now = Instant::now();
    let lane = pool::Lane::builder("sfu").build().expect("default limits are good");
    let tokens = Arc::new(Signer::generate().expect("randomness"));
    let (me, budget) = (SyncerId::new("syncer-1").expect("an id"), Budget::new(quotas(100.0, 10), now));
    let catalogue = Catalogue::default();
    let list = |sfus: &[(&str, u16)]| {
        let entry = |(id, port): &(&str, u16)| {
            let text = format!("id = \"{id}\"\nurl = \"https://127.0.0.1:{port}\"\nregion = \"a\"\ncapacity = 10");
            toml::from_str(&text).expect("an entry")
        };
        let specs = sfus.iter().map(entry).collect();
        let replaced = catalogue.replace(specs, &budget, now, |spec| drivers::build(spec, &lane, &tokens, &me));
        assert!(replaced.refused.is_empty(), "{replaced:?}");
        lane.snapshot().origins
    };
    assert_eq!(list(&[("a", 1), ("b", 2), ("c", 2), ("d", 3)]), 3);
    assert_eq!(list(&[("a", 1)]), 3, "they may come back");
    catalogue.forget([SfuIdx(0), SfuIdx(1), SfuIdx(3)]);
    assert_eq!(lane.snapshot().origins, 2, "the first is listed, and the second where the third is");
    catalogue.forget([SfuIdx(2)]);
    assert_eq!(lane.snapshot().origins, 1);
    assert_eq!(list(&[("a", 4), ("e", 4)]), 1, "it moved");
    assert_eq!(list(&[("a", 5), ("e", 4)]), 2, "the other did not");
}

#[test]
fn r09_shares_shrink_at_once_and_grow_one_ttl_later() {
    let t = Instant::now();
    let budget = Budget::new(quotas(300.0, 30), t);
    assert!(budget.set_ready(3, t));
    assert!((budget.sfu_share().rate_per_s - 100.0).abs() < 1e-9);
    assert!(!budget.set_ready(1, t), "growth waits");
    assert_eq!(budget.parts(), 3);
    assert!(!budget.tick(t + Duration::from_secs(9)));
    assert!(budget.tick(t + Duration::from_secs(10)));
    assert_eq!(budget.parts(), 1);
}

#[test]
fn r09_a_member_that_comes_back_cancels_the_growth() {
    let t = Instant::now();
    let budget = Budget::new(quotas(300.0, 30), t);
    budget.set_ready(3, t);
    budget.set_ready(2, t);
    budget.set_ready(3, t);
    assert!(!budget.tick(t + Duration::from_secs(60)));
    assert_eq!(budget.parts(), 3);
}

proptest! {
    /// A fit one is found whenever there is one, and an unfit one is never chosen.
    #[test]
    fn choose_finds_exactly_the_fit(fit in prop::collection::vec(any::<bool>(), 0..80), seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let chosen = choose(fit.len(), &mut rng, |i| fit[i].then_some(0.5));
        prop_assert_eq!(chosen.is_some(), fit.contains(&true));
        if let Some(c) = chosen {
            prop_assert!(fit[c.index]);
            prop_assert!(c.rival.is_none_or(|(r, _)| r != c.index && fit[r]));
            prop_assert_eq!(c.rival.is_some(), fit.iter().filter(|f| **f).count() > 1);
        }
    }

    /// Two syncers see each other come and go, each with its own delay below the grow time. Their
    /// shares never add up to more than the limit while both are there.
    #[test]
    fn r09_two_views_never_overdraw(steps in prop::collection::vec((0usize..2, any::<bool>(), 0u64..8), 1..80)) {
        let mut now = Instant::now();
        let views = [Budget::new(quotas(100.0, 10), now), Budget::new(quotas(100.0, 10), now)];
        for v in &views { v.set_ready(2, now); }
        // When each began to believe that the other is gone; a wrong belief is corrected within 9 s.
        let mut alone: [Option<Instant>; 2] = [None, None];
        for (who, other_is_there, gap_s) in steps {
            now += Duration::from_secs(gap_s);
            for (v, since) in views.iter().zip(&mut alone) {
                if since.is_some_and(|at| now - at >= Duration::from_secs(9)) {
                    v.set_ready(2, now.checked_sub(Duration::from_secs(1)).expect("later than the start"));
                    *since = None;
                }
                v.tick(now);
            }
            views[who].set_ready(if other_is_there { 2 } else { 1 }, now);
            alone[who] = if other_is_there { None } else { alone[who].or(Some(now)) };
            let sum: f64 = views.iter().map(|v| v.sfu_share().rate_per_s).sum();
            prop_assert!(sum <= 100.0 + 1e-9, "{sum}");
        }
    }

    /// And when one is really gone, the other gets its share, one grow time later and not before.
    #[test]
    fn r09_the_survivor_takes_over_one_grow_time_later(waits in prop::collection::vec(1u64..4, 4..20)) {
        let start = Instant::now();
        let budget = Budget::new(quotas(100.0, 10), start);
        budget.set_ready(2, start);
        budget.set_ready(1, start);
        let mut now = start;
        for wait in waits {
            now += Duration::from_secs(wait);
            budget.tick(now);
            let due = now - start >= Duration::from_secs(10);
            prop_assert_eq!(budget.parts(), if due { 1 } else { 2 });
        }
    }
}
