//! A word to an SFU that is drained.
//!
//! A drain is one syncer's; the others would go on placing there, and so would a syncer that restarted. The SFU
//! itself is the one place where all of them hear of it: it refuses new rooms, and its probes say why.

use std::sync::Arc;

use tokio::time::Instant;

use crate::context::Context;
use crate::reconcile::evidence;
use crate::select::Sfu;

/// Tells `sfu` to take no new rooms, or to take them again. Bounded by the lever `health.probe_timeout`; one that
/// does not listen is told again.
pub(super) async fn run(ctx: &Context, sfu: &Arc<Sfu>, draining: bool) {
    let asked = Instant::now();
    let result = sfu.driver().set_draining(draining, asked + ctx.levers.probe_timeout.get()).await;
    let now = Instant::now();
    match result {
        Ok(()) => {
            sfu.orders.told(draining);
            sfu.set_accepting(!draining);
            tracing::info!(sfu = %sfu.id, draining, "sfu told");
            ctx.wake.notify_one();
        }
        Err(error) => {
            tracing::warn!(sfu = %sfu.id, draining, %error, "sfu not told");
            if let Some(evidence) = evidence(&error, asked, now) {
                ctx.observe(sfu, &evidence, now);
            }
        }
    }
}
