//! What a watcher is sent, and how it looks on the wire.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use sfu_api::{CallId, Epoch, GatewayId, GuildId, SessionId};

use super::Source;
use crate::drivers;
use crate::engine::Announcement;

/// Most credentials in one event: ~25 KiB of tokens and ~1.5 ms of signing; a larger call comes in
/// parts.
pub(crate) const CREDENTIALS_PER_EVENT_MAX: usize = 64;

/// News of a call's endpoint.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct EndpointEvent {
    /// Guild of the call.
    pub guild: GuildId,
    /// The call.
    pub call: CallId,
    /// Epoch of the placement.
    pub epoch: Epoch,
    /// 1: connect to `endpoint`. 2: the endpoint went away, disconnect and wait.
    pub phase: u8,
    /// Where to connect.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<Arc<str>>,
    /// Why.
    pub cause: &'static str,
    /// The new credentials of this gateway's sessions.
    pub credentials: Vec<Credential>,
    /// Which part this is, counted from 1, when the credentials come in several events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// How many parts there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<u32>,
}

/// A session's credential.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Credential {
    /// The session.
    pub session: SessionId,
    /// What it shows to the endpoint.
    #[schema(value_type = String)]
    pub token: drivers::Credential,
}

/// One event on its way to a watcher. `Debug` shows of its data how much there is: credentials are in it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// News; the number is set on the last part only, so that resuming repeats all of them.
    Endpoint {
        /// The event as JSON.
        data: String,
        /// Where the watcher stands after it.
        seq: Option<u64>,
    },
    /// The watcher missed news: what follows is the present state of its calls.
    Resync {
        /// Why.
        reason: &'static str,
    },
}

/// News on its way to becoming items, a part at a time.
#[derive(Debug)]
pub(crate) struct Telling {
    news: Arc<Announcement>,
    /// Where the watcher stands after the last part.
    seq: Option<u64>,
    told: usize,
}

// === impl Item ===

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint { data, seq } => {
                f.debug_struct("Endpoint").field("bytes", &data.len()).field("seq", seq).finish_non_exhaustive()
            }
            Self::Resync { reason } => f.debug_struct("Resync").field("reason", reason).finish(),
        }
    }
}

// === impl Telling ===

impl Telling {
    pub(crate) fn new(news: Arc<Announcement>, seq: Option<u64>) -> Self {
        Self { news, seq, told: 0 }
    }

    /// The watcher stands at `seq` after the last part.
    pub(crate) fn ends_at(&mut self, seq: u64) {
        self.seq = Some(seq);
    }

    /// The next part for `gateway`, how many credentials were made for it, and whether it is the last.
    pub(crate) fn next(&mut self, gateway: &GatewayId, source: &dyn Source) -> (Item, usize, bool) {
        let news = &*self.news;
        let sessions = news.sessions.iter().find(|(g, _)| g == gateway).map_or(&[][..], |(_, s)| s);
        let wanted = if news.endpoint.is_some() { sessions } else { &[] };
        let parts = wanted.len().div_ceil(CREDENTIALS_PER_EVENT_MAX).max(1);
        let from = self.told * CREDENTIALS_PER_EVENT_MAX;
        let chunk = &wanted[from.min(wanted.len())..(from + CREDENTIALS_PER_EVENT_MAX).min(wanted.len())];
        self.told += 1;
        let last = self.told >= parts;
        let number = |n: usize| (parts > 1).then(|| u32::try_from(n).unwrap_or(u32::MAX));
        let event = EndpointEvent {
            guild: news.guild.clone(),
            call: news.call.clone(),
            epoch: news.epoch,
            phase: news.phase,
            endpoint: news.endpoint.clone(),
            cause: news.cause.name(),
            credentials: chunk
                .iter()
                .filter_map(|s| Some(Credential { session: s.clone(), token: source.credential(news, s)? }))
                .collect(),
            part: number(self.told),
            parts: number(parts),
        };
        let data = serde_json::to_string(&event).unwrap_or_default();
        (Item::Endpoint { data, seq: self.seq.filter(|_| last) }, chunk.len(), last)
    }
}

/// An event in `text/event-stream` form. `data` and `id` hold no line breaks: they are JSON and base64.
pub(crate) fn frame(event: &str, id: Option<&str>, data: &str) -> String {
    match id {
        Some(id) => format!("event: {event}\nid: {id}\ndata: {data}\n\n"),
        None => format!("event: {event}\ndata: {data}\n\n"),
    }
}
