//! What peers see of the SFUs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use http::StatusCode;
use tokio::time::Instant;

use super::{ApiError, App, Caller, body};
use crate::health::{EvidenceAnswer, EvidenceMessage, SIGHTS_MAX, WIRE};

/// Takes a peer's message. What cannot be understood is refused, counted and otherwise ignored: whoever
/// is not understood is no witness.
pub(crate) async fn hear(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Request,
) -> Result<Json<EvidenceAnswer>, ApiError> {
    if !caller.forwarded {
        return Err(ApiError::forbidden("only syncers tell each other what they see"));
    }
    let bytes = body::read(request.into_body(), app.limits.body()).await?;
    let taken = take(&app, &bytes);
    let metrics = app.peers.metrics();
    if taken.is_ok() {
        metrics.evidence_heard.inc()
    } else {
        metrics.evidence_ignored.inc()
    };
    taken.map(|()| Json(EvidenceAnswer { v: WIRE }))
}

fn take(app: &App, bytes: &[u8]) -> Result<(), ApiError> {
    let message: EvidenceMessage = body::json(bytes)?;
    if message.v != WIRE {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "version", format!("this syncer speaks version {WIRE}")));
    }
    if message.sfus.len() > SIGHTS_MAX {
        return Err(ApiError::invalid(format!("at most {SIGHTS_MAX} SFUs at once")));
    }
    let snapshot = Arc::clone(&app.ownership.registry().watch().borrow());
    let peer = snapshot.roster.get(&message.from).filter(|peer| peer.id != *app.ownership.me());
    let Some(peer) = peer else { return Err(ApiError::forbidden("not a member of this fleet")) };
    let here = snapshot.roster.get(app.ownership.me()).map(|me| &me.zone);
    let elsewhere = here.is_some_and(|zone| *zone != peer.zone);
    app.engine.hear(message, elsewhere, Instant::now());
    Ok(())
}
