//! The connections of one origin.
//!
//! Newest first out, so that surplus connections fall idle and can be closed; oldest first closed. A list through
//! the connections has exactly those that can take one more request: an idle HTTP/1.1 connection, or an HTTP/2
//! connection with a stream to spare. (As a stack beside them it was one more cache line that every request changes,
//! and had to be searched.)

use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use super::event::CloseReason;
use super::tuning::Tuning;

/// Time-outs in a row after which a shared connection gets no new requests: one can be a slow handler,
/// three without a success between them look like a dead road.
const TIMEOUTS_MAX: u32 = 3;

/// The exchange whose hold time is measured: one in this many. Two looks at the clock cost as much as the
/// rest of a checkout, and a mean needs no more.
const HOLD_SAMPLED_ONE_IN: u32 = 8;

/// Room is given back when less than one part in this many of it is used, so that memory falls after a storm.
const ROOM_KEPT: usize = 4;

/// No connection: a slab of so many would fill 600 GiB.
const END: u32 = u32::MAX;

/// What a request is handed to. Implemented by the HTTP layer and by numbers in tests.
pub(crate) trait Channel: Sized {
    /// Another handle to the same connection, if it is shared (HTTP/2).
    fn share(&self) -> Option<Self>;
    /// Whether the connection can still take a request, as far as is known without asking.
    fn is_open(&self) -> bool;
    /// Whether the peer has been heard of lately, or owes no sign of life. `false` notes that somebody
    /// passed it over; [`super::Event::Heard`] follows when it speaks.
    fn is_lively(&self) -> bool;
    /// Requests that the peer allows at once.
    fn streams_max(&self) -> usize;
}

/// Names one connection for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConnKey {
    index: usize,
    generation: u64,
}

/// What a finished request says about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The lease was never used.
    Unused,
    /// An answer came.
    Answered,
    /// The caller gave up before its deadline.
    Abandoned,
    /// No answer came in time.
    TimedOut,
}

/// A request's hold on a connection.
#[derive(Debug)]
pub(crate) struct Taken<C> {
    pub(crate) key: ConnKey,
    pub(crate) channel: C,
    /// Whether the connection has served others before.
    pub(crate) reused: bool,
    /// The hold time of this one is to be measured.
    pub(crate) sampled: bool,
}

/// What each request changes comes first.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Conns<C> {
    /// The free connection that became so last.
    newest: u32,
    /// Connections not retired.
    usable: usize,
    slab: Slab<Conn<C>>,
    generation: u64,
    returning: usize,
    /// Requests that one connection carries, as last seen.
    carries: usize,
}

/// Two cache lines, and what changes with each request is in the first.
#[derive(Debug)]
#[repr(C, align(64))]
struct Conn<C> {
    generation: u64,
    /// Absent while an exclusive connection is out, or once it is retired.
    channel: Option<C>,
    idle_since: Instant,
    /// Requests so far; wraps.
    served: u32,
    streams: u32,
    /// The neighbours among those that are free. The newest has none that is newer, whatever it says.
    newer: u32,
    older: u32,
    free: bool,
    timeouts: u32,
    shared: bool,
    retired: Option<CloseReason>,
    /// The exchange is over and the connection about to come back.
    returning: bool,
    retire_at: Instant,
    idle_timeout: Duration,
}

// === impl Conns ===

impl<C: Channel> Conns<C> {
    /// No key made after `generation` is one of those before.
    pub(crate) fn new(generation: u64) -> Self {
        Self { newest: END, usable: 0, slab: Slab::new(), generation, returning: 0, carries: 1 }
    }

    /// Open connections, those on their way out included.
    pub(crate) fn live(&self) -> usize {
        self.slab.len()
    }

    /// Connections that may serve again.
    pub(crate) fn usable(&self) -> usize {
        self.usable
    }

    /// Connections without a request.
    pub(crate) fn idle(&self) -> usize {
        self.slab.iter().filter(|(_, conn)| conn.streams == 0 && conn.retired.is_none()).count()
    }

    /// Connections about to come back: each will serve one waiter without a dial.
    pub(crate) fn returning(&self) -> usize {
        self.returning
    }

