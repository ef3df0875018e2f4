//! What a storm may do to the calls of a shard, requirement by requirement: how a loss is told, when a failed
//! call is tried again, what an answer that comes late can change, and whose turn it is.

use std::collections::{BTreeMap, HashSet};

use super::*;

/// Room for more calls than the walk of all things needs.
const WIDE: Limits = Limits {
    calls_per_guild_max: 1_000,
    participants_per_call_max: 1_000,
    left_remembered_max: 10_000,
    empty_grace: Duration::from_secs(5),
    admit_sessions: false,
};

const CALLS: u8 = 12;
const SFUS: u32 = 4;

/// An answer under way: of which call, at which epoch, and since when nobody waits for it any more.
#[derive(Clone, Copy, Debug)]
struct Flying {
    key: CallKey,
    epoch: Epoch,
    sfu: u32,
    overtaken: bool,
}

/// What was said of a call: epoch, phase, and why; or no reason where a join was answered so.
type Said = (Epoch, u8, Option<Cause>);

/// A shard, the answers under way, and everything that was ever told of its calls, in order.
struct Storm {
    shard: Shard,
    now: Instant,
    flying: Vec<Flying>,
    told: BTreeMap<CallKey, Vec<Said>>,
    /// Those in which nobody was for a while.
    emptied: HashSet<CallKey>,
    /// What failed, and when it may be tried again.
    failed: HashMap<CallKey, Instant>,
    attempts: HashMap<CallKey, usize>,
}

#[derive(Clone, Debug)]
enum Op {
    Join(u8, u8),
    Leave(u8, u8),
    /// On the SFU, or nowhere: everything is held back.
    Place(Option<u32>),
    /// A new call in its turn, and the answer comes at once.
    Seat(u32),
    Drain(u32, u32),
    /// An answer arrives, and maybe once more.
    Answer(usize, bool),
    /// An attempt is given up, to be made again after so many milliseconds; its answer may still come.
    GiveUp(usize, u64),
    /// The SFU is lost, and the calls are told so many at a time.
    Lose(u32, usize),
    Unblock,
    Pass(u64),
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..CALLS, 0u8..4).prop_map(|(c, s)| Op::Join(c, s)),
        1 => (0..CALLS, 0u8..4).prop_map(|(c, s)| Op::Leave(c, s)),
        5 => prop::option::weighted(0.9, 0..SFUS).prop_map(Op::Place),
        2 => (0..SFUS).prop_map(Op::Seat),
        2 => (0..SFUS, 0..SFUS).prop_map(|(from, to)| Op::Drain(from, to)),
        5 => (any::<usize>(), any::<bool>()).prop_map(|(n, again)| Op::Answer(n, again)),
        2 => (any::<usize>(), 0u64..10_000).prop_map(|(n, ms)| Op::GiveUp(n, ms)),
        1 => (0..SFUS, 1usize..4).prop_map(|(sfu, max)| Op::Lose(sfu, max)),
        1 => Just(Op::Unblock),
        2 => (0u64..4_000).prop_map(Op::Pass),
    ]
}

// === impl Storm ===

impl Storm {
    fn new() -> Self {
        Self {
            shard: shard(),
            now: Instant::now(),
            flying: Vec::new(),
            told: BTreeMap::new(),
            emptied: HashSet::new(),
            failed: HashMap::new(),
            attempts: HashMap::new(),
        }
    }

    fn join(&mut self, call: u8, session: u8) {
        let joined = take(&mut self.shard, &join_of(call, session, None), &WIDE, self.now).expect("there is room");
        let key = joined.key.expect("it was just joined");
        let told = self.told.entry(key).or_default();
        if let Some((epoch, phase)) = self.shard.get(key).and_then(|call| call.placement.announced())
            && told.last().is_none_or(|(e, p, _)| (*e, *p) < (epoch, phase))
        {
            told.push((epoch, phase, None));
        }
    }

    fn leave(&mut self, call: u8, session: u8) {
        let leave = leave_of(join_of(call, session, None), None);
        let key = self.shard.find(&leave.guild, &leave.call);
        go(&mut self.shard, &leave, &WIDE, self.now);
        self.emptied.extend(key.filter(|key| !self.shard.get(*key).is_some_and(Call::is_live)));
    }

