//! A bounded map that forgets its oldest entries.

use std::collections::VecDeque;
use std::hash::Hash;

use rustc_hash::FxHashMap;

/// Holds at most `entries_max` entries; inserting beyond that drops the one inserted first.
///
/// By age of insertion and not of use: what is kept here is asked for again within seconds or never.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    entries_max: usize,
    map: FxHashMap<K, (u64, V)>,
    /// Keys in order of insertion, with the number of the insertion; stale where the map has another.
    order: VecDeque<(u64, K)>,
    inserted: u64,
}

// === impl Recent ===

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    pub(super) fn new(entries_max: usize) -> Self {
        Self { entries_max, map: FxHashMap::default(), order: VecDeque::new(), inserted: 0 }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key).map(|(_, value)| value)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.inserted += 1;
        self.map.insert(key.clone(), (self.inserted, value));
        self.order.push_back((self.inserted, key));
        // `order` also holds removed and replaced entries, so it is what gets bounded.
        while self.order.len() > self.entries_max {
            let Some((number, key)) = self.order.pop_front() else { return };
            if self.map.get(&key).is_some_and(|(current, _)| *current == number) {
                self.map.remove(&key);
            }
        }
    }

    pub(super) fn remove(&mut self, key: &K) {
        self.map.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_the_oldest_and_stays_bounded() {
        let mut recent = Recent::new(2);
        recent.insert("a", 1);
        recent.insert("b", 2);
        recent.insert("c", 3);
        assert_eq!(recent.get(&"a"), None);
        assert_eq!(recent.get(&"b"), Some(&2));
        for _ in 0..100 {
            recent.insert("c", 4);
            recent.remove(&"c");
        }
        assert!(recent.order.len() <= 2 && recent.map.len() <= 2);
    }

    #[test]
    fn a_replaced_entry_lives_as_long_as_its_replacement() {
        let mut recent = Recent::new(2);
        recent.insert("a", 1);
        recent.insert("a", 2);
        recent.insert("b", 3);
        assert_eq!(recent.get(&"a"), Some(&2));
    }
}
