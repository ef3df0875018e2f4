//! Who is in one call, packed.
//!
//! Almost every call has a handful of sessions and there are a million calls, so a few sessions stand in a row: record
//! after record, looked through from the start, with some [space](Space) behind, in the call itself as long as they fit. Ids
//! are mostly hexadecimal digits, and gateways and `seq` mostly small, so each takes the bytes it needs. A call that grows
//! beyond [`FEW_MAX`] gets a map, so that no look-up is ever long.

mod many;
mod space;

use sfu_api::{ID_BYTES_MAX, SessionId};

use self::many::Many;
use self::space::Space;
use super::GatewayIdx;

/// Sessions that are looked through one by one: ~0.3 KiB in a row, which costs no more than the few
/// scattered lines that a map would read.
const FEW_MAX: usize = 16;
/// A map that shrank to this is packed again; half of it, so that a call on the edge does not flap.
const FEW_AGAIN: usize = FEW_MAX / 2;
/// Set in a record's first byte when the id is an even number of lower-case hexadecimal digits, kept two
/// in a byte. The other seven bits are the id's length less one.
const HEX: u8 = 0x80;
/// In place of the value of what is no lower-case hexadecimal digit: greater than all, and so with any of them.
const NO_DIGIT: u8 = 16;
/// Bytes of the longest gateway and `seq`, seven bits in each.
const TAIL_BYTES_MAX: usize = 5 + 10;

/// The sessions of one call.
#[derive(Clone, Debug)]
pub struct Members(Kept);

#[derive(Clone, Debug)]
enum Kept {
    /// How many; then for each: kind and length of the session's id, the id, gateway, `seq`; then room for
    /// more.
    Few(Space),
    Many(Box<Many>),
}

/// One packed session, and where its record is.
struct Record<'a> {
    /// Kind and length of the session's id, and the id.
    id: &'a [u8],
    gateway: GatewayIdx,
    seq: u64,
    from: usize,
    /// Where the gateway begins.
    tail: usize,
    to: usize,
}

/// A few bytes that were put together.
struct Packed<const MAX: usize> {
    bytes: [u8; MAX],
    len: usize,
}

/// Walks over packed sessions.
struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    left: u8,
}

// === impl Members ===

impl Members {
    /// Nobody.
    pub(super) fn new() -> Self {
        Self(Kept::Few(Space::default()))
    }

