//! A decision that was made can be made again, or it is said that it cannot.

use std::cell::RefCell;

use sfu_api::RegionId;

use super::fleet::{Fleet, entry};
use super::*;
use crate::state::{How, Rung, Seed, Why};

/// Beyond, the first snapshot is not kept.
const KEPT: usize = 16;

/// An SFU's region, weight in quarters, and its score if it is fit.
type Given = (usize, u8, Option<u8>);

fn given() -> impl Strategy<Value = Vec<Given>> {
    prop::collection::vec((0usize..3, 1u8..=4, prop::option::weighted(0.4, 0u8..4)), 1..24)
}

fn region(n: usize) -> RegionId {
    RegionId::new(format!("r{n}")).expect("valid")
}

fn entries(each: &[Given]) -> Vec<drivers::SfuSpec> {
    let line = |(i, (region, weight, _)): (usize, &Given)| {
        let weight = f64::from(*weight) / 4.0;
        entry(i, &format!("r{region}"), &format!("capacity = 10\nweight = {weight:?}"))
    };
    each.iter().enumerate().map(line).collect()
}

fn fleet(each: &[Given]) -> Fleet {
    Fleet::new(&entries(each), quotas(1e6, 1_000_000), Instant::now())
}

/// Decides as the reconciler does: what is recorded of it, and who was asked whether it is fit, in order.
fn decide(snapshot: &Snapshot, wanted: Option<&RegionId>, each: &[Given], seed: Seed) -> Option<(Why, Vec<usize>)> {
    let ladder = snapshot.ladder(wanted, true);
    let asked = RefCell::new(Vec::new());
    let fit = |sfu: &Sfu, _| {
        let i = sfu.idx.0 as usize;
        asked.borrow_mut().push(i);
        // Thirds, so that no score is a round number in either precision.
        each[i].2.map(|score| f64::from(score) / 3.0).ok_or(Excluded::Cordoned)
    };
    let step = ladder.iter().find(|step| step.sfus.iter().any(|sfu| each[sfu.idx.0 as usize].2.is_some()))?;
    let choice = step.choose(Care::AnyZone, seed, fit).expect("one of them is fit");
    Some((step.why(&choice, Care::AnyZone, seed), asked.into_inner()))
}

