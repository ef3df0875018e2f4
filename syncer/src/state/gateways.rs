//! The gateways whose sessions are in calls of a shard, and in which.
//!
//! A session's entry names its gateway by number, so a gateway's id is kept once. The index answers a
//! watcher that comes back, and a gateway that is gone, without a look at every call.

use std::collections::{BTreeSet, HashMap};

use sfu_api::GatewayId;
use slab::Slab;

use super::CallKey;

/// Number of a gateway in its shard, while sessions of it are in calls there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayIdx(pub(super) u32);

/// The gateways of a shard.
#[derive(Debug, Default)]
pub(super) struct Gateways {
    entries: Slab<Entry>,
    by_id: HashMap<GatewayId, GatewayIdx>,
}

#[derive(Debug)]
struct Entry {
    id: GatewayId,
    /// Calls with sessions of it.
    calls: BTreeSet<CallKey>,
}

// === impl Gateways ===

impl Gateways {
    /// The gateway's number, if it has one.
    pub(super) fn find(&self, id: &GatewayId) -> Option<GatewayIdx> {
        self.by_id.get(id).copied()
    }

    /// The gateway's number. One that enters no call has to be left at once.
    pub(super) fn number(&mut self, id: GatewayId) -> GatewayIdx {
        if let Some(idx) = self.find(&id) {
            return idx;
        }
        let at = self.entries.insert(Entry { id: id.clone(), calls: BTreeSet::new() });
        let idx = GatewayIdx(u32::try_from(at).expect("gateways are few"));
        self.by_id.insert(id, idx);
        idx
    }

    /// The gateway with this number.
    pub(super) fn id(&self, idx: GatewayIdx) -> Option<&GatewayId> {
        self.entries.get(idx.0 as usize).map(|e| &e.id)
    }

    /// The calls with sessions of this gateway.
    pub(super) fn calls(&self, idx: GatewayIdx) -> impl Iterator<Item = CallKey> + '_ {
        self.entries.get(idx.0 as usize).into_iter().flat_map(|e| e.calls.iter().copied())
    }

    /// A session of the gateway is in the call.
    pub(super) fn enter(&mut self, idx: GatewayIdx, call: CallKey) {
        if let Some(entry) = self.entries.get_mut(idx.0 as usize) {
            entry.calls.insert(call);
        }
    }

    /// No session of the gateway is in the call. Without calls, the gateway loses its number.
    pub(super) fn leave(&mut self, idx: GatewayIdx, call: CallKey) {
        let Some(entry) = self.entries.get_mut(idx.0 as usize) else { return };
        entry.calls.remove(&call);
        if entry.calls.is_empty() {
            self.by_id.remove(&entry.id);
            self.entries.remove(idx.0 as usize);
        }
    }

    /// How many calls are indexed, once for each of their gateways.
    pub(super) fn len(&self) -> usize {
        self.entries.iter().map(|(_, e)| e.calls.len()).sum()
    }
}
