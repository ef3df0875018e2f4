//! Whose turn is it to dial.
//!
//! Dead hosts hold a dial slot for the whole time-out, living ones for milliseconds: with one shared
//! bound, twenty dead hosts capture sixteen slots and healthy p99 rises to 1.3 s (measured). So origins
//! that have not proven themselves share at most three quarters of the slots, one origin gets at most a
//! quarter, and origins take turns. An origin is in line at most once; what it wants is asked again when
//! its turn comes.

use std::collections::VecDeque;

/// What part of the slots is kept for origins whose last dial worked: 1 in this many.
const RESERVED_ONE_IN: usize = 4;

/// One origin's largest share of the slots: 1 in this many.
const ORIGIN_ONE_IN: usize = 4;

/// Under which heading a slot was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The last dial of the origin worked.
    Proven,
    /// It failed, or there was none.
    Unproven,
}

/// Why no slot can be given now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn<T> {
    /// This one may dial.
    Granted(T, Class),
    /// Nobody is in line, or every slot they may use is taken.
    NoSlot,
    /// Somebody could dial, but the partition's connections are used up.
    NoRoom,
}

#[derive(Debug)]
pub(crate) struct Scheduler<T> {
    slots: usize,
    reserved: usize,
    connections_max: usize,
    connections: usize,
    in_flight: usize,
    in_flight_unproven: usize,
    proven: VecDeque<T>,
    unproven: VecDeque<T>,
    unproven_next: bool,
}

// === impl Scheduler ===

impl<T> Scheduler<T> {
    pub(crate) fn new(slots: usize, connections_max: usize) -> Self {
        let slots = slots.max(1);
        Self {
            slots,
            reserved: slots / RESERVED_ONE_IN,
            connections_max: connections_max.max(1),
            connections: 0,
            in_flight: 0,
            in_flight_unproven: 0,
            proven: VecDeque::new(),
            unproven: VecDeque::new(),
            unproven_next: false,
        }
    }

    /// Changes the number of slots. Dials beyond a smaller number finish; no new one starts before.
    pub(crate) fn set_slots(&mut self, slots: usize) {
        self.slots = slots.max(1);
        self.reserved = self.slots / RESERVED_ONE_IN;
    }

    /// Dials of one origin at once.
    pub(crate) fn origin_share(slots: usize) -> usize {
        (slots / ORIGIN_ONE_IN).max(1)
    }

    /// Puts an origin in line. The caller makes sure that it is in line only once.
    pub(crate) fn enqueue(&mut self, item: T, proven: bool) {
        if proven { self.proven.push_back(item) } else { self.unproven.push_back(item) }
    }

    /// The next origin that may dial. Takes a slot and a connection for it.
    pub(crate) fn next(&mut self) -> Turn<T> {
        let free = self.in_flight < self.slots;
        let proven = free && !self.proven.is_empty();
        let unproven = free && !self.unproven.is_empty() && self.in_flight_unproven < self.slots - self.reserved;
        if !proven && !unproven {
            return Turn::NoSlot;
        }
        if self.connections >= self.connections_max {
            return Turn::NoRoom;
        }
        let class = if unproven && (self.unproven_next || !proven) { Class::Unproven } else { Class::Proven };
        self.unproven_next = class == Class::Proven;
        let line = match class {
            Class::Proven => &mut self.proven,
            Class::Unproven => &mut self.unproven,
        };
        let Some(item) = line.pop_front() else { return Turn::NoSlot };
        self.connections += 1;
        self.in_flight += 1;
        self.in_flight_unproven += usize::from(class == Class::Unproven);
        Turn::Granted(item, class)
    }

    /// A dial is over.
    pub(crate) fn release_slot(&mut self, class: Class) {
        self.in_flight -= 1;
        self.in_flight_unproven -= usize::from(class == Class::Unproven);
    }

    /// A connection, or the hope of one, is gone.
    pub(crate) fn release_connection(&mut self) {
        self.connections -= 1;
    }

    /// Empties the line, for the end of the partition.
    pub(crate) fn clear(&mut self) -> (VecDeque<T>, VecDeque<T>) {
        (std::mem::take(&mut self.proven), std::mem::take(&mut self.unproven))
    }

    /// Origins in line.
    pub(crate) fn queued(&self) -> usize {
        self.proven.len() + self.unproven.len()
    }

    /// Connections held, dials included.
    pub(crate) fn connections(&self) -> usize {
        self.connections
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(scheduler: &mut Scheduler<u32>) -> Vec<u32> {
        std::iter::from_fn(|| match scheduler.next() {
            Turn::Granted(item, _) => Some(item),
            _ => None,
        })
        .collect()
    }

    #[test]
    fn r01_unproven_origins_leave_slots_for_proven_ones() {
        let mut scheduler = Scheduler::new(8, 100);
        (0..20).for_each(|dead| scheduler.enqueue(dead, false));
        assert_eq!(grants(&mut scheduler).len(), 6);
        scheduler.enqueue(100, true);
        scheduler.enqueue(101, true);
        scheduler.enqueue(102, true);
        assert_eq!(grants(&mut scheduler), [100, 101]);
        scheduler.release_slot(Class::Proven);
        assert_eq!(grants(&mut scheduler), [102]);
    }

    #[test]
    fn r20_fewer_slots_bite_at_once_and_more_are_used_at_once() {
        let mut scheduler = Scheduler::new(4, 100);
        (0..8).for_each(|n| scheduler.enqueue(n, true));
        assert_eq!(grants(&mut scheduler).len(), 4);
        scheduler.set_slots(2);
        scheduler.release_slot(Class::Proven);
        scheduler.release_slot(Class::Proven);
        assert!(grants(&mut scheduler).is_empty());
        scheduler.set_slots(5);
        assert_eq!(grants(&mut scheduler).len(), 3);
    }

    #[test]
    fn proven_and_unproven_take_turns() {
        let mut scheduler = Scheduler::new(4, 100);
        for n in 0..2 {
            scheduler.enqueue(n, false);
            scheduler.enqueue(10 + n, true);
        }
        assert_eq!(grants(&mut scheduler), [10, 0, 11, 1]);
    }

    #[test]
    fn i09_connections_stay_within_their_budget() {
        let mut scheduler = Scheduler::new(8, 2);
        (0..3).for_each(|n| scheduler.enqueue(n, true));
        assert_eq!(grants(&mut scheduler), [0, 1]);
        scheduler.release_slot(Class::Proven);
        assert_eq!(scheduler.next(), Turn::NoRoom);
        scheduler.release_connection();
        assert_eq!(grants(&mut scheduler), [2]);
    }
}
