//! Who did what to which SFU, and why: the last few hundred acts of operators.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use parking_lot::Mutex;
use serde::Serialize;
use sfu_api::{GatewayId, SfuId};

use super::levers::unix_ms;
use super::{ApiError, App, Caller};

/// Acts that are remembered: those of a long night. The log has all of them.
const ACTS_MAX: usize = 512;
/// Longest reason that is kept, in bytes: a sentence.
pub(crate) const REASON_BYTES_MAX: usize = 256;

/// The acts, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Audit(Mutex<VecDeque<Act>>);

/// One act of an operator.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Act {
    /// When, in milliseconds since the Unix epoch.
    at: u64,
    /// Who.
    by: GatewayId,
    /// What.
    action: &'static str,
    /// To which SFU.
    sfu: SfuId,
    /// Why, in the operator's words.
    reason: Option<String>,
}

/// What operators did.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ActList {
    /// The last acts, newest last.
    acts: Vec<Act>,
}

// === impl Audit ===

impl Audit {
    /// Notes an act that was carried out, and logs it.
    pub(crate) fn note(&self, by: &GatewayId, action: &'static str, sfu: &SfuId, reason: Option<String>) {
        tracing::info!(%sfu, action, %by, reason = reason.as_deref(), "operator acted on an sfu");
        let act = Act { at: unix_ms(), by: by.clone(), action, sfu: sfu.clone(), reason };
        let mut acts = self.0.lock();
        if acts.len() >= ACTS_MAX {
            acts.pop_front();
        }
        acts.push_back(act);
    }
}

/// What operators did to SFUs; `/v1/levers` has the changes of limits.
#[utoipa::path(get, path = "/v1/audit", operation_id = "list_acts", tag = "operators",
    responses((status = 200, body = ActList), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<ActList>, ApiError> {
    caller.must_be_operator()?;
    Ok(Json(ActList { acts: app.audit.0.lock().iter().cloned().collect() }))
}
