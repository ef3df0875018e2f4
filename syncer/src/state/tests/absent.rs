//! Gateways that vanish, come back and tell everything again, against a plain map.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::*;

const ALL: Limits = Limits {
    calls_per_guild_max: 100,
    participants_per_call_max: 100,
    left_remembered_max: 10_000,
    empty_grace: Duration::from_secs(5),
    admit_sessions: false,
};

type Who = (u8, u8);

/// Which gateway told of each session last, in which of its rounds, and with which `seq`.
#[derive(Default)]
struct Model {
    sessions: BTreeMap<Who, (u8, u64, u64)>,
    rounds: BTreeMap<u8, u64>,
    last_round: u64,
}

/// One syncer's shard and what it should hold.
struct Pair {
    shard: Shard,
    model: Model,
    now: Instant,
}

#[derive(Clone, Debug)]
enum Step {
    /// Of a call, a session, a gateway; `seq` beyond the last one, or the last one again.
    Join(u8, u8, u8, u64),
    Leave(u8, u8),
    Begin(u8),
    /// What a round did not bring is taken out, so many at a time.
    Synced(u8, usize),
    /// Its sessions are taken out, but of the calls whose bits are set.
    Vanish(u8, usize, u8),
    Place(u32),
    Die(u32),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..5, 0u8..24, 0u8..3, 0u64..3).prop_map(|(c, s, g, seq)| Step::Join(c, s, g, seq)),
        2 => (0u8..5, 0u8..24).prop_map(|(c, s)| Step::Leave(c, s)),
        2 => (0u8..3).prop_map(Step::Begin),
        2 => (0u8..3, 1usize..5).prop_map(|(g, max)| Step::Synced(g, max)),
        1 => (0u8..3, 1usize..5, 0u8..32).prop_map(|(g, max, kept)| Step::Vanish(g, max, kept)),
        3 => (0u32..3).prop_map(Step::Place),
        1 => (0u32..3).prop_map(Step::Die),
        1 => (0u64..7_000).prop_map(Step::Advance),
    ]
}

fn named(g: u8) -> GatewayId {
    gateway(&format!("gw{g}"))
}

// === impl Pair ===

impl Pair {
    fn new() -> Self {
        Self { shard: shard(), model: Model::default(), now: Instant::now() }
    }

    fn join(&mut self, (c, s): Who, g: u8, beyond: u64) {
        let before = self.model.sessions.get(&(c, s)).copied();
        let seq = before.map_or(1, |(_, _, last)| last + beyond);
        let join = Join { gateway: named(g), ..join_of(c, s, Some(seq)) };
        let joined = take(&mut self.shard, &join, &ALL, self.now).expect("there is room");
        let newer = before.is_none_or(|(_, _, last)| seq > last);
        if before.is_some() {
            assert_eq!(joined.seq == SeqCheck::New, newer, "idempotent by (session, seq)");
        } else if joined.seq == SeqCheck::Old {
            return; // late: it left a moment ago
        }
        if newer || before.is_some_and(|(on, ..)| on == g) {
            let round = self.model.rounds.get(&g).copied().unwrap_or(0);
            self.model.sessions.insert((c, s), (g, round, seq));
        }
    }

    fn begin(&mut self, g: u8) {
        self.model.last_round += 1;
        self.model.rounds.insert(g, self.model.last_round);
        self.shard.begin_round(&named(g), Round(self.model.last_round));
    }

    fn key(&self, c: u8) -> Option<CallKey> {
        let Join { guild, call, .. } = join_of(c, 0, None);
        self.shard.find(&guild, &call)
    }

    /// Takes out what is of the gateway and older than the round, in small steps, but of the calls whose bits are set.
    fn expire(&mut self, g: u8, before: Option<u64>, max: usize, kept: u8) {
        let gone = |(on, round, _): &(u8, u64, u64)| *on == g && before.is_none_or(|b| *round < b);
        let (left, want): (Vec<_>, Vec<_>) = self
            .model
            .sessions
            .iter()
            .filter(|(_, of)| gone(of))
            .map(|(who, _)| *who)
            .partition(|(c, _)| kept >> c & 1 == 1);
        for who in &want {
            self.model.sessions.remove(who);
        }
        let kept: HashSet<CallKey> = (0..5).filter(|c| kept >> c & 1 == 1).filter_map(|c| self.key(c)).collect();
        let (mut done, mut walk) = (0, Walk::over(named(g), before.map(Round)));
        loop {
            let expired = self.shard.expire(&mut walk, |call| kept.contains(&call), max, &ALL, self.now);
            assert!(expired.sessions <= max, "no step is larger than it may be");
            done += expired.sessions;
            assert_eq!(invariants::of_shard(&self.shard), None);
            if !expired.more {
                assert_eq!(walk.kept, left.len());
                break;
            }
        }
        assert_eq!(done, want.len(), "who was told again stays, who was not goes");
    }

