//! The bulk road: one operation a line in, one result a line out, streamed both ways.
//!
//! ```text
//! body ─lines─▶ reader ──ours──▶ engine ──────────────┐
//!                  └──others'──▶ one worker per owner ─┴─▶ bounded channel ─▶ answer body
//! ```
//!
//! Everything between is bounded, so a client that does not read its results is not read either:
//! flow control is the backpressure. A session's operations all go the same way in their order; there
//! is no order between sessions. A bad line fails that line only. Two lines are about the gateway as a
//! whole, see [`round`].

mod round;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use sfu_api::{CallId, CallKind, Epoch, GuildId, RegionId, SessionId, SyncerId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use self::round::{Begun, Marker};
use super::body::{LINE_BYTES_MAX, Lines, Next};
use super::participants::JoinAnswer;
use super::route::{Route, prefers_redirect};
use super::{ApiError, App, Caller};
use crate::engine::{Join, Leave};
use crate::ownership::Owner;

/// A stream without a line for this long is ended; gateways that pause open a new one.
const BULK_IDLE_MAX: Duration = Duration::from_secs(60);
/// Writes of results under way, ~16 KiB each.
const WRITES_MAX: usize = 16;
/// Results gathered into one write.
const WRITE_BYTES: usize = 16 * 1024;
/// Lines waiting for one owner: two batches, so that the next one fills while one is under way.
const FOREIGN_LINES_MAX: usize = 256;
/// Lines in one batch to an owner; 128 of typically 150 bytes.
const BATCH_LINES_MAX: usize = 128;

pub(crate) const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

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

/// One line out.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct OperationResult {
    /// The operation's id.
    pub(crate) op: Option<String>,
    /// As the status of the same request alone.
    pub(crate) status: u16,
    /// With 200: where the call is now.
    #[serde(flatten)]
    pub(crate) answer: Option<JoinAnswer>,
    /// Otherwise: machine-readable reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error_code: Option<&'static str>,
    /// Otherwise: what happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// With 429 and 503: come back no sooner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_ms: Option<u64>,
    /// With 200 after `sync` or `synced`: the round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) round: Option<u64>,
    /// With 421: who owns the guild.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) owner: Option<Arc<str>>,
}

/// A result with 200, as almost all are: the same JSON field by field, without the detour that a
/// flattened struct takes.
#[derive(Serialize)]
struct Done<'a> {
    op: &'a Option<String>,
    status: u16,
    epoch: Option<Epoch>,
    phase: Option<u8>,
    endpoint: Option<&'a str>,
    token: Option<&'a str>,
    durable: bool,
    ignored: bool,
}

/// A line for another owner.
#[derive(Debug)]
struct Foreign {
    op: Option<String>,
    line: Bytes,
}

/// Many operations in one stream: `application/x-ndjson` both ways.
///
/// A gateway that tells everything again says `{"do":"sync"}`, waits for its result, sends a join for every
/// session it has (the same `seq` as before will do) and says `{"do":"synced"}`. Sessions of the gateway that
/// it did not tell since the `sync` expire after `gateways.resume_window`.
#[utoipa::path(post, path = "/v1/voice-states", tag = "gateways",
    request_body(content = Line, content_type = "application/x-ndjson", description = "One operation a line, at most 8 KiB each."),
    responses((status = 200, content_type = "application/x-ndjson", body = OperationResult, description = "One result a line.")))]
pub(crate) async fn voice_states(State(app): State<Arc<App>>, caller: Caller, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (out, results) = mpsc::channel(WRITES_MAX);
    let road = Road {
        redirect: prefers_redirect(&parts),
        app: Arc::clone(&app),
        caller,
        out,
        pending: Vec::new(),
        workers: HashMap::new(),
        tasks: JoinSet::new(),
        begun: None,
    };
    let alive = app.engine.stream(&road.caller.id, road.caller.via(), Instant::now());
    app.tracker.spawn(async move {
        road.run(Lines::new(body)).await;
        drop(alive);
    });
    let body = Body::from_stream(ReceiverStream::new(results).map(Ok::<Bytes, std::convert::Infallible>));
    ([(CONTENT_TYPE, NDJSON)], body).into_response()
}

// === impl Done ===

impl<'a> Done<'a> {
    fn of(result: &'a OperationResult, answer: &'a JoinAnswer) -> Self {
        let JoinAnswer { epoch, phase, endpoint, token, durable, ignored } = answer;
        Self {
            op: &result.op,
            status: result.status,
            epoch: *epoch,
            phase: *phase,
            endpoint: endpoint.as_deref(),
            token: token.as_deref(),
            durable: *durable,
            ignored: *ignored,
        }
    }
}

