//! The SFUs there are, as a snapshot that selection reads without a lock.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sfu_api::{RegionId, SfuId};
use tokio::time::Instant;

use super::{Budget, Sfu};
use crate::drivers::{SfuDriver, SfuSpec};
use crate::state::SfuIdx;

/// The SFUs at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Those of the catalogue, by id.
    pub by_id: HashMap<SfuId, Arc<Sfu>>,
    /// Those of the catalogue.
    pub all: Vec<Arc<Sfu>>,
    /// Those of the catalogue, by region.
    pub by_region: HashMap<RegionId, Vec<Arc<Sfu>>>,
    /// Every SFU that was ever in the catalogue, by number: calls may still be on it.
    by_idx: Vec<Arc<Sfu>>,
}

/// The catalogue.
#[derive(Debug, Default)]
pub struct Catalogue {
    snapshot: ArcSwap<Snapshot>,
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

// === impl Catalogue ===

impl Catalogue {
    /// The SFUs now.
    #[must_use]
    pub fn now(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The SFU with this number.
    #[must_use]
    pub fn get(&self, idx: SfuIdx) -> Option<Arc<Sfu>> {
        self.snapshot.load().by_idx.get(idx.0 as usize).cloned()
    }

    /// Takes over a new list. An SFU that was there keeps its number, health, load and buckets; one
    /// whose entry changed gets a new driver under a new number. Entries that `driver` refuses are
    /// left out and reported; the rest is taken (R6).
    pub fn replace<E: std::fmt::Display>(
        &self,
        specs: Vec<SfuSpec>,
        budget: &Budget,
        now: Instant,
        driver: impl Fn(&SfuSpec) -> Result<Arc<dyn SfuDriver>, E>,
    ) -> Replaced {
        let _writing = self.write.lock();
        let old = self.now();
        let mut next = Snapshot { by_idx: old.by_idx.clone(), ..Snapshot::default() };
        let mut result = Replaced::default();
        for spec in specs {
            if next.by_id.contains_key(&spec.id) {
                result.refused.push((spec.id.clone(), "the id is in the catalogue twice".to_owned()));
                continue;
            }
            let known = old.by_id.get(&spec.id).or_else(|| old.by_idx.iter().rev().find(|s| s.id == spec.id));
            let sfu = match known.filter(|sfu| sfu.spec == spec) {
                Some(sfu) => sfu.clone(),
                None => match driver(&spec) {
                    Ok(driver) => {
                        result.added += 1;
                        let idx = SfuIdx(u32::try_from(next.by_idx.len()).unwrap_or(u32::MAX));
                        let region = budget.region(&spec.region, now);
                        let sfu = Arc::new(Sfu::new(idx, spec, driver, region, budget.sfu_share(), now));
                        next.by_idx.push(sfu.clone());
                        sfu
                    }
                    Err(e) => {
                        result.refused.push((spec.id.clone(), e.to_string()));
                        continue;
                    }
                },
            };
            next.by_id.insert(sfu.id.clone(), sfu.clone());
            next.by_region.entry(sfu.region.clone()).or_default().push(sfu.clone());
            next.all.push(sfu);
        }
        result.removed = old.by_id.keys().filter(|id| !next.by_id.contains_key(*id)).count();
        self.snapshot.store(Arc::new(next));
        result
    }
}
