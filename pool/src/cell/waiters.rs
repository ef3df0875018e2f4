//! Callers in line for one origin.
//!
//! A slab of nodes in a doubly linked list: joining, being answered and giving up anywhere are O(1), whatever
//! the length. (A queue that is searched on cancel made 40,000 cancels take 3 s.) An answered node
//! leaves the line at once and stays in the slab until its owner has looked, so an answer needs no allocation of
//! its own. Keys carry a generation, so that a late look or cancel cannot hit the next tenant of a slot.
//!
//! Deadlines are kept in the same nodes. Callers of one origin mostly have the same patience, so most
//! come with a deadline that is no earlier than those before them: they are sorted by nature, and the first of them
//! in line has the earliest. Only who comes with an earlier one goes into a heap; its entry
//! stays there until it surfaces or until stale entries outnumber the line.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem;
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// Stale deadlines tolerated beyond the number of waiters before the heap is rebuilt.
const STALE_MAX: usize = 64;

/// Room that an empty line keeps; more is given back, so that memory falls after a storm. Eight callers and answers are
/// 1.3 KiB: 32 MiB for the lines of 25,000 origins. The next storm makes room again, a few times for all its callers.
const EMPTY_CAPACITY_MAX: usize = 8;

/// No node: a slab of so many would fill 300 GiB.
const END: u32 = u32::MAX;

/// Names one waiter for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WaiterKey {
    pub(super) index: u32,
    pub(super) generation: u64,
}

/// First in, first out, with deadlines. `W` wakes a waiter, `A` is what it is told. What changes with each caller comes
/// first: a cache line with the lock around it, and another one.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Waiters<W, A> {
    nodes: Slab<Node<W>>,
    /// The first and the last in line.
    head: u32,
    tail: u32,
    /// The first in line who is not `early`, and the latest deadline of those.
    sorted: u32,
    waiting: u32,
    generation: u64,
    answers: Slab<Told<A>>,
    latest: Option<Instant>,
    /// The deadlines of those who came with an earlier one than somebody before them.
    early: BinaryHeap<Reverse<(Instant, WaiterKey)>>,
}

/// One cache line, for a line of thousands is left in any order.
#[derive(Debug)]
#[repr(align(64))]
struct Node<W> {
    state: State<W>,
    generation: u64,
    deadline: Instant,
    /// From joining to the deadline.
    patience_ns: u64,
    /// The neighbours in line.
    prev: u32,
    next: u32,
    early: bool,
}

/// One cache line, as a node.
#[derive(Debug)]
#[repr(align(64))]
struct Told<A>(A);

#[derive(Debug)]
enum State<W> {
    Waiting(W),
    /// Where the answer is.
    Answered(usize),
}

/// What a waiter finds when it looks.
#[derive(Debug)]
pub(crate) enum Look<'a, W, A> {
    /// It is still in line, and is woken by this.
    Waiting(&'a mut W),
    Answered(A),
    /// Nobody knows of it.
    Gone,
}

// === impl Waiters ===

impl<W, A> Waiters<W, A> {
    /// No key made after `generation` is one of those before.
    pub(crate) fn new(generation: u64) -> Self {
        Self {
            nodes: Slab::new(),
            answers: Slab::new(),
            head: END,
            tail: END,
            sorted: END,
            latest: None,
            early: BinaryHeap::new(),
            waiting: 0,
            generation,
        }
    }

    /// What wakes those in line, in no order, whatever state the lists are in.
    pub(crate) fn into_waiters(self) -> impl Iterator<Item = W> {
        self.nodes.into_iter().filter_map(|(_, node)| match node.state {
            State::Waiting(waiter) => Some(waiter),
            State::Answered(_) => None,
        })
    }

    /// Those in line, without those who have been answered.
    pub(crate) fn len(&self) -> usize {
        self.waiting as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    pub(crate) fn push_back(&mut self, waiter: W, deadline: Instant, now: Instant) -> WaiterKey {
        self.generation += 1;
        let generation = self.generation;
        let early = self.latest.is_some_and(|latest| deadline < latest);
        let patience = deadline.saturating_duration_since(now).as_nanos();
        let node = Node {
            state: State::Waiting(waiter),
            generation,
            deadline,
            patience_ns: u64::try_from(patience).unwrap_or(u64::MAX),
            prev: self.tail,
            next: END,
            early,
        };
        let index = u32::try_from(self.nodes.insert(node)).expect("lines have limits far below four billion");
        let key = WaiterKey { index, generation };
        match self.nodes.get_mut(self.tail as usize) {
            Some(last) => last.next = index,
            None => self.head = index,
        }
        self.tail = index;
        if early {
            self.early.push(Reverse((deadline, key)));
        } else {
            if self.latest != Some(deadline) {
                self.latest = Some(deadline);
            }
            if self.sorted == END {
                self.sorted = index;
            }
        }
        self.waiting += 1;
        key
    }

    /// The first in line.
    pub(crate) fn front(&self) -> Option<WaiterKey> {
        self.key(self.head)
    }

    /// When the first in line joined.
    pub(crate) fn front_joined(&self) -> Option<Instant> {
        self.nodes.get(self.head as usize).map(Node::joined)
    }

    /// Takes a waiter out of the line with what it is to be told; returns what wakes it.
    pub(crate) fn answer(&mut self, key: WaiterKey, answer: A) -> Option<W> {
        let node = self.nodes.get_mut(key.index as usize).filter(|node| node.is_waiting(key))?;
        let state = State::Answered(self.answers.insert(Told(answer)));
        let State::Waiting(waiter) = mem::replace(&mut node.state, state) else { return None };
        self.unlink(key.index);
        Some(waiter)
    }

    /// What has become of a waiter. An answer is given out once.
    pub(crate) fn look(&mut self, key: WaiterKey) -> Look<'_, W, A> {
        match self.nodes.get(key.index as usize) {
            Some(node) if node.is_waiting(key) => {}
            _ => return self.collect(key).map_or(Look::Gone, Look::Answered),
        }
        match self.nodes.get_mut(key.index as usize).map(|node| &mut node.state) {
            Some(State::Waiting(waiter)) => Look::Waiting(waiter),
            _ => Look::Gone,
        }
    }

