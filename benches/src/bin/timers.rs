//! What a timer of a call costs: the ordered set that a shard has, against a hashed timing wheel.
//!
//! A shard's timers are the calls of its dirty set that wait for a moment: the end of the empty grace, or
//! the next attempt. Nearly all of them are cancelled: somebody joins again. So what counts is to put one
//! in and to take it out, with as many waiting as a syncer has calls.
//!
//! `cargo run --release -p benches --bin timers`

#![allow(clippy::print_stdout)]

use std::collections::BTreeSet;
use std::hint::black_box;

use tokio::time::Instant;

/// Shards of a syncer.
const SHARDS: usize = 16;
/// The longest wait of the workload: the empty grace.
const GRACE_MS: u64 = 5_000;
/// A slot of the wheel; a grace that ends 10 ms late is not noticed.
const TICK_MS: u64 = 10;
/// Slots of the wheel: the grace, and a turn to spare.
const SLOTS: usize = 512;
/// Rounds; the median is told.
const ROUNDS: usize = 9;
/// No node.
const NONE: u32 = u32::MAX;

/// What both can do. A timer is named by its call; `at_ms` is known to the call, as its place is.
trait Timers {
    fn new(calls: usize) -> Self;
    fn insert(&mut self, call: u32, at_ms: u64);
    fn cancel(&mut self, call: u32, at_ms: u64);
    /// Takes out whatever is due by `now_ms`.
    fn expire(&mut self, now_ms: u64) -> usize;
}

/// As in the dirty set.
struct Ordered(BTreeSet<(u64, u64)>);

impl Timers for Ordered {
    fn new(_: usize) -> Self {
        Self(BTreeSet::new())
    }
    fn insert(&mut self, call: u32, at_ms: u64) {
        self.0.insert((at_ms, u64::from(call)));
    }
    fn cancel(&mut self, call: u32, at_ms: u64) {
        self.0.remove(&(at_ms, u64::from(call)));
    }
    fn expire(&mut self, now_ms: u64) -> usize {
        let mut expired = 0;
        while self.0.first().is_some_and(|(at, _)| *at <= now_ms) {
            black_box(self.0.pop_first());
            expired += 1;
        }
        expired
    }
}

/// Slots of doubly linked lists; a node for each call, so that nothing is ever allocated.
struct Wheel {
    heads: Vec<u32>,
    nodes: Vec<Node>,
    now_tick: u64,
}

#[derive(Clone, Copy)]
struct Node {
    next: u32,
    previous: u32,
    slot: u32,
}

impl Timers for Wheel {
    fn new(calls: usize) -> Self {
        let node = Node { next: NONE, previous: NONE, slot: NONE };
        Self { heads: vec![NONE; SLOTS], nodes: vec![node; calls], now_tick: 0 }
    }
    fn insert(&mut self, call: u32, at_ms: u64) {
        let slot = (at_ms / TICK_MS) as usize % SLOTS;
        let head = std::mem::replace(&mut self.heads[slot], call);
        self.nodes[call as usize] = Node { next: head, previous: NONE, slot: slot as u32 };
        if head != NONE {
            self.nodes[head as usize].previous = call;
        }
    }
    fn cancel(&mut self, call: u32, _: u64) {
        let Node { next, previous, slot } = self.nodes[call as usize];
        match previous {
            NONE => self.heads[slot as usize] = next,
            previous => self.nodes[previous as usize].next = next,
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
    }
    fn expire(&mut self, now_ms: u64) -> usize {
        let mut expired = 0;
        while self.now_tick <= now_ms / TICK_MS {
            let mut at = std::mem::replace(&mut self.heads[self.now_tick as usize % SLOTS], NONE);
            while at != NONE {
                at = black_box(self.nodes[at as usize]).next;
                expired += 1;
            }
            self.now_tick += 1;
        }
        expired
    }
}

/// A generator that is the same in every round.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Nanoseconds for each timer: put in, moved (out and in again, in random order), run out.
fn round<T: Timers>(calls: usize, seed: u64) -> [f64; 3] {
    let per_shard = calls / SHARDS;
    let mut random = Random(seed | 1);
    let mut shards: Vec<T> = (0..SHARDS).map(|_| T::new(per_shard)).collect();
    let mut at: Vec<Vec<u64>> = vec![vec![0; per_shard]; SHARDS];
    let each = |began: Instant| {
        Instant::now().saturating_duration_since(began).as_nanos() as f64 / (per_shard * SHARDS) as f64
    };
    let began = Instant::now();
    for call in 0..per_shard {
        for (shard, at) in shards.iter_mut().zip(&mut at) {
            at[call] = random.next() % GRACE_MS;
            shard.insert(call as u32, at[call]);
        }
    }
    let inserted = each(began);
    let began = Instant::now();
    for _ in 0..per_shard * SHARDS {
        let pick = random.next();
        let (shard, call) = (pick as usize % SHARDS, (pick >> 8) as usize % per_shard);
        shards[shard].cancel(call as u32, at[shard][call]);
        at[shard][call] = (pick >> 32) % GRACE_MS;
        shards[shard].insert(call as u32, at[shard][call]);
    }
    let moved = each(began);
    let began = Instant::now();
    let expired: usize = shards.iter_mut().map(|shard| shard.expire(GRACE_MS)).sum();
    assert_eq!(expired, per_shard * SHARDS, "every timer runs out once");
    [inserted, moved, each(began)]
}

fn median(mut rounds: Vec<[f64; 3]>, what: usize) -> f64 {
    rounds.sort_by(|a, b| a[what].total_cmp(&b[what]));
    rounds[rounds.len() / 2][what]
}

fn main() {
    println!("ns for each timer, median of {ROUNDS} rounds, {SHARDS} shards");
    println!("{:>10} {:>10} {:>10} {:>10} {:>10}", "timers", "who", "put in", "moved", "run out");
    for calls in [10_000, 100_000, 1_000_000] {
        let (mut ordered, mut wheel) = (Vec::new(), Vec::new());
        for n in 0..ROUNDS {
            // In turns, so that both see the same machine.
            ordered.push(round::<Ordered>(calls, 77 + n as u64));
            wheel.push(round::<Wheel>(calls, 77 + n as u64));
        }
        for (who, rounds) in [("ordered", ordered), ("wheel", wheel)] {
            let of = |what| median(rounds.clone(), what);
            println!("{calls:>10} {who:>10} {:>10.0} {:>10.0} {:>10.0}", of(0), of(1), of(2));
        }
    }
}
