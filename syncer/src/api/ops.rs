//! Status, members, probes, metrics and the landing page.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{Html, IntoResponse as _, Response};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use sfu_api::SyncerId;
use tokio::time::Instant;

use super::{ApiError, App, Caller};
use crate::engine::EngineStatus;
use crate::registry::Member;
use crate::token::Jwks;

/// What OpenMetrics text is called.
const OPENMETRICS: HeaderValue = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// The syncer in numbers.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Status {
    /// This syncer.
    syncer: SyncerId,
    /// Whether it is warm.
    ready: bool,
    /// Calls, SFUs, placements.
    #[serde(flatten)]
    engine: EngineStatus,
    /// The pool's lane to the SFUs.
    pool: PoolStatus,
    /// Live members of the fleet, this one included.
    members: u32,
    /// Time since the start, in milliseconds.
    uptime_ms: u64,
    /// Version of the program.
    version: &'static str,
}

/// The pool's lane to the SFUs.
#[derive(Clone, Copy, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct PoolStatus {
    /// Requests waiting for a connection.
    waiters: usize,
    /// Most that may wait, health probes included.
    waiters_max: usize,
    /// Open connections.
    live: usize,
    /// Connections being opened.
    dialling: usize,
    /// Open connections without a request.
    idle: usize,
    /// Permits and dial slots that neither a connection nor a dial has; must be 0, but for a moment.
    permits_off: i64,
}

/// The fleet's members.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct MemberList {
    /// The roster.
    members: Vec<MemberItem>,
}

/// A member and its slots.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct MemberItem {
    /// The member.
    #[serde(flatten)]
    member: Member,
    /// Slots it owns, as far as this syncer knows.
    slots: u32,
    /// Whether it is the syncer that answers.
    me: bool,
}

/// The syncer in numbers.
#[utoipa::path(get, path = "/v1/status", tag = "operators", responses((status = 200, body = Status)))]
pub(crate) async fn status(State(app): State<Arc<App>>, _: Caller) -> Json<Status> {
    let pool = app.sfu_lane.snapshot();
    let mut engine = app.engine.status();
    engine.invariant_violations += app.http.pool_violations.get();
    let uptime = Instant::now().saturating_duration_since(app.started);
    Json(Status {
        syncer: app.ownership.me().clone(),
        ready: app.ready.missing().is_empty(),
        engine,
        pool: PoolStatus {
            waiters: pool.waiters,
            waiters_max: app.sfu_lane.limits().waiters_bound(),
            live: pool.live,
            dialling: pool.dialling,
            idle: pool.idle,
            permits_off: pool.permits_off,
        },
        members: app.ownership.registry().watch().borrow().ready_members(),
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// The fleet's members.
#[utoipa::path(get, path = "/v1/members", tag = "operators",
    responses((status = 200, body = MemberList), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn members(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<MemberList>, ApiError> {
    caller.must_be_operator()?;
    let snapshot = Arc::clone(&app.ownership.registry().watch().borrow());
    let counts = app.ownership.view().slot_counts();
    let members = snapshot.roster.values().map(|m| MemberItem {
        slots: counts.get(&m.id).copied().unwrap_or(0),
        me: m.id == *app.ownership.me(),
        member: m.clone(),
    });
    Ok(Json(MemberList { members: members.collect() }))
}

/// Public keys of the session tokens.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "keys", responses((status = 200, body = Jwks)))]
pub(crate) async fn jwks(State(app): State<Arc<App>>) -> Response {
    ([(CACHE_CONTROL, HeaderValue::from_static("max-age=60"))], Json(app.signer.jwks())).into_response()
}

/// Whether the process runs. Depends on nothing.
#[utoipa::path(get, path = "/livez", tag = "probes", responses((status = 200, body = String)))]
pub(crate) async fn livez() -> &'static str {
    "alive\n"
}

/// Whether the syncer is warm and takes traffic.
#[utoipa::path(get, path = "/readyz", tag = "probes",
    responses((status = 200, body = String), (status = 503, body = String, description = "What is still missing, a line each.")))]
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let missing = app.ready.missing();
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    let text: String = missing.iter().map(|m| format!("waiting for {m}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// Metrics as OpenMetrics text.
#[utoipa::path(get, path = "/metrics", tag = "probes", responses((status = 200, body = String)))]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &app.registry)
        .map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "metrics cannot be written"))?;
    Ok(([(CONTENT_TYPE, OPENMETRICS)], text).into_response())
}

/// This API as OpenAPI.
pub(crate) async fn openapi() -> Response {
    Json(super::openapi()).into_response()
}

/// A page for people.
pub(crate) async fn landing(State(app): State<Arc<App>>) -> Html<String> {
    Html(include_str!("landing.html").replace("{{syncer}}", &escape(app.ownership.me().as_str())))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