    /// Requests that one connection carries: 1 until HTTP/2 is known to be spoken. Learnt anew with each
    /// request, because the peer's settings come after the handshake and may change.
    pub(crate) fn carries(&self) -> usize {
        self.carries
    }

    /// Requests on connections.
    pub(crate) fn streams(&self) -> usize {
        self.slab.iter().map(|(_, conn)| conn.streams as usize).sum()
    }

    pub(crate) fn insert(
        &mut self,
        channel: C,
        shared: bool,
        retire_at: Instant,
        now: Instant,
        tuning: &Tuning,
    ) -> ConnKey {
        self.usable += 1;
        self.generation += 1;
        self.carries = if shared { channel.streams_max().min(tuning.streams_max()).max(1) } else { 1 };
        let generation = self.generation;
        let index = self.slab.insert(Conn {
            generation,
            channel: Some(channel),
            shared,
            served: 0,
            streams: 0,
            newer: END,
            older: END,
            free: false,
            timeouts: 0,
            retire_at,
            idle_since: now,
            idle_timeout: tuning.idle_timeout.get(),
            retired: None,
            returning: false,
        });
        self.set_free(index);
        ConnKey { index, generation }
    }

    /// Takes the newest free connection. Channels that turn out to be closed go to `closed`; those of which
    /// nothing has been heard are passed over. Age is the business of [`Conns::give_back`] and the tick, so
    /// that this needs no clock.
    pub(crate) fn take(&mut self, tuning: &Tuning, closed: &mut impl FnMut(C)) -> Option<Taken<C>> {
        let mut at = self.newest as usize;
        while let Some(conn) = self.slab.get(at) {
            let key = ConnKey { index: at, generation: conn.generation };
            at = conn.older as usize;
            let Some(channel) = conn.channel.as_ref() else {
                self.unfree(key);
                continue;
            };
            if !channel.is_open() {
                if let Some(channel) = self.retire(key, CloseReason::Draining) {
                    closed(channel);
                }
            } else if channel.is_lively() {
                if let Some(taken) = self.take_key(key, tuning) {
                    return Some(taken);
                }
                // An HTTP/2 peer lowered its limit below what is in use.
                self.unfree(key);
            }
        }
        None
    }

    /// Takes one given connection, if it is free.
    pub(crate) fn take_key(&mut self, key: ConnKey, tuning: &Tuning) -> Option<Taken<C>> {
        let conn = self.slab.get_mut(key.index).filter(|conn| conn.generation == key.generation)?;
        let reused = conn.served > 0;
        let (channel, full) = if conn.shared {
            let channel = conn.channel.as_ref()?;
            let limit = channel.streams_max().min(tuning.streams_max());
            self.carries = limit.max(1);
            // A peer that allows nothing at the moment still gets one request: hyper queues it.
            let streams = conn.streams as usize;
            if streams >= limit.max(1) {
                return None;
            }
            (channel.share()?, streams + 1 >= limit)
        } else {
            (conn.channel.take()?, true)
        };
        let sampled = conn.served % HOLD_SAMPLED_ONE_IN == 1;
        conn.streams += 1;
        conn.served = conn.served.wrapping_add(1);
        if full {
            self.unfree(key);
        }
        Some(Taken { key, channel, reused, sampled })
    }

    /// A request is done with its connection. An exclusive channel comes back; what must be closed is
    /// handed out.
    pub(crate) fn give_back(&mut self, key: ConnKey, channel: Option<C>, verdict: Verdict, now: Instant) -> Option<C> {
        self.set_returning(key, false);
        let Some(conn) = self.get_mut(key) else { return channel };
        conn.streams = conn.streams.saturating_sub(1);
        match verdict {
            Verdict::Unused => conn.served = conn.served.wrapping_sub(1),
            Verdict::Answered => conn.forgive(),
            Verdict::TimedOut => conn.timeouts += 1,
            Verdict::Abandoned => {}
        }
        if conn.streams == 0 {
            conn.idle_since = now;
        }
        if conn.retired.is_some() {
            return channel;
        }
        if !conn.shared {
            conn.channel = channel;
        }
        let why = match conn.channel.as_ref() {
            // The answer was whole, and the peer did not keep the connection.
            None if verdict == Verdict::Answered => Some(CloseReason::Draining),
            None => Some(CloseReason::Abandoned),
            Some(channel) if !channel.is_open() => Some(CloseReason::Draining),
            Some(_) if conn.timeouts >= TIMEOUTS_MAX => Some(CloseReason::Suspect),
            Some(_) if now >= conn.retire_at => Some(CloseReason::Age),
            Some(_) => None,
        };
        if let Some(why) = why {
            return self.retire(key, why);
        }
        self.set_free(key.index);
        None
    }

