use std::time::Duration;

use proptest::prelude::*;
use sfu_api::OwnerTerm;

use super::*;

fn epoch(n: u64) -> Epoch {
    Epoch { term: OwnerTerm { generation: 1, revision: 1 }, n }
}

fn news(n: u64, phase: u8, endpoint: Option<&str>) -> News<'_> {
    News { call: 0, epoch: epoch(n), phase, endpoint }
}

const A: &str = "https://127.1.0.1:7443/media/g.c";
const B: &str = "https://127.1.0.2:7443/media/g.c";

fn rules(checker: &Checker) -> Vec<Rule> {
    checker.violations().0.into_iter().map(|(rule, _)| rule).collect()
}

#[test]
fn r16_one_null_then_one_endpoint() {
    let now = Instant::now();
    let mut checker = Checker::new(1, 1);
    assert_eq!(checker.event(0, 0, news(1, 1, Some(A)), now), Change::Placed { first: true, outage: None });
    assert_eq!(checker.event(0, 0, news(1, 2, None), now), Change::Lost);
    assert_eq!(checker.event(0, 0, news(2, 1, Some(B)), now), Change::Placed { first: false, outage: None });
    assert_eq!(checker.tally().moved, 1);
    assert_eq!(checker.tally().violations, 0);
}

#[test]
fn r16_an_endpoint_and_a_null_are_told_apart_by_their_phase() {
    let now = Instant::now();
    let mut checker = Checker::new(1, 1);
    checker.event(0, 0, news(1, 1, None), now);
    checker.event(0, 0, news(1, 2, Some(A)), now);
    assert_eq!(rules(&checker), [Rule::Contract]);
    assert_eq!(checker.tally().violations, 2);
}

#[test]
fn i03_two_endpoints_at_one_epoch_are_seen_even_from_different_watchers() {
    let now = Instant::now();
    let mut checker = Checker::new(1, 2);
    checker.event(0, 0, news(1, 1, Some(A)), now);
    checker.answer(1, news(1, 1, Some(A)), now);
    assert_eq!(checker.tally().violations, 0);
    checker.event(1, 0, news(1, 1, Some(B)), now);
    assert_eq!(rules(&checker), [Rule::OneEndpoint]);
}

#[test]
fn i07_going_back_on_one_stream_is_a_violation_and_on_a_new_one_a_repeat() {
    let now = Instant::now();
    let mut checker = Checker::new(1, 1);
    checker.event(0, 0, news(2, 1, Some(A)), now);
    checker.event(0, 1, news(2, 1, Some(A)), now);
    assert_eq!((checker.tally().repeats, checker.tally().violations), (1, 0));
    checker.event(0, 1, news(1, 2, None), now);
    assert_eq!(rules(&checker), [Rule::Order]);
}

#[test]
fn i07_a_watcher_without_the_last_state_is_behind() {
    let now = Instant::now();
    let mut checker = Checker::new(1, 2);
    checker.event(0, 0, news(1, 1, Some(A)), now);
    checker.answer(1, news(1, 1, Some(A)), now);
    assert_eq!(checker.behind(9), (0, Vec::new()));
    checker.event(0, 0, news(1, 2, None), now);
    assert_eq!(checker.behind(9), (1, vec![(1, 0)]));
    checker.settle();
    assert_eq!(rules(&checker), [Rule::LastState]);
}

#[test]
fn i10_a_move_is_right_only_off_a_broken_sfu() {
    let start = Instant::now();
    let mut checker = Checker::new(2, 1);
    checker.event(0, 0, news(1, 1, Some(A)), start);
    checker.event(0, 0, News { call: 1, ..news(1, 1, Some(B)) }, start);
    checker.event(0, 0, news(2, 1, Some(B)), start);
    // The cause of the first move becomes known a little later, as for a process killed outside.
    checker.hit(authority(A), true, start + Duration::from_secs(2));
    checker.event(0, 0, News { call: 1, ..news(2, 1, Some(A)) }, start);
    checker.judge(start + Duration::from_secs(1), false);
    assert_eq!(checker.tally().violations, 0, "too early for a verdict");
    checker.judge(start + HIT, false);
    assert_eq!(rules(&checker), [Rule::Untouched]);
    assert_eq!(checker.tally().violations, 1);
}

