//! Joins and leaves: one, or many that arrived together.
//!
//! Every lock of a shard fetches what the shard changes from the core that changed it last, which costs more
//! than a join by itself. So writes that came together and are of one shard are taken under one lock, and what
//! they will read is asked of memory at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use sfu_api::{Epoch, GuildId, RoomId, SessionId, Slot};
use tokio::time::Instant;

use super::{CallAnswer, Engine, Refusal, token};
use crate::admission::{Class, Reason};
use crate::context::{Context, SHARDS};
use crate::ownership::slot_of;
use crate::state::{About, Adds, Call, Join, Leave, Left, Limits, Named, Row, SeqCheck, SfuIdx, Shard};

/// When a caller of a syncer that drains comes back: by then another owns the guild.
const DRAINED_AFTER: Duration = Duration::from_secs(2);

/// When a caller that met a size limit comes back: calls and guilds do not empty within seconds.
const FULL_FOR: Duration = Duration::from_secs(10);

/// A write, and where its guild is.
#[derive(Clone, Debug)]
pub struct Write {
    slot: Slot,
    what: What,
}

/// What a session does.
#[derive(Clone, Debug)]
pub enum What {
    /// It joins a call, or tells again that it is there.
    Join {
        /// Who, and which call.
        join: Join,
        /// Whether the answer shall carry a credential: who only tells again has one.
        credential: bool,
    },
    /// It leaves a call.
    Leave(Leave),
}

/// What came of a write that was taken.
#[derive(Debug, Default)]
struct Taken {
    /// What there is to say of the call; nothing as long as it awaits its first endpoint, nor after a leave.
    /// Boxed, because in a storm most have none.
    told: Option<Box<Told>>,
    /// The write was late or repeated.
    ignored: bool,
    /// The reconciler has something to do.
    marked: bool,
}

/// What gateways were told of a call.
#[derive(Debug)]
struct Told {
    epoch: Epoch,
    phase: u8,
    endpoint: Option<Arc<str>>,
    /// What a credential is made from, if one is wanted.
    seat: Option<(SfuIdx, RoomId)>,
}

/// Those of the writes that came together which are of one shard.
struct Group {
    shard: usize,
    /// Their places among all, in their order.
    at: Row<usize>,
}

/// What the writes of one moment have in common.
struct Door<'a> {
    ctx: &'a Context,
    limits: Limits,
    now: Instant,
}

// === impl Engine ===

impl Engine {
    /// Takes a join. The call is created if need be, and placed soon; the answer says where it is
    /// now, which for a new call is nowhere yet.
    ///
    /// # Errors
    ///
    /// When another syncer owns the guild, a limit is reached, or the syncer is draining.
    pub fn join(&self, join: &Join, now: Instant) -> Result<CallAnswer, Refusal> {
        let (door, slot) = (Door::new(&self.ctx, now), slot_of(&join.guild));
        let taken = {
            let mut shard = self.ctx.shard(slot).lock();
            let named = shard.named(slot, &join.guild);
            door.join(&mut shard, named, join, true)
        };
        if taken.as_ref().is_ok_and(|taken| taken.marked) {
            self.ctx.wake.notify_one();
        }
        self.answer(taken, Some(&join.session))
    }

    /// Takes a leave. Returns whether the session was in the call.
    ///
    /// # Errors
    ///
    /// When another syncer owns the guild.
    pub fn leave(&self, leave: &Leave, now: Instant) -> Result<bool, Refusal> {
        let (door, slot) = (Door::new(&self.ctx, now), slot_of(&leave.guild));
        let left = {
            let mut shard = self.ctx.shard(slot).lock();
            let named = shard.named(slot, &leave.guild);
            door.leave(&mut shard, named, leave)?
        };
        Ok(left == Left::Removed)
    }

    /// Takes writes that came together, those about one guild in their order; says in the same order what
    /// came of each, as [`Self::join`] and [`Self::leave`] would. All are taken before it returns; credentials are
    /// made as the answers are asked for. A shard is locked for all of its writes at once, about a microsecond for
    /// each of them.
    pub fn write<'a>(
        &'a self,
        writes: &'a [Write],
        now: Instant,
    ) -> impl Iterator<Item = Result<CallAnswer, Refusal>> + use<'a> {
        let ctx = &self.ctx;
        let door = Door::new(ctx, now);
        let mut taken: Vec<Result<Taken, Refusal>> = writes.iter().map(|_| Ok(Taken::default())).collect();
        let mut groups = groups(writes);
        let (mut marked, mut busy) = (false, 0);
        while let Some(group) = groups.pop_front() {
            let shard = &ctx.shards[group.shard];
            // Whoever holds a shard is soon done; meanwhile the others are.
            let locked = if busy > groups.len() { Some(shard.lock()) } else { shard.try_lock() };
            let Some(mut shard) = locked else {
                busy += 1;
                groups.push_back(group);
                continue;
            };
            busy = 0;
            let named = shard.warm(group.at.iter().map(|at| writes[*at].about()));
            for (at, named) in group.at.into_iter().zip(named) {
                let result = door.take(&mut shard, named, &writes[at].what);
                marked |= result.as_ref().is_ok_and(|taken| taken.marked);
                taken[at] = result;
            }
        }
        if marked {
            ctx.wake.notify_one();
        }
        taken.into_iter().zip(writes).map(|(taken, write)| self.answer(taken, write.wants_credential()))
    }

    /// The answer, with a credential for that session.
    fn answer(&self, taken: Result<Taken, Refusal>, to: Option<&SessionId>) -> Result<CallAnswer, Refusal> {
        let Taken { told, ignored, .. } = taken.inspect_err(|refusal| {
            if *refusal != Refusal::NotOwner {
                self.ctx.metrics.shed.inc();
            }
        })?;
        let Some(told) = told else { return Ok(CallAnswer { ignored, ..CallAnswer::default() }) };
        let Told { epoch, phase, endpoint, seat } = *told;
        let token = seat.zip(to).and_then(|((idx, room), session)| {
            self.ctx.catalogue.get(idx).and_then(|sfu| token(&*sfu.driver(), session, &room, epoch))
        });
        Ok(CallAnswer { epoch: Some(epoch), phase: Some(phase), endpoint, token, ignored })
    }
}

