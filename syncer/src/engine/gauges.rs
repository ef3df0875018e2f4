//! A recovery, and the zones that fail, as metrics, read when they are scraped.

use std::fmt;
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::time::Instant;

use super::recovery::{ClassRecovery, recovery};
use crate::context::Context;

/// What "never" is as a number.
const NEVER: f64 = f64::INFINITY;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

/// Reads a context.
#[derive(Debug)]
pub(super) struct Gauges {
    ctx: Weak<Context>,
}

// === impl Gauges ===

impl Gauges {
    pub(super) fn new(ctx: &Arc<Context>) -> Self {
        Self { ctx: Arc::downgrade(ctx) }
    }
}

type Read = fn(&ClassRecovery) -> f64;

const GAUGES: [(&str, &str, Option<Unit>, Read); 4] = [
    ("recovery_waiting", "Calls that await an endpoint", None, |class| class.waiting as f64),
    ("recovery_rate", "Placements per second over the last seconds", None, |class| class.rate_per_s),
    ("recovery_eta", "Time until all that wait are placed", Some(Unit::Seconds), |class| class.eta_s.unwrap_or(NEVER)),
    ("recovery_oldest", "How long the first in line has waited", Some(Unit::Seconds), |class| {
        class.oldest_ms.unwrap_or(0) as f64 / 1_000.0
    }),
];

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(ctx) = self.ctx.upgrade() else { return Ok(()) };
        let classes = recovery(&ctx, Instant::now()).classes;
        for (name, help, unit, read) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for class in &classes {
                let labels = ClassLabel { class: class.class };
                ConstGauge::new(read(class)).encode(family.encode_family(&labels)?)?;
            }
        }
        let forgotten = ctx.shards.iter().map(|shard| shard.lock().leaves_forgotten()).sum::<u64>();
        let help = "Leaves forgotten within a minute, because there were too many to remember";
        let family = encoder.encode_descriptor("leaves_forgotten", help, None, MetricType::Counter)?;
        ConstCounter::new(forgotten).encode(family)?;
        let failing = ctx.catalogue.now().zones.values().filter(|zone| zone.is_failing()).count();
        let help = "Zones of which so many SFUs fail that new calls go elsewhere if they can";
        let family = encoder.encode_descriptor("zones_failing", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(failing).unwrap_or(i64::MAX)).encode(family)
    }
}