    /// Which calls have people of the gateways that are gone, how many of others, and on which SFUs, is as the map says.
    fn check_absent(&self) {
        for gone in 0u8..8 {
            let is_gone = |g: u8| gone >> g & 1 == 1;
            let ids: Vec<GatewayId> = (0..3).filter(|g| is_gone(*g)).map(named).collect();
            let mut want = BTreeMap::new();
            for ((c, _), (g, ..)) in &self.model.sessions {
                let (here, absent) = want.entry(*c).or_insert((0, 0));
                *if is_gone(*g) { absent } else { here } += 1;
            }
            let ids: Arc<[GatewayId]> = Arc::from(ids);
            let (mut sfus, mut absent) = (BTreeSet::new(), self.shard.absent(&ids));
            self.shard.sfus_with(&ids, &mut sfus);
            for sfu in (0..3).map(SfuIdx) {
                let on = |(c, (here, gone)): (&u8, &(usize, usize))| {
                    let key = self.key(*c).expect("a live call");
                    let (on, ..) = self.shard.get(key)?.placement.seated()?;
                    (on == sfu && *gone > 0).then_some((key, *here))
                };
                let on: BTreeMap<CallKey, usize> = want.iter().filter_map(on).collect();
                assert!(on.is_empty() || sfus.contains(&sfu), "every SFU with such calls is asked");
                for max in [1, 2, 100] {
                    let (mut seen, mut after) = (BTreeMap::new(), None);
                    loop {
                        let mut step = 0;
                        after = self.shard.calls_with_absent(sfu, &mut absent, after, max, |key, room, here| {
                            step += 1;
                            let call = self.shard.get(key).expect("it is there");
                            assert!(room.as_str().contains(call.id.as_str()));
                            assert!(seen.insert(key, here).is_none(), "each once");
                        });
                        assert!(step <= max, "no step is larger than it may be");
                        if after.is_none() {
                            break;
                        }
                    }
                    assert_eq!(seen, on, "all of them, with how many are here");
                }
            }
        }
    }

    fn check(&self) {
        assert_eq!(invariants::of_shard(&self.shard), None);
        assert_eq!(self.shard.counts().participants as usize, self.model.sessions.len());
        for ((c, s), (g, ..)) in &self.model.sessions {
            let Join { guild, call, session, .. } = join_of(*c, *s, None);
            let found = self.shard.find(&guild, &call).and_then(|key| self.shard.get(key)).expect("a live call");
            let (on, _) = found.participants.get(&session).expect("it is in the call");
            assert!(self.shard.gateways.is_of(on, &named(*g)), "{session} stands under its gateway");
        }
        self.check_sessions();
        for g in 0..3 {
            self.check_news(g);
        }
        self.check_absent();
    }

    /// In no call does a gateway speak for a session that it did not tell last, or without any of its own.
    fn check_sessions(&self) {
        for (c, g) in (0..5).flat_map(|c| (0..3).map(move |g| (c, g))) {
            let Some(key) = self.key(c) else { continue };
            let has = |session: Option<&SessionId>| self.shard.has_session(key, &named(g), session);
            let told = |s: u8| self.model.sessions.get(&(c, s)).is_some_and(|(on, ..)| *on == g);
            for s in 0..24 {
                assert_eq!(has(Some(&join_of(c, s, None).session)), told(s), "session {s} of call {c}, gateway {g}");
            }
            assert_eq!(has(None), (0..24).any(told), "any session of call {c}, gateway {g}");
        }
    }