    fn hear(&mut self, news: &News) {
        assert_eq!(news.endpoint.is_some(), news.phase == 1, "R16: an endpoint, or a null");
        let key = self.shard.find(&news.guild, &news.call).expect("it is live");
        self.told.entry(key).or_default().push((news.epoch, news.phase, Some(news.cause)));
    }

    /// All that there is to see of the calls.
    fn look(&self) -> String {
        let calls = self.shard.keys().into_iter().map(|key| (key, self.shard.get(key)));
        let Shard { counts, demand, dirty, .. } = &self.shard;
        format!("{:?} {counts:?} {demand:?} {:?}", calls.collect::<Vec<_>>(), dirty.len())
    }

    /// The next call is tried on `sfu`. R14: none before its time. R15: none twice at once.
    fn place(&mut self, sfu: Option<u32>) -> bool {
        self.place_of(None, sfu)
    }

    fn place_of(&mut self, class: Option<Class>, sfu: Option<u32>) -> bool {
        let Next::Reserved { work, epoch, .. } = self.shard.place_next(class, &mut On(sfu)) else { return false };
        if let Some(not_before) = self.failed.remove(&work.key) {
            assert!(not_before <= self.now, "R14: tried again {:?} early", not_before - self.now);
        }
        self.takes_off(work.key, epoch, sfu.expect("it was placed somewhere"));
        true
    }

    fn seat(&mut self, sfu: u32) {
        let new = self.shard.dirty().first_ready(Some(Class::New)).map(|_| Class::New);
        if self.place_of(new, Some(sfu)) {
            self.answer(self.flying.len() - 1, false);
        }
    }

    fn drain(&mut self, from: u32, to: u32) {
        if let Moved::Reserved { work, epoch, .. } = self.shard.move_next(SfuIdx(from), None, &mut On(Some(to))) {
            self.takes_off(work.key, epoch, to);
        }
    }

    fn takes_off(&mut self, key: CallKey, epoch: Epoch, sfu: u32) {
        let waiting = self.flying.iter().any(|f| f.key == key && !f.overtaken);
        assert!(!waiting, "R15: one attempt a call");
        assert!(self.flying.iter().all(|f| f.epoch < epoch), "R15: an epoch is used once, and the next is higher");
        *self.attempts.entry(key).or_default() += 1;
        self.flying.push(Flying { key, epoch, sfu, overtaken: false });
    }

    /// The SFU's answer. R15: it counts if somebody waits for it, once, and changes nothing else.
    fn answer(&mut self, n: usize, again: bool) {
        if self.flying.is_empty() {
            return;
        }
        let answer = self.flying.swap_remove(n % self.flying.len());
        let nobody_waits = answer.overtaken || self.shard.get(answer.key).is_none();
        for overtaken in [nobody_waits, true].into_iter().take(1 + usize::from(again)) {
            let before = self.look();
            let committed = self.shard.commit(answer.key, answer.epoch, "https://room".into(), &WIDE, self.now);
            match committed {
                Committed::Placed { news, .. } => {
                    assert!(!overtaken, "R15: a stale answer placed a call");
                    if let Some(news) = news {
                        self.hear(&news);
                    }
                }
                Committed::Stale => {
                    assert!(overtaken, "R15: an answer that was waited for is stale");
                    assert_eq!(before, self.look(), "R15: a stale answer changed something");
                }
            }
        }
    }

    /// One of the attempts for whose answer somebody waits is given up, of those on `sfu` or of all.
    fn give_up(&mut self, n: usize, sfu: Option<u32>, wait: Duration) -> bool {
        let due = |f: &&mut Flying| !f.overtaken && sfu.is_none_or(|sfu| f.sfu == sfu);
        let mut waiting: Vec<&mut Flying> = self.flying.iter_mut().filter(due).collect();
        let count = waiting.len().max(1);
        let Some(given_up) = waiting.get_mut(n % count) else { return false };
        given_up.overtaken = true;
        let Flying { key, epoch, .. } = **given_up;
        self.shard.fail(key, epoch, true, self.now + wait);
        if self.shard.get(key).is_some_and(Call::is_awaiting) {
            self.failed.insert(key, self.now + wait);
        }
        true
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.shard.tick(self.now, 1_000, &mut Vec::new());
    }

