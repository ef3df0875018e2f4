//! The engine: the shell around a syncer's decisions, and all that the API sees of them.
//!
//! [`Engine::start`] runs five loops, the reconciler, the mover, the observer, the expiry and what feels the
//! pressure on admission, under a watchdog each; the rest are plain functions that lock one shard for
//! microseconds.

mod explain;
mod gateways;
mod gauges;
mod pressure;
mod recovery;
mod sfus;
mod sights;
mod types;
mod views;
mod writes;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rate_limit::Levers;
use sfu_api::{CallId, Epoch, GatewayId, GuildId, OwnerTerm, RoomId, SessionId, Slot, SyncerId};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Block;
use crate::config::RegionGroups;
use crate::context::Context;
use crate::drivers::{Credential, CredentialRequest, SfuDriver, SfuSpec, SpecError};
use crate::health::Evidence;
use crate::observe::{Expiry, Observer};
use crate::ownership::slot_of;
use crate::reconcile::{Mover, Reconciler};

pub use self::gateways::GatewayStream;
use self::gauges::Gauges;
use self::pressure::Pressure;
pub use self::recovery::{BlockedCalls, ClassRecovery, Recovery};
pub(crate) use self::sfus::DRAIN_MAX;
pub use self::types::{
    CallAnswer, CallFilter, CallName, CallPage, CallState, CallView, CandidateView, DrainReport, DrainView,
    EngineStatus, Explanation, GatewayCounts, LookView, NewsCursor, Refusal, ReplayView, SfuCounts, SfuView, Unheard,
    ZoneView,
};
pub use self::writes::{What, Write};
pub use crate::context::{Announcement, Announcer, Shortage};
pub use crate::state::{Cause, Join, Leave};

/// Pause before a loop that ended unexpectedly is started again.
const RESTART_AFTER: Duration = Duration::from_millis(200);

/// How often a drain looks whether everything is done.
const QUIET_PERIOD: Duration = Duration::from_millis(20);

/// How blocks of guilds are called in the audit ring of the levers.
const GUILD_BLOCK: &str = "admission.block.guild";

/// Makes the driver of an SFU.
pub type DriverFactory = Arc<dyn Fn(&SfuSpec) -> Result<Arc<dyn SfuDriver>, SpecError> + Send + Sync>;

/// A syncer's engine. Clones share it.
#[derive(Clone)]
pub struct Engine {
    ctx: Arc<Context>,
    drivers: DriverFactory,
}

// === impl Engine ===

impl Engine {
    /// Starts an engine without calls, slots or SFUs. Its loops run until `stop` is cancelled.
    ///
    /// Has to be called within a tokio runtime.
    #[must_use]
    pub fn start(
        id: SyncerId,
        levers: Levers,
        announcer: Arc<dyn Announcer>,
        drivers: DriverFactory,
        seed: u64,
        stop: CancellationToken,
    ) -> Self {
        let now = Instant::now();
        let ctx = Arc::new(Context::new(id, levers, announcer, seed, stop, now));
        let reconciling = ctx.clone();
        watched(&ctx, "reconciler", move || Reconciler::new(reconciling.clone(), Instant::now()).run());
        let moving = ctx.clone();
        watched(&ctx, "mover", move || Mover::new(moving.clone(), Instant::now()).run());
        let observing = ctx.clone();
        watched(&ctx, "observer", move || Observer::new(observing.clone(), Instant::now()).run());
        let expiring = ctx.clone();
        watched(&ctx, "expiry", move || Expiry::new(expiring.clone(), Instant::now()).run());
        let feeling = ctx.clone();
        watched(&ctx, "pressure", move || Pressure::new(feeling.clone()).run());
        Self { ctx, drivers }
    }

