//! Janus, driven through its admin API.
//!
//! Janus was not made to be told by several controllers, so three things are built from what it has:
//!
//! **Fencing.** Janus has none. A room's name carries slot and epoch
//! (`tl~slot~generation.revision.n~guild~call`), so a stale owner makes or ends a room that nobody
//! uses any more. What remains: a destroy in flight while another syncer adopts the very same room.
//!
//! **Incarnation.** Janus forgets its rooms at a restart and has no id that tells. Syncers agree on
//! one through rooms of their own, see [`incarnation`].
//!
//! **Load.** Janus reports none; it is counted from the room list, at most every
//! [`LOAD_AGE_MAX`] by probes.
//!
//! Draining is Janus's own switch `accept_new_sessions`. Janus goes on making rooms while it is off,
//! so [`SfuDriver::ensure_room`] looks at it first and refuses.
//!
//! **Credentials.** A room has a `pin`, which every join must give, and a `secret`, which destroying
//! it needs. Both are derived from the admin key and the room's name (HMAC-SHA-256 under two
//! labels), so every syncer knows them and none is stored. The credential of a session is the pin: it
//! admits to this room at this epoch, on this Janus. It is the same for all sessions of the room,
//! because Janus cannot tell them apart. A Janus that also asks for `api_secret` gets that from the
//! client's own configuration, not from us.
//!
//! Rooms are private: whoever reaches the client API without the admin key cannot list calls.

mod incarnation;
mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::Method;
use parking_lot::Mutex;
use pool::OriginHandle;
use serde_json::{Value, json};
use sfu_api::{BootId, CallId, Epoch, GuildId, Load, RoomId, Slot};
use tokio::time::Instant;

use super::http::{ANSWER_BYTES_MAX, Ask, Http, LIST_BYTES_MAX};
use super::{
    Capabilities, Credential, CredentialRequest, DigestOutcome, DigestSpec, DriverError, EndSpec, Ended, ErrorKind,
    JanusPlugin, ListedRoom, Probe, RoomList, RoomReady, RoomSpec, SfuDriver, names,
};
use crate::config::Secret;
use wire::{Info, Listed, Outcome, Participants, Rooms};

/// A probe lists the rooms anew when the last count is older than this. A list costs a large Janus
/// 30 ms; selection corrects the load by its own placements in between.
const LOAD_AGE_MAX: Duration = Duration::from_secs(10);

/// Whether Janus drains is asked anew when the last answer is older than this: a new room may still
/// land on a Janus that began to drain so long ago, never later.
const ACCEPTING_AGE_MAX: Duration = Duration::from_secs(2);

/// What one needs to talk to a Janus.
#[derive(Debug)]
pub(super) struct Access {
    /// Path of the admin API.
    pub(super) path: String,
    /// `admin_secret`.
    pub(super) secret: Secret,
    /// `admin_key` of the plugin.
    pub(super) key: Secret,
    pub(super) plugin: JanusPlugin,
    /// URL of the client API, without a slash at its end.
    pub(super) client_url: String,
    pub(super) capacity: u32,
}

/// A Janus server.
#[derive(Debug)]
pub(super) struct Janus {
    http: Http,
    access: Access,
    transactions: AtomicU64,
    seen: Mutex<Seen>,
}

/// What was last seen of the server.
#[derive(Debug, Default)]
struct Seen {
    boot_id: Option<BootId>,
    accepting: Option<(bool, Instant)>,
    load: Option<(Load, Instant)>,
}

// === impl Janus ===

impl Janus {
    pub(super) fn new(http: Http, access: Access) -> Self {
        Self { http, access, transactions: AtomicU64::new(0), seen: Mutex::default() }
    }

