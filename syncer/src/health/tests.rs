use std::time::Duration;

use proptest::prelude::*;
use sfu_api::BootId;
use tokio::time::Instant;

use super::*;

fn boot(s: &str) -> BootId {
    BootId::new(s).expect("valid id")
}

fn answered(b: &str, asked: Instant) -> Evidence {
    Evidence::Answered { boot_id: Some(boot(b)), asked, took: Duration::from_millis(5) }
}

fn failed(failure: Failure, fresh: bool) -> Evidence {
    Evidence::Failed { failure, fresh }
}

fn see(h: &mut Health, e: &Evidence, at: Instant) -> Option<Verdict> {
    h.observe(e, &Rules::default(), at).map(|c| c.to)
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn r17_dead_needs_three_fresh_refusals_over_two_seconds() {
    let t = Instant::now();
    let mut h = Health::default();
    let refused = failed(Failure::Unreachable, true);
    assert_eq!(see(&mut h, &refused, t), Some(Verdict::Suspect));
    assert_eq!(see(&mut h, &refused, t + ms(500)), None);
    assert_eq!(see(&mut h, &refused, t + ms(1_900)), None, "three, but not over two seconds");
    assert_eq!(see(&mut h, &refused, t + ms(2_000)), Some(Verdict::Dead));
    assert_eq!(see(&mut h, &refused, t + ms(2_500)), None, "one notice");
}

#[test]
fn r17_shared_refusals_are_not_fresh_evidence() {
    let t = Instant::now();
    let mut h = Health::default();
    for i in 0..1_000 {
        see(&mut h, &failed(Failure::Unreachable, false), t + ms(i * 10));
    }
    assert_eq!(h.verdict(), Verdict::Suspect);
}

#[test]
fn r17_suspect_max_moves_at_last_and_zero_never_does() {
    let t = Instant::now();
    let mut h = Health::default();
    see(&mut h, &failed(Failure::TimedOut, true), t);
    see(&mut h, &failed(Failure::TimedOut, true), t + ms(10));
    assert_eq!(h.verdict(), Verdict::Suspect);
    let never = Rules { suspect_max: Duration::ZERO, ..Rules::default() };
    assert_eq!(h.observe(&Evidence::Tick, &never, t + Duration::from_secs(1_000_000)), None);
    assert_eq!(see(&mut h, &Evidence::Tick, t + Duration::from_secs(599)), None);
    assert_eq!(see(&mut h, &Evidence::Tick, t + Duration::from_secs(600)), Some(Verdict::Dead));
}

#[test]
fn a_new_incarnation_is_noticed_each_time() {
    let t = Instant::now();
    let mut h = Health::default();
    assert_eq!(see(&mut h, &answered("a", t), t), None);
    assert_eq!(see(&mut h, &answered("b", t), t), Some(Verdict::Restarted));
    assert_eq!(see(&mut h, &answered("c", t), t), Some(Verdict::Restarted));
    assert_eq!(see(&mut h, &answered("c", t), t), Some(Verdict::Healthy));
}

#[test]
fn an_operators_word_outlasts_good_answers_until_it_is_taken_back() {
    let t = Instant::now();
    let mut h = Health::default();
    see(&mut h, &answered("a", t), t);
    assert_eq!(see(&mut h, &Evidence::DeclaredDead, t), Some(Verdict::Dead));
    assert_eq!(see(&mut h, &answered("a", t), t), None);
    h.forgive();
    assert_eq!(see(&mut h, &answered("a", t), t), Some(Verdict::Healthy));
    see(&mut h, &Evidence::DeclaredDead, t);
    assert_eq!(see(&mut h, &answered("b", t), t), Some(Verdict::Restarted), "another incarnation starts anew");
}

#[test]
fn the_previous_incarnation_heard_late_is_not_a_restart() {
    let t = Instant::now();
    let mut h = Health::default();
    see(&mut h, &answered("a", t), t);
    assert_eq!(see(&mut h, &answered("b", t + ms(50)), t + ms(60)), Some(Verdict::Restarted));
    see(&mut h, &answered("b", t + ms(70)), t + ms(80));
    assert_eq!(see(&mut h, &answered("a", t + ms(10)), t + ms(90)), None);
    assert_eq!(h.boot_id(), Some(&boot("b")));
}

#[test]
fn an_sfu_that_died_and_came_back_empty_is_restarted_not_healthy() {
    let t = Instant::now();
    let mut h = Health::default();
    see(&mut h, &answered("a", t), t);
    for i in 0..5 {
        see(&mut h, &failed(Failure::Unreachable, true), t + ms(i * 700));
    }
    assert_eq!(h.verdict(), Verdict::Dead);
    assert_eq!(see(&mut h, &answered("b", t + ms(9_000)), t + ms(9_000)), Some(Verdict::Restarted));
}

#[test]
fn garbage_makes_suspect_at_once_and_a_good_answer_heals() {
    let t = Instant::now();
    let mut h = Health::default();
    assert_eq!(see(&mut h, &failed(Failure::Garbage, false), t), Some(Verdict::Suspect));
    assert_eq!(see(&mut h, &answered("a", t), t), Some(Verdict::Healthy));
}

#[test]
fn late_answers_make_slow_and_prompt_ones_heal() {
    let t = Instant::now();
    let mut h = Health::default();
    let late = Evidence::Answered { boot_id: None, asked: t, took: Duration::from_secs(2) };
    assert_eq!(see(&mut h, &late, t), None);
    assert_eq!(see(&mut h, &late, t), None);
    assert_eq!(see(&mut h, &late, t), Some(Verdict::Slow));
    assert_eq!(see(&mut h, &late, t), None);
    assert_eq!(see(&mut h, &answered("a", t), t), Some(Verdict::Healthy));
}

fn soft() -> impl Strategy<Value = Evidence> {
    prop_oneof![
        Just(failed(Failure::TimedOut, true)),
        Just(failed(Failure::TimedOut, false)),
        Just(failed(Failure::Tls, true)),
        Just(failed(Failure::Garbage, true)),
        Just(failed(Failure::ServerError, true)),
        Just(failed(Failure::Unreachable, false)),
        Just(Evidence::Tick),
        Just(Evidence::Answered { boot_id: None, asked: Instant::now(), took: Duration::from_secs(9) }),
    ]
}

proptest! {
    /// No amount of soft evidence moves a call before `suspect_max`.
    #[test]
    fn r17_soft_evidence_alone_never_kills(events in prop::collection::vec((soft(), 0u64..2_000), 0..200)) {
        let mut now = Instant::now();
        let start = now;
        let mut h = Health::default();
        for (e, gap) in events {
            now += ms(gap);
            see(&mut h, &e, now);
            if now - start < Rules::default().suspect_max {
                prop_assert_ne!(h.verdict(), Verdict::Dead);
            }
        }
    }

    /// `Dead` by refusal always had the failures and the span that the rules ask for.
    #[test]
    fn r17_death_by_refusal_had_its_evidence(gaps in prop::collection::vec(0u64..1_500, 1..40)) {
        let rules = Rules::default();
        let start = Instant::now();
        let mut now = start;
        let mut h = Health::default();
        for (n, gap) in (1u32..).zip(gaps) {
            if n > 1 { now += ms(gap); }
            let change = h.observe(&failed(Failure::Unreachable, true), &rules, now);
            if change.is_some_and(|c| c.to == Verdict::Dead) {
                prop_assert!(n >= rules.dead_failures && now - start >= rules.dead_window);
            }
        }
    }
}
