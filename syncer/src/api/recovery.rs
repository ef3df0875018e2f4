//! How a recovery goes, for operators, scripts and the dashboard.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use sfu_api::SyncerId;
use tokio::time::Instant;

use super::{App, Caller};
use crate::engine::Recovery;

/// This syncer's recovery.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct RecoveryOf {
    /// This syncer.
    syncer: SyncerId,
    /// What waits, how fast it goes and how long it will take.
    #[serde(flatten)]
    recovery: Recovery,
}

/// What waits for an endpoint, how fast it gets one, and when all of it will have one.
///
/// Of this syncer's calls, with its share of the limits. The estimate is for what waits now; what comes
/// while it is served is not in it.
#[utoipa::path(get, path = "/v1/recovery", tag = "operators", responses((status = 200, body = RecoveryOf)))]
pub(crate) async fn recovery(State(app): State<Arc<App>>, _: Caller) -> Json<RecoveryOf> {
    let syncer = app.ownership.me().clone();
    Json(RecoveryOf { syncer, recovery: app.engine.recovery(Instant::now()) })
}
