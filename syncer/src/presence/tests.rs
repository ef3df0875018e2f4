//! Presence against a plain account of who said what when.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const fn s(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
/// SFUs are not asked.
const RULES: Rules =
    Rules { alive_for: s(30), resume_window: s(120), kept_max: s(0), ask_every: s(60), freeze_share: 0.5 };

fn gateway(n: u8) -> GatewayId {
    GatewayId::new(format!("gw-{n}")).expect("an id")
}

fn vanished(n: u8) -> Due {
    Due { gateway: gateway(n), before: None, but_talking: false }
}

fn beat(presence: &mut Presence, n: u8, now: Instant) -> Beat {
    presence.beat(&gateway(n), "i", Via::Own, now).expect("taken")
}

fn beats(presence: &mut Presence, all: std::ops::Range<u8>, now: Instant) {
    for n in all {
        beat(presence, n, now);
    }
}

/// Does all that is due, as the shell does.
fn expire(presence: &mut Presence, now: Instant) -> Look {
    let look = presence.look(&RULES, now);
    for due in &look.due {
        assert!(presence.is_due(due));
        presence.expired(due);
        presence.finished(due, 0, now);
    }
    look
}

#[derive(Clone, Debug)]
enum Step {
    Beat(u8),
    Open(u8),
    Close(u8),
    Begin(u8),
    /// Ends the gateway's oldest or newest open round.
    Synced(u8, bool),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..5).prop_map(Step::Beat),
        2 => (0u8..5).prop_map(Step::Open),
        2 => (0u8..5).prop_map(Step::Close),
        2 => (0u8..5).prop_map(Step::Begin),
        2 => (0u8..5, any::<bool>()).prop_map(|(g, newest)| Step::Synced(g, newest)),
        5 => (1u64..100).prop_map(Step::Advance),
    ]
}

/// What was said of one gateway.
#[derive(Debug, Default)]
struct Said {
    promised: bool,
    streams: u32,
    last_sign: Option<Instant>,
    open: Vec<u64>,
    /// When each round ended.
    ended: BTreeMap<u64, Instant>,
}

// === impl Said ===