proptest! {
    /// It comes to the same, and names those that were asked, in the order in which they were, as what they were.
    #[test]
    fn r07_a_decision_made_again_is_the_same(each in given(), own in prop::option::of(0usize..3), seed: u32) {
        let (fleet, wanted) = (fleet(&each), own.map(region));
        let snapshot = fleet.catalogue.now();
        let Some((why, asked)) = decide(&snapshot, wanted.as_ref(), &each, Seed(seed)) else { return Ok(()) };
        let again = replay(&snapshot, wanted.as_ref(), &why).expect("it is known");
        prop_assert_eq!(again.came_to, Some(why));

        let number = |look: &Look| look.sfu.idx.0 as usize;
        let of = |fates: &[Fate]| {
            again.looks.iter().filter(|look| fates.contains(&look.fate)).map(number).collect::<Vec<_>>()
        };
        for i in of(&[Fate::Unfit]) { prop_assert_eq!(each[i].2, None); }
        let compared = of(&[Fate::Compared]);
        prop_assert_eq!(&compared, &asked.iter().copied().filter(|i| each[*i].2.is_some()).collect::<Vec<_>>());
        for i in of(&[Fate::Again]) { prop_assert_eq!(i, compared[0]); }
        let How::Drawn(draw) = why.how else { panic!("it was drawn") };
        for look in &again.looks {
            let among = each.iter().filter(|(region, ..)| draw.rung == Rung::Any || Some(*region) == own);
            let heaviest = among.map(|(_, weight, _)| *weight).max().expect("not empty");
            prop_assert_eq!(look.chance, f64::from(each[number(look)].1) / f64::from(heaviest));
            prop_assert!(look.fate != Fate::Light || look.chance < 1.0);
        }
        let drawn = 16.min(2 * draw.among as usize);
        let shown = of(&[Fate::Unfit, Fate::Compared]);
        if again.in_turn == 0 {
            prop_assert_eq!(shown, asked);
            prop_assert!(again.looks.len() <= drawn);
        } else {
            // Of those that were looked at in turn, only who was compared is named.
            prop_assert!(again.looks.len() >= drawn && again.looks.len() <= drawn + 2);
            let by_lot = again.looks[..drawn].iter().filter(|look| matches!(look.fate, Fate::Unfit | Fate::Compared));
            let by_lot: Vec<_> = by_lot.map(number).collect();
            prop_assert_eq!(&by_lot[..], &asked[..by_lot.len()]);
            prop_assert!(again.in_turn <= draw.among as usize);
        }
    }

    /// Whatever the catalogue becomes: while the snapshot is kept the decision is made again from it, and from no other.
    #[test]
    fn r07_a_decision_is_made_again_from_its_own_snapshot_or_not_at_all(
        each in given(), own in prop::option::of(0usize..3), seed: u32,
        changes in prop::collection::vec(given(), 0..KEPT * 3 / 2),
    ) {
        let (fleet, wanted) = (fleet(&each), own.map(region));
        let first = fleet.catalogue.now();
        let Some((why, _)) = decide(&first, wanted.as_ref(), &each, Seed(seed)) else { return Ok(()) };
        let before = replay(&first, wanted.as_ref(), &why).expect("it is known");
        for (n, change) in changes.iter().enumerate() {
            // The first entry's weight is always another one.
            let mut lines = entries(change);
            lines[0].weight = drivers::Weight::new(2.0 + n as f64).expect("valid");
            fleet.list(&lines, Instant::now());
            prop_assert!(replay(&fleet.catalogue.now(), wanted.as_ref(), &why).is_none(), "it is another list");
            let kept = fleet.catalogue.at(first.revision);
            prop_assert_eq!(kept.is_some(), n < KEPT);
            let Some(kept) = kept else { continue };
            let again = replay(&kept, wanted.as_ref(), &why).expect("it is known");
            prop_assert_eq!(again.came_to, Some(why));
            let told = |replay: &Replay| replay.looks.iter().map(|l| (l.sfu.idx, l.fate, l.chance)).collect::<Vec<_>>();
            prop_assert_eq!(told(&again), told(&before));
        }
    }
}

#[test]
fn the_same_list_again_is_no_revision() {
    let each = [(0, 4, None), (1, 2, None)];
    let fleet = fleet(&each);
    let before = fleet.catalogue.now();
    fleet.list(&entries(&each), Instant::now());
    assert_eq!(fleet.catalogue.now().revision, before.revision);
    fleet.list(&entries(&[(0, 4, None), (2, 2, None)]), Instant::now());
    assert_ne!(fleet.catalogue.now().revision, before.revision, "another region");
    let before = fleet.catalogue.now();
    fleet.list(&entries(&each[..1]), Instant::now());
    assert_ne!(fleet.catalogue.now().revision, before.revision, "one has left");
}

/// Two scores that are one and the same to four bytes are so for the decision too.
#[test]
fn r07_scores_are_compared_as_they_are_remembered() {
    let each = [(0, 4, None), (0, 4, None)];
    let snapshot = fleet(&each).catalogue.now();
    let ladder = snapshot.ladder(None, true);
    for seed in (0..32).map(Seed) {
        let asked = RefCell::new(0_u32);
        let fit = |_: &Sfu, _| {
            *asked.borrow_mut() += 1;
            Ok(0.5 - 1e-12 * f64::from(*asked.borrow())) // the second is the better one, but for the rounding
        };
        let choice = ladder[0].choose(Care::Full, seed, fit).expect("both are fit");
        let why = ladder[0].why(&choice, Care::Full, seed);
        assert_eq!(replay(&snapshot, None, &why).expect("it is known").came_to, Some(why));
    }
}
