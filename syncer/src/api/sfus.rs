//! SFUs, for operators.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use sfu_api::SfuId;
use tokio::time::Instant;

use super::extract::{Ids, id, split_verb};
use super::{ApiError, App, Caller};
use crate::engine::SfuView;

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

/// Take an SFU out of selection, put it back, or move its calls on an operator's word.
///
/// `{action}` is `cordon`, `uncordon` or `declare-dead`.
#[utoipa::path(post, path = "/v1/sfus/{sfu}:{action}", operation_id = "act_on_sfu", tag = "operators",
    params(("sfu" = String, Path), ("action" = String, Path, description = "`cordon`, `uncordon` or `declare-dead`")),
    responses((status = 200, body = SfuView), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn act(
    State(app): State<Arc<App>>,
    caller: Caller,
    Ids(name): Ids<String>,
) -> Result<Json<SfuView>, ApiError> {
    caller.must_be_operator()?;
    let (name, verb) = split_verb(&name, &["cordon", "uncordon", "declare-dead"]);
    let sfu: SfuId = id("sfu", name)?;
    let view = match verb {
        Some("cordon") => app.engine.cordon(&sfu, true),
        Some("uncordon") => app.engine.cordon(&sfu, false),
        Some(_) => app.engine.declare_dead(&sfu, Instant::now()),
        None => return Err(ApiError::not_found("action; there are `:cordon`, `:uncordon` and `:declare-dead`")),
    };
    tracing::info!(%sfu, action = verb, by = %caller.id, "operator acted on an sfu");
    view.map(Json).ok_or_else(|| ApiError::not_found("SFU"))
}
