//! What the door counts: sheds by class and reason, ages of queues, what else it is told.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Class, QueueAgesView, Reason, ShedView};

/// The classes whose work waits for a place.
const WAITING: [Class; 3] = [Class::Repair, Class::NewCall, Class::Stream];

type Seconds = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShedLabels {
    class: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

/// What was turned away, by class and reason. Each pair's counter is at hand, so counting is one addition.
#[derive(Debug)]
pub struct Sheds {
    counters: Vec<[Counter; Reason::ALL.len()]>,
    family: Family<ShedLabels, Counter>,
}

/// What was felt at the last tick.
#[derive(Debug)]
pub struct Felt {
    ages: [Seconds; WAITING.len()],
    by_class: Family<ClassLabel, Seconds>,
    lag: Seconds,
    memory: Gauge<u64, AtomicU64>,
    memory_max: Gauge<u64, AtomicU64>,
}

impl Default for Sheds {
    fn default() -> Self {
        let family = Family::<ShedLabels, Counter>::default();
        let counter = |class: Class, reason: Reason| {
            family.get_or_create_owned(&ShedLabels { class: class.name(), reason: reason.name() })
        };
        // Classes that are never shed show it: their counters are there and stay at nought.
        let counters = Class::ALL.map(|class| Reason::ALL.map(|reason| counter(class, reason)));
        Self { counters: counters.into(), family }
    }
}

impl Default for Felt {
    fn default() -> Self {
        let by_class = Family::<ClassLabel, Seconds>::default();
        let ages = WAITING.map(|class| by_class.get_or_create_owned(&ClassLabel { class: class.name() }));
        Self { ages, by_class, lag: Gauge::default(), memory: Gauge::default(), memory_max: Gauge::default() }
    }
}

// === impl Sheds ===

impl Sheds {
    /// Counts one.
    pub fn count(&self, class: Class, reason: Reason) {
        self.counters[class as usize][reason as usize].inc();
    }

    /// How often work of `class` was turned away for `reason`.
    #[must_use]
    pub fn get(&self, class: Class, reason: Reason) -> u64 {
        self.counters[class as usize][reason as usize].get()
    }

    /// Those that happened.
    #[must_use]
    pub fn view(&self) -> Vec<ShedView> {
        let all = Class::ALL.into_iter().flat_map(|class| Reason::ALL.map(|reason| (class, reason)));
        let all = all.map(|(class, reason)| ShedView {
            class: class.name(),
            reason: reason.name(),
            count: self.get(class, reason),
        });
        all.filter(|shed| shed.count > 0).collect()
    }

    /// Names them in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("admission_sheds", "Work turned away, by class and reason", self.family.clone());
    }
}

// === impl Felt ===

impl Felt {
    /// Age of the oldest ready work: repairs, new calls, streams.
    pub fn set_ages(&self, ages: [Duration; 3]) {
        for (gauge, age) in self.ages.iter().zip(ages) {
            gauge.set(age.as_secs_f64());
        }
    }

    /// How late the process's timer was.
    pub fn set_lag(&self, lag: Duration) {
        self.lag.set(lag.as_secs_f64());
    }

    /// Resident memory and its limit, in bytes.
    pub fn set_memory(&self, bytes: u64, max: u64) {
        self.memory.set(bytes);
        self.memory_max.set(max);
    }

    /// The ages in milliseconds.
    #[must_use]
    pub fn ages_ms(&self) -> QueueAgesView {
        let [repair, new_call, stream] = [0, 1, 2].map(|i| ms(self.ages[i].get()));
        QueueAgesView { repair, new_call, stream }
    }

    /// The lag in milliseconds.
    #[must_use]
    pub fn lag_ms(&self) -> u64 {
        ms(self.lag.get())
    }

    /// Resident memory and its limit, in bytes.
    #[must_use]
    pub fn memory(&self) -> (u64, u64) {
        (self.memory.get(), self.memory_max.get())
    }

    /// Names them in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let ages = self.by_class.clone();
        registry.register_with_unit("queue_age", "Age of the oldest ready work by class", Unit::Seconds, ages);
        let lag = self.lag.clone();
        registry.register_with_unit("lag", "How late the process's own timer was", Unit::Seconds, lag);
        registry.register_with_unit("resident", "Resident memory", Unit::Bytes, self.memory.clone());
        let max = self.memory_max.clone();
        registry.register_with_unit("resident_limit", "Resident memory that sheds all new work", Unit::Bytes, max);
    }
}

fn ms(seconds: f64) -> u64 {
    (seconds * 1_000.0) as u64 // truncates; not negative
}
