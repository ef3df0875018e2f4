//! How many handshakes compute at once.
//!
//! Fewer concurrent handshakes drain faster (measured: 4 at once 380 ms, 256 at once 1,150 ms), so a
//! handshake takes a permit from a window that starts at twice the cores. Two details keep this from
//! becoming the bottleneck it guards against. A handshake that waits for its peer longer than
//! [`COMPUTE_GRACE`] hands its permit on and takes a new one when bytes arrive, so a peer that accepts
//! and then says nothing costs 5 ms of one permit, not the whole time-out. And the window learns from
//! the lag of the event loop, never from wall time, which at 100 ms of round trip would throttle to
//! twenty dials a second.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use rate_limit::{Outcome, Window, WindowLimits};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

/// How long a handshake keeps its permit while it waits for the peer. Long enough for a round trip inside
/// a region with the peer's own share of the work.
const COMPUTE_GRACE: Duration = Duration::from_millis(5);

/// Loop lag from which the process counts as busy: callers' own deadlines are hundreds of milliseconds.
const LAG_BUSY: Duration = Duration::from_millis(10);

/// Handshakes at once per core at the start, and the factor by which a calm loop may raise that.
const PER_CORE_START: u32 = 2;
const PER_CORE_MAX: u32 = 64;

/// A window with a line in front of it. The line is no longer than the lane's dials in flight.
#[derive(Debug)]
pub(crate) struct HandshakeGate {
    window: Window,
    limits: WindowLimits,
    line: Mutex<VecDeque<oneshot::Sender<()>>>,
}

/// The right to compute.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    gate: &'a HandshakeGate,
    outcome: Outcome,
}

/// Remembers that the peer's bytes arrived while no permit was held.
#[derive(Debug, Default)]
struct Woken {
    flag: AtomicBool,
    task: AtomicWaker,
}

// === impl HandshakeGate ===

impl HandshakeGate {
    pub(crate) fn new(cores: usize) -> Self {
        let cores = u32::try_from(cores).unwrap_or(u32::MAX).max(1);
        let start = cores.saturating_mul(PER_CORE_START);
        let limits = WindowLimits { floor: cores, start, max: cores.saturating_mul(PER_CORE_MAX) };
        Self { window: Window::new(limits), limits, line: Mutex::new(VecDeque::new()) }
    }

    /// Changes how many may ever compute at once; what was learnt is kept within it. `None`: what the cores allow.
    pub(crate) fn set_max(&self, max: Option<u32>) {
        let max = max.unwrap_or(self.limits.max);
        let floor = self.limits.floor.min(max);
        self.window.set_limits(WindowLimits { floor, max, ..self.limits });
        self.call_next();
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
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        woken.flag.store(true, Ordering::Relaxed);
        loop {
            let mut permit = self.acquire(&waits).await;
            let computing = poll_fn(|cx| {
                woken.task.register(cx.waker());
                while woken.flag.swap(false, Ordering::AcqRel) {
                    if let Poll::Ready(output) = handshake.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return Poll::Ready(output);
                    }
                }
                Poll::Pending
            });
            tokio::select! {
                biased;
                output = computing => {
                    permit.outcome = weigh(lag().await);
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
        let mut waited = false;
        loop {
            let turn = {
                let mut line = self.line.lock();
                if self.window.try_enter() {
                    drop(line);
                    if waited {
                        waits(false);
                    }
                    return Permit { gate: self, outcome: Outcome::Neutral };
                }
                line.retain(|place| !place.is_closed());
                let (place, turn) = oneshot::channel();
                line.push_back(place);
                turn
            };
            if !std::mem::replace(&mut waited, true) {
                waits(true);
            }
            let place = Place { gate: self, turn: Some(turn) };
            place.await_turn().await;
        }
    }

    /// Wakes the first in line that still waits.
    fn call_next(&self) {
        let mut line = self.line.lock();
        while let Some(place) = line.pop_front() {
            if place.send(()).is_ok() {
                return;
            }
        }
    }
}

/// A place in line. Given up after it was called, it calls the next one.
struct Place<'a> {
    gate: &'a HandshakeGate,
    turn: Option<oneshot::Receiver<()>>,
}

impl Place<'_> {
    async fn await_turn(mut self) {
        if let Some(turn) = self.turn.as_mut() {
            turn.await.unwrap_or_default();
        }
        self.turn = None;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(mut turn) = self.turn.take() {
            turn.close();
            if turn.try_recv().is_ok() {
                self.gate.call_next();
            }
        }
    }
}

// === impl Permit ===

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let free_before = self.gate.window.limit();
        self.gate.window.leave(self.outcome, Instant::now());
        self.gate.call_next();
        if self.gate.window.limit() > free_before {
            self.gate.call_next();
        }
    }
}

// === impl Woken ===

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.flag.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// How long a ready task waits for its turn on this runtime now.
async fn lag() -> Duration {
    let before = Instant::now();
    tokio::task::yield_now().await;
    Instant::now().saturating_duration_since(before)
}

fn weigh(lag: Duration) -> Outcome {
    if lag > LAG_BUSY { Outcome::Overload } else { Outcome::Success }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::task::JoinSet;

    use super::*;

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
