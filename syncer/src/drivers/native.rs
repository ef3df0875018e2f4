//! The native contract (crate `sfu-api`) over HTTPS.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use pool::OriginHandle;
use serde::de::DeserializeOwned;
use sfu_api::{
    Batch, BatchAnswer, BatchOperation, BatchResult, CallId, DIGEST_ROOMS_MAX, Digest, DigestAnswer, EndRoom,
    EnsureRoom, Epoch, ErrorAnswer, ErrorCode, Fence, GuildId, Health, RoomEnded, RoomId, RoomPage, RoomState, SfuId,
    Slot, SyncerId,
};
use tokio::time::Instant;

use super::http::{Answer, Ask, Http, LIST_BYTES_MAX, escape, words};
use super::{
    Capabilities, Credential, CredentialRequest, DigestOutcome, DigestSpec, DriverError, EndSpec, Ended, ErrorKind,
    ListedRoom, Probe, RoomList, RoomReady, RoomSpec, SfuDriver, names,
};
use crate::token::Signer;

/// Most pages of a list: 64,000 rooms, ten times what the largest SFU carries.
const PAGES_MAX: usize = 64;

/// Longest endpoint that is believed, in bytes: what clients and proxies take as a URL.
const ENDPOINT_BYTES_MAX: usize = 2048;

/// An SFU that speaks the native contract.
#[derive(Debug)]
pub(super) struct Native {
    id: SfuId,
    syncer: SyncerId,
    http: Http,
    tokens: Arc<Signer>,
}

// === impl Native ===

impl Native {
    pub(super) fn new(id: SfuId, syncer: SyncerId, http: Http, tokens: Arc<Signer>) -> Self {
        Self { id, syncer, http, tokens }
    }

    async fn ask<T: DeserializeOwned>(&self, ask: Ask, deadline: Instant) -> Result<T, DriverError> {
        let answer = self.http.send(ask, deadline).await?;
        if answer.status.is_success() { answer.parse() } else { Err(refusal(&answer).0) }
    }

    fn ensure_body(&self, spec: RoomSpec) -> EnsureRoom {
        EnsureRoom {
            fence: Fence { slot: spec.slot, owner_term: spec.owner_term, epoch: spec.epoch, boot_id: spec.boot_id },
            op_id: spec.op_id,
            syncer: self.syncer.clone(),
            guild: spec.guild,
            kind: spec.kind,
            capacity: spec.capacity,
        }
    }

    fn end_body(&self, end: EndSpec, force: bool) -> EndRoom {
        EndRoom {
            fence: Fence { slot: end.slot, owner_term: end.owner_term, epoch: end.epoch, boot_id: end.boot_id },
            op_id: end.op_id,
            syncer: self.syncer.clone(),
            force,
        }
    }

    async fn ensure(&self, spec: RoomSpec, deadline: Instant) -> Result<RoomReady, DriverError> {
        let path = format!("/v1/rooms/{}", escape(spec.room.as_str()));
        let body = self.ensure_body(spec);
        made(self.ask(Ask::new(Method::PUT, path).json(&body)?, deadline).await?)
    }

    async fn end(&self, end: EndSpec, force: bool, deadline: Instant) -> Result<Ended, DriverError> {
        let path = format!("/v1/rooms/{}", escape(end.room.as_str()));
        let body = self.end_body(end, force);
        let answer = self.http.send(Ask::new(Method::DELETE, path).json(&body)?, deadline).await?;
        if !answer.status.is_success() {
            let (error, code) = refusal(&answer);
            return if code == Some(ErrorCode::Occupied) { Ok(Ended::Occupied) } else { Err(error) };
        }
        Ok(ended(&answer.parse::<RoomEnded>()?))
    }

    /// One request for all of them; one result for each, read by `read`.
    async fn batch<T>(
        &self,
        operations: Vec<BatchOperation>,
        deadline: Instant,
        read: impl Fn(BatchResult) -> Result<T, DriverError>,
    ) -> Result<Vec<Result<T, DriverError>>, DriverError> {
        let (asked, body) = (operations.len(), Batch { operations });
        let ask = Ask::new(Method::POST, "/v1/rooms:batch").json(&body)?.limit(LIST_BYTES_MAX);
        let BatchAnswer { results } = self.ask(ask, deadline).await?;
        if results.len() != asked {
            let detail = format!("{} results for {asked} operations", results.len());
            return Err(DriverError::new(ErrorKind::Protocol, detail));
        }
        Ok(results.into_iter().map(read).collect())
    }