    /// Sends one admin request and checks the envelope of its answer.
    async fn admin(
        &self,
        body: &mut Value,
        limit: usize,
        fresh: bool,
        deadline: Instant,
    ) -> Result<Value, DriverError> {
        let transaction = format!("tl{}", self.transactions.fetch_add(1, Ordering::Relaxed));
        body["transaction"] = transaction.as_str().into();
        body["admin_secret"] = self.access.secret.expose().into();
        let ask = Ask::new(Method::POST, self.access.path.as_str()).json(body)?.limit(limit).fresh(fresh);
        let answer = self.http.send(ask, deadline).await?;
        if !answer.status.is_success() {
            return Err(answer.failure());
        }
        wire::unwrap(answer.parse()?, &transaction).map_err(|error| self.redacted(error, &body["request"]))
    }

    /// Sends one request to the plugin and checks its answer.
    async fn plugin(&self, request: Value, deadline: Instant) -> Result<Outcome, DriverError> {
        self.plugin_within(request, ANSWER_BYTES_MAX, deadline).await
    }

    async fn plugin_within(&self, request: Value, limit: usize, deadline: Instant) -> Result<Outcome, DriverError> {
        let plugin = self.access.plugin;
        let mut body = json!({ "janus": "message_plugin", "plugin": plugin.package(), "request": request });
        let answer = self.admin(&mut body, limit, false, deadline).await?;
        wire::outcome(plugin, answer).map_err(|error| self.redacted(error, &body["request"]))
    }

    /// A server that echoes what it was sent must not get our secrets into a log, nor the room's that `request` is
    /// about.
    fn redacted(&self, error: wire::Refusal, request: &Value) -> DriverError {
        let of_room = [&request["secret"], &request["pin"]].into_iter().filter_map(Value::as_str);
        let ours = [self.access.secret.expose(), self.access.key.expose()];
        let mut secrets: Vec<_> = ours.into_iter().chain(of_room).collect();
        // The longest first: one may begin with another.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        error.into_error(|text| secrets.iter().fold(text, |text, secret| text.replace(secret, "(redacted)")))
    }

    async fn accepting(&self, fresh: bool, deadline: Instant) -> Result<bool, DriverError> {
        let answer = self.admin(&mut json!({ "janus": "info" }), ANSWER_BYTES_MAX, fresh, deadline).await?;
        let info: Info = wire::shape(answer)?;
        self.seen.lock().accepting = Some((info.accepting, Instant::now()));
        Ok(info.accepting)
    }

    /// Whether Janus takes new rooms, as seen not long ago.
    async fn accepting_lately(&self, deadline: Instant) -> Result<bool, DriverError> {
        let seen = self.seen.lock().accepting;
        match seen {
            Some((accepting, at)) if Instant::now().saturating_duration_since(at) < ACCEPTING_AGE_MAX => Ok(accepting),
            _ => self.accepting(false, deadline).await,
        }
    }

    /// Lists every room, remembers the load it amounts to, and gives what was listed.
    async fn rooms(&self, deadline: Instant) -> Result<Vec<Listed>, DriverError> {
        let request = json!({ "request": "list", "admin_key": self.access.key.expose() });
        let rooms: Rooms = self.plugin_within(request, LIST_BYTES_MAX, deadline).await?.into_shape()?;
        let load = self.count(&rooms.list);
        self.seen.lock().load = Some((load, Instant::now()));
        Ok(rooms.list)
    }

    fn count(&self, rooms: &[Listed]) -> Load {
        let (mut calls, mut participants) = (0_u32, 0_u32);
        for room in rooms.iter().filter(|room| !incarnation::is_ours(&room.room)) {
            calls = calls.saturating_add(1);
            participants = participants.saturating_add(room.num_participants);
        }
        Load { calls, participants, capacity: self.access.capacity, sampled_at: unix_ms() }
    }

    async fn exists(&self, room: &str, deadline: Instant) -> Result<bool, DriverError> {
        let answer = self.plugin(json!({ "request": "exists", "room": room }), deadline).await?;
        Ok(answer.into_shape::<wire::Exists>()?.exists)
    }

