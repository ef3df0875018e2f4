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
    assert_eq!(h.observe(&Evidence::Tick { silence_counts: true }, &never, t + Duration::from_secs(1_000_000)), None);
    assert_eq!(see(&mut h, &Evidence::Tick { silence_counts: true }, t + Duration::from_secs(599)), None);
    assert_eq!(
        see(&mut h, &Evidence::Tick { silence_counts: true }, t + Duration::from_secs(600)),
        Some(Verdict::Dead)
    );
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

fn peer(id: &str) -> SyncerId {
    SyncerId::new(id).expect("valid id")
}

fn witnessed(by: &str, sight: Sight) -> Evidence {
    Evidence::Witnessed { by: peer(by), sight }
}

fn reported(gateway: &str) -> Evidence {
    Evidence::MediaFailed { gateway: GatewayId::new(gateway).expect("valid id"), here: true }
}

const TWO_EYES: fn() -> Rules = || Rules { witnesses: 1, ..Rules::default() };

fn refused_for(h: &mut Health, rules: &Rules, from: Instant) -> Option<Verdict> {
    let all = (0..4).map(|i| h.observe(&failed(Failure::Unreachable, true), rules, from + ms(i * 700)));
    all.flatten().last().map(|c| c.to)
}

#[test]
fn r17_a_refusal_needs_a_second_pair_of_eyes_while_there_is_one() {
    let (t, rules) = (Instant::now(), TWO_EYES());
    let mut h = Health::default();
    assert_eq!(refused_for(&mut h, &rules, t), Some(Verdict::Suspect), "it may be our own network");
    assert_eq!(h.sight(&rules), Sight::Refused);
    let now = t + ms(2_200);
    assert_eq!(h.observe(&witnessed("b", Sight::Doubted), &rules, now), None, "a doubt confirms nothing");
    let change = h.observe(&witnessed("b", Sight::Refused), &rules, now).expect("a change");
    assert_eq!((change.to, change.reason), (Verdict::Dead, Reason::UnreachableConfirmed));
    assert_eq!(h.observe(&witnessed("c", Sight::Refused), &rules, now), None, "one notice");
}

#[test]
fn r17_a_peers_word_alone_kills_nobody_and_does_not_last() {
    let (t, rules) = (Instant::now(), TWO_EYES());
    let mut h = Health::default();
    assert_eq!(h.observe(&witnessed("b", Sight::Refused), &rules, t), None);
    assert!(h.is_asked_to_look() && h.wants_fresh_probe(), "but it makes us look");
    assert_eq!(see(&mut h, &answered("a", t), t + ms(10)), None);
    assert!(!h.is_asked_to_look());
    assert_eq!(refused_for(&mut h, &rules, t + EVIDENCE_TTL), Some(Verdict::Suspect), "what b saw has expired");
    h.observe(&witnessed("b", Sight::Refused), &rules, t + EVIDENCE_TTL).expect("both, at last");
}

#[test]
fn r13_when_the_last_witness_is_gone_our_own_eyes_do() {
    let t = Instant::now();
    let mut h = Health::default();
    refused_for(&mut h, &TWO_EYES(), t);
    let tick = Evidence::Tick { silence_counts: false };
    assert_eq!(h.observe(&tick, &TWO_EYES(), t + ms(2_300)), None);
    assert_eq!(see(&mut h, &tick, t + ms(2_400)), Some(Verdict::Dead), "hard evidence waits for no thaw");
}

#[test]
fn r17_two_gateways_without_media_and_silence_are_hard_evidence_and_one_is_not() {
    let t = Instant::now();
    let mut h = Health::default();
    for i in 0..3 {
        see(&mut h, &failed(Failure::TimedOut, true), t + ms(i));
    }
    for _ in 0..10 {
        assert_eq!(see(&mut h, &reported("gw-1"), t + ms(10)), None, "one gateway, however often");
    }
    let change = h.observe(&reported("gw-2"), &Rules::default(), t + ms(20)).expect("a change");
    assert_eq!((change.to, change.reason), (Verdict::Dead, Reason::MediaFailed));
}

#[test]
fn r17_reports_of_lost_media_move_nothing_while_the_sfu_answers() {
    let t = Instant::now();
    let mut h = Health::default();
    for gateway in ["a", "b", "c", "d"] {
        assert_eq!(see(&mut h, &reported(gateway), t), None);
    }
    see(&mut h, &answered("a", t), t);
    for i in 0..3 {
        see(&mut h, &failed(Failure::TimedOut, true), t + ms(i));
    }
    assert_eq!(h.verdict(), Verdict::Suspect, "it has answered since they were made");
    see(&mut h, &reported("a"), t + ms(10));
    assert_eq!(see(&mut h, &reported("b"), t + ms(10) + EVIDENCE_TTL), None, "the other one's has expired");
}