// === impl OperationResult ===

impl OperationResult {
    fn done(op: Option<String>, answer: JoinAnswer) -> Self {
        Self {
            op,
            status: StatusCode::OK.as_u16(),
            answer: Some(answer),
            error_code: None,
            message: None,
            retry_after_ms: None,
            owner: None,
            round: None,
        }
    }

    fn failed(op: Option<String>, e: ApiError) -> Self {
        Self {
            op,
            status: e.status.as_u16(),
            answer: None,
            error_code: Some(e.code),
            message: Some(e.message),
            retry_after_ms: e.retry_after.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            owner: e.owner,
            round: None,
        }
    }

    fn write(&self, to: &mut impl BufMut) {
        let written = match &self.answer {
            Some(answer) => serde_json::to_writer(to.writer(), &Done::of(self, answer)),
            None => serde_json::to_writer(to.writer(), self),
        };
        if let Err(error) = written {
            tracing::error!(%error, "a result could not be written");
        }
        to.put_u8(b'\n');
    }
}

/// One stream of operations.
struct Road {
    app: Arc<App>,
    caller: Caller,
    redirect: bool,
    out: mpsc::Sender<Bytes>,
    pending: Vec<u8>,
    workers: HashMap<SyncerId, (Arc<str>, mpsc::Sender<Foreign>)>,
    tasks: JoinSet<()>,
    /// The round that this stream began.
    begun: Option<Begun>,
}

/// The client no longer reads.
struct Gone;

// === impl Road ===

