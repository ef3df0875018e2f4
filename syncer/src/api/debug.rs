//! What the pool is doing, origin by origin, for whoever looks into an incident.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use pool::LaneDebug;
use serde::{Deserialize, Serialize};

use super::extract::Params;
use super::{ApiError, App, Caller};

/// Origins shown of each lane when the caller does not say: a screenful.
const TOP_DEFAULT: usize = 20;
/// Most origins of each lane: ~150 KiB.
const TOP_MAX: usize = 500;

/// How much to show.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct PoolParams {
    /// At most this many origins of each lane, the busiest (0 to 500; 20 by default).
    top: Option<usize>,
}

/// The pool, as far as an operator can see into it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct PoolDebug {
    /// The lanes: name, sums, every partition, and the busiest origins with their breakers, counts and
    /// measured times. For people and scripts of the day: fields come and go with the pool.
    #[schema(value_type = Vec<Object>)]
    lanes: Vec<LaneDebug>,
}

/// The pool's lanes, partitions and busiest origins.
#[utoipa::path(get, path = "/debug/pool", operation_id = "debug_pool", tag = "operators", params(PoolParams),
    responses((status = 200, body = PoolDebug), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn pool(
    State(app): State<Arc<App>>,
    caller: Caller,
    Params(params): Params<PoolParams>,
) -> Result<Json<PoolDebug>, ApiError> {
    caller.must_be_operator()?;
    let top = params.top.unwrap_or(TOP_DEFAULT);
    if top > TOP_MAX {
        return Err(ApiError::invalid(format!("top must be 0 to {TOP_MAX}")));
    }
    let lanes = [&app.sfu_lane, app.peers.lane()];
    Ok(Json(PoolDebug { lanes: lanes.map(|lane| lane.debug(top)).into() }))
}