// === impl Write ===

impl Write {
    /// A write about a guild of `slot`: whoever has asked who owns the guild knows it.
    #[must_use]
    pub const fn new(slot: Slot, what: What) -> Self {
        Self { slot, what }
    }

    /// What the session does.
    #[must_use]
    pub const fn what(&self) -> &What {
        &self.what
    }

    fn about(&self) -> About<'_> {
        let slot = self.slot;
        match &self.what {
            What::Join { join: Join { guild, call, session, gateway, .. }, .. }
            | What::Leave(Leave { guild, call, session, gateway, .. }) => About { slot, guild, call, session, gateway },
        }
    }

    fn wants_credential(&self) -> Option<&SessionId> {
        match &self.what {
            What::Join { join, credential: true } => Some(&join.session),
            What::Join { .. } | What::Leave(_) => None,
        }
    }
}

/// The writes by shard. Whose first came first goes first: where little is left to be had, no shard's guilds get
/// it more often.
fn groups(writes: &[Write]) -> VecDeque<Group> {
    let mut groups = VecDeque::with_capacity(SHARDS);
    let mut of_shard = [None; SHARDS];
    for (at, write) in writes.iter().enumerate() {
        debug_assert_eq!(write.slot, slot_of(write.about().guild), "of another slot");
        let shard = Context::shard_of(write.slot);
        let group: usize = *of_shard[shard].get_or_insert_with(|| {
            groups.push_back(Group { shard, at: Row::new() });
            groups.len() - 1
        });
        groups[group].at.push(at);
    }
    groups
}

// === impl Door ===

impl<'a> Door<'a> {
    fn new(ctx: &'a Context, now: Instant) -> Self {
        let limits = Limits { admit_sessions: !ctx.admission.is_calm(), ..ctx.levers.limits() };
        Self { ctx, limits, now }
    }

    fn take(&self, shard: &mut Shard, named: Named, what: &What) -> Result<Taken, Refusal> {
        match what {
            What::Join { join, credential } => self.join(shard, named, join, *credential),
            What::Leave(leave) => self.leave(shard, named, leave).map(|_| Taken::default()),
        }
    }

    fn join(&self, shard: &mut Shard, named: Named, join: &Join, credential: bool) -> Result<Taken, Refusal> {
        if !shard.owns(named.slot()) {
            return Err(Refusal::NotOwner);
        }
        let admit = |guild: &GuildId, adds| self.admit(guild, adds);
        let too_many = |what, limit| self.too_many(join.kind.into(), what, limit);
        let joined = shard.join(named, join, &self.limits, self.now, admit, too_many)?;
        let told = joined.key.and_then(|key| told(shard.get(key)?, credential)).map(Box::new);
        Ok(Taken { told, ignored: joined.seq == SeqCheck::Old, marked: joined.marked })
    }

    fn leave(&self, shard: &mut Shard, named: Named, leave: &Leave) -> Result<Left, Refusal> {
        if !shard.owns(named.slot()) {
            return Err(Refusal::NotOwner);
        }
        Ok(shard.leave(named, leave, &self.limits, self.now))
    }

    fn admit(&self, guild: &GuildId, adds: Adds) -> Result<(), Refusal> {
        let (ctx, now) = (self.ctx, self.now);
        let class = match adds {
            Adds::Session => Class::Join,
            Adds::Call(_) | Adds::Found if ctx.is_draining() => {
                return Err(Refusal::Draining {
                    retry_after: ctx.admission.slot(now + DRAINED_AFTER, now, self.draw()),
                });
            }
            Adds::Found if !self.limits.admit_sessions => return Ok(()),
            Adds::Found => Class::Join,
            Adds::Call(kind) => kind.into(),
        };
        ctx.admission.admit(guild, class, now, || self.draw()).map_err(Refusal::Limited)
    }

    fn too_many(&self, class: Class, what: &'static str, limit: u64) -> Refusal {
        let denied = self.ctx.admission.deny(class, Reason::Size, self.now + FULL_FOR, self.now, self.draw());
        Refusal::TooMany { what, limit, retry_after: denied.retry_after }
    }

    /// From 0 to 1.
    fn draw(&self) -> f64 {
        self.ctx.with_rng(|rng| rng.random())
    }
}

/// What gateways were told last of this call; with what a credential is made from, if one is wanted.
fn told(call: &Call, credential: bool) -> Option<Told> {
    let (epoch, phase) = call.placement.announced()?;
    let seated = call.placement.seated();
    Some(Told {
        epoch,
        phase,
        endpoint: seated.map(|(.., seat)| seat.endpoint(&call.guild, &call.id)),
        seat: seated.filter(|_| credential).map(|(sfu, _, seat)| (sfu, seat.room(&call.guild, &call.id))),
    })
}
