//! What is left of a failing zone is left alone while there are others, and taken when there are none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rate_limit::Outcome;

use super::fleet::{Fleet, entry};
use super::*;
use crate::health::{Evidence, Failure, Rules, Verdict};
use crate::state::{Rung, Seed, SfuIdx};

/// Longer than a zone counts as failing when it no longer is.
const CALM: Duration = Duration::from_secs(10);

/// How an SFU is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Fit,
    /// Out of tokens.
    Busy,
    /// It asked for patience.
    Silent,
    /// Taken out by an operator: that says nothing of its zone.
    Cordoned,
    /// Suspect.
    Bad,
}

fn rules() -> Rules {
    Rules::default()
}

/// Two time-outs make it suspect.
fn fail(sfu: &Sfu, now: Instant) {
    for _ in 0..2 {
        sfu.observe(&Evidence::Failed { failure: Failure::TimedOut, fresh: false }, &rules(), now);
    }
    assert_eq!(sfu.verdict(), Verdict::Suspect);
}

fn recover(sfu: &Sfu, now: Instant) {
    let answered = Evidence::Answered { boot_id: None, asked: now, took: Duration::from_millis(1) };
    sfu.observe(&answered, &rules(), now);
    assert_eq!(sfu.verdict(), Verdict::Healthy);
}

fn become_so(sfu: &Arc<Sfu>, is: Is, now: Instant) {
    match is {
        Is::Fit => {}
        Is::Busy => {
            while let Some(taken) = sfu.reserve(now) {
                taken.settle(Outcome::Success, now);
            }
            assert_eq!(sfu.fit_by(Care::AnyZone, now), Err(Excluded::SfuBucket));
        }
        Is::Silent => sfu.hold_until(now + Duration::from_secs(3_600)),
        Is::Cordoned => sfu.set_cordoned(true),
        Is::Bad => fail(sfu, now),
    }
}

/// An SFU with its region and, perhaps, its zone.
type Of = (usize, Option<usize>);

/// SFUs of which each may be sent two calls at once.
fn fleet(each: &[Of], now: Instant) -> Fleet {
    let line = |zone: Option<usize>| zone.map_or_else(String::new, |zone| format!("\nzone = \"z{zone}\""));
    let entry =
        |(i, (region, zone)): (usize, &Of)| entry(i, &format!("r{region}"), &format!("capacity = 1000{}", line(*zone)));
    let entries: Vec<_> = each.iter().enumerate().map(entry).collect();
    Fleet::new(&entries, Quotas { sfu: quota(1e-3, 2), ..quotas(1e6, 1_000_000) }, now)
}

/// The zones of which so many fail.
fn failing(each: &[(Of, Is)], share: f64) -> BTreeSet<Of> {
    let mut counts = BTreeMap::<Of, (usize, usize)>::new();
    for (of, is) in each.iter().filter(|((_, zone), _)| zone.is_some()) {
        let (bad, all) = counts.entry(*of).or_default();
        *all += 1;
        *bad += usize::from(*is == Is::Bad);
    }
    let fails = |(bad, all): (usize, usize)| share < 1.0 && bad >= 2 && bad as f64 >= share * all as f64;
    counts.into_iter().filter(|(_, count)| fails(*count)).map(|(of, _)| of).collect()
}

fn states() -> impl Strategy<Value = Is> {
    prop_oneof![3 => Just(Is::Fit), 2 => Just(Is::Busy), 1 => Just(Is::Silent), 2 => Just(Is::Cordoned)]
}

/// A few zones, of whose SFUs some fail and the others are in one or two ways: were each in a way of its own, zones
/// would seldom fail, and rungs be seldom without anybody.
fn crowd() -> impl Strategy<Value = Vec<(Of, Is)>> {
    let of = (prop_oneof![3 => Just(0usize), 1 => Just(1)], prop::option::of(0usize..3));
    let zone = (of, [states(), states()], prop::collection::vec(0usize..4, 1..8));
    let sfus = |(of, [one, other], each): (Of, [Is; 2], Vec<usize>)| {
        each.into_iter().map(move |is| (of, [one, other, Is::Bad, Is::Bad][is]))
    };
    prop::collection::vec(zone, 0..5).prop_map(move |zones| zones.into_iter().flat_map(sfus).collect())
}

fn share() -> impl Strategy<Value = f64> {
    prop_oneof![3 => Just(0.5), 1 => 0.0..=1.0f64]
}

