//! The media door: where clients connect. Enough of it to see that the right ones get in.

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use sfu_api::{ErrorCode, RoomId, SessionId};

use super::serve::{Answer, Call};
use crate::rooms::Refusal;
use crate::token::{self, Claims};

/// `PUT /media/{room}/{session}`.
pub(super) fn attach(
    call: &mut Call<'_>,
    headers: &HeaderMap,
    room: &RoomId,
    session: SessionId,
) -> Result<Answer, Refusal> {
    let claims = match claims(call, headers, room, &session) {
        Ok(claims) => claims,
        Err(why) => return Ok(unauthorized(call, why)),
    };
    let attached = call.with(|core, now, tally| {
        let epoch = core.rooms.epoch_of(room).ok_or_else(|| absent(room))?;
        if !claims.is_of(epoch) {
            return Ok(false);
        }
        let new = core.rooms.attach(room, session, now).ok_or_else(|| absent(room))??;
        tally.attaches += u32::from(new);
        Ok(true)
    })?;
    if attached { Ok(Answer::no_content()) } else { Ok(unauthorized(call, "the token is of another epoch")) }
}

/// `DELETE /media/{room}/{session}`. A token of an earlier epoch will do: whoever leaves may leave.
pub(super) fn detach(
    call: &mut Call<'_>,
    headers: &HeaderMap,
    room: &RoomId,
    session: &SessionId,
) -> Result<Answer, Refusal> {
    if let Err(why) = claims(call, headers, room, session) {
        return Ok(unauthorized(call, why));
    }
    call.with(|core, now, _| core.rooms.detach(room, session, now).ok_or_else(|| absent(room)))?;
    Ok(Answer::no_content())
}

fn claims(call: &Call<'_>, headers: &HeaderMap, room: &RoomId, session: &SessionId) -> Result<Claims, &'static str> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or("a token is needed")?;
    let (scheme, token) = header.split_once(' ').ok_or("a bearer token is needed")?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err("a bearer token is needed");
    }
    let world = &call.node.world;
    let keys = world.keys.read().clone();
    let claims = match keys {
        Some(keys) => keys.verify(token.trim())?,
        None => token::unverified(token.trim())?,
    };
    claims.check(&call.node.id, room, session, world.now().unix_ms / 1000)?;
    Ok(claims)
}

fn absent(room: &RoomId) -> Refusal {
    Refusal::new(ErrorCode::NotFound, format!("no room {room}"))
}

fn unauthorized(call: &mut Call<'_>, why: &str) -> Answer {
    let refusal = Refusal::new(ErrorCode::Rejected, why);
    refusal.count(&mut call.tally);
    call.error(StatusCode::UNAUTHORIZED, &refusal)
}
