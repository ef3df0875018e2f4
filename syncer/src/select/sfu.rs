//! One SFU as selection sees it: atomics, a window, a bucket and a verdict.
//!
//! Beside atomics [`Sfu::fit`] takes short locks, one after the other, each for a few words (docs/decisions/0039).

mod excluded;
mod reservation;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rate_limit::{Bucket, Outcome, Quota, Window, WindowLimits};
use sfu_api::{Load, SfuId};
use tokio::time::Instant;

pub use self::excluded::Excluded;
pub use self::reservation::Reservation;
use super::{Drain, Orders, Zone};
use crate::drivers::{SfuDriver, SfuSpec, Weight};
use crate::health::{Change, Evidence, Health, Rules, Verdict};
use crate::state::{Care, SfuIdx};

/// Window of operations in flight on one SFU: starts modest, since nothing is known of it; 64 at
/// once is more than any SFU we measured gained from, and a lever.
pub(crate) const SFU_WINDOW: WindowLimits = WindowLimits { floor: 1, start: 16, max: 64 };

/// Steps in a row in which nothing was served, after which nobody waits for it: its pauses have taken a second, or four
/// times what it asked for.
const SILENT_AFTER: u32 = 4;

/// Longest time by which an older load report may overtake a newer one: above every time-out.
const REORDER_MAX: Duration = Duration::from_secs(10);

/// One SFU.
#[derive(Debug)]
pub struct Sfu {
    /// Its number in this process.
    pub idx: SfuIdx,
    /// Its id.
    pub id: SfuId,
    /// Operations in flight on it.
    pub window: Window,
    /// This syncer's share of its creations.
    pub bucket: Bucket,
    entry: ArcSwap<Entry>,
    health: Mutex<Health>,
    verdict: AtomicU8,
    cordoned: AtomicBool,
    /// The drain under way, or the last one.
    drain: Mutex<Option<Drain>>,
    /// An operator took it out of service to look into it.
    quarantined: AtomicBool,
    /// There is a drain that was not taken back.
    draining: AtomicBool,
    accepting: AtomicBool,
    /// What it was told of a drain.
    pub orders: Orders,
    /// The last load report, and when it came.
    load: Mutex<Option<(Load, Instant)>>,
    /// It asked not to be bothered before then.
    held_until: Mutex<Option<Instant>>,
    /// It was overloaded, and asked not to be told of rooms that end before then either.
    overloaded_until: Mutex<Option<Instant>>,
    /// It fell too often lately: out of selection before then.
    flapping_until: Mutex<Option<Instant>>,
    /// Reservations since the last load report.
    reserved: AtomicU32,
    /// Steps in a row in which it served nothing.
    failures: AtomicU32,
    /// Times that all of its rooms were lost.
    losses: AtomicU64,
    /// Releases in flight on it.
    pub(crate) releasing: Arc<AtomicU64>,
}

/// What the catalogue says of an SFU, and what follows from it. Changes with the catalogue.
#[derive(Debug)]
pub struct Entry {
    /// The catalogue's entry.
    pub spec: SfuSpec,
    /// How to tell it.
    pub driver: Arc<dyn SfuDriver>,
    /// This syncer's share of its region's creations.
    region_bucket: Arc<Bucket>,
    /// Its zone, if it is known to be in one.
    zone: Option<Arc<Zone>>,
}

// === impl Entry ===

impl Entry {
    pub(super) fn new(
        spec: SfuSpec,
        driver: Arc<dyn SfuDriver>,
        region_bucket: Arc<Bucket>,
        zone: Option<Arc<Zone>>,
    ) -> Self {
        Self { spec, driver, region_bucket, zone }
    }

    /// Its zone, if it is known to be in one.
    #[must_use]
    pub fn zone(&self) -> Option<&Zone> {
        self.zone.as_deref()
    }
}

// === impl Sfu ===

impl Sfu {
    pub(super) fn new(idx: SfuIdx, id: SfuId, entry: Entry, quota: Quota, now: Instant) -> Self {
        Self {
            idx,
            id,
            window: Window::new(SFU_WINDOW),
            bucket: Bucket::new(quota, now),
            entry: ArcSwap::from_pointee(entry),
            health: Mutex::default(),
            verdict: AtomicU8::new(Verdict::Healthy as u8),
            cordoned: AtomicBool::new(false),
            drain: Mutex::new(None),
            quarantined: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            accepting: AtomicBool::new(true),
            orders: Orders::default(),
            load: Mutex::new(None),
            held_until: Mutex::new(None),
            overloaded_until: Mutex::new(None),
            flapping_until: Mutex::new(None),
            reserved: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            losses: AtomicU64::new(0),
            releasing: Arc::default(),
        }
    }