    /// Pages of any size bring every placed call of the gateway once, with all its sessions.
    fn check_news(&self, g: u8) {
        let mut want: BTreeMap<String, usize> = BTreeMap::new();
        for (c, s) in self.model.sessions.iter().filter(|(_, kept)| kept.0 == g).map(|(who, _)| *who) {
            let Join { guild, call, .. } = join_of(c, s, None);
            let found = self.shard.find(&guild, &call).and_then(|key| self.shard.get(key)).expect("a live call");
            if found.placement.announced().is_some() {
                *want.entry(call.to_string()).or_default() += 1;
            }
        }
        for max in [1, 2, 100] {
            let (mut seen, mut after) = (BTreeMap::new(), None);
            loop {
                let page = self.shard.news_for(&named(g), after, max);
                assert!(page.news.len() <= max);
                for news in page.news {
                    let sessions: usize = news.sessions.iter().map(|(_, sessions)| sessions.len()).sum();
                    assert!(seen.insert(news.call.to_string(), sessions).is_none(), "told once");
                }
                let Some(next) = page.next else { break };
                after = Some(next);
            }
            assert_eq!(seen, want);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever joins, leaves, vanishes, comes back, is told again or dies: the sessions are those of the
    /// map, every invariant holds, and nothing live is forgotten.
    #[test]
    fn r15_r16_i05_i07_sessions_are_those_that_were_told_last(walk in prop::collection::vec(steps(), 1..100)) {
        let mut pair = Pair::new();
        let mut watcher = Watcher::default();
        for step in walk {
            match step {
                Step::Join(c, s, g, beyond) => pair.join((c, s), g, beyond),
                Step::Leave(c, s) => {
                    if let Some((g, _, seq)) = pair.model.sessions.remove(&(c, s)) {
                        let leave = Leave { gateway: named(g), ..leave_of(join_of(c, s, None), Some(seq)) };
                        prop_assert_eq!(go(&mut pair.shard, &leave, &ALL, pair.now), Left::Removed);
                    }
                }
                Step::Begin(g) => pair.begin(g),
                Step::Synced(g, max) => {
                    if let Some(round) = pair.model.rounds.get(&g).copied() {
                        pair.expire(g, Some(round), max, 0);
                    }
                }
                Step::Vanish(g, max, kept) => pair.expire(g, None, max, kept),
                Step::Place(sfu) => {
                    if let Some((_, _, Committed::Placed { news: Some(news), .. })) = place(&mut pair.shard, sfu, pair.now) {
                        watcher.hear(&news);
                    }
                }
                Step::Die(sfu) => {
                    for news in sfu_lost(&mut pair.shard, sfu, false, pair.now) { watcher.hear(&news); }
                }
                Step::Advance(ms) => {
                    pair.now += Duration::from_millis(ms);
                    pair.shard.tick(pair.now, 100, &mut Vec::new());
                }
            }
            pair.check();
        }
        while place(&mut pair.shard, 0, pair.now).is_some() {}
        prop_assert_eq!(pair.shard.counts().awaiting, 0, "I5: nothing is forgotten");
        for g in 0..3 { pair.expire(g, None, 3, 0); }
        pair.check();
        pair.shard.tick(pair.now + ALL.empty_grace, 100, &mut Vec::new());
        prop_assert_eq!(pair.shard.counts(), ShardCounts::default());
        prop_assert_eq!(pair.shard.gateways.len(), 0);
    }
}

#[test]
fn r15_a_call_whose_gateway_vanished_is_found_where_it_was_within_the_grace() {
    let mut pair = Pair::new();
    pair.join((0, 0), 0, 1);
    let (_, epoch, _) = place(&mut pair.shard, 1, pair.now).expect("ready");
    pair.expire(0, None, 10, 0);
    let join = Join { gateway: named(1), ..join_of(0, 0, None) };
    let again = take(&mut pair.shard, &join, &ALL, pair.now + ALL.empty_grace / 2);
    let found = again.expect("joins").key.and_then(|key| pair.shard.get(key)?.placement.epoch());
    assert_eq!(found, Some(epoch), "attached again, not made again");
}

#[test]
fn a_stream_is_a_child_of_its_own_and_outlives_the_call_beside_it() {
    let mut pair = Pair::new();
    pair.join((0, 0), 0, 1); // a voice call
    pair.join((2, 0), 0, 1); // a stream of the same guild, by the same session
    place(&mut pair.shard, 1, pair.now).expect("the call");
    place(&mut pair.shard, 1, pair.now).expect("the stream");
    let leave = |shard: &mut Shard, c, now| go(shard, &leave_of(join_of(c, 0, None), Some(9)), &ALL, now);
    assert_eq!(leave(&mut pair.shard, 0, pair.now), Left::Removed);
    let mut releases = Vec::new();
    pair.shard.tick(pair.now + ALL.empty_grace, 10, &mut releases);
    assert_eq!((releases.len(), pair.shard.counts().placed), (1, 1), "the stream stays until it is left itself");
    leave(&mut pair.shard, 2, pair.now);
    pair.shard.tick(pair.now + ALL.empty_grace, 10, &mut releases);
    assert_eq!((releases.len(), pair.shard.counts()), (2, ShardCounts::default()));
}

#[test]
fn calls_that_keep_their_sessions_are_passed_once_however_small_the_steps() {
    let mut pair = Pair::new();
    for c in 0..5 {
        (0..3).for_each(|s| pair.join((c, s), 0, 1));
    }
    let kept: HashSet<CallKey> = (0..4).filter_map(|c| pair.key(c)).collect();
    let (passed, mut walk, mut steps) = (std::cell::Cell::new(0), Walk::over(named(0), None), 1);
    let keeps = |call| {
        passed.set(passed.get() + usize::from(kept.contains(&call)));
        kept.contains(&call)
    };
    while pair.shard.expire(&mut walk, keeps, 1, &ALL, pair.now).more {
        steps += 1;
    }
    assert_eq!((steps, passed.get(), walk.kept), (3, 4, 12));
}

#[test]
fn r16_a_number_that_is_anothers_by_now_is_not_taken_for_one_who_is_gone() {
    let mut pair = Pair::new();
    pair.join((0, 0), 0, 1);
    pair.join((0, 1), 1, 1);
    place(&mut pair.shard, 0, pair.now).expect("ready");
    pair.join((2, 0), 2, 1);
    let mut absent = pair.shard.absent(&Arc::from([named(0), named(2)]));
    pair.expire(2, None, 10, 0); // its number is free
    let join = Join { gateway: gateway("new"), ..join_of(0, 2, None) };
    take(&mut pair.shard, &join, &ALL, pair.now).expect("there is room");
    let mut seen = Vec::new();
    pair.shard.calls_with_absent(SfuIdx(0), &mut absent, None, 10, |_, _, here| seen.push(here));
    assert_eq!(seen, [2], "one who was here, and the new one");
}
