//! The gate before a queue: what is let in, how old it gets, what that leaves for repairs.

use std::collections::BTreeSet;

use super::*;
use crate::state::Class as Placement;

/// A syncer in miniature: calls wait in order of rank, `pace` of them are placed a second, in turns.
struct Model {
    rules: Rules,
    gate: Gate,
    now: Instant,
    /// By class of placement: rank, number, when it came.
    lines: [BTreeSet<(Instant, u64, Instant)>; 3],
    offered: [u64; 3],
    admitted: [u64; 3],
    /// How long those that were placed had waited.
    placed: [Vec<Duration>; 3],
    owed: [f64; 3],
    room: f64,
    started: u64,
    idle: u64,
    waiting_max: u64,
}

const CLASSES: [Class; 3] = [Class::Repair, Class::NewCall, Class::Stream];

/// A step of the model.
const STEP: Duration = Duration::from_millis(10);

// === impl Model ===

impl Model {
    fn new(rules: Rules) -> Self {
        let now = Instant::now();
        Self {
            rules,
            gate: Gate::new(&rules, now),
            now,
            lines: Default::default(),
            offered: [0; 3],
            admitted: [0; 3],
            placed: Default::default(),
            owed: [0.0; 3],
            room: 0.0,
            started: 0,
            idle: 0,
            waiting_max: 0,
        }
    }

    fn waiting(&self) -> Waiting {
        let [repairs, new_calls, streams] = [0, 1, 2].map(|class: usize| self.lines[class].len() as u64);
        Waiting { all: repairs + new_calls + streams, new_calls, streams }
    }

    fn add(&mut self, class: usize, n: u64) {
        for _ in 0..n {
            self.offered[class] += 1;
            let number = self.offered.iter().sum();
            self.admitted[class] += 1;
            self.lines[class].insert((self.now + Placement::ALL[class].handicap(), number, self.now));
        }
    }

    fn ask(&mut self, class: usize) {
        match self.gate.admit(CLASSES[class], &self.waiting(), self.now, || 0.5) {
            Ok(()) => self.add(class, 1),
            Err(_) => self.offered[class] += 1,
        }
    }

    fn place(&mut self) {
        self.room += self.rules.pace_per_s * STEP.as_secs_f64();
        while self.room >= 1.0 {
            self.room -= 1.0;
            let own = self
                .rules
                .turns
                .whose(self.started)
                .map(|class| class as usize)
                .filter(|class| !self.lines[*class].is_empty());
            let urgent =
                || (0..3).filter(|class| !self.lines[*class].is_empty()).min_by_key(|c| self.lines[*c].first());
            let Some(class) = own.or_else(urgent) else {
                self.idle += 1;
                continue;
            };
            self.started += 1;
            let (_, _, since) = self.lines[class].pop_first().expect("not empty");
            self.placed[class].push(self.now - since);
        }
    }

    /// For this long, with `per_s` offered of each class.
    fn run(&mut self, per_s: [f64; 3], lasting: Duration) {
        for step in 0..lasting.as_millis() / STEP.as_millis() {
            self.now += STEP;
            if step.is_multiple_of(10) {
                let of = |class: usize| self.lines[class].iter().map(|(_, _, since)| self.now - *since).max();
                let oldest = of(1).max(of(2)).unwrap_or_default();
                let signals = Signals { oldest, waiting: self.waiting(), ..Signals::default() };
                self.gate.tick(&signals, &self.rules, self.now);
            }
            for (class, per_s) in per_s.into_iter().enumerate() {
                self.owed[class] += per_s * STEP.as_secs_f64();
                while self.owed[class] >= 1.0 {
                    self.owed[class] -= 1.0;
                    self.ask(class);
                }
            }
            self.waiting_max = self.waiting_max.max(self.waiting().all);
            self.place();
        }
    }

    fn share(&self, class: usize) -> f64 {
        self.admitted[class] as f64 / self.offered[class].max(1) as f64
    }
}

#[test]
fn r10_at_three_times_the_load_repairs_succeed_and_streams_are_shed_first() {
    let mut model = Model::new(rules(400.0));
    // Three times what can be placed, a tenth of it repairs.
    model.run([120.0, 540.0, 540.0], S(60));
    assert_eq!(model.share(0), 1.0);
    let in_time = model.placed[0].iter().filter(|age| **age <= S(1)).count() as u64;
    assert!(in_time * 100 >= model.offered[0] * 99, "{in_time} repairs within a second");
    assert!(model.share(2) < model.share(1) / 2.0, "{} of streams, {}", model.share(2), model.share(1));
    assert!(model.admitted[2] >= 60, "and some stream always comes in: {}", model.admitted[2]);
    assert!(model.placed[2].len() >= 60, "and is placed: {}", model.placed[2].len());
    assert!(model.waiting_max <= 2_000 + 100, "{} wait: more than the pace serves in time", model.waiting_max);
    assert_eq!(model.idle, 0, "goodput is what can be placed");
    // The load ends; a queue's length of time later nothing waits.
    model.run([0.0; 3], MS(5_200));
    assert_eq!(model.waiting(), Waiting::default());
}