    /// What the catalogue says of it, now.
    #[must_use]
    pub fn entry(&self) -> Arc<Entry> {
        self.entry.load_full()
    }

    /// How to tell it.
    #[must_use]
    pub fn driver(&self) -> Arc<dyn SfuDriver> {
        self.entry.load().driver.clone()
    }

    /// The catalogue says something else of it now. Its calls, health and buckets stay; if another
    /// machine answers under a new URL, its incarnation tells.
    pub(super) fn set_entry(&self, entry: Entry) {
        self.entry.store(Arc::new(entry));
    }

    /// All of its rooms are lost. Counted before any call is told, so that an attempt that was under
    /// way can tell whether it ended before or after.
    pub fn count_loss(&self) {
        self.losses.fetch_add(1, Ordering::SeqCst);
        *self.load.lock() = None;
        self.reserved.store(self.window.in_flight(), Ordering::Relaxed);
    }

    /// Times that all of its rooms were lost.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::SeqCst)
    }

    /// An attempt that was made at `asked` was not served: for `wait` it is left alone, which is told how many steps
    /// went before this one. Attempts that were under way together are one step. After it, one attempt at a time
    /// finds out, until one is served.
    pub fn leave_alone(&self, asked: Instant, now: Instant, wait: impl FnOnce(u32) -> Duration) {
        // Whoever asked before the last pause ended was under way with those who caused it.
        let counts = |held: Option<Instant>| held.is_none_or(|until| until <= asked);
        if !counts(*self.held_until.lock()) {
            return;
        }
        let until = now + wait(self.failures.load(Ordering::Relaxed));
        let mut held = self.held_until.lock();
        if counts(*held) {
            *held = Some(until);
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An attempt was served.
    pub fn clear_failures(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// What we believe of it.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        Verdict::ALL.get(usize::from(self.verdict.load(Ordering::Relaxed))).copied().unwrap_or_default()
    }

    /// Takes a piece of evidence; returns the change of verdict, if there is one.
    pub fn observe(&self, evidence: &Evidence, rules: &Rules, now: Instant) -> Option<Change> {
        let mut health = self.health.lock();
        let change = health.observe(evidence, rules, now);
        self.verdict.store(health.verdict() as u8, Ordering::Relaxed);
        if change.is_some() {
            *self.flapping_until.lock() = health.held_until();
        }
        change
    }

    /// Looks at what is known of its health.
    pub fn with_health<R>(&self, f: impl FnOnce(&Health) -> R) -> R {
        f(&self.health.lock())
    }

    /// Whether an operator took it out of selection.
    #[must_use]
    pub fn is_cordoned(&self) -> bool {
        self.cordoned.load(Ordering::Relaxed)
    }

    /// Takes it out of selection, or puts it back; putting it back also takes back an operator's word
    /// that it is dead.
    pub fn set_cordoned(&self, cordoned: bool) {
        if !cordoned {
            self.health.lock().forgive();
            *self.flapping_until.lock() = None;
        }
        self.cordoned.store(cordoned, Ordering::Relaxed);
    }

    /// For how much longer it is kept out of selection because it fell too often lately.
    #[must_use]
    pub fn flapping_for(&self, now: Instant) -> Option<Duration> {
        self.flapping_until.lock().map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Whether it is kept for debugging: nothing new is placed there, and what is there is not swept.
    #[must_use]
    pub fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Takes it out of service for debugging, or puts it back.
    pub fn set_quarantined(&self, quarantined: bool) {
        self.quarantined.store(quarantined, Ordering::Relaxed);
    }

    /// Whether it is to be emptied, or was.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether an operator decided something about it that lasts until it is taken back.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        self.is_cordoned() || self.is_quarantined() || self.is_draining() || self.orders.is_draining()
    }

    /// The drain under way, or the last one.
    #[must_use]
    pub fn drain(&self) -> Option<Drain> {
        *self.drain.lock()
    }

    /// Begins a drain, or gives the one under way a new deadline.
    pub fn start_drain(&self, drain: Drain) {
        let mut current = self.drain.lock();
        *current = match *current {
            Some(old) if !old.undone => Some(Drain { deadline: drain.deadline, ..old }),
            _ => Some(drain),
        };
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Takes a drain back. Returns whether there was one.
    pub fn undo_drain(&self) -> bool {
        let mut current = self.drain.lock();
        let Some(drain) = current.as_mut().filter(|d| !d.undone) else { return false };
        drain.undone = true;
        self.draining.store(false, Ordering::Relaxed);
        true
    }

    /// A call has moved away as planned.
    pub fn count_moved(&self) {
        if let Some(drain) = self.drain.lock().as_mut() {
            drain.moved += 1;
        }
    }

    /// Whether it says that it takes new rooms.
    #[must_use]
    pub fn is_accepting(&self) -> bool {
        self.accepting.load(Ordering::Relaxed)
    }

    /// Notes whether it takes new rooms.
    pub fn set_accepting(&self, accepting: bool) {
        self.accepting.store(accepting, Ordering::Relaxed);
    }

    /// It asked to be left alone until then: one answer speaks for every call that would come.
    pub fn hold_until(&self, until: Instant) {
        let mut held = self.held_until.lock();
        *held = (*held).max(Some(until));
    }

    /// It is overloaded, and asked to be left alone until then: by placements and by releases. (One that drains
    /// takes no rooms, and is glad about each that ends.)
    pub fn overloaded_until(&self, until: Instant) {
        self.hold_until(until);
        let mut overloaded = self.overloaded_until.lock();
        *overloaded = (*overloaded).max(Some(until));
    }

    /// When rooms may be ended there, if not now.
    pub fn releases_at(&self, now: Instant) -> Option<Instant> {
        self.overloaded_until.lock().filter(|until| now < *until)
    }

    /// Why it is left alone, if it is: in a pause, or while one attempt finds out whether it serves again.
    fn is_left_alone(&self, now: Instant) -> Option<Excluded> {
        let failures = self.failures.load(Ordering::Relaxed);
        let why = if self.is_held(now) {
            Excluded::Held
        } else if failures > 0 && self.window.in_flight() > 0 {
            Excluded::OnTrial
        } else {
            return None;
        };
        Some(if failures >= SILENT_AFTER { Excluded::Silent } else { why })
    }

    fn is_held(&self, now: Instant) -> bool {
        self.held_until.lock().is_some_and(|until| now < until)
    }

    /// The last load report.
    #[must_use]
    pub fn load(&self) -> Option<Load> {
        self.load.lock().map(|(load, _)| load)
    }

    /// Takes a load report. Older ones than the last are ignored, since answers overtake each other;
    /// but not for long, since clocks are set back and a wrong one must not blind us. Of those taken in the same
    /// millisecond the highest counts: in a crowd it is the last.
    pub fn report(&self, load: Load, now: Instant) {
        let mut last = self.load.lock();
        if last.is_some_and(|(old, _)| old == load) {
            return; // the same sample again: what was reserved since it was taken still is
        }
        let newer = |(old, at): (Load, Instant)| {
            (old.sampled_at, old.calls) <= (load.sampled_at, load.calls)
                || now.saturating_duration_since(at) >= REORDER_MAX
        };
        if last.is_none_or(newer) {
            *last = Some((load, now));
            // What is in flight was reserved and may not be in the report yet.
            self.reserved.store(self.window.in_flight(), Ordering::Relaxed);
        }
    }

    /// (reported load + reservations since that report) ÷ capacity ÷ weight: what SFUs are compared by.
    #[must_use]
    pub fn score(&self) -> f64 {
        self.weighed(self.carried())
    }

    /// How much of the work it shall have.
    #[must_use]
    pub fn weight(&self) -> Weight {
        self.entry.load().spec.weight
    }

    fn weighed(&self, (carried, capacity): (u32, u32)) -> f64 {
        f64::from(carried) / f64::from(capacity) / self.weight().get()
    }

    /// Calls that it carries or is about to, and how many it can: one at least.
    fn carried(&self) -> (u32, u32) {
        let load = self.load();
        let listed = self.entry.load().spec.capacity;
        let reported = load.map_or(0, |l| l.calls);
        let capacity = load.map(|l| l.capacity).filter(|c| *c > 0).map_or(listed, |c| c.min(listed)).max(1);
        (reported.saturating_add(self.reserved.load(Ordering::Relaxed)), capacity)
    }

    /// Calls that it can still carry, as far as we know.
    #[must_use]
    pub fn room(&self) -> u64 {
        let (carried, capacity) = self.carried();
        u64::from(capacity.saturating_sub(carried))
    }

    /// Whether it can be chosen now: its score, or why not.
    ///
    /// # Errors
    ///
    /// The first reason against it, in the order in which an operator would fix them.
    pub fn fit(&self, now: Instant) -> Result<f64, Excluded> {
        self.fit_by(Care::Full, now)
    }

    /// As [`Self::fit`], with that care.
    ///
    /// # Errors
    ///
    /// As [`Self::fit`].
    pub fn fit_by(&self, care: Care, now: Instant) -> Result<f64, Excluded> {
        if care < Care::AtLast && self.flapping_for(now).is_some() && self.verdict().takes_new() {
            return Err(Excluded::Flapping);
        }
        let fit = self.fit_at_last(now);
        // A limit passes before the zone is well again: so it is the zone that stands against it.
        let in_order = fit.err().is_none_or(Excluded::is_passing);
        if care < Care::AnyZone && in_order && self.is_zone_failing() { Err(Excluded::ZoneFailing) } else { fit }
    }

    /// Whether so many SFUs of its zone fail that new calls go elsewhere if they can.
    #[must_use]
    pub fn is_zone_failing(&self) -> bool {
        self.entry.load().zone().is_some_and(Zone::is_failing)
    }

    fn fit_at_last(&self, now: Instant) -> Result<f64, Excluded> {
        let verdict = self.verdict();
        let (carried, capacity) = self.carried();
        if !verdict.takes_new() {
            Err(Excluded::Verdict(verdict))
        } else if self.is_cordoned() {
            Err(Excluded::Cordoned)
        } else if self.is_quarantined() {
            Err(Excluded::Quarantined)
        } else if self.is_draining() {
            Err(Excluded::Draining)
        } else if !self.is_accepting() {
            Err(Excluded::NotAccepting)
        } else if let Some(why) = self.is_left_alone(now) {
            Err(why)
        } else if carried >= capacity {
            Err(Excluded::Full)
        } else if self.window.in_flight() >= self.window.limit() {
            Err(Excluded::Window)
        } else if self.entry.load().region_bucket.available(now) == 0 {
            Err(Excluded::RegionBucket)
        } else if self.bucket.available(now) == 0 {
            Err(Excluded::SfuBucket)
        } else {
            Ok(self.weighed((carried, capacity)))
        }
    }

    /// When its buckets allow a placement, if it is they that do not now.
    #[must_use]
    pub fn ready_at(&self, now: Instant) -> Option<Instant> {
        match self.fit_by(Care::AnyZone, now).err()? {
            Excluded::RegionBucket => Some(self.entry.load().region_bucket.ready_at(now)),
            Excluded::SfuBucket => Some(self.bucket.ready_at(now)),
            _ => None,
        }
    }

    /// Takes what a placement here costs: a token of the region, one of the SFU, a place in its
    /// window, and a reservation that counts until the next load report. All or nothing. Of those who found it fit
    /// at the same moment, at most one gets the trial of an SFU that served nothing of late.
    #[must_use]
    pub fn reserve(self: &Arc<Self>, now: Instant) -> Option<Reservation> {
        let region_bucket = self.entry.load().region_bucket.clone();
        if region_bucket.try_take(1, now).is_err() {
            return None;
        }
        if self.bucket.try_take(1, now).is_err() {
            region_bucket.give_back(1, now);
            return None;
        }
        if !self.enter(now) {
            self.bucket.give_back(1, now);
            region_bucket.give_back(1, now);
            return None;
        }
        self.reserved.fetch_add(1, Ordering::Relaxed);
        Some(Reservation { sfu: self.clone(), region_bucket, losses: self.losses(), made_at: now, settled: false })
    }

    /// Takes a place in the window: on trial, the only one; and none in a pause that began since it was found fit.
    fn enter(&self, now: Instant) -> bool {
        if !self.window.try_enter() {
            return false;
        }
        // Whoever came second sees both, so two never pass; that both may is no harm, since they look again.
        let second = self.failures.load(Ordering::Relaxed) > 0 && self.window.in_flight() > 1;
        if second || self.is_held(now) {
            self.window.leave(Outcome::Neutral, now);
            return false;
        }
        true
    }
}
