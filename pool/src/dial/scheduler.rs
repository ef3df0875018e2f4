//! Whose turn is it to dial.
//!
//! Dead hosts hold a dial slot for the whole time-out, living ones for milliseconds: with one shared
//! bound, twenty dead hosts capture sixteen slots and healthy p99 rises to 1.3 s (measured). So origins
//! that have not proven themselves, or whose requests time out, share at most three quarters of the slots, one gets at
//! most a quarter, and origins take turns. An origin is in line at most once; what it wants is asked again when
//! its turn comes.
//!
//! A *fresh* dial, a health probe, has a line and some slots and connections of its own: whether a host is back must be
//! found out while the ordinary slots are full of dead ones. Beyond its own slots it counts as unproven, and takes
//! turns with those: dead hosts that are probed all the time must not keep a new host from its first dial.
//!
//! Turns are a deficit round robin: each time an origin comes to the front it earns one unit, and it dials
//! when it has earned what its dials cost in slot time. An origin whose dials are slow thus dials more
//! rarely, and all get the same share of the slots' time.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::fault::{self, Point};

/// What part of the slots is kept for origins whose last dial worked: 1 in this many.
const RESERVED_ONE_IN: usize = 4;

/// One origin's largest share of the slots: 1 in this many.
const ORIGIN_ONE_IN: usize = 4;

/// Slots, and connections beyond the partition's budget, that only fresh dials get: 1 for this many ordinary slots. With
/// the defaults 64 in a lane: those of dead hosts keep them for a time-out of 3 s, so that a thousand dead hosts are
/// looked at within 47 s, and a living one, whose dials cost less, in between.
const FRESH_ONE_FOR: usize = 4;

/// Units an origin earns each time it comes to the front.
const QUANTUM: u32 = 1;

/// Under which heading a slot was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The last dial of the origin worked, and so did its last request.
    Proven,
    /// It failed, or there was none; or a request has had no answer in time since.
    Unproven,
    /// The dial is to find out about the host.
    Fresh,
}

/// Who may dial now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn<T> {
    /// This one may, after so long in line.
    Granted { item: T, class: Class, waited: Duration },
    /// Nobody is in line, or every slot they may use is taken.
    NoSlot,
    /// Somebody could dial, but the partition's connections are used up.
    NoRoom,
    /// Somebody could dial, but not before this moment: the rate of dials is used up.
    NotYet(Instant),
}

#[derive(Debug)]
pub(crate) struct Scheduler<T> {
    slots: usize,
    reserved: usize,
    connections_max: usize,
    connections: usize,
    /// Dials under way: all ordinary ones, the unproven among them, and the fresh ones.
    in_flight: usize,
    in_flight_unproven: usize,
    in_flight_fresh: usize,
    proven: VecDeque<Flow<T>>,
    unproven: VecDeque<Flow<T>>,
    fresh: VecDeque<Flow<T>>,
    unproven_next: bool,
    /// Of the probes beyond their own slots and the unproven, the probes are next.
    fresh_next: bool,
}

/// An origin in line.
#[derive(Debug)]
struct Flow<T> {
    item: T,
    cost: u32,
    credit: u32,
    since: Instant,
}

/// Dials of one origin at once while others are in line.
pub(crate) fn origin_share(slots: usize) -> usize {
    (slots / ORIGIN_ONE_IN).max(1)
}

/// Dials of one origin at once while nobody else is in line: slots that nobody wants are of no use, but whoever
/// comes next finds a quarter of them free.
pub(crate) fn origin_alone(slots: usize) -> usize {
    slots - reserve(slots)
}

/// Slots kept for proven origins: a quarter, rounded up; the last one is for everybody.
fn reserve(slots: usize) -> usize {
    slots.div_ceil(RESERVED_ONE_IN).min(slots - 1)
}

// === impl Scheduler ===

