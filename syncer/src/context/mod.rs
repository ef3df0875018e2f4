//! What the parts of a syncer that act share: state, catalogue, budget, levers, counters.
//!
//! One [`Context`] per syncer. The engine fills it and answers the API from it; the reconciler,
//! the prober and the digests work on it. It holds no task and starts none.

mod announce;
mod levers;
mod losses;
mod metrics;
mod pace;
mod releases;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rate_limit::{Lever, Levers, Window, WindowLimits};
use sfu_api::{Epoch, OpId, OwnerTerm, Slot, SyncerId};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::health::{Change, Evidence, Freeze, Health, Reason, Rules, Verdict};
use crate::ownership::believed;
use crate::presence::Presence;
use crate::select::{Budget, Catalogue, SFU_WINDOW, Sfu, ZoneChange};
use crate::state::{Cause, News, Release, Round, Shard};

pub use self::announce::{Announcement, Announcer};
pub use self::levers::EngineLevers;
pub(crate) use self::levers::lever_set;
#[cfg(test)]
pub(crate) use self::levers::tests::{Setting, each_lever_changes_what_it_names};
pub use self::losses::{Losses, Passing};
pub use self::metrics::{AttemptEnd, Metrics};
pub use self::pace::Pace;
pub use self::releases::Releases;

/// Shards of call state. More than cores, so that two busy guilds rarely share one; few enough
/// that looking at the head of each costs less than a placement.
pub const SHARDS: usize = 16;

/// Attempts in flight of one syncer. It starts at what 16 SFUs may take and never throttles below
/// 8; 512 attempts of ~4 KiB are nothing, and more in flight only queue at the pool.
const SYNCER_WINDOW: WindowLimits = WindowLimits { floor: 8, start: 64, max: 512 };

/// What this syncer is short of, so that it does less at once. Only what is short here counts: SFUs that do not answer have windows
/// of their own, and must not slow the repair on the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Requests wait long for a dial in our own pool.
    PoolWait,
    /// Loops come late: too little CPU.
    LoopLag,
    /// Memory is short.
    Memory,
}

/// What the parts of one syncer share.
#[derive(Debug)]
pub struct Context {
    /// This syncer.
    pub id: SyncerId,
    /// Call state by slot.
    pub shards: Vec<Mutex<Shard>>,
    /// The SFUs.
    pub catalogue: Catalogue,
    /// How many rooms may be created.
    pub budget: Budget,
    /// Who may come in.
    pub admission: Admission,
    /// The levers this syncer registered.
    pub levers: EngineLevers,
    /// All levers, for the API.
    pub registry: Levers,
    /// Attempts in flight.
    pub window: Window,
    /// How fast placements go.
    pub pace: Pace,
    /// SFUs whose calls are being told that they lost their rooms.
    pub losses: Losses,
    /// Rooms to be ended.
    pub releases: Releases,
    /// Which gateways are there.
    pub presence: Mutex<Presence>,
    /// Takes news to the gateways.
    pub announcer: Arc<dyn Announcer>,
    /// Counters and histograms.
    pub metrics: Metrics,
    /// Something became ready: the reconciler looks again.
    pub wake: Notify,
    /// Times that this syncer came to own slots it did not own before.
    pub gains: AtomicU64,
    /// Slots for which an SFU has seen a higher term than ours; at most as many as there are slots.
    pub fenced: watch::Sender<BTreeMap<Slot, OwnerTerm>>,
    /// Every task of the engine.
    pub tracker: TaskTracker,
    /// Ends every task of the engine.
    pub stop: CancellationToken,
    /// Whether silence proves anything.
    pub freeze: Mutex<Freeze>,
    frozen: AtomicBool,
    /// Peers that could confirm what we see of an SFU.
    pub witnesses: AtomicU32,
    draining: AtomicBool,
    /// The last round of any gateway.
    round: AtomicU64,
    /// Tells this life of the syncer from its others.
    life: u64,
    rng: Mutex<StdRng>,
}

// === impl Context ===

