//! The metrics of a family that one partition has used.
//!
//! A family is a map behind one lock for the whole process, and a scrape holds that lock while it encodes: a
//! partition that looks its counters up each time would wait for scrapes, and for every other lane. So each
//! looks a counter up once and keeps it. Not all of them at the start: most words never occur in most partitions,
//! and each would be a line in every scrape.

use std::sync::OnceLock;

/// Words of one label: there are twenty kinds of errors.
const WORDS_MAX: usize = 24;

/// See the module's documentation.
pub(super) struct Known<M> {
    /// Filled from the front.
    slots: [OnceLock<(&'static str, M)>; WORDS_MAX],
}

// === impl Known ===

impl<M> Known<M> {
    /// Does something with the metric of this word, which `find` looks up the first time.
    pub(super) fn with<T>(&self, word: &'static str, find: impl Fn() -> M, work: impl FnOnce(&M) -> T) -> T {
        for slot in &self.slots {
            let (known, metric) = slot.get_or_init(|| (word, find()));
            if *known == word {
                return work(metric);
            }
        }
        work(&find())
    }
}

impl<M> Default for Known<M> {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| OnceLock::new()) }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_metric_is_looked_up_once_and_more_words_than_expected_are_served() {
        let words: Vec<&'static str> = (0..2 * WORDS_MAX).map(|n| &*format!("word {n}").leak()).collect();
        let (known, found) = (Known::default(), Cell::new(0));
        for word in words.iter().chain(&words) {
            let find = || {
                found.set(found.get() + 1);
                *word
            };
            known.with(word, find, |metric| assert_eq!(metric, word));
        }
        assert_eq!(found.get(), WORDS_MAX + 2 * WORDS_MAX, "known once, unknown each time");
    }
}
