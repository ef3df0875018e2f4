//! A partition's places for callers in line.
//!
//! All its cells share them, so each takes one with an atomic only when its lines grow beyond what it has. Of what they
//! do not need any longer it keeps a quarter as many as it has callers: where as many come as go, a wait touches
//! nothing that other cells touch. At worst a partition is full with four fifths of its places in use, and an origin
//! with less than four callers keeps none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::tuning::Tuning;

/// Places that only probes get, when ordinary callers have taken all others: 1 for this many, as of dial slots.
const FRESH_ONE_FOR: usize = 4;

/// Places are plenty while no more than one in so many is taken. 3,000 dead hosts with sixteen callers each, who always
/// may wait, and this part of the places with others of their callers leave every eighth place to the living.
const PLENTY_ONE_IN: usize = 8;

/// A cell keeps one place more for so many callers.
const SPARE_ONE_IN: usize = 4;

/// The places of one partition.
#[derive(Debug, Default)]
pub(crate) struct Places {
    most: AtomicUsize,
    taken: AtomicUsize,
}

/// Most callers of a partition with so many places, probes included.
pub(crate) fn with_probes(places: usize) -> usize {
    places.saturating_add(places.div_ceil(FRESH_ONE_FOR))
}

/// What one cell has of them. Dropped, they are given back.
#[derive(Debug)]
pub(super) struct Held {
    tuning: Arc<Tuning>,
    count: usize,
}

// === impl Places ===

impl Places {
    pub(super) fn set(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// How many the cells have.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    fn take(&self, fresh: bool) -> bool {
        let places = self.most.load(Ordering::Relaxed);
        let most = if fresh { with_probes(places) } else { places };
        let taken = self.taken.fetch_add(1, Ordering::Relaxed) < most;
        if !taken {
            self.give_back(1);
        }
        taken
    }

    fn are_plenty(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < self.most.load(Ordering::Relaxed) / PLENTY_ONE_IN
    }

    fn give_back(&self, places: usize) {
        self.taken.fetch_sub(places, Ordering::Relaxed);
    }
}

// === impl Held ===

impl Held {
    pub(super) fn new(tuning: Arc<Tuning>) -> Self {
        Self { tuning, count: 0 }
    }

    /// Sees to a place for one more caller beside so many; `false` if there is none.
    pub(super) fn admit(&mut self, callers: usize, fresh: bool) -> bool {
        if callers < self.count {
            return true;
        }
        let taken = self.tuning.places.take(fresh);
        self.count += usize::from(taken);
        taken
    }

    /// Whether the partition has so many places left that callers of dead hosts may take more of them.
    pub(super) fn are_plenty(&self) -> bool {
        self.tuning.places.are_plenty()
    }

    /// There are only so many callers.
    pub(super) fn fit(&mut self, callers: usize) {
        if self.count > callers + callers / SPARE_ONE_IN {
            self.tuning.places.give_back(self.count - callers);
            self.count = callers;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tuning.places.give_back(self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i09_a_partition_s_places_are_never_more_and_what_is_not_needed_comes_back() {
        let tuning = Arc::new(Tuning::default());
        tuning.places.set(10);
        let (mut one, mut other) = (Held::new(Arc::clone(&tuning)), Held::new(Arc::clone(&tuning)));
        assert!((0..8).all(|callers| one.admit(callers, false)));
        assert!((0..2).all(|callers| other.admit(callers, false)));
        assert!(!other.admit(2, false) && !one.admit(8, false), "they are taken");
        assert!(other.admit(2, true), "but for a probe");
        one.fit(7);
        assert!(one.admit(7, false), "one more than it needs is kept");
        one.fit(7);
        assert_eq!(tuning.places.taken(), 11);
        one.fit(6);
        assert_eq!(tuning.places.taken(), 9);
        assert!(other.admit(3, false) && !other.admit(4, false));
        other.fit(0);
        drop(one);
        assert_eq!(tuning.places.taken(), 0);
    }
}
