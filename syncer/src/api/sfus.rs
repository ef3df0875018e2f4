//! SFUs, for operators.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use sfu_api::SfuId;
use tokio::time::Instant;

use super::audit::REASON_BYTES_MAX;
use super::extract::{Ids, id, split_verb};
use super::{ApiError, App, Caller, body};
use crate::engine::{DRAIN_MAX, SfuView};

/// All SFUs.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct SfuList {
    /// The SFUs, as this syncer sees them.
    sfus: Vec<SfuView>,
}

/// The SFUs as this syncer sees them.
#[utoipa::path(get, path = "/v1/sfus", operation_id = "list_sfus", tag = "operators",
    responses((status = 200, body = SfuList), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<SfuList>, ApiError> {
    caller.must_be_operator()?;
    Ok(Json(SfuList { sfus: app.engine.sfus() }))
}

/// How long a drain may take when the operator does not say.
const DRAIN_DEFAULT: Duration = Duration::from_secs(600);

/// What operators can do with an SFU.
const ACTIONS: [&str; 7] = ["cordon", "uncordon", "drain", "undrain", "quarantine", "unquarantine", "declare-dead"];

/// How to do it, and why.
#[derive(Clone, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ActBody {
    /// Of a drain: how long calls may be moved, such as `10m`; what is left then stays. At most a day,
    /// ten minutes if absent.
    #[serde(default, with = "humantime_serde")]
    #[schema(value_type = Option<String>)]
    deadline: Option<Duration>,
    /// Why, for the audit.
    reason: Option<String>,
}

/// An SFU as this syncer sees it, with the progress of its drain.
#[utoipa::path(get, path = "/v1/sfus/{sfu}", operation_id = "get_sfu", tag = "operators",
    params(("sfu" = String, Path)),
    responses((status = 200, body = SfuView), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Ids(sfu): Ids<SfuId>,
) -> Result<Json<SfuView>, ApiError> {
    caller.must_be_operator()?;
    app.engine.sfu(&sfu).map(Json).ok_or_else(|| ApiError::not_found("SFU"))
}

/// Take an SFU out of selection, drain it, quarantine it, take that back, or move its calls on an
/// operator's word.
///
/// `drain` moves this syncer's calls one by one, each with a new endpoint and no null; `undrain` leaves
/// those that moved where they went. `quarantine` drains, and leaves alone what stays there.
#[utoipa::path(post, path = "/v1/sfus/{sfu}:{action}", operation_id = "act_on_sfu", tag = "operators",
    params(("sfu" = String, Path), ("action" = String, Path, description = "`cordon`, `uncordon`, `drain`, `undrain`, `quarantine`, `unquarantine` or `declare-dead`")),
    request_body = ActBody,
    responses((status = 200, body = SfuView), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn act(
    State(app): State<Arc<App>>,
    caller: Caller,
    Ids(name): Ids<String>,
    request: Request,
) -> Result<Json<SfuView>, ApiError> {
    caller.must_be_operator()?;
    let (name, verb) = split_verb(&name, &ACTIONS);
    let sfu: SfuId = id("sfu", name)?;
    let Some(action) = ACTIONS.into_iter().find(|a| Some(*a) == verb) else {
        return Err(ApiError::not_found(&format!(
            "action; there are {}",
            ACTIONS.map(|a| format!("`:{a}`")).join(", ")
        )));
    };
    // A deadline that goes unread would be worse than none.
    if request.uri().query().is_some_and(|query| !query.is_empty()) {
        return Err(ApiError::invalid("this takes no query: `deadline` and `reason` belong in the body"));
    }
    let bytes = body::read(request.into_body(), app.limits.body()).await?;
    let ActBody { deadline, reason } = body::json(&bytes)?;
    if deadline.is_some() && action != "drain" {
        return Err(ApiError::invalid("only a drain has a deadline"));
    }
    let within = deadline.unwrap_or(DRAIN_DEFAULT);
    if within.is_zero() || within > DRAIN_MAX {
        return Err(ApiError::invalid("`deadline` must be more than nothing and at most a day"));
    }
    if reason.as_ref().is_some_and(|r| r.len() > REASON_BYTES_MAX) {
        return Err(ApiError::invalid(format!("`reason` must have at most {REASON_BYTES_MAX} bytes")));
    }
    let (engine, now) = (&app.engine, Instant::now());
    let view = match action {
        "cordon" => engine.cordon(&sfu, true),
        "uncordon" => engine.cordon(&sfu, false),
        "drain" => engine.drain_sfu(&sfu, within, now),
        "undrain" => engine.undrain_sfu(&sfu),
        "quarantine" => engine.quarantine(&sfu, true, now),
        "unquarantine" => engine.quarantine(&sfu, false, now),
        _ => engine.declare_dead(&sfu, now),
    };
    let view = view.ok_or_else(|| ApiError::not_found("SFU"))?;
    app.audit.note(&caller.id, action, &sfu, reason);
    Ok(Json(view))
}