impl Said {
    /// For how long nothing has been heard.
    fn silent_for(&self, now: Instant) -> Duration {
        match self.last_sign {
            Some(at) if self.streams == 0 => now.saturating_duration_since(at),
            _ => Duration::ZERO,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Nobody's sessions go who has spoken within the two windows, has a stream, or never promised; whoever
    /// is silent for longer is found out unless expiry is frozen; and the rest of a round goes after
    /// its window and never before its end.
    #[test]
    fn r15_r16_sessions_go_on_a_broken_promise_or_the_gateways_word_only(walk in prop::collection::vec(steps(), 1..120)) {
        let mut now = Instant::now();
        let mut presence = Presence::default();
        let mut said: BTreeMap<u8, Said> = BTreeMap::new();
        let mut rounds = 0;
        for step in walk {
            let id = |g: u8| gateway(g);
            match step {
                Step::Beat(g) => {
                    beat(&mut presence, g, now);
                    let it = said.entry(g).or_default();
                    (it.promised, it.last_sign) = (true, Some(now));
                }
                Step::Open(g) => {
                    presence.opened(&id(g), Via::Own, now).expect("few");
                    let it = said.entry(g).or_default();
                    (it.streams, it.last_sign) = (it.streams + 1, Some(now));
                }
                Step::Close(g) => {
                    let it = said.entry(g).or_default();
                    if it.streams > 0 {
                        presence.closed(&id(g), Via::Own, now);
                        (it.streams, it.last_sign) = (it.streams - 1, Some(now));
                    }
                }
                Step::Begin(g) => {
                    let it = said.entry(g).or_default();
                    if it.streams > 0 {
                        rounds += 1;
                        presence.begin(&id(g), Round(rounds), now).expect("few");
                        it.open.push(rounds);
                    }
                }
                Step::Synced(g, newest) => {
                    let it = said.entry(g).or_default();
                    let round = if newest { it.open.last() } else { it.open.first() };
                    if let Some(round) = round.copied() && presence.synced(&id(g), Round(round), now).is_ok() {
                        it.open.retain(|open| *open > round);
                        it.ended.insert(round, now);
                    }
                }
                Step::Advance(secs) => now += s(secs),
            }
            let look = presence.look(&RULES, now);
            for due in &look.due {
                let (_, it) = said.iter_mut().find(|(g, _)| gateway(**g) == due.gateway).expect("known");
                match due.before {
                    None => {
                        prop_assert!(!presence.is_frozen() && it.promised, "{due:?} {it:?}");
                        prop_assert!(it.silent_for(now) >= RULES.resume_window, "{due:?} {it:?}");
                        *it = Said::default();
                    }
                    Some(Round(round)) => {
                        let at = it.ended.get(&round).expect("it ended");
                        prop_assert!(now.saturating_duration_since(*at) >= RULES.resume_window);
                        it.ended.retain(|r, _| *r > round);
                    }
                }
                presence.finished(due, 0, now);
            }
            let silent = |it: &&Said| it.promised && it.silent_for(now) >= RULES.alive_for;
            let counts = presence.counts();
            prop_assert_eq!(counts.vanished as usize, said.values().filter(silent).count());
            prop_assert!(counts.here + counts.vanished <= 5);
        }
        // Everybody stays silent: all of them are found out, or so many at once that it freezes.
        for g in 0..5 {
            let it = said.entry(g).or_default();
            for _ in 0..it.streams { presence.closed(&gateway(g), Via::Own, now); }
        }
        now += RULES.alive_for;
        expire(&mut presence, now);
        now += RULES.resume_window;
        expire(&mut presence, now);
        prop_assert!(presence.is_frozen() || presence.counts().vanished == 0);
        now += RULES.resume_window + s(600);
        presence.look(&RULES, now);
        if !presence.is_frozen() {
            expire(&mut presence, now);
            prop_assert_eq!(presence.counts(), Counts::default(), "nothing is kept for nothing");
        }
    }
}

#[test]
fn a_vanished_gateway_has_the_resume_window_to_come_back() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    assert!(beat(&mut presence, 0, t).resync, "a gateway that nobody knows tells everything");
    assert_eq!(presence.look(&RULES, t + s(29)), Look::default());
    assert_eq!(presence.look(&RULES, t + s(30)).vanished, [gateway(0)]);
    assert_eq!(presence.look(&RULES, t + s(149)), Look::default(), "told once, and kept");
    beat(&mut presence, 0, t + s(149));
    assert_eq!(presence.look(&RULES, t + s(150)), Look::default(), "it is back");
    presence.look(&RULES, t + s(179));
    assert_eq!(presence.look(&RULES, t + s(299)).due, [vanished(0)]);
    // Back in the middle of it: the rest stays, and it is told that some is gone.
    presence.begin(&gateway(0), Round(1), t).expect("few");
    presence.synced(&gateway(0), Round(1), t).expect("begun");
    presence.expired(&vanished(0));
    assert!(beat(&mut presence, 0, t + s(299)).resync);
    assert!(!presence.is_due(&vanished(0)));
    presence.finished(&vanished(0), 0, t + s(299));
    assert_eq!(presence.counts().here, 1, "it is not forgotten for what was due before");
}

#[test]
fn an_open_stream_is_a_sign_of_life_and_no_promise_is_not_broken() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    presence.opened(&gateway(1), Via::Peer, t).expect("few");
    beat(&mut presence, 1, t);
    presence.opened(&gateway(2), Via::Own, t).expect("few");
    presence.closed(&gateway(2), Via::Own, t + s(1));
    assert_eq!(presence.look(&RULES, t + s(9_000)), Look::default());
    presence.closed(&gateway(1), Via::Peer, t + s(9_000));
    assert_eq!(presence.look(&RULES, t + s(9_030)).vanished, [gateway(1)]);
}

