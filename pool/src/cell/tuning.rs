//! The limits that all cells of a partition share, changeable while they are used.
//!
//! One relaxed load per read, so a lever may turn any of them under load. Each partition has its own
//! copy: nothing here is written by two partitions, or on the checkout path unless a line grows.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rate_limit::Backoff;

use super::places::Places;
use crate::conn::ConnSettings;
use crate::dial::scheduler::{origin_alone, origin_share};
use crate::limits::LaneLimits;

/// A [`Duration`] that can be changed by another thread. Nanoseconds: 584 years fit.
#[derive(Debug, Default)]
pub(crate) struct Span(AtomicU64);

/// What bounds a cell.
#[derive(Debug, Default)]
pub(crate) struct Tuning {
    pub(crate) connections_max: AtomicUsize,
    pub(crate) waiters_max: AtomicUsize,
    pub(crate) places: Places,
    /// Dials of one origin at once, its share of the partition's slots: beside others, and alone.
    dials_share: AtomicUsize,
    dials_alone: AtomicUsize,
    /// Origins are in line for a dial slot.
    contended: AtomicBool,
    pub(crate) streams_max: AtomicUsize,
    pub(crate) idle_timeout: Span,
    pub(crate) age_max: Span,
    pub(crate) dial_timeout: Span,
    pub(crate) request_timeout: Span,
    pub(crate) ping_interval: Span,
    pub(crate) ping_timeout: Span,
    backoff_base: Span,
    backoff_max: Span,
}

// === impl Span ===

impl Span {
    pub(crate) fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    pub(crate) fn set(&self, span: Duration) {
        self.0.store(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

// === impl Tuning ===

impl Tuning {
    /// As the lane's limits say, for a partition with so many dial slots.
    pub(crate) fn new(limits: &LaneLimits, slots: usize) -> Self {
        let tuning = Self::default();
        tuning.set(limits, slots);
        tuning
    }

    pub(crate) fn set(&self, limits: &LaneLimits, slots: usize) {
        self.connections_max.store(limits.connections_per_origin_max, Ordering::Relaxed);
        self.waiters_max.store(limits.waiters_per_origin_max, Ordering::Relaxed);
        self.places.set(limits.share(limits.waiters_max));
        self.dials_share.store(origin_share(slots), Ordering::Relaxed);
        self.dials_alone.store(origin_alone(slots), Ordering::Relaxed);
        self.streams_max.store(limits.h2_streams_max, Ordering::Relaxed);
        self.idle_timeout.set(limits.idle_timeout);
        self.age_max.set(limits.age_max);
        self.dial_timeout.set(limits.dial_timeout);
        self.request_timeout.set(limits.request_timeout);
        self.ping_interval.set(limits.ping_interval);
        self.ping_timeout.set(limits.ping_timeout);
        self.backoff_base.set(limits.backoff_base);
        self.backoff_max.set(limits.backoff_max);
    }

    pub(crate) fn connections_max(&self) -> usize {
        self.connections_max.load(Ordering::Relaxed)
    }

    pub(crate) fn waiters_max(&self) -> usize {
        self.waiters_max.load(Ordering::Relaxed)
    }

    /// Dials of one origin at once, as things are.
    pub(crate) fn dials_max(&self) -> usize {
        let contended = self.contended.load(Ordering::Relaxed);
        if contended { &self.dials_share } else { &self.dials_alone }.load(Ordering::Relaxed).max(1)
    }

    /// Whether origins are in line for a dial slot.
    pub(crate) fn set_contended(&self, contended: bool) {
        self.contended.store(contended, Ordering::Relaxed);
    }

    pub(crate) fn streams_max(&self) -> usize {
        self.streams_max.load(Ordering::Relaxed).max(1)
    }

    /// For connections opened from now on.
    pub(crate) fn conn_settings(&self) -> ConnSettings {
        ConnSettings { ping_interval: self.ping_interval.get(), ping_timeout: self.ping_timeout.get() }
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff { base: self.backoff_base.get(), max: self.backoff_max.get() }
    }
}
