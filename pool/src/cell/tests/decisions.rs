//! What a cell decides from what it has measured: wait or dial, refuse or queue.

use super::*;

impl Model {
    /// Opens one exclusive connection and has `n` requests on it, each holding it for `hold_ms`.
    fn proven(hold_ms: u64, n: usize) -> Self {
        let mut model = Self::new();
        model.hold_time = Duration::from_millis(hold_ms);
        model.apply(Op::Wait { fresh: false, patience_ms: 60_000 });
        model.apply(Op::GrantSlot);
        model.apply(Op::DialWorks { at: 0, shared: false });
        for _ in 0..n {
            model.apply(Op::Answer { at: 0, verdict: Verdict::Answered });
            model.apply(Op::Wait { fresh: false, patience_ms: 60_000 });
        }
        assert_eq!((model.leases.len(), model.queued), (1, 0));
        model
    }

    /// Refusals of those in line, first in first out, who have not been woken.
    fn told(&mut self) -> Vec<Refusal<&'static str>> {
        let tickets: Vec<_> = self.lines.iter().flatten().map(|(_, ticket, _)| *ticket).collect();
        let look = |ticket| match self.cell.look(ticket) {
            Look::Answered(Answer::Refused(why)) => Some(why),
            _ => None,
        };
        tickets.into_iter().filter_map(look).collect()
    }

    fn wait(&mut self, patience_ms: u64) {
        self.apply(Op::Wait { fresh: false, patience_ms });
    }
}

/// An ordinary caller joins.
pub(super) fn join(
    cell: &mut CellState<Pipe, u32, &'static str>,
    waiter: u32,
    deadline: Instant,
    now: Instant,
) -> (Joined<Pipe, &'static str>, Actions<Pipe, u32, &'static str>) {
    let mut actions = Actions::new();
    let joined = cell.join(&mut Some(waiter), deadline, false, now, &mut actions);
    (joined, actions)
}

/// The failure of an ordinary dial that began in this epoch of the breaker.
pub(super) fn refused_in(breaker: u32) -> Event<Pipe, &'static str> {
    let epoch = Epoch { breaker, ..Epoch::default() };
    let dial = FailedDial { fresh: false, epoch, error: "refused", blame: Blame::Host, jitter: 1.0 };
    Event::DialFailed { dial, took: DIAL_TIME }
}

/// What those whose deadline comes at `now` are told that they waited for.
fn expired(model: &mut Model, now: Instant) -> Vec<Awaited> {
    model.cell.step(Event::Tick { at: now }, now);
    let told = model.told().into_iter().filter_map(|why| match why {
        Refusal::Expired(awaited) => Some(awaited),
        _ => None,
    });
    told.collect()
}

#[tokio::test(start_paused = true)]
async fn r03_waiters_who_are_served_sooner_than_by_a_dial_cause_none() {
    // A dial takes 20 ms, and 60 ms a request: one connection serves four of them in the twelve dials' time that pay.
    let mut model = Model::proven(60, 12);
    (0..4).for_each(|_| model.wait(60_000));
    assert_eq!(model.queued, 0, "waiting is better for all four");
    model.wait(60_000);
    assert_eq!(model.queued, 0, "the fifth alone is not worth a dial");
    model.wait(60_000);
    assert_eq!(model.queued, 1, "two are half of what it would serve");
    (0..3).for_each(|_| model.wait(60_000));
    model.apply(Op::GrantSlot);
    assert_eq!((model.dials.len(), model.queued), (1, 0), "the same dial will do for four");
    model.wait(60_000);
    assert_eq!(model.queued, 1, "the tenth is worth another");
    model.check();
}

#[tokio::test(start_paused = true)]
async fn r03_slow_handlers_are_answered_with_dials() {
    let mut model = Model::proven(250, 12);
    model.wait(60_000);
    assert_eq!(model.queued, 1);
}

