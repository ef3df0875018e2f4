//! How connections begin and end by draws and steps: one dial after a failure, then twice as many; an age less a draw.

use super::decisions::{join, refused_in};
use super::*;

type Plain = CellState<Pipe, u32, &'static str>;

/// Who waits here has time.
const PATIENCE: Duration = Duration::from_secs(3_600);

fn cell(limits: &LaneLimits) -> Plain {
    CellState::new(Arc::new(Tuning::new(limits, 64)))
}

fn line(cell: &mut Plain, callers: std::ops::Range<u32>, now: Instant) {
    callers.for_each(|waiter| drop(join(cell, waiter, now + PATIENCE, now)));
}

/// Gives the cell as many slots as it wants; returns how many.
fn dial(cell: &mut Plain, now: Instant) -> usize {
    let before = cell.dialling;
    while cell.wanted_normal(now) > 0 {
        let actions = cell.step(Event::Slot { fresh: false, life: 0 }, now);
        assert!(actions.iter().any(|action| matches!(action, Action::Dial { .. })), "it said that it wants one");
    }
    cell.dialling - before
}

fn opened(cell: &Plain, pipe: &Pipe, jitter: f64) -> Event<Pipe, &'static str> {
    let epoch = Epoch { life: 0, breaker: cell.breaker.epoch() };
    Event::Connected { fresh: false, epoch, channel: pipe.clone(), shared: pipe.shared, took: DIAL_TIME, jitter }
}

/// A dial of those under way works. The connection's name.
fn open(cell: &mut Plain, pipe: &Pipe, jitter: f64, now: Instant) -> ConnKey {
    let event = opened(cell, pipe, jitter);
    let named = |action| if let Action::Opened(key) = action { Some(key) } else { None };
    cell.step(event, now).into_iter().find_map(named).expect("a connection")
}

fn answered(key: ConnKey, pipe: &Pipe, held: Duration) -> Event<Pipe, &'static str> {
    let channel = (!pipe.shared).then(|| pipe.clone());
    Event::Return { key, channel, verdict: Verdict::Answered, keep_alive: None, held: Some(held) }
}

/// A host that is known: a dial takes 20 ms and a request 250 ms, or a second on a connection that carries many, so that
/// whoever has no place on one is worth a dial, and many may be made at once. Its connections have ended. The number of the next caller.
fn known(cell: &mut Plain, shared: bool, now: Instant) -> u32 {
    let (pipe, mut next) = (Pipe::new(shared), 1);
    pipe.streams.store(100, Ordering::Relaxed);
    line(cell, 0..1, now);
    assert_eq!(dial(cell, now), 1);
    let key = open(cell, &pipe, 0.0, now);
    for _ in 0..12 {
        let took = Duration::from_millis(if shared { 1_000 } else { 250 });
        cell.step(answered(key, &pipe, took), now);
        line(cell, next..next + 1, now);
        next += 1;
    }
    let mut keys = vec![key];
    for _ in 0..5 {
        // Whatever is under way, a dial that works widens the window.
        (cell.permits, cell.dialling) = (cell.permits + 1, cell.dialling + 1);
        cell.untold += 1;
        keys.push(open(cell, &pipe, 0.0, now));
    }
    assert!(cell.dial_window >= 32 && cell.line.is_empty(), "{} dials at once", cell.dial_window);
    for key in keys {
        cell.step(Event::Closed(key), now);
    }
    assert_eq!((cell.permits, cell.dialling), (0, 0));
    next
}

#[tokio::test(start_paused = true)]
async fn r01_a_known_host_that_failed_is_dialled_once_and_then_twice_as_often_with_each_success() {
    let (mut cell, mut now) = (cell(&LaneLimits::default()), Instant::now());
    let next = known(&mut cell, false, now);
    line(&mut cell, next..next + 12, now);
    assert_eq!(cell.wanted_normal(now), 12, "one for each, as long as nothing has failed");
    cell.step(Event::Slot { fresh: false, life: 0 }, now);
    let breaker = cell.breaker.epoch();
    cell.step(refused_in(breaker), now);
    assert_eq!(cell.counts().waiters, 0, "all are told");

    now = cell.breaker.until(now).expect("it backs off");
    line(&mut cell, next + 12..next + 24, now);
    assert_eq!((dial(&mut cell, now), cell.dialling), (1, 1), "one dial finds out whether it is back");
    let pipe = Pipe::new(false);
    for dials in [2, 4] {
        open(&mut cell, &pipe, 0.0, now);
        dial(&mut cell, now);
        assert_eq!(cell.dialling, dials, "{} still wait", cell.line.len());
    }
}

#[tokio::test(start_paused = true)]
async fn r03_a_host_known_to_speak_http2_is_dialled_once_for_a_hundred() {
    let (mut cell, now) = (cell(&LaneLimits::default()), Instant::now());
    let next = known(&mut cell, true, now);
    line(&mut cell, next..next + 100, now);
    assert_eq!(cell.wanted_normal(now), 1, "one connection carries them all");
    assert_eq!((dial(&mut cell, now), cell.wanted_normal(now)), (1, 0));
    line(&mut cell, next + 100..next + 101, now);
    assert_eq!(cell.wanted_normal(now), 1, "and one more does not fit");
}

#[tokio::test(start_paused = true)]
async fn a_connection_lives_as_long_as_it_may_less_up_to_a_fifth_by_the_draw() {
    let age_max = Duration::from_secs(100);
    let limits = LaneLimits { age_max, idle_timeout: 10 * age_max, ..LaneLimits::default() };
    for (jitter, lives_s) in [(0.0, 100), (0.5, 90), (1.0, 80)] {
        let (mut cell, pipe, now) = (cell(&limits), Pipe::new(false), Instant::now());
        line(&mut cell, 0..1, now);
        dial(&mut cell, now);
        let key = open(&mut cell, &pipe, jitter, now);
        cell.step(answered(key, &pipe, DIAL_TIME), now);
        let mut idle = |after: Duration| {
            cell.step(Event::Tick { at: now + after }, now + after);
            cell.counts().idle
        };
        let lives = Duration::from_secs(lives_s);
        assert_eq!((idle(lives - Duration::from_millis(1)), idle(lives)), (1, 0), "a draw of {jitter}");
    }
}
