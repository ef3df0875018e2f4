//! The shard against a random walk of everything that can happen to it.

mod absent;
mod storms;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sfu_api::{CallId, CallKind, Epoch, GatewayId, GuildId, OwnerTerm, RoomId, SessionId, Slot};
use tokio::time::Instant;

use super::*;

const LIMITS: Limits = Limits {
    calls_per_guild_max: 3,
    participants_per_call_max: 4,
    left_remembered_max: 10_000,
    empty_grace: Duration::from_secs(5),
    admit_sessions: false,
};

fn slot() -> Slot {
    Slot::new(7).expect("below 4,096")
}

fn term(revision: u64) -> OwnerTerm {
    OwnerTerm { generation: 1, revision }
}

fn shard() -> Shard {
    let mut shard = Shard::default();
    shard.set_terms([(slot(), term(1))].into_iter().collect());
    shard
}

fn gateway(name: &str) -> GatewayId {
    GatewayId::new(name).expect("valid")
}

fn join_of(call: u8, session: u8, seq: Option<u64>) -> Join {
    Join {
        guild: GuildId::new("g").expect("valid"),
        call: CallId::new(format!("c{call}")).expect("valid"),
        session: SessionId::new(format!("s{session}")).expect("valid"),
        gateway: GatewayId::new(format!("gw{}", session % 2)).expect("valid"),
        seq,
        kind: if call == 2 { CallKind::Stream } else { CallKind::Voice },
        region: None,
    }
}

fn join(shard: &mut Shard, call: u8, session: u8, now: Instant) -> Result<Joined, String> {
    join_from(shard, call, session, &format!("gw{}", session % 2), now)
}

fn join_from(shard: &mut Shard, call: u8, session: u8, gateway: &str, now: Instant) -> Result<Joined, String> {
    take(
        shard,
        &Join { gateway: GatewayId::new(gateway).expect("valid"), ..join_of(call, session, None) },
        &LIMITS,
        now,
    )
}

/// Joins where everybody is admitted.
fn take(shard: &mut Shard, join: &Join, limits: &Limits, now: Instant) -> Result<Joined, String> {
    let named = shard.named(slot(), &join.guild);
    shard.join(named, join, limits, now, |_, _| Ok(()), |what, limit| format!("{what} {limit}"))
}

/// Leaves.
fn go(shard: &mut Shard, leave: &Leave, limits: &Limits, now: Instant) -> Left {
    let named = shard.named(slot(), &leave.guild);
    shard.leave(named, leave, limits, now)
}

fn leave_of(join: Join, seq: Option<u64>) -> Leave {
    let Join { guild, call, session, gateway, .. } = join;
    Leave { guild, call, session, gateway, seq }
}

fn leave(shard: &mut Shard, call: u8, session: u8, now: Instant) -> Left {
    go(shard, &leave_of(join_of(call, session, None), None), &LIMITS, now)
}

/// Places on the SFU it is told to, or blocks.
struct On(Option<u32>);

impl Placer for On {
    fn decide(&mut self, _: &PlaceWork) -> Decision {
        match self.0 {
            Some(sfu) => Decision::Reserve { sfu: SfuIdx(sfu), why: Why { sfu: SfuIdx(sfu), how: How::InPlace } },
            None => Decision::Block(Blocker::NoCandidate(None)),
        }
    }

    fn room(&self, _: SfuIdx, work: &PlaceWork, _: Epoch) -> RoomId {
        RoomId::new(work.call.as_str()).expect("valid")
    }
}

fn reserve(shard: &mut Shard, sfu: u32) -> Option<(PlaceWork, Epoch)> {
    match shard.place_next(None, &mut On(Some(sfu))) {
        Next::Reserved { work, epoch, .. } => Some((work, epoch)),
        Next::Idle | Next::PutAside => None,
    }
}

fn place(shard: &mut Shard, sfu: u32, now: Instant) -> Option<(CallKey, Epoch, Committed)> {
    let (work, epoch) = reserve(shard, sfu)?;
    let committed = shard.commit(work.key, epoch, format!("https://sfu-{sfu}").into(), &LIMITS, now);
    Some((work.key, epoch, committed))
}

