//! Points at which a unit test makes the pool panic. Outside unit tests all of it compiles to nothing.
//!
//! Armed per thread: each test has a runtime of one thread, and with it faults of its own.

/// Where a panic is to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// Under the cell's lock: on the ways of callers, before an event changes anything, in the middle, and when
    /// everything is done but the answer.
    Checkout,
    PutBack,
    Look,
    Leave,
    StepBegins,
    StepHalf,
    StepEnds,
    /// Between a dial slot that is granted and the task that dials.
    SlotTaken,
    /// The task of a dial and its connection: the last is before the slot is given back.
    DialBegins,
    DialConnected,
    DialOpened,
    DriverBegins,
    DriverEnds,
    /// A task that hyper starts.
    HyperTaskBegins,
    HyperTaskEnds,
    /// The partition's timer: before and after it rang.
    TimerBegins,
    TimerEnds,
    /// Under the lock of the partition's line for dial slots.
    Scheduler,
    /// A rebuild of the partition, half done.
    Rebuild,
    /// Before what a cell has decided is done.
    Executes,
    /// The lane's tasks: who follows levers, and who watches over the partitions.
    Levers,
    Watchdog,
    /// A dial of the registry's lane, and the connection's driver.
    RegistryDial,
    RegistryDriver,
}

/// Panics if a test has armed this point.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn point(_: Point) {}

#[cfg(test)]
pub(crate) use self::armed::{arm, armed, disarm, point};

#[cfg(test)]
mod armed {
    use std::cell::Cell;

    use super::Point;

    thread_local! {
        static ARMED: Cell<Option<(Point, u32, u32)>> = const { Cell::new(None) };
    }

    /// The point panics `times` times, after it was passed `skip` times.
    pub(crate) fn arm(point: Point, skip: u32, times: u32) {
        ARMED.set(Some((point, skip, times)));
    }

    /// How often the armed point has still to panic.
    pub(crate) fn armed() -> u32 {
        ARMED.get().map_or(0, |(_, _, times)| times)
    }

    pub(crate) fn disarm() {
        ARMED.set(None);
    }

    pub(crate) fn point(point: Point) {
        match ARMED.get() {
            Some((armed, 0, times)) if armed == point => {
                ARMED.set((times > 1).then_some((armed, 0, times - 1)));
                panic!("fault at {point:?}");
            }
            Some((armed, skip, times)) if armed == point => ARMED.set(Some((armed, skip - 1, times))),
            _ => {}
        }
    }
}
