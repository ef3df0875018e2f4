//! Limits that can be read and changed while the syncer runs (R20).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Request, State};
use rate_limit::{Change, LeverView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::extract::Params;
use super::{ApiError, App, Caller, body};

/// Query of a change.
#[derive(Clone, Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeParams {
    /// Why, for whoever reads the audit.
    reason: Option<String>,
    /// Only says whether the values would be taken.
    #[serde(default)]
    dry_run: bool,
}

/// A lever.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct LeverItem {
    /// Dotted name.
    name: &'static str,
    /// Value in force.
    value: Value,
    /// Value it started with.
    default: Value,
    /// Smallest allowed value.
    min: Value,
    /// Largest allowed value.
    max: Value,
    /// Unit of the value.
    unit: &'static str,
    /// What it limits.
    doc: &'static str,
    /// Who changed it last.
    changed_by: Option<String>,
    /// When, in milliseconds since the Unix epoch.
    changed_at: Option<u64>,
}

/// A change of a lever.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ChangeItem {
    /// Which lever.
    name: &'static str,
    /// Value before.
    from: Value,
    /// Value after.
    to: Value,
    /// Who changed it.
    by: String,
    /// Why, if they said.
    reason: Option<String>,
    /// When, in milliseconds since the Unix epoch.
    at: u64,
}

/// All levers, and who turned them last.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct LeverList {
    /// The levers by name.
    levers: Vec<LeverItem>,
    /// The last changes, newest last.
    changes: Vec<ChangeItem>,
}

impl From<LeverView> for LeverItem {
    fn from(v: LeverView) -> Self {
        let LeverView { name, value, default, min, max, unit, doc, changed_by, changed_at } = v;
        Self { name, value, default, min, max, unit, doc, changed_by, changed_at }
    }
}

impl From<Change> for ChangeItem {
    fn from(c: Change) -> Self {
        Self { name: c.name, from: c.from, to: c.to, by: c.by, reason: c.reason, at: c.at_unix_ms }
    }
}

fn all(app: &App) -> LeverList {
    let (levers, changes) = app.engine.levers().list_and_audit();
    LeverList {
        levers: levers.into_iter().map(LeverItem::from).collect(),
        changes: changes.into_iter().map(ChangeItem::from).collect(),
    }
}

/// All levers.
#[utoipa::path(get, path = "/v1/levers", operation_id = "list_levers", tag = "operators",
    responses((status = 200, body = LeverList), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<LeverList>, ApiError> {
    caller.must_be_operator()?;
    Ok(Json(all(&app)))
}

/// Change levers by name, all or none.
#[utoipa::path(patch, path = "/v1/levers", operation_id = "change_levers", tag = "operators", params(ChangeParams),
    request_body(content = BTreeMap<String, Value>, description = "New values by name."),
    responses((status = 200, body = LeverList),
        (status = 422, body = super::error::ErrorBody, description = "`lever_out_of_range` naming the range, `lever_wrong_type`, or `lever_unknown` with the nearest name; nothing was changed")))]
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Params(ChangeParams { reason, dry_run }): Params<ChangeParams>,
    request: Request,
) -> Result<Json<LeverList>, ApiError> {
    caller.must_be_operator()?;
    let bytes = body::read(request.into_body(), app.limits.body()).await?;
    let values: BTreeMap<String, Value> = body::json(&bytes)?;
    let pairs = values.iter().map(|(name, value)| (name.as_str(), value));
    if dry_run {
        app.engine.levers().check_all(pairs)?;
    } else {
        app.engine.levers().set_all(pairs, caller.id.as_str(), reason.as_deref(), unix_ms())?;
    }
    Ok(Json(all(&app)))
}

/// Wall time: for people to read, never for measuring.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