/// The whole pass, in small steps.
fn sfu_lost(shard: &mut Shard, sfu: u32, in_place: bool, at: Instant) -> Vec<News> {
    let cause = if in_place { Cause::SfuRestarted } else { Cause::SfuDead };
    let loss = Loss { sfu: SfuIdx(sfu), cause, in_place, at, upto: shard.placements() };
    let (mut from, mut news) = (None, Vec::new());
    loop {
        news.extend(shard.sfu_lost(&loss, &mut from, 2));
        if from.is_none() {
            return news;
        }
    }
}

#[test]
fn r15_many_marks_make_one_attempt() {
    let t = Instant::now();
    let mut shard = shard();
    for session in 0..4 {
        join(&mut shard, 0, session, t).expect("there is room");
    }
    assert!(place(&mut shard, 1, t).is_some());
    assert!(reserve(&mut shard, 1).is_none(), "one call, one attempt");
}

#[test]
fn r15_a_stale_answer_is_ignored() {
    let t = Instant::now();
    let mut shard = shard();
    join(&mut shard, 0, 0, t).expect("joins");
    let (work, old) = reserve(&mut shard, 1).expect("ready");
    shard.fail(work.key, old, true, t);
    shard.tick(t, 10, &mut Vec::new());
    let (_, new, committed) = place(&mut shard, 2, t).expect("ready again");
    assert!(matches!(committed, Committed::Placed { .. }));
    assert!(new > old);
    let late = shard.commit(work.key, old, "https://late".into(), &LIMITS, t);
    assert!(matches!(late, Committed::Stale));
}

#[test]
fn r16_a_loss_is_one_null_and_a_repair_one_endpoint() {
    let t = Instant::now();
    let mut shard = shard();
    join(&mut shard, 0, 0, t).expect("joins");
    let (_, first, _) = place(&mut shard, 1, t).expect("ready");
    let news = sfu_lost(&mut shard, 1, false, t);
    assert_eq!(news.len(), 1);
    assert_eq!((news[0].epoch, news[0].phase, &news[0].endpoint), (first, 2, &None));
    assert!(sfu_lost(&mut shard, 1, false, t).is_empty(), "one null");
    let (_, second, committed) = place(&mut shard, 2, t).expect("ready");
    let Committed::Placed { news: Some(news), moved, .. } = committed else { panic!("not placed") };
    assert!(second > first && moved && news.phase == 1 && news.endpoint.is_some());
}

fn drain(shard: &mut Shard, from: u32, to: u32) -> Option<(CallKey, Epoch)> {
    match shard.move_next(SfuIdx(from), None, &mut On(Some(to))) {
        Moved::Reserved { work, epoch, .. } => Some((work.key, epoch)),
        Moved::Nothing | Moved::Aside(_) => None,
    }
}

#[test]
fn r16_a_planned_move_is_one_endpoint_and_no_null() {
    let t = Instant::now();
    let mut shard = shard();
    join(&mut shard, 0, 0, t).expect("joins");
    let (key, first, _) = place(&mut shard, 1, t).expect("ready");
    let (moving, second) = drain(&mut shard, 1, 2).expect("it can go");
    assert!(moving == key && second > first);
    assert!(drain(&mut shard, 1, 2).is_none(), "once");
    assert_eq!((shard.calls_on(SfuIdx(1)), shard.calls_on(SfuIdx(2))), (1, 1), "both sides know of it");
    assert_eq!(shard.counts().placed, 1, "its clients have an endpoint all along");
    let committed = shard.commit(key, second, "https://sfu-2".into(), &LIMITS, t);
    let Committed::Placed { news: Some(news), left: Some(left), .. } = committed else { panic!("not moved") };
    assert_eq!((news.epoch, news.phase, news.cause), (second, 1, Cause::Drained));
    assert_eq!((left.sfu, left.epoch), (SfuIdx(1), first));
    assert_eq!((shard.calls_on(SfuIdx(1)), shard.calls_on(SfuIdx(2))), (0, 1));
}