    async fn list(&self, deadline: Instant) -> Result<RoomList, DriverError> {
        let mut rooms = Vec::new();
        let mut cursor: Option<RoomId> = None;
        for _ in 0..PAGES_MAX {
            let path = cursor.as_ref().map_or_else(
                || "/v1/rooms".to_owned(),
                |cursor| format!("/v1/rooms?cursor={}", escape(cursor.as_str())),
            );
            let page: RoomPage = self.ask(Ask::new(Method::GET, path).limit(LIST_BYTES_MAX), deadline).await?;
            rooms.extend(page.rooms.into_iter().filter_map(listed));
            let Some(next) = page.next else {
                return Ok(RoomList { rooms, boot_id: Some(page.boot_id), load: Some(page.load) });
            };
            if cursor.is_some_and(|cursor| cursor >= next) {
                return Err(DriverError::new(ErrorKind::Protocol, "the list's cursor does not advance"));
            }
            cursor = Some(next);
        }
        Err(DriverError::new(ErrorKind::Protocol, format!("the list has more than {PAGES_MAX} pages")))
    }

    async fn compare(&self, spec: DigestSpec, deadline: Instant) -> Result<DigestAnswer, DriverError> {
        let body = Digest {
            syncer: self.syncer.clone(),
            boot_id: spec.boot_id,
            terms: spec.terms,
            rooms: spec.rooms,
            hash: format!("{:016x}", spec.hash),
            named: spec.named,
        };
        let ask = Ask::new(Method::POST, "/v1/digest").json(&body)?.limit(LIST_BYTES_MAX);
        let mut answer: DigestAnswer = self.ask(ask, deadline).await?;
        if let Some(differences) = &mut answer.differences
            // A full one stays full: there may be more, and then the list is asked, which shows ours only.
            && differences.surplus.len() < DIGEST_ROOMS_MAX
        {
            differences.surplus.retain(|state| names::parse_plain(state.room.as_str()).is_some());
        }
        Ok(answer)
    }

    async fn health(&self, ask: Ask, deadline: Instant) -> Result<Probe, DriverError> {
        let health: Health = self.ask(ask, deadline).await?;
        Ok(Probe {
            boot_id: Some(health.boot_id),
            accepting: health.accepting && !health.draining,
            load: Some(health.load),
        })
    }
}

/// Every call placed by this system has a name that parses; a room with another name is not ours, whatever its slot.
fn listed(state: RoomState) -> Option<ListedRoom> {
    let parsed = names::parse_plain(state.room.as_str())?;
    Some(ListedRoom {
        room: state.room,
        slot: Some(state.slot),
        epoch: Some(state.epoch),
        guild: Some(state.guild),
        call: parsed.call,
        participants: state.participants,
    })
}

fn made(ready: sfu_api::RoomReady) -> Result<RoomReady, DriverError> {
    if ready.endpoint.len() > ENDPOINT_BYTES_MAX || !ready.endpoint.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(DriverError::new(ErrorKind::Protocol, "the endpoint is no URL"));
    }
    Ok(RoomReady {
        endpoint: ready.endpoint.into(),
        boot_id: Some(ready.boot_id),
        load: Some(ready.load),
        created: ready.created,
    })
}

fn ended(answer: &RoomEnded) -> Ended {
    match answer.ended {
        sfu_api::Ended::Destroyed => Ended::Destroyed,
        sfu_api::Ended::WasAbsent => Ended::WasAbsent,
    }
}

/// A result in a batch that belongs to another kind of operation.
fn mixed_up() -> DriverError {
    DriverError::new(ErrorKind::Protocol, "a result of another kind of operation")
}

