//! What this syncer sees of the SFUs, for its peers, and what they see.

use std::sync::atomic::Ordering;

use sfu_api::SyncerId;
use tokio::time::Instant;

use super::Engine;
use crate::health::{EVIDENCE_TTL, Evidence, EvidenceMessage, GATEWAYS_NAMED_MAX, SfuSight, Sight, Verdict};

impl Engine {
    /// Every SFU of which something is wrong, seen from here, and whether too much of the fleet is silent.
    #[must_use]
    pub fn sights(&self, now: Instant) -> (Vec<SfuSight>, bool) {
        let rules = self.ctx.rules();
        let snapshot = self.ctx.catalogue.now();
        let wrong = snapshot.known().filter(|sfu| sfu.verdict() != Verdict::Healthy);
        let sights = wrong.filter_map(|sfu| {
            let (sight, gateways) = sfu.with_health(|h| {
                let named = h.reporters(now).take(GATEWAYS_NAMED_MAX).cloned().collect::<Vec<_>>();
                (h.sight(&rules), named)
            });
            let is_wrong = sight != Sight::Fine || !gateways.is_empty();
            is_wrong.then(|| SfuSight { sfu: sfu.id.clone(), sight, gateways })
        });
        (sights.collect(), self.ctx.freeze.lock().is_over())
    }

    /// A peer says what it sees; `elsewhere`: from another zone. SFUs that we do not know are passed over.
    pub fn hear(&self, message: EvidenceMessage, elsewhere: bool, now: Instant) {
        let EvidenceMessage { from, over, sfus, .. } = message;
        if elsewhere {
            self.ctx.freeze.lock().hear(&from, over, now + EVIDENCE_TTL);
        }
        let snapshot = self.ctx.catalogue.now();
        for heard in sfus {
            let Some(sfu) = snapshot.named(&heard.sfu) else { continue };
            self.ctx.observe(sfu, &Evidence::Witnessed { by: from.clone(), sight: heard.sight }, now);
            for gateway in heard.gateways.into_iter().take(GATEWAYS_NAMED_MAX) {
                self.ctx.observe(sfu, &Evidence::MediaFailed { gateway, here: false }, now);
            }
        }
    }

    /// So many peers could confirm what we see. With none, our own eyes have to do.
    pub fn set_witnesses(&self, peers: u32) {
        self.ctx.witnesses.store(peers, Ordering::Relaxed);
    }

    /// This syncer.
    #[must_use]
    pub fn id(&self) -> &SyncerId {
        &self.ctx.id
    }
}