impl Context {
    /// A context without calls or SFUs.
    #[must_use]
    pub fn new(
        id: SyncerId,
        registry: Levers,
        announcer: Arc<dyn Announcer>,
        seed: u64,
        stop: CancellationToken,
        now: Instant,
    ) -> Self {
        let levers = EngineLevers::register(&registry);
        let budget = Budget::new(levers.quotas(), now);
        let admission = Admission::new(levers.admission(1, budget.overall().quota().rate_per_s), now);
        Self {
            id,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            catalogue: Catalogue::default(),
            budget,
            admission,
            releases: Releases::new(levers.releases_max.clone()),
            levers,
            registry,
            window: Window::new(SYNCER_WINDOW),
            pace: Pace::default(),
            losses: Losses::default(),
            presence: Mutex::default(),
            announcer,
            metrics: Metrics::default(),
            wake: Notify::new(),
            gains: AtomicU64::new(0),
            fenced: watch::Sender::default(),
            tracker: TaskTracker::new(),
            stop,
            freeze: Mutex::default(),
            frozen: AtomicBool::new(false),
            witnesses: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            // Elsewhere in each life, so that a round of the last one is not taken for one of this; and
            // below 2^53, so that every JSON reader keeps it exact.
            round: AtomicU64::new(seed >> 12),
            life: seed,
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        }
    }

    /// The shard that holds `slot`.
    #[must_use]
    pub fn shard(&self, slot: Slot) -> &Mutex<Shard> {
        &self.shards[Self::shard_of(slot)]
    }

    /// The number of that shard.
    #[must_use]
    pub fn shard_of(slot: Slot) -> usize {
        usize::from(slot.get()) % SHARDS
    }

    /// Names one operation. Epochs are unique within a shard, and a slot is in one shard; a syncer that
    /// forgot its last life counts from one again, so the life is part of the name.
    #[must_use]
    pub fn op_id(&self, what: &str, slot: Slot, epoch: Epoch, tries: u32) -> OpId {
        let name = format!("{:x}:{what}:{}:{epoch}:{tries}", self.life, slot.get());
        OpId::new(name).expect("at most 16 + 6 + 4 + 60 + 10 characters and colons")
    }

