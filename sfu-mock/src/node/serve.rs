//! HTTP: from a request to the state machine and back.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sfu_api::{Batch, Digest, ErrorCode, ID_BYTES_MAX, REQUEST_BODY_BYTES_MAX, RoomId, SessionId, SyncerId};

use super::garble::{self, Body};
use super::{Core, Injection, Node, media};
use crate::fault::InjectedError;
use crate::rooms::{Now, Refusal, Tally};

/// A body arrives within this time or the request is refused.
const BODY_MAX: Duration = Duration::from_secs(10);

/// An answer before anything was done to it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// JSON; empty for 204.
    pub(super) body: Vec<u8>,
    pub(super) retry_after_s: Option<u32>,
    pub(super) allow: Option<&'static str>,
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Rooms,
    Room(RoomId),
    Batch,
    Digest,
    Health,
    Drain,
    Media(RoomId, SessionId),
}

/// One request on its way through.
pub(super) struct Call<'a> {
    pub(super) node: &'a Node,
    pub(super) request_id: String,
    pub(super) tally: Tally,
}

/// Answers one request, with whatever faults the node has.
pub(super) async fn handle(node: &Node, request: Request<Incoming>) -> Response<Body> {
    node.answering().await;
    let (number, injection) = node.inject();
    let request_id = request_id(request.headers(), number);
    let mut call = Call { node, request_id, tally: Tally::default() };
    let contract = request.uri().path().starts_with("/v1/");
    let Injection { latency, error, garbage } = injection;
    let (error, garbage) = if contract { (error, garbage) } else { (None, None) };
    let answer = match error {
        Some(error) if !error.ghost => call.injected(error),
        error => {
            let answer = call.answer(request).await;
            error.map_or(answer, |error| call.injected(error))
        }
    };
    node.world.record(node.index, call.tally, error.is_some() || garbage.is_some());
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    node.answering().await;
    match garbage {
        Some(what) => garble::garble(&answer, what),
        None => answer.into_response(&call.request_id),
    }
}

fn request_id(headers: &HeaderMap, number: u64) -> String {
    let given = headers.get("x-request-id").and_then(|value| value.to_str().ok());
    given.filter(|id| !id.is_empty() && id.len() <= ID_BYTES_MAX).map_or_else(|| format!("r{number}"), str::to_owned)
}

// === impl Call ===

