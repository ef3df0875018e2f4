//! Tells the other syncers which gateways speak to us: a gateway beats at one, and has sessions with all.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use http::header::HeaderValue;
use sfu_api::GatewayId;
use tokio::time::{Instant, sleep, timeout};

use crate::api::{App, HEARD_MAX, Heard, HeardGateway};
use crate::ownership::Owner;
use crate::peer::OnBehalf;

/// Shares what was heard, four times within the silence that would let a gateway vanish. A syncer that
/// misses one message loses nothing by it.
pub(super) async fn share(app: Arc<App>) {
    let mut since = app.started;
    loop {
        let period = app.engine.share_gateways_every();
        sleep(period).await;
        let now = Instant::now();
        let heard = app.engine.gateways_that_spoke(since);
        since = now;
        let messages: Vec<Bytes> = heard.chunks(HEARD_MAX).map(message).collect();
        let view = app.ownership.view();
        // One that hangs must not keep us from telling the others again.
        join_all(view.peers().map(|peer| timeout(period, tell(&app, peer, &messages)))).await;
    }
}

fn message(heard: &[(GatewayId, String)]) -> Bytes {
    let named = |(gateway, incarnation): &(GatewayId, String)| HeardGateway {
        gateway: gateway.clone(),
        incarnation: incarnation.clone(),
    };
    serde_json::to_vec(&Heard { gateways: heard.iter().map(named).collect() }).unwrap_or_default().into()
}

async fn tell(app: &App, peer: &Owner, messages: &[Bytes]) {
    let Ok(me) = GatewayId::new(app.ownership.me().as_str()) else { return };
    let who = OnBehalf { gateway: me, operator: false };
    let json = HeaderValue::from_static("application/json");
    for message in messages {
        let sent = app.peers.forward(&peer.url, Method::POST, "/v1/gateways", &who, Some(&json), message.clone());
        match sent.await {
            Ok((head, _)) if head.status.is_success() => {}
            Ok((head, _)) => tracing::debug!(peer = %peer.id, status = %head.status, "gateways heard not taken"),
            Err(error) => {
                tracing::debug!(peer = %peer.id, %error, "gateways heard not told");
                return;
            }
        }
    }
}