    /// Whether the syncer is draining.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Stops taking new work.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The number of a new round.
    #[must_use]
    pub fn next_round(&self) -> Round {
        Round(self.round.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// This syncer is short of something: it does less at once.
    pub fn press(&self, of: Shortage, now: Instant) {
        self.metrics.pressed(match of {
            Shortage::PoolWait => "pool_wait",
            Shortage::LoopLag => "loop_lag",
            Shortage::Memory => "memory",
        });
        self.window.press(now);
    }

    /// Draws from the syncer's generator.
    pub fn with_rng<R>(&self, f: impl FnOnce(&mut StdRng) -> R) -> R {
        f(&mut self.rng.lock())
    }

    /// Tells the gateways.
    pub fn announce(&self, news: News) {
        self.announcer.announce(&self.to_announcement(news));
    }

    /// News with the SFU's id in place of its number.
    #[must_use]
    pub fn to_announcement(&self, news: News) -> Announcement {
        Announcement {
            place: news.at.and_then(|(idx, room)| Some((self.catalogue.get(idx)?.id.clone(), room))),
            guild: news.guild,
            call: news.call,
            epoch: news.epoch,
            phase: news.phase,
            endpoint: news.endpoint,
            cause: news.cause,
            sessions: news.sessions,
        }
    }

    /// Whether so much of the fleet is silent at once that silence proves nothing: it is probably us.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    /// Looks at the whole fleet: which zones are failing, how much of it is silent, and whether that proves anything.
    pub fn look_at_fleet(&self, now: Instant) {
        let snapshot = self.catalogue.now();
        for change in snapshot.look_at_zones(self.levers.zone_failing_share.get(), now) {
            let ZoneChange { region, zone, failing, bad, all } = change;
            tracing::warn!(%region, %zone, failing, bad, sfus = all, "whether a zone is failing has changed");
        }
        // One that refuses is no matter of opinion.
        let is_silent = |sfu: &&Arc<Sfu>| sfu.verdict() == Verdict::Suspect && !sfu.with_health(Health::is_refusing);
        let silent = snapshot.all.iter().filter(is_silent).count();
        let mut freeze = self.freeze.lock();
        let (share_max, lifted) = (self.levers.freeze_share.get(), self.levers.freeze_lifted.get());
        freeze.look(silent, snapshot.all.len(), share_max, lifted, now);
        let frozen = freeze.is_frozen(now);
        drop(freeze);
        if self.frozen.swap(frozen, Ordering::Relaxed) != frozen {
            let sfus = snapshot.all.len();
            tracing::warn!(frozen, silent, sfus, "whether silence counts as death has changed");
        }
    }

    /// The rules of the verdicts, now.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules { witnesses: self.witnesses.load(Ordering::Relaxed), ..self.levers.rules() }
    }

    /// Takes evidence of an SFU and acts on the change of verdict it leads to: one notice, one
    /// pass over its calls; the reconciler paces the rest.
    pub fn observe(&self, sfu: &Arc<Sfu>, evidence: &Evidence, now: Instant) {
        let Some(change) = sfu.observe(evidence, &self.rules(), now) else { return };
        self.metrics.verdict(change);
        let Change { from, to, reason } = change;
        if to.takes_new() && from == Verdict::Slow || to == Verdict::Slow && from.takes_new() {
            tracing::debug!(sfu = %sfu.id, from = from.name(), to = to.name(), ?reason, "sfu verdict");
        } else {
            tracing::info!(sfu = %sfu.id, from = from.name(), to = to.name(), ?reason, "sfu verdict");
        }
        match to {
            Verdict::Dead => {
                let cause = match reason {
                    Reason::Operator => Cause::Operator,
                    Reason::SuspectTooLong => Cause::SfuSilent,
                    _ => Cause::SfuDead,
                };
                self.lost(sfu, cause, false, now);
            }
            Verdict::Restarted => self.lost(sfu, Cause::SfuRestarted, true, now),
            Verdict::Healthy => self.wake.notify_one(),
            Verdict::Slow | Verdict::Suspect => {}
        }
    }

    /// One notice, whatever the number of calls: the reconciler passes over them, a few at a time (R13).
    fn lost(&self, sfu: &Arc<Sfu>, cause: Cause, in_place: bool, now: Instant) {
        self.metrics.notices.inc();
        sfu.count_loss(); // before the pass: see Attempt::made
        let upto = self.shards.iter().map(|shard| shard.lock().placements()).collect();
        self.losses.push(Passing::new(sfu.idx, cause, in_place, now, upto));
        self.wake.notify_one();
    }

    /// An SFU refused something because it has seen these terms. Ours may have been raised since the request was sent;
    /// then it says nothing new.
    pub fn fenced_by(&self, terms: impl IntoIterator<Item = (Slot, OwnerTerm)>) {
        let newer = |(slot, seen)| {
            let ours = self.shard(slot).lock().term(slot).filter(|ours| *ours < seen)?;
            Some((slot, believed(ours, seen)))
        };
        let news: Vec<_> = terms.into_iter().filter_map(newer).collect();
        self.metrics.fenced.inc();
        self.fenced.send_if_modified(|seen| {
            let mut modified = false;
            for (slot, term) in news {
                if seen.get(&slot).is_none_or(|seen| *seen < term) {
                    seen.insert(slot, term);
                    modified = true;
                }
            }
            modified
        });
    }

    /// Remembers a room to be ended as soon as possible.
    pub fn release(&self, release: Release, now: Instant) {
        self.release_later(release, now);
        self.wake.notify_one();
    }

    /// Remembers a room to be ended, not before then.
    pub fn release_later(&self, release: Release, not_before: Instant) {
        if !self.releases.push(release, 0, not_before) {
            self.metrics.releases_dropped.inc();
        }
    }

    /// Hands the present shares of the limits to every bucket.
    pub fn apply_shares(&self, now: Instant) {
        let share = self.budget.sfu_share();
        for sfu in &self.catalogue.now().all {
            sfu.bucket.set_quota(share, now);
        }
        self.apply_windows();
        self.apply_admission(now);
    }

    /// The slots we own, and our terms.
    #[must_use]
    pub fn terms(&self) -> Vec<(Slot, OwnerTerm)> {
        self.shards.iter().flat_map(|shard| shard.lock().terms()).collect()
    }

    /// Tells the windows how far they may open, by the levers.
    pub fn apply_windows(&self) {
        let max = |lever: &Lever<u64>| u32::try_from(lever.get()).unwrap_or(u32::MAX);
        let window = WindowLimits { max: max(&self.levers.sfu_in_flight_max), ..SFU_WINDOW };
        for sfu in &self.catalogue.now().all {
            sfu.window.set_limits(window);
        }
        self.window.set_limits(WindowLimits { max: max(&self.levers.in_flight_max), ..SYNCER_WINDOW });
    }

    /// Tells admission what levers and membership say now.
    pub fn apply_admission(&self, now: Instant) {
        let pace_per_s = self.budget.overall().quota().rate_per_s;
        self.admission.set(self.levers.admission(self.budget.parts(), pace_per_s), now);
    }
}
