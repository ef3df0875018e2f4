//! How many handshakes compute at once.
//!
//! A handshake is CPU. A thousand at once all finish at the end, and everything else on the event loop waits for
//! them; a few at once finish one after the other, in the same time. So a handshake takes a permit from a window
//! that starts at [`PER_CORE_START`] per core, enough to keep the cores busy while peers compute their halves.
//!
//! Two details keep this from becoming the bottleneck it guards against. A handshake that waits for its
//! peer longer than [`COMPUTE_GRACE`] hands its permit on and takes a new one when bytes arrive, so a peer
//! that accepts and then says nothing costs 5 ms of one permit, not the whole time-out. And the window learns
//! from the lag of the event loop (how long after its wake-up a handshake gets to run), never from wall time,
//! which at 100 ms of round trip would throttle to twenty dials a second.
//!
//! The line is a semaphore: first in first out, a permit is handed over to the first in line, giving up is O(1), and
//! nobody is woken under its lock. One gate serves all partitions of a lane, because the cores that it shares out
//! are one and the same; what is under its locks is a few additions.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use rate_limit::{Outcome, Window, WindowLimits};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

/// How long a handshake keeps its permit while it waits for the peer. Long enough for a round trip inside
/// a region with the peer's own share of the work.
const COMPUTE_GRACE: Duration = Duration::from_millis(5);

/// Loop lag from which the process counts as busy: callers' own deadlines are hundreds of milliseconds.
const LAG_BUSY: Duration = Duration::from_millis(10);

/// Handshakes at once per core at the start, and how far lag may lower or a calm loop raise that. Two thirds of a
/// handshake are the peer's and the network's, and a core that ran out of them sleeps and must be woken: with 2 per core
/// cores were measured to idle half of the time, with 8 an eighth fewer connections were made than with 32. A third of a
/// millisecond each, 32 are as late as [`LAG_BUSY`] allows.
const PER_CORE_START: u32 = 32;
const PER_CORE_MIN: u32 = 2;
const PER_CORE_MAX: u32 = 64;

/// A window with a line in front of it. The line is no longer than the lane's dials in flight.
#[derive(Debug)]
pub(crate) struct HandshakeGate {
    window: Window,
    limits: WindowLimits,
    line: Semaphore,
    /// Permits that exist, in use or not. Follows the window's limit.
    issued: Mutex<u32>,
    epoch: Instant,
}

/// The right to compute.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    gate: &'a HandshakeGate,
    place: Option<SemaphorePermit<'a>>,
    outcome: Outcome,
}

/// Remembers that the peer's bytes arrived, and when.
#[derive(Debug)]
struct Woken {
    flag: AtomicBool,
    /// In microseconds after the gate's epoch.
    at_us: AtomicU64,
    epoch: Instant,
    task: AtomicWaker,
}

// === impl HandshakeGate ===

impl HandshakeGate {
    pub(crate) fn new(cores: usize) -> Self {
        let cores = u32::try_from(cores).unwrap_or(u32::MAX).max(1);
        let per_core = |most: u32| cores.saturating_mul(most);
        let limits = WindowLimits {
            floor: per_core(PER_CORE_MIN),
            start: per_core(PER_CORE_START),
            max: per_core(PER_CORE_MAX),
        };
        let window = Window::new(limits);
        let issued = window.limit();
        let line = Semaphore::new(usize::try_from(issued).unwrap_or(Semaphore::MAX_PERMITS));
        Self { window, limits, line, issued: Mutex::new(issued), epoch: Instant::now() }
    }

    /// Changes how many may ever compute at once; what was learnt is kept within it. `None`: what the cores allow.
    pub(crate) fn set_max(&self, max: Option<u32>) {
        let max = max.unwrap_or(self.limits.max);
        let floor = self.limits.floor.min(max);
        self.window.set_limits(WindowLimits { floor, max, ..self.limits });
        self.follow(None);
    }