impl<T> Scheduler<T> {
    pub(crate) fn new(slots: usize, connections_max: usize) -> Self {
        let slots = slots.max(1);
        Self {
            slots,
            reserved: reserve(slots),
            connections_max: connections_max.max(1),
            connections: 0,
            in_flight: 0,
            in_flight_unproven: 0,
            in_flight_fresh: 0,
            proven: VecDeque::new(),
            unproven: VecDeque::new(),
            fresh: VecDeque::new(),
            unproven_next: false,
            fresh_next: false,
        }
    }

    /// Changes the number of slots and connections. What is beyond a smaller number finishes; nothing new
    /// starts before.
    pub(crate) fn set_limits(&mut self, slots: usize, connections_max: usize) {
        self.slots = slots.max(1);
        self.reserved = reserve(self.slots);
        self.connections_max = connections_max.max(1);
    }

    /// Puts an origin in line. The caller makes sure that it is in line only once, and once for fresh dials.
    pub(crate) fn enqueue(&mut self, item: T, class: Class, cost: u32, now: Instant) {
        self.line(class).push_back(Flow { item, cost: cost.max(1), credit: 0, since: now });
    }

    fn line(&mut self, class: Class) -> &mut VecDeque<Flow<T>> {
        match class {
            Class::Proven => &mut self.proven,
            Class::Unproven => &mut self.unproven,
            Class::Fresh => &mut self.fresh,
        }
    }

    /// The next origin that may dial, if `rate` allows one now. Takes a slot and a connection for it.
    pub(crate) fn next(&mut self, now: Instant, rate: impl FnOnce() -> Result<(), Instant>) -> Turn<T> {
        fault::point(Point::Scheduler);
        let own = self.fresh_own();
        let (free, free_unproven) = self.free();
        let proven = free > 0 && !self.proven.is_empty();
        let unproven = free_unproven > 0 && !self.unproven.is_empty();
        let fresh = (self.in_flight_fresh < own || free_unproven > 0) && !self.fresh.is_empty();
        if !proven && !unproven && !fresh {
            return Turn::NoSlot;
        }
        let fresh = fresh && self.connections < self.connections_max + own;
        let room = self.connections < self.connections_max;
        if !fresh && !room {
            return Turn::NoRoom;
        }
        if let Err(at) = rate() {
            return Turn::NotYet(at);
        }
        let class = self.whose_turn(proven && room, unproven && room, fresh);
        let Some(flow) = turn(self.line(class)) else { return Turn::NoSlot };
        self.connections += 1;
        self.in_flight += usize::from(class != Class::Fresh);
        self.in_flight_unproven += usize::from(class == Class::Unproven);
        self.in_flight_fresh += usize::from(class == Class::Fresh);
        Turn::Granted { item: flow.item, class, waited: now.saturating_duration_since(flow.since) }
    }

    /// Which of those who may dial is next; there is one.
    fn whose_turn(&mut self, proven: bool, unproven: bool, fresh: bool) -> Class {
        if fresh && self.in_flight_fresh < self.fresh_own() {
            return Class::Fresh;
        }
        if proven && !(self.unproven_next && (unproven || fresh)) {
            self.unproven_next = true;
            return Class::Proven;
        }
        self.unproven_next = false;
        let class = if fresh && (self.fresh_next || !unproven) { Class::Fresh } else { Class::Unproven };
        self.fresh_next = class == Class::Unproven;
        class
    }

    /// Slots, and connections beyond the budget, that only fresh dials get.
    fn fresh_own(&self) -> usize {
        self.slots.div_ceil(FRESH_ONE_FOR)
    }

    /// Free slots, and how many of them somebody unproven may take.
    fn free(&self) -> (usize, usize) {
        let beyond = self.in_flight_fresh.saturating_sub(self.fresh_own());
        let free = self.slots.saturating_sub(self.in_flight + beyond);
        let free_unproven = (self.slots - self.reserved).saturating_sub(self.in_flight_unproven + beyond);
        (free, free.min(free_unproven))
    }