#[test]
fn only_what_it_was_told_itself_is_passed_on_to_other_syncers() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    beat(&mut presence, 0, t);
    presence.beat(&gateway(1), "i", Via::Peer, t + s(5)).expect("taken");
    presence.opened(&gateway(1), Via::Peer, t).expect("few");
    assert_eq!(presence.spoke(t), [(gateway(0), "i".to_owned())]);
    assert_eq!(presence.spoke(t + s(1)), [], "or they would keep a dead gateway alive among themselves");
    presence.opened(&gateway(1), Via::Own, t).expect("few");
    assert_eq!(presence.spoke(t + s(99)), [(gateway(1), "i".to_owned())]);
}

#[test]
fn expiry_freezes_while_most_gateways_are_gone_at_once() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    beats(&mut presence, 0..10, t);
    beats(&mut presence, 0..5, t + s(20));
    let look = presence.look(&RULES, t + s(30));
    assert_eq!((look.vanished.len(), look.turned, presence.is_frozen()), (5, None, false), "half is not most");
    let look = presence.look(&RULES, t + s(50));
    assert_eq!((look.turned, presence.is_frozen()), (Some(true), true));
    assert_eq!(presence.look(&RULES, t + s(9_000)).due, []);
    // A lever ends it, and so does whoever comes back.
    let open = Rules { freeze_share: 1.0, ..RULES };
    let look = presence.look(&open, t + s(9_000));
    assert_eq!((look.turned, look.due.len()), (Some(false), 10));
    presence.look(&RULES, t + s(9_000));
    beats(&mut presence, 0..5, t + s(9_000));
    let look = expire(&mut presence, t + s(9_001));
    assert_eq!((look.turned, look.due.len(), presence.counts().here), (Some(false), 5, 5));
}

#[test]
fn one_or_two_gateways_that_die_do_not_freeze_anything() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    beats(&mut presence, 0..2, t);
    presence.look(&RULES, t + s(30));
    assert_eq!(expire(&mut presence, t + s(150)).due.len(), 2);
    assert_eq!(presence.counts(), Counts::default());
}

#[test]
fn a_replaced_process_neither_lives_on_nor_ends_the_round_of_its_successor() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    let id = gateway(0);
    let say = |presence: &mut Presence, name: &str| presence.beat(&id, name, Via::Own, t);
    say(&mut presence, "old").expect("taken");
    presence.begin(&gateway(0), Round(1), t).expect("few");
    assert_eq!(say(&mut presence, "new"), Ok(Beat { resync: true, restarted: true }));
    presence.begin(&gateway(0), Round(2), t).expect("few");
    assert_eq!(say(&mut presence, "old"), Err(Refused::Superseded));
    presence.synced(&gateway(0), Round(1), t + s(1)).expect("it was begun");
    let due = presence.look(&RULES, t + s(121)).due;
    assert_eq!(
        due,
        [Due { gateway: gateway(0), before: Some(Round(1)), but_talking: false }],
        "of what was told before its own beginning"
    );
    presence.synced(&gateway(0), Round(2), t + s(2)).expect("begun");
    presence.synced(&gateway(0), Round(2), t + s(60)).expect("again, and it changes nothing");
    presence.finished(&due[0], 0, t + s(121));
    let due = presence.look(&RULES, t + s(122)).due;
    assert_eq!(due, [Due { gateway: gateway(0), before: Some(Round(2)), but_talking: false }]);
    assert!(!say(&mut presence, "new").expect("taken").resync, "it has told everything");
    assert_eq!(presence.synced(&gateway(0), Round(9), t), Err(Refused::NotBegun));
}