#[test]
fn r16_a_move_that_fails_leaves_the_call_where_it_was() {
    let t = Instant::now();
    let mut shard = shard();
    join(&mut shard, 0, 0, t).expect("joins");
    let (key, ..) = place(&mut shard, 1, t).expect("ready");
    let (_, next) = drain(&mut shard, 1, 2).expect("it can go");
    shard.fail(key, next, true, t);
    assert_eq!((shard.calls_on(SfuIdx(1)), shard.calls_on(SfuIdx(2))), (1, 0));
    assert!(matches!(shard.commit(key, next, "https://late".into(), &LIMITS, t), Committed::Stale));
    assert!(drain(&mut shard, 1, 2).is_some(), "it may be tried again");
}

#[test]
fn r13_when_the_old_sfu_dies_the_move_under_way_is_the_repair() {
    let t = Instant::now();
    let mut shard = shard();
    join(&mut shard, 0, 0, t).expect("joins");
    let (key, first, _) = place(&mut shard, 1, t).expect("ready");
    let (_, next) = drain(&mut shard, 1, 2).expect("it can go");
    assert!(sfu_lost(&mut shard, 2, false, t).is_empty(), "where it goes to is not where it is");
    let news = sfu_lost(&mut shard, 1, false, t);
    assert_eq!(news.iter().map(|n| (n.epoch, n.phase)).collect::<Vec<_>>(), [(first, 2)]);
    assert!(reserve(&mut shard, 0).is_none(), "one attempt a call");
    let committed = shard.commit(key, next, "https://sfu-2".into(), &LIMITS, t);
    assert!(matches!(committed, Committed::Placed { news: Some(_), left: None, awaited: Some(_), .. }));
}

#[test]
fn a_restarted_sfu_is_filled_in_place() {
    let t = Instant::now();
    let mut shard = shard();
    join(&mut shard, 0, 0, t).expect("joins");
    place(&mut shard, 1, t).expect("ready");
    sfu_lost(&mut shard, 1, true, t);
    let (work, _) = reserve(&mut shard, 1).expect("ready");
    assert_eq!(work.in_place, Some(SfuIdx(1)));
    assert_eq!(work.class, Class::Repair);
}

#[test]
fn r10_repair_goes_before_new_before_stream_and_age_wins_in_the_end() {
    let t = Instant::now();
    let mut shard = shard();
    join(&mut shard, 0, 0, t).expect("joins");
    place(&mut shard, 1, t).expect("ready");
    join(&mut shard, 2, 0, t).expect("a stream");
    join(&mut shard, 1, 0, t).expect("a new call");
    sfu_lost(&mut shard, 1, false, t + Duration::from_secs(1));
    let mut order = Vec::new();
    while let Some((work, _)) = reserve(&mut shard, 2) {
        order.push(work.class);
    }
    assert_eq!(order, [Class::Repair, Class::New, Class::Stream]);

    // A stream that has waited longer than the handicap goes before a fresh repair.
    join(&mut shard, 2, 1, t).expect("joins");
    let mut old = self::shard();
    join(&mut old, 2, 0, t).expect("a stream");
    join(&mut old, 0, 0, t).expect("a call");
    let late = t + Duration::from_secs(60);
    let (first, _) = reserve(&mut old, 1).expect("the call");
    assert_eq!(first.class, Class::New);
    let stream_rank = old.dirty().first_ready(None).expect("the stream").0;
    assert!(stream_rank < late + Class::Repair.handicap());
}

#[test]
fn r10_the_largest_call_of_a_class_goes_first_and_the_smallest_repair_before_any_new_call() {
    let t = Instant::now();
    let mut shard = shard();
    for (call, sessions) in [(0, 1), (1, 4), (3, 2)] {
        for session in 0..sessions {
            join(&mut shard, call, session, t).expect("there is room");
        }
    }
    let order =
        |shard: &mut Shard| std::iter::from_fn(|| reserve(shard, 1)).map(|(w, _)| w.participants).collect::<Vec<_>>();
    assert_eq!(order(&mut shard), [4, 2, 1], "also when they grew while they waited");
    let gap = Class::New.handicap() - Class::Repair.handicap();
    assert!(smallness(1) - smallness(usize::MAX) < gap, "size never outweighs class");
    assert_eq!(smallness(0), smallness(1));
}