/// Twelve callers of a host of which nothing is known but that a dial has taken so long. Says when, in milliseconds
/// after that, another dial is wanted, if the first request is not answered.
fn dialled_again_after(dial_ms: u64) -> u64 {
    let mut cell: CellState<Pipe, u32, &str> = CellState::new(Arc::new(Tuning::new(&LaneLimits::default(), SLOTS)));
    let now = Instant::now();
    (0..12).for_each(|waiter| drop(join(&mut cell, waiter, now + Duration::from_secs(9), now)));
    cell.step(Event::Slot { fresh: false, life: 0 }, now);
    let opened = Event::Connected {
        fresh: false,
        epoch: Epoch::default(),
        channel: Pipe::new(false),
        shared: false,
        took: Duration::from_millis(dial_ms),
        jitter: 0.0,
    };
    cell.step(opened, now);
    let again = |ms: &u64| cell.wanted_normal(now + Duration::from_millis(*ms));
    let after = (0..1_000).find(|ms| again(ms) > 0).expect("it must not wait for ever");
    assert_eq!(again(&after), 1, "connections at most double");
    after
}

#[tokio::test(start_paused = true)]
async fn r03_there_is_one_connection_until_it_is_known_how_long_requests_take() {
    // Longer than a dial, and four of them fit into 290 ms.
    let after = dialled_again_after(60);
    assert!((60..=61).contains(&after), "{after}");
}

#[tokio::test(start_paused = true)]
async fn r03_a_host_too_far_for_the_line_is_dialled_again_before_it_has_answered() {
    // A third of a dial at least, and four of them fit into 630 ms.
    assert_eq!(dialled_again_after(400), 0);
}

#[tokio::test(start_paused = true)]
async fn r04_a_short_line_waits_for_the_first_answer_no_longer_than_some_dials_take() {
    let mut model = Model::new();
    (0..13).for_each(|_| model.wait(60_000));
    model.apply(Op::GrantSlot);
    model.apply(Op::DialWorks { at: 0, shared: false });
    model.apply(Op::Pass(239));
    assert_eq!(model.queued, 0, "twelve requests as long as a dial");
    model.apply(Op::Pass(2));
    assert_eq!(model.queued, 1, "no ring came");
    model.apply(Op::GrantSlot);
    assert_eq!((model.dials.len(), model.queued), (1, 0), "connections at most double");
    model.check();
}

#[tokio::test(start_paused = true)]
async fn r04_a_stuck_connection_holds_nobody_longer_than_some_dials_take() {
    let mut model = Model::proven(2, 12);
    model.apply(Op::Pass(100));
    model.wait(60_000);
    assert_eq!(model.queued, 0);
    model.apply(Op::Pass(239));
    assert_eq!(model.queued, 0);
    model.apply(Op::Pass(2));
    assert_eq!(model.queued, 1, "the estimate was wrong, so it dials");
    model.check();
}

#[tokio::test(start_paused = true)]
async fn r04_a_line_that_is_never_empty_dials_in_the_end() {
    let mut model = Model::proven(10, 12);
    let dial_at = |model: &Model| model.queued + model.dials.len();
    // Each request is quick, but whoever is served is followed by the next.
    model.wait(60_000);
    let since = model.now;
    while dial_at(&model) == 0 {
        assert!(model.now < since + Duration::from_secs(1), "the line stands for ever");
        model.apply(Op::Pass(10));
        model.wait(60_000);
        model.apply(Op::Answer { at: 0, verdict: Verdict::Answered });
    }
    let stood = model.now.saturating_duration_since(since);
    assert!(stood >= Duration::from_millis(240), "it gets its twelve dials' time, not {stood:?}");
    model.check();
}

