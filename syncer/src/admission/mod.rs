//! Who may come in now: what keeps one guild, one crowd or one lost promise from taking the syncer down.
//!
//! ```text
//! join ─▶ blocks, throttle ─▶ per-guild fairness ─▶ class admission ─▶ child bucket ─▶ call state
//!                     └──────────── turned away: why, and a slot to come back in ────────────┘
//! ```
//!
//! - **Fairness** is work-conserving: while the bucket and the queue are at most half used, anybody may take
//!   what is there; beyond, each guild has its share. So one guild alone gets all the rest, and two of them
//!   cannot lock out the small ones.
//! - **Class admission** is [`Gate`]: what the queue, the CPU and the memory say, by class, from the bottom.
//! - **The child bucket** is charged for every call and every stream, whichever guild asks (R8): that is where
//!   the cost is. It is this syncer's share of the fleet's limit (R9). What it has to spare is taken first, and given back
//!   if the class is not admitted.
//!
//! A session that repeats itself is never asked here: it costs nothing new. Leaves and repairs are never
//! turned away. Whoever is, is told when to come back ([`Slots`]).
//!
//! The core is pure; [`Admission`] is the thin shell that holds it and lets joins ask it from any thread.

mod blocks;
mod class;
mod gate;
mod memory;
mod metrics;
mod slots;
mod throttle;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rate_limit::{Bucket, Keyed, Quota};
use sfu_api::GuildId;
use tokio::time::Instant;

pub use self::blocks::{BLOCKS_MAX, Block, Blocks};
pub use self::class::{Class, Denied, Reason};
pub use self::gate::{Gate, Rules, Signals, Waiting};
pub use self::memory::{limit as memory_limit, resident as memory_resident};
pub use self::metrics::{Felt, Sheds};
pub use self::slots::Slots;
pub use self::throttle::Throttle;

/// Guilds whose use is remembered: those that take new calls faster than their share, in a burst. ~400 KiB.
const GUILDS_MAX: usize = 4_096;

/// When whoever is blocked may ask again: operators lift blocks in minutes, and the farthest slot is nearer.
const BLOCKED_FOR: Duration = Duration::from_secs(60);

/// What the levers and the view of the fleet say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// This syncer's share of the limit of new calls and streams.
    pub children: Quota,
    /// Of how many shares.
    pub parts: u32,
    /// Part of that share that one guild may use while others need theirs.
    pub guild_share: f64,
    /// How far the global throttle shall be open, from 0 to 1.
    pub throttle: f64,
    /// Narrowest span over which those who are turned away at one moment come back.
    pub retry_span_min: Duration,
    /// Whether sessions, new calls and streams are blocked.
    pub blocked: [bool; 3],
    /// What the gate goes by.
    pub rules: Rules,
}

/// The door. Functions of its state, `now` and `draw`; it holds no task and waits for nothing.
#[derive(Debug)]
pub struct Admission {
    /// Blocked guilds.
    pub blocks: Blocks,
    /// What was turned away.
    pub sheds: Sheds,
    /// What was felt at the last tick.
    pub felt: Felt,
    inner: RwLock<Inner>,
    children: Bucket,
    guilds: Keyed<GuildId>,
    slots: Mutex<Slots>,
    queue: Queue,
    /// Joins need not ask.
    calm: AtomicBool,
}

/// Calls that want a place: those of the last tick, and those that came in since.
#[derive(Debug, Default)]
struct Queue {
    /// What is neither a new call nor a stream that waits for its turn.
    others: AtomicU64,
    new_calls: AtomicU64,
    streams: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    throttle: Throttle,
    gate: Gate,
}

/// The door as operators see it.
#[derive(Clone, Debug, Default, serde::Serialize, utoipa::ToSchema)]
pub struct AdmissionView {
    /// Calls that are ready or being placed, repairs too.
    pub waiting: u64,
    /// New calls among them that wait for their turn.
    pub waiting_new_calls: u64,
    /// New streams among them that wait for their turn.
    pub waiting_streams: u64,
    /// Calls that may wait at once before new ones are turned away; streams see half of it. While repairs
    /// fill it, new calls and streams may still fill the share of it that is their turn (`placement.turns.new_calls` and
    /// `placement.turns.streams`, of 20): what their turns serve in time.
    pub waiting_max: u64,
    /// Age of the oldest ready work by class, in milliseconds.
    pub queue_age_ms: QueueAgesView,
    /// How late the process's timer was, in milliseconds.
    pub lag_ms: u64,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// The limit of resident memory, in bytes.
    pub memory_bytes_max: u64,
    /// How far the global throttle is open, from 0 to 1.
    pub throttle: f64,
    /// New calls and streams that this syncer admits per second: its share of the fleet's limit.
    pub new_calls_per_s: f64,
    /// Callers that were promised a moment which is still to come.
    pub callers_out: u64,
    /// Guilds that an operator blocked.
    pub guilds_blocked: u64,
    /// What was turned away since the start, by class and reason.
    pub sheds: Vec<ShedView>,
}

