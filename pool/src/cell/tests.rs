//! Random events against the cell, checked after every step against what must always hold.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::dial::scheduler::Class;
use crate::limits::LaneLimits;

mod decisions;
mod ends;
mod foreign;
mod free;
mod interleavings;
mod moves;
mod ops;
mod probes;
mod relics;
mod starts;

use self::moves::Idling;
use self::ops::{Op, op};
use self::relics::Relic;

const WAITERS_MAX: usize = 12;
const CONNECTIONS_MAX: usize = 4;
const STREAMS_MAX: usize = 3;
/// The origin's share of them is two.
/// How long every dial is said to have taken.
const DIAL_TIME: Duration = Duration::from_millis(20);
const SLOTS: usize = 8;

/// A connection as the shell would hold it.
#[derive(Debug, Clone)]
struct Pipe {
    shared: bool,
    open: Arc<AtomicBool>,
    /// The peer is heard of.
    lively: Arc<AtomicBool>,
    streams: Arc<AtomicUsize>,
}

impl Pipe {
    fn new(shared: bool) -> Self {
        let yes = || Arc::new(AtomicBool::new(true));
        Self { shared, open: yes(), lively: yes(), streams: Arc::new(AtomicUsize::new(STREAMS_MAX)) }
    }
}

impl<C: Channel, W, E: Clone> CellState<C, W, E> {
    fn step(&mut self, event: Event<C, E>, now: Instant) -> Actions<C, W, E> {
        let mut out = Actions::new();
        self.apply(&mut Some(event), now, &mut out);
        out
    }
}

impl Channel for Pipe {
    fn share(&self) -> Option<Self> {
        self.shared.then(|| self.clone())
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    fn is_lively(&self) -> bool {
        self.lively.load(Ordering::Relaxed)
    }

    fn streams_max(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }
}

/// The shell's side, naive: it remembers everything and checks what the cell says.
struct Model {
    cell: CellState<Pipe, u32, &'static str>,
    limits: LaneLimits,
    tuning: Arc<Tuning>,
    draining: Option<Intake>,
    now: Instant,
    next_waiter: u32,
    /// Who is in line, in order, with deadline; normal and fresh apart.
    lines: [VecDeque<(u32, Ticket, Instant)>; 2],
    dials: Vec<(bool, Epoch)>,
    conns: HashMap<ConnKey, Pipe>,
    leases: Vec<(ConnKey, Pipe, bool)>,
    queued: usize,
    queued_fresh: usize,
    armed: Vec<Instant>,
    answered: HashSet<u32>,
    /// Who has an answer and has not looked.
    woken: Vec<(u32, Ticket)>,
    /// Every fourth caller is slow to look.
    slow: bool,
    last_dial_failed: bool,
    relics: Vec<Relic>,
    /// How long every request is said to have held its connection.
    hold_time: Duration,
    /// What the next answer says of it, and until when each connection may then be used.
    keep_alive: Option<Duration>,
    idling: HashMap<ConnKey, Idling>,
    /// Permits and the longest line at the last check: smaller limits take nothing away.
    permits_before: usize,
    line_before: usize,
}

impl Model {
    fn new() -> Self {
        let limits = LaneLimits {
            connections_per_origin_max: CONNECTIONS_MAX,
            waiters_per_origin_max: WAITERS_MAX,
            h2_streams_max: STREAMS_MAX,
            idle_timeout: Duration::from_millis(400),
            age_max: Duration::from_millis(2_000),
            backoff_base: Duration::from_millis(50),
            backoff_max: Duration::from_millis(200),
            ..LaneLimits::default()
        };
        let tuning = Arc::new(Tuning::new(&limits, SLOTS));
        Self {
            cell: CellState::new(Arc::clone(&tuning)),
            limits,
            tuning,
            draining: None,
            now: Instant::now(),
            next_waiter: 0,
            lines: [VecDeque::new(), VecDeque::new()],
            dials: Vec::new(),
            conns: HashMap::new(),
            leases: Vec::new(),
            queued: 0,
            queued_fresh: 0,
            armed: Vec::new(),
            answered: HashSet::new(),
            woken: Vec::new(),
            slow: false,
            last_dial_failed: false,
            relics: Vec::new(),
            hold_time: Duration::from_millis(7),
            keep_alive: None,
            idling: HashMap::new(),
            permits_before: 0,
            line_before: 0,
        }
    }