    /// How many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::Few(bytes) => usize::from(count(bytes)),
            Kept::Many(many) => many.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Kept::Few(bytes) => count(bytes) == 0,
            Kept::Many(many) => many.len() == 0,
        }
    }

    /// The session's gateway and the highest `seq` of its writes, if it is in the call.
    #[must_use]
    pub fn get(&self, session: &SessionId) -> Option<(GatewayIdx, u64)> {
        match &self.0 {
            Kept::Few(bytes) => find(bytes, pack(session, &mut [0; _])).map(|r| (r.gateway, r.seq)),
            Kept::Many(many) => many.get(pack(session, &mut [0; _])),
        }
    }

    /// Reads some of what is in the call, so that it is at hand.
    pub(super) fn touch(&self) -> u8 {
        u8::from(matches!(self.0, Kept::Many(_)))
    }

    /// Reads where those begin and end that are elsewhere.
    pub(super) fn touch_elsewhere(&self) -> u8 {
        match &self.0 {
            Kept::Few(bytes) if bytes.is_boxed() => bytes[0] ^ bytes[bytes.len() - 1],
            Kept::Few(_) | Kept::Many(_) => 0,
        }
    }

    /// Whether any session is on this gateway.
    #[must_use]
    pub fn is_on(&self, gateway: GatewayIdx) -> bool {
        match &self.0 {
            Kept::Few(bytes) => records(bytes).any(|r| r.gateway == gateway),
            Kept::Many(many) => many.is_on(gateway),
        }
    }

    /// How many sessions are on gateways of which `of` says so.
    #[must_use]
    pub fn count(&self, of: impl Fn(GatewayIdx) -> bool) -> usize {
        match &self.0 {
            Kept::Few(bytes) => records(bytes).filter(|r| of(r.gateway)).count(),
            Kept::Many(many) => many.gateways().filter(|(gateway, _)| of(*gateway)).map(|(_, n)| n as usize).sum(),
        }
    }

    /// The gateways with sessions, each once.
    pub(super) fn gateways(&self) -> Vec<GatewayIdx> {
        match &self.0 {
            Kept::Few(bytes) => {
                let mut all: Vec<GatewayIdx> = records(bytes).map(|r| r.gateway).collect();
                all.sort_unstable();
                all.dedup();
                all
            }
            Kept::Many(many) => many.gateways().map(|(gateway, _)| gateway).collect(),
        }
    }

    /// The sessions with their gateways, of one gateway or all.
    pub(super) fn sessions(&self, of: Option<GatewayIdx>) -> Vec<(GatewayIdx, SessionId)> {
        let wanted = |gateway: GatewayIdx| of.is_none_or(|of| of == gateway);
        match &self.0 {
            Kept::Few(bytes) => {
                records(bytes).filter(|r| wanted(r.gateway)).map(|r| (r.gateway, unpack(r.id))).collect()
            }
            Kept::Many(many) => {
                many.iter().filter(|(_, (gateway, _))| wanted(*gateway)).map(|(id, (on, _))| (on, unpack(id))).collect()
            }
        }
    }

    /// Shows `change` what is kept of a session, if anything, and keeps instead what that returns, if anything.
    pub(super) fn update(
        &mut self,
        session: &SessionId,
        change: impl FnOnce(Option<(GatewayIdx, u64)>) -> Option<(GatewayIdx, u64)>,
    ) {
        match &mut self.0 {
            Kept::Few(bytes) => {
                let mut room = [0; _];
                let id = pack(session, &mut room);
                let mut kept = records(bytes);
                let known = kept.find(|r| r.is_of(id)).map(|r| ((r.gateway, r.seq), r.from, r.tail..r.to));
                let end = kept.at;
                let Some((gateway, seq)) = change(known.as_ref().map(|(kept, ..)| *kept)) else { return };
                let tail = tail(gateway, seq);
                let tail = tail.as_bytes();
                match known {
                    None => {
                        push(bytes, end, id, tail);
                    }
                    Some((.., at)) if at.len() == tail.len() => bytes[at].copy_from_slice(tail),
                    Some((_, from, at)) => {
                        let end = cut(bytes, from, at.end);
                        push(bytes, end, id, tail);
                    }
                }
                if usize::from(count(bytes)) > FEW_MAX {
                    let mut many = Many::default();
                    for r in records(bytes) {
                        many.put(r.id, r.gateway, r.seq);
                    }
                    self.0 = Kept::Many(Box::new(many));
                }
            }
            Kept::Many(many) => {
                let mut room = [0; _];
                let id = pack(session, &mut room);
                if let Some((gateway, seq)) = change(many.get(id)) {
                    many.put(id, gateway, seq);
                }
            }
        }
    }

    /// Takes a session out.
    pub(super) fn remove(&mut self, session: &SessionId) {
        match &mut self.0 {
            Kept::Few(bytes) => {
                let Some((from, to)) = find(bytes, pack(session, &mut [0; _])).map(|r| (r.from, r.to)) else { return };
                let end = cut(bytes, from, to);
                bytes.shrink(end);
            }
            Kept::Many(many) => {
                many.remove(pack(session, &mut [0; _]));
                if many.len() <= FEW_AGAIN {
                    let (mut bytes, mut end) = (Space::default(), 1);
                    for (id, (gateway, seq)) in many.iter() {
                        end = push(&mut bytes, end, id, tail(gateway, seq).as_bytes());
                    }
                    self.0 = Kept::Few(bytes);
                }
            }
        }
    }
}

// === impl Records ===

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        self.left = self.left.checked_sub(1)?;
        let from = self.at;
        let (head, rest) = self.bytes.get(from..)?.split_first()?;
        let digits = usize::from(head & !HEX) + 1;
        let (_, rest) = rest.split_at_checked(if head & HEX == 0 { digits } else { digits / 2 })?;
        let tail = self.bytes.len() - rest.len();
        let (gateway, rest) = number(rest)?;
        let (seq, rest) = number(rest)?;
        self.at = self.bytes.len() - rest.len();
        let gateway = GatewayIdx(u32::try_from(gateway).ok()?);
        let id = self.bytes.get(from..tail)?;
        Some(Record { id, gateway, seq, from, tail, to: self.at })
    }
}

// === impl Record ===