#[test]
fn r17_peers_do_not_remind_each_other_of_reports_for_ever() {
    let mut t = Instant::now();
    let heard = Evidence::MediaFailed { gateway: GatewayId::new("gw-1").expect("valid id"), here: false };
    let (mut ours, mut theirs) = (Health::default(), Health::default());
    see(&mut ours, &reported("gw-1"), t);
    for _ in 0..20 {
        t += ms(1_000);
        let told = [&ours, &theirs].map(|h| h.reporters(t).next().is_some());
        for (_, to) in told.into_iter().zip([&mut theirs, &mut ours]).filter(|(told, _)| *told) {
            see(to, &heard, t);
        }
    }
    assert_eq!((ours.reporters(t).count(), theirs.reporters(t).count()), (0, 0));
    see(&mut theirs, &failed(Failure::TimedOut, true), t);
    see(&mut theirs, &failed(Failure::TimedOut, true), t);
    assert_eq!(see(&mut theirs, &reported("gw-2"), t), None, "the first has expired");
}

#[test]
fn r17_unreachable_and_gone_from_the_catalogue_is_hard_evidence() {
    let t = Instant::now();
    let mut h = Health::default();
    assert_eq!(see(&mut h, &Evidence::Listed(false), t), None, "an entry may be gone by mistake");
    assert_eq!(see(&mut h, &answered("a", t), t), None);
    assert_eq!(see(&mut h, &failed(Failure::Unreachable, true), t), Some(Verdict::Dead));
    let mut h = Health::default();
    see(&mut h, &failed(Failure::TimedOut, true), t);
    assert_eq!(see(&mut h, &Evidence::Listed(false), t), None, "one time-out is not unreachable");
    assert_eq!(see(&mut h, &failed(Failure::TimedOut, true), t), Some(Verdict::Dead));
}

#[test]
fn r17_an_sfu_that_dies_again_and_again_is_held_back_and_forgiven_by_an_operator() {
    let mut t = Instant::now();
    let mut h = Health::default();
    for n in 0..3_u32 {
        assert_eq!(refused_for(&mut h, &Rules::default(), t), Some(Verdict::Dead));
        t += Duration::from_secs(5);
        see(&mut h, &answered("a", t), t);
        let held = h.held_until().map(|until| until - t);
        assert_eq!(held, (n > 0).then(|| Duration::from_secs(5) * n));
    }
    h.forgive();
    assert_eq!(h.held_until(), None);
}

