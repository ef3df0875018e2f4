//! The SFUs there are, as a snapshot that selection reads without a lock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sfu_api::{RegionId, SfuId, ZoneId};
use tokio::time::Instant;

use super::{Budget, Entry, Sfu, Zone};
use crate::config::RegionGroups;
use crate::drivers::{SfuDriver, SfuSpec};
use crate::state::{Revision, Rung, SfuIdx};

/// Snapshots kept beside the one in force, for decisions to be made again from. An SFU takes ~100 bytes in each, so
/// they are 16 MB with ten thousand SFUs; and a roll-out that changes a fleet in more steps than this is watched while
/// it lasts.
const PAST_MAX: usize = 16;

/// The SFUs at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Which one it is.
    pub revision: Revision,
    /// Those of the catalogue, by id.
    pub by_id: HashMap<SfuId, Arc<Sfu>>,
    /// Those of the catalogue.
    pub all: Vec<Arc<Sfu>>,
    /// Those of the catalogue, by region.
    pub by_region: HashMap<RegionId, Vec<Arc<Sfu>>>,
    /// The group of a region that is in one.
    pub by_group: HashMap<RegionId, Arc<Group>>,
    /// The groups of regions.
    pub groups: Arc<RegionGroups>,
    /// For each rung of a call's ladder, the chance with which a draw of an SFU stands, by its number: its weight over the
    /// highest of those it is drawn among. Empty while weights do not differ. Kept here since an entry changes under the
    /// snapshots it is in.
    pub chances: [Vec<f64>; Rung::ALL.len()],
    /// Every zone that was ever in the catalogue, by region and name.
    pub zones: HashMap<(RegionId, ZoneId), Arc<Zone>>,
    /// By number, those of the catalogue and those that left it and are not forgotten: calls may still be on them.
    by_idx: Vec<Option<Arc<Sfu>>>,
}

/// Regions that stand in for each other.
#[derive(Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The SFUs of all its regions.
    pub sfus: Vec<Arc<Sfu>>,
}

/// The catalogue.
#[derive(Debug, Default)]
pub struct Catalogue {
    snapshot: ArcSwap<Snapshot>,
    /// The last ones before it, oldest first.
    past: Mutex<VecDeque<Arc<Snapshot>>>,
    write: Mutex<()>,
}

/// What [`Catalogue::replace`] changed.
#[derive(Debug, Default)]
pub struct Replaced {
    /// SFUs that are new, or whose entry changed.
    pub added: usize,
    /// SFUs that are no longer in the catalogue. Their calls stay until evidence moves them.
    pub removed: usize,
    /// Entries that could not be used, with the reason.
    pub refused: Vec<(SfuId, String)>,
}

// === impl Snapshot ===

impl Snapshot {
    /// Those of the catalogue, and those that left it and are not forgotten.
    pub fn known(&self) -> impl Iterator<Item = &Arc<Sfu>> {
        self.by_idx.iter().flatten()
    }

    /// Whether it is in the catalogue, not merely known.
    #[must_use]
    pub fn lists(&self, sfu: &Sfu) -> bool {
        self.by_id.contains_key(&sfu.id)
    }

    /// The one of [`Self::known`] with this number.
    #[must_use]
    pub fn get(&self, idx: SfuIdx) -> Option<&Arc<Sfu>> {
        self.by_idx.get(idx.0 as usize)?.as_ref()
    }

    /// The one of [`Self::known`] with this id.
    #[must_use]
    pub fn named(&self, id: &SfuId) -> Option<&Arc<Sfu>> {
        self.by_id.get(id).or_else(|| self.known().find(|sfu| sfu.id == *id))
    }

    fn take(&mut self, known: Option<Arc<Sfu>>, entry: Entry, budget: &Budget, now: Instant) {
        let sfu = match known {
            Some(sfu) => {
                sfu.set_entry(entry);
                sfu
            }
            None => {
                let idx = SfuIdx(u32::try_from(self.by_idx.len()).unwrap_or(u32::MAX));
                let sfu = Arc::new(Sfu::new(idx, entry.spec.id.clone(), entry, budget.sfu_share(), now));
                self.by_idx.push(Some(sfu.clone()));
                sfu
            }
        };
        self.list(Some(sfu));
    }

    fn zone_of(&mut self, spec: &SfuSpec) -> Option<Arc<Zone>> {
        let (region, zone, number) = (spec.region.clone(), spec.zone.clone()?, self.zones.len());
        let known = self.zones.entry((region.clone(), zone.clone()));
        Some(known.or_insert_with(|| Arc::new(Zone::new(region, zone, number))).clone())
    }

    fn list(&mut self, sfu: Option<Arc<Sfu>>) {
        let Some(sfu) = sfu else { return };
        self.by_id.insert(sfu.id.clone(), sfu.clone());
        self.by_region.entry(sfu.entry().spec.region.clone()).or_default().push(sfu.clone());
        self.all.push(sfu);
    }

    /// Sets the chances, once all are gathered.
    fn weigh(&mut self) {
        let weight = |sfu: &Arc<Sfu>| sfu.weight().get();
        let regions = self.by_region.values().map(|sfus| (Rung::Region, sfus));
        let groups = self.by_group.values().map(|group| (Rung::Group, &group.sfus));
        let mut chances = Rung::ALL.map(|_| Vec::new());
        for (rung, sfus) in regions.chain(groups).chain([(Rung::Any, &self.all)]) {
            let most = sfus.iter().map(weight).fold(0.0, f64::max);
            for sfu in sfus.iter().filter(|sfu| weight(sfu) < most) {
                let chances: &mut Vec<f64> = &mut chances[rung as usize];
                chances.resize(self.by_idx.len(), 1.0);
                chances[sfu.idx.0 as usize] = weight(sfu) / most;
            }
        }
        self.chances = chances;
    }