/// A syncer that just began hears of both, in either order, and one tells of the old one for an interval longer.
#[test]
fn r15_a_syncer_that_does_not_know_of_a_restart_yet_takes_nobody_back_behind_it() {
    const SETTLES: Duration = s(15);
    let id = gateway(0);
    for order in [["new", "old"], ["old", "new"]] {
        let (mut presence, t) = (Presence::default(), Instant::now());
        let told = |presence: &mut Presence, name: &str, at: u64| {
            presence.passed_on(&id, name, SETTLES, t + s(at)).map(|b| b.restarted)
        };
        for (at, name) in order.into_iter().enumerate() {
            assert_eq!(told(&mut presence, name, at as u64), Ok(false), "{order:?}");
        }
        assert_eq!(told(&mut presence, "old", 7), Ok(false), "{order:?}");
        for at in [8, 15, 22, 29] {
            told(&mut presence, "new", at).expect("it is the newer one");
        }
        assert_eq!(presence.list()[0].incarnation.as_deref(), Some("new"), "{order:?}");
        assert_eq!(presence.look(&RULES, t + s(37)).vanished, [], "{order:?}");
        assert_eq!(presence.beat(&id, "new", Via::Own, t + s(37)).map(|b| b.restarted), Ok(false), "{order:?}");
        // What is known for long is replaced at once, on a peer's word too, and what was replaced stays so.
        assert_eq!(told(&mut presence, "newer", 60), Ok(true), "{order:?}");
        assert_eq!(told(&mut presence, "new", 61), Err(Refused::Superseded), "{order:?}");
    }
    // The gateway itself is believed at once, and not talked over by a peer.
    let (mut presence, t) = (Presence::default(), Instant::now());
    presence.passed_on(&id, "old", SETTLES, t).expect("few");
    assert_eq!(presence.beat(&id, "new", Via::Own, t + s(20)), Ok(Beat { resync: true, restarted: true }));
    assert_eq!(presence.passed_on(&id, "elder", SETTLES, t + s(34)).map(|b| b.restarted), Ok(false));
    assert_eq!(presence.spoke(t), [(id, "new".to_owned())]);
}

#[test]
fn i09_gateways_rounds_and_names_are_bounded() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    for n in 0..GATEWAYS_MAX {
        let id = GatewayId::new(format!("many-{n}")).expect("an id");
        presence.beat(&id, "i", Via::Own, t).expect("there is room");
    }
    assert_eq!(presence.beat(&gateway(0), "i", Via::Own, t), Err(Refused::Full));
    assert_eq!(presence.opened(&gateway(0), Via::Own, t), Err(Refused::Full));
    let id = GatewayId::new("many-0").expect("an id");
    for n in 1..100 {
        presence.beat(&id, &format!("i{n}"), Via::Own, t).expect("newer");
        presence.begin(&id, Round(n), t).expect("known");
    }
    assert_eq!(presence.synced(&id, Round(1), t), Err(Refused::NotBegun), "long broken off");
    for n in 92..100 {
        presence.synced(&id, Round(n), t + s(n)).expect("begun");
    }
    assert_eq!(presence.look(&RULES, t + s(92 + 120)).due.len(), 1, "the first is never put off");
}

/// SFUs are asked.
const ASKED: Rules = Rules { kept_max: s(600), ..RULES };

fn but_talking(n: u8) -> Due {
    Due { but_talking: true, ..vanished(n) }
}

#[test]
fn a_vanished_gateways_sessions_wait_for_what_sfus_say() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    beats(&mut presence, 0..2, t);
    presence.opened(&gateway(1), Via::Own, t).expect("few");
    presence.look(&ASKED, t + s(30));
    assert_eq!(presence.look(&ASKED, t + s(149)).ask, []);
    let look = presence.look(&ASKED, t + s(150));
    assert_eq!((look.ask, look.due), (vec![gateway(0)], vec![]), "asked of, and not expired unheard");
    assert_eq!(presence.look(&ASKED, t + s(200)).due, [], "however long the answer takes");
    presence.told(&[gateway(0)], t + s(150), t + s(201));
    let look = presence.look(&ASKED, t + s(201));
    assert_eq!((look.ask, look.due), (vec![], vec![but_talking(0)]));

    // Seven stay: nothing more until it is time to ask again, and then they are counted until it is known.
    presence.finished(&but_talking(0), 7, t + s(202));
    assert_eq!(presence.look(&ASKED, t + s(260)), Look { kept: 7, ..Look::default() });
    assert_eq!((presence.counts().kept, presence.list()[0].kept), (7, 7));
    let look = presence.look(&ASKED, t + s(261));
    assert_eq!((look.ask, look.due, look.kept), (vec![gateway(0)], vec![], 7));
    presence.told(&[gateway(0)], t + s(261), t + s(262));
    assert_eq!(presence.look(&ASKED, t + s(262)).kept, 7);
    presence.finished(&but_talking(0), 0, t + s(262));
    assert_eq!(presence.list().len(), 1, "nothing of it is left");
}