    /// A gateway says that media failed in a call for a session of its own, or for any it has there. It counts
    /// against the SFU only while that cannot be reached, and one gateway alone moves nothing.
    ///
    /// # Errors
    ///
    /// The call is not here, or the gateway has no such session in it. Nothing has changed then: who has nobody there
    /// cannot have seen it.
    pub fn report(
        &self,
        guild: &GuildId,
        call: &CallId,
        gateway: &GatewayId,
        session: Option<&SessionId>,
        now: Instant,
    ) -> Result<(), Unheard> {
        let sfu = {
            let shard = self.ctx.shard(slot_of(guild)).lock();
            let key = shard.find(guild, call).ok_or(Unheard::NoCall)?;
            if !shard.has_session(key, gateway, session) {
                return Err(Unheard::NoSession);
            }
            shard.get(key).and_then(|call| call.placement.sfu())
        };
        if let Some(sfu) = sfu.and_then(|idx| self.ctx.catalogue.get(idx)) {
            tracing::debug!(sfu = %sfu.id, %gateway, "media failure reported");
            self.ctx.observe(&sfu, &Evidence::MediaFailed { gateway: gateway.clone(), here: true }, now);
        }
        Ok(())
    }

    /// Takes over the groups of regions: where a call goes when its region has nobody left.
    pub fn set_region_groups(&self, groups: RegionGroups) {
        self.ctx.catalogue.set_groups(groups);
        self.ctx.wake.notify_one();
    }

    /// Takes over the catalogue. SFUs that are gone from it get no new calls and keep the ones they
    /// have; entries that cannot be used are left out and logged (R6).
    pub fn set_catalogue(&self, specs: Vec<SfuSpec>, now: Instant) {
        let result = self.ctx.catalogue.replace(specs, &self.ctx.budget, now, |spec| (self.drivers)(spec));
        for (id, reason) in &result.refused {
            tracing::error!(sfu = %id, %reason, "catalogue entry left out");
        }
        if result.added + result.removed > 0 {
            let sfus = self.ctx.catalogue.now().all.len();
            tracing::info!(sfus, added = result.added, removed = result.removed, "catalogue changed");
        }
        let snapshot = self.ctx.catalogue.now();
        for sfu in snapshot.known() {
            self.ctx.observe(sfu, &Evidence::Listed(snapshot.lists(sfu)), now);
        }
        self.ctx.apply_shares(now);
        self.ctx.wake.notify_one();
    }

    /// Takes over the slots this syncer may serve, with its term for each. Calls of other slots
    /// are forgotten here; their rooms and media stay.
    pub fn set_owned(&self, owned: &[(Slot, OwnerTerm)], _now: Instant) {
        let mut forgotten = 0;
        if owned.iter().any(|(slot, _)| !self.ctx.shard(*slot).lock().owns(*slot)) {
            self.ctx.gains.fetch_add(1, Ordering::Relaxed);
        }
        for (n, shard) in self.ctx.shards.iter().enumerate() {
            let its = owned.iter().copied().filter(|(slot, _)| Context::shard_of(*slot) == n).collect();
            forgotten += shard.lock().set_terms(its);
        }
        tracing::info!(slots = owned.len(), forgotten, "slots owned");
        self.ctx.wake.notify_one();
    }

    /// There are `ready` syncers: the shares of the limits follow.
    pub fn set_ready_members(&self, ready: u32, now: Instant) {
        if self.ctx.budget.set_ready(ready, now) {
            self.ctx.apply_shares(now);
        }
    }

    /// Slots for which an SFU has seen a higher term than ours, and that term: ownership resumes
    /// above it.
    #[must_use]
    pub fn fences(&self) -> watch::Receiver<BTreeMap<Slot, OwnerTerm>> {
        self.ctx.fenced.subscribe()
    }

    /// The credential of `session` for an announced endpoint.
    #[must_use]
    pub fn credential(&self, announcement: &Announcement, session: &SessionId) -> Option<Credential> {
        let (sfu, room) = announcement.place.as_ref()?;
        let snapshot = self.ctx.catalogue.now();
        token(&*snapshot.by_id.get(sfu)?.driver(), session, room, announcement.epoch)
    }

    /// This syncer is short of something: fewer attempts are under way at once until it is not.
    pub fn press(&self, of: Shortage, now: Instant) {
        self.ctx.press(of, now);
    }

    /// The levers.
    #[must_use]
    pub fn levers(&self) -> &Levers {
        &self.ctx.registry
    }