    /// A dial is over. Cannot panic: it runs where a dial unwinds.
    pub(crate) fn release_slot(&mut self, class: Class) {
        let less = |count: &mut usize, of: bool| *count = count.saturating_sub(usize::from(of));
        less(&mut self.in_flight, class != Class::Fresh);
        less(&mut self.in_flight_unproven, class == Class::Unproven);
        less(&mut self.in_flight_fresh, class == Class::Fresh);
    }

    /// A connection, or the hope of one, is gone. Cannot panic.
    pub(crate) fn release_connection(&mut self) {
        self.connections = self.connections.saturating_sub(1);
    }

    /// Empties the line, for the end of the partition. What is returned is to be dropped.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        let lines = [&mut self.proven, &mut self.unproven, &mut self.fresh];
        lines.into_iter().flat_map(|line| line.drain(..)).map(|flow| flow.item).collect()
    }

    /// Connections that must end before all those can dial who have a slot: as many as they are, and what a larger
    /// budget or probes have left beyond this one.
    pub(crate) fn wants_room(&self) -> usize {
        let (free, free_unproven) = self.free();
        let ordinary = (self.proven.len() + self.unproven.len().min(free_unproven)).min(free);
        if ordinary > 0 {
            return self.surplus() + ordinary;
        }
        let slots = self.fresh_own().saturating_sub(self.in_flight_fresh) + free_unproven;
        self.surplus().saturating_sub(self.fresh_own()) + self.fresh.len().min(slots)
    }

    /// Connections beyond the budget.
    pub(crate) fn surplus(&self) -> usize {
        self.connections.saturating_sub(self.connections_max)
    }

    /// Origins in line.
    pub(crate) fn queued(&self) -> usize {
        self.proven.len() + self.unproven.len() + self.fresh.len()
    }

    /// How long the one who waits longest has been in line.
    pub(crate) fn oldest(&self, now: Instant) -> Duration {
        let since = self.proven.iter().chain(&self.unproven).chain(&self.fresh).map(|flow| flow.since).min();
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight + self.in_flight_unproven
    }

    /// Dial slots taken, those of probes included.
    pub(crate) fn slots_taken(&self) -> usize {
        self.in_flight + self.in_flight_fresh
    }

    /// Connections held, dials included.
    pub(crate) fn connections(&self) -> usize {
        self.connections
    }
}

