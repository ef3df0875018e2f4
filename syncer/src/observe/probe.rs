//! A sign of life.

use std::sync::Arc;

use tokio::time::Instant;

use crate::context::Context;
use crate::health::{Evidence, Health};
use crate::reconcile::evidence;
use crate::select::Sfu;

/// Asks `sfu` once; on a connection of its own when the verdict wants to be confirmed or refuted.
/// Bounded by the lever `health.probe_timeout`.
pub(super) async fn run(ctx: &Context, sfu: &Arc<Sfu>) {
    let asked = Instant::now();
    let fresh = sfu.with_health(Health::wants_fresh_probe);
    let result = sfu.driver().probe(fresh, asked + ctx.levers.probe_timeout.get()).await;
    let now = Instant::now();
    match result {
        Ok(probe) => {
            sfu.set_accepting(probe.accepting);
            let took = now.saturating_duration_since(asked);
            ctx.observe(sfu, &Evidence::Answered { boot_id: probe.boot_id, asked, took }, now);
            if let Some(load) = probe.load {
                sfu.report(load, now);
            }
        }
        Err(error) => {
            tracing::debug!(sfu = %sfu.id, %error, fresh, "no sign of life");
            if let Some(evidence) = evidence(&error, asked, now) {
                ctx.observe(sfu, &evidence, now);
            }
        }
    }
}