    fn loss(&self, sfu: u32) -> Loss {
        let (cause, upto) = (Cause::SfuDead, self.shard.placements());
        Loss { sfu: SfuIdx(sfu), cause, in_place: false, at: self.now, upto }
    }

    fn tell(&mut self, loss: &Loss, from: &mut Option<CallKey>, max: usize) -> usize {
        let news = self.shard.sfu_lost(loss, from, max);
        news.iter().for_each(|news| self.hear(news));
        news.len()
    }

    fn act(&mut self, op: &Op) {
        match *op {
            Op::Join(c, s) => self.join(c, s),
            Op::Leave(c, s) => self.leave(c, s),
            Op::Place(sfu) => {
                self.place(sfu);
            }
            Op::Seat(sfu) => self.seat(sfu),
            Op::Drain(from, to) => self.drain(from, to),
            Op::Answer(n, again) => self.answer(n, again),
            Op::GiveUp(n, ms) => {
                self.give_up(n, None, Duration::from_millis(ms));
            }
            Op::Lose(sfu, max) => {
                let (loss, mut from) = (self.loss(sfu), None);
                while {
                    self.tell(&loss, &mut from, max);
                    from.is_some()
                } {}
            }
            Op::Unblock => {
                self.shard.unblock(&Blocker::NoCandidate(None), None, self.now);
            }
            Op::Pass(ms) => self.pass(Duration::from_millis(ms)),
        }
        assert_eq!(invariants::of_shard(&self.shard), None);
    }

    /// Where the live calls are placed: the SFU and the epoch.
    fn seats(&self) -> BTreeMap<CallKey, (SfuIdx, Epoch)> {
        let mut seats = self.all_seats();
        seats.retain(|key, _| self.shard.get(*key).is_some_and(Call::is_live));
        seats
    }

    /// As [`Self::seats`], and those which calls that are empty keep for a while.
    fn all_seats(&self) -> BTreeMap<CallKey, (SfuIdx, Epoch)> {
        let calls = self.shard.keys().into_iter().filter_map(|key| Some((key, self.shard.get(key)?)));
        calls.filter_map(|(key, call)| call.placement.seated().map(|(sfu, epoch, _)| (key, (sfu, epoch)))).collect()
    }

