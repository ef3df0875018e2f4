//! Every order in which callers, connections, the timer and a panic can meet in one cell, tried by loom.
//!
//! The state machine is the real one. Around it are the few lines that the shell has around it in
//! `partition/wait.rs` and `partition/site.rs`: lock, decide, let go, wake. A wake-up that is lost ends as a
//! thread that waits for ever, which loom calls a deadlock.

use loom::sync::{Arc as LoomArc, Mutex, Notify};
use loom::thread;

use super::*;

type Woken = LoomArc<Notify>;

/// The shell. One connection per origin at most.
struct Shell {
    state: Mutex<CellState<Pipe, Woken, &'static str>>,
    began: Instant,
}

/// A caller in line.
struct Caller {
    ticket: Ticket,
    woken: Woken,
}

/// What became of a caller.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Served,
    Late,
    /// Its cell knows nothing of it: it may try again.
    Unknown,
}

// === impl Shell ===

impl Shell {
    fn new() -> LoomArc<Self> {
        let limits = LaneLimits { connections_per_origin_max: 1, ..LaneLimits::default() };
        let state = Mutex::new(CellState::new(Arc::new(Tuning::new(&limits, SLOTS))));
        LoomArc::new(Self { state, began: Instant::now() })
    }

    /// With an exclusive connection that somebody uses.
    fn busy() -> (LoomArc<Self>, Taken<Pipe>) {
        let shell = Self::new();
        let first = shell.join(60);
        let epoch = shell.dial();
        shell.connected(epoch);
        let Some(Answer::Given(taken)) = shell.look(&first) else { panic!("the first one gets the connection") };
        (shell, taken)
    }

    fn deadline(&self, s: u64) -> Instant {
        self.began + Duration::from_secs(s)
    }

    fn decide<T>(
        &self,
        work: impl FnOnce(&mut CellState<Pipe, Woken, &'static str>, &mut Actions<Pipe, Woken, &'static str>) -> T,
    ) -> (T, Actions<Pipe, Woken, &'static str>) {
        let mut actions = Actions::new();
        let done = work(&mut self.state.lock().expect("no panic under the lock"), &mut actions);
        let wake = |action: &Action<Pipe, Woken, &'static str>| matches!(action, Action::Wake(_));
        let (wakes, rest): (Vec<_>, Vec<_>) = actions.into_iter().partition(wake);
        for action in wakes {
            if let Action::Wake(woken) = action {
                woken.notify();
            }
        }
        (done, rest.into_iter().collect())
    }

    fn apply(&self, event: Event<Pipe, &'static str>, now: Instant) -> Actions<Pipe, Woken, &'static str> {
        self.decide(|state, out| state.apply(&mut Some(event), now, out)).1
    }

    fn join(&self, patience_s: u64) -> Caller {
        let woken = LoomArc::new(Notify::new());
        let mut waiter = Some(LoomArc::clone(&woken));
        let deadline = self.deadline(patience_s);
        let joined = self.decide(|state, out| state.join(&mut waiter, deadline, false, self.began, out)).0;
        let Joined::Queued(ticket) = joined else { panic!("there is nothing to be had: {joined:?}") };
        Caller { ticket, woken }
    }

    /// A dial slot is there.
    fn dial(&self) -> Epoch {
        let life = self.decide(|state, _| state.life).0;
        let dial =
            self.apply(Event::Slot { fresh: false, life }, self.began).into_iter().find_map(|action| match action {
                Action::Dial { epoch, .. } => Some(epoch),
                _ => None,
            });
        dial.expect("somebody waits")
    }

    /// The dial works. The connection's name, unless its cell has begun a new life and closes it.
    fn connected(&self, epoch: Epoch) -> Option<ConnKey> {
        let (fresh, shared, channel) = (false, false, Pipe::new(false));
        let event = Event::Connected { fresh, epoch, channel, shared, took: DIAL_TIME, jitter: 0.0 };
        let actions = self.apply(event, self.began);
        let closed = actions.iter().filter(|action| matches!(action, Action::Close(_))).count();
        let opened = actions.iter().find_map(|action| match action {
            Action::Opened(key) => Some(*key),
            _ => None,
        });
        assert_eq!(closed, usize::from(opened.is_none()), "neither opened nor closed");
        opened
    }

    fn look(&self, caller: &Caller) -> Option<Answer<Pipe, &'static str>> {
        match self.state.lock().expect("no panic under the lock").look(caller.ticket) {
            Look::Answered(answer) => Some(answer),
            Look::Waiting(_) => None,
            Look::Gone => panic!("unknown"),
        }
    }

    /// Waits to be told, and passes on what was given.
    fn wait(&self, caller: &Caller) -> Told {
        loop {
            let answer = match self.state.lock().expect("no panic under the lock").look(caller.ticket) {
                Look::Answered(answer) => Some(answer),
                Look::Gone => return Told::Unknown,
                Look::Waiting(_) => None,
            };
            match answer {
                Some(Answer::Given(taken)) => {
                    self.give_back(taken);
                    return Told::Served;
                }
                Some(Answer::Refused(why)) => {
                    assert_eq!(why, Refusal::Expired(Awaited::Turn));
                    return Told::Late;
                }
                None => caller.woken.wait(),
            }
        }
    }