    /// As [`Conns::give_back`] of a connection that is well and whose time will be looked at by `armed`:
    /// answered if there is a `now`, unused otherwise. `false` if it is not so simple.
    pub(crate) fn put_back(
        &mut self,
        key: ConnKey,
        channel: &mut Option<C>,
        armed: Instant,
        now: Option<Instant>,
    ) -> bool {
        let Some(conn) = self.slab.get_mut(key.index).filter(|conn| conn.generation == key.generation) else {
            return false;
        };
        let at_hand = if conn.shared { conn.channel.as_ref() } else { channel.as_ref() };
        let well = at_hand.is_some_and(C::is_open) && conn.retired.is_none() && !conn.returning;
        let idle_since = now.unwrap_or(conn.idle_since);
        if !well || armed > idle_since + conn.idle_timeout || now.is_some_and(|now| now >= conn.retire_at) {
            return false;
        }
        conn.streams = conn.streams.saturating_sub(1);
        conn.idle_since = idle_since;
        match now {
            Some(_) => conn.forgive(),
            None => conn.served = conn.served.wrapping_sub(1),
        }
        if !conn.shared {
            conn.channel = channel.take();
        }
        self.set_free(key.index);
        true
    }

    /// A connection that is well goes from one request straight to the next: answered if there is a `now`,
    /// unused otherwise. `None`, and nothing has changed, if it is not so simple.
    pub(crate) fn pass_on(
        &mut self,
        key: ConnKey,
        channel: &mut Option<C>,
        now: Option<Instant>,
        tuning: &Tuning,
    ) -> Option<Taken<C>> {
        let conn = self.slab.get_mut(key.index).filter(|conn| conn.generation == key.generation)?;
        let at_hand = if conn.shared { conn.channel.as_ref() } else { channel.as_ref() };
        let well = at_hand.is_some_and(|channel| channel.is_open() && channel.is_lively());
        if !well || conn.retired.is_some() || conn.returning || now.is_some_and(|now| now >= conn.retire_at) {
            return None;
        }
        let next = if conn.shared {
            let shared = conn.channel.as_ref()?;
            let limit = shared.streams_max().min(tuning.streams_max()).max(1);
            // The peer may have lowered its limit meanwhile, or raised it for more than one.
            if limit != self.carries || conn.streams as usize > limit {
                return None;
            }
            shared.share()?
        } else {
            channel.take()?
        };
        // Who did not use it is replaced by the next one: nothing is to be written.
        let before = if now.is_some() { conn.served } else { conn.served.wrapping_sub(1) };
        let (reused, sampled) = (before > 0, before % HOLD_SAMPLED_ONE_IN == 1);
        if now.is_some() {
            conn.forgive();
            conn.served = conn.served.wrapping_add(1);
        }
        Some(Taken { key, channel: next, reused, sampled })
    }

    /// The exchange on an exclusive connection is over; it comes back as soon as hyper has tidied up.
    pub(crate) fn set_returning(&mut self, key: ConnKey, returning: bool) {
        let Some(conn) = self.get_mut(key) else { return };
        let before = std::mem::replace(&mut conn.returning, returning);
        self.returning = self.returning + usize::from(returning) - usize::from(before);
    }

    /// The server said how long it keeps an idle connection.
    pub(crate) fn set_idle_timeout(&mut self, key: ConnKey, idle_timeout: Duration) {
        if let Some(conn) = self.get_mut(key) {
            conn.idle_timeout = idle_timeout;
        }
    }

    pub(crate) fn idle_timeout(&self, key: ConnKey) -> Option<Duration> {
        self.get(key).map(|conn| conn.idle_timeout)
    }

    /// No new requests on this connection; its channel is handed out to be dropped.
    pub(crate) fn retire(&mut self, key: ConnKey, why: CloseReason) -> Option<C> {
        self.unfree(key);
        self.set_returning(key, false);
        let conn = self.get_mut(key)?;
        let before = conn.retired.replace(why);
        let channel = conn.channel.take();
        if before.is_none() {
            self.usable -= 1;
        }
        channel
    }

