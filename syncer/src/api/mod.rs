//! What the network sees: gateways, operators, probes and peers, over HTTP/1.1 and HTTP/2.
//!
//! A request walks `listener` → [`finish`] (id, bounds, metrics, the one shape of errors) → a
//! handler, which asks [`auth`] who calls and [`route`] who serves it. Handlers hold no state.

mod audit;
mod auth;
mod blocks;
mod body;
mod bulk;
mod calls;
mod clock;
pub(crate) mod connection;
mod debug;
mod error;
mod evidence;
mod extract;
mod framing;
mod gateways;
mod head;
mod levers;
mod limits;
pub(crate) mod listener;
mod metrics;
mod openapi;
mod ops;
mod participants;
mod place;
mod recovery;
mod route;
mod sfus;
mod state;
mod watch;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use futures_util::FutureExt as _;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{StatusCode, Version};
use tokio::time::{Instant, timeout};

use crate::peer::EVIDENCE_PATH;

pub(crate) use self::audit::Audit;
pub(crate) use self::auth::{Auth, Caller, Connected};
pub use self::bulk::parse_only;
pub use self::connection::STREAM_WINDOW_BYTES;
pub(crate) use self::error::ApiError;
pub(crate) use self::gateways::{HEARD_MAX, Heard, HeardGateway};
pub(crate) use self::levers::unix_ms;
pub use self::limits::HttpLevers;
pub(crate) use self::metrics::HttpMetrics;
pub use self::openapi::openapi;
pub(crate) use self::state::{App, Readiness, WATCHERS_MAX};

/// Answers after which the rest of the body is not read: the connection is of no more use, and an
/// HTTP/1.1 client has to be told before it sends the next request on it.
const UNREAD: [StatusCode; 2] = [StatusCode::PAYLOAD_TOO_LARGE, StatusCode::REQUEST_TIMEOUT];

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The whole API; without what only operators need where they are not served.
pub(crate) fn router(app: Arc<App>, operators: bool) -> Router {
    let private = if operators {
        Router::new().route("/metrics", get(ops::metrics)).route("/debug/pool", get(debug::pool))
    } else {
        Router::new()
    };
    Router::new()
        .route(
            "/v1/guilds/{guild}/calls/{call}/participants/{session}",
            put(participants::join).delete(participants::leave),
        )
        .route("/v1/guilds/{guild}/calls/{call}", get(calls::get).post(calls::report))
        .route("/v1/guilds/{guild}", post(blocks::act))
        .route("/v1/blocks", get(blocks::list))
        .route("/v1/voice-states", post(bulk::voice_states))
        .route("/v1/watch", get(watch::watch))
        .route("/v1/gateways/{gateway}", put(gateways::heartbeat).post(gateways::act))
        .route("/v1/gateways", get(gateways::list).post(gateways::heard))
        .route("/v1/calls", get(calls::list))
        .route("/v1/sfus", get(sfus::list))
        .route("/v1/sfus/{sfu}", get(sfus::get).post(sfus::act))
        .route("/v1/audit", get(audit::list))
        .route(EVIDENCE_PATH, post(evidence::hear))
        .route("/v1/levers", get(levers::list).patch(levers::change))
        .route("/v1/status", get(ops::status))
        .route("/v1/recovery", get(recovery::recovery))
        .route("/v1/members", get(ops::members))
        .route("/.well-known/jwks.json", get(ops::jwks))
        .route("/openapi.json", get(ops::openapi))
        .route("/", get(ops::landing))
        .route("/livez", get(ops::livez))
        .route("/readyz", get(ops::readyz))
        .merge(private)
        .fallback(async || ApiError::not_found("route; see /openapi.json"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route has other methods")
        })
        .layer(from_fn_with_state(Arc::clone(&app), finish))
        .with_state(app)
}

/// What every request has in common: an id, bounds, containment of panics, metrics, and errors in
/// one shape.
async fn finish(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = format!("{:08x}-{}", app.boot & 0xffff_ffff, app.requests.fetch_add(1, Ordering::Relaxed));
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let (method, version) = (request.method().clone(), request.version());
    let mut last = head::is_last(&request);
    let mut response = match head::check(&request) {
        Err(e) => {
            last = true;
            e.into_response()
        }
        Ok(()) => match timeout(app.limits.request_timeout.get(), AssertUnwindSafe(next.run(request)).catch_unwind())
            .await
        {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => {
                app.http.panics.inc();
                tracing::error!(request = id, route, "a handler panicked");
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a fault of the syncer").into_response()
            }
            Err(_) => {
                let message = "the request took too long; it may or may not be done";
                ApiError::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message).into_response()
            }
        },
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        write_error(&mut response, &error, &id, app.engine.retry_span_min());
        last |= UNREAD.contains(&error.status);
    }
    if last && version < Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let status = response.status();
    if status.is_server_error() {
        tracing::debug!(request = id, route, status = status.as_u16(), "request failed");
    }
    app.http.answered(&route, &method, status.as_u16(), Instant::now().saturating_duration_since(began));
    response
}

fn write_error(response: &mut Response, error: &ApiError, id: &str, retry_span_min: Duration) {
    let body = error::ErrorBody { request_id: id.to_owned(), error_code: error.code, message: error.message.clone() };
    let bytes = serde_json::to_vec(&body).unwrap_or_default();
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(retry_after) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, retry_after.header(retry_span_min));
    }
    *response.body_mut() = axum::body::Body::from(bytes);
}