    /// Names the engine's metrics in `registry`.
    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        self.ctx.metrics.register(registry);
        registry.register_collector(Box::new(Gauges::new(&self.ctx)));
        self.ctx.admission.sheds.register(registry);
        self.ctx.admission.felt.register(registry);
    }

    /// Turns away new sessions, calls and streams of a guild on an operator's word; what is live stays.
    /// `false`: too many guilds are blocked.
    ///
    /// The block is this syncer's and goes with it: whoever takes the guild over does not know it.
    #[must_use]
    pub fn block(&self, block: Block) -> bool {
        let note = serde_json::json!({ "guild": &block.guild, "blocked": true });
        let (by, why, at) = (block.by.clone(), block.reason.clone(), block.at);
        let added = self.ctx.admission.blocks.add(block);
        if added {
            self.ctx.registry.note(GUILD_BLOCK, note, &by, why.as_deref(), at);
        }
        added
    }

    /// Lifts the block of a guild. `false`: there was none.
    #[must_use]
    pub fn unblock(&self, guild: &GuildId, by: &str, why: Option<&str>, at_unix_ms: u64) -> bool {
        let removed = self.ctx.admission.blocks.remove(guild);
        if removed {
            let note = serde_json::json!({ "guild": guild, "blocked": false });
            self.ctx.registry.note(GUILD_BLOCK, note, by, why, at_unix_ms);
        }
        removed
    }

    /// The guilds that operators blocked.
    #[must_use]
    pub fn blocks(&self) -> Vec<Block> {
        self.ctx.admission.blocks.list()
    }

    /// Takes no new calls, finishes what is begun (attempts, releases, calls that await an endpoint)
    /// until `deadline`, then ends the loops.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the engine draining.
    pub async fn drain(&self, deadline: Instant) -> DrainReport {
        self.ctx.start_draining();
        while !self.is_quiet() && Instant::now() < deadline && !self.ctx.stop.is_cancelled() {
            tokio::time::sleep(QUIET_PERIOD.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
        self.ctx.stop.cancel();
        self.ctx.tracker.close();
        // Attempts end by their own time-out, so this ends at the latest then.
        let timely = tokio::time::timeout_at(deadline, self.ctx.tracker.wait()).await.is_ok();
        DrainReport {
            releases_left: self.ctx.releases.len() as u64,
            attempts_left: if timely { 0 } else { self.ctx.tracker.len() as u64 },
        }
    }

    fn is_quiet(&self) -> bool {
        let awaiting: u64 = self.ctx.shards.iter().map(|s| s.lock().counts().awaiting).sum();
        // Releases that wait for an SFU in doubt are left to whoever compares rooms with it next.
        let releasing = self.ctx.releases.next_at().is_some_and(|at| at <= Instant::now() + QUIET_PERIOD);
        awaiting == 0 && self.ctx.losses.is_empty() && self.ctx.window.in_flight() == 0 && !releasing
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("id", &self.ctx.id).finish_non_exhaustive()
    }
}

fn token(driver: &dyn SfuDriver, session: &SessionId, room: &RoomId, epoch: Epoch) -> Option<Credential> {
    match driver.credential(&CredentialRequest { session, room, epoch }) {
        Ok(credential) => Some(credential),
        Err(error) => {
            tracing::error!(%error, "no credential could be made");
            None
        }
    }
}

/// Keeps a loop running: one that panics or returns early is logged, counted and started again.
fn watched<F>(ctx: &Arc<Context>, name: &'static str, make: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let owner = ctx.clone();
    ctx.tracker.spawn(async move {
        loop {
            let ended = owner.tracker.spawn(make()).await;
            if owner.stop.is_cancelled() {
                return;
            }
            match ended {
                Ok(()) => tracing::error!(task = name, "task ended unexpectedly; starting it again"),
                Err(error) => tracing::error!(task = name, %error, "task failed; starting it again"),
            }
            owner.metrics.restarts.inc();
            tokio::time::sleep(RESTART_AFTER).await;
        }
    });
}
