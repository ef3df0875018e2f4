//! Pools, cut down to taking a connection and giving it back.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use hyper_util::client::legacy::pool::{self as legacy, Poolable, Reservation, Ver};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use pingora_pool::{ConnectionMeta, ConnectionPool};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

/// A pool that hands out connections.
pub(crate) trait Contestant: Clone + Send + Sync + 'static {
    /// A connection in use; dropped, it is given back.
    type Held: Send;

    /// Takes one, waiting if there is none.
    fn checkout(&self) -> impl Future<Output = Self::Held> + Send;
}

/// What the other pools pool: nothing, so that only the pool is measured.
#[derive(Debug)]
pub(crate) struct Nothing;

// --- deadpool ---

#[derive(Debug)]
pub(crate) struct Manager;

impl deadpool::managed::Manager for Manager {
    type Type = Nothing;
    type Error = Infallible;

    async fn create(&self) -> Result<Nothing, Infallible> {
        Ok(Nothing)
    }

    async fn recycle(
        &self,
        _: &mut Nothing,
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Infallible> {
        Ok(())
    }
}

#[derive(Clone)]
pub(crate) struct Deadpool(deadpool::managed::Pool<Manager>);

impl Deadpool {
    pub(crate) fn new(conns: usize) -> Result<Self> {
        Ok(Self(deadpool::managed::Pool::builder(Manager).max_size(conns).build()?))
    }
}

impl Contestant for Deadpool {
    type Held = deadpool::managed::Object<Manager>;

    async fn checkout(&self) -> Self::Held {
        self.0.get().await.unwrap_or_else(|_| unreachable!("making nothing does not fail"))
    }
}

// --- bb8 ---

impl bb8::ManageConnection for Manager {
    type Connection = Nothing;
    type Error = Infallible;

    async fn connect(&self) -> Result<Nothing, Infallible> {
        Ok(Nothing)
    }

    async fn is_valid(&self, _: &mut Nothing) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut Nothing) -> bool {
        false
    }
}

#[derive(Clone)]
pub(crate) struct Bb8(bb8::Pool<Manager>);

impl Bb8 {
    pub(crate) async fn new(conns: usize) -> Result<Self> {
        let builder = bb8::Pool::builder().max_size(u32::try_from(conns)?);
        // As in deadpool, nothing is pinged at checkout, and nobody waits less than a minute.
        let builder = builder.test_on_check_out(false).connection_timeout(Duration::from_mins(1));
        builder.build(Manager).await.map(Self).map_err(|error| anyhow!("{error:?}"))
    }
}

impl Contestant for Bb8 {
    type Held = bb8::PooledConnection<'static, Manager>;

    async fn checkout(&self) -> Self::Held {
        self.0.get_owned().await.unwrap_or_else(|_| unreachable!("making nothing does not fail"))
    }
}

// --- hyper-util legacy ---

impl Poolable for Nothing {
    fn is_open(&self) -> bool {
        true
    }

    fn reserve(self) -> Reservation<Self> {
        Reservation::Unique(self)
    }

    fn can_share(&self) -> bool {
        false
    }
}

/// Keyed as the client keys it.
type Key = (http::uri::Scheme, http::uri::Authority);

#[derive(Clone)]
pub(crate) struct HyperUtil {
    pool: legacy::Pool<Nothing, Key>,
    key: Key,
}

impl HyperUtil {
    pub(crate) fn new(conns: usize) -> Self {
        let config = legacy::Config { idle_timeout: Some(Duration::from_mins(10)), max_idle_per_host: usize::MAX };
        let pool = legacy::Pool::new(config, TokioExecutor::new(), Some(TokioTimer::new()));
        let key = (http::uri::Scheme::HTTPS, http::uri::Authority::from_static("127.0.0.1:7443"));
        let fill = |_| pool.connecting(&key, Ver::Auto).map(|connecting| pool.pooled(connecting, Nothing));
        let filled: Vec<_> = (0..conns).map(fill).collect();
        drop(filled);
        Self { pool, key }
    }
}

impl Contestant for HyperUtil {
    type Held = legacy::Pooled<Nothing, Key>;

    async fn checkout(&self) -> Self::Held {
        loop {
            // A checkout ends without a connection when it met a closed one; there are none.
            if let Ok(held) = self.pool.checkout(self.key.clone()).await {
                return held;
            }
        }
    }
}

// --- pingora-pool: no waiters, so it runs only where nobody has to wait ---

#[derive(Clone)]
pub(crate) struct Pingora(Arc<ConnectionPool<usize>>);

pub(crate) struct PingoraHeld {
    pool: Arc<ConnectionPool<usize>>,
    id: usize,
}

const GROUP: u64 = 7;

impl Pingora {
    pub(crate) fn new(conns: usize) -> Self {
        let pool = Arc::new(ConnectionPool::new(conns.max(16)));
        (0..conns).for_each(|id| drop(pool.put(&meta(id), id)));
        Self(pool)
    }
}

fn meta(id: usize) -> ConnectionMeta {
    ConnectionMeta::new(GROUP, i32::try_from(id).unwrap_or(i32::MAX))
}

impl Contestant for Pingora {
    type Held = PingoraHeld;

    async fn checkout(&self) -> PingoraHeld {
        loop {
            if let Some(id) = self.0.get(&GROUP) {
                return PingoraHeld { pool: Arc::clone(&self.0), id };
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for PingoraHeld {
    fn drop(&mut self) {
        drop(self.pool.put(&meta(self.id), self.id));
    }
}

// --- an actor: one task owns the idle list ---

enum Message {
    Take(oneshot::Sender<Nothing>),
    Give(Nothing),
}

#[derive(Clone)]
pub(crate) struct Actor(mpsc::Sender<Message>);

pub(crate) struct ActorHeld {
    mailbox: mpsc::Sender<Message>,
    connection: Option<Nothing>,
}

/// Room for one message of every task of the largest scenario, twice: giving back never waits.
const MAILBOX: usize = 32_768;

impl Actor {
    pub(crate) fn new(conns: usize, tasks: &TaskTracker) -> Self {
        let (mailbox, mut inbox) = mpsc::channel(MAILBOX);
        tasks.spawn(async move {
            let mut idle: Vec<Nothing> = (0..conns).map(|_| Nothing).collect();
            let mut line = std::collections::VecDeque::new();
            while let Some(message) = inbox.recv().await {
                match message {
                    Message::Give(connection) => idle.push(connection),
                    Message::Take(reply) => line.push_back(reply),
                }
                while let Some(connection) = idle.pop() {
                    let Some(reply) = line.pop_front() else {
                        idle.push(connection);
                        break;
                    };
                    let reply: oneshot::Sender<Nothing> = reply;
                    idle.extend(reply.send(connection).err());
                }
            }
        });
        Self(mailbox)
    }
}

impl Contestant for Actor {
    type Held = ActorHeld;

    async fn checkout(&self) -> ActorHeld {
        let (reply, answer) = oneshot::channel();
        // The actor lives as long as a sender does.
        let _sent = self.0.send(Message::Take(reply)).await;
        ActorHeld { mailbox: self.0.clone(), connection: answer.await.ok() }
    }
}

impl Drop for ActorHeld {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _sent = self.mailbox.try_send(Message::Give(connection));
        }
    }
}
