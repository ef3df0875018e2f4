//! Names to addresses.
//!
//! The operating system's resolver blocks a thread and cannot be stopped. Asked by every dial, a resolver that hangs
//! would collect stuck threads, one per dial that gave up, until no lane of the process gets a thread to resolve
//! anything. So a partition asks for one name once at a time, and has its part of [`LOOKUPS_MAX`] places to ask from: the
//! place travels with the thread, not with the dial. What a dial that gave up has asked for is kept for the next one.
//! Names that hang cost other names of their partition the wait for a place, and those of other partitions nothing.
//!
//! To wait for a name that is being asked for is to wait for the host's name server. To wait for a place is our own
//! queue, and says nothing about any host. So who waits for a place does not keep the name's turn meanwhile: others of
//! the same name would wait for our queue and take it for the name's.
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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Places of a lane, divided among its partitions: with eight of them eight each, which with 1 ms an answer is enough for
/// 8,000 names a second. Each is a thread that the resolver may keep, of the runtime's 512, which all lanes share. Every
/// partition has one at least, so a lane of [`PARTITIONS_MAX`](crate::limits::PARTITIONS_MAX) has 256: two such lanes
/// are the most for which there are threads while every name hangs.
pub(crate) const LOOKUPS_MAX: usize = 64;

/// How long an answer is used: a host that moves is found at its new address after this, and a storm asks once.
const ANSWER_TTL: Duration = Duration::from_secs(2);

/// Names that a partition remembers: about one for each of its origins. Those that nobody is asking for go when there are more.
const NAMES_MAX: usize = 4_096;

type LookUp = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// A partition's resolver. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resolver {
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
    pub(crate) fn new(
        lookups: usize,
        look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self { look_up: Arc::new(look_up), lookups: Arc::new(Semaphore::new(lookups)), names: Arc::default() }
    }

    /// Another that asks in the same way, from so many places of its own.
    pub(super) fn apart(&self, lookups: usize) -> Self {
        Self { look_up: Arc::clone(&self.look_up), lookups: Arc::new(Semaphore::new(lookups)), names: Arc::default() }
    }

    /// The addresses of a name, in the resolver's order. `waits` is told when it begins and ceases to wait for a place.
    ///
    /// # Cancel safety
    ///
    /// A question that was asked goes on, and its answer is kept.
    pub(super) async fn resolve(&self, host: &str, waits: impl Fn(bool)) -> io::Result<Vec<IpAddr>> {
        let name = self.name(host);
        let (turn, place) = loop {
            if let Some(addresses) = name.known(Instant::now()) {
                return Ok(addresses);
            }
            if name.turn.available_permits() == 0 {
                // Somebody asks, and is about to know.
                drop(name.turn.acquire().await.map_err(io::Error::other)?);
                continue;
            }
            let place = self.place(&waits).await?;
            if let Ok(turn) = Arc::clone(&name.turn).try_acquire_owned()
                && name.known(Instant::now()).is_none()
            {
                break (turn, place);
            }
        };
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

    async fn place(&self, waits: &impl Fn(bool)) -> io::Result<OwnedSemaphorePermit> {
        let lookups = Arc::clone(&self.lookups);
        if let Ok(place) = Arc::clone(&lookups).try_acquire_owned() {
            return Ok(place);
        }
        waits(true);
        let place = lookups.acquire_owned().await;
        waits(false);
        place.map_err(io::Error::other)
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
        Self::new(LOOKUPS_MAX, |host| Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
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
    const PLACES: usize = 8;
    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_storm_asks_once_and_a_later_one_again() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let resolver = Resolver::new(PLACES, move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(vec![ADDRESS])
        });
        let storm = || async { join_all((0..100).map(|_| resolver.resolve("sfu.test", drop))).await };
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
        let resolver = Resolver::new(PLACES, move |host| {
            if host == "hangs.test" {
                count.fetch_add(1, Ordering::SeqCst);
                released.lock().recv().unwrap_or_default();
            }
            Ok(vec![ADDRESS])
        });
        for _ in 0..3 * PLACES {
            let given_up = timeout(Duration::from_millis(1), resolver.resolve("hangs.test", drop)).await;
            assert!(given_up.is_err());
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        resolver.resolve("lives.test", drop).await.expect("its own turn");
        drop(release);
        resolver.resolve("hangs.test", drop).await.expect("the answer to the first question");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn r19_a_look_up_that_panics_gives_its_place_back() {
        let resolver = Resolver::new(1, |host| {
            assert!(host != "panics.test", "poison");
            Ok(vec![ADDRESS])
        });
        for _ in 0..2 {
            let asked = timeout(PATIENCE, resolver.resolve("panics.test", drop)).await;
            asked.expect("its turn and its place are back").expect_err("it panicked");
        }
        timeout(PATIENCE, resolver.resolve("lives.test", drop)).await.expect("there is a place").expect("found");
        assert_eq!(resolver.lookups.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn r01_who_waits_for_a_place_says_so_and_keeps_no_other_of_the_same_name_from_saying_so() {
        let resolver = Resolver::new(1, |_| Ok(vec![ADDRESS]));
        let taken = resolver.place(&drop).await.expect("it is free");
        let waiting = AtomicUsize::new(0);
        let waits = |begins: bool| {
            let before = waiting.load(Ordering::SeqCst);
            waiting.store(if begins { before + 1 } else { before - 1 }, Ordering::SeqCst);
        };
        let found = join_all((0..3).map(|_| resolver.resolve("sfu.test", waits)));
        let mut found = std::pin::pin!(found);
        assert!(timeout(Duration::from_millis(1), &mut found).await.is_err());
        assert_eq!(waiting.load(Ordering::SeqCst), 3);
        drop(taken);
        let found = timeout(PATIENCE, found).await.expect("there is a place");
        assert!(found.iter().all(Result::is_ok));
        assert_eq!(waiting.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn r04_names_are_forgotten() {
        let resolver = Resolver::new(PLACES, |_| Ok(vec![ADDRESS]));
        for n in 0..2 * NAMES_MAX {
            resolver.name(&format!("sfu-{n}.test"));
        }
        assert!(resolver.names.lock().len() <= NAMES_MAX);
    }
}