/// Age of the oldest ready work by class, in milliseconds.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, utoipa::ToSchema)]
pub struct QueueAgesView {
    /// Live calls that lost their place.
    pub repair: u64,
    /// New calls.
    pub new_call: u64,
    /// New streams.
    pub stream: u64,
}

/// Work that was turned away.
#[derive(Clone, Copy, Debug, serde::Serialize, utoipa::ToSchema)]
pub struct ShedView {
    /// Its class.
    pub class: &'static str,
    /// What turned it away.
    pub reason: &'static str,
    /// How often.
    pub count: u64,
}

// === impl Admission ===

impl Admission {
    /// An open door.
    #[must_use]
    pub fn new(settings: Settings, now: Instant) -> Self {
        let throttle = Throttle::new(settings.throttle, now);
        let children = throttled(settings.children, throttle.open());
        let inner = Inner { settings, throttle, gate: Gate::new(&settings.rules, now) };
        Self {
            blocks: Blocks::default(),
            sheds: Sheds::default(),
            felt: Felt::default(),
            calm: AtomicBool::new(inner.is_calm()),
            inner: RwLock::new(inner),
            children: Bucket::new(children, now),
            guilds: Keyed::new(scaled(children, settings.guild_share), GUILDS_MAX),
            slots: Mutex::new(Slots::new(now)),
            queue: Queue::default(),
        }
    }

    /// Takes over what levers and membership say now.
    pub fn set(&self, settings: Settings, now: Instant) {
        let inner = &mut *self.inner.write();
        // A share that shrinks keeps its debt, on which the newcomer's burst counts (R9). A limit that was cut lets go
        // of it: what came in before is no reason to let nobody in now.
        let shared = settings.parts != inner.settings.parts;
        inner.settings = settings;
        let children = throttled(settings.children, inner.throttle.follow(settings.throttle, now));
        if self.children.quota() != children {
            let set = if shared { Bucket::set_quota } else { Bucket::set_limit };
            set(&self.children, children, now);
        }
        let guild = scaled(children, settings.guild_share);
        if self.guilds.quota() != guild {
            let set = if shared { Keyed::set_quota } else { Keyed::set_limit };
            set(&self.guilds, guild, now);
        }
        self.calm.store(inner.is_calm(), Ordering::Relaxed);
    }

    /// Takes the signals of the time since the last tick.
    pub fn tick(&self, signals: &Signals, now: Instant) {
        let inner = &mut *self.inner.write();
        inner.gate.tick(signals, &inner.settings.rules, now);
        self.queue.set(signals.waiting);
        self.calm.store(inner.is_calm(), Ordering::Relaxed);
    }

