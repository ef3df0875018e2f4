//! Golden vectors and properties of slots, ranks and plans.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use sfu_api::{GuildId, OwnerTerm, SLOTS, Slot, SyncerId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::registry::{Embedded, LEASE_TTL, Member, Registry as _, Snapshot};

fn id(s: &str) -> SyncerId {
    SyncerId::new(s).expect("an id")
}

fn member(name: &str, zone: &str, weight: u32) -> Member {
    Member { weight, ..Member::new(id(name), format!("http://{name}"), zone) }
}

fn roster(members: impl IntoIterator<Item = Member>) -> BTreeMap<SyncerId, Member> {
    members.into_iter().map(|m| (m.id.clone(), m)).collect()
}

fn slots() -> impl Iterator<Item = Slot> {
    (0..SLOTS).filter_map(Slot::new)
}

/// Another implementation must give these; a change here re-homes every guild.
#[test]
fn slot_golden_vectors() {
    let slot = |g: &str| slot_of(&GuildId::new(g).expect("an id")).get();
    let golden = ["a", "b", "g1", "guild-1", "81384788765712384", "81384788765712385", "é"].map(slot);
    assert_eq!(golden, GOLDEN_SLOTS);
}

const GOLDEN_SLOTS: [u16; 7] = [3675, 720, 3761, 2725, 3617, 929, 1595];

#[test]
fn slots_are_even_on_snowflakes() {
    let mut count = vec![0_u32; usize::from(SLOTS)];
    for n in 0..409_600_u64 {
        let guild = GuildId::new((81_384_788_765_712_384 + n * 4_194_304).to_string()).expect("an id");
        count[usize::from(slot_of(&guild).get())] += 1;
    }
    // 100 expected per slot; a fair hash leaves the extremes within ±6 standard deviations.
    let (least, most) = (count.iter().min().expect("some"), count.iter().max().expect("some"));
    assert!(*least > 40 && *most < 160, "{least}..{most}");
}

#[test]
fn rank_golden_vector() {
    let ranking = rank(&roster([member("s-1", "a", 100), member("s-2", "a", 100), member("s-3", "b", 100)]));
    let firsts: Vec<&str> =
        slots().take(8).filter_map(|s| ranking.candidates(s).next()).map(SyncerId::as_str).collect();
    assert_eq!(firsts, GOLDEN_FIRSTS);
}

const GOLDEN_FIRSTS: [&str; 8] = ["s-2", "s-1", "s-2", "s-1", "s-2", "s-3", "s-1", "s-2"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn shares_follow_weights_and_the_second_is_in_another_zone(
        weights in proptest::collection::vec(50_u32..200, 2..8),
    ) {
        let members = weights.iter().enumerate().map(|(i, w)| {
            member(&format!("m-{i}"), if i % 2 == 0 { "a" } else { "b" }, *w)
        });
        let roster = roster(members);
        let ranking = rank(&roster);
        let total: u32 = weights.iter().sum();
        let mut firsts = BTreeMap::<&SyncerId, u32>::new();
        for slot in slots() {
            let row: Vec<_> = ranking.candidates(slot).collect();
            prop_assert_eq!(row.len(), weights.len().min(3));
            prop_assert_ne!(&roster[row[0]].zone, &roster[row[1]].zone);
            *firsts.entry(row[0]).or_default() += 1;
        }
        for member in roster.values() {
            let expected = f64::from(SLOTS) * f64::from(member.weight) / f64::from(total);
            let seen = f64::from(firsts.get(&member.id).copied().unwrap_or(0));
            prop_assert!((seen - expected).abs() < 6.0 * expected.sqrt(), "{} has {seen}, not {expected}", member.id);
        }
    }

    #[test]
    fn r12_a_leaver_moves_only_its_own_slots(n in 3_usize..8, gone in 0_usize..8) {
        let gone = gone % n;
        let all = |without: Option<usize>| roster(
            (0..n).filter(|i| Some(*i) != without).map(|i| member(&format!("m-{i}"), "z", 100)));
        let (before, after) = (rank(&all(None)), rank(&all(Some(gone))));
        for slot in slots() {
            let (b, a) = (before.candidates(slot).next(), after.candidates(slot).next());
            if b != Some(&id(&format!("m-{gone}"))) {
                prop_assert_eq!(b, a);
            }
        }
    }
}

#[test]
fn r12_a_dead_member_keeps_its_rank() {
    let mut all = roster([member("a", "z", 100), member("b", "z", 100)]);
    let before = rank(&all);
    all.get_mut(&id("b")).expect("listed").live = false;
    assert!(before.is_of(&all));
    let snapshot = Snapshot { roster: all, ..Snapshot::default() };
    let plan = Plan::make(&snapshot, &before, &id("a"), &Held::new(), &Held::new());
    let mine = slots().filter(|s| before.candidates(*s).next() == Some(&id("a"))).count();
    assert_eq!(plan.claim.len(), mine, "the dead member's slots are not taken over");
}

