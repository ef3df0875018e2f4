//! Names to addresses.
//!
//! The operating system's resolver blocks a thread and cannot be stopped. Asked by every dial, a resolver that hangs
//! would collect stuck threads, one per dial that gave up, until no lane of the process gets a thread to resolve
//! anything. So a lane asks for one name once at a time, and has [`LOOKUPS_MAX`] threads in all: the right to ask
//! travels with the thread, not with the dial. What a dial that gave up has asked for is kept for the next one.
//!
//! The system's resolver does not tell how long an answer holds, so answers are kept for moments only: one question
//! for all dials of a storm. Failures are not kept; the breaker's back-off spaces them.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Threads that a lane may keep waiting for the resolver: a fraction of the runtime's 512, and with 1 ms an answer
/// enough for 8,000 names a second.
const LOOKUPS_MAX: usize = 8;

/// How long an answer is used: a host that moves is found at its new address after this, and a storm asks once.
const ANSWER_TTL: Duration = Duration::from_secs(2);

/// Names remembered. Those that nobody is asking for go when there are more.
const NAMES_MAX: usize = 4_096;

type LookUp = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// A lane's resolver. Cheap to clone.
#[derive(Clone)]
pub(super) struct Resolver {
    look_up: Arc<LookUp>,
    lookups: Arc<Semaphore>,
    names: Arc<Mutex<HashMap<Box<str>, Arc<Name>>>>,
}

struct Name {
    /// Held by whoever asks.
    turn: Arc<Semaphore>,
    answer: Mutex<Option<(Instant, Vec<IpAddr>)>>,
}

// === impl Resolver ===

impl Resolver {
    fn new(look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        let lookups = Arc::new(Semaphore::new(LOOKUPS_MAX));
        Self { look_up: Arc::new(look_up), lookups, names: Arc::default() }
    }

    /// The addresses of a name, in the resolver's order.
    ///
    /// # Cancel safety
    ///
    /// A question that was asked goes on, and its answer is kept.
    pub(super) async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let name = self.name(host);
        if let Some(addresses) = name.known(Instant::now()) {
            return Ok(addresses);
        }
        let turn = Arc::clone(&name.turn).acquire_owned().await.map_err(io::Error::other)?;
        if let Some(addresses) = name.known(Instant::now()) {
            return Ok(addresses);
        }
        let place = Arc::clone(&self.lookups).acquire_owned().await.map_err(io::Error::other)?;
        let (look_up, host) = (Arc::clone(&self.look_up), host.to_owned());
        let asking = Handle::current().spawn_blocking(move || {
            let found = look_up(&host);
            if let Ok(addresses) = &found {
                *name.answer.lock() = Some((Instant::now(), addresses.clone()));
            }
            drop((turn, place));
            found
        });
        asking.await.map_err(io::Error::other)?
    }

    fn name(&self, host: &str) -> Arc<Name> {
        let mut names = self.names.lock();
        if let Some(name) = names.get(host) {
            return Arc::clone(name);
        }
        if names.len() >= NAMES_MAX {
            names.retain(|_, name| Arc::strong_count(name) > 1);
        }
        let name = Arc::new(Name { turn: Arc::new(Semaphore::new(1)), answer: Mutex::default() });
        names.insert(host.into(), Arc::clone(&name));
        name
    }
}

impl Default for Resolver {
    /// Asks the operating system.
    fn default() -> Self {
        Self::new(|host| Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

// === impl Name ===

impl Name {
    fn known(&self, now: Instant) -> Option<Vec<IpAddr>> {
        let answer = self.answer.lock();
        let (at, addresses) = answer.as_ref()?;
        (now.saturating_duration_since(*at) < ANSWER_TTL).then(|| addresses.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures_util::future::join_all;
    use tokio::time::{advance, timeout};

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test(start_paused = true)]
    async fn a_storm_asks_once_and_a_later_one_again() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let resolver = Resolver::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(vec![ADDRESS])
        });
        let storm = || async { join_all((0..100).map(|_| resolver.resolve("sfu.test"))).await };
        assert!(storm().await.iter().all(|found| found.as_ref().is_ok_and(|found| *found == [ADDRESS])));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        advance(ANSWER_TTL).await;
        storm().await;
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn r01_a_name_that_hangs_keeps_one_thread_and_no_other_name_from_its_turn() {
        let (release, released) = mpsc::channel::<()>();
        let (released, asked) = (Mutex::new(released), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let resolver = Resolver::new(move |host| {
            if host == "hangs.test" {
                count.fetch_add(1, Ordering::SeqCst);
                released.lock().recv().unwrap_or_default();
            }
            Ok(vec![ADDRESS])
        });
        for _ in 0..3 * LOOKUPS_MAX {
            let given_up = timeout(Duration::from_millis(1), resolver.resolve("hangs.test")).await;
            assert!(given_up.is_err());
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        resolver.resolve("lives.test").await.expect("its own turn");
        drop(release);
        resolver.resolve("hangs.test").await.expect("the answer to the first question");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn r04_names_are_forgotten() {
        let resolver = Resolver::new(|_| Ok(vec![ADDRESS]));
        for n in 0..2 * NAMES_MAX {
            resolver.name(&format!("sfu-{n}.test"));
        }
        assert!(resolver.names.lock().len() <= NAMES_MAX);
    }
}
