//! The shell around the plan: follows the registry, claims at a pace, tells the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use sfu_api::{OwnerTerm, Slot, SyncerId};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Held, Plan, Ranking, ReadyCount, SlotSink, View, rank};
use crate::registry::{CLAIM_SLOTS_MAX, LEASE_TTL, Registry, RegistryError, Snapshot};

/// Pause after each transaction: a whole start of 64 transactions takes a third of a second, and
/// fifteen syncers starting at once make no more than 3,000 transactions a second together.
const CLAIM_PAUSE: Duration = Duration::from_millis(5);
/// Pause after a claim that failed, so that a broken registry is asked at a walk.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// Who owns what, and the claims of this syncer.
#[derive(Debug)]
pub struct Ownership {
    me: SyncerId,
    registry: Arc<dyn Registry>,
    view: ArcSwap<View>,
    state: Mutex<State>,
    settled: AtomicBool,
}

#[derive(Debug)]
struct State {
    ranking: Arc<Ranking>,
    held: Held,
    /// Terms that SFUs have seen above ours, by slot.
    fences: Held,
    ready: ReadyCount,
    /// What the sink was told last.
    told: Option<(Vec<(Slot, OwnerTerm)>, u32)>,
}

// === impl Ownership ===

impl Ownership {
    /// Nothing owned yet.
    #[must_use]
    pub fn new(me: SyncerId, registry: Arc<dyn Registry>) -> Arc<Self> {
        let state = State {
            ranking: Arc::default(),
            held: Held::new(),
            fences: Held::new(),
            ready: ReadyCount::new(LEASE_TTL),
            told: None,
        };
        Arc::new(Self {
            me,
            registry,
            view: ArcSwap::default(),
            state: Mutex::new(state),
            settled: AtomicBool::new(false),
        })
    }

    /// This syncer.
    #[must_use]
    pub fn me(&self) -> &SyncerId {
        &self.me
    }

    /// The registry it follows.
    #[must_use]
    pub fn registry(&self) -> &Arc<dyn Registry> {
        &self.registry
    }

    /// Who owns what, now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// As [`Self::view`], for a look: nothing that threads share is written to. Not to be kept.
    #[must_use]
    pub fn look(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// Whether every slot that is ours by rank has been claimed once.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Follows the registry and the SFUs' higher terms until cancelled.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again: the next call reads the registry anew.
    pub async fn run(&self, sink: &dyn SlotSink, mut fences: watch::Receiver<Held>, cancel: CancellationToken) {
        let mut snapshots = self.registry.watch();
        loop {
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            let seen = fences.borrow_and_update().clone();
            let idle = self.step(&snapshot, &seen, sink).await;
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = snapshots.changed() => {}
                _ = fences.changed() => {}
                () = sleep(idle) => {}
            }
        }
    }

    /// One pass: returns how long to wait when nothing changes.
    async fn step(&self, snapshot: &Snapshot, seen: &Held, sink: &dyn SlotSink) -> Duration {
        self.resume_above(seen).await;
        let now = Instant::now();
        let (plan, ready) = {
            let mut state = self.state.lock();
            if !state.ranking.is_of(&snapshot.roster) {
                state.ranking = Arc::new(rank(&snapshot.roster));
            }
            let ready = state.ready.update(snapshot.ready_members(), now);
            self.view.store(Arc::new(View::new(snapshot, &state.ranking, &self.me)));
            (Plan::make(snapshot, &state.ranking, &self.me, &state.held, &state.fences), ready)
        };
        self.tell(&plan.owned, ready, sink, now);
        if plan.claim.is_empty() && plan.release.is_empty() {
            if snapshot.roster.contains_key(&self.me) {
                self.settled.store(true, Ordering::Release);
            }
            return LEASE_TTL / 3;
        }
        match self.apply(&plan).await {
            Ok(()) => CLAIM_PAUSE,
            Err(RegistryError::Conflict { .. }) => CLAIM_PAUSE,
            Err(error) => {
                tracing::warn!(%error, claims = plan.claim.len(), "slots could not be claimed");
                FAILED_PAUSE
            }
        }
    }

    /// Tells the sink what changed, before records are touched: what we let go is served no more.
    fn tell(&self, owned: &[(Slot, OwnerTerm)], ready: u32, sink: &dyn SlotSink, now: Instant) {
        let mut state = self.state.lock();
        let before = state.told.replace((owned.to_vec(), ready));
        drop(state);
        if before.as_ref().is_none_or(|b| b.1 != ready) {
            sink.set_ready_members(ready, now);
        }
        if before.is_none_or(|b| b.0 != owned) {
            sink.set_owned(owned, now);
        }
    }

    async fn apply(&self, plan: &Plan) -> Result<(), RegistryError> {
        if !plan.release.is_empty() {
            self.registry.release(&self.me, &plan.release).await?;
            self.state.lock().held.retain(|slot, _| !plan.release.iter().any(|(s, _)| s == slot));
        }
        for claims in plan.claim.chunks(CLAIM_SLOTS_MAX) {
            let term = self.registry.claim(&self.me, claims).await?;
            self.state.lock().held.extend(claims.iter().map(|c| (c.slot, term)));
            sleep(CLAIM_PAUSE).await;
        }
        tracing::info!(claimed = plan.claim.len(), released = plan.release.len(), "slots changed");
        Ok(())
    }

    /// SFUs have seen these terms: what we claim from now on is above the highest of them.
    async fn resume_above(&self, seen: &Held) {
        if self.state.lock().fences == *seen {
            return;
        }
        let Some(highest) = seen.values().max().copied() else { return };
        match self.registry.resume_above(highest).await {
            Ok(()) => {
                tracing::info!(term = %highest, slots = seen.len(), "SFUs have seen higher terms, claiming again above them");
                self.state.lock().fences.clone_from(seen);
            }
            Err(error) => tracing::error!(%error, term = %highest, "cannot resume above the term an SFU has seen"),
        }
    }
}