proptest! {
    // There are many ways for a few zones to be in, and trying one is cheap.
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// On every rung: while anybody outside of failing zones is fit or merely busy, nobody inside is chosen; when
    /// nobody is, whoever is fit inside is chosen, before the call goes further away. And nobody waits who could be
    /// placed but for a zone.
    #[test]
    fn r07_a_failing_zone_is_left_alone_exactly_while_others_of_the_rung_can(
        each in crowd(), share in share(), any_region: bool, seed: u32,
    ) {
        let now = Instant::now();
        let fleet = fleet(&each.iter().map(|(of, _)| *of).collect::<Vec<_>>(), now);
        let snapshot = fleet.catalogue.now();
        for (sfu, (_, is)) in snapshot.known().zip(&each) {
            become_so(sfu, *is, now);
        }
        snapshot.look_at_zones(share, now);
        let failing = failing(&each, share);
        for (sfu, (of, _)) in snapshot.known().zip(&each) {
            prop_assert_eq!(sfu.is_zone_failing(), failing.contains(of));
        }

        let wanted = sfu_api::RegionId::new("r0").expect("valid");
        let ladder = snapshot.ladder(Some(&wanted), any_region);
        let got = descend(&ladder, Seed(seed), |sfu, care| sfu.fit_by(care, now));
        let on = |rung: Rung, inside: bool, what: Is| {
            each.iter().any(|(of, is)| (rung == Rung::Any || of.0 == 0) && failing.contains(of) == inside && *is == what)
        };
        let mut due = None;
        for (n, Step { rung, .. }) in ladder.iter().enumerate() {
            let there = |inside, what| on(*rung, inside, what);
            let waits = there(true, Is::Busy) || there(true, Is::Silent) || there(false, Is::Silent);
            due = if there(false, Is::Fit) { Some((n, Some(false))) }
                else if there(false, Is::Busy) { Some((n, None)) }
                else if there(true, Is::Fit) { Some((n, Some(true))) }
                else if waits { Some((n, None)) }
                else { continue };
            break;
        }
        match (got, due) {
            (Descent::Chosen(at, choice), Some((step, Some(inside)))) => {
                let (of, is) = each[ladder[at.step].sfus[choice.index].idx.0 as usize];
                prop_assert_eq!((at.step, is, failing.contains(&of)), (step, Is::Fit, inside));
            }
            (Descent::Busy(at), Some((step, None))) => prop_assert_eq!(at, step),
            (Descent::Nobody, None) => {}
            (got, due) => prop_assert!(false, "{got:?}, but {due:?}"),
        }
    }

    /// Nobody is without a place for a zone's sake: whatever fails, a call is placed if it would be without zones.
    #[test]
    fn r07_zones_keep_nobody_from_a_place(each in crowd(), share in share(), seed: u32) {
        let now = Instant::now();
        // Out of tokens is the one thing that is worth waiting for.
        let each: Vec<_> = each.into_iter().filter(|(_, is)| *is != Is::Busy).collect();
        let fleet = fleet(&each.iter().map(|(of, _)| *of).collect::<Vec<_>>(), now);
        let snapshot = fleet.catalogue.now();
        for (sfu, (_, is)) in snapshot.known().zip(&each) {
            become_so(sfu, *is, now);
        }
        let placed = || {
            let ladder = snapshot.ladder(None, true);
            let got = descend(&ladder, Seed(seed), |sfu, care| sfu.fit_by(care, now));
            matches!(got, Descent::Chosen(..))
        };
        let without = placed();
        snapshot.look_at_zones(share, now);
        prop_assert_eq!(placed(), without);
    }

    /// When its SFUs are well again a zone is as good as any, a moment later and no more than once in that moment,
    /// whichever of them fall and rise in between and however often they are looked at.
    #[test]
    fn r07_a_zone_recovers_with_its_sfus_and_does_not_flap(
        n in 2usize..8, walk in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0u64..3_000), 0..120),
    ) {
        let mut now = Instant::now();
        let fleet = fleet(&vec![(0, Some(0)); n], now);
        let snapshot = fleet.catalogue.now();
        let (mut changes, start) = (Vec::new(), now);
        let mut look = |now: Instant| changes.extend(snapshot.look_at_zones(0.5, now).iter().map(|c| (c.failing, now)));
        for (which, falls, gap) in &walk {
            let sfu = &snapshot.all[which.index(n)];
            if *falls { fail(sfu, now) } else { recover(sfu, now) }
            look(now);
            let bad = snapshot.all.iter().filter(|sfu| sfu.verdict() == Verdict::Suspect).count();
            prop_assert!(bad < 2 || 2 * bad < n || snapshot.all[0].is_zone_failing(), "at once");
            now += Duration::from_millis(*gap);
        }
        snapshot.all.iter().for_each(|sfu| recover(sfu, now));
        look(now);
        look(now + CALM);
        for pair in changes.windows(2) {
            prop_assert_ne!(pair[0].0, pair[1].0);
            prop_assert!(pair[1].0 || pair[1].1 - pair[0].1 >= CALM, "avoided for {:?}", pair[1].1 - pair[0].1);
        }
        let at_most = 2 * (1 + ((now + CALM - start).as_secs_f64() / CALM.as_secs_f64()) as usize);
        prop_assert!(changes.len() <= at_most, "{} changes, {at_most} at most", changes.len());
        prop_assert!(snapshot.all.iter().all(|sfu| !sfu.is_zone_failing() && sfu.fit(now + CALM).is_ok()));
    }
}