    fn leave(&self, caller: &Caller) {
        let left = self.state.lock().expect("no panic under the lock").leave(caller.ticket);
        match left {
            Some((_, true)) => {}
            Some((_, false)) => drop(self.apply(Event::Settle, self.began)),
            None => {
                let mut state = self.state.lock().expect("no panic under the lock");
                let Look::Answered(Answer::Given(taken)) = state.look(caller.ticket) else { return };
                drop(state);
                self.give_back(taken);
            }
        }
    }

    fn give_back(&self, taken: Taken<Pipe>) {
        let mut channel = Some(taken.channel);
        let back = self.state.lock().expect("no panic under the lock").put_back(taken.key, &mut channel, None, None);
        match back {
            Back::Idle => {}
            Back::PassedOn(woken) => woken.notify(),
            Back::Not => {
                let (key, verdict) = (taken.key, Verdict::Unused);
                self.apply(Event::Return { key, channel, verdict, keep_alive: None, held: None }, self.began);
            }
        }
    }

    /// What a panic under the lock, or a rebuild, comes to.
    fn renew(&self) {
        let torn = self.state.lock().expect("no panic under the lock").renew();
        torn.into_waiters().for_each(|woken| woken.notify());
    }

    /// Connections, idle ones, requests on them, and callers in line; permits add up.
    fn counts(&self) -> [usize; 4] {
        let counts = self.state.lock().expect("no panic under the lock").counts();
        assert_eq!(counts.permits, counts.live + counts.dialling, "permits = live + dialling");
        assert_eq!(counts.dialling, 0);
        [counts.live, counts.idle, counts.streams, counts.waiters]
    }
}

#[test]
fn i08_a_caller_that_gives_up_while_it_is_given_a_connection_passes_it_on() {
    loom::model(|| {
        let (shell, taken) = Shell::busy();
        let (quits, waits) = (shell.join(60), shell.join(60));
        let (giver, leaver) = (LoomArc::clone(&shell), LoomArc::clone(&shell));
        let gives = thread::spawn(move || giver.give_back(taken));
        let leaves = thread::spawn(move || leaver.leave(&quits));
        assert_eq!(shell.wait(&waits), Told::Served);
        gives.join().expect("gave");
        leaves.join().expect("left");
        assert_eq!(shell.counts(), [1, 1, 0, 0]);
    });
}

#[test]
fn i08_a_caller_whose_deadline_comes_as_it_is_given_a_connection_is_told_once() {
    loom::model(|| {
        let (shell, taken) = Shell::busy();
        let (short, long) = (shell.join(1), shell.join(60));
        let (giver, timer) = (LoomArc::clone(&shell), LoomArc::clone(&shell));
        let gives = thread::spawn(move || giver.give_back(taken));
        let rings = thread::spawn(move || {
            let at = timer.deadline(1);
            timer.apply(Event::Tick { at }, at);
        });
        let told = shell.wait(&short);
        assert!(matches!(told, Told::Served | Told::Late), "{told:?}");
        assert_eq!(shell.wait(&long), Told::Served);
        gives.join().expect("gave");
        rings.join().expect("rang");
        assert_eq!(shell.wait(&short), Told::Unknown, "it was told already");
        assert_eq!(shell.counts(), [1, 1, 0, 0]);
    });
}

#[test]
fn r19_a_connection_that_comes_back_while_its_cell_panics_counts_in_no_life_or_in_one() {
    loom::model(|| {
        let (shell, taken) = Shell::busy();
        let waits = shell.join(60);
        let key = taken.key;
        let (giver, breaks) = (LoomArc::clone(&shell), LoomArc::clone(&shell));
        let gives = thread::spawn(move || {
            giver.give_back(taken);
            giver.apply(Event::Closed(key), giver.began);
        });
        let panics = thread::spawn(move || breaks.renew());
        // Served, and then perhaps the cell panics; or told to try again. Never left alone.
        assert_ne!(shell.wait(&waits), Told::Late);
        gives.join().expect("gave");
        panics.join().expect("broke");
        assert_eq!(shell.counts(), [0, 0, 0, 0], "the new life has nothing of the old one");
    });
}

#[test]
fn r19_a_dial_that_ends_while_its_cell_panics_opens_nothing_in_the_new_life() {
    loom::model(|| {
        let shell = Shell::new();
        let waits = shell.join(60);
        let epoch = shell.dial();
        let (dials, breaks, leaver) = (LoomArc::clone(&shell), LoomArc::clone(&shell), LoomArc::clone(&shell));
        let dials = thread::spawn(move || dials.connected(epoch));
        let panics = thread::spawn(move || breaks.renew());
        let leaves = thread::spawn(move || leaver.leave(&waits));
        let _opened_before = dials.join().expect("dialled");
        panics.join().expect("broke");
        leaves.join().expect("left");
        assert_eq!(shell.counts(), [0, 0, 0, 0]);
    });
}
