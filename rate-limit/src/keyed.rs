//! One bucket per key, in bounded memory.
//!
//! Keys come from outside (guilds, addresses), so the table must not grow with them. A bucket that is
//! full again has nothing to remember and goes first. When every bucket looked at is in use, the
//! newcomer takes the seat of the one with the least debt *and inherits that debt*. Refusing the
//! newcomer would let old keys lock new ones out; forgiving the debt would let a caller wash itself
//! clean with many keys. Inheriting does neither, and all keys together still never get more than
//! `keys_max × (burst + rate × window)`.

use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::bucket::Meter;
use crate::{NotYet, Quota};

/// Seats looked at when a newcomer finds the table full: enough that an idle one is found when a
/// quarter of them are (1 − 0.75^8 = 90 %), few enough that a storm of new keys stays cheap.
const SEATS_PROBED: usize = 8;

/// A bounded table of buckets that share one quota.
#[derive(Debug)]
pub struct Keyed<K> {
    table: Mutex<Table<K>>,
    keys_max: usize,
}

#[derive(Debug)]
struct Table<K> {
    quota: Quota,
    index: HashMap<K, usize>, // keys come from outside: a seeded hash, so that nobody can choose collisions
    seats: Vec<(K, Meter)>,
    hand: usize,
}

// === impl Keyed ===

impl<K: Hash + Eq + Clone> Keyed<K> {
    /// An empty table for at most `keys_max` keys (at least one).
    #[must_use]
    pub fn new(quota: Quota, keys_max: usize) -> Self {
        let table = Table { quota, index: HashMap::new(), seats: Vec::new(), hand: 0 };
        Self { table: Mutex::new(table), keys_max: keys_max.max(1) }
    }

    /// Takes `n` tokens of `key`'s bucket, all or none.
    ///
    /// # Errors
    ///
    /// [`NotYet`] when fewer than `n` are there.
    pub fn try_take(&self, key: &K, n: u32, now: Instant) -> Result<(), NotYet> {
        let table = &mut *self.table.lock();
        let quota = table.quota;
        let seat = table.seat(key, self.keys_max, now);
        table.seats[seat].1.try_take(&quota, n, now)
    }

    /// Returns `n` tokens that were taken just now and not used. A key that was evicted meanwhile has nothing to return to.
    pub fn give_back(&self, key: &K, n: u32, now: Instant) {
        let table = &mut *self.table.lock();
        if let Some(&seat) = table.index.get(key) {
            table.seats[seat].1.give_back(&table.quota, f64::from(n), now);
        }
    }

    /// Changes the quota of every key; debts stay.
    pub fn set_quota(&self, quota: Quota, now: Instant) {
        let table = &mut *self.table.lock();
        for (_, meter) in &mut table.seats {
            meter.settle(&table.quota, now);
        }
        table.quota = quota;
    }

    /// Changes the limit of every key, as [`Bucket::set_limit`](crate::Bucket::set_limit) does.
    pub fn set_limit(&self, quota: Quota, now: Instant) {
        let table = &mut *self.table.lock();
        for (_, meter) in &mut table.seats {
            meter.settle(&table.quota, now);
            meter.forgive(&quota);
        }
        table.quota = quota;
    }

    /// Whole tokens that `key` could take now.
    #[must_use]
    pub fn available(&self, key: &K, now: Instant) -> u32 {
        let table = &*self.table.lock();
        let meter = table.index.get(key).map_or_else(|| Meter::full(now), |&seat| table.seats[seat].1);
        meter.available(&table.quota, now)
    }

    /// The quota in force.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.table.lock().quota
    }

    /// Keys remembered; never above the `keys_max` given at the start.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().seats.len()
    }

    /// Whether no key is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// === impl Table ===

impl<K: Hash + Eq + Clone> Table<K> {
    /// The seat of `key`; a newcomer gets a new one, or takes over another's.
    fn seat(&mut self, key: &K, keys_max: usize, now: Instant) -> usize {
        if let Some(&seat) = self.index.get(key) {
            return seat;
        }
        let seat = if self.seats.len() < keys_max {
            self.seats.push((key.clone(), Meter::full(now)));
            self.seats.len() - 1
        } else {
            let seat = self.least_indebted(now);
            let gone = std::mem::replace(&mut self.seats[seat].0, key.clone());
            self.index.remove(&gone);
            seat
        };
        self.index.insert(key.clone(), seat);
        seat
    }

    /// Of the next seats under the hand, the first that is full, else the one with the least debt.
    fn least_indebted(&mut self, now: Instant) -> usize {
        let mut best = self.hand % self.seats.len();
        for _ in 0..SEATS_PROBED.min(self.seats.len()) {
            let seat = self.hand % self.seats.len();
            self.hand = seat + 1;
            let debt = |seat: usize| self.seats[seat].1.debt(&self.quota, now);
            if debt(seat) <= debt(best) {
                best = seat;
            }
            if self.seats[best].1.is_full(&self.quota, now) {
                break;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests;