#[test]
fn r13_a_loss_concerns_what_was_placed_before_it() {
    let t = Instant::now();
    let mut shard = shard();
    for call in 0..2 {
        join(&mut shard, call, 0, t).expect("joins");
        place(&mut shard, 1, t).expect("ready");
    }
    let loss = Loss { sfu: SfuIdx(1), cause: Cause::SfuRestarted, in_place: true, at: t, upto: shard.placements() };
    // The first call is told and refilled before the pass comes to the second.
    let mut from = None;
    assert_eq!(shard.sfu_lost(&loss, &mut from, 1).len(), 1);
    place(&mut shard, 1, t).expect("ready");
    assert_eq!(shard.sfu_lost(&loss, &mut from, 1).len(), 1);
    assert!(shard.sfu_lost(&loss, &mut from, 1).is_empty(), "told once");
    assert_eq!(from, None);
    assert!(shard.sfu_lost(&loss, &mut None, 10).is_empty(), "its new room is not the one that was lost");
    assert_eq!(shard.counts().placed, 1);
}

#[test]
fn an_empty_call_keeps_its_place_for_the_grace_and_is_released_after_it() {
    let t = Instant::now();
    let mut shard = shard();
    join(&mut shard, 0, 0, t).expect("joins");
    let (_, epoch, _) = place(&mut shard, 1, t).expect("ready");
    assert_eq!(leave(&mut shard, 0, 0, t), Left::Removed);
    let mut releases = Vec::new();
    shard.tick(t + Duration::from_secs(4), 10, &mut releases);
    assert!(releases.is_empty());
    let again = join(&mut shard, 0, 1, t + Duration::from_secs(4)).expect("joins");
    let found = again.key.and_then(|key| shard.get(key)?.placement.epoch());
    assert_eq!(found, Some(epoch), "found where it was");
    leave(&mut shard, 0, 1, t + Duration::from_secs(5));
    shard.tick(t + Duration::from_secs(10), 10, &mut releases);
    assert_eq!(releases.len(), 1);
    assert_eq!(shard.counts(), ShardCounts::default());
}

#[test]
fn late_and_repeated_writes_change_nothing() {
    let t = Instant::now();
    let mut shard = shard();
    let seq = |n| join_of(0, 0, Some(n));
    assert_eq!(take(&mut shard, &seq(5), &LIMITS, t).expect("joins").seq, SeqCheck::New);
    assert_eq!(take(&mut shard, &seq(5), &LIMITS, t).expect("repeats").seq, SeqCheck::Old);
    assert_eq!(take(&mut shard, &seq(4), &LIMITS, t).expect("late").seq, SeqCheck::Old);
    let leave = |seq| leave_of(join_of(0, 0, None), seq);
    assert_eq!(go(&mut shard, &leave(Some(4)), &LIMITS, t), Left::Nothing);
    // What arrives after the leave that followed it brings nobody back.
    assert_eq!(go(&mut shard, &leave(Some(6)), &LIMITS, t), Left::Removed);
    assert_eq!(take(&mut shard, &seq(5), &LIMITS, t).expect("late").seq, SeqCheck::Old);
    assert_eq!(shard.counts(), ShardCounts::default());
    assert_eq!(take(&mut shard, &seq(7), &LIMITS, t).expect("joins").seq, SeqCheck::New);
    // A gateway that the session has left is not believed, unless it can say which write it means.
    let elsewhere = GatewayId::new("elsewhere").expect("valid");
    let stale = Leave { gateway: elsewhere, ..leave(None) };
    assert_eq!(go(&mut shard, &stale, &LIMITS, t), Left::Nothing);
    assert_eq!(go(&mut shard, &leave(None), &LIMITS, t), Left::Removed);
}

/// Its room is on SFU 2 with people in it, and nobody was told of it.
fn found(shard: &mut Shard, call: u8, at: Instant) -> bool {
    let Join { guild, call, .. } = join_of(call, 0, None);
    let found = Last { sfu: SfuIdx(2), epoch: Epoch { term: term(1), n: 70 } };
    shard.room_found(slot(), &guild, &call, found, at)
}

