//! Gateways as they come and go.

use std::sync::Arc;
use std::time::Duration;

use sfu_api::GatewayId;
use tokio::time::Instant;

use super::{Engine, GatewayCounts};
use crate::context::Context;
use crate::presence::{Beat, Due, Refused, Seen, Via};
use crate::state::Round;

/// The act's name in the audit.
const GATEWAY_EXPIRE: &str = "gateways.expire.gateway";

/// A watch or bulk stream of a gateway; as long as it lives, so does the gateway.
#[derive(Debug)]
pub struct GatewayStream(Option<(Arc<Context>, GatewayId, Via)>);

impl Engine {
    /// A gateway says that it lives.
    ///
    /// # Errors
    ///
    /// When the incarnation has been replaced, or there are too many gateways.
    pub fn beat(&self, gateway: &GatewayId, incarnation: &str, via: Via, now: Instant) -> Result<Beat, Refused> {
        let beat = self.ctx.presence.lock().beat(gateway, incarnation, via, now)?;
        log_restart(gateway, beat);
        Ok(beat)
    }

    /// Another syncer says that a gateway spoke to it.
    ///
    /// # Errors
    ///
    /// As [`Engine::beat`].
    pub fn passed_on(&self, gateway: &GatewayId, incarnation: &str, now: Instant) -> Result<(), Refused> {
        // Within one interval everybody has told everybody; another for what is on its way.
        let settles = self.share_gateways_every() * 2;
        let beat = self.ctx.presence.lock().passed_on(gateway, incarnation, settles, now)?;
        log_restart(gateway, beat);
        Ok(())
    }

    /// A gateway opened a watch or a bulk stream. One gateway too many is served and not looked after.
    #[must_use]
    pub fn stream(&self, gateway: &GatewayId, via: Via, now: Instant) -> GatewayStream {
        let opened = self.ctx.presence.lock().opened(gateway, via, now);
        GatewayStream(opened.is_ok().then(|| (self.ctx.clone(), gateway.clone(), via)))
    }

    /// Whether this process of the gateway may speak for it; one that does not say which it is may.
    ///
    /// # Errors
    ///
    /// When the incarnation has been replaced.
    pub fn admits(&self, gateway: &GatewayId, incarnation: Option<&str>) -> Result<(), Refused> {
        incarnation.map_or(Ok(()), |incarnation| self.ctx.presence.lock().admits(gateway, incarnation))
    }

    /// A gateway begins to tell everything again: what it tells from now on is of this round.
    ///
    /// # Errors
    ///
    /// When the incarnation has been replaced, or there are too many gateways.
    pub fn begin_round(&self, gateway: &GatewayId, incarnation: Option<&str>, now: Instant) -> Result<Round, Refused> {
        self.admits(gateway, incarnation)?;
        let round = self.ctx.next_round();
        self.ctx.presence.lock().begin(gateway, round, now)?;
        for shard in &self.ctx.shards {
            shard.lock().begin_round(gateway, round);
        }
        Ok(round)
    }

    /// A gateway has told everything: what it did not tell since the round began expires after
    /// `gateways.resume_window`. May be said again.
    ///
    /// # Errors
    ///
    /// When the incarnation has been replaced, or the round was not begun here.
    pub fn synced(
        &self,
        gateway: &GatewayId,
        incarnation: Option<&str>,
        round: Round,
        now: Instant,
    ) -> Result<(), Refused> {
        self.admits(gateway, incarnation)?;
        self.ctx.presence.lock().synced(gateway, round, now)
    }

    /// An operator's word that a gateway is gone, as if it had told everything and there was nothing: what it does
    /// not tell again within `gateways.resume_window` expires. For one that never promised to beat there is no
    /// other end.
    ///
    /// # Errors
    ///
    /// When there are too many gateways.
    pub fn expire_gateway(
        &self,
        gateway: &GatewayId,
        by: &str,
        why: Option<&str>,
        at_unix_ms: u64,
        now: Instant,
    ) -> Result<(), Refused> {
        let round = self.begin_round(gateway, None, now)?;
        let mut presence = self.ctx.presence.lock();
        presence.synced(gateway, round, now)?;
        // Should it be there after all, it hears that it has to tell everything again.
        presence.expired(&Due { gateway: gateway.clone(), before: None, but_talking: false });
        drop(presence);
        let note = serde_json::json!({ "gateway": gateway });
        self.ctx.registry.note(GATEWAY_EXPIRE, note, by, why, at_unix_ms);
        Ok(())
    }

    /// Every gateway that is looked after, by name.
    #[must_use]
    pub fn gateways(&self) -> Vec<Seen> {
        self.ctx.presence.lock().list()
    }

    /// The gateways that spoke to this syncer itself since then, with their incarnations.
    #[must_use]
    pub fn gateways_that_spoke(&self, since: Instant) -> Vec<(GatewayId, String)> {
        self.ctx.presence.lock().spoke(since)
    }

    /// How often the other syncers have to hear of them: four times before anyone takes them for gone.
    #[must_use]
    pub fn share_gateways_every(&self) -> Duration {
        self.ctx.levers.gateway_alive_for.get() / 4
    }

    /// Watches that one gateway may have open here itself.
    #[must_use]
    pub fn watches_per_gateway_max(&self) -> usize {
        usize::try_from(self.ctx.levers.gateway_watches_max.get()).unwrap_or(usize::MAX)
    }

    /// Narrowest span over which callers that are turned away at one moment come back.
    #[must_use]
    pub fn retry_span_min(&self) -> Duration {
        self.ctx.levers.retry_span_min.get()
    }

    pub(super) fn gateway_counts(&self) -> (GatewayCounts, bool) {
        let presence = self.ctx.presence.lock();
        let counts = presence.counts();
        let counts = GatewayCounts {
            here: counts.here,
            vanished: counts.vanished,
            syncing: counts.syncing,
            sessions_kept: counts.kept,
        };
        (counts, presence.is_frozen())
    }
}

fn log_restart(gateway: &GatewayId, beat: Beat) {
    if beat.restarted {
        tracing::info!(%gateway, "gateway restarted");
    }
}

impl Drop for GatewayStream {
    fn drop(&mut self) {
        if let Some((ctx, gateway, via)) = self.0.take() {
            ctx.presence.lock().closed(&gateway, via, Instant::now());
        }
    }
}
