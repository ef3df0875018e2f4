//! The connections of one origin.
//!
//! Newest first out, so that surplus connections fall idle and can be closed; oldest first closed. The
//! stack `free` holds exactly the connections that can take one more request: an idle HTTP/1.1
//! connection, or an HTTP/2 connection with a stream to spare.

use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

/// Time-outs in a row after which a shared connection gets no new requests: one can be a slow handler,
/// three without a success between them look like a dead road.
const TIMEOUTS_MAX: u32 = 3;

/// What a request is handed to. Implemented by the HTTP layer and by numbers in tests.
pub(crate) trait Channel: Sized {
    /// Another handle to the same connection, if it is shared (HTTP/2).
    fn share(&self) -> Option<Self>;
    /// Whether the connection can still take a request, as far as is known without asking.
    fn is_open(&self) -> bool;
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
}

#[derive(Debug)]
pub(crate) struct Conns<C> {
    slab: Slab<Conn<C>>,
    free: Vec<ConnKey>,
    generation: u64,
    streams_max: usize,
    idle_timeout: Duration,
    returning: usize,
}

#[derive(Debug)]
struct Conn<C> {
    generation: u64,
    /// Absent while an exclusive connection is out, or once it is retired.
    channel: Option<C>,
    shared: bool,
    streams: usize,
    served: u64,
    timeouts: u32,
    retire_at: Instant,
    idle_since: Instant,
    idle_timeout: Duration,
    retired: bool,
    /// The exchange is over and the connection about to come back.
    returning: bool,
}

// === impl Conns ===

impl<C: Channel> Conns<C> {
    pub(crate) fn new(streams_max: usize, idle_timeout: Duration) -> Self {
        Self { slab: Slab::new(), free: Vec::new(), generation: 0, streams_max, idle_timeout, returning: 0 }
    }

    /// Open connections, those on their way out included.
    pub(crate) fn live(&self) -> usize {
        self.slab.len()
    }

    /// Whether any connection may serve again.
    pub(crate) fn has_usable(&self) -> bool {
        self.slab.iter().any(|(_, conn)| !conn.retired)
    }

    /// Connections without a request.
    pub(crate) fn idle(&self) -> usize {
        self.slab.iter().filter(|(_, conn)| conn.streams == 0 && !conn.retired).count()
    }

    /// Connections about to come back: each will serve one waiter without a dial.
    pub(crate) fn returning(&self) -> usize {
        self.returning
    }

    /// Requests on connections.
    pub(crate) fn streams(&self) -> usize {
        self.slab.iter().map(|(_, conn)| conn.streams).sum()
    }

    pub(crate) fn insert(&mut self, channel: C, shared: bool, retire_at: Instant, now: Instant) -> ConnKey {
        self.generation += 1;
        let generation = self.generation;
        let index = self.slab.insert(Conn {
            generation,
            channel: Some(channel),
            shared,
            streams: 0,
            served: 0,
            timeouts: 0,
            retire_at,
            idle_since: now,
            idle_timeout: self.idle_timeout,
            retired: false,
            returning: false,
        });
        let key = ConnKey { index, generation };
        self.free.push(key);
        key
    }

    /// Takes the newest free connection. Channels that turn out to be closed or too old go to `closed`.
    pub(crate) fn take(&mut self, now: Instant, closed: &mut impl FnMut(C)) -> Option<Taken<C>> {
        while let Some(key) = self.free.last().copied() {
            let Some(conn) = self.get(key) else {
                self.free.pop();
                continue;
            };
            let open = conn.channel.as_ref().is_some_and(C::is_open);
            if !open || now >= conn.retire_at {
                if let Some(channel) = self.retire(key) {
                    closed(channel);
                }
                continue;
            }
            if let Some(taken) = self.take_key(key) {
                return Some(taken);
            }
            // An HTTP/2 peer lowered its limit below what is in use.
            self.free.pop();
        }
        None
    }

