//! Who is in one call, packed.
//!
//! Almost every call has a handful of sessions and there are a million calls, so a few sessions are one
//! allocation for all of them: record after record, looked through from the start. A call that grows
//! beyond [`FEW_MAX`] gets a map, so that no look-up is ever long.

use std::collections::BTreeMap;

use sfu_api::SessionId;

use super::GatewayIdx;

/// Sessions that are looked through one by one: ~0.7 KiB in a row, which costs no more than the few
/// scattered lines that a map would read.
const FEW_MAX: usize = 16;
/// A map that shrank to this is packed again; half of it, so that a call on the edge does not flap.
const FEW_AGAIN: usize = FEW_MAX / 2;
/// Bytes of a record besides the session's: gateway and `seq`.
const TAIL_BYTES: usize = 4 + 8;

/// The sessions of one call.
#[derive(Clone, Debug)]
pub struct Members(Kept);

#[derive(Clone, Debug)]
enum Kept {
    /// For each: length of the session's id, the id, gateway, `seq`.
    Few(Box<[u8]>),
    Many(Box<Many>),
}

#[derive(Clone, Debug, Default)]
struct Many {
    sessions: BTreeMap<SessionId, (GatewayIdx, u64)>,
    /// How many sessions each gateway has.
    gateways: BTreeMap<GatewayIdx, u32>,
}

/// One packed session, and where its record is.
struct Record<'a> {
    session: &'a [u8],
    gateway: GatewayIdx,
    seq: u64,
    from: usize,
    to: usize,
}

/// Walks over packed sessions.
struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

// === impl Members ===

impl Members {
    /// Nobody.
    pub(super) fn new() -> Self {
        Self(Kept::Few(Box::default()))
    }

    /// How many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::Few(bytes) => records(bytes).count(),
            Kept::Many(many) => many.sessions.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Kept::Few(bytes) => bytes.is_empty(),
            Kept::Many(many) => many.sessions.is_empty(),
        }
    }

    /// The session's gateway and the highest `seq` of its writes, if it is in the call.
    #[must_use]
    pub fn get(&self, session: &SessionId) -> Option<(GatewayIdx, u64)> {
        match &self.0 {
            Kept::Few(bytes) => find(bytes, session).map(|r| (r.gateway, r.seq)),
            Kept::Many(many) => many.sessions.get(session).copied(),
        }
    }

    /// Whether any session is on this gateway.
    #[must_use]
    pub fn is_on(&self, gateway: GatewayIdx) -> bool {
        match &self.0 {
            Kept::Few(bytes) => records(bytes).any(|r| r.gateway == gateway),
            Kept::Many(many) => many.gateways.contains_key(&gateway),
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
            Kept::Many(many) => many.gateways.keys().copied().collect(),
        }
    }

    /// The sessions with their gateways, of one gateway or all.
    pub(super) fn sessions(&self, of: Option<GatewayIdx>) -> Vec<(GatewayIdx, SessionId)> {
        let wanted = |gateway: GatewayIdx| of.is_none_or(|of| of == gateway);
        match &self.0 {
            Kept::Few(bytes) => {
                records(bytes).filter(|r| wanted(r.gateway)).map(|r| (r.gateway, id(r.session))).collect()
            }
            Kept::Many(many) => {
                many.sessions.iter().filter(|(_, (g, _))| wanted(*g)).map(|(s, (g, _))| (*g, s.clone())).collect()
            }
        }
    }

    /// Puts a session in, or changes what is kept of it.
    pub(super) fn put(&mut self, session: &SessionId, gateway: GatewayIdx, seq: u64) {
        match &mut self.0 {
            Kept::Few(bytes) => {
                if let Some(to) = find(bytes, session).map(|r| r.to) {
                    if let Some(kept) = bytes.get_mut(to - TAIL_BYTES..to) {
                        kept.copy_from_slice(&tail(gateway, seq));
                    }
                    return;
                }
                let mut grown = std::mem::take(bytes).into_vec();
                push(&mut grown, session, gateway, seq);
                *bytes = grown.into_boxed_slice();
                if records(bytes).count() > FEW_MAX {
                    let mut many = Many::default();
                    for r in records(bytes) {
                        many.put(&id(r.session), r.gateway, r.seq);
                    }
                    self.0 = Kept::Many(Box::new(many));
                }
            }
            Kept::Many(many) => many.put(session, gateway, seq),
        }
    }

    /// Takes a session out.
    pub(super) fn remove(&mut self, session: &SessionId) {
        match &mut self.0 {
            Kept::Few(bytes) => {
                let Some((from, to)) = find(bytes, session).map(|r| (r.from, r.to)) else { return };
                let mut left = std::mem::take(bytes).into_vec();
                left.drain(from..to);
                *bytes = left.into_boxed_slice();
            }
            Kept::Many(many) => {
                if let Some((gateway, _)) = many.sessions.remove(session) {
                    many.uncount(gateway);
                }
                if many.sessions.len() <= FEW_AGAIN {
                    let mut bytes = Vec::new();
                    for (session, (gateway, seq)) in &many.sessions {
                        push(&mut bytes, session, *gateway, *seq);
                    }
                    self.0 = Kept::Few(bytes.into_boxed_slice());
                }
            }
        }
    }
}