    /// The connection is gone; with the reason.
    pub(crate) fn remove(&mut self, key: ConnKey) -> Option<(Option<C>, CloseReason)> {
        self.get(key)?;
        self.unfree(key);
        self.set_returning(key, false);
        let conn = self.slab.remove(key.index);
        if self.slab.len() <= self.slab.capacity() / ROOM_KEPT {
            self.slab.shrink_to_fit();
        }
        self.usable -= usize::from(conn.retired.is_none());
        Some((conn.channel, conn.retired.unwrap_or(CloseReason::Peer)))
    }

    /// Retires idle connections whose time is up; all of them when there is a reason for that.
    pub(crate) fn retire_idle(&mut self, all: Option<CloseReason>, now: Instant, closed: &mut impl FnMut(C)) {
        let due: Vec<_> = self.idle_keys().filter(|(_, expiry)| all.is_some() || now >= *expiry).collect();
        for (key, _) in due {
            let old = self.get(key).is_some_and(|conn| now >= conn.retire_at);
            let why = all.unwrap_or(if old { CloseReason::Age } else { CloseReason::Idle });
            if let Some(channel) = self.retire(key, why) {
                closed(channel);
            }
        }
    }

    /// Retires the connection that has been idle longest.
    pub(crate) fn retire_oldest_idle(&mut self, why: CloseReason) -> Option<C> {
        let (key, _) = self.idle_keys().min_by_key(|(_, expiry)| *expiry)?;
        self.retire(key, why)
    }

    /// Retires this connection if it has no request.
    pub(crate) fn retire_unused(&mut self, key: ConnKey, why: CloseReason) -> Option<C> {
        let unused = self.get(key).is_some_and(|conn| conn.streams == 0 && conn.retired.is_none());
        if unused { self.retire(key, why) } else { None }
    }

    /// When the next idle connection must go.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.idle_keys().map(|(_, expiry)| expiry).min()
    }

    fn idle_keys(&self) -> impl Iterator<Item = (ConnKey, Instant)> {
        self.slab.iter().filter(|(_, conn)| conn.streams == 0 && conn.retired.is_none()).map(|(index, conn)| {
            let expiry = (conn.idle_since + conn.idle_timeout).min(conn.retire_at);
            (ConnKey { index, generation: conn.generation }, expiry)
        })
    }

    fn get(&self, key: ConnKey) -> Option<&Conn<C>> {
        self.slab.get(key.index).filter(|conn| conn.generation == key.generation)
    }

    fn get_mut(&mut self, key: ConnKey) -> Option<&mut Conn<C>> {
        self.slab.get_mut(key.index).filter(|conn| conn.generation == key.generation)
    }

    /// A connection can take one more request, perhaps as before.
    fn set_free(&mut self, index: usize) {
        let Some(conn) = self.slab.get_mut(index).filter(|conn| !conn.free) else { return };
        conn.free = true;
        conn.older = self.newest;
        let at = u32::try_from(index).expect("an origin's connections are far below four billion");
        if let Some(older) = self.slab.get_mut(self.newest as usize) {
            older.newer = at;
        }
        self.newest = at;
    }

    fn unfree(&mut self, key: ConnKey) {
        let Some(conn) = self.get_mut(key).filter(|conn| conn.free) else { return };
        conn.free = false;
        let (newer, older) = (conn.newer, conn.older);
        if self.newest as usize == key.index {
            self.newest = older;
            return;
        }
        if let Some(newer) = self.slab.get_mut(newer as usize) {
            newer.older = older;
        }
        if let Some(older) = self.slab.get_mut(older as usize) {
            older.newer = newer;
        }
    }
}

// === impl Conn ===

impl<C> Conn<C> {
    /// It has answered. (What is not so need not be written.)
    fn forgive(&mut self) {
        if self.timeouts > 0 {
            self.timeouts = 0;
        }
    }
}

// === impl Taken ===

impl<C> Taken<C> {
    /// Its hold time is measured.
    pub(crate) fn sampled(self) -> Self {
        Self { sampled: true, ..self }
    }
}
