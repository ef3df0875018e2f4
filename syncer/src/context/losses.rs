//! SFUs that lost their rooms, and how far the pass over their calls has come.
//!
//! An SFU may hold tens of thousands of calls. Telling all of them in one go would hold a thread for
//! a noticeable part of a second, while others wait for their joins. So a loss is a place in a walk,
//! and a few calls are told at a time, between other work. What is placed on the SFU meanwhile is of
//! its next life: placements are numbered, and a loss knows the last number before it.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::state::{CallKey, Cause, Loss, SfuIdx};

/// The losses that are not yet told, one for each SFU at most.
#[derive(Debug, Default)]
pub struct Losses {
    inner: Mutex<BTreeMap<SfuIdx, Passing>>,
}

/// A loss on its way over the shards.
#[derive(Clone, Debug)]
pub struct Passing {
    sfu: SfuIdx,
    cause: Cause,
    in_place: bool,
    at: Instant,
    /// The last placement of each shard at that moment.
    upto: Vec<u64>,
    /// Where the pass goes on.
    pub(crate) shard: usize,
    pub(crate) from: Option<CallKey>,
    /// Calls told so far.
    pub(crate) calls: u64,
}

// === impl Losses ===

impl Losses {
    /// Begins a pass. One that was under way for the same SFU is replaced: the new one covers the rest.
    pub(crate) fn push(&self, passing: Passing) {
        self.inner.lock().insert(passing.sfu, passing);
    }

    /// A pass to go on with. It stays here as it was, so that nobody takes its calls for told.
    pub(crate) fn first(&self) -> Option<Passing> {
        self.inner.lock().first_key_value().map(|(_, passing)| passing.clone())
    }

    /// A pass has come this far, or to its end, unless a newer one has taken its place.
    pub(crate) fn went(&self, passing: Passing, more: bool) {
        let mut inner = self.inner.lock();
        let is_same = |kept: &Passing| (kept.at, &kept.upto) == (passing.at, &passing.upto);
        if !inner.get(&passing.sfu).is_some_and(is_same) {
            return;
        }
        if more {
            inner.insert(passing.sfu, passing);
        } else {
            inner.remove(&passing.sfu);
        }
    }

    /// The SFUs whose calls are not all told.
    #[must_use]
    pub fn sfus(&self) -> Vec<SfuIdx> {
        self.inner.lock().keys().copied().collect()
    }

    /// Whether every call has been told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.lock().is_empty()
    }
}

// === impl Passing ===

impl Passing {
    pub(crate) fn new(sfu: SfuIdx, cause: Cause, in_place: bool, at: Instant, upto: Vec<u64>) -> Self {
        Self { sfu, cause, in_place, at, upto, shard: 0, from: None, calls: 0 }
    }

    /// What the shard has to know where the pass is now; `None` when it has passed all.
    pub(crate) fn loss(&self) -> Option<Loss> {
        let upto = *self.upto.get(self.shard)?;
        Some(Loss { sfu: self.sfu, cause: self.cause, in_place: self.in_place, at: self.at, upto })
    }
}