#[test]
fn a_call_whose_room_was_found_wants_to_be_there_as_one_to_repair() {
    let t = Instant::now();
    let mut shard = shard();
    join(&mut shard, 0, 0, t).expect("joins");
    assert!(found(&mut shard, 0, t), "it awaits its first place");
    assert!(found(&mut shard, 1, t), "nobody has told of it yet");
    join(&mut shard, 1, 0, t).expect("joins");
    for _ in 0..2 {
        let Next::Reserved { work, epoch, .. } = shard.place_next(Some(Class::Repair), &mut On(Some(2))) else {
            panic!("two calls to repair")
        };
        assert_eq!(work.in_place, Some(SfuIdx(2)));
        assert!(epoch.n > 70, "the SFU takes nothing that is not above what it has");
        let Committed::Placed { news: Some(news), moved, .. } =
            shard.commit(work.key, epoch, Arc::from("https://x"), &LIMITS, t)
        else {
            panic!("placed")
        };
        assert_eq!((news.phase, moved), (1, false), "no null");
    }
    assert!(!found(&mut shard, 0, t), "it is placed");
    // Where it cannot be, it goes elsewhere, as a call that was nowhere.
    join(&mut shard, 2, 0, t).expect("joins");
    assert!(found(&mut shard, 2, t));
    let Next::Reserved { work, epoch, .. } = shard.place_next(None, &mut On(Some(1))) else { panic!("one to repair") };
    shard.fail(work.key, epoch, true, t);
    assert_eq!(shard.get(work.key).map(Call::class), Some(Class::Stream));
    assert_eq!(invariants::of_shard(&shard), None);
}

#[test]
fn r08_what_is_there_already_is_not_created() {
    let t = Instant::now();
    let mut shard = shard();
    let asked = |shard: &mut Shard, call, limits: &Limits| {
        let (join, mut asked) = (join_of(call, 0, None), None);
        let named = shard.named(slot(), &join.guild);
        let admit = |_: &GuildId, adds: Adds| {
            asked = Some(adds);
            Ok::<_, String>(())
        };
        shard.join(named, &join, limits, t, admit, |w, _| w.to_owned()).expect("joins");
        asked
    };
    assert_eq!(asked(&mut shard, 0, &LIMITS), Some(Adds::Call(CallKind::Voice)));
    found(&mut shard, 1, t);
    assert_eq!(asked(&mut shard, 1, &LIMITS), Some(Adds::Found));
    found(&mut shard, 2, t - Duration::from_secs(600));
    assert_eq!(asked(&mut shard, 2, &LIMITS), Some(Adds::Call(CallKind::Stream)), "it is not remembered for ever");
}

#[test]
fn of_two_rooms_of_a_call_the_later_one_is_kept_and_none_that_is_not_ours() {
    let (t, mut shard) = (Instant::now(), shard());
    let Join { guild, call, .. } = join_of(0, 0, None);
    let at = |sfu, n| Last { sfu: SfuIdx(sfu), epoch: Epoch { term: term(1), n } };
    for (sfu, n) in [(1, 5), (2, 9), (1, 5)] {
        shard.room_found(slot(), &guild, &call, at(sfu, n), t);
    }
    join(&mut shard, 0, 0, t).expect("joins");
    let placed = |shard: &Shard| shard.list(Some(&guild)).map(|call| call.placement.clone()).next();
    assert_eq!(placed(&shard), Some(Placement::Unplaced { found: Some(at(2, 9)) }));
    assert!(!shard.room_found(slot(), &guild, &call, at(1, 5), t), "nor now");
    assert!(shard.room_found(slot(), &guild, &call, at(0, 12), t), "one that is later still");
    assert_eq!(placed(&shard), Some(Placement::Unplaced { found: Some(at(0, 12)) }));
    // Nor is it of use when the slot has been another syncer's meanwhile.
    found(&mut shard, 1, t);
    shard.set_terms(Terms::default());
    shard.set_terms([(slot(), term(2))].into_iter().collect());
    join(&mut shard, 1, 0, t).expect("joins");
    assert_eq!(placed(&shard), Some(Placement::Unplaced { found: None }));
    // An epoch that no counter can have come to leaves room for those that follow.
    let lie = Last { sfu: SfuIdx(0), epoch: Epoch { term: term(2), n: u64::MAX } };
    shard.room_found(slot(), &guild, &call, lie, t);
    let Next::Reserved { epoch, .. } = shard.place_next(None, &mut On(Some(1))) else { panic!("one to place") };
    assert!(epoch.n < 1_000, "{epoch}");
}

