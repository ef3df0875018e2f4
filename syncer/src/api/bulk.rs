//! The bulk road: one operation a line in, one result a line out, streamed both ways.
//!
//! ```text
//! body ─lines─▶ gathered ──ours, together──▶ engine ────┐
//!                  └──others'──▶ one worker per owner ───┴─▶ bounded channel ─▶ answer body
//! ```
//!
//! Everything between is bounded, so a client that does not read its results is not read either:
//! flow control is the backpressure. Operations of a guild, and so a session's in it, all go the same way in
//! their order; there is no order between guilds. A bad line fails that line only. Two lines are about the gateway as a
//! whole, see [`round`].

mod result;
mod road;
mod round;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Deserialize;
use sfu_api::{CallId, CallKind, GuildId, RegionId, SessionId};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use self::road::Road;
use super::body::{Lines, Next};
use super::route::{MINIMAL, prefers_minimal, prefers_redirect};
use super::{App, Caller};

pub(crate) use self::result::OperationResult;
pub(crate) use self::round::Marker;

/// A stream without a line for this long is ended; gateways that pause open a new one.
pub(super) const IDLE_DEFAULT: Duration = Duration::from_secs(60);
/// Writes of results under way: each what was gathered before 12 KiB were reached and what is done together, so
/// ~20 KiB where calls await an endpoint and at most ~200 KiB where each result carries a token.
const WRITES_MAX: usize = 16;
pub(crate) const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What the sender of a stream would rather have.
#[derive(Clone, Copy, Debug)]
struct Preferences {
    /// To be told whose line it is, instead of having it taken there.
    redirect: bool,
    /// One result for lines that follow each other and were done, instead of one for each.
    minimal: bool,
}

/// What a line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Do {
    /// The session is in the call.
    Join,
    /// The session left it.
    Leave,
}

/// One line in.
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Operation {
    /// Comes back with the result.
    #[serde(default)]
    pub(crate) op: Option<String>,
    /// What to do.
    #[serde(rename = "do")]
    pub(crate) what: Do,
    /// Guild of the call.
    pub(crate) guild: GuildId,
    /// The call.
    pub(crate) call: CallId,
    /// The session.
    pub(crate) session: SessionId,
    /// Order of the session's writes.
    #[serde(default)]
    pub(crate) seq: Option<u64>,
    /// Kind of the call.
    #[serde(default)]
    pub(crate) kind: CallKind,
    /// Region of the call.
    #[serde(default)]
    pub(crate) region: Option<RegionId>,
    /// Whether the result shall carry a token. A gateway that only tells again who is there has them.
    #[serde(default = "yes")]
    pub(crate) token: bool,
}

const fn yes() -> bool {
    true
}

/// A line in: an operation, or a marker of a gateway that tells everything again.
#[derive(utoipa::ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "described here, parsed one after the other: almost all are operations")]
pub(crate) enum Line {
    /// A session joins or leaves.
    Operation(Operation),
    /// `sync` before the first and `synced` after the last session.
    Marker(Marker),
}

/// Many operations in one stream: `application/x-ndjson` both ways.
///
/// A gateway that tells everything again says `{"do":"sync"}`, waits for its result, sends a join for every
/// session it has (the same `seq` as before will do) and says `{"do":"synced"}`. Sessions of the gateway that
/// it did not tell since the `sync` expire after `gateways.resume_window`. Both should name the `incarnation` of the
/// gateway's heartbeats: a process that was replaced is refused then (409 `superseded`).
///
/// With `Prefer: return=minimal` operations that follow each other, were done and have nothing else to say share a
/// result, which names the first (`op`) and the last of them (`through`). All others have their own.
#[utoipa::path(post, path = "/v1/voice-states", tag = "gateways",
    request_body(content = Line, content_type = "application/x-ndjson", description = "One operation a line, at most 8 KiB each."),
    responses((status = 200, content_type = "application/x-ndjson", body = OperationResult, description = "One result a line, or with `Prefer: return=minimal` one for many.")))]
pub(crate) async fn voice_states(State(app): State<Arc<App>>, caller: Caller, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (out, results) = mpsc::channel(WRITES_MAX);
    let prefers = Preferences { redirect: prefers_redirect(&parts), minimal: prefers_minimal(&parts) };
    let road = Road::new(Arc::clone(&app), caller.clone(), prefers, out);
    let alive = app.engine.stream(&caller.id, caller.via(), Instant::now());
    app.tracker.spawn(async move {
        road.run(Lines::new(body)).await;
        drop(alive);
    });
    let body = Body::from_stream(ReceiverStream::new(results).map(Ok::<Bytes, std::convert::Infallible>));
    let mut response = ([(CONTENT_TYPE, NDJSON)], body).into_response();
    if prefers.minimal {
        response.headers_mut().insert(PREFERENCE_APPLIED, HeaderValue::from_static(MINIMAL));
    }
    response
}

/// Reads a body as the bulk road does and does nothing with its operations; returns how many lines
/// were one, and how many were not. What the bulk road is measured against.
pub async fn parse_only(body: Body) -> (u64, u64) {
    let mut lines = Lines::new(body);
    let (mut operations, mut others) = (0, 0);
    loop {
        let next = match lines.buffered() {
            Some(next) => next,
            None if !lines.has_ended() && lines.arrived() => continue,
            None => lines.next(IDLE_DEFAULT).await,
        };
        match next {
            Next::End => return (operations, others),
            Next::Line(line) if super::body::object::<Operation>(&line).is_ok() => operations += 1,
            Next::Line(_) | Next::TooLong => others += 1,
        }
    }
}
