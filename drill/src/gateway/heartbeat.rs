//! The heartbeat: tells the fleet which incarnation of this gateway is alive.

use std::sync::Arc;
use std::time::Duration;

use super::Gateway;
use crate::error::chain;
use crate::pace::Rotation;

/// Between two heartbeats.
const BEAT_EVERY: Duration = Duration::from_secs(5);
/// A heartbeat that takes longer has failed.
const BEAT_MAX: Duration = Duration::from_secs(3);

// === impl Gateway ===

impl Gateway {
    pub(super) async fn heartbeat_loop(self: Arc<Self>) {
        let mut rotation = Rotation::new(&self.shared.targets.syncers, usize::from(self.ix));
        loop {
            let wait = match self.beat(rotation.url()).await {
                Ok(()) => {
                    rotation.succeed();
                    BEAT_EVERY
                }
                Err(reason) => {
                    self.shared.stats.error("heartbeat");
                    tracing::debug!(gateway = self.name, syncer = rotation.url(), reason, "heartbeat failed");
                    rotation.fail(&mut rand::rng())
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn beat(&self, base: &str) -> Result<(), String> {
        let url = format!("{base}/v1/gateways/{}", self.name);
        let request = self.client.put(url).bearer_auth(&self.token).timeout(BEAT_MAX);
        let body = serde_json::json!({ "incarnation": self.incarnation });
        let response = request.json(&body).send().await.map_err(|e| chain(&e))?;
        let status = response.status();
        if status.is_success() { Ok(()) } else { Err(status.to_string()) }
    }
}