    /// A waiter gives up. `None` if it is not in line (any more): perhaps there is an answer to look at.
    pub(crate) fn leave(&mut self, key: WaiterKey) -> Option<W> {
        let node = self.nodes.get_mut(key.index as usize).filter(|node| node.is_waiting(key))?;
        let left = mem::replace(&mut node.state, State::Answered(usize::MAX));
        self.unlink(key.index);
        self.nodes.remove(key.index as usize);
        self.tidy();
        match left {
            State::Waiting(waiter) => Some(waiter),
            State::Answered(_) => None,
        }
    }

    /// A waiter whose deadline has come.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<WaiterKey> {
        self.earliest().filter(|(deadline, _)| *deadline <= now).map(|(_, key)| key)
    }

    /// The earliest deadline in the line.
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        self.earliest().map(|(deadline, _)| deadline)
    }

    fn earliest(&mut self) -> Option<(Instant, WaiterKey)> {
        while self.early.peek().is_some_and(|Reverse((_, key))| !self.is_waiting(*key)) {
            self.early.pop();
        }
        let early = self.early.peek().map(|Reverse(early)| *early);
        let sorted = self.key(self.sorted).zip(self.nodes.get(self.sorted as usize));
        let sorted = sorted.map(|(key, node)| (node.deadline, key));
        early.into_iter().chain(sorted).min()
    }

    fn collect(&mut self, key: WaiterKey) -> Option<A> {
        let node = self.nodes.get(key.index as usize).filter(|node| node.generation == key.generation)?;
        let State::Answered(at) = node.state else { return None };
        self.nodes.remove(key.index as usize);
        let Told(answer) = self.answers.remove(at);
        self.tidy();
        Some(answer)
    }

    fn key(&self, index: u32) -> Option<WaiterKey> {
        self.nodes.get(index as usize).map(|node| WaiterKey { index, generation: node.generation })
    }

    fn is_waiting(&self, key: WaiterKey) -> bool {
        self.nodes.get(key.index as usize).is_some_and(|node| node.is_waiting(key))
    }

    /// Takes a node out of the line.
    fn unlink(&mut self, index: u32) {
        let Some(&Node { prev, next, .. }) = self.nodes.get(index as usize) else { return };
        // The first has nobody before it, whatever it says: so the one after it need not be touched when it goes.
        if self.head == index {
            self.head = next;
        } else if let Some(before) = self.nodes.get_mut(prev as usize) {
            before.next = next;
        }
        if self.tail == index {
            self.tail = if self.head == END { END } else { prev };
        } else if self.head != next
            && let Some(after) = self.nodes.get_mut(next as usize)
        {
            after.prev = prev;
        }
        self.waiting -= 1;
        if self.sorted == index {
            self.sorted = next;
            // Nobody is passed over twice.
            while !self.early.is_empty()
                && let Some(node) = self.nodes.get(self.sorted as usize).filter(|node| node.early)
            {
                self.sorted = node.next;
            }
            if self.sorted == END {
                self.latest = None;
            }
        }
        if self.early.len() > 2 * self.len() + STALE_MAX {
            let nodes = &self.nodes;
            let waits = |key: &WaiterKey| nodes.get(key.index as usize).is_some_and(|node| node.is_waiting(*key));
            self.early.retain(|Reverse((_, key))| waits(key));
        }
    }

    fn tidy(&mut self) {
        if !self.nodes.is_empty() {
            return;
        }
        self.early.clear();
        if self.nodes.capacity().max(self.early.capacity()) > EMPTY_CAPACITY_MAX {
            self.nodes.shrink_to_fit();
            self.answers.shrink_to_fit();
            self.early.shrink_to_fit();
        }
    }
}

// === impl Node ===

impl<W> Node<W> {
    fn is_waiting(&self, key: WaiterKey) -> bool {
        self.generation == key.generation && matches!(self.state, State::Waiting(_))
    }

    fn joined(&self) -> Instant {
        self.deadline.checked_sub(Duration::from_nanos(self.patience_ns)).unwrap_or(self.deadline)
    }
}
