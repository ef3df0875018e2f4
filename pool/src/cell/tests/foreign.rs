//! Errors belong to whoever made the connector: what they do when they are dropped must not happen under the lock.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

thread_local! {
    static LOCKED: Cell<bool> = const { Cell::new(false) };
    /// Errors that went outside the lock, and under it.
    static GONE: Cell<[usize; 2]> = const { Cell::new([0; 2]) };
}

#[derive(Debug, Clone)]
struct Foreign {
    _shared: Arc<Last>,
}

#[derive(Debug)]
struct Last;

impl Drop for Last {
    fn drop(&mut self) {
        let mut gone = GONE.get();
        gone[usize::from(LOCKED.get())] += 1;
        GONE.set(gone);
    }
}

type Abroad = CellState<Pipe, u32, Foreign>;

/// What the shell does: the event outlives the lock, and so do the actions.
fn step(cell: &mut Abroad, event: Event<Pipe, Foreign>, now: Instant) -> Actions<Pipe, u32, Foreign> {
    let (mut event, mut out) = (Some(event), Actions::new());
    LOCKED.set(true);
    let _panicked = catch_unwind(AssertUnwindSafe(|| cell.apply(&mut event, now, &mut out)));
    LOCKED.set(false);
    out
}

/// A caller joins and a dial begins for it.
fn dial(cell: &mut Abroad, now: Instant) -> Epoch {
    let deadline = now + Duration::from_secs(60);
    drop(cell.join(&mut Some(1), deadline, false, now, &mut Actions::new()));
    let epoch = step(cell, Event::Slot { fresh: false, life: 0 }, now).into_iter().find_map(|action| match action {
        Action::Dial { epoch, .. } => Some(epoch),
        _ => None,
    });
    epoch.expect("a dial")
}

fn failure(epoch: Epoch, blame: Blame) -> Event<Pipe, Foreign> {
    let error = Foreign { _shared: Arc::new(Last) };
    let dial = FailedDial { fresh: false, epoch, error, blame, jitter: 1.0 };
    Event::DialFailed { dial, took: DIAL_TIME }
}

#[tokio::test(start_paused = true)]
async fn no_error_is_dropped_under_the_lock() {
    let mut now = Instant::now();
    let mut cell = Abroad::new(Arc::new(Tuning::new(&LaneLimits::default(), SLOTS)));
    let stale = dial(&mut cell, now);
    step(&mut cell, failure(stale, Blame::Host), now);
    // Takes the place of the one before.
    now += Duration::from_secs(60);
    let epoch = dial(&mut cell, now);
    step(&mut cell, failure(epoch, Blame::Host), now);
    // Of an earlier episode, of no time, of another life, and one that comes when the cell panics.
    now += Duration::from_secs(60);
    dial(&mut cell, now);
    step(&mut cell, failure(stale, Blame::Host), now);
    let epoch = dial(&mut cell, now);
    step(&mut cell, failure(epoch, Blame::Haste), now);
    step(&mut cell, failure(Epoch { life: 7, ..epoch }, Blame::Host), now);
    fault::arm(Point::StepBegins, 0, 1);
    step(&mut cell, failure(epoch, Blame::Host), now);
    // The last one ends what the breaker remembers.
    let epoch = dial(&mut cell, now);
    let channel = Pipe::new(false);
    step(
        &mut cell,
        Event::Connected { fresh: false, epoch, channel, shared: false, took: DIAL_TIME, jitter: 0.5 },
        now,
    );
    let [outside, under] = GONE.get();
    assert_eq!(under, 0, "of {}", outside + under);
    assert!(outside >= 4, "only {outside} were dropped at all");
}