    /// Handshakes that compute now, and how many may.
    pub(crate) fn usage(&self) -> (u32, u32) {
        (self.window.in_flight(), self.window.limit())
    }

    /// Polls `handshake` only while a permit is held. `waits` is told when it begins and ceases to wait for one.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future returns the permit or the place in line.
    pub(crate) async fn run<F: Future>(&self, handshake: F, waits: impl Fn(bool)) -> F::Output {
        let mut handshake = pin!(handshake);
        let woken = Arc::new(Woken::new(self.epoch));
        let waker = Waker::from(Arc::clone(&woken));
        loop {
            let mut permit = self.acquire(&waits).await;
            // Since when there is something to do is not known of the bytes that came while there was no permit.
            let (mut punctual, mut known) = (true, false);
            let computing = poll_fn(|cx| {
                woken.task.register(cx.waker());
                while let Some(lag) = woken.take() {
                    punctual &= !std::mem::replace(&mut known, true) || lag <= LAG_BUSY;
                    if let Poll::Ready(output) = handshake.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return Poll::Ready(output);
                    }
                }
                Poll::Pending
            });
            tokio::select! {
                biased;
                output = computing => {
                    permit.outcome = if punctual { Outcome::Success } else { Outcome::Overload };
                    return output;
                }
                () = sleep(COMPUTE_GRACE) => {}
            }
            drop(permit);
            poll_fn(|cx| {
                woken.task.register(cx.waker());
                if woken.flag.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }

    pub(super) async fn acquire(&self, waits: &impl Fn(bool)) -> Permit<'_> {
        let place = if let Ok(place) = self.line.try_acquire() {
            Some(place)
        } else {
            waits(true);
            // Nobody closes the semaphore: the gate lives as long as its lane.
            let place = self.line.acquire().await.ok();
            waits(false);
            place
        };
        self.window.enter();
        Permit { gate: self, place, outcome: Outcome::Neutral }
    }

    /// Makes as many permits as the window now allows, or takes back what is too many: of those that are free,
    /// and this one.
    fn follow(&self, given_back: Option<SemaphorePermit<'_>>) {
        let (mut more, mut kept) = (0, given_back);
        {
            let mut issued = self.issued.lock();
            let limit = self.window.limit();
            if *issued > limit
                && let Some(place) = kept.take()
            {
                place.forget();
                *issued -= 1;
            }
            let surplus = usize::try_from(issued.saturating_sub(limit)).unwrap_or(0);
            let taken = if surplus > 0 { self.line.forget_permits(surplus) } else { 0 };
            *issued -= u32::try_from(taken).unwrap_or(0);
            if *issued < limit {
                more = limit - *issued;
                *issued = limit;
            }
        }
        drop(kept);
        if more > 0 {
            self.line.add_permits(usize::try_from(more).unwrap_or(0));
        }
    }
}

// === impl Permit ===

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.gate.window.leave(self.outcome, Instant::now());
        self.gate.follow(self.place.take());
    }
}

// === impl Woken ===