// === impl Many ===

impl Many {
    fn put(&mut self, session: &SessionId, gateway: GatewayIdx, seq: u64) {
        if let Some((before, _)) = self.sessions.insert(session.clone(), (gateway, seq)) {
            self.uncount(before);
        }
        *self.gateways.entry(gateway).or_default() += 1;
    }

    fn uncount(&mut self, gateway: GatewayIdx) {
        let Some(count) = self.gateways.get_mut(&gateway) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.gateways.remove(&gateway);
        }
    }
}

// === impl Records ===

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let from = self.at;
        let (len, rest) = self.bytes.get(from..)?.split_first()?;
        let (session, rest) = rest.split_at_checked(usize::from(*len))?;
        let (gateway, rest) = rest.split_first_chunk()?;
        let (seq, _) = rest.split_first_chunk()?;
        self.at = from + 1 + session.len() + TAIL_BYTES;
        let (gateway, seq) = (GatewayIdx(u32::from_le_bytes(*gateway)), u64::from_le_bytes(*seq));
        Some(Record { session, gateway, seq, from, to: self.at })
    }
}

fn records(bytes: &[u8]) -> Records<'_> {
    Records { bytes, at: 0 }
}

fn find<'a>(bytes: &'a [u8], session: &SessionId) -> Option<Record<'a>> {
    let wanted = session.as_str().as_bytes();
    records(bytes).find(|r| r.session == wanted)
}

fn push(bytes: &mut Vec<u8>, session: &SessionId, gateway: GatewayIdx, seq: u64) {
    let text = session.as_str().as_bytes();
    bytes.reserve_exact(1 + text.len() + TAIL_BYTES);
    bytes.push(u8::try_from(text.len()).expect("an id has at most 128 bytes"));
    bytes.extend_from_slice(text);
    bytes.extend_from_slice(&tail(gateway, seq));
}

fn tail(gateway: GatewayIdx, seq: u64) -> [u8; TAIL_BYTES] {
    let mut bytes = [0; TAIL_BYTES];
    let (first, second) = bytes.split_at_mut(4);
    first.copy_from_slice(&gateway.0.to_le_bytes());
    second.copy_from_slice(&seq.to_le_bytes());
    bytes
}

fn id(bytes: &[u8]) -> SessionId {
    let text = std::str::from_utf8(bytes).expect("it was packed from an id");
    SessionId::new(text).expect("it was packed from an id")
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
                let session = SessionId::new(format!("{who}-{}", "é".repeat(usize::from(who)))).expect("valid");
                if joins {
                    members.put(&session, GatewayIdx(gateway), seq);
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
    fn a_few_sessions_are_one_allocation_of_their_own_bytes() {
        let mut members = Members::new();
        for n in 0..3 {
            members.put(&SessionId::new(format!("{n:032x}")).expect("valid"), GatewayIdx(0), 1);
        }
        let Kept::Few(bytes) = &members.0 else { panic!("three are few") };
        assert_eq!((bytes.len(), size_of::<Members>()), (3 * (1 + 32 + TAIL_BYTES), 16));
    }
}