    /// Whether a session that joins a call which exists need not ask: nothing presses.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed) && !self.blocks.any()
    }

    /// Whether work of `class` for `guild` may come in now. `draw` is a random number from 0 to 1.
    ///
    /// # Errors
    ///
    /// Why not, and when to come back.
    pub fn admit(
        &self,
        guild: &GuildId,
        class: Class,
        now: Instant,
        mut draw: impl FnMut() -> f64,
    ) -> Result<(), Denied> {
        match self.decide(guild, class, now, &mut draw) {
            Ok(()) => {
                self.queue.add(class);
                Ok(())
            }
            Err((reason, ready_at)) => Err(self.deny(class, reason, ready_at, now, draw())),
        }
    }

    /// Turns work away: counts it and promises a slot not before `ready_at`.
    pub fn deny(&self, class: Class, reason: Reason, ready_at: Instant, now: Instant, draw: f64) -> Denied {
        self.sheds.count(class, reason);
        Denied { class, reason, retry_after: self.slot(ready_at, now, draw) }
    }

    /// A slot for a caller that has to come back, not before `ready_at`.
    #[must_use]
    pub fn slot(&self, ready_at: Instant, now: Instant, draw: f64) -> Duration {
        let rate_per_s = self.children.quota().rate_per_s;
        let span_min = self.inner.read().settings.retry_span_min;
        self.slots.lock().take(ready_at, rate_per_s, span_min, now, draw)
    }

    /// Whether rooms may be compared with an SFU now: the first work to be put off.
    pub fn may_sweep(&self, now: Instant, draw: impl FnOnce() -> f64) -> bool {
        let may = self.inner.read().gate.admit(Class::Sweep, &self.queue.get(), now, draw);
        may.inspect_err(|reason| self.sheds.count(Class::Sweep, *reason)).is_ok()
    }

    /// The door as operators see it.
    #[must_use]
    pub fn view(&self) -> AdmissionView {
        let (memory_bytes, memory_bytes_max) = self.felt.memory();
        let (waiting_max, throttle, waiting) = {
            let inner = self.inner.read();
            (inner.gate.window(), inner.throttle.open(), self.queue.get())
        };
        let Waiting { all, new_calls, streams } = waiting;
        AdmissionView {
            waiting: all,
            waiting_new_calls: new_calls,
            waiting_streams: streams,
            waiting_max,
            queue_age_ms: self.felt.ages_ms(),
            lag_ms: self.felt.lag_ms(),
            memory_bytes,
            memory_bytes_max,
            throttle,
            new_calls_per_s: self.children.quota().rate_per_s,
            callers_out: self.slots.lock().out(),
            guilds_blocked: self.blocks.list().len() as u64,
            sheds: self.sheds.view(),
        }
    }

    fn decide(
        &self,
        guild: &GuildId,
        class: Class,
        now: Instant,
        draw: &mut impl FnMut() -> f64,
    ) -> Result<(), (Reason, Instant)> {
        let Inner { settings, throttle, gate } = &*self.inner.read();
        let open = throttle.open();
        if settings.is_blocked(class) || self.blocks.holds(guild) {
            return Err((Reason::Blocked, now + BLOCKED_FOR));
        }
        // Children that it lets in are counted by the bucket; joins have none.
        if open <= 0.0 || class == Class::Join && open < 1.0 && draw() >= open {
            return Err((Reason::Throttled, now));
        }
        let waiting = self.queue.get();
        let admitted = || gate.admit(class, &waiting, now, draw).map_err(|reason| (reason, now));
        if !class.is_child() {
            return admitted(); // Not even nothing: a bucket that is closed or in debt refuses that too.
        }
        // While so little is used, no guild takes from another.
        if waiting.all * 2 <= gate.window() && self.children.try_take_spare(1, now) {
            return admitted().inspect_err(|_| self.children.give_back(1, now));
        }
        self.guilds.try_take(guild, 1, now).map_err(|not_yet| (Reason::Guild, not_yet.ready_at))?;
        let used_up = if open < 1.0 { Reason::Throttled } else { Reason::Rate };
        let charged = || self.children.try_take(1, now).map_err(|not_yet| (used_up, not_yet.ready_at));
        admitted().and_then(|()| charged()).inspect_err(|_| self.guilds.give_back(guild, 1, now))
    }
}

// === impl Queue ===

impl Queue {
    /// What waits now. A tick changes all of it, so it is asked under the lock that a tick holds.
    fn get(&self) -> Waiting {
        let [others, new_calls, streams] =
            [&self.others, &self.new_calls, &self.streams].map(|n| n.load(Ordering::Relaxed));
        Waiting { all: others + new_calls + streams, new_calls, streams }
    }

    fn set(&self, to: Waiting) {
        let others = to.all.saturating_sub(to.new_calls + to.streams);
        for (n, to) in [(&self.others, others), (&self.new_calls, to.new_calls), (&self.streams, to.streams)] {
            n.store(to, Ordering::Relaxed);
        }
    }

    /// One more of `class` came in. A tick at the same moment may miss it; the next one finds it waiting.
    fn add(&self, class: Class) {
        let line = match class {
            Class::NewCall => &self.new_calls,
            Class::Stream => &self.streams,
            _ => return,
        };
        line.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Inner ===

impl Inner {
    /// Whether no join needs to ask, but for blocked guilds.
    fn is_calm(&self) -> bool {
        self.throttle.open() >= 1.0 && !self.settings.is_blocked(Class::Join) && self.gate.is_open_to_joins()
    }
}

// === impl Settings ===

impl Settings {
    const fn is_blocked(&self, class: Class) -> bool {
        match class {
            Class::Join => self.blocked[0],
            Class::NewCall => self.blocked[1],
            Class::Stream => self.blocked[2],
            Class::Lease | Class::Leave | Class::Repair | Class::Sweep => false,
        }
    }
}

fn throttled(quota: Quota, open: f64) -> Quota {
    if open >= 1.0 { quota } else { scaled(quota, open) }
}

/// A part of a quota; at least one token of burst as long as the part is not nothing.
fn scaled(quota: Quota, part: f64) -> Quota {
    let burst = (f64::from(quota.burst) * part).ceil() as u32; // truncates; at most the quota's own
    Quota::new(quota.rate_per_s * part, burst).unwrap_or(Quota::CLOSED)
}

#[cfg(test)]
mod tests;