#[test]
fn r07_two_of_a_zone_must_fail_and_slow_is_not_failing() {
    let now = Instant::now();
    let fleet = fleet(&[(0, Some(0)), (0, Some(0)), (0, Some(0))], now);
    let snapshot = fleet.catalogue.now();
    let sfu = |i: u32| snapshot.get(SfuIdx(i)).expect("known");
    sfu(0).observe(&Evidence::Failed { failure: Failure::TimedOut, fresh: false }, &rules(), now);
    sfu(1).observe(&Evidence::Failed { failure: Failure::TimedOut, fresh: false }, &rules(), now);
    assert_eq!([sfu(0).verdict(), sfu(1).verdict()], [Verdict::Slow; 2]);
    assert_eq!(snapshot.look_at_zones(0.0, now), []);
    fail(sfu(0), now);
    assert_eq!(snapshot.look_at_zones(0.0, now), [], "one alone");
    sfu(1).observe(&Evidence::DeclaredDead, &rules(), now);
    let changes = snapshot.look_at_zones(0.5, now);
    assert_eq!(changes.iter().map(|c| (c.failing, c.bad, c.all)).collect::<Vec<_>>(), [(true, 2, 3)]);
    assert_eq!(sfu(2).fit(now), Err(Excluded::ZoneFailing));
    assert_eq!(sfu(2).fit_by(Care::AnyZone, now), Ok(0.0));
    assert_eq!(sfu(2).fit(now).expect_err("avoided").to_string(), "its zone is failing");
    assert_eq!(sfu(0).fit(now), Err(Excluded::Verdict(Verdict::Suspect)), "what stands against it alone goes first");
    // The lever turns it off at once, and an SFU that is kept for debugging does not count.
    assert!(!snapshot.look_at_zones(1.0, now)[0].failing);
    assert!(snapshot.look_at_zones(0.5, now)[0].failing);
    sfu(0).set_quarantined(true);
    assert!(!snapshot.look_at_zones(0.5, now + CALM)[0].failing);
}

#[test]
fn r07_a_zone_is_one_of_its_region_and_keeps_its_course_when_the_catalogue_changes() {
    let now = Instant::now();
    let both = [(0, Some(0)), (0, Some(0)), (0, Some(0)), (1, Some(0)), (1, Some(0))];
    let fleet = fleet(&both, now);
    let before = fleet.catalogue.now();
    for i in [0, 1] {
        fail(before.get(SfuIdx(i)).expect("known"), now);
    }
    before.look_at_zones(0.5, now);
    let failing = |snapshot: &Snapshot| snapshot.known().map(|sfu| sfu.is_zone_failing()).collect::<Vec<_>>();
    assert_eq!(failing(&before), [true, true, true, false, false], "another region's zone of that name is another");

    // One goes, one moves to the zone, one leaves it, and one comes.
    let lines = |zone: &str| format!("capacity = 1000\nzone = \"{zone}\"");
    let entries = [
        entry(1, "r0", &lines("z0")),
        entry(2, "r0", &lines("z9")),
        entry(3, "r0", &lines("z0")),
        entry(5, "r0", &lines("z0")),
    ];
    fleet.list(&entries, now);
    let after = fleet.catalogue.now();
    assert_eq!(failing(&after), [true, true, false, true, false, true]);
    assert_eq!(after.look_at_zones(0.5, now + CALM).len(), 1, "one of three");
    assert_eq!(failing(&after), [false; 6]);
}