impl Call<'_> {
    async fn answer(&mut self, request: Request<Incoming>) -> Answer {
        match self.route(request).await {
            Ok(answer) => answer,
            Err(refusal) => self.refused(&refusal),
        }
    }

    async fn route(&mut self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let (head, body) = request.into_parts();
        let method = head.method;
        match parse(head.uri.path())? {
            Route::Rooms if method == Method::GET => self.page(&head.uri),
            Route::Rooms => self.not_allowed("GET"),
            Route::Room(room) if method == Method::PUT => {
                let ensure = read(body).await?;
                self.with(|core, now, tally| core.rooms.ensure(&room, &ensure, now, tally).map(json))
            }
            Route::Room(room) if method == Method::DELETE => {
                let end = read(body).await?;
                self.with(|core, now, tally| core.rooms.end(&room, &end, now, tally).map(json))
            }
            Route::Room(_) => self.not_allowed("PUT, DELETE"),
            Route::Batch if method == Method::POST => {
                let batch: Batch = read(body).await?;
                batch.validate().map_err(invalid)?;
                let id = self.request_id.clone();
                self.with(|core, now, tally| Ok(json(core.rooms.batch(&batch, &id, now, tally))))
            }
            Route::Digest if method == Method::POST => {
                let digest: Digest = read(body).await?;
                digest.validate().map_err(invalid)?;
                self.with(|core, now, _| core.rooms.digest(&digest, now).map(json))
            }
            Route::Batch | Route::Digest => self.not_allowed("POST"),
            Route::Health if method == Method::GET => self.with(|core, now, _| Ok(json(core.rooms.health(now)))),
            Route::Health => self.not_allowed("GET"),
            Route::Drain if method == Method::POST || method == Method::DELETE => self.with(|core, now, _| {
                core.rooms.set_draining(method == Method::POST);
                Ok(json(core.rooms.health(now)))
            }),
            Route::Drain => self.not_allowed("POST, DELETE"),
            Route::Media(room, session) if method == Method::PUT => media::attach(self, &head.headers, &room, session),
            Route::Media(room, session) if method == Method::DELETE => {
                media::detach(self, &head.headers, &room, &session)
            }
            Route::Media(..) => self.not_allowed("PUT, DELETE"),
        }
    }

    fn page(&mut self, uri: &Uri) -> Result<Answer, Refusal> {
        let owner = query(uri, "owner")?.map(SyncerId::new).transpose().map_err(|e| bad("owner", e))?;
        let cursor = query(uri, "cursor")?.map(RoomId::new).transpose().map_err(|e| bad("cursor", e))?;
        self.with(|core, now, _| Ok(json(core.rooms.page(owner.as_ref(), cursor.as_ref(), now))))
    }

    /// Runs one step of the state machine.
    pub(super) fn with<T>(
        &mut self,
        step: impl FnOnce(&mut Core, Now, &mut Tally) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut core = self.node.core.lock();
        let now = self.node.world.now();
        core.rooms.expire(now);
        step(&mut core, now, &mut self.tally)
    }

    fn refused(&mut self, refusal: &Refusal) -> Answer {
        refusal.count(&mut self.tally);
        let status = StatusCode::from_u16(refusal.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.error(status, refusal)
    }

    pub(super) fn error(&self, status: StatusCode, refusal: &Refusal) -> Answer {
        let now = self.node.world.now();
        let error = self.node.core.lock().rooms.error(refusal, &self.request_id, now);
        Answer { status, retry_after_s: refusal.retry_after_s, ..json(error) }
    }

    fn not_allowed(&mut self, allow: &'static str) -> Result<Answer, Refusal> {
        let refusal = Refusal::new(ErrorCode::Invalid, format!("this path takes {allow}"));
        refusal.count(&mut self.tally);
        Ok(Answer { allow: Some(allow), ..self.error(StatusCode::METHOD_NOT_ALLOWED, &refusal) })
    }

    fn injected(&self, error: InjectedError) -> Answer {
        let code = if matches!(error.status, 429 | 503) { ErrorCode::Overloaded } else { ErrorCode::Internal };
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let refusal = Refusal { retry_after_s: error.retry_after_s, ..Refusal::new(code, "injected fault") };
        self.error(status, &refusal)
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn no_content() -> Self {
        Self { status: StatusCode::NO_CONTENT, body: Vec::new(), retry_after_s: None, allow: None }
    }

    fn into_response(self, request_id: &str) -> Response<Body> {
        let mut response = Response::new(garble::whole(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if self.status != StatusCode::NO_CONTENT {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert("x-request-id", id);
        }
        response
    }
}

pub(super) fn json<T: Serialize>(body: T) -> Answer {
    let body = serde_json::to_vec(&body).expect("wire types have text keys only");
    Answer { status: StatusCode::OK, body, retry_after_s: None, allow: None }
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Refusal> {
    let collected = tokio::time::timeout(BODY_MAX, Limited::new(body, REQUEST_BODY_BYTES_MAX).collect());
    let Ok(collected) = collected.await else {
        return Err(Refusal::new(ErrorCode::Invalid, format!("the body took longer than {} s", BODY_MAX.as_secs())));
    };
    let bytes = collected.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => {
            Refusal::new(ErrorCode::TooLarge, format!("the body must be at most {REQUEST_BODY_BYTES_MAX} bytes"))
        }
        None => Refusal::new(ErrorCode::Invalid, "the body broke off"),
    })?;
    serde_json::from_slice(&bytes.to_bytes()).map_err(invalid)
}

fn invalid(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(ErrorCode::Invalid, error.to_string())
}

fn bad(what: &str, error: impl std::fmt::Display) -> Refusal {
    Refusal::new(ErrorCode::Invalid, format!("{what} {error}"))
}

fn parse(path: &str) -> Result<Route, Refusal> {
    let unknown = || Refusal::new(ErrorCode::NotFound, "no such path");
    match path {
        "/v1/rooms" => return Ok(Route::Rooms),
        "/v1/rooms:batch" => return Ok(Route::Batch),
        "/v1/digest" => return Ok(Route::Digest),
        "/v1/health" => return Ok(Route::Health),
        "/v1/drain" => return Ok(Route::Drain),
        _ => {}
    }
    if let Some(room) = path.strip_prefix("/v1/rooms/")
        && !room.contains('/')
    {
        return Ok(Route::Room(RoomId::new(decode(room)?).map_err(|e| bad("room", e))?));
    }
    let (room, session) = path.strip_prefix("/media/").and_then(|rest| rest.split_once('/')).ok_or_else(unknown)?;
    if session.contains('/') {
        return Err(unknown());
    }
    let room = RoomId::new(decode(room)?).map_err(|e| bad("room", e))?;
    let session = SessionId::new(decode(session)?).map_err(|e| bad("session", e))?;
    Ok(Route::Media(room, session))
}

fn query<'a>(uri: &'a Uri, name: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let found = pairs.filter_map(|pair| pair.split_once('=')).find(|(of, _)| *of == name);
    found.map(|(_, value)| decode(value)).transpose()
}

fn decode(text: &str) -> Result<Cow<'_, str>, Refusal> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.map_err(|_| Refusal::new(ErrorCode::Invalid, "the path or query is not UTF-8"))
}
