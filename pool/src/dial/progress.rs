//! How far a dial is, and what it waited for that was not the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;
use tracing::Span;

use crate::error::Stage;
use crate::spans;

const STAGES: [Stage; 5] = [Stage::DialSlot, Stage::Dns, Stage::Tcp, Stage::Tls, Stage::Handshake];

/// When each stage began. A dial has four, and two more for a wait in one of our queues.
type Marks = SmallVec<[(Stage, Instant); 6]>;

/// How far a dial is. The newest dial of an origin also tells its cell, which reads it when a waiter's
/// deadline comes.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    stage: AtomicU8,
    /// This process was too busy to look after the dial.
    late: AtomicBool,
    newest: Option<Arc<Self>>,
    marks: Mutex<Marks>,
    /// The stage's span.
    span: Mutex<Option<Span>>,
    /// Time spent in our own queues: whole waits, and since when in the one that lasts.
    queues: Mutex<(Duration, Option<Instant>)>,
}

// === impl Progress ===

impl Progress {
    /// A dial's own progress, which is also written to its cell's.
    pub(crate) fn of_dial(newest: Arc<Self>) -> Self {
        newest.late.store(false, Ordering::Relaxed);
        Self { newest: Some(newest), ..Self::default() }
    }

    pub(crate) fn set(&self, stage: Stage) {
        let at = STAGES.iter().position(|known| *known == stage).unwrap_or(0);
        self.stage.store(u8::try_from(at).unwrap_or(0), Ordering::Relaxed);
        if let Some(newest) = &self.newest {
            newest.stage.store(u8::try_from(at).unwrap_or(0), Ordering::Relaxed);
            self.marks.lock().push((stage, Instant::now()));
            let span = spans::stage(stage);
            let before = self.span.lock().replace(span);
            drop(before); // Whoever listens is told outside the lock.
        }
    }

    /// Whether the dial was last looked at so late that its host cannot be blamed for the time it has taken.
    pub(super) fn set_late(&self, late: bool) {
        for progress in [Some(self), self.newest.as_deref()].into_iter().flatten() {
            progress.late.store(late, Ordering::Relaxed);
        }
    }

    /// Begins or ends a wait in a queue of our own, in front of the handshake gate or for a place to look a name up from:
    /// no sign of the host. It is part of this stage.
    pub(super) fn queued(&self, waits: bool, stage: Stage) {
        let now = Instant::now();
        {
            let (whole, since) = &mut *self.queues.lock();
            *whole += since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            *since = waits.then_some(now);
        }
        self.set(if waits { Stage::DialSlot } else { stage });
    }

    /// The time spent in our own queues so far.
    pub(super) fn waited(&self, now: Instant) -> Duration {
        let (whole, since) = *self.queues.lock();
        whole + since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// How long each stage took, as of now; one that was interrupted, by waits in our queues, as a whole.
    pub(crate) fn stages(&self, now: Instant) -> SmallVec<[(Stage, Duration); 6]> {
        let marks = self.marks.lock();
        let ends = marks.iter().skip(1).map(|(_, at)| *at).chain([now]);
        let mut stages: SmallVec<[(Stage, Duration); 6]> = SmallVec::new();
        for ((stage, began), end) in marks.iter().zip(ends) {
            let took = end.saturating_duration_since(*began);
            match stages.iter_mut().find(|(known, _)| known == stage) {
                Some((_, whole)) => *whole += took,
                None => stages.push((*stage, took)),
            }
        }
        stages
    }

    /// What the dial is waiting for: our own turn to dial, if we could not look after it.
    pub(crate) fn stage(&self) -> Stage {
        if self.late.load(Ordering::Relaxed) {
            return Stage::DialSlot;
        }
        self.reached()
    }

    /// How far the dial is, whoever is to blame for the time it took.
    pub(super) fn reached(&self) -> Stage {
        STAGES.get(usize::from(self.stage.load(Ordering::Relaxed))).copied().unwrap_or(Stage::DialSlot)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn r21_a_handshake_that_waits_for_its_turn_is_still_one_handshake() {
        let progress = Progress::of_dial(Arc::default());
        let ms = Duration::from_millis;
        progress.set(Stage::Tcp);
        advance(ms(1)).await;
        progress.set(Stage::Tls);
        for _ in 0..3 {
            advance(ms(2)).await;
            progress.queued(true, Stage::Tls);
            advance(ms(5)).await;
            progress.queued(false, Stage::Tls);
        }
        advance(ms(4)).await;
        let stages = progress.stages(Instant::now()).to_vec();
        assert_eq!(stages, [(Stage::Tcp, ms(1)), (Stage::Tls, ms(10)), (Stage::DialSlot, ms(15))]);
    }
}
