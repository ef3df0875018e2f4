//! A panic under a cell's lock stays in that cell.
//!
//! Whoever steps the cell may be a caller, a dial, a connection or the partition's timer: a panic must take
//! none of them along, and what it leaves half done must not be believed. So the cell begins a new life
//! ([`crate::cell::CellState::renew`]). Those in line are woken, find themselves unknown and are told to try
//! again (nothing was sent for them). Idle
//! connections close as their handles are dropped; one in use ends with its request, whose lease fits nothing
//! in the new life. Permits are owned by [`super::Holding`]s, which give them back whatever the cell thinks.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use parking_lot::MutexGuard;

use super::site::{Cell, State, wake};

/// How often a taken lock is looked at before the system is asked to wait for it. A step takes a tenth of a
/// microsecond and a look a few nanoseconds, so it is seldom needed; yielding at once, as the lock does by itself, makes
/// a wait of that tenth one of several microseconds.
const LOOKS_MAX: u32 = 100;

// === impl Cell ===

impl Cell {
    /// Works on the state under its lock. `None` when that panicked; the cell has begun a new life then.
    pub(super) fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut state = self.lock();
        match catch_unwind(AssertUnwindSafe(|| work(&mut state))) {
            Ok(done) => Some(done),
            Err(panic) => {
                let torn = state.renew();
                drop(state);
                self.partition().metrics.cell_panics.inc();
                tracing::error!(origin = %self.origin(), panic = message(&*panic), "cell panicked and begins anew");
                torn.into_waiters().for_each(wake);
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        for _ in 0..LOOKS_MAX {
            if let Some(state) = self.state.try_lock() {
                return state;
            }
            spin_loop();
        }
        self.state.lock()
    }

    /// Begins a new life, as after a panic. `false` if the lock cannot be had in this time.
    pub(super) fn renew(&self, patience: Duration) -> bool {
        let torn = self.state.try_lock_for(patience).map(|mut state| state.renew());
        torn.map(|torn| torn.into_waiters().for_each(wake)).is_some()
    }
}

/// What a panic says.
pub(super) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}
