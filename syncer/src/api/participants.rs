//! Joins and leaves, one at a time.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use sfu_api::{CallId, CallKind, Epoch, GuildId, RegionId, SessionId};
use tokio::time::Instant;

use super::extract::{Ids, Params};
use super::route::Route;
use super::{ApiError, App, Caller, body};
use crate::drivers::Credential;
use crate::engine::{CallAnswer, Join, Leave};

/// Body of a join. Everything may be left out.
#[derive(Clone, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct JoinBody {
    /// Order of the session's writes: late and repeated ones are ignored.
    pub(crate) seq: Option<u64>,
    /// Kind of the call; the first join decides.
    pub(crate) kind: CallKind,
    /// Region the call should be in; the first join decides.
    pub(crate) region: Option<RegionId>,
}

/// Where the call is now.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub(crate) struct JoinAnswer {
    /// Epoch of the last announced placement.
    pub(crate) epoch: Option<Epoch>,
    /// 1: endpoint announced. 2: endpoint gone.
    pub(crate) phase: Option<u8>,
    /// Where to connect; null while the call awaits an endpoint: the watch will tell.
    #[schema(value_type = Option<String>)]
    pub(crate) endpoint: Option<Arc<str>>,
    /// What the session shows there.
    #[schema(value_type = Option<String>)]
    pub(crate) token: Option<Credential>,
    /// Whether a second syncer holds the session too.
    pub(crate) durable: bool,
    /// The write was late or repeated and changed nothing.
    pub(crate) ignored: bool,
}

/// Query of a leave.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeaveParams {
    /// Order of the session's writes.
    pub(crate) seq: Option<u64>,
}

impl From<CallAnswer> for JoinAnswer {
    fn from(a: CallAnswer) -> Self {
        Self {
            epoch: a.epoch,
            phase: a.phase,
            endpoint: a.endpoint,
            token: a.token,
            durable: false,
            ignored: a.ignored,
        }
    }
}

type Session = (GuildId, CallId, SessionId);

/// Join a call, or repeat that the session is in it.
#[utoipa::path(put, path = "/v1/guilds/{guild}/calls/{call}/participants/{session}", tag = "gateways",
    params(("guild" = String, Path), ("call" = String, Path), ("session" = String, Path)),
    request_body = JoinBody,
    responses((status = 200, body = JoinAnswer), (status = "4XX", body = super::error::ErrorBody), (status = "5XX", body = super::error::ErrorBody)))]
pub(crate) async fn join(
    State(app): State<Arc<App>>,
    caller: Caller,
    Ids((guild, call, session)): Ids<Session>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let route = app.route(&guild, &caller)?;
    let bytes = body::read(body, app.limits.body()).await?;
    let body: JoinBody = body::json(&bytes)?;
    if let Route::There(owner) = route {
        return app.forward(&owner, &caller, &parts, bytes).await;
    }
    let JoinBody { seq, kind, region } = body;
    let join = Join { guild, call, session, gateway: caller.id, seq, kind, region };
    let answer = app.engine.join(&join, Instant::now())?;
    Ok(Json(JoinAnswer::from(answer)).into_response())
}

/// Leave a call.
#[utoipa::path(delete, path = "/v1/guilds/{guild}/calls/{call}/participants/{session}", tag = "gateways",
    params(("guild" = String, Path), ("call" = String, Path), ("session" = String, Path), LeaveParams),
    responses((status = 204, description = "The session is not in the call."), (status = "4XX", body = super::error::ErrorBody), (status = "5XX", body = super::error::ErrorBody)))]
pub(crate) async fn leave(
    State(app): State<Arc<App>>,
    caller: Caller,
    Ids((guild, call, session)): Ids<Session>,
    Params(LeaveParams { seq }): Params<LeaveParams>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    match app.route(&guild, &caller)? {
        Route::There(owner) => app.forward(&owner, &caller, &parts, body::read(body, app.limits.body()).await?).await,
        Route::Here(_) => {
            app.engine.leave(&Leave { guild, call, session, gateway: caller.id, seq }, Instant::now())?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::bulk::OperationResult;
    use crate::api::watch::WatchParams;
    use crate::drivers::Credential;

    #[test]
    fn a_token_is_in_the_answer_and_not_in_what_a_log_would_show_of_it() {
        let token = || Some(Credential::new("tok-5e11".to_owned()));
        let join = JoinAnswer { token: token(), ..JoinAnswer::default() };
        let line = OperationResult { token: token(), ..OperationResult::default() };
        let answers = [serde_json::to_value(&join), serde_json::to_value(&line)];
        assert!(answers.into_iter().all(|answer| answer.expect("JSON")["token"] == "tok-5e11"));
        let call = CallAnswer { token: token(), ..CallAnswer::default() };
        let watch: WatchParams = serde_json::from_str(r#"{"access_token":"tok-5e11"}"#).expect("a query");
        assert_eq!(watch.access_token.as_ref().map(|token| token.expose()), Some("tok-5e11"));
        for shown in [format!("{join:?}"), format!("{line:?}"), format!("{call:?}"), format!("{watch:?}")] {
            assert!(shown.contains("redacted") && !shown.contains("tok-5e11"), "{shown}");
        }
    }
}
