//! Keeps this member's lease, and learns when it was removed.

use sfu_api::SyncerId;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::registry::{LEASE_TTL, Registry, RegistryError};

/// Renewals per lifetime of a lease: two may fail.
const RENEWALS_PER_TTL: u32 = 3;

/// Renews until cancelled (`true`) or until the member was removed from the roster (`false`).
pub(crate) async fn keep_lease(registry: &dyn Registry, me: &SyncerId, cancel: CancellationToken) -> bool {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return true,
            () = sleep(LEASE_TTL / RENEWALS_PER_TTL) => {}
        }
        match registry.renew(me, Instant::now()).await {
            Ok(()) => {}
            Err(RegistryError::NotAMember(_)) => return false,
            Err(error) => tracing::warn!(%error, "lease not renewed"),
        }
    }
}
