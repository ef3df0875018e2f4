//! Gateways: heartbeats, and who is there.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use sfu_api::GatewayId;
use tokio::time::Instant;

use super::blocks::ActParams;
use super::extract::{Ids, Params, id, split_verb};
use super::{ApiError, App, Caller, body, unix_ms};
use crate::presence::{Refused, Seen};

/// Gateways named in one message between syncers: at most 600 bytes each, so ~60 KiB.
pub(crate) const HEARD_MAX: usize = 100;

/// A gateway's heartbeat.
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Heartbeat {
    /// Changes when the gateway's process does.
    incarnation: String,
}

/// What a heartbeat is answered.
#[derive(Clone, Copy, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct HeartbeatAnswer {
    /// Tell everything again (`sync`, every session, `synced` on the bulk road): this syncer did not
    /// know the gateway, it restarted, or sessions of it have expired.
    resync: bool,
}

/// The gateways that a syncer hears from itself.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Heard {
    /// At most 100.
    pub(crate) gateways: Vec<HeardGateway>,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeardGateway {
    /// The gateway.
    pub(crate) gateway: GatewayId,
    /// The incarnation that beat last.
    pub(crate) incarnation: String,
}

/// The gateways that a syncer looks after.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct GatewayList {
    /// By name.
    gateways: Vec<GatewayItem>,
}

/// A gateway.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct GatewayItem {
    /// The gateway.
    gateway: GatewayId,
    /// The incarnation that beat last; without a heartbeat its sessions never expire.
    incarnation: Option<String>,
    /// Watches and bulk streams open here, those that other syncers opened for it included.
    streams: u32,
    /// How long ago it was heard of, in milliseconds.
    heard_ms_ago: u64,
    /// For how long it has been found silent, in milliseconds.
    vanished_ms: Option<u64>,
    /// Sessions of it that are kept beyond `gateways.resume_window`, since people may still talk in their calls: as of the
    /// last answers of SFUs. They are asked every `digest.interval`, `digest.paused` or not, unless `gateways.kept_max` is 0.
    kept: u64,
    /// It has told everything since it started, and nothing has expired since.
    synced: bool,
}

/// A gateway says that it lives.
///
/// With the first heartbeat it promises more: silent for `gateways.alive_for`, with no watch and no bulk
/// stream open, it has vanished, and `gateways.resume_window` later its sessions expire, but for those in calls
/// where SFUs see more people than sessions of gateways that are here. A gateway that never beats is not held to it.
#[utoipa::path(put, path = "/v1/gateways/{gateway}", tag = "gateways",
    params(("gateway" = String, Path)), request_body = Heartbeat,
    responses((status = 200, body = HeartbeatAnswer), (status = 409, body = super::error::ErrorBody, description = "`superseded`: a newer process goes by this name."), (status = "4XX", body = super::error::ErrorBody), (status = "5XX", body = super::error::ErrorBody)))]
pub(crate) async fn heartbeat(
    State(app): State<Arc<App>>,
    caller: Caller,
    Ids(gateway): Ids<GatewayId>,
    request: Request,
) -> Result<Json<HeartbeatAnswer>, ApiError> {
    if gateway != caller.id && !caller.operator {
        return Err(ApiError::forbidden("a gateway speaks only for itself"));
    }
    let bytes = body::read(request.into_body(), app.limits.body()).await?;
    let Heartbeat { incarnation } = body::json(&bytes)?;
    checked(&incarnation)?;
    let beat = app.engine.beat(&gateway, &incarnation, caller.via(), Instant::now())?;
    Ok(Json(HeartbeatAnswer { resync: beat.resync }))
}

/// An operator says that a gateway is gone: at this syncer, what it does not tell again within
/// `gateways.resume_window` leaves its calls.
#[utoipa::path(post, path = "/v1/gateways/{gateway}:expire", operation_id = "expire_gateway", tag = "operators",
    params(("gateway" = String, Path), ActParams),
    responses((status = 204, description = "Noted."), (status = "4XX", body = super::error::ErrorBody), (status = "5XX", body = super::error::ErrorBody)))]
pub(crate) async fn act(
    State(app): State<Arc<App>>,
    caller: Caller,
    Ids(name): Ids<String>,
    Params(ActParams { reason }): Params<ActParams>,
) -> Result<StatusCode, ApiError> {
    caller.must_be_operator()?;
    let (name, Some(_)) = split_verb(&name, &["expire"]) else {
        return Err(ApiError::not_found("action; there is `:expire`"));
    };
    let gateway: GatewayId = id("gateway", name)?;
    app.engine.expire_gateway(&gateway, caller.id.as_str(), reason.as_deref(), unix_ms(), Instant::now())?;
    Ok(StatusCode::NO_CONTENT)
}

/// Another syncer tells which gateways speak to it: they live, though they say nothing here.
#[utoipa::path(post, path = "/v1/gateways", tag = "peers", request_body = Heard,
    responses((status = 204, description = "Noted."), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn heard(State(app): State<Arc<App>>, caller: Caller, request: Request) -> Result<Response, ApiError> {
    if !caller.forwarded {
        return Err(ApiError::forbidden("only syncers tell each other who is there"));
    }
    let bytes = body::read(request.into_body(), app.limits.body()).await?;
    let Heard { gateways } = body::json(&bytes)?;
    if gateways.len() > HEARD_MAX {
        return Err(ApiError::invalid(format!("at most {HEARD_MAX} gateways")));
    }
    let now = Instant::now();
    for HeardGateway { gateway, incarnation } in gateways {
        checked(&incarnation)?;
        if let Err(error) = app.engine.passed_on(&gateway, &incarnation, now) {
            tracing::debug!(%gateway, %error, "heartbeat heard by another syncer not taken");
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The gateways that this syncer looks after.
#[utoipa::path(get, path = "/v1/gateways", tag = "operators",
    responses((status = 200, body = GatewayList), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<GatewayList>, ApiError> {
    caller.must_be_operator()?;
    let now = Instant::now();
    let ms = |at: Instant| u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX);
    let item = |seen: Seen| GatewayItem {
        gateway: seen.gateway,
        incarnation: seen.incarnation,
        streams: seen.streams,
        heard_ms_ago: ms(seen.heard),
        vanished_ms: seen.vanished.map(ms),
        kept: seen.kept,
        synced: seen.synced,
    };
    Ok(Json(GatewayList { gateways: app.engine.gateways().into_iter().map(item).collect() }))
}

/// Refuses what is no incarnation.
pub(super) fn checked(incarnation: &str) -> Result<(), ApiError> {
    if incarnation.is_empty() || incarnation.len() > sfu_api::ID_BYTES_MAX {
        return Err(ApiError::invalid(format!("incarnation must have 1 to {} bytes", sfu_api::ID_BYTES_MAX)));
    }
    Ok(())
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let message = refused.to_string();
        match refused {
            Refused::Superseded => Self::new(StatusCode::CONFLICT, "superseded", message),
            Refused::NotBegun => Self::new(StatusCode::CONFLICT, "not_begun", message),
            Refused::Full => Self::unavailable("too_many_gateways", message, super::error::RETRY_BASE * 10),
        }
    }
}
