//! News of calls, on their way to the gateways.

use std::sync::Arc;

use sfu_api::{CallId, Epoch, GatewayId, GuildId, RoomId, SessionId, SfuId};

use crate::state::Cause;

/// News of a call for the gateways that hold its sessions.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Guild of the call.
    pub guild: GuildId,
    /// The call.
    pub call: CallId,
    /// Epoch of the placement.
    pub epoch: Epoch,
    /// 1: `endpoint` is where to connect. 2: the endpoint went away.
    pub phase: u8,
    /// Where to connect, or `None` when the SFU went away.
    pub endpoint: Option<Arc<str>>,
    /// Why.
    pub cause: Cause,
    /// The SFU of the placement and the room on it, for credentials.
    pub place: Option<(SfuId, RoomId)>,
    /// The call's sessions by gateway.
    pub sessions: Vec<(GatewayId, Vec<SessionId>)>,
}

/// Takes announcements to the gateways. Must not block.
///
/// Two announcements of one call may arrive in the wrong order (they are made under a lock and
/// told after it): whoever takes them drops what does not grow in (epoch, phase).
pub trait Announcer: Send + Sync + std::fmt::Debug {
    /// Delivers `announcement`, or remembers it for delivery.
    fn announce(&self, announcement: &Announcement);
}