#[tokio::test(start_paused = true)]
async fn r04_a_line_that_moves_slower_than_promised_dials_in_the_end() {
    let mut model = Model::proven(60, 12);
    (0..4).for_each(|_| model.wait(60_000));
    // It moves, but by one in 75 ms.
    for _ in 0..3 {
        model.apply(Op::Pass(75));
        assert_eq!(model.queued, 0);
        model.apply(Op::Answer { at: 0, verdict: Verdict::Answered });
    }
    model.apply(Op::Pass(15));
    assert_eq!(model.queued, 1, "the last has waited longer than 240 ms");
    model.check();
}

#[tokio::test(start_paused = true)]
async fn r04_who_cannot_make_the_deadline_is_told_at_once_and_by_how_much() {
    let mut model = Model::proven(1_000, 12);
    // Take every connection there may be.
    for _ in 1..CONNECTIONS_MAX {
        model.wait(60_000);
        model.apply(Op::GrantSlot);
        model.apply(Op::DialWorks { at: 0, shared: false });
    }
    assert_eq!(model.leases.len(), CONNECTIONS_MAX);
    (0..8).for_each(|_| model.wait(60_000));
    let waiting = model.cell.counts().waiters;
    assert_eq!(waiting, 8);
    // Eight ahead on four connections: two seconds.
    let now = model.now;
    let ask = |model: &mut Model, patience| join(&mut model.cell, 1_000, now + Duration::from_millis(patience), now).0;
    let refused = ask(&mut model, 1_500);
    let Joined::Answered(Answer::Refused(Refusal::WontMakeDeadline { excess })) = refused else {
        panic!("{refused:?}");
    };
    assert!(excess.abs_diff(Duration::from_millis(500)) < Duration::from_millis(1), "{excess:?}");
    assert!(matches!(ask(&mut model, 2_500), Joined::Queued(_)));
}

