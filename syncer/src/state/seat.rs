//! Room and endpoint of a placed call, kept small.
//!
//! With a million calls, a million names and URLs would be most of the memory, and almost all say what
//! is known anyway: a room is named after its guild and call, and an SFU's endpoints differ in the room
//! alone. Only what is not so is kept as it is.

use std::sync::Arc;

use sfu_api::{CallId, GuildId, RoomId};

/// Room and endpoint of a placed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The endpoint, or what precedes the room in it.
    base: Arc<str>,
    /// What is otherwise than with almost all.
    other: Option<Box<Other>>,
}

/// What has to be kept where a room is not named `guild~call` or its endpoint does not end with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Other {
    room: RoomId,
    /// The endpoint ends with the room's name.
    with_room: bool,
}

// === impl Seat ===

impl Seat {
    /// Keeps a room and an endpoint. `known` is the base of the SFU's last one, shared if it fits and
    /// replaced otherwise.
    pub(super) fn new(
        guild: &GuildId,
        call: &CallId,
        room: &RoomId,
        endpoint: &Arc<str>,
        known: &mut Option<Arc<str>>,
    ) -> Self {
        let stripped = endpoint.strip_suffix(room.as_str());
        let base = stripped.unwrap_or(endpoint);
        let base = match known {
            Some(known) if **known == *base => known.clone(),
            _ => known.insert(base.into()).clone(),
        };
        let with_room = stripped.is_some();
        let plain = with_room && is_named_after(room, guild, call);
        let other = (!plain).then(|| Box::new(Other { room: room.clone(), with_room }));
        Self { base, other }
    }

    /// The room of this call.
    #[must_use]
    pub fn room(&self, guild: &GuildId, call: &CallId) -> RoomId {
        match &self.other {
            Some(other) => other.room.clone(),
            None => RoomId::new([guild.as_str(), "~", call.as_str()].concat()).expect("a room had this name"),
        }
    }

    /// Where the clients of this call connect.
    #[must_use]
    pub fn endpoint(&self, guild: &GuildId, call: &CallId) -> Arc<str> {
        match self.other.as_deref() {
            Some(Other { with_room: false, .. }) => self.base.clone(),
            Some(other) => [&*self.base, other.room.as_str()].concat().into(),
            None => [&*self.base, guild.as_str(), "~", call.as_str()].concat().into(),
        }
    }
}

fn is_named_after(room: &RoomId, guild: &GuildId, call: &CallId) -> bool {
    let rest = room.as_str().strip_prefix(guild.as_str()).and_then(|rest| rest.strip_prefix('~'));
    rest == Some(call.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out_and_what_repeats_is_shared() {
        let (guild, call) = (GuildId::new("g").expect("valid"), CallId::new("c").expect("valid"));
        let mut known = None;
        for (room, endpoint, shared) in [
            ("g~c", "wss://sfu/media/g~c", false),
            ("g~c", "wss://sfu/media/g~c", true),
            ("tl~7~1.2.3~g~c", "wss://sfu/media/tl~7~1.2.3~g~c", true),
            ("g~c", "wss://sfu/", false),
            ("g~c", "wss://sfu/", true),
            ("gg~c", "g~c", false),
        ] {
            let (room, endpoint) = (RoomId::new(room).expect("valid"), Arc::from(endpoint));
            let before = known.clone();
            let seat = Seat::new(&guild, &call, &room, &endpoint, &mut known);
            assert_eq!((seat.room(&guild, &call), seat.endpoint(&guild, &call)), (room, endpoint));
            assert_eq!(before.is_some_and(|b| Arc::ptr_eq(&b, &seat.base)), shared, "{seat:?}");
        }
    }
}
