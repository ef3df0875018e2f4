//! What happens to the model of a cell, at random.

use super::moves::retune;
use super::*;

#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    Wait {
        fresh: bool,
        patience_ms: u64,
    },
    Cancel(usize),
    /// A caller who was woken late looks at last.
    Look(usize),
    GrantSlot,
    DialWorks {
        at: usize,
        shared: bool,
    },
    DialFails {
        at: usize,
        jitter: f64,
    },
    Answer {
        at: usize,
        verdict: Verdict,
    },
    Returning(usize),
    CloseConn(usize),
    Goaway(usize),
    Pass(u64),
    Evict,
    /// The cell panics and begins a new life.
    Panic,
    /// Something of an earlier life ends.
    Late(usize),
    /// As `Answer`, by a server that says how long it keeps an idle connection.
    KeepAlive {
        at: usize,
        ms: u64,
    },
    /// A peer is not heard of any longer, or is again.
    Silence(usize),
    Heard(usize),
    /// Limits move.
    Retune {
        connections: usize,
        streams: usize,
        waiters: usize,
        idle_ms: u64,
    },
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (prop::bool::weighted(0.2), 0..500_u64).prop_map(|(fresh, patience_ms)| Op::Wait { fresh, patience_ms }),
        2 => any::<usize>().prop_map(Op::Cancel),
        3 => any::<usize>().prop_map(Op::Look),
        6 => Just(Op::GrantSlot),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(at, shared)| Op::DialWorks { at, shared }),
        2 => (any::<usize>(), 0.0..1.0).prop_map(|(at, jitter)| Op::DialFails { at, jitter }),
        5 => (any::<usize>(), verdict()).prop_map(|(at, verdict)| Op::Answer { at, verdict }),
        2 => any::<usize>().prop_map(Op::Returning),
        2 => any::<usize>().prop_map(Op::CloseConn),
        1 => any::<usize>().prop_map(Op::Goaway),
        3 => (1..300_u64).prop_map(Op::Pass),
        1 => Just(Op::Evict),
        1 => Just(Op::Panic),
        3 => any::<usize>().prop_map(Op::Late),
        2 => (any::<usize>(), 1..600_u64).prop_map(|(at, ms)| Op::KeepAlive { at, ms }),
        1 => any::<usize>().prop_map(Op::Silence),
        2 => any::<usize>().prop_map(Op::Heard),
        1 => retune(),
    ]
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![Just(Verdict::Unused), Just(Verdict::Answered), Just(Verdict::Abandoned), Just(Verdict::TimedOut)]
}
