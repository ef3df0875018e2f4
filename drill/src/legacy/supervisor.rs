//! One task, one mailbox, every connection.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Result, anyhow};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::scan::ScanCost;

/// Something that can be used again, or not.
pub trait Connection: Send + 'static {
    /// Whether the next request may use it.
    fn is_open(&self) -> bool;
}

/// A handle to the supervisor. When the last one goes, so does it.
pub struct Supervisor<K, C: Connection> {
    mailbox: mpsc::UnboundedSender<Message<K, C>>,
    gauges: Arc<Gauges>,
}

/// A connection in use. Dropped, it is lost; see [`Checked::give_back`].
pub struct Checked<K, C: Connection> {
    key: K,
    /// The connection.
    pub connection: C,
    mailbox: mpsc::UnboundedSender<Message<K, C>>,
}

#[derive(Debug, Default)]
struct Gauges {
    starts: AtomicU64,
    scan_ns: AtomicU64,
    queued_max: AtomicUsize,
}

enum Message<K, C> {
    Checkout { key: K, reply: oneshot::Sender<Result<C>> },
    Return { key: K, connection: C },
}

type Connecting<C> = Pin<Box<dyn Future<Output = Result<C>> + Send>>;

type Connect<K, C> = Box<dyn Fn(&K) -> Connecting<C> + Send>;

// === impl Supervisor ===

impl<K, C> Supervisor<K, C>
where
    K: Clone + Eq + Hash + Send + 'static,
    C: Connection,
{
    /// Starts the supervisor on `tasks`; `connect` makes a connection in a task of its own.
    pub fn start<F>(tasks: &TaskTracker, cost: ScanCost, connect: impl Fn(&K) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<C>> + Send + 'static,
    {
        #[expect(clippy::disallowed_methods, reason = "the mailbox without a bound is what is being modelled")]
        let (mailbox, inbox) = mpsc::unbounded_channel();
        let gauges = Arc::new(Gauges::default());
        let connect = move |key: &K| -> Connecting<C> { Box::pin(connect(key)) };
        tasks.spawn(run(inbox, Box::new(connect), cost, Arc::clone(&gauges), tasks.clone()));
        Self { mailbox, gauges }
    }

    /// Asks for a connection and waits for it, however long that takes.
    ///
    /// # Errors
    ///
    /// When connecting fails.
    ///
    /// # Cancel safety
    ///
    /// The supervisor does not notice: it starts the connection all the same, which is then lost.
    pub async fn checkout(&self, key: K) -> Result<Checked<K, C>> {
        let (reply, answer) = oneshot::channel();
        self.mailbox
            .send(Message::Checkout { key: key.clone(), reply })
            .map_err(|_| anyhow!("the supervisor is gone"))?;
        let connection = answer.await.map_err(|_| anyhow!("the supervisor is gone"))??;
        Ok(Checked { key, connection, mailbox: self.mailbox.clone() })
    }

    /// Connections started so far.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.gauges.starts.load(Ordering::Relaxed)
    }

    /// Microseconds spent so far on searching the mailbox.
    #[must_use]
    pub fn scan_us(&self) -> u64 {
        self.gauges.scan_ns.load(Ordering::Relaxed) / 1_000
    }

    /// The longest the mailbox has been.
    #[must_use]
    pub fn queued_max(&self) -> usize {
        self.gauges.queued_max.load(Ordering::Relaxed)
    }
}

impl<K, C: Connection> Clone for Supervisor<K, C> {
    fn clone(&self) -> Self {
        Self { mailbox: self.mailbox.clone(), gauges: Arc::clone(&self.gauges) }
    }
}

impl<K, C: Connection> fmt::Debug for Supervisor<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("gauges", &self.gauges).finish_non_exhaustive()
    }
}

// === impl Checked ===

impl<K, C: Connection> Checked<K, C> {
    /// Returns the connection for the next one who asks: one more message in the mailbox.
    pub fn give_back(self) {
        let Self { key, connection, mailbox } = self;
        // The supervisor may be gone; so is the connection then.
        let _gone = mailbox.send(Message::Return { key, connection });
    }
}

impl<K: fmt::Debug, C: Connection> fmt::Debug for Checked<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checked").field("key", &self.key).finish_non_exhaustive()
    }
}

async fn run<K, C>(
    mut inbox: mpsc::UnboundedReceiver<Message<K, C>>,
    connect: Connect<K, C>,
    cost: ScanCost,
    gauges: Arc<Gauges>,
    tasks: TaskTracker,
) where
    K: Clone + Eq + Hash + Send + 'static,
    C: Connection,
{
    let mut idle: HashMap<K, Vec<C>> = HashMap::new();
    while let Some(message) = inbox.recv().await {
        match message {
            Message::Return { key, connection } => idle.entry(key).or_default().push(connection),
            Message::Checkout { key, reply } => {
                let list = idle.entry(key.clone()).or_default();
                while list.last().is_some_and(|connection| !connection.is_open()) {
                    list.pop();
                }
                if let Some(connection) = list.pop() {
                    // Who gave up waiting still got it: the connection is lost.
                    let _lost = reply.send(Ok(connection));
                    continue;
                }
                let queued = inbox.len();
                gauges.queued_max.fetch_max(queued, Ordering::Relaxed);
                let scan = search(cost, queued);
                gauges.scan_ns.fetch_add(scan, Ordering::Relaxed);
                gauges.starts.fetch_add(1, Ordering::Relaxed);
                let connecting = connect(&key);
                tasks.spawn(async move {
                    let _lost = reply.send(connecting.await);
                });
            }
        }
    }
}

/// Spends the time of one search of the mailbox, as computing and not as waiting: in the original it
/// was a scheduler thread that walked a list. Real time only.
fn search(cost: ScanCost, queued: usize) -> u64 {
    let took = cost.of(queued);
    let until = Instant::now() + took;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dummy(bool);

    impl Connection for Dummy {
        fn is_open(&self) -> bool {
            self.0
        }
    }

    #[tokio::test]
    async fn a_returned_connection_is_used_again_and_a_closed_one_is_not() {
        let tasks = TaskTracker::new();
        let supervisor = Supervisor::start(&tasks, ScanCost::measured(), |_: &u32| async { Ok(Dummy(true)) });
        for _ in 0..3 {
            supervisor.checkout(7).await.expect("connects").give_back();
        }
        assert_eq!(supervisor.starts(), 1);
        let mut taken = supervisor.checkout(7).await.expect("idle");
        taken.connection.0 = false;
        taken.give_back();
        supervisor.checkout(7).await.expect("connects").give_back();
        assert_eq!(supervisor.starts(), 2);
    }

    #[tokio::test]
    async fn r03_a_start_costs_more_the_more_is_queued() {
        let tasks = TaskTracker::new();
        let supervisor = Supervisor::start(&tasks, ScanCost::published(), |_: &usize| async { Ok(Dummy(true)) });
        let storm = |from: usize, count: usize| {
            let supervisor = supervisor.clone();
            async move {
                let before = supervisor.scan_us();
                let all = (from..from + count).map(|key| supervisor.checkout(key));
                futures_util::future::join_all(all).await;
                (supervisor.scan_us() - before) / count as u64
            }
        };
        let few = storm(0, 10).await;
        let many = storm(10, 5_000).await;
        assert!(many > 10 * few.max(1), "{few} µs per start among 10, {many} among 5,000");
    }
}