#[test]
fn a_plan_serves_only_terms_of_this_process_and_claims_fenced_ones_again() {
    let roster = roster([member("a", "z", 100)]);
    let ranking = rank(&roster);
    let term = OwnerTerm { generation: 1, revision: 5 };
    let record = crate::registry::SlotRecord { owner: id("a"), standby: None, term };
    let snapshot = Snapshot { roster, slots: vec![Some(record); usize::from(SLOTS)].into(), ..Snapshot::default() };
    let held: Held = slots().map(|s| (s, term)).collect();
    let plan = |held: &Held, fences: &Held| Plan::make(&snapshot, &ranking, &id("a"), held, fences);
    let (none, all) = (Held::new(), usize::from(SLOTS));
    assert_eq!((plan(&held, &none).owned.len(), plan(&held, &none).claim.len()), (all, 0));
    let unknown = plan(&none, &none);
    assert_eq!((unknown.owned.len(), unknown.claim.len()), (0, all), "an earlier process' record is claimed anew");
    let fence = slots().take(2).map(|s| (s, term)).collect();
    let fenced = plan(&held, &fence);
    assert_eq!((fenced.owned.len(), fenced.claim.len()), (all, 2), "claimed again, and served meanwhile");
    let below = slots().map(|s| (s, OwnerTerm { generation: 1, revision: 4 })).collect();
    assert_eq!(plan(&held, &below).claim.len(), 0);
}

#[test]
fn r09_a_share_shrinks_at_once_and_grows_one_lease_later() {
    let (t0, mut count) = (Instant::now(), ReadyCount::new(LEASE_TTL));
    assert_eq!(count.update(3, t0), 3);
    assert_eq!(count.update(2, t0), 3);
    assert_eq!(count.update(2, t0 + LEASE_TTL / 2), 3);
    assert_eq!(count.update(2, t0 + LEASE_TTL), 2);
    assert_eq!(count.update(4, t0 + LEASE_TTL), 4);
}

#[derive(Debug, Default)]
struct Sink(Mutex<(Vec<(Slot, OwnerTerm)>, u32)>, Mutex<Option<usize>>);

impl SlotSink for Sink {
    fn set_owned(&self, owned: &[(Slot, OwnerTerm)], _: Instant) {
        self.0.lock().0 = owned.to_vec();
        // Once told to watch: the fewest slots it was ever given.
        if let Some(fewest) = &mut *self.1.lock() {
            *fewest = owned.len().min(*fewest);
        }
    }
    fn set_ready_members(&self, ready: u32, _: Instant) {
        self.0.lock().1 = ready;
    }
}

async fn until(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < deadline, "not within 30 s");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn three_members_of_one_registry_share_all_slots_and_a_fence_is_overtaken() {
    let registry = Embedded::in_memory();
    let names = ["a", "b", "c"];
    registry.list_members(names.iter().map(|n| member(n, "z", 100)).collect()).await.expect("listed");
    let cancel = CancellationToken::new();
    let (fence, fenced) = tokio::sync::watch::channel(Held::new());
    let tracker = tokio_util::task::TaskTracker::new();
    let mut sinks = Vec::new();
    for name in names {
        registry.announce(member(name, "z", 100), Instant::now()).await.expect("announced");
        let ownership = Ownership::new(id(name), Arc::clone(&registry) as Arc<dyn crate::registry::Registry>);
        let sink = Arc::new(Sink::default());
        sinks.push((Arc::clone(&sink), Arc::clone(&ownership)));
        let (fenced, cancel) = (fenced.clone(), cancel.clone());
        tracker.spawn(async move { ownership.run(&*sink, fenced, cancel).await });
    }
    let total = || sinks.iter().map(|(s, _)| s.0.lock().0.len()).sum::<usize>();
    until(|| total() == usize::from(SLOTS) && sinks.iter().all(|(s, o)| o.settled() && s.0.lock().1 == 3)).await;
    let (view, guild) = (sinks[0].1.view(), GuildId::new("g").expect("an id"));
    assert_eq!(view.owner_of(&guild).map(|o| o.id.clone()), sinks[1].1.look().owner_of(&guild).map(|o| o.id.clone()));
    assert_eq!(view.peers().count(), 2);

    let seen = OwnerTerm { generation: 3, revision: 7 };
    let held: Vec<usize> = sinks.iter().map(|(s, _)| s.0.lock().0.len()).collect();
    for (sink, _) in &sinks {
        *sink.1.lock() = Some(usize::MAX);
    }
    let third = |slot: &Slot| slot.get().is_multiple_of(3);
    fence.send_replace(slots().filter(third).map(|s| (s, seen)).collect());
    let above = || sinks.iter().flat_map(|(s, _)| s.0.lock().0.clone()).filter(|(s, t)| third(s) && *t > seen).count();
    until(|| above() == slots().filter(third).count()).await;
    let fewest: Vec<usize> = sinks.iter().map(|(s, _)| s.1.lock().expect("watching")).collect();
    assert_eq!(fewest, held, "I5: no slot was let go of while it was claimed again, so no call was forgotten");
    let others = sinks.iter().flat_map(|(s, _)| s.0.lock().0.clone()).filter(|(s, t)| !third(s) && *t < seen).count();
    assert_eq!(others, slots().filter(|s| !third(s)).count(), "only what was fenced is claimed again");
    cancel.cancel();
    tracker.close();
    tracker.wait().await;
}