/// Rotates the line until somebody has earned the dial. Each rotation earns somebody a unit, so that a
/// grant costs no more rotations than its own price.
fn turn<T>(line: &mut VecDeque<Flow<T>>) -> Option<Flow<T>> {
    while let Some(mut flow) = line.pop_front() {
        flow.credit += QUANTUM;
        if flow.credit >= flow.cost || line.is_empty() {
            return Some(flow);
        }
        line.push_back(flow);
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grants(scheduler: &mut Scheduler<u32>) -> Vec<u32> {
        let now = Instant::now();
        std::iter::from_fn(|| match scheduler.next(now, || Ok(())) {
            Turn::Granted { item, .. } => Some(item),
            _ => None,
        })
        .collect()
    }

    #[test]
    fn r01_unproven_origins_leave_slots_for_proven_ones() {
        let mut scheduler = Scheduler::new(8, 100);
        (0..20).for_each(|dead| scheduler.enqueue(dead, Class::Unproven, 1, Instant::now()));
        assert_eq!(grants(&mut scheduler).len(), 6);
        scheduler.enqueue(100, Class::Proven, 1, Instant::now());
        scheduler.enqueue(101, Class::Proven, 1, Instant::now());
        scheduler.enqueue(102, Class::Proven, 1, Instant::now());
        assert_eq!(grants(&mut scheduler), [100, 101]);
        scheduler.release_slot(Class::Proven);
        assert_eq!(grants(&mut scheduler), [102]);
    }

    #[test]
    fn r20_fewer_slots_bite_at_once_and_more_are_used_at_once() {
        let mut scheduler = Scheduler::new(4, 100);
        (0..8).for_each(|n| scheduler.enqueue(n, Class::Proven, 1, Instant::now()));
        assert_eq!(grants(&mut scheduler).len(), 4);
        scheduler.set_limits(2, 100);
        scheduler.release_slot(Class::Proven);
        scheduler.release_slot(Class::Proven);
        assert!(grants(&mut scheduler).is_empty());
        scheduler.set_limits(5, 100);
        assert_eq!(grants(&mut scheduler).len(), 3);
    }

    #[test]
    fn r01_a_probe_finds_a_slot_and_room_while_dead_hosts_hold_all_others() {
        let mut scheduler = Scheduler::new(8, 8);
        let now = Instant::now();
        (0..20).for_each(|dead| scheduler.enqueue(dead, Class::Unproven, 8, now));
        (20..40).for_each(|proven| scheduler.enqueue(proven, Class::Proven, 1, now));
        assert_eq!(grants(&mut scheduler).len(), 8);
        (100..103).for_each(|probe| scheduler.enqueue(probe, Class::Fresh, 1, now));
        assert_eq!(grants(&mut scheduler), [100, 101], "its own two slots");
        scheduler.release_slot(Class::Fresh);
        scheduler.release_connection();
        assert_eq!(grants(&mut scheduler), [102]);
    }

    #[test]
    fn r01_probes_of_dead_hosts_leave_slots_for_proven_ones() {
        let mut scheduler = Scheduler::new(8, 100);
        (0..50).for_each(|probe| scheduler.enqueue(probe, Class::Fresh, 1, Instant::now()));
        assert_eq!(grants(&mut scheduler).len(), 8, "two of their own and what the unproven may have");
        (100..110).for_each(|proven| scheduler.enqueue(proven, Class::Proven, 1, Instant::now()));
        assert_eq!(grants(&mut scheduler), [100, 101]);
    }

    #[test]
    fn r01_probes_of_dead_hosts_do_not_keep_a_new_host_from_its_first_dial() {
        let mut scheduler = Scheduler::new(8, 100);
        let now = Instant::now();
        (0..50).for_each(|probe| scheduler.enqueue(probe, Class::Fresh, 1, now));
        let mut probing = grants(&mut scheduler).len();
        (100..103).for_each(|new| scheduler.enqueue(new, Class::Unproven, 1, now));
        let mut dialled = Vec::new();
        for _ in 0..8 {
            // A probe ends beyond those that have slots of their own, and the next ones are always there.
            scheduler.release_slot(Class::Fresh);
            probing -= 1;
            for item in grants(&mut scheduler) {
                probing += usize::from(item < 100);
                dialled.extend((item >= 100).then_some(item));
            }
        }
        assert_eq!(dialled, [100, 101, 102], "{probing} probes under way");
        assert_eq!(probing, 5, "what probes have of their own, and what nobody else wants");
    }

    #[test]
    fn i09_room_is_made_for_those_who_have_a_slot_and_for_what_is_too_much_already() {
        let mut scheduler = Scheduler::new(8, 3);
        let now = Instant::now();
        (0..3).for_each(|n| scheduler.enqueue(n, Class::Unproven, 1, now));
        assert_eq!(grants(&mut scheduler).len(), 3);
        (10..30).for_each(|n| scheduler.enqueue(n, Class::Unproven, 1, now));
        assert_eq!(scheduler.wants_room(), 3, "the others have no slot");
        scheduler.enqueue(30, Class::Proven, 1, now);
        assert_eq!(scheduler.wants_room(), 4);
        scheduler.set_limits(8, 1);
        assert_eq!((scheduler.surplus(), scheduler.wants_room()), (2, 6), "two must go before there is room for one");
    }

    proptest! {
        #[test]
        fn r01_i09_slots_stay_within_their_shares_and_no_probe_waits_beside_a_free_one(
            ops in prop::collection::vec((0..4_u8, 0..3_usize), 1..200),
            slots in 1..20_usize,
        ) {
            let classes = [Class::Proven, Class::Unproven, Class::Fresh];
            let mut scheduler = Scheduler::new(slots, 1_000);
            let (now, own) = (Instant::now(), slots.div_ceil(FRESH_ONE_FOR));
            let mut held = [0_usize; 3];
            for (op, which) in ops {
                match op {
                    0 | 1 => scheduler.enqueue(which, classes[which], 1, now),
                    2 if held[which] > 0 => {
                        held[which] -= 1;
                        scheduler.release_slot(classes[which]);
                        scheduler.release_connection();
                    }
                    _ => {}
                }
                while let Turn::Granted { class, .. } = scheduler.next(now, || Ok(())) {
                    held[classes.iter().position(|known| *known == class).expect("known")] += 1;
                }
                let beyond = held[2].saturating_sub(own);
                prop_assert!(held[0] + held[1] + beyond <= slots, "{held:?} of {slots}");
                prop_assert!(held[1] + beyond <= slots - reserve(slots), "{held:?} of {slots}");
                prop_assert!(scheduler.fresh.is_empty() || held[2] >= own, "a probe waits beside a free slot");
            }
        }
    }

    #[test]
    fn proven_and_unproven_take_turns() {
        let mut scheduler = Scheduler::new(4, 100);
        for n in 0..2 {
            scheduler.enqueue(n, Class::Unproven, 1, Instant::now());
            scheduler.enqueue(10 + n, Class::Proven, 1, Instant::now());
        }
        assert_eq!(grants(&mut scheduler), [10, 0, 11, 1]);
    }

    #[test]
    fn i09_connections_stay_within_their_budget() {
        let mut scheduler = Scheduler::new(8, 2);
        (0..3).for_each(|n| scheduler.enqueue(n, Class::Proven, 1, Instant::now()));
        assert_eq!(grants(&mut scheduler), [0, 1]);
        scheduler.release_slot(Class::Proven);
        assert_eq!(scheduler.next(Instant::now(), || Ok(())), Turn::NoRoom);
        scheduler.release_connection();
        assert_eq!(grants(&mut scheduler), [2]);
    }

    #[test]
    fn r01_origins_with_slow_dials_get_the_same_slot_time_not_the_same_number_of_dials() {
        let mut scheduler = Scheduler::new(1, 1_000);
        let now = Instant::now();
        let mut dials = [0; 2];
        scheduler.enqueue(0, Class::Proven, 1, now);
        scheduler.enqueue(1, Class::Proven, 8, now);
        for _ in 0..180 {
            let Turn::Granted { item, class, .. } = scheduler.next(now, || Ok(())) else { panic!("a slot is free") };
            dials[item] += 1;
            scheduler.release_slot(class);
            scheduler.enqueue(item, Class::Proven, if item == 1 { 8 } else { 1 }, now);
        }
        assert!((7..=9).contains(&(dials[0] / dials[1])), "{dials:?}");
    }

    #[test]
    fn r04_a_used_up_rate_takes_no_slot() {
        let mut scheduler = Scheduler::new(4, 100);
        let now = Instant::now();
        scheduler.enqueue(1, Class::Proven, 1, now);
        let later = now + Duration::from_secs(1);
        assert_eq!(scheduler.next(now, || Err(later)), Turn::NotYet(later));
        assert_eq!((scheduler.connections(), scheduler.queued()), (0, 1));
        assert_eq!(grants(&mut scheduler), [1]);
    }

    #[test]
    fn r01_every_size_keeps_a_quarter_for_the_proven_and_one_slot_for_the_rest() {
        for slots in 1..100 {
            let kept = reserve(slots);
            assert!(kept < slots && (slots == 1 || kept * 4 >= slots), "{kept} of {slots}");
            assert!(origin_share(slots) == 1 || origin_share(slots) * 4 <= slots);
            assert!(origin_alone(slots) == slots || origin_alone(slots) * 4 <= slots * 3);
        }
    }
}
