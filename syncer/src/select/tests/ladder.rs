//! Where calls go when a rung of their ladder has nobody left.

use std::collections::BTreeMap;

use sfu_api::RegionId;

use super::fleet::{Fleet, entry};
use super::*;
use crate::config::RegionGroups;
use crate::state::{Rung, Seed};

/// What stands against an SFU.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Fit,
    /// In order, and held back by a limit.
    Busy,
    /// It has served nothing for a while.
    Silent,
    Gone,
    /// Taken at last.
    Flapping,
}

fn region(n: usize) -> RegionId {
    RegionId::new(format!("r{n}")).expect("valid")
}

/// A fleet of SFUs in these regions, of which r0 and r1 are a group, and r2 and r3 another.
fn fleet(regions: &[usize], now: Instant) -> Fleet {
    let entry = |(i, region): (usize, &usize)| entry(i, &format!("r{region}"), "capacity = 10");
    let entries: Vec<_> = regions.iter().enumerate().map(entry).collect();
    let fleet = Fleet::new(&entries, quotas(1e6, 1_000_000), now);
    let groups: BTreeMap<_, _> =
        [("low".to_owned(), vec![region(0), region(1)]), ("high".to_owned(), vec![region(2), region(3)])].into();
    fleet.catalogue.set_groups(RegionGroups::new(groups).expect("valid"));
    fleet
}

fn stands(is: Is, care: Care) -> Result<f64, Excluded> {
    match is {
        Is::Fit => Ok(0.5),
        Is::Busy => Err(Excluded::SfuBucket),
        Is::Silent => Err(Excluded::Silent),
        Is::Gone => Err(Excluded::Cordoned),
        Is::Flapping if care == Care::AtLast => Ok(0.5),
        Is::Flapping => Err(Excluded::Flapping),
    }
}

/// Where a call may go, rung by rung: written out, for comparison.
fn allowed(region: Option<usize>, any_region: bool) -> Vec<(Rung, Vec<usize>)> {
    let Some(own) = region else { return vec![(Rung::Any, (0..6).collect())] };
    let group = match own {
        0 | 1 => Some(vec![0, 1]),
        2 | 3 => Some(vec![2, 3]),
        _ => None,
    };
    let rungs = [
        Some((Rung::Region, vec![own])),
        group.map(|group| (Rung::Group, group)),
        any_region.then(|| (Rung::Any, (0..6).collect())),
    ];
    rungs.into_iter().flatten().collect()
}

proptest! {
    /// The first rung on which anybody is in order is the call's: there it is placed, or waits. Never is it placed
    /// further away than its region and group unless it may go anywhere, and whoever falls again and again is
    /// taken only on rungs where nobody is in order. Who serves nothing keeps nobody from going down, and is waited for
    /// when there is nobody at all.
    #[test]
    fn r07_a_call_goes_down_only_when_a_rung_has_nobody_left(
        each in prop::collection::vec(
            (0usize..5, prop_oneof![1 => Just(Is::Fit), 1 => Just(Is::Busy), 1 => Just(Is::Silent), 3 => Just(Is::Gone), 1 => Just(Is::Flapping)]), 0..12),
        own in prop::option::of(0usize..6), any_region: bool, seed: u32,
    ) {
        let now = Instant::now();
        let fleet = fleet(&each.iter().map(|(region, _)| *region).collect::<Vec<_>>(), now);
        let snapshot = fleet.catalogue.now();
        let wanted = own.map(region);
        let ladder = snapshot.ladder(wanted.as_ref(), any_region);
        let is = |sfu: &Sfu| each[sfu.idx.0 as usize].1;
        let got = descend(&ladder, Seed(seed), |sfu, care| stands(is(sfu), care));

        let rungs = allowed(own, any_region);
        prop_assert_eq!(ladder.iter().map(|step| step.rung).collect::<Vec<_>>(),
            rungs.iter().map(|(rung, _)| *rung).collect::<Vec<_>>());
        let on = |regions: &[usize], what: Is| each.iter().any(|(at, is)| regions.contains(at) && *is == what);
        let stop = rungs.iter().position(|(_, regions)| on(regions, Is::Fit) || on(regions, Is::Busy));
        let at_last = rungs[..stop.unwrap_or(rungs.len())].iter().position(|(_, regions)| on(regions, Is::Flapping));
        let silent = rungs.iter().position(|(_, regions)| on(regions, Is::Silent));
        match got {
            Descent::Chosen(at, choice) => {
                let sfu = &ladder[at.step].sfus[choice.index];
                let due = if at.care == Care::Full { Is::Fit } else { Is::Flapping };
                prop_assert_eq!(is(sfu), due);
                prop_assert!(rungs[at.step].1.contains(&each[sfu.idx.0 as usize].0), "not a region of that rung");
                if due == Is::Fit { prop_assert_eq!(Some(at.step), stop) } else { prop_assert_eq!(Some(at.step), at_last) }
            }
            Descent::Busy(step) => {
                prop_assert_eq!((Some(step), at_last), (stop.or(silent), None));
                prop_assert!(!on(&rungs[step].1, Is::Fit));
            }
            Descent::Nobody => prop_assert_eq!((stop, at_last, silent), (None, None, None)),
        }
    }

    /// Whatever order regions, groups and SFUs come in, and go again: the group's rung is the SFUs of its regions.
    #[test]
    fn a_group_is_the_sfus_of_its_regions(before in prop::collection::vec(0usize..5, 0..10), after in prop::collection::vec(0usize..5, 0..10)) {
        let now = Instant::now();
        let fleet = fleet(&before, now);
        let entries: Vec<_> = after.iter().enumerate().map(|(i, r)| entry(i, &format!("r{r}"), "capacity = 10")).collect();
        fleet.list(&entries, now);
        let snapshot = fleet.catalogue.now();
        for (n, group) in [(0, Some([0, 1])), (1, Some([0, 1])), (3, Some([2, 3])), (4, None)] {
            let got = snapshot.by_group.get(&region(n)).map(|group| {
                let mut ids: Vec<_> = group.sfus.iter().map(|sfu| sfu.idx.0 as usize).collect();
                ids.sort_unstable();
                ids
            });
            let due = group.map(|group| (0..after.len()).filter(|i| group.contains(&after[*i])).collect::<Vec<_>>());
            prop_assert_eq!(got, due);
        }
    }
}

/// One is kept with each of a million calls, in an allocation of its own: the next size of these is 48.
#[test]
fn why_a_call_is_where_it_is_takes_32_bytes() {
    assert_eq!(size_of::<crate::state::Why>(), 32);
}