#[test]
fn r10_a_fleet_slower_than_its_pace_gets_a_smaller_window_and_its_own_back() {
    let (promised, kept) = (rules(400.0), rules(100.0));
    let start = Instant::now();
    let (mut gate, mut now, mut waiting) = (Gate::new(&promised, start), start, 0.0_f64);
    let mut ages = Vec::new();
    for step in 0..1_200_u64 {
        now = start + MS(100) * u32::try_from(step).expect("few");
        // First in, first out: the oldest has waited for as long as the queue takes to drain.
        let oldest = Duration::from_secs_f64(waiting / kept.pace_per_s);
        let line = |calls: f64| Waiting { all: calls as u64, new_calls: calls as u64, streams: 0 };
        gate.tick(&Signals { oldest, waiting: line(waiting), ..Signals::default() }, &promised, now);
        for _ in 0..200 {
            waiting += f64::from(u8::from(gate.admit(Class::NewCall, &line(waiting), now, || 0.5).is_ok()));
        }
        waiting = (waiting - kept.pace_per_s / 10.0).max(0.0);
        ages.push(oldest);
    }
    let late = &ages[600..];
    let mean = late.iter().sum::<Duration>() / u32::try_from(late.len()).expect("few");
    assert!(mean < S(7), "the age settles around its limit of 5 s: {mean:?}");
    assert!(late.iter().all(|age| *age > Duration::ZERO), "and the fleet never idles");
    gate.tick(&Signals::default(), &promised, now + S(5));
    assert_eq!(gate.window(), 2_000, "young again, it is whole a queue's length of time later");
}

/// What comes in beside a repair that takes minutes.
#[derive(Clone, Copy, Debug)]
struct Beside {
    pace: f64,
    /// How long the repair takes alone, in seconds.
    repair_s: u64,
    new_per_s: f64,
    streams_per_s: f64,
    turns: Turns,
}

fn beside() -> impl Strategy<Value = Beside> {
    let turns = (1..=Turns::NEW_CALLS_MAX, 1..=Turns::STREAMS_MAX);
    let beside = (20.0..400.0f64, 12u64..120, 0.0..2.0f64, 0.0..2.0f64, turns);
    beside.prop_map(|(pace, repair_s, new, streams, (of_new_calls, of_streams))| Beside {
        pace,
        repair_s,
        new_per_s: new * pace,
        streams_per_s: streams * pace,
        turns: Turns::new(of_new_calls, of_streams),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// However long a repair takes, each class comes in as fast as its turns serve it, waits no longer than a
    /// queue may be old, and takes no more from the repair than its turns.
    #[test]
    fn r09_r10_a_long_repair_sheds_only_what_its_turns_do_not_serve(case in beside()) {
        let Beside { pace, repair_s, new_per_s, streams_per_s, turns: shares } = case;
        let mut model = Model::new(Rules { turns: shares, ..rules(pace) });
        model.add(0, (pace * repair_s as f64) as u64);
        let lasting = S(repair_s);
        model.run([0.0, new_per_s, streams_per_s], lasting);
        let seconds = lasting.as_secs_f64();
        let turns = pace * shares.share(Placement::New);
        // Beyond what is served, as many as wait at the end.
        let served = new_per_s.min(turns) * seconds;
        prop_assert!(model.admitted[1] as f64 >= 0.9 * served - 2.0, "{} of {served} new calls", model.admitted[1]);
        if new_per_s <= 0.9 * turns && turns * model.rules.queue_age_max.as_secs_f64() >= 20.0 {
            prop_assert!(model.share(1) > 0.99, "nobody had to be turned away: {}", model.share(1));
        }
        let streams = streams_per_s.min(pace * shares.share(Placement::Stream)) * seconds;
        if new_per_s * 5.0 <= pace * shares.share(Placement::Stream).min(shares.share(Placement::New)) {
            prop_assert!(model.admitted[2] as f64 >= 0.7 * streams - 2.0, "{} of {streams} streams", model.admitted[2]);
        }
        let late = |class: usize| model.placed[class].iter().max().copied().unwrap_or_default();
        let most = model.rules.queue_age_max * 3 / 2 + S(1);
        prop_assert!(late(1) <= most, "a new call waited for {:?}", late(1));
        let repaired = model.placed[0].len() as f64 / (pace * seconds);
        prop_assert!(repaired >= shares.share(Placement::Repair) - 0.02, "the repair had {repaired} of the pace");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_048, ..ProptestConfig::default() })]

    /// Streams are shed first, whatever waits and however the turns are divided.
    #[test]
    fn r10_no_stream_comes_in_while_a_new_call_is_shed(
        (all, new_calls, streams) in (0u64..4_000, 0u64..500, 0u64..500),
        (of_new_calls, of_streams) in (1..=Turns::NEW_CALLS_MAX, 1..=Turns::STREAMS_MAX),
    ) {
        let rules = Rules { turns: Turns::new(of_new_calls, of_streams), ..rules(400.0) };
        let now = Instant::now();
        let gate = Gate::new(&rules, now);
        let waiting = Waiting { all: all + new_calls + streams, new_calls, streams };
        let full = Waiting { all: 10_000, new_calls: 10_000, streams: 10_000 };
        let comes_in = |class| {
            while gate.admit(class, &full, now, || 0.5).is_ok() {} // what trickles in has been let in
            gate.admit(class, &waiting, now, || 0.5).is_ok()
        };
        prop_assert!(!comes_in(Class::Stream) || comes_in(Class::NewCall), "{waiting:?}, {:?}", rules.turns);
    }
}