impl Record<'_> {
    /// Whether it is the record of a packed id: what can be packed in half is, so no id has two forms.
    fn is_of(&self, id: &[u8]) -> bool {
        self.id == id
    }
}

// === impl Packed ===

impl<const MAX: usize> Packed<MAX> {
    const fn new() -> Self {
        Self { bytes: [0; MAX], len: 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Seven bits in a byte, the lowest first; all bytes but the last have the eighth bit set.
    fn put_number(&mut self, mut n: u64) {
        loop {
            let more = n > 0x7f;
            self.bytes[self.len] = n.to_le_bytes()[0] & 0x7f | u8::from(more) << 7;
            self.len += 1;
            n >>= 7;
            if !more {
                return;
            }
        }
    }
}

fn count(bytes: &[u8]) -> u8 {
    bytes[0]
}

fn records(bytes: &[u8]) -> Records<'_> {
    Records { bytes, at: 1, left: count(bytes) }
}

fn find<'a>(bytes: &'a [u8], id: &[u8]) -> Option<Record<'a>> {
    records(bytes).find(|r| r.is_of(id))
}

/// A session's id as records begin with it, put together in `room`: kind and length, and the id.
fn pack<'a>(session: &SessionId, room: &'a mut [u8; 1 + ID_BYTES_MAX]) -> &'a [u8] {
    let text = session.as_bytes();
    let head = u8::try_from(text.len() - 1).expect("an id has 1 to 128 bytes");
    let [first, rest @ ..] = room;
    if text.len().is_multiple_of(2) && pack_digits(text, rest) {
        *first = HEX | head;
        return &room[..=text.len() / 2];
    }
    *first = head;
    rest[..text.len()].copy_from_slice(text);
    &room[..=text.len()]
}

/// The id again that was packed.
fn unpack(id: &[u8]) -> SessionId {
    let (head, session) = id.split_first().expect("it was packed from an id");
    let digit = |n: u8| if n < 10 { b'0' + n } else { b'a' + n - 10 };
    let digits = || session.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
    let text: Vec<u8> = if head & HEX == 0 { session.to_vec() } else { digits() };
    let text = std::str::from_utf8(&text).expect("it was packed from an id");
    SessionId::new(text).expect("it was packed from an id")
}

/// Puts hexadecimal digits together, two in a byte; says whether all were some. Most ids have 32, and a row of them is
/// a few instructions where nothing depends on what they are.
fn pack_digits(text: &[u8], to: &mut [u8]) -> bool {
    let mut all = 0;
    let mut pack = |[high, low]: [u8; 2], byte: &mut u8| {
        all |= high | low;
        *byte = high << 4 | low;
    };
    let (rows, rest) = text.as_chunks::<16>();
    let (to_rows, to_rest) = to.split_at_mut(8 * rows.len());
    for (row, bytes) in rows.iter().zip(to_rows.as_chunks_mut::<8>().0) {
        let values = row.map(value);
        values.as_chunks().0.iter().zip(bytes).for_each(|(pair, byte)| pack(*pair, byte));
    }
    rest.as_chunks().0.iter().zip(to_rest).for_each(|(pair, byte)| pack(pair.map(value), byte));
    all < NO_DIGIT
}

/// The value of a lower-case hexadecimal digit.
const fn value(digit: u8) -> u8 {
    match (digit.wrapping_sub(b'0'), digit.wrapping_sub(b'a')) {
        (value @ 0..10, _) => value,
        (_, letter @ 0..6) => letter + 10,
        _ => NO_DIGIT,
    }
}

/// Adds a record behind the others, which end at `end`; returns where they end now.
fn push(bytes: &mut Space, end: usize, id: &[u8], tail: &[u8]) -> usize {
    let (middle, to) = (end + id.len(), end + id.len() + tail.len());
    bytes.grow(to);
    bytes[end..middle].copy_from_slice(id);
    bytes[middle..to].copy_from_slice(tail);
    bytes[0] += 1;
    to
}

/// Takes out the record from `from` to `to`; returns where the others end.
fn cut(bytes: &mut [u8], from: usize, to: usize) -> usize {
    let end = records(bytes).last().map_or(to, |r| r.to);
    bytes.copy_within(to..end, from);
    bytes[0] -= 1;
    end - (to - from)
}