impl Road {
    async fn run(mut self, mut lines: Lines) {
        let out = self.out.clone();
        let stop = self.app.stop.clone();
        tokio::select! {
            _ = self.drive(&mut lines) => {}
            () = out.closed() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn drive(&mut self, lines: &mut Lines) -> Result<(), Gone> {
        loop {
            let next = match lines.buffered() {
                Some(next) => next,
                None => {
                    // Nothing more for now: what is done is told before we wait.
                    if self.pending.is_empty() || !lines.arrived() {
                        self.flush().await?;
                    }
                    lines.next(BULK_IDLE_MAX).await
                }
            };
            match next {
                Next::End => break,
                Next::TooLong => {
                    let e = ApiError::too_large(LINE_BYTES_MAX);
                    let e = ApiError { status: StatusCode::BAD_REQUEST, ..e };
                    OperationResult::failed(None, e).write(&mut self.pending);
                }
                Next::Line(line) => self.line(line).await?,
            }
            if self.pending.len() >= WRITE_BYTES {
                self.flush().await?;
            }
            tokio::task::consume_budget().await;
        }
        self.settle().await
    }

    /// Waits until all that was handed to other owners is done, and tells it.
    async fn settle(&mut self) -> Result<(), Gone> {
        self.flush().await?;
        self.workers.clear();
        while self.tasks.join_next().await.is_some() {}
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.out.send(std::mem::take(&mut self.pending).into()).await.map_err(|_| Gone)
    }

    async fn line(&mut self, line: Bytes) -> Result<(), Gone> {
        let operation: Operation = match super::body::object(&line) {
            Ok(operation) => operation,
            Err(e) => {
                if let Ok(marker) = super::body::object(&line) {
                    return self.mark(marker).await;
                }
                let e = ApiError::invalid(format!("the line is not an operation: {e}"));
                OperationResult::failed(op_of(&line), e).write(&mut self.pending);
                return Ok(());
            }
        };
        let result = match self.app.route(&operation.guild, &self.caller) {
            Ok(Route::Here) => self.here(operation),
            Ok(Route::There(owner)) if self.redirect => {
                OperationResult::failed(operation.op, ApiError::not_owner(Some(Arc::clone(&owner.url))))
            }
            Ok(Route::There(owner)) => return self.there(&owner, Foreign { op: operation.op, line }).await,
            Err(e) => OperationResult::failed(operation.op, e),
        };
        result.write(&mut self.pending);
        Ok(())
    }

    fn here(&self, operation: Operation) -> OperationResult {
        let Operation { op, what, guild, call, session, seq, kind, region, token } = operation;
        let gateway = self.caller.id.clone();
        let now = Instant::now();
        let done = match what {
            Do::Join => {
                let join = Join { guild, call, session, gateway, seq, kind, region };
                let joined = if token { self.app.engine.join(join, now) } else { self.app.engine.tell(join, now) };
                joined.map(JoinAnswer::from)
            }
            Do::Leave => {
                let leave = Leave { guild, call, session, gateway, seq };
                self.app.engine.leave(&leave, now).map(|_| JoinAnswer::default())
            }
        };
        match done {
            Ok(answer) => OperationResult::done(op, answer),
            Err(refusal) => OperationResult::failed(op, refusal.into()),
        }
    }

    async fn there(&mut self, owner: &Arc<Owner>, foreign: Foreign) -> Result<(), Gone> {
        let known = self.workers.get(&owner.id).filter(|(url, _)| *url == owner.url);
        let worker = match known {
            Some((_, worker)) => worker.clone(),
            None => {
                let (to, from) = mpsc::channel(FOREIGN_LINES_MAX);
                let worker = Worker {
                    app: Arc::clone(&self.app),
                    caller: self.caller.clone(),
                    owner: Arc::clone(owner),
                    out: self.out.clone(),
                };
                self.tasks.spawn(worker.run(from));
                self.workers.insert(owner.id.clone(), (Arc::clone(&owner.url), to.clone()));
                to
            }
        };
        worker.send(foreign).await.map_err(|_| Gone)
    }
}

/// Takes lines to one owner, a batch at a time.
struct Worker {
    app: Arc<App>,
    caller: Caller,
    owner: Arc<Owner>,
    out: mpsc::Sender<Bytes>,
}

// === impl Worker ===

impl Worker {
    async fn run(self, mut from: mpsc::Receiver<Foreign>) {
        let mut batch = Vec::with_capacity(BATCH_LINES_MAX);
        while from.recv_many(&mut batch, BATCH_LINES_MAX).await > 0 {
            let results = self.send(&batch).await;
            batch.clear();
            if self.out.send(results).await.is_err() {
                return;
            }
        }
    }

    /// Sends a batch; every line gets a result, whatever became of the batch.
    async fn send(&self, batch: &[Foreign]) -> Bytes {
        let mut body = BytesMut::new();
        for foreign in batch {
            body.put_slice(&foreign.line);
            body.put_u8(b'\n');
        }
        let who = self.caller.on_behalf();
        let path = "/v1/voice-states";
        let sent =
            self.app.peers.forward(&self.owner.url, Method::POST, path, &who, Some(&NDJSON), body.freeze()).await;
        let (mut results, answered) = match sent {
            // The owner answers our lines in their order, since none of them is forwarded again.
            Ok((head, bytes)) if head.status == StatusCode::OK => {
                let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                let bytes = bytes.slice(..whole);
                let lines = bytes.iter().filter(|b| **b == b'\n').count();
                (BytesMut::from(bytes), lines)
            }
            Ok((head, _)) => {
                tracing::warn!(owner = %self.owner.id, status = %head.status, "owner refused a batch");
                (BytesMut::new(), 0)
            }
            Err(error) => {
                tracing::debug!(owner = %self.owner.id, %error, "owner not reached");
                (BytesMut::new(), 0)
            }
        };
        for foreign in batch.iter().skip(answered) {
            let e = ApiError::unavailable(
                "owner_unreachable",
                format!(
                    "syncer {} owns this guild and gave no answer: the operation may or may not be done",
                    self.owner.id
                ),
                super::error::RETRY_BASE,
            );
            OperationResult::failed(foreign.op.clone(), e).write(&mut results);
        }
        results.freeze()
    }
}

/// Reads a body as the bulk road does and does nothing with its operations; returns how many lines
/// were one, and how many were not. What the bulk road is measured against.
pub async fn parse_only(body: Body) -> (u64, u64) {
    let mut lines = Lines::new(body);
    let (mut operations, mut others) = (0, 0);
    loop {
        match lines.next(BULK_IDLE_MAX).await {
            Next::End => return (operations, others),
            Next::Line(line) if super::body::object::<Operation>(&line).is_ok() => operations += 1,
            Next::Line(_) | Next::TooLong => others += 1,
        }
    }
}

/// The op id of a line that is otherwise wrong, if it can be found.
fn op_of(line: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    value.get("op")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_with_200_is_written_as_the_schema_says() {
        let epoch = "1.7.3".parse().ok();
        let placed = JoinAnswer {
            epoch,
            phase: Some(1),
            endpoint: Some("wss://sfu/r".into()),
            token: Some("t".into()),
            durable: true,
            ignored: true,
        };
        for answer in [JoinAnswer::default(), placed] {
            for op in [None, Some("o\"1".to_owned())] {
                let result = OperationResult::done(op, answer.clone());
                let mut line = Vec::new();
                result.write(&mut line);
                assert_eq!(line, format!("{}\n", serde_json::to_string(&result).expect("JSON")).into_bytes());
            }
        }
    }
}
