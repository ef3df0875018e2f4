//! The limits of a lane as levers of a [`Levers`] registry.
//!
//! An operator turns `pool.sfu.dials_max` like any other limit of the process: checked, applied within
//! milliseconds, remembered with who did it and why. The lane keeps one task that waits for changes.

use std::sync::Weak;
use std::time::Duration;

use rate_limit::{Lever, LeverSpec, Levers};

use crate::error::Error;
use crate::fault::{self, Point};
use crate::lane::LaneInner;
use crate::limits::{LaneLimits, most};
use crate::metrics::Gauged;

/// The names of levers live as long as the process, as the registry demands. A lane registers its own
/// once, so what is leaked is bounded by the number of lanes.
fn name(prefix: &str, limit: &str) -> &'static str {
    format!("{prefix}.{limit}").leak()
}

macro_rules! levers {
    ($($(#[doc = $help:literal])+ $field:ident: $lever:ty = $unit:literal, $min:expr => $max:expr,
        $read:expr, $write:expr;)*) => {
        /// The levers of one lane.
        struct LaneLevers { $($field: Lever<$lever>,)* }

        impl LaneLevers {
            /// Registers every limit under `prefix`, with the value in force as default.
            fn register(levers: &Levers, prefix: &str, limits: &LaneLimits) -> Self {
                Self { $($field: {
                    let read: fn(&LaneLimits) -> $lever = $read;
                    let (min, max): ($lever, $lever) = ($min, $max);
                    let default = read(limits);
                    // A value that was configured beyond the usual range widens it.
                    let min = if default < min { default } else { min };
                    let max = if default > max { default } else { max };
                    let doc = concat!($($help),+).trim_ascii();
                    let name = name(prefix, stringify!($field));
                    levers.register(LeverSpec { name, doc, unit: $unit, default, min, max })
                },)* }
            }

            /// Writes the levers' values into the limits.
            fn apply(&self, limits: &mut LaneLimits) {
                $({
                    let write: fn(&mut LaneLimits, $lever) = $write;
                    write(limits, self.$field.get());
                })*
            }
        }
    };
}

/// A count as the levers see it.
fn whole(n: usize) -> u64 {
    n as u64
}

/// A count as the limits see it.
fn count(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

levers! {
    /// Dials of the lane in flight at the same time, divided among its partitions; each has at least one.
    dials_max: u64 = "dials", 1 => whole(most::CONNECTIONS),
        |l| whole(l.dials_max), |l, v| l.dials_max = count(v).max(l.partitions);
    /// Dials of the lane that may start per second, divided among its partitions.
    dial_rate: f64 = "per second", 0.0 => 1_000_000.0, |l| l.dial_rate_per_s, |l, v| l.dial_rate_per_s = v;
    /// Dials of the lane that may start at once before the rate counts.
    dial_burst: u64 = "dials", 0 => 1_000_000, |l| l.dial_burst.into(),
        |l, v| l.dial_burst = u32::try_from(v).unwrap_or(u32::MAX);
    /// TLS handshakes that may ever compute at once; 0 leaves it to the number of cores.
    handshakes_max: u64 = "handshakes", 0 => 65_536, |l| l.handshakes_max.unwrap_or(0).into(),
        |l, v| l.handshakes_max = u32::try_from(v).ok().filter(|v| *v > 0);
    /// Connections of the lane, divided among its partitions. Keep it below the limit of open files.
    connections_max: u64 = "connections", 1 => whole(most::CONNECTIONS),
        |l| whole(l.connections_max), |l, v| l.connections_max = count(v).max(l.partitions);
    /// Connections to one origin.
    connections_per_origin_max: u64 = "connections", 1 => whole(most::CONNECTIONS_PER_ORIGIN),
        |l| whole(l.connections_per_origin_max), |l, v| l.connections_per_origin_max = count(v);
    /// Callers of the lane that may wait, divided among its partitions.
    waiters_max: u64 = "callers", 1 => whole(most::WAITERS),
        |l| whole(l.waiters_max), |l, v| l.waiters_max = count(v).max(l.partitions);
    /// Callers that may wait for one origin.
    waiters_per_origin_max: u64 = "callers", 1 => whole(most::WAITERS),
        |l| whole(l.waiters_per_origin_max), |l, v| l.waiters_per_origin_max = count(v);
    /// Origins that may have state.
    origins_max: u64 = "origins", 1 => whole(most::ORIGINS), |l| whole(l.origins_max), |l, v| l.origins_max = count(v);
    /// Requests at once on one HTTP/2 connection.
    h2_streams_max: u64 = "requests", 1 => whole(most::H2_STREAMS),
        |l| whole(l.h2_streams_max), |l, v| l.h2_streams_max = count(v);
    /// How long a whole dial may take: name, TCP, TLS and HTTP together.
    dial_timeout: Duration = "duration", MS(10) => S(300), |l| l.dial_timeout, |l, v| l.dial_timeout = v;
    /// An idle connection is closed after this, if it is opened from now on.
    idle_timeout: Duration = "duration", MS(10) => S(86_400), |l| l.idle_timeout, |l, v| l.idle_timeout = v;
    /// A connection opened from now on serves at most this long.
    age_max: Duration = "duration", MS(100) => S(604_800), |l| l.age_max, |l, v| l.age_max = v;
    /// Back-off after the first failed dial of an origin; doubles.
    backoff_base: Duration = "duration", MS(1) => S(600), |l| l.backoff_base, |l, v| l.backoff_base = v;
    /// Longest back-off of an origin.
    backoff_max: Duration = "duration", MS(1) => S(3_600), |l| l.backoff_max, |l, v| l.backoff_max = v;
    /// Deadline of requests that bring none.
    request_timeout: Duration = "duration", MS(10) => S(86_400), |l| l.request_timeout, |l, v| l.request_timeout = v;
    /// HTTP/2 PING after this much silence, for connections opened from now on.
    ping_interval: Duration = "duration", MS(10) => S(3_600), |l| l.ping_interval, |l, v| l.ping_interval = v;
    /// A PING unanswered for this long ends the connection, for connections opened from now on.
    ping_timeout: Duration = "duration", MS(10) => S(600), |l| l.ping_timeout, |l, v| l.ping_timeout = v;
}

impl LaneLimits {
    /// Registers the levers that a lane with these limits would have, without a lane: so that a configuration
    /// that sets them can be checked. Nothing follows them.
    ///
    /// # Panics
    ///
    /// As [`Lane::register_levers`](crate::Lane::register_levers).
    pub fn register_levers(&self, levers: &Levers, prefix: &str) {
        let _followed_by_nobody = LaneLevers::register(levers, prefix, self);
    }
}

/// Registers the lane's limits and returns what keeps them applied.
pub(crate) fn register(
    lane: &std::sync::Arc<LaneInner>,
    levers: &Levers,
    prefix: &str,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync + 'static {
    let registered = std::sync::Arc::new(LaneLevers::register(levers, prefix, &lane.limits()));
    let (lane, levers) = (std::sync::Arc::downgrade(lane), levers.clone());
    move || Box::pin(follow(Weak::clone(&lane), std::sync::Arc::clone(&registered), levers.clone()))
}

/// Applies every change until the lane is gone.
async fn follow(lane: Weak<LaneInner>, registered: std::sync::Arc<LaneLevers>, levers: Levers) {
    let mut changed = levers.changed();
    let mut last: Option<LaneLimits> = None;
    loop {
        changed.borrow_and_update();
        fault::point(Point::Levers);
        {
            let Some(lane) = lane.upgrade() else { return };
            let mut wanted = lane.limits();
            registered.apply(&mut wanted);
            if last.as_ref() != Some(&wanted) {
                let applied: Result<(), Error> = lane.change(|limits| registered.apply(limits));
                if let Err(error) = applied {
                    tracing::error!(lane = %lane.name(), %error, "levers contradict each other and are not applied");
                }
                last = Some(wanted);
            }
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
