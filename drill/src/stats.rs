//! Counters of a drill that are no part of a call's state.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Kinds of errors that are told apart; the rest is `other`.
const ERROR_KINDS_MAX: usize = 64;

/// A counter or a gauge.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Joins answered with success.
    pub(crate) joined: Count,
    /// Leaves answered with success.
    pub(crate) left: Count,
    /// Answers 429 and 503.
    pub(crate) throttled: Count,
    /// Sessions refused for good.
    pub(crate) refused: Count,
    /// Operations tried again.
    pub(crate) retries: Count,
    /// Watches that are up now.
    pub(crate) watches: Count,
    /// Times a watch was opened again.
    pub(crate) reconnects: Count,
    /// Times a gateway had to re-read.
    pub(crate) resyncs: Count,
    /// Events received.
    pub(crate) events: Count,
    errors: Mutex<BTreeMap<String, u64>>,
}

// === impl Count ===

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Stats ===

impl Stats {
    /// Counts an error of this kind.
    pub(crate) fn error(&self, kind: &str) {
        let mut errors = self.errors.lock();
        if let Some(n) = errors.get_mut(kind) {
            *n += 1;
        } else {
            let kind = if errors.len() < ERROR_KINDS_MAX { kind } else { "other" };
            *errors.entry(kind.to_owned()).or_default() += 1;
        }
    }

    pub(crate) fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.lock().clone()
    }

    pub(crate) fn errors_total(&self) -> u64 {
        self.errors.lock().values().sum()
    }
}