fn tail(gateway: GatewayIdx, seq: u64) -> Packed<TAIL_BYTES_MAX> {
    let mut tail = Packed::new();
    tail.put_number(u64::from(gateway.0));
    tail.put_number(seq);
    tail
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    if *first < 0x80 {
        return Some((u64::from(*first), rest)); // almost all are small
    }
    let last = bytes.iter().position(|byte| byte & 0x80 == 0)?;
    let (digits, rest) = bytes.split_at_checked(last + 1)?;
    Some((digits.iter().rev().fold(0, |n, byte| n << 7 | u64::from(byte & 0x7f)), rest))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Packed or not, they are what a plain map would be, through growing and shrinking.
        #[test]
        fn members_are_a_map(writes in prop::collection::vec((0u8..40, 0u32..3, any::<bool>()), 1..200)) {
            let mut members = Members::new();
            let mut model: HashMap<SessionId, (GatewayIdx, u64)> = HashMap::new();
            for (seq, (who, gateway, joins)) in (0u64..).zip(writes) {
                let session = SessionId::new(match who % 4 {
                    0 => format!("{who}-{}", "é".repeat(usize::from(who))),
                    1 => format!("{who:0width$x}", width = 2 * usize::from(who)),
                    2 if who % 8 == 2 => "ab".repeat(64).split_off(usize::from(who % 3)),
                    2 => format!("{who:031x}"),
                    _ => format!("{who:08X}FF"),
                });
                let session = session.expect("valid");
                let seq = seq << (who % 8 * 7);
                if joins {
                    let mut kept = None;
                    members.update(&session, |before| {
                        kept = before;
                        Some((GatewayIdx(gateway), seq))
                    });
                    prop_assert_eq!(kept, model.get(&session).copied());
                    model.insert(session, (GatewayIdx(gateway), seq));
                } else {
                    members.remove(&session);
                    model.remove(&session);
                }
                prop_assert_eq!((members.len(), members.is_empty()), (model.len(), model.is_empty()));
                for (session, kept) in &model {
                    prop_assert_eq!(members.get(session), Some(*kept));
                }
                for g in (0..3).map(GatewayIdx) {
                    let there = model.values().filter(|(on, _)| *on == g).count();
                    prop_assert_eq!(members.sessions(Some(g)).len(), there);
                    prop_assert_eq!((members.is_on(g), members.gateways().contains(&g)), (there > 0, there > 0));
                }
            }
        }
    }

    #[test]
    fn three_sessions_need_no_allocation() {
        let mut members = Members::new();
        for n in 0..3 {
            let session = SessionId::new(format!("{n:032x}")).expect("valid");
            members.update(&session, |_| Some((GatewayIdx(0), 1)));
            let Kept::Few(bytes) = &members.0 else { panic!("three are few") };
            assert!(!bytes.is_boxed());
        }
        assert_eq!(size_of::<Members>(), 64);
    }

    #[test]
    fn eleven_bytes_are_there_for_three_gateways_and_seqs() {
        let of_three_bytes = 1 << 14;
        for (last, is_boxed) in [(of_three_bytes - 1, false), (of_three_bytes, true)] {
            let mut members = Members::new();
            for (n, seq) in [of_three_bytes, of_three_bytes, last].into_iter().enumerate() {
                let session = SessionId::new(format!("{n:032x}")).expect("valid");
                members.update(&session, |_| Some((GatewayIdx(127), seq)));
            }
            let Kept::Few(bytes) = &members.0 else { panic!("three are few") };
            assert_eq!(bytes.is_boxed(), is_boxed);
        }
    }

    #[test]
    fn room_is_given_back_when_most_have_left() {
        let session = |n| SessionId::new(format!("{n:032x}")).expect("valid");
        let mut members = Members::new();
        let mut rooms = Vec::new();
        let mut note = |members: &Members| match &members.0 {
            Kept::Few(bytes) => rooms.push(bytes.len()),
            Kept::Many(_) => panic!("ten are few"),
        };
        for n in 0..10 {
            members.update(&session(n), |_| Some((GatewayIdx(0), 1)));
            note(&members);
        }
        for n in 0..10 {
            members.remove(&session(n));
            note(&members);
        }
        let expected = [63, 63, 63, 96, 96, 128, 160, 160, 192, 192];
        assert_eq!(rooms[..10], expected);
        assert_eq!(rooms[10..], [192, 192, 192, 192, 96, 96, 96, 63, 63, 63]);
    }
}
