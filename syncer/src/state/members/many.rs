//! The sessions of a large call.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::GatewayIdx;

/// A packed id. Those of up to 23 bytes, or 46 hexadecimal digits, stand in the map itself: a session of a large call that has
/// such an id has no allocation of its own either.
type Id = SmallVec<[u8; 24]>;

/// By session's id, packed.
#[derive(Clone, Debug, Default)]
pub(super) struct Many {
    sessions: BTreeMap<Id, (GatewayIdx, u64)>,
    /// How many sessions each gateway has.
    gateways: BTreeMap<GatewayIdx, u32>,
}

// === impl Many ===

impl Many {
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn get(&self, id: &[u8]) -> Option<(GatewayIdx, u64)> {
        self.sessions.get(id).copied()
    }

    /// Whether any session is on this gateway.
    pub(super) fn is_on(&self, gateway: GatewayIdx) -> bool {
        self.gateways.contains_key(&gateway)
    }

    /// The gateways, each with how many sessions it has.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (GatewayIdx, u32)> {
        self.gateways.iter().map(|(gateway, sessions)| (*gateway, *sessions))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], (GatewayIdx, u64))> {
        self.sessions.iter().map(|(id, kept)| (&id[..], *kept))
    }

    pub(super) fn put(&mut self, id: &[u8], gateway: GatewayIdx, seq: u64) {
        if let Some((before, _)) = self.sessions.insert(Id::from_slice(id), (gateway, seq)) {
            self.uncount(before);
        }
        *self.gateways.entry(gateway).or_default() += 1;
    }

    pub(super) fn remove(&mut self, id: &[u8]) {
        if let Some((gateway, _)) = self.sessions.remove(id) {
            self.uncount(gateway);
        }
    }

    fn uncount(&mut self, gateway: GatewayIdx) {
        let Some(count) = self.gateways.get_mut(&gateway) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.gateways.remove(&gateway);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_ids_are_kept_in_place() {
        assert!(!Id::from_slice(&[0; 1 + 32 / 2]).spilled() && size_of::<Id>() <= 32);
    }
}