    /// Gathers the SFUs of each group, once all are listed.
    fn gather(&mut self) {
        self.by_group.clear();
        for (name, regions) in self.groups.iter() {
            let sfus = regions.iter().filter_map(|region| self.by_region.get(region)).flatten().cloned().collect();
            let group = Arc::new(Group { name: name.to_owned(), sfus });
            self.by_group.extend(regions.iter().map(|region| (region.clone(), group.clone())));
        }
    }
}

// === impl Catalogue ===

impl Catalogue {
    /// The SFUs now.
    #[must_use]
    pub fn now(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The snapshot of this revision, while it is one of the last.
    #[must_use]
    pub fn at(&self, revision: Revision) -> Option<Arc<Snapshot>> {
        let now = self.now();
        if now.revision == revision {
            return Some(now);
        }
        self.past.lock().iter().find(|past| past.revision == revision).cloned()
    }

    /// The SFU with this number.
    #[must_use]
    pub fn get(&self, idx: SfuIdx) -> Option<Arc<Sfu>> {
        self.snapshot.load().get(idx).cloned()
    }

    /// Takes over the groups of regions.
    pub fn set_groups(&self, groups: RegionGroups) {
        let _writing = self.write.lock();
        let mut next = Snapshot { groups: Arc::new(groups), ..Snapshot::clone(&self.now()) };
        next.gather();
        next.weigh();
        self.publish(next);
    }

    /// Puts `next` in force, and keeps the one before it. Under the lock of those who write.
    fn publish(&self, next: Snapshot) {
        let old = self.now();
        let revision = Revision(old.revision.0.wrapping_add(1));
        let mut past = self.past.lock();
        if past.len() == PAST_MAX {
            past.pop_front();
        }
        past.push_back(old);
        drop(past);
        self.snapshot.store(Arc::new(Snapshot { revision, ..next }));
    }

    /// Forgets these, unless they are in the catalogue. What may be drawn stays as it is, so this is no other revision.
    pub fn forget(&self, gone: impl IntoIterator<Item = SfuIdx>) {
        let _writing = self.write.lock();
        let mut next = Snapshot::clone(&self.now());
        let mut left = Vec::new();
        for idx in gone {
            if let Some(sfu) = next.get(idx).filter(|sfu| !next.lists(sfu)) {
                left.push(sfu.driver());
                next.by_idx[idx.0 as usize] = None;
            }
        }
        self.snapshot.store(Arc::new(next));
        self.close(&left);
    }

    /// Has the pool forget what these drivers were connected to, unless an SFU that is known is as well. Under the lock of
    /// those who write: a driver that was made meanwhile would have a handle to what is forgotten, and be refused for ever.
    fn close(&self, left: &[Arc<dyn SfuDriver>]) {
        if left.is_empty() {
            return;
        }
        let used: Vec<_> = self.now().known().map(|sfu| sfu.driver()).collect();
        let used: HashSet<_> = used.iter().filter_map(|driver| Some(driver.handle()?.origin())).collect();
        for handle in left.iter().filter_map(|driver| driver.handle()).filter(|left| !used.contains(left.origin())) {
            handle.lane().forget(handle.origin());
        }
    }

    /// Takes over a new list. An SFU that is known keeps its number, calls, health and buckets,
    /// also when its entry changed. Entries that `driver` refuses are reported; what was known of
    /// them stays in force, and the rest is taken (R6).
    pub fn replace<E: std::fmt::Display>(
        &self,
        specs: Vec<SfuSpec>,
        budget: &Budget,
        now: Instant,
        driver: impl Fn(&SfuSpec) -> Result<Arc<dyn SfuDriver>, E>,
    ) -> Replaced {
        let _writing = self.write.lock();
        let old = self.now();
        let mut next = Snapshot {
            by_idx: old.by_idx.clone(),
            zones: old.zones.clone(),
            groups: old.groups.clone(),
            ..Snapshot::default()
        };
        let (mut result, mut left) = (Replaced::default(), Vec::new());
        let known: HashMap<SfuId, Arc<Sfu>> = old.known().map(|s| (s.id.clone(), s.clone())).collect();
        for spec in specs {
            let (id, region) = (spec.id.clone(), budget.region(&spec.region, now));
            let known = known.get(&id).cloned();
            if next.by_id.contains_key(&id) {
                result.refused.push((id, "the id is in the catalogue twice".to_owned()));
            } else if known.as_ref().is_some_and(|sfu| sfu.entry().spec == spec) {
                next.list(known);
            } else {
                match driver(&spec) {
                    Ok(driver) => {
                        result.added += 1;
                        left.extend(known.as_ref().map(|sfu| sfu.driver()));
                        let zone = next.zone_of(&spec);
                        next.take(known, Entry::new(spec, driver, region, zone), budget, now);
                    }
                    Err(e) => {
                        result.refused.push((id, e.to_string()));
                        next.list(known); // what was good before stays in force
                    }
                }
            }
        }
        let same = old.all.iter().map(|sfu| sfu.idx).eq(next.all.iter().map(|sfu| sfu.idx));
        if result.added == 0 && same {
            return result; // lists are told again and again: only one that differs is a revision
        }
        next.gather();
        next.weigh();
        result.removed = old.by_id.keys().filter(|id| !next.by_id.contains_key(*id)).count();
        self.publish(next);
        self.close(&left);
        result
    }
}