#[tokio::test(start_paused = true)]
async fn r20_a_raised_cap_lets_waiters_dial_at_once() {
    let limits = LaneLimits { connections_per_origin_max: 1, ..LaneLimits::default() };
    let tuning = Arc::new(Tuning::new(&limits, SLOTS));
    let mut cell: CellState<Pipe, u32, &str> = CellState::new(Arc::clone(&tuning));
    let now = Instant::now();
    let wants =
        |actions: &[Action<Pipe, u32, &'static str>]| actions.iter().any(|a| matches!(a, Action::WantSlot { .. }));
    for waiter in 0..3 {
        join(&mut cell, waiter, now + Duration::from_secs(9), now);
    }
    cell.step(Event::Slot { fresh: false, life: 0 }, now);
    let channel = Pipe::new(false);
    let opened = Event::Connected {
        fresh: false,
        epoch: Epoch::default(),
        channel,
        shared: false,
        took: DIAL_TIME,
        jitter: 0.0,
    };
    assert!(!wants(&cell.step(opened, now)), "the cap is reached");
    tuning.set(&LaneLimits { connections_per_origin_max: 2, ..limits }, SLOTS);
    assert!(wants(&cell.step(Event::Retune, now + 12 * DIAL_TIME)));
}

#[tokio::test(start_paused = true)]
async fn a_drain_can_serve_the_line_first() {
    let mut model = Model::proven(200, 1);
    model.wait(60_000);
    model.step(Event::Drain(Intake::ServeLine), None);
    assert_eq!(model.cell.counts().waiters, 1);
    model.apply(Op::Answer { at: 0, verdict: Verdict::Answered });
    assert_eq!((model.cell.counts().waiters, model.leases.len()), (0, 1), "served, not refused");
    model.apply(Op::Answer { at: 0, verdict: Verdict::Answered });
    assert_eq!(model.cell.counts().idle, 0, "closed when the line was empty");
}

#[tokio::test(start_paused = true)]
async fn r19_a_keep_alive_of_three_hundred_billion_years_is_only_long() {
    let mut model = Model::proven(2, 1);
    let (key, pipe, _) = model.leases.pop().expect("one lease");
    let keep_alive = Some(Duration::from_secs(u64::MAX));
    let event = Event::Return { key, channel: Some(pipe), verdict: Verdict::Answered, keep_alive, held: None };
    model.step(event, None);
    model.check();
}

#[tokio::test(start_paused = true)]
async fn a_shorter_keep_alive_rings_earlier() {
    let mut model = Model::proven(2, 1);
    let (key, pipe, _) = model.leases.pop().expect("one lease");
    let keep_alive = Some(Duration::from_millis(30));
    let event = Event::Return { key, channel: Some(pipe), verdict: Verdict::Answered, keep_alive, held: None };
    model.step(event, None);
    model.apply(Op::Pass(31));
    assert_eq!(model.cell.counts().idle, 0, "the server has closed it by now");
}

#[tokio::test(start_paused = true)]
async fn one_caller_is_told_of_a_silent_dial_first_hand() {
    let mut model = Model::new();
    (0..8).for_each(|_| model.wait(100));
    model.apply(Op::GrantSlot);
    let then = model.now + Duration::from_millis(100);
    let mut told = expired(&mut model, then);
    assert_eq!((told.remove(0), told.len()), (Awaited::Dial, 7));
    assert!(told.iter().all(|awaited| *awaited == Awaited::SharedDial), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_connection_in_use_says_nothing_of_the_dial_beside_it() {
    let mut model = Model::proven(250, 12);
    model.wait(100);
    model.apply(Op::GrantSlot);
    assert_eq!(model.dials.len(), 1);
    let then = model.now + Duration::from_millis(100);
    assert_eq!(expired(&mut model, then), [Awaited::Turn]);
}

#[tokio::test(start_paused = true)]
async fn r04_a_thousand_short_waits_leave_no_rings_behind() {
    let mut model = Model::proven(2, 12);
    let mut most = 0;
    for _ in 0..1_000 {
        model.wait(5);
        model.apply(Op::Answer { at: 0, verdict: Verdict::Answered });
        model.apply(Op::Pass(1));
        most = most.max(model.armed.len());
    }
    assert!(most <= 8, "{most} rings outstanding");
}

#[tokio::test(start_paused = true)]
async fn a_shortage_of_ours_opens_no_breaker_and_answers_one_caller() {
    let mut model = Model::new();
    (0..3).for_each(|_| model.wait(60_000));
    model.apply(Op::GrantSlot);
    let dial = FailedDial {
        fresh: false,
        epoch: Epoch::default(),
        error: "too many open files",
        blame: Blame::Us,
        jitter: 1.0,
    };
    model.cell.step(Event::DialFailed { dial, took: DIAL_TIME }, model.now);
    let told = model.told().iter().filter(|why| matches!(why, Refusal::Dial(_))).count();
    assert_eq!((told, model.cell.counts().waiters), (1, 2), "one caller pays for one dial");
    assert_eq!(model.cell.breaker(model.now), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn r01_a_dial_that_got_no_time_answers_nobody_and_the_next_one_is_made() {
    let mut model = Model::new();
    (0..3).for_each(|_| model.wait(60_000));
    model.apply(Op::GrantSlot);
    let dial = FailedDial { fresh: false, epoch: Epoch::default(), error: "no time", blame: Blame::Haste, jitter: 1.0 };
    let actions = model.cell.step(Event::DialFailed { dial, took: DIAL_TIME }, model.now);
    assert!(!actions.iter().any(|action| matches!(action, Action::Wake(_))), "somebody was answered");
    assert!(actions.iter().any(|action| matches!(action, Action::WantSlot { .. })), "nobody dials again");
    assert_eq!((model.cell.counts().waiters, model.cell.breaker(model.now)), (3, BreakerState::Closed));
}

#[tokio::test(start_paused = true)]
async fn failed_dials_teach_nothing_about_how_long_a_dial_takes() {
    let mut model = Model::proven(2, 12);
    let before = model.cell.learnt().dial;
    for took in [Duration::ZERO, Duration::from_secs(3)] {
        model.apply(Op::Wait { fresh: true, patience_ms: 60_000 });
        model.apply(Op::GrantSlot);
        let (fresh, epoch) = model.dials.pop().expect("a probe dials");
        let dial = FailedDial { fresh, epoch, error: "refused", blame: Blame::Host, jitter: 1.0 };
        model.last_dial_failed = true;
        model.step(Event::DialFailed { dial, took }, None);
    }
    assert_eq!(model.cell.learnt().dial, before);
}

#[tokio::test(start_paused = true)]
async fn r03_a_stream_limit_that_comes_after_the_handshake_counts() {
    let mut model = Model::new();
    model.apply(Op::Wait { fresh: false, patience_ms: 60_000 });
    model.apply(Op::GrantSlot);
    model.apply(Op::DialWorks { at: 0, shared: true });
    assert_eq!(model.cell.conns.carries(), STREAMS_MAX);
    model.leases[0].1.streams.store(1, Ordering::Relaxed);
    model.apply(Op::Answer { at: 0, verdict: Verdict::Answered });
    model.wait(60_000);
    assert_eq!(model.cell.conns.carries(), 1);
}

#[tokio::test(start_paused = true)]
async fn r04_ever_earlier_deadlines_do_not_cost_a_ring_each() {
    let limits = LaneLimits { waiters_per_origin_max: 2_000, ..LaneLimits::default() };
    let mut cell = CellState::<Pipe, u32, &'static str>::new(Arc::new(Tuning::new(&limits, SLOTS)));
    let now = Instant::now();
    let (mut armed, mut earliest) = (Vec::new(), now);
    for n in 0..1_000_u32 {
        earliest = now + Duration::from_millis(10_000 - 9 * u64::from(n));
        let mut out = Actions::new();
        cell.join(&mut Some(n), earliest, false, now, &mut out);
        armed.extend(out.iter().filter_map(|action| match action {
            Action::Arm(at) => Some(*at),
            _ => None,
        }));
    }
    assert!(armed.len() <= 20, "{} rings", armed.len());
    // However early the rings come, the deadline is met.
    while let Some(at) = armed.pop().filter(|_| cell.counts().waiters == 1_000) {
        assert!(at <= earliest, "nobody rings for the earliest deadline");
        for action in cell.step(Event::Tick { at }, at) {
            if let Action::Arm(at) = action {
                armed.push(at);
            }
        }
    }
    assert_eq!(cell.counts().waiters, 999);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_comes_back_is_trusted_for_the_time_of_some_dials() {
    let mut model = Model::new();
    model.wait(60_000);
    model.apply(Op::GrantSlot);
    model.apply(Op::DialWorks { at: 0, shared: false });
    let key = model.leases[0].0;
    model.step(Event::Returning(key), None);
    model.wait(60_000);
    assert_eq!((model.cell.wanted_normal(model.now), model.queued), (0, 0), "it is about to come back");
    model.apply(Op::Pass(241));
    assert_eq!((model.cell.wanted_normal(model.now), model.queued), (1, 1), "it does not, and somebody waits");
}

#[tokio::test(start_paused = true)]
async fn r01_a_place_in_the_dial_line_that_an_old_life_asked_for_is_worth_nothing() {
    let tuning = Arc::new(Tuning::new(&LaneLimits::default(), SLOTS));
    let mut cell: CellState<Pipe, u32, &str> = CellState::new(tuning);
    let now = Instant::now();
    let deadline = now + Duration::from_secs(9);
    let asks = |actions: &Actions<Pipe, u32, &'static str>| {
        actions.iter().any(|action| matches!(action, Action::WantSlot { .. }))
    };
    let (_, before) = join(&mut cell, 0, deadline, now);
    drop(cell.renew());
    let (_, after) = join(&mut cell, 1, deadline, now);
    assert!(asks(&before) && asks(&after), "each life asks once");
    let old = cell.step(Event::Slot { fresh: false, life: 0 }, now);
    assert!(matches!(old[..], [Action::SlotUnused]), "{old:?}");
    let new = cell.step(Event::Slot { fresh: false, life: 1 }, now);
    assert!(matches!(new[..], [Action::Dial { .. }]), "{new:?}");
}

#[tokio::test(start_paused = true)]
async fn r03_a_server_that_repeats_its_keep_alive_gets_the_short_way_back() {
    let mut model = Model::proven(7, 1);
    model.apply(Op::Pass(25)); // What was armed for the first of them has rung.
    let (key, pipe, _) = model.leases.pop().expect("one is out");
    let told = Some(Duration::from_millis(100));
    let back = Event::Return { key, channel: Some(pipe), verdict: Verdict::Answered, keep_alive: told, held: None };
    let rings = |actions: Actions<_, _, _>| actions.iter().filter(|action| matches!(action, Action::Arm(_))).count();
    assert_eq!(rings(model.cell.step(back, model.now)), 1, "nothing rings before the connection expires");
    for (keep_alive, short) in [(None, true), (told, true), (Some(Duration::from_millis(50)), false)] {
        let taken = model.cell.checkout(&mut |_| panic!("it is well")).expect("idle");
        let back = model.cell.put_back(key, &mut Some(taken.channel.clone()), Some(model.now), keep_alive);
        assert_eq!(matches!(back, Back::Idle), short, "{keep_alive:?}");
        if !short {
            let channel = Some(taken.channel);
            let back = Event::Return { key, channel, verdict: Verdict::Answered, keep_alive, held: None };
            assert_eq!(rings(model.cell.step(back, model.now)), 1, "it expires earlier now");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_dial_is_made_for_a_thousand_callers_of_an_unknown_origin() {
    let mut model = Model::new();
    for _ in 0..WAITERS_MAX {
        model.apply(Op::Wait { fresh: false, patience_ms: 1_000 });
        model.apply(Op::GrantSlot);
    }
    assert_eq!(model.dials.len(), 1);
    model.apply(Op::DialFails { at: 0, jitter: 1.0 });
    assert_eq!(model.cell.counts().waiters, 0, "all share the failure");
    assert_eq!(model.queued, 0, "nobody dials during the back-off");
    model.check();
}

#[tokio::test(start_paused = true)]
async fn demand_is_read_again_when_a_slot_is_free() {
    let mut model = Model::new();
    model.apply(Op::Wait { fresh: false, patience_ms: 1_000 });
    model.apply(Op::Cancel(1));
    model.apply(Op::GrantSlot);
    assert!(model.dials.is_empty(), "dialled for somebody who left");
    model.check();
}

#[tokio::test(start_paused = true)]
async fn r04_a_timer_that_is_late_is_asked_once() {
    let mut model = Model::new();
    model.wait(10);
    model.now += Duration::from_millis(50); // The timer does not come to its turn.
    (0..100).for_each(|_| model.step(Event::Settle, None));
    assert_eq!(model.armed.iter().filter(|at| **at <= model.now).count(), 1, "{:?}", model.armed);
    model.now += RING_LATE_MAX;
    model.step(Event::Settle, None);
    assert_eq!(model.armed.len(), 2, "it was lost");
}

#[tokio::test(start_paused = true)]
async fn r21_a_server_that_closes_after_its_answer_abandons_nothing() {
    for (verdict, reason) in [(Verdict::Answered, CloseReason::Draining), (Verdict::Abandoned, CloseReason::Abandoned)]
    {
        let mut model = Model::proven(5, 1);
        let (key, ..) = model.leases.remove(0);
        let (keep_alive, held) = (None, None);
        model.cell.step(Event::Return { key, channel: None, verdict, keep_alive, held }, model.now);
        let actions = model.cell.step(Event::Closed(key), model.now);
        assert!(matches!(actions.as_slice(), [Action::Ended(why)] if *why == reason), "{verdict:?}: {actions:?}");
    }
}