#[test]
fn r08_a_refused_child_leaves_nothing_behind() {
    let t = Instant::now();
    let mut shard = shard();
    let first = join_of(0, 0, None);
    let named = shard.named(slot(), &first.guild);
    let refused = shard.join(named, &first, &LIMITS, t, |_, _| Err("limited".to_owned()), |w, _| w.to_owned());
    assert_eq!(refused.err().as_deref(), Some("limited"));
    for call in 0..3 {
        join(&mut shard, call, 0, t).expect("three fit");
    }
    assert!(join(&mut shard, 3, 0, t).expect_err("the guild is full").contains("calls in the guild"));
    for session in 1..4 {
        join(&mut shard, 0, session, t).expect("four fit");
    }
    assert!(join(&mut shard, 0, 9, t).expect_err("the call is full").contains("sessions"));
    assert!(join(&mut shard, 0, 3, t).is_ok(), "who is in, may repeat");
}

#[derive(Clone, Debug)]
enum Step {
    Join(u8, u8),
    Move(u8, u8),
    Leave(u8, u8),
    Place(Option<u32>),
    Commit(usize),
    Fail(usize, bool),
    Drain(u32, u32),
    Lose(u32, bool),
    Forget(u32),
    Find(u8, u32, u64),
    Unblock,
    Term(u64),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..4, 0u8..5).prop_map(|(c, s)| Step::Join(c, s)),
        1 => (0u8..4, 0u8..5).prop_map(|(c, s)| Step::Move(c, s)),
        3 => (0u8..4, 0u8..5).prop_map(|(c, s)| Step::Leave(c, s)),
        4 => prop::option::of(0u32..3).prop_map(Step::Place),
        4 => (0usize..4).prop_map(Step::Commit),
        2 => (0usize..4, any::<bool>()).prop_map(|(i, sent)| Step::Fail(i, sent)),
        2 => (0u32..3, 0u32..3).prop_map(|(from, to)| Step::Drain(from, to)),
        2 => (0u32..3, any::<bool>()).prop_map(|(s, p)| Step::Lose(s, p)),
        1 => (0u32..3).prop_map(Step::Forget),
        2 => (0u8..4, 0u32..3, 0u64..200).prop_map(|(c, s, n)| Step::Find(c, s, n)),
        1 => Just(Step::Unblock),
        1 => (1u64..4).prop_map(Step::Term),
        3 => (0u64..7_000).prop_map(Step::Advance),
    ]
}

/// What a watcher was told last, and that it only ever grows (I7).
#[derive(Default)]
struct Watcher(HashMap<CallId, (Epoch, u8)>);