#[test]
fn whoever_is_kept_is_kept_for_so_long_and_a_gateway_that_is_back_keeps_its_own() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    beats(&mut presence, 0..1, t);
    presence.look(&ASKED, t + s(30));
    presence.told(&[gateway(0)], t + s(150), t + s(150));
    presence.finished(&but_talking(0), 7, t + s(150));
    assert_eq!(presence.look(&ASKED, t + s(749)).due, []);
    presence.forget_people();
    let look = presence.look(&ASKED, t + s(749));
    assert_eq!((look.ask.len(), look.kept), (1, 7), "whoever has to do it asks anew, and they are kept meanwhile");
    assert_eq!(presence.look(&ASKED, t + s(750)).due, [vanished(0)], "all of them");

    presence.told(&[gateway(0)], t + s(749), t + s(749));
    presence.finished(&but_talking(0), 7, t + s(749));
    beat(&mut presence, 0, t + s(750));
    assert_eq!(presence.look(&ASKED, t + s(751)), Look::default());
    presence.look(&ASKED, t + s(780));
    // An answer from before it fell silent again says nothing of its people now.
    presence.told(&[gateway(0)], t + s(779), t + s(900));
    let look = presence.look(&ASKED, t + s(900));
    assert_eq!((look.ask, look.due), (vec![gateway(0)], vec![]));
}

#[test]
fn gateways_of_which_only_kept_sessions_are_left_freeze_nothing() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    beats(&mut presence, 0..3, t);
    for n in 3..7 {
        presence.opened(&gateway(n), Via::Own, t).expect("few");
        beat(&mut presence, n, t);
    }
    presence.look(&ASKED, t + s(30));
    let all = [0, 1, 2].map(gateway);
    for asked in [150, 215] {
        assert_eq!(presence.look(&ASKED, t + s(asked)).ask.len(), 3);
        presence.told(&all, t + s(asked), t + s(asked));
        (0..3).for_each(|n| presence.finished(&but_talking(n), 1, t + s(asked)));
        presence.forget_people(); // as when the loop begins anew
        presence.closed(&gateway(3), Via::Own, t + s(asked));
        presence.look(&ASKED, t + s(asked + 30));
        assert_eq!(
            (presence.counts().vanished, presence.is_frozen()),
            (4, false),
            "one of four, and three of long ago"
        );
    }
}

#[test]
fn what_could_not_be_done_in_time_is_asked_again() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    beats(&mut presence, 0..1, t);
    presence.look(&ASKED, t + s(30));
    presence.told(&[gateway(0)], t + s(150), t + s(150));
    assert_eq!(presence.look(&ASKED, t + s(209)).due, [but_talking(0)]);
    let look = presence.look(&ASKED, t + s(210));
    assert_eq!((look.ask, look.due), (vec![gateway(0)], vec![]), "the pace was too slow, and people come and go");
}

#[test]
fn whoever_is_asked_of_one_is_asked_of_all() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    beat(&mut presence, 0, t);
    beat(&mut presence, 1, t + s(30));
    presence.look(&ASKED, t + s(30));
    presence.look(&ASKED, t + s(60));
    presence.told(&[gateway(0)], t + s(150), t + s(150));
    presence.finished(&but_talking(0), 1, t + s(150));
    assert_eq!(presence.look(&ASKED, t + s(179)).ask, [], "it was a moment ago");
    let mut of = presence.look(&ASKED, t + s(180)).ask;
    of.sort();
    assert_eq!(of, [gateway(0), gateway(1)]);
}

#[test]
fn while_expiry_is_frozen_nobody_is_asked_of_and_whoever_is_kept_stays() {
    let (mut presence, t) = (Presence::default(), Instant::now());
    beats(&mut presence, 0..4, t);
    presence.look(&ASKED, t + s(30));
    let look = presence.look(&ASKED, t + s(600));
    assert!(presence.is_frozen());
    assert_eq!((look.ask, look.due), (vec![], vec![]));
    let thawed = Rules { freeze_share: 1.0, ..ASKED };
    assert_eq!(presence.look(&thawed, t + s(600)).ask.len(), 4);
}