    fn apply(&mut self, op: Op) {
        let pick = |at: usize, len: usize| (len > 0).then(|| at % len);
        match op {
            Op::Wait { fresh, patience_ms } => {
                let waiter = self.next_waiter;
                self.next_waiter += 1;
                let deadline = self.now + Duration::from_millis(patience_ms);
                self.join(waiter, deadline, fresh);
            }
            Op::Cancel(at) => {
                let line = usize::from(at % 5 == 0);
                if at % 3 == 0 && !self.woken.is_empty() {
                    let (_, ticket) = self.woken.swap_remove(at % self.woken.len());
                    self.leave(ticket);
                } else if let Some(at) = pick(at, self.lines[line].len()) {
                    let (waiter, ticket, _) = self.lines[line].remove(at).expect("in range");
                    self.answered.insert(waiter);
                    self.leave(ticket);
                }
            }
            Op::Look(at) => {
                if let Some(at) = pick(at, self.woken.len()) {
                    let (waiter, ticket) = self.woken.swap_remove(at);
                    self.collect(waiter, ticket);
                }
            }
            Op::Panic => self.panic(),
            Op::Late(at) => {
                if let Some(at) = pick(at, self.relics.len()) {
                    let relic = self.relics.swap_remove(at);
                    self.late(relic);
                }
            }
            Op::GrantSlot if self.queued_fresh > 0 => {
                self.queued_fresh -= 1;
                self.step(Event::Slot { fresh: true, life: self.cell.life }, None);
            }
            Op::GrantSlot if self.queued > 0 => {
                self.queued -= 1;
                self.step(Event::Slot { fresh: false, life: self.cell.life }, None);
            }
            Op::DialWorks { at, shared } => {
                if let Some(at) = pick(at, self.dials.len()) {
                    let (fresh, epoch) = self.dials.swap_remove(at);
                    let channel = Pipe::new(shared);
                    self.last_dial_failed = false;
                    let event = Event::Connected {
                        fresh,
                        epoch,
                        channel: channel.clone(),
                        shared,
                        took: DIAL_TIME,
                        jitter: 0.5,
                    };
                    self.step(event, Some(&channel));
                }
            }
            Op::DialFails { at, jitter } => {
                if let Some(at) = pick(at, self.dials.len()) {
                    let (fresh, epoch) = self.dials.swap_remove(at);
                    self.last_dial_failed = true;
                    let dial = FailedDial { fresh, epoch, error: "refused", blame: Blame::Host, jitter };
                    self.step(Event::DialFailed { dial, took: DIAL_TIME }, None);
                }
            }
            Op::Answer { at, verdict } => {
                if let Some(at) = pick(at, self.leases.len()) {
                    let (key, pipe, _) = self.leases.swap_remove(at);
                    let whole = !pipe.shared && matches!(verdict, Verdict::Unused | Verdict::Answered);
                    let now = (verdict == Verdict::Answered).then_some(self.now);
                    let mut channel = whole.then(|| pipe.clone());
                    let keep_alive = self.keep_alive.take();
                    self.falls_idle(key, keep_alive);
                    // Every other return tries the fast way first.
                    if at % 2 == 1 && matches!(verdict, Verdict::Unused | Verdict::Answered) {
                        match self.cell.put_back(key, &mut channel, now, keep_alive) {
                            Back::Idle => return assert!(channel.is_none() && self.lines[0].is_empty()),
                            Back::PassedOn(waiter) => {
                                assert!(channel.is_none());
                                return self.wake(waiter);
                            }
                            Back::Not => assert_eq!(channel.is_some(), whole, "something has changed"),
                        }
                    }
                    let event = Event::Return {
                        key,
                        channel: whole.then_some(pipe),
                        verdict,
                        keep_alive,
                        held: Some(self.hold_time),
                    };
                    self.step(event, None);
                }
            }
            Op::Returning(at) => {
                let exclusive: Vec<_> = self.leases.iter().filter(|(_, pipe, _)| !pipe.shared).collect();
                if let Some(at) = pick(at, exclusive.len()) {
                    let key = exclusive[at].0;
                    self.step(Event::Returning(key), None);
                }
            }
            Op::CloseConn(at) => {
                let mut keys: Vec<_> = self.conns.keys().copied().collect();
                keys.sort_by_key(|key| format!("{key:?}"));
                if let Some(at) = pick(at, keys.len()) {
                    let pipe = self.conns.remove(&keys[at]).expect("known");
                    pipe.open.store(false, Ordering::Relaxed);
                    self.step(Event::Closed(keys[at]), None);
                }
            }
            Op::Goaway(at) => {
                if let Some(pipe) = self.pick_pipe(at) {
                    pipe.open.store(false, Ordering::Relaxed);
                }
            }
            Op::Pass(ms) => self.pass(Duration::from_millis(ms)),
            Op::Evict => self.step(Event::EvictIdle, None),
            Op::GrantSlot => {}
            Op::KeepAlive { at, ms } => {
                self.keep_alive = Some(Duration::from_millis(ms));
                self.apply(Op::Answer { at, verdict: Verdict::Answered });
                self.keep_alive = None;
            }
            Op::Silence(at) => self.speaks(at, false),
            Op::Heard(at) => self.speaks(at, true),
            Op::Retune { connections, streams, waiters, idle_ms } => {
                self.retune(connections, streams, waiters, Duration::from_millis(idle_ms));
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.armed.sort();
            let Some(at) = self.armed.first().copied().filter(|at| *at <= until) else { break };
            self.armed.remove(0);
            self.now = self.now.max(at);
            self.step(Event::Tick { at }, None);
        }
        self.now = until;
    }

    fn join(&mut self, waiter: u32, deadline: Instant, fresh: bool) {
        let mut actions = Actions::new();
        match self.cell.join(&mut Some(waiter), deadline, fresh, self.now, &mut actions) {
            Joined::Queued(ticket) => {
                assert!(self.draining.is_none(), "a newcomer in line of what is drained");
                self.lines[usize::from(fresh)].push_back((waiter, ticket, deadline));
            }
            Joined::Answered(answer) => {
                assert!(self.answered.insert(waiter));
                match answer {
                    Answer::Given(taken) => {
                        assert!(self.lines[0].is_empty(), "a newcomer overtook the line");
                        assert!(self.draining.is_none(), "a newcomer was served by what is drained");
                        self.given(&taken);
                    }
                    Answer::Refused(why) => self.refused(&why, deadline),
                }
            }
        }
        self.execute(actions, None);
    }

    fn leave(&mut self, ticket: Ticket) {
        if let Some((waiter, settled)) = self.cell.leave(ticket) {
            assert!(self.answered.contains(&waiter), "{waiter} left by itself");
            if !settled {
                self.step(Event::Settle, None);
            }
            return;
        }
        match self.cell.look(ticket) {
            Look::Answered(Answer::Given(Taken { key, channel, .. })) => {
                let channel = (!channel.shared).then_some(channel);
                self.falls_idle(key, None);
                let (verdict, keep_alive, held) = (Verdict::Unused, None, None);
                self.step(Event::Return { key, channel, verdict, keep_alive, held }, None);
            }
            Look::Answered(Answer::Refused(_)) => {}
            Look::Waiting(_) | Look::Gone => panic!("nobody knows {ticket:?}"),
        }
    }

    fn step(&mut self, event: Event<Pipe, &'static str>, opened: Option<&Pipe>) {
        let granted = matches!(event, Event::Slot { .. });
        let actions = self.cell.step(event, self.now);
        let spoke = actions.iter().any(|action| matches!(action, Action::Dial { .. } | Action::SlotUnused));
        assert_eq!(spoke, granted, "a slot got no answer");
        self.execute(actions, opened);
    }

    fn execute(&mut self, actions: Actions<Pipe, u32, &'static str>, opened: Option<&Pipe>) {
        for action in actions {
            match action {
                Action::Wake(waiter) => self.wake(waiter),
                Action::Dial { fresh, epoch } => self.dials.push((fresh, epoch)),
                Action::Opened(key) => {
                    let pipe = opened.cloned().expect("only a dial opens");
                    self.idling.insert(key, Idling::new(self.now, self.limits.idle_timeout));
                    assert!(self.conns.insert(key, pipe).is_none(), "a connection's name was used twice");
                }
                Action::WantSlot { class: Class::Fresh, .. } => self.queued_fresh += 1,
                Action::WantSlot { .. } => self.queued += 1,
                Action::SlotUnused | Action::Close(_) | Action::Evict(_) | Action::Discard(_) | Action::Ended(_) => {}
                Action::Arm(at) => self.armed.push(at),
            }
        }
    }

    fn wake(&mut self, waiter: u32) {
        assert!(self.answered.insert(waiter), "{waiter} was answered twice");
        let found = (0..2).find_map(|line| {
            let at = self.lines[line].iter().position(|(other, ..)| *other == waiter)?;
            let (_, ticket, deadline) = self.lines[line].remove(at)?;
            Some((at, ticket, deadline))
        });
        let (at, ticket, deadline) = found.unwrap_or_else(|| panic!("{waiter} was not in line"));
        if self.slow && waiter % 4 == 3 {
            return self.woken.push((waiter, ticket));
        }
        match self.cell.look(ticket) {
            Look::Answered(Answer::Given(taken)) => {
                assert_eq!(at, 0, "{waiter} overtook somebody");
                self.given(&taken);
            }
            Look::Answered(Answer::Refused(why)) => self.refused(&why, deadline),
            other => panic!("woken for nothing: {other:?}"),
        }
        assert!(matches!(self.cell.look(ticket), Look::Gone), "told twice");
    }

    /// A slow caller looks; the connection may have died since.
    fn collect(&mut self, waiter: u32, ticket: Ticket) {
        match self.cell.look(ticket) {
            Look::Answered(Answer::Given(taken)) => self.leases.push((taken.key, taken.channel, taken.reused)),
            Look::Answered(Answer::Refused(_)) => {}
            other => panic!("{waiter} was woken for nothing: {other:?}"),
        }
    }

    fn given(&mut self, taken: &Taken<Pipe>) {
        assert!(taken.channel.is_open() && self.conns.contains_key(&taken.key), "given a dead connection");
        assert!(taken.channel.is_lively(), "given a connection that nothing is heard of");
        let idle_too_long = !taken.channel.shared && self.idling[&taken.key].is_over(self.now);
        assert!(!idle_too_long, "given a connection that its server has closed by now");
        let sharing = self.leases.iter().filter(|(key, ..)| *key == taken.key).count();
        let most = if taken.channel.shared { self.limits.h2_streams_max.min(STREAMS_MAX) } else { 1 };
        assert!(sharing < most, "{sharing} requests already share the connection");
        self.leases.push((taken.key, taken.channel.clone(), taken.reused));
    }

    fn refused(&self, why: &Refusal<&'static str>, deadline: Instant) {
        match why {
            Refusal::Expired(_) => assert!(deadline <= self.now, "expired too early"),
            Refusal::Saturated => {
                assert!(
                    self.lines.iter().any(|line| line.len() >= self.limits.waiters_per_origin_max),
                    "shed below the cap"
                );
            }
            Refusal::Dial(_) | Refusal::Shared { .. } => assert!(self.last_dial_failed, "a dial error from nowhere"),
            Refusal::WontMakeDeadline { excess } => {
                assert!(!self.lines[0].is_empty() && *excess > Duration::ZERO, "sent away from an empty line");
            }
            Refusal::Draining => assert!(self.draining.is_some(), "nobody drains here"),
        }
    }

    /// What must hold after every step.
    fn check(&mut self) {
        let counts = self.cell.counts();
        // I8
        assert_eq!(counts.permits, counts.live + counts.dialling, "permits = live + dialling");
        assert_eq!((counts.live, counts.dialling), (self.conns.len(), self.dials.len()));
        // I9
        self.check_limits(counts);
        self.check_idle(counts);
        // Nobody is lost.
        assert_eq!(counts.waiters, self.lines[0].len() + self.lines[1].len(), "the lines differ");
        let earliest = self.lines.iter().flatten().map(|(.., deadline)| *deadline).min();
        if let Some(earliest) = earliest {
            assert!(self.armed.iter().any(|at| *at <= earliest), "nothing will ring for the earliest deadline");
        }
        let rings_by = self.now + Duration::from_millis(400);
        assert!(counts.idle == 0 || self.armed.iter().any(|at| *at <= rings_by), "an idle connection never expires");
        assert!(self.queued <= 1 && self.queued_fresh <= 1, "in the scheduler's line twice");
        assert!(self.cell.wanted_normal(self.now) == 0 || self.queued == 1, "demand that nobody knows of");
        assert!(self.cell.wanted_fresh() == 0 || self.queued_fresh == 1, "probes that nobody knows of");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn i08_i09_permits_add_up_lines_are_bounded_and_nobody_is_lost(ops in prop::collection::vec(op(), 1..120)) {
        let mut model = Model { slow: true, ..Model::new() };
        for op in ops {
            model.apply(op);
            model.check();
        }
    }
}