    /// Takes one given connection, if it is free.
    pub(crate) fn take_key(&mut self, key: ConnKey) -> Option<Taken<C>> {
        let streams_max = self.streams_max;
        let conn = self.get_mut(key)?;
        let reused = conn.served > 0;
        let (channel, full) = if conn.shared {
            let channel = conn.channel.as_ref()?;
            let limit = channel.streams_max().min(streams_max);
            // A peer that allows nothing at the moment still gets one request: hyper queues it.
            if conn.streams >= limit.max(1) {
                return None;
            }
            let channel = channel.share()?;
            (channel, conn.streams + 1 >= limit)
        } else {
            (conn.channel.take()?, true)
        };
        conn.streams += 1;
        conn.served += 1;
        if full {
            self.unfree(key);
        }
        Some(Taken { key, channel, reused })
    }

    /// A request is done with its connection. An exclusive channel comes back; what must be closed is
    /// handed out.
    pub(crate) fn give_back(&mut self, key: ConnKey, channel: Option<C>, verdict: Verdict, now: Instant) -> Option<C> {
        self.set_returning(key, false);
        let Some(conn) = self.get_mut(key) else { return channel };
        conn.streams = conn.streams.saturating_sub(1);
        match verdict {
            Verdict::Unused => conn.served = conn.served.saturating_sub(1),
            Verdict::Answered => conn.timeouts = 0,
            Verdict::TimedOut => conn.timeouts += 1,
            Verdict::Abandoned => {}
        }
        if conn.streams == 0 {
            conn.idle_since = now;
        }
        if conn.retired {
            return channel;
        }
        if !conn.shared {
            conn.channel = channel;
        }
        let open = conn.channel.as_ref().is_some_and(C::is_open);
        if !open || conn.timeouts >= TIMEOUTS_MAX || now >= conn.retire_at {
            return self.retire(key);
        }
        if !self.free.contains(&key) {
            self.free.push(key);
        }
        None
    }

    /// The exchange on an exclusive connection is over; it comes back as soon as hyper has tidied up.
    pub(crate) fn set_returning(&mut self, key: ConnKey, returning: bool) {
        let Some(conn) = self.get_mut(key) else { return };
        let before = std::mem::replace(&mut conn.returning, returning);
        self.returning = self.returning + usize::from(returning) - usize::from(before);
    }

    /// The server said how long it keeps an idle connection.
    pub(crate) fn set_idle_timeout(&mut self, key: ConnKey, idle_timeout: Duration) {
        let bound = self.idle_timeout;
        if let Some(conn) = self.get_mut(key) {
            conn.idle_timeout = idle_timeout.min(bound);
        }
    }

    /// No new requests on this connection; its channel is handed out to be dropped.
    pub(crate) fn retire(&mut self, key: ConnKey) -> Option<C> {
        self.unfree(key);
        self.set_returning(key, false);
        let conn = self.get_mut(key)?;
        conn.retired = true;
        conn.channel.take()
    }

    /// The connection is gone.
    pub(crate) fn remove(&mut self, key: ConnKey) -> Option<Option<C>> {
        self.get(key)?;
        self.unfree(key);
        self.set_returning(key, false);
        Some(self.slab.remove(key.index).channel)
    }

    /// Retires idle connections whose time is up; all of them when `all` is set.
    pub(crate) fn retire_idle(&mut self, all: bool, now: Instant, closed: &mut impl FnMut(C)) {
        let due: Vec<_> = self.idle_keys().filter(|(_, expiry)| all || now >= *expiry).map(|(key, _)| key).collect();
        for key in due {
            if let Some(channel) = self.retire(key) {
                closed(channel);
            }
        }
    }

    /// Retires the connection that has been idle longest.
    pub(crate) fn retire_oldest_idle(&mut self) -> Option<C> {
        let (key, _) = self.idle_keys().min_by_key(|(_, expiry)| *expiry)?;
        self.retire(key)
    }

    /// When the next idle connection must go.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.idle_keys().map(|(_, expiry)| expiry).min()
    }

    fn idle_keys(&self) -> impl Iterator<Item = (ConnKey, Instant)> {
        self.slab.iter().filter(|(_, conn)| conn.streams == 0 && !conn.retired).map(|(index, conn)| {
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

    fn unfree(&mut self, key: ConnKey) {
        if let Some(at) = self.free.iter().rposition(|free| *free == key) {
            self.free.remove(at);
        }
    }
}