fn soft() -> impl Strategy<Value = Evidence> {
    prop_oneof![
        Just(failed(Failure::TimedOut, true)),
        Just(failed(Failure::TimedOut, false)),
        Just(failed(Failure::Tls, true)),
        Just(failed(Failure::Garbage, true)),
        Just(failed(Failure::ServerError, true)),
        Just(failed(Failure::Unreachable, false)),
        Just(Evidence::Tick { silence_counts: true }),
        Just(witnessed("b", Sight::Refused)),
        Just(reported("gw-1")),
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

    /// One notice: a change of verdict begins where the last one ended, so that an SFU is dead once however many
    /// say so, until something is heard of it again; and what is heard of a dead one moves nobody.
    #[test]
    fn r13_whoever_says_it_however_often_an_sfu_dies_once(
        events in prop::collection::vec((prop_oneof![
            4 => Just(failed(Failure::Unreachable, true)),
            4 => soft(),
            2 => (0..3_u8).prop_map(|n| reported(&format!("gw-{n}"))),
            2 => (0..3_u8).prop_map(|n| witnessed(&format!("p{n}"), Sight::Refused)),
            1 => Just(Evidence::DeclaredDead),
            1 => any::<bool>().prop_map(Evidence::Listed),
            1 => (0..2_u8).prop_map(|n| answered(&format!("boot-{n}"), Instant::now())),
        ], 0u64..3_000), 0..200),
    ) {
        let (mut h, mut now) = (Health::default(), Instant::now());
        let mut heard = true;
        for (event, gap) in events {
            now += ms(gap);
            let event = match event {
                Evidence::Answered { boot_id, took, .. } => Evidence::Answered { boot_id, asked: now, took },
                other => other,
            };
            let before = h.verdict();
            heard |= matches!(event, Evidence::Answered { .. });
            let change = h.observe(&event, &Rules::default(), now);
            prop_assert_eq!(change.map_or(before, |c| c.from), before, "{:?}", change);
            prop_assert_eq!(change.map_or(before, |c| c.to), h.verdict(), "{:?}", change);
            if let Some(change) = change {
                prop_assert!(change.from != change.to || change.to == Verdict::Restarted, "{change:?} is no news");
                if change.to == Verdict::Dead {
                    prop_assert!(std::mem::take(&mut heard), "it had not come back since it died");
                }
                if change.from == Verdict::Dead {
                    prop_assert!(matches!(event, Evidence::Answered { .. }), "{event:?} brought it back");
                }
            }
        }
    }

    /// Nobody is stranded: whatever went before, an SFU that has failed and gives no good sign is dead after
    /// `suspect_max`, if silence counts, and not before; and never if there is no `suspect_max`.
    #[test]
    fn r17_silence_moves_calls_after_suspect_max_and_strands_nobody(
        before in prop::collection::vec((soft(), 0u64..2_000), 0..50),
        suspect_max_s in 0u64..60, every_ms in 100u64..2_000,
    ) {
        let rules = Rules { suspect_max: Duration::from_secs(suspect_max_s), ..Rules::default() };
        let (mut h, mut now) = (Health::default(), Instant::now());
        for (event, gap) in before.iter().filter(|(e, _)| !matches!(e, Evidence::Tick { .. })) {
            now += ms(*gap);
            h.observe(event, &Rules { suspect_max: Duration::ZERO, ..rules }, now);
        }
        h.observe(&answered("a", now), &rules, now);
        let start = now;
        let end = start + 3 * rules.suspect_max + Duration::from_secs(10);
        while now < end {
            now += ms(every_ms);
            h.observe(&failed(Failure::TimedOut, true), &rules, now);
            h.observe(&Evidence::Tick { silence_counts: true }, &rules, now);
            let silent = now - start - ms(every_ms);
            if silent < rules.suspect_max || suspect_max_s == 0 {
                prop_assert!(h.verdict() != Verdict::Dead, "dead after {silent:?} of silence");
            } else if silent > ms(every_ms) {
                prop_assert_eq!(h.verdict(), Verdict::Dead, "stranded after {:?} of silence", silent);
            }
        }
        prop_assert_eq!(h.verdict(), if suspect_max_s == 0 { Verdict::Suspect } else { Verdict::Dead });
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

    /// With a witness to ask, `Dead` by refusal always had our own evidence and a fresh one of a peer.
    #[test]
    fn r17_death_by_refusal_was_seen_by_two(
        events in prop::collection::vec((prop_oneof![
            4 => Just(failed(Failure::Unreachable, true)),
            1 => Just(failed(Failure::Unreachable, false)),
            1 => Just(failed(Failure::TimedOut, true)),
            1 => Just(answered("a", Instant::now())),
            1 => (0..3_u8).prop_map(|by| witnessed(&format!("p{by}"), Sight::Refused)),
            1 => (0..3_u8).prop_map(|by| witnessed(&format!("p{by}"), Sight::Doubted)),
            1 => (0..3_u8).prop_map(|by| witnessed(&format!("p{by}"), Sight::Fine)),
            1 => Just(Evidence::Tick { silence_counts: false }),
        ], 0u64..3_000), 0..120),
    ) {
        let rules = TWO_EYES();
        let mut now = Instant::now();
        let mut h = Health::default();
        // A second opinion of the rule: our run of refusals, and who said what until when.
        let (mut run, mut count): (Option<(Instant, Instant)>, u32) = (None, 0);
        let mut peers: std::collections::HashMap<SyncerId, Instant> = std::collections::HashMap::new();
        for (event, gap) in events {
            now += ms(gap);
            match &event {
                Evidence::Failed { failure: Failure::Unreachable, fresh: true } => {
                    run = Some((run.map_or(now, |r| r.0), now));
                    count += 1;
                }
                Evidence::Failed { failure: Failure::TimedOut, .. } | Evidence::Answered { .. } => (run, count) = (None, 0),
                Evidence::Witnessed { by, sight: Sight::Refused } => { peers.insert(by.clone(), now + EVIDENCE_TTL); }
                Evidence::Witnessed { by, .. } => { peers.remove(by); }
                _ => {}
            }
            let change = h.observe(&event, &rules, now);
            let ours = count >= rules.dead_failures && run.is_some_and(|(first, last)| last - first >= rules.dead_window);
            let theirs = peers.values().any(|until| *until > now);
            if change.is_some_and(|c| c.to == Verdict::Dead) {
                prop_assert!(ours && theirs, "ours {ours}, theirs {theirs}");
            }
            if ours && theirs {
                prop_assert_eq!(h.verdict(), Verdict::Dead);
            }
        }
    }
}