    /// Everybody who still waits is placed, one attempt each.
    fn settle(&mut self) {
        while self.give_up(0, None, Duration::ZERO) {}
        self.pass(Duration::from_secs(60));
        while self.shard.unblock(&Blocker::NoCandidate(None), None, self.now) {}
        while self.place(Some(0)) {
            self.answer(self.flying.len() - 1, false);
        }
        assert_eq!(self.shard.counts().awaiting, 0, "I5: nothing is forgotten");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Nothing that happens to a call that failed has it tried again before its time; nothing makes two attempts
    /// at once; and an answer for which nobody waits any more, or a second one, changes nothing at all.
    #[test]
    fn r14_r15_a_call_is_tried_once_at_a_time_in_its_time_and_believes_no_late_answer(
        walk in prop::collection::vec(ops(), 1..150),
    ) {
        let mut storm = Storm::new();
        for op in &walk {
            storm.act(op);
        }
        // Answers to attempts that were given up come last of all, when every call has moved on.
        storm.settle();
        let seats = storm.seats();
        while !storm.flying.is_empty() {
            storm.answer(0, true);
        }
        prop_assert_eq!(storm.seats(), seats, "R15: hosted where it was");
    }

    /// What a gateway hears of a call makes sense alone: an endpoint, then either its null or, for a planned move
    /// only, the next endpoint; a null is said once, and only of the endpoint that was there; the last word is what is.
    #[test]
    fn r16_each_endpoint_has_one_null_at_most_and_a_planned_move_none(walk in prop::collection::vec(ops(), 1..150)) {
        let mut storm = Storm::new();
        for op in &walk {
            storm.act(op);
        }
        storm.settle();
        let seats = storm.seats();
        for told in storm.told.values() {
            prop_assert!(told.first().is_none_or(|(_, phase, _)| *phase == 1), "the first word is an endpoint: {told:?}");
            for pair in told.windows(2) {
                let ((was, phase, _), (is, next, cause)) = (pair[0], pair[1]);
                match (phase, next) {
                    (1, 2) => prop_assert_eq!(was, is, "the null is of the endpoint before it"),
                    (2, 1) => prop_assert!(was < is, "{pair:?}"),
                    // Who comes back into a call that has moved while nobody was in it is answered where it is.
                    (1, 1) => prop_assert!(was < is && cause.is_none_or(|c| c == Cause::Drained), "{pair:?}"),
                    _ => prop_assert!(false, "two nulls: {pair:?}"),
                }
            }
        }
        for (call, (_, epoch)) in seats {
            let last = storm.told.get(&call).and_then(|told| told.last()).map(|(epoch, phase, _)| (*epoch, *phase));
            prop_assert_eq!(last, Some((epoch, 1)), "the last word is what is");
        }
    }

    /// One notice: a pass over the calls of a lost SFU, in steps of any size with anything between them, tells
    /// each call that was there once, no other call at all, and leaves none of them there.
    #[test]
    fn r13_one_pass_tells_each_call_of_a_lost_sfu_once_and_no_other(
        before in prop::collection::vec(ops(), 0..120),
        between in prop::collection::vec(prop::collection::vec(ops(), 0..4), 1..16),
        max in 1usize..6,
    ) {
        let mut storm = Storm::new();
        (0..CALLS).for_each(|n| storm.join(n, 0));
        // Some wait when it happens, and find their place there while the pass is under way.
        (0..u32::from(CALLS) * 2 / 3).for_each(|n| storm.seat(n % 2));
        before.iter().for_each(|op| storm.act(op));
        storm.told.clear();
        storm.emptied.clear();
        let (loss, mut from) = (storm.loss(1), None);
        // What was under way there when it was lost is lost too: whoever waits for it sees that and fails it.
        while storm.give_up(0, Some(1), Duration::ZERO) {}
        let on_it = |seats: BTreeMap<CallKey, (SfuIdx, Epoch)>| {
            seats.into_iter().filter(|(_, (sfu, _))| *sfu == SfuIdx(1)).collect::<BTreeMap<_, _>>()
        };
        // Who comes back into an empty call before the pass has come to it hears of its place, and then of its end.
        let (there, there_or_empty) = (on_it(storm.seats()), on_it(storm.all_seats()));
        let (mut steps, mut said) = (0, 0);
        loop {
            said += storm.tell(&loss, &mut from, max);
            steps += 1;
            if from.is_none() {
                break;
            }
            // Other losses would be other notices.
            let quiet = |op: &&Op| !matches!(op, Op::Lose(..));
            between[steps % between.len()].iter().filter(quiet).for_each(|op| storm.act(op));
        }
        prop_assert!(steps <= usize::from(CALLS) / max + 1, "one pass: {steps} steps of {max}");
        let nulls = |told: &[Said]| told.iter().filter(|(_, phase, cause)| *phase == 2 && cause.is_some()).count();
        prop_assert_eq!(said, storm.told.values().map(|told| nulls(told)).sum::<usize>());
        for (call, told) in &storm.told {
            let heard_of = |(_, epoch): &(SfuIdx, Epoch)| told.iter().any(|(heard, phase, _)| heard == epoch && *phase == 1);
            let lost = there.contains_key(call) || there_or_empty.get(call).is_some_and(heard_of);
            prop_assert!(nulls(told) <= usize::from(lost), "{told:?}");
        }
        let seats = storm.seats();
        for (call, (_, epoch)) in &there {
            prop_assert!(seats.get(call).is_none_or(|(_, now)| now > epoch), "still where it was lost");
            let heard = storm.told.get(call).map_or(&[][..], Vec::as_slice);
            let moved = heard.iter().any(|(e, phase, _)| *phase == 1 && e > epoch);
            prop_assert!(nulls(heard) == 1 || moved || storm.emptied.contains(call), "it was not told: {heard:?}");
        }
        // And the repair is one attempt for each of them.
        storm.settle();
        storm.attempts.clear();
        let (again, mut from) = (storm.loss(0), None);
        let lost = storm.tell(&again, &mut from, 1_000);
        storm.settle();
        prop_assert_eq!((storm.attempts.len(), storm.attempts.values().sum::<usize>()), (lost, lost));
    }

    /// Whatever waits, and for how long: each class has the turns that are its own, and within a class, and for
    /// the turns that are nobody's, rank decides.
    #[test]
    fn r10_each_class_has_its_turns_and_rank_decides_the_rest(
        calls in prop::collection::vec((0u8..3, 1u8..40, 0u64..40_000), 1..80),
        of_new_calls in 1..=Turns::NEW_CALLS_MAX,
        of_streams in 1..=Turns::STREAMS_MAX,
    ) {
        let turns = Turns::new(of_new_calls, of_streams);
        let mut storm = Storm::new();
        let start = storm.now;
        let mut arrivals: Vec<_> = calls.iter().enumerate().collect();
        arrivals.sort_by_key(|(_, (.., at))| *at);
        for (n, (class, sessions, at_ms)) in arrivals {
            storm.now = start + Duration::from_millis(*at_ms);
            let kind = if *class == 2 { CallKind::Stream } else { CallKind::Voice };
            for session in 0..*sessions {
                let id = CallId::new(format!("c{n}")).expect("valid");
                let join = Join { call: id, kind, ..join_of(0, session, None) };
                take(&mut storm.shard, &join, &WIDE, storm.now).expect("there is room");
            }
            if *class == 0 {
                // One that waits is placed, to be lost in the end and so to be a repair.
                let turn = storm.shard.place_next(Some(Class::New), &mut On(Some(1)));
                let Next::Reserved { work, epoch, .. } = turn else { panic!("a new call is ready") };
                storm.shard.commit(work.key, epoch, "https://room".into(), &WIDE, storm.now);
            }
        }
        let (loss, mut from) = (storm.loss(1), None);
        storm.tell(&loss, &mut from, 1_000);
        let mut waiting = storm.shard.counts().awaiting;
        let mut since_turn = [0_u64; 3];
        for number in 0.. {
            let heads = Class::ALL.map(|class| storm.shard.dirty().first_ready(Some(class)).map(|(at, _)| at));
            let class = turns.whose(number).filter(|class| heads[*class as usize].is_some());
            let Next::Reserved { work, .. } = storm.shard.place_next(class, &mut On(Some(0))) else { break };
            waiting -= 1;
            let rank = heads[work.class as usize].expect("it was ready");
            if let Some(class) = class {
                prop_assert_eq!(work.class, class, "its turn");
            } else {
                prop_assert!(heads.iter().flatten().all(|head| rank <= *head), "{:?} went before {heads:?}", work.class);
            }
            for class in Class::ALL {
                let waited = &mut since_turn[class as usize];
                *waited = if work.class == class || heads[class as usize].is_none() { 0 } else { *waited + 1 };
            }
            let most = [Turns::ROUND.div_ceil(of_new_calls), Turns::ROUND.div_ceil(of_streams) + 1];
            prop_assert!(since_turn[1] < most[0] && since_turn[2] < most[1], "starved: {since_turn:?}, {turns:?}");
        }
        prop_assert_eq!(waiting, 0, "everybody had a turn");
    }
}

/// Silence proves less than a refusal, so its calls come 25 s later, whoever else comes into them meanwhile.
#[test]
fn r10_who_joins_a_call_of_a_silent_sfu_makes_it_more_urgent_by_its_size_alone() {
    let now = Instant::now();
    let mut shard = shard();
    for (call, sfu) in [(0, 0), (1, 1)] {
        join(&mut shard, call, 0, now).expect("there is room");
        place(&mut shard, sfu, now).expect("it is ready");
    }
    let upto = shard.placements();
    for (sfu, cause, late_s) in [(0, Cause::SfuSilent, 0), (1, Cause::SfuDead, 20)] {
        let at = now + Duration::from_secs(late_s);
        let loss = Loss { sfu: SfuIdx(sfu), cause, in_place: false, at, upto };
        assert_eq!(shard.sfu_lost(&loss, &mut None, 10).len(), 1);
    }
    // Some come, and some tell again that they are there.
    for session in [0, 1, 1, 2, 3, 3, 0] {
        join(&mut shard, 0, session, now).expect("there is room");
    }
    let order: Vec<CallId> = std::iter::from_fn(|| reserve(&mut shard, 2)).map(|(work, _)| work.call).collect();
    assert_eq!(order, [1, 0].map(|call| join_of(call, 0, None).call));
}