    async fn probed(&self, fresh: bool, deadline: Instant) -> Result<Probe, DriverError> {
        let accepting = self.accepting(fresh, deadline).await?;
        let boot_id = self.incarnation(deadline).await?;
        let seen = self.seen.lock().load;
        let stale = seen.is_none_or(|(_, at)| Instant::now().saturating_duration_since(at) >= LOAD_AGE_MAX);
        if stale {
            self.rooms(deadline).await?;
        }
        let load = self.seen.lock().load.map(|(load, _)| load);
        Ok(Probe { boot_id: Some(boot_id), accepting, load })
    }

    async fn ensure(&self, spec: RoomSpec, deadline: Instant) -> Result<RoomReady, DriverError> {
        let accepting = self.accepting_lately(deadline).await?;
        let boot_id = self.incarnation(deadline).await?;
        if spec.boot_id.as_ref().is_some_and(|expected| *expected != boot_id) {
            return Err(DriverError::new(ErrorKind::Restarted, "").with_sfu(Some(boot_id), None));
        }
        let created = if accepting {
            self.create(self.call_room(&spec), deadline).await?
        } else if self.exists(spec.room.as_str(), deadline).await? {
            false
        } else {
            return Err(DriverError::new(ErrorKind::Draining, "").with_sfu(Some(boot_id), None));
        };
        let endpoint = self.endpoint(&spec.room).into();
        Ok(RoomReady { endpoint, boot_id: Some(boot_id), load: None, created })
    }

    /// Creates a room; false when it was there.
    async fn create(&self, request: Value, deadline: Instant) -> Result<bool, DriverError> {
        match self.plugin(request, deadline).await? {
            Outcome::Exists => Ok(false),
            outcome => outcome.expect("created").map(|()| true),
        }
    }

    fn call_room(&self, spec: &RoomSpec) -> Value {
        let mut request = self.room_request("create", spec.room.as_str());
        request["admin_key"] = self.access.key.expose().into();
        request["description"] = "call".into(); // short: the default repeats the name in every list
        request["pin"] = self.derived("pin", spec.room.as_str()).into();
        request["is_private"] = true.into();
        match self.access.plugin {
            JanusPlugin::Videoroom => request["publishers"] = spec.capacity.max(1).into(),
            JanusPlugin::Audiobridge => {
                request["allow_rtp_participants"] = true.into();
                request["sampling_rate"] = 16_000.into(); // wide-band speech at half the mixing cost of 32 kHz
            }
        }
        request
    }

    /// A request about a room that needs the room's secret.
    fn room_request(&self, request: &str, room: &str) -> Value {
        json!({ "request": request, "room": room, "secret": self.derived("secret", room) })
    }

    async fn end(&self, end: &EndSpec, force: bool, deadline: Instant) -> Result<Ended, DriverError> {
        let room = end.room.as_str();
        if !force {
            // Janus ends rooms with people in them, so look first. Who joins in between is cut off and
            // comes back through the gateway; the name's epoch keeps this to rooms given up already.
            match self.present(room, deadline).await? {
                None => return Ok(Ended::WasAbsent),
                Some(0) => {}
                Some(_) => return Ok(Ended::Occupied),
            }
        }
        match self.plugin(self.room_request("destroy", room), deadline).await? {
            Outcome::Absent => Ok(Ended::WasAbsent),
            outcome => outcome.expect("destroyed").map(|()| Ended::Destroyed),
        }
    }

    /// Participants in a room; `None` when there is no such room.
    async fn present(&self, room: &str, deadline: Instant) -> Result<Option<u32>, DriverError> {
        // A crowded room lists every display name, hence the larger limit.
        let request = self.room_request("listparticipants", room);
        match self.plugin_within(request, LIST_BYTES_MAX, deadline).await? {
            Outcome::Absent => Ok(None),
            outcome => {
                let list: Participants = outcome.into_shape()?;
                Ok(Some(u32::try_from(list.participants.len()).unwrap_or(u32::MAX)))
            }
        }
    }