const HIT: Duration = judge::HIT_KNOWN_WITHIN;

#[test]
fn affected_are_those_on_the_sfu_and_those_placed_on_it_while_broken() {
    let now = Instant::now();
    let mut checker = Checker::new(3, 1);
    checker.event(0, 0, news(1, 1, Some(A)), now);
    checker.event(0, 0, News { call: 1, ..news(1, 1, Some(B)) }, now);
    checker.hit(authority(A), true, now);
    checker.hit(authority(A), true, now);
    assert_eq!(checker.tally().affected, 1);
    checker.event(0, 0, News { call: 2, ..news(1, 1, Some(A)) }, now);
    assert_eq!((checker.tally().affected, checker.tally().new_on_hit), (2, 1));
    assert_eq!(checker.tally().recovered, 0);
    checker.healed(authority(A));
    let later = now + Duration::from_secs(3);
    let change = checker.event(0, 0, news(2, 1, Some(A)), later);
    assert_eq!(change, Change::Placed { first: false, outage: Some(Duration::from_secs(3)) });
    assert_eq!((checker.tally().affected, checker.tally().recovered, checker.tally().replaced), (2, 1, 1));
}

#[test]
fn affected_are_those_that_left_a_moment_before_the_break_was_known() {
    let start = Instant::now();
    let mut checker = Checker::new(4, 1);
    for call in 0..4 {
        checker.event(0, 0, News { call, ..news(1, 1, Some(A)) }, start);
    }
    let later = start + Duration::from_secs(60);
    checker.event(0, 0, News { call: 0, ..news(2, 1, Some(B)) }, start);
    checker.event(0, 0, News { call: 1, ..news(1, 2, None) }, later);
    checker.event(0, 0, News { call: 2, ..news(1, 2, None) }, later);
    checker.event(0, 0, News { call: 2, ..news(2, 1, Some(B)) }, later);
    checker.hit(authority(A), true, later + Duration::from_secs(2));
    assert_eq!(checker.tally().affected, 3, "all but the one that moved long ago");
    assert_eq!(checker.tally().recovered, 1, "one of them is somewhere else already");
}

#[test]
fn authorities_are_host_and_port() {
    assert_eq!(authority(A), "127.1.0.1:7443");
    assert_eq!(authority("https://h:1"), "h:1");
    assert_eq!(authority("h:1?x"), "h:1");
}

proptest! {
    /// Whatever strictly growing history is told, to whomever, in whatever pieces: no violation,
    /// and the last state wins.
    #[test]
    fn i07_growing_histories_are_never_a_violation(
        steps in proptest::collection::vec((1u64..4, any::<bool>()), 1..20),
        skips in proptest::collection::vec(any::<bool>(), 40),
    ) {
        let now = Instant::now();
        let mut checker = Checker::new(1, 2);
        let (mut n, mut history) = (0, Vec::new());
        for (step, lost) in steps {
            n += step;
            history.push((n, 1, Some(format!("https://node-{}:1/media/r", n % 3))));
            if lost {
                history.push((n, 2, None));
            }
        }
        for (i, (n, phase, endpoint)) in history.iter().enumerate() {
            checker.event(0, 0, news(*n, *phase, endpoint.as_deref()), now);
            if !skips[i % skips.len()] || i + 1 == history.len() {
                checker.event(1, 0, news(*n, *phase, endpoint.as_deref()), now);
            }
        }
        prop_assert_eq!(checker.tally().violations, 0);
        prop_assert_eq!(checker.behind(1).0, 0);
        let last = history.last().and_then(|(_, _, endpoint)| endpoint.clone());
        prop_assert_eq!(checker.endpoints().next().map(|(_, e)| e.to_owned()), last);
    }
}
