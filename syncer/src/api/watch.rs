//! The watch: endpoint changes as server-sent events.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::HeaderMap;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::error::RETRY_BASE;
use super::extract::Params;
use super::{ApiError, App, Connected};
use crate::config::Secret;
use crate::presence::Via;
use crate::watch::{Cursor, Fleet, Scope, Source};

/// Writes under way to one watcher, ~16 KiB each, and its last word; then its news coalesces.
const WRITES_MAX: usize = 4 + 1;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Query of a watch.
#[derive(Clone, Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct WatchParams {
    /// `local`: only the calls of this syncer. Default: the fleet's.
    #[serde(default)]
    pub(crate) scope: Scope,
    /// The bearer token, for clients that cannot set headers (EventSource).
    #[param(value_type = Option<String>)]
    pub(crate) access_token: Option<Secret>,
    /// As `Last-Event-ID`, for clients that cannot set headers.
    pub(crate) last_event_id: Option<String>,
}

/// Endpoint changes of the calls in which the caller has sessions.
///
/// A gateway may have `gateways.watches_max` watches open at one syncer. When it opens one more, its oldest ends, with
/// the event `end` (`{"reason":"too_many_watches"}`). When the caller is no longer listed as it was, it ends with
/// `{"reason":"caller_changed"}`, within ten seconds and before anything else is told.
#[utoipa::path(get, path = "/v1/watch", tag = "gateways",
    params(WatchParams, ("Last-Event-ID" = Option<String>, Header, description = "Resume after this event.")),
    responses(
        (status = 200, content_type = "text/event-stream", body = crate::watch::EndpointEvent,
            description = "Events `endpoint` (this body), `resync` (`{\"reason\":\"…\"}`: read the state again) and \
                `end` (`{\"reason\":\"…\"}`: the watch is over)."),
        (status = 400, body = super::error::ErrorBody, description = "`cursor_invalid`"),
        (status = 410, body = super::error::ErrorBody, description = "`cursor_too_old`")))]
pub(crate) async fn watch(
    State(app): State<Arc<App>>,
    connected: Option<Extension<Arc<Connected>>>,
    headers: HeaderMap,
    Params(params): Params<WatchParams>,
) -> Result<Response, ApiError> {
    let connected = connected.as_deref().map(|c| &**c);
    let mut caller = app.auth.caller(connected, &headers, params.access_token.as_ref().map(Secret::expose))?;
    let last = headers.get(LAST_EVENT_ID).map(|v| v.to_str().unwrap_or("\u{0}").to_owned()).or(params.last_event_id);
    let mut cursor = match last.filter(|l| !l.is_empty()) {
        Some(text) => text.parse::<Cursor>()?,
        None => Cursor::default(),
    };
    let permit = Arc::clone(&app.watchers).try_acquire_owned().map_err(|_| {
        ApiError::unavailable("too_many_watchers", "this syncer serves no more watches", RETRY_BASE * 5)
    })?;
    let local = params.scope == Scope::Local || caller.forwarded;
    let me = app.ownership.me();
    if local {
        cursor.0.retain(|id, _| id == me);
    }
    let mut watcher = app.hub.watch(&caller.id, cursor.0.get(me).copied(), Instant::now())?;
    if caller.via() == Via::Own {
        watcher.count_as_own(app.engine.watches_per_gateway_max(), Instant::now());
    }
    let alive = app.engine.stream(&caller.id, caller.via(), Instant::now());
    let auth = Arc::clone(&app.auth);
    let fleet = Fleet {
        gateway: caller.id.clone(),
        may_hear: Box::new(move || auth.stands_by(&mut caller)),
        watcher,
        source: Arc::new(app.engine.clone()) as Arc<dyn Source>,
        ownership: Arc::clone(&app.ownership),
        peers: (!local).then(|| Arc::clone(&app.peers)),
        cursor,
        stop: app.stop.clone(),
        metrics: app.hub.metrics().clone(),
    };
    let (out, events) = mpsc::channel(WRITES_MAX);
    app.tracker.spawn(async move {
        fleet.run(out).await;
        drop((permit, alive));
    });
    let body = Body::from_stream(ReceiverStream::new(events).map(Ok::<Bytes, std::convert::Infallible>));
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Proxies that buffer would hold news back.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, body).into_response())
}