    async fn list(&self, deadline: Instant) -> Result<RoomList, DriverError> {
        let boot_id = self.incarnation(deadline).await?;
        let listed = self.rooms(deadline).await?;
        let load = self.seen.lock().load.map(|(load, _)| load);
        Ok(RoomList { rooms: listed.iter().filter_map(of_ours).collect(), boot_id: Some(boot_id), load })
    }

    async fn drain(&self, draining: bool, deadline: Instant) -> Result<(), DriverError> {
        let mut body = json!({ "janus": "accept_new_sessions", "accept": !draining });
        let answer = self.admin(&mut body, ANSWER_BYTES_MAX, false, deadline).await?;
        if answer["accept"] != Value::Bool(!draining) {
            return Err(DriverError::new(ErrorKind::Protocol, "the SFU did not take the drain order"));
        }
        self.seen.lock().accepting = Some((!draining, Instant::now()));
        Ok(())
    }

    /// Where clients go: which API, which room, which plugin.
    fn endpoint(&self, room: &RoomId) -> String {
        let (url, plugin) = (&self.access.client_url, self.access.plugin.as_str());
        format!("janus+{url}?room={}&plugin={plugin}", super::http::escape(room.as_str()))
    }

    /// A room's pin or secret: 128 bits that every syncer derives alike.
    fn derived(&self, label: &str, room: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.access.key.expose().as_bytes());
        let tag = hmac::sign(&key, format!("trunkline {label}\0{room}").as_bytes());
        URL_SAFE_NO_PAD.encode(tag.as_ref().get(..16).unwrap_or_default())
    }
}

/// A call room of ours; everything else in the list is somebody else's or a sentinel.
fn of_ours(listed: &Listed) -> Option<ListedRoom> {
    let parsed = names::parse_tagged(&listed.room)?;
    Some(ListedRoom {
        room: RoomId::new(&listed.room).ok()?,
        slot: parsed.slot,
        epoch: parsed.epoch,
        guild: parsed.guild,
        call: parsed.call,
        participants: listed.num_participants,
    })
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl SfuDriver for Janus {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            fences: false,
            digests: false,
            load_in_answers: false,
            batches: false,
            credential_per_session: false,
            drain_keeps_sessions: false, // it turns away every new client
        }
    }

    fn room_name(&self, guild: &GuildId, call: &CallId, slot: Slot, epoch: Epoch) -> RoomId {
        names::tagged(guild, call, slot, epoch)
    }

    fn probe(&self, fresh: bool, deadline: Instant) -> BoxFuture<'_, Result<Probe, DriverError>> {
        self.probed(fresh, deadline).boxed()
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

    fn end_room(&self, end: EndSpec, force: bool, deadline: Instant) -> BoxFuture<'_, Result<Ended, DriverError>> {
        async move { self.end(&end, force, deadline).await }.boxed()
    }

    fn list_rooms(&self, deadline: Instant) -> BoxFuture<'_, Result<RoomList, DriverError>> {
        self.list(deadline).boxed()
    }

    fn digest(&self, _digest: DigestSpec, _deadline: Instant) -> BoxFuture<'_, Result<DigestOutcome, DriverError>> {
        std::future::ready(Ok(DigestOutcome::Unsupported)).boxed()
    }

    /// Counts those who may speak; pure watchers of a video room are not listed by Janus.
    fn participants(&self, room: RoomId, deadline: Instant) -> BoxFuture<'_, Result<Option<u32>, DriverError>> {
        async move { self.present(room.as_str(), deadline).await }.boxed()
    }

    fn set_draining(&self, draining: bool, deadline: Instant) -> BoxFuture<'_, Result<(), DriverError>> {
        self.drain(draining, deadline).boxed()
    }

    fn credential(&self, request: &CredentialRequest<'_>) -> Result<Credential, DriverError> {
        Ok(Credential::new(self.derived("pin", request.room.as_str())))
    }
}
