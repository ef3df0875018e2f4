use proptest::prelude::*;

use super::*;

const LIMITS: WindowLimits = WindowLimits { floor: 1, start: 8, max: 64 };

fn fill(window: &Window) -> u32 {
    let mut entered = 0;
    while window.try_enter() {
        entered += 1;
    }
    entered
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Enter,
    Leave(Outcome),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![Just(Outcome::Success), Just(Outcome::Overload), Just(Outcome::Neutral)];
    prop_oneof![3 => Just(Step::Enter), 2 => outcome.prop_map(Step::Leave), 1 => (0_u64..300).prop_map(Step::Wait)]
}

proptest! {
    #[test]
    fn stays_between_floor_and_max_and_counts_who_is_inside(steps in proptest::collection::vec(step(), 1..400)) {
        let window = Window::new(LIMITS);
        let mut now = Instant::now();
        let mut inside = 0;
        for step in steps {
            match step {
                Step::Enter => {
                    let room = inside < window.limit();
                    prop_assert_eq!(window.try_enter(), room);
                    inside += u32::from(room);
                }
                Step::Leave(outcome) if inside > 0 => {
                    let before = window.limit();
                    window.leave(outcome, now);
                    inside -= 1;
                    prop_assert!(outcome != Outcome::Neutral || window.limit() == before);
                    prop_assert!(outcome != Outcome::Overload || window.limit() <= before);
                    prop_assert!(window.limit() <= before + 1);
                }
                Step::Leave(_) => {}
                Step::Wait(ms) => now += Duration::from_millis(ms),
            }
            prop_assert!((1..=64).contains(&window.limit()));
            prop_assert_eq!(window.in_flight(), inside);
        }
    }
}

#[test]
fn pressure_from_outside_cuts_like_a_failure_and_as_rarely() {
    let window = Window::new(WindowLimits { floor: 8, start: 100, max: 100 });
    let now = Instant::now();
    window.press(now);
    window.press(now + CUT_PERIOD / 2);
    assert_eq!((window.limit(), window.in_flight()), (70, 0));
    for n in 1..50 {
        window.press(now + CUT_PERIOD * n);
    }
    assert_eq!(window.limit(), 8, "the floor holds");
}

#[test]
fn a_burst_of_failures_cuts_once() {
    let window = Window::new(WindowLimits { floor: 1, start: 100, max: 100 });
    let now = Instant::now();
    assert_eq!(fill(&window), 100);
    for _ in 0..50 {
        window.leave(Outcome::Overload, now);
    }
    assert_eq!(window.limit(), 70);
    window.leave(Outcome::Overload, now + CUT_PERIOD - Duration::from_millis(1));
    assert_eq!(window.limit(), 70);
    window.leave(Outcome::Overload, now + CUT_PERIOD);
    assert_eq!(window.limit(), 49);
    assert!(window.in_flight() == 48 && window.try_enter() && !window.try_enter());
}

#[test]
fn grows_by_one_for_each_window_of_successes() {
    let window = Window::new(LIMITS);
    let now = Instant::now();
    fill(&window);
    for _ in 0..9 {
        window.leave(Outcome::Success, now);
        assert!(window.try_enter());
    }
    assert_eq!(window.limit(), 9);
}

#[test]
fn is_frozen_while_less_than_half_used() {
    let window = Window::new(LIMITS);
    let now = Instant::now();
    for _ in 0..1_000 {
        assert!(window.try_enter());
        window.leave(Outcome::Success, now);
    }
    assert_eq!(window.limit(), 8);
}

#[test]
fn never_closes_for_ever() {
    let window = Window::new(LIMITS);
    let mut now = Instant::now();
    for _ in 0..100 {
        now += CUT_PERIOD;
        assert!(window.try_enter(), "the floor lets one in");
        window.leave(Outcome::Overload, now);
    }
    assert_eq!(window.limit(), 1);
    for _ in 0..64 * 64 {
        fill(&window);
        window.leave(Outcome::Success, now);
    }
    assert_eq!(window.limit(), 64, "success opens it again");
}

#[test]
fn r20_new_bounds_hold_at_once() {
    let window = Window::new(WindowLimits { floor: 0, start: 500, max: 3 });
    assert_eq!(window.limit(), 3, "bounds are put in order");
    window.set_limits(WindowLimits { floor: 10, start: 10, max: 20 });
    assert_eq!(window.limit(), 10);
    window.set_limits(WindowLimits { floor: 1, start: 1, max: 2 });
    assert_eq!(window.limit(), 2);
}