impl Watcher {
    fn hear(&mut self, news: &News) {
        let told = (news.epoch, news.phase);
        let last = self.0.insert(news.call.clone(), told);
        assert!(last.is_none_or(|l| l < told), "{last:?} then {told:?}");
        assert_eq!(news.endpoint.is_some(), news.phase == 1);
        assert!(!news.sessions.is_empty(), "nobody hears it");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// I3, I5, I7 and the counts hold after every step, and in the end everything live is placed.
    #[test]
    fn i03_i05_i07_hold_through_any_walk(walk in prop::collection::vec(steps(), 1..120)) {
        let mut now = Instant::now();
        let mut shard = shard();
        let mut flying: Vec<(CallKey, Epoch)> = Vec::new();
        let mut watcher = Watcher::default();
        let mut highest = term(1);
        for step in walk {
            match step {
                Step::Join(c, s) => { let _refused = join(&mut shard, c, s, now); }
                Step::Move(c, s) => { let _refused = join_from(&mut shard, c, s, "elsewhere", now); }
                Step::Leave(c, s) => { leave(&mut shard, c, s, now); }
                Step::Place(sfu) => {
                    if let Next::Reserved { work, epoch, .. } = shard.place_next(None, &mut On(sfu)) {
                        prop_assert!(flying.iter().all(|(k, _)| *k != work.key), "one attempt a call");
                        flying.push((work.key, epoch));
                    }
                }
                Step::Drain(from, to) => {
                    if let Moved::Reserved { work, epoch, .. } =
                        shard.move_next(SfuIdx(from), None, &mut On(Some(to))) {
                        prop_assert!(flying.iter().all(|(k, _)| *k != work.key), "one attempt a call");
                        flying.push((work.key, epoch));
                    }
                }
                Step::Commit(i) if i < flying.len() => {
                    let (key, epoch) = flying.swap_remove(i);
                    if let Committed::Placed { news: Some(news), .. } =
                        shard.commit(key, epoch, Arc::from("https://x"), &LIMITS, now) { watcher.hear(&news); }
                }
                Step::Fail(i, sent) if i < flying.len() => {
                    let (key, epoch) = flying.swap_remove(i);
                    shard.fail(key, epoch, sent, now + Duration::from_millis(500));
                }
                Step::Commit(_) | Step::Fail(..) => {}
                Step::Lose(sfu, in_place) => {
                    for news in sfu_lost(&mut shard, sfu, in_place, now) { watcher.hear(&news); }
                }
                Step::Forget(sfu) => {
                    if let Some(on) = shard.rooms_on(SfuIdx(sfu)).into_iter().find(|on| on.confirmed)
                        && let Some(news) = shard.room_lost(on.key, SfuIdx(sfu), on.epoch, now) { watcher.hear(&news); }
                }
                Step::Find(c, sfu, n) => {
                    let Join { guild, call, .. } = join_of(c, 0, None);
                    shard.room_found(slot(), &guild, &call, Last { sfu: SfuIdx(sfu), epoch: Epoch { term: highest, n } }, now);
                }
                Step::Unblock => { shard.unblock(&Blocker::NoCandidate(None), None, now); }
                Step::Term(revision) => {
                    highest = highest.max(term(revision));
                    shard.set_terms([(slot(), highest)].into_iter().collect());
                }
                Step::Advance(ms) => {
                    now += Duration::from_millis(ms);
                    shard.tick(now, 100, &mut Vec::new());
                }
            }
            prop_assert_eq!(invariants::of_shard(&shard), None);
        }
        // Quiescence: every attempt ends, time passes, and nothing live is left without a place.
        for (key, epoch) in flying { shard.fail(key, epoch, true, now); }
        now += Duration::from_secs(60);
        shard.tick(now, 100, &mut Vec::new());
        while shard.unblock(&Blocker::NoCandidate(None), None, now) {}
        while place(&mut shard, 0, now).is_some() {}
        prop_assert_eq!(shard.counts().awaiting, 0, "I5: nothing is forgotten");
        prop_assert_eq!(invariants::of_shard(&shard), None);
        // I6's half of the shard: when everyone has left and the grace is over, nothing is held.
        for (c, s) in (0..4).flat_map(|c| (0..5).map(move |s| (c, s))) {
            go(&mut shard, &leave_of(join_of(c, s, None), Some(u64::MAX)), &LIMITS, now);
        }
        prop_assert_eq!(shard.news_for(&gateway("elsewhere"), None, 100).news.len(), 0);
        shard.tick(now + LIMITS.empty_grace, 100, &mut Vec::new());
        prop_assert_eq!(shard.counts(), ShardCounts::default());
        prop_assert!((0..3).all(|s| shard.rooms_on(SfuIdx(s)).is_empty()));
    }

    /// A slot that is lost takes its calls along and nothing else.
    #[test]
    fn a_lost_slot_forgets_its_calls(calls in 0u8..3) {
        let now = Instant::now();
        let mut shard = shard();
        for c in 0..calls { join(&mut shard, c, 0, now).expect("three fit"); }
        prop_assert_eq!(shard.set_terms(Terms::default()), usize::from(calls));
        prop_assert_eq!(shard.counts(), ShardCounts::default());
        prop_assert_eq!(invariants::of_shard(&shard), None);
    }
}