/// What an answer that is not a success says.
fn refusal(answer: &Answer) -> (DriverError, Option<ErrorCode>) {
    let Ok(body) = answer.parse::<ErrorAnswer>() else {
        return (answer.failure(), None);
    };
    let code = body.error_code;
    let patience = matches!(answer.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let retry_after = answer.retry_after.filter(|_| patience);
    let kind = kind_of(code).unwrap_or_else(|| answer.failure().kind());
    let error = refused(kind, &format!("status {}", answer.status.as_u16()), body).with_retry_after(retry_after);
    (error, Some(code))
}

/// What an operation of a batch was refused with.
fn refusal_in_batch(body: ErrorAnswer) -> DriverError {
    let kind = kind_of(body.error_code).unwrap_or(ErrorKind::Protocol);
    refused(kind, "in a batch", body)
}

/// `None`: a code that this version does not know.
fn kind_of(code: ErrorCode) -> Option<ErrorKind> {
    Some(match code {
        ErrorCode::Invalid | ErrorCode::NotFound | ErrorCode::TooLarge | ErrorCode::Rejected => ErrorKind::Rejected,
        ErrorCode::Fenced => ErrorKind::Fenced,
        ErrorCode::Restarted => ErrorKind::Restarted,
        ErrorCode::Occupied => ErrorKind::Rejected,
        ErrorCode::Overloaded => ErrorKind::Overloaded,
        ErrorCode::Draining => ErrorKind::Draining,
        ErrorCode::Internal => ErrorKind::Internal,
        ErrorCode::Unknown => return None,
    })
}

fn refused(kind: ErrorKind, how: &str, body: ErrorAnswer) -> DriverError {
    let (message, request) = (words(&body.message), words(&body.request_id));
    DriverError::new(kind, format!("{how}, {message} (request {request})"))
        .with_fence(body.highest_term, body.highest_epoch)
        .with_fenced_slots(body.fenced_slots.unwrap_or_default())
        .with_sfu(Some(body.boot_id), Some(body.load))
}

impl SfuDriver for Native {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            fences: true,
            digests: true,
            load_in_answers: true,
            batches: true,
            credential_per_session: true,
            drain_keeps_sessions: true,
        }
    }

    fn room_name(&self, guild: &GuildId, call: &CallId, _slot: Slot, _epoch: Epoch) -> RoomId {
        names::plain(guild, call)
    }

    fn call_of(&self, room: &RoomId) -> Option<(GuildId, CallId)> {
        let parsed = names::parse_plain(room.as_str())?;
        parsed.guild.zip(parsed.call)
    }

    fn probe(&self, fresh: bool, deadline: Instant) -> BoxFuture<'_, Result<Probe, DriverError>> {
        self.health(Ask::new(Method::GET, "/v1/health").fresh(fresh), deadline).boxed()
    }

    fn handle(&self) -> Option<&OriginHandle> {
        Some(self.http.handle())
    }

    fn connections_ended(&self) -> u64 {
        self.http.ended()
    }

    fn ensure_room(&self, spec: RoomSpec, deadline: Instant) -> BoxFuture<'_, Result<RoomReady, DriverError>> {
        self.ensure(spec, deadline).boxed()
    }

    fn ensure_rooms(
        &self,
        specs: Vec<RoomSpec>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Result<RoomReady, DriverError>>, DriverError>> {
        let one = |spec: RoomSpec| BatchOperation::Ensure { room: spec.room.clone(), ensure: self.ensure_body(spec) };
        let read = |result| match result {
            BatchResult::Ready(ready) => made(ready),
            BatchResult::Error(body) => Err(refusal_in_batch(body)),
            BatchResult::Ended(_) => Err(mixed_up()),
        };
        self.batch(specs.into_iter().map(one).collect(), deadline, read).boxed()
    }

    fn end_rooms(
        &self,
        ends: Vec<EndSpec>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Result<Ended, DriverError>>, DriverError>> {
        let one = |end: EndSpec| BatchOperation::End { room: end.room.clone(), end: self.end_body(end, false) };
        let read = |result| match result {
            BatchResult::Ended(answer) => Ok(ended(&answer)),
            BatchResult::Error(body) if body.error_code == ErrorCode::Occupied => Ok(Ended::Occupied),
            BatchResult::Error(body) => Err(refusal_in_batch(body)),
            BatchResult::Ready(_) => Err(mixed_up()),
        };
        self.batch(ends.into_iter().map(one).collect(), deadline, read).boxed()
    }

    fn end_room(&self, end: EndSpec, force: bool, deadline: Instant) -> BoxFuture<'_, Result<Ended, DriverError>> {
        self.end(end, force, deadline).boxed()
    }

    fn list_rooms(&self, deadline: Instant) -> BoxFuture<'_, Result<RoomList, DriverError>> {
        self.list(deadline).boxed()
    }

    fn digest(&self, digest: DigestSpec, deadline: Instant) -> BoxFuture<'_, Result<DigestOutcome, DriverError>> {
        async move { Ok(DigestOutcome::Answer(self.compare(digest, deadline).await?)) }.boxed()
    }

    /// Reads the list: the contract has no look-up of one room.
    fn participants(&self, room: RoomId, deadline: Instant) -> BoxFuture<'_, Result<Option<u32>, DriverError>> {
        async move {
            let list = self.list(deadline).await?;
            Ok(list.rooms.into_iter().find(|listed| listed.room == room).map(|listed| listed.participants))
        }
        .boxed()
    }

    fn set_draining(&self, draining: bool, deadline: Instant) -> BoxFuture<'_, Result<(), DriverError>> {
        async move {
            let method = if draining { Method::POST } else { Method::DELETE };
            let probe = self.health(Ask::new(method, "/v1/drain"), deadline).await?;
            if probe.accepting == draining {
                return Err(DriverError::new(ErrorKind::Protocol, "the SFU did not take the drain order"));
            }
            Ok(())
        }
        .boxed()
    }

    fn credential(&self, request: &CredentialRequest<'_>) -> Result<Credential, DriverError> {
        Ok(Credential::new(self.tokens.sign(request.session, request.room, request.epoch, &self.id)))
    }
}
