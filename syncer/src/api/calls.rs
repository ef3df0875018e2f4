//! Calls, for operators, and the report of a gateway whose clients lost their media.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use sfu_api::{CallId, GuildId, SessionId, SfuId};
use tokio::time::Instant;

use super::extract::{Ids, Params, id, split_verb};
use super::route::Route;
use super::{ApiError, App, Caller, body};
use crate::engine::{CallFilter, CallState, CallView, Explanation};

/// Calls in a page when the caller does not say.
const PAGE_DEFAULT: usize = 100;
/// Most calls in a page: ~300 KiB.
const PAGE_MAX: usize = 1_000;

/// Which calls to list.
#[derive(Clone, Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct CallParams {
    /// Only calls in this state: placed, awaiting or ending.
    #[param(value_type = Option<String>)]
    state: Option<StateName>,
    /// Only calls on this SFU.
    #[param(value_type = Option<String>)]
    sfu: Option<SfuId>,
    /// Only calls of this guild.
    #[param(value_type = Option<String>)]
    guild: Option<GuildId>,
    /// At most this many (1 to 1,000).
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateName {
    Placed,
    Awaiting,
    Ending,
}

/// A page of this syncer's calls, ordered by guild and call.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct CallList {
    /// The calls.
    calls: Vec<CallView>,
    /// Pass as `cursor` for the next page; null on the last one.
    next: Option<String>,
    /// How many match in all.
    total: usize,
}

/// What a gateway's client saw.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReportKind {
    /// Media stopped while the control path looked fine.
    MediaFailed,
}

/// Body of a report.
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    /// The session that saw it, one of this gateway's in the call; without it, any of those.
    session: Option<SessionId>,
    /// What it saw.
    #[allow(dead_code, reason = "there is one kind so far, and an unknown one is refused")]
    kind: ReportKind,
}

/// This syncer's calls.
#[utoipa::path(get, path = "/v1/calls", operation_id = "list_calls", tag = "operators", params(CallParams),
    responses((status = 200, body = CallList), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Params(params): Params<CallParams>,
) -> Result<Json<CallList>, ApiError> {
    caller.must_be_operator()?;
    let limit = params.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(ApiError::invalid(format!("limit must be 1 to {PAGE_MAX}")));
    }
    let after = params.cursor.as_deref().map(decode_cursor).transpose()?;
    let state = params.state.map(|s| match s {
        StateName::Placed => CallState::Placed,
        StateName::Awaiting => CallState::Awaiting,
        StateName::Ending => CallState::Ending,
    });
    let filter = CallFilter { state, sfu: params.sfu, guild: params.guild, limit, after };
    let page = app.engine.calls(&filter);
    let next = page.calls.last().filter(|_| page.more).map(|last| encode_cursor(&last.guild, &last.call));
    Ok(Json(CallList { calls: page.calls, next, total: page.total }))
}

fn encode_cursor(guild: &GuildId, call: &CallId) -> String {
    URL_SAFE_NO_PAD.encode(format!("{guild} {call}"))
}

fn decode_cursor(text: &str) -> Result<(GuildId, CallId), ApiError> {
    let decode = || {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (guild, call) = std::str::from_utf8(&bytes).ok()?.split_once(' ')?;
        Some((guild.parse().ok()?, call.parse().ok()?))
    };
    decode().ok_or_else(|| ApiError::new(StatusCode::BAD_REQUEST, "cursor_invalid", "not a cursor of this list"))
}

/// One call; its owner answers.
#[utoipa::path(get, path = "/v1/guilds/{guild}/calls/{call}", operation_id = "get_call", tag = "operators",
    params(("guild" = String, Path), ("call" = String, Path)),
    responses((status = 200, body = CallView), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Ids((guild, name)): Ids<(GuildId, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    caller.must_be_operator()?;
    let (name, verb) = split_verb(&name, &["explain"]);
    let call: CallId = id("call", name)?;
    if let Route::There(owner) = app.route(&guild, &caller)? {
        let (parts, _) = request.into_parts();
        return app.forward(&owner, &caller, &parts, bytes::Bytes::new()).await;
    }
    if verb.is_some() {
        return explain(&app, &guild, &call).map(|e| Json(e).into_response());
    }
    let view = app.engine.call(&guild, &call).ok_or_else(|| ApiError::not_found("call"))?;
    Ok(Json(view).into_response())
}

/// Why a call is where it is, and what would happen if its SFU died now.
#[utoipa::path(get, path = "/v1/guilds/{guild}/calls/{call}:explain", operation_id = "explain_call", tag = "operators",
    params(("guild" = String, Path), ("call" = String, Path)),
    responses((status = 200, body = Explanation), (status = "4XX", body = super::error::ErrorBody)))]
fn explain(app: &App, guild: &GuildId, call: &CallId) -> Result<Explanation, ApiError> {
    app.engine.explain(guild, call, Instant::now()).ok_or_else(|| ApiError::not_found("call"))
}

/// A client's media failed.
///
/// It counts from a gateway that has the session in the call (`trunkline_media_reports`). By themselves reports move
/// no call: a client cannot tell a broken SFU from its own broken network. Those of two gateways, on an SFU that cannot
/// be reached, do.
#[utoipa::path(post, path = "/v1/guilds/{guild}/calls/{call}:report", operation_id = "report_call", tag = "gateways",
    params(("guild" = String, Path), ("call" = String, Path)), request_body = Report,
    responses((status = 202, description = "Counted. It moves nothing by itself."), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn report(
    State(app): State<Arc<App>>,
    caller: Caller,
    Ids((guild, name)): Ids<(GuildId, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let (name, verb) = split_verb(&name, &["report"]);
    if verb.is_none() {
        return Err(ApiError::not_found("action on a call; there is `:report`"));
    }
    let call: CallId = id("call", name)?;
    let (parts, body) = request.into_parts();
    let bytes = body::read(body, app.limits.body()).await?;
    let report: Report = body::json(&bytes)?;
    if let Route::There(owner) = app.route(&guild, &caller)? {
        return app.forward(&owner, &caller, &parts, bytes).await;
    }
    app.engine.report(&guild, &call, &caller.id, report.session.as_ref(), Instant::now())?;
    app.http.media_reports.inc();
    Ok(StatusCode::ACCEPTED.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_cursors_round_trip_and_garbage_is_refused() {
        let (guild, call) = ("g:1".parse().expect("an id"), "c".parse().expect("an id"));
        assert_eq!(decode_cursor(&encode_cursor(&guild, &call)).expect("ours"), (guild, call));
        for garbage in ["", "x", "é", &URL_SAFE_NO_PAD.encode("no-space"), &URL_SAFE_NO_PAD.encode(" ")] {
            assert!(decode_cursor(garbage).is_err(), "{garbage}");
        }
    }
}