impl Woken {
    /// There is something to do at the start.
    fn new(epoch: Instant) -> Self {
        Self { flag: AtomicBool::new(true), at_us: AtomicU64::new(0), epoch, task: AtomicWaker::new() }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(Instant::now().saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }

    /// How long ago bytes arrived, if they did.
    fn take(&self) -> Option<Duration> {
        let woken = self.flag.swap(false, Ordering::AcqRel);
        woken.then(|| Duration::from_micros(self.now_us().saturating_sub(self.at_us.load(Ordering::Relaxed))))
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.flag.load(Ordering::Relaxed) {
            self.at_us.store(self.now_us(), Ordering::Relaxed);
        }
        self.flag.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::AtomicUsize;

    use futures_util::future::join_all;
    use tokio::sync::Notify;
    use tokio::task::JoinSet;
    use tokio::time::advance;

    use super::*;

    async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
        poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
    }

    #[tokio::test(start_paused = true)]
    async fn r01_silent_peers_do_not_hold_the_gate() {
        let gate = Arc::new(HandshakeGate::new(1));
        let mut silent = JoinSet::new();
        for _ in 0..50 {
            let gate = Arc::clone(&gate);
            silent.spawn(async move { gate.run(std::future::pending::<()>(), drop).await });
        }
        let answered = tokio::time::timeout(Duration::from_secs(1), gate.run(std::future::ready(7), drop)).await;
        assert_eq!(answered, Ok(7));
        silent.shutdown().await;
        assert_eq!(gate.usage().0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_handshakes_compute_than_the_window_allows() {
        let gate = Arc::new(HandshakeGate::new(2));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..100 {
            let (gate, now, most) = (Arc::clone(&gate), Arc::clone(&now), Arc::clone(&most));
            tasks.spawn(async move {
                gate.run(
                    async {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        sleep(Duration::from_millis(1)).await;
                        now.fetch_sub(1, Ordering::SeqCst);
                    },
                    drop,
                )
                .await;
            });
        }
        while tasks.join_next().await.is_some() {}
        let (_, limit) = gate.usage();
        assert!(most.load(Ordering::SeqCst) <= limit as usize, "{most:?} at once, limit {limit}");
        assert_eq!(gate.usage().0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn r01_a_late_loop_narrows_the_window_and_a_punctual_one_widens_it() {
        let gate = HandshakeGate::new(4);
        let start = gate.usage().1;
        let peer = Arc::new(Notify::new());
        let answer = async |late| {
            let mut handshake = pin!(gate.run(peer.notified(), drop));
            assert!(poll_once(handshake.as_mut()).await.is_pending());
            peer.notify_one();
            advance(late).await;
            handshake.await;
        };
        answer(LAG_BUSY * 2).await;
        let narrow = gate.usage().1;
        assert!(narrow < start, "{narrow} of {start}");
        while gate.usage().1 == narrow {
            let mut all = join_all((0..narrow).map(|_| gate.acquire(&drop))).await;
            assert!(poll_once(pin!(gate.acquire(&drop))).await.is_pending(), "more permits than the window allows");
            all.iter_mut().for_each(|permit| permit.outcome = Outcome::Success);
        }
        let wide = gate.usage().1;
        assert!(wide > narrow);
        join_all((0..wide).map(|_| gate.acquire(&drop))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_in_line_is_kept_and_served_in_order() {
        let gate = HandshakeGate::new(1);
        gate.set_max(Some(1));
        let first = gate.acquire(&drop).await;
        let mut second = pin!(gate.acquire(&drop));
        assert!(poll_once(second.as_mut()).await.is_pending());
        drop(first);
        assert!(poll_once(pin!(gate.acquire(&drop))).await.is_pending(), "a newcomer overtook the line");
        drop(second.await);
    }

    #[tokio::test(start_paused = true)]
    async fn r20_a_changed_maximum_counts_at_once() {
        let gate = HandshakeGate::new(1);
        gate.set_max(Some(2));
        let held = join_all((0..2).map(|_| gate.acquire(&drop))).await;
        assert!(poll_once(pin!(gate.acquire(&drop))).await.is_pending());
        gate.set_max(Some(1));
        drop(held);
        let one = gate.acquire(&drop).await;
        assert!(poll_once(pin!(gate.acquire(&drop))).await.is_pending());
        drop(one);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_place_in_line_loses_no_turn() {
        let gate = Arc::new(HandshakeGate::new(1));
        for round in 0..50 {
            let mut tasks = JoinSet::new();
            for n in 0..20 {
                let gate = Arc::clone(&gate);
                tasks.spawn(async move {
                    let work = gate.run(sleep(Duration::from_millis(3)), drop);
                    drop(tokio::time::timeout(Duration::from_millis((n * 7 + round) % 23), work).await);
                });
            }
            while tasks.join_next().await.is_some() {}
            assert_eq!(gate.usage().0, 0, "round {round}");
        }
        gate.run(std::future::ready(()), drop).await;
    }
}
