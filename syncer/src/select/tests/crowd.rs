//! A crowd on SFUs whose loads are known late, in any order, or not at all: the SFUs, their windows and buckets
//! and what is believed of them, against what is really there.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rate_limit::Outcome;
use sfu_api::{Load, SfuId};

use super::fleet::{Fleet, entry};
use super::*;

const CAPACITY: u32 = 1_000;

fn sfus(n: usize, regions: usize, quotas: Quotas, now: Instant) -> Vec<Arc<Sfu>> {
    let entry = |i: usize| entry(i, &format!("r{}", i % regions), &format!("capacity = {CAPACITY}"));
    let fleet = Fleet::new(&(0..n).map(entry).collect::<Vec<_>>(), quotas, now);
    fleet.catalogue.now().all.clone()
}

/// What an SFU says, under way.
struct Answer {
    sfu: usize,
    load: Load,
    /// To an attempt; otherwise to a digest.
    attempt: Option<Reservation>,
}

/// The SFUs as they are.
struct Crowd {
    sfus: Vec<Arc<Sfu>>,
    regions: usize,
    quotas: Quotas,
    start: Instant,
    now: Instant,
    rng: StdRng,
    /// Attempts that are on their way to an SFU.
    sent: Vec<(usize, Reservation)>,
    answers: Vec<Answer>,
    rooms: Vec<u32>,
    /// Reservations that were not taken back, by SFU: when they were made.
    made: HashMap<usize, Vec<Instant>>,
}

#[derive(Clone, Debug)]
enum Op {
    /// In one of the regions.
    Place(usize),
    /// An attempt reaches its SFU.
    Arrive(usize),
    /// One was never sent.
    Unsent(usize),
    /// An answer comes back.
    Answer(usize),
    /// The SFU is asked for its load.
    Digest(usize),
    Pass(u64),
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0usize..3).prop_map(Op::Place),
        6 => any::<usize>().prop_map(Op::Arrive),
        1 => any::<usize>().prop_map(Op::Unsent),
        5 => any::<usize>().prop_map(Op::Answer),
        1 => any::<usize>().prop_map(Op::Digest),
        2 => (0u64..300).prop_map(Op::Pass),
    ]
}

// === impl Crowd ===

impl Crowd {
    fn new(n: usize, regions: usize, quotas: Quotas, seed: u64) -> Self {
        let now = Instant::now();
        Self {
            sfus: sfus(n, regions, quotas, now),
            regions,
            quotas,
            start: now,
            now,
            rng: StdRng::seed_from_u64(seed),
            sent: Vec::new(),
            answers: Vec::new(),
            rooms: vec![0; n],
            made: HashMap::new(),
        }
    }

    /// Chooses in a region and reserves, as the reconciler does. Says which SFU it was.
    fn place(&mut self, region: usize) -> Option<usize> {
        let (sfus, now) = (&self.sfus, self.now);
        let own: Vec<usize> = (0..sfus.len()).filter(|i| i % self.regions == region % self.regions).collect();
        let choice = choose(own.len(), &mut self.rng, |i| sfus[own[i]].fit(now).ok());
        let Some(choice) = choice else {
            // Nobody is refused while there is one with a token, a place in its window and room.
            assert!(own.iter().all(|i| sfus[*i].fit(now).is_err()));
            return None;
        };
        let chosen = own[choice.index];
        assert!(choice.rival.is_none_or(|(_, score)| choice.score <= score), "the better of two: {choice:?}");
        let reservation = sfus[chosen].reserve(now).expect("it was fit, and nobody else asks");
        assert!(sfus[chosen].window.in_flight() <= sfus[chosen].window.limit());
        self.sent.push((chosen, reservation));
        self.made.entry(chosen).or_default().push(now);
        Some(chosen)
    }

    /// What the SFU says of itself now. Its clock counts milliseconds, and much may happen in one.
    fn load(&self, sfu: usize) -> Load {
        let sampled_at = u64::try_from((self.now - self.start).as_millis()).expect("a short test");
        Load { calls: self.rooms[sfu], participants: 0, capacity: CAPACITY, sampled_at }
    }

    fn act(&mut self, op: &Op) {
        match *op {
            Op::Place(region) => {
                self.place(region);
            }
            Op::Arrive(n) if !self.sent.is_empty() => {
                let (sfu, reservation) = self.sent.swap_remove(n % self.sent.len());
                self.rooms[sfu] += 1;
                self.answers.push(Answer { sfu, load: self.load(sfu), attempt: Some(reservation) });
            }
            Op::Unsent(n) if !self.sent.is_empty() => {
                let (sfu, reservation) = self.sent.swap_remove(n % self.sent.len());
                let at = reservation.made_at();
                reservation.unused(Outcome::Neutral, self.now);
                let made = self.made.get_mut(&sfu).expect("it was reserved");
                made.remove(made.iter().position(|m| *m == at).expect("it was reserved"));
            }
            Op::Answer(n) if !self.answers.is_empty() => {
                let Answer { sfu, load, attempt } = self.answers.swap_remove(n % self.answers.len());
                if let Some(reservation) = attempt {
                    reservation.settle(Outcome::Success, self.now);
                }
                self.sfus[sfu].report(load, self.now);
            }
            Op::Digest(n) => {
                let sfu = n % self.sfus.len();
                self.answers.push(Answer { sfu, load: self.load(sfu), attempt: None });
            }
            Op::Pass(ms) => self.now += Duration::from_millis(ms),
            Op::Arrive(_) | Op::Unsent(_) | Op::Answer(_) => {}
        }
    }

    /// Rooms that an SFU has or is about to have, and how many we believe.
    fn there_and_believed(&self, sfu: usize) -> (u32, u32) {
        let coming = self.sent.iter().filter(|(at, _)| *at == sfu).count();
        let believed = (self.sfus[sfu].score() * f64::from(CAPACITY)).round() as u32;
        (self.rooms[sfu] + u32::try_from(coming).expect("few"), believed)
    }

    /// Everything that was made keeps within its buckets, in any window of time.
    fn check_buckets(&self) {
        let check = |made: &[Instant], quota: Quota, of: &dyn fmt::Debug| {
            let (mut debt, mut last) = (0.0_f64, self.start);
            for at in made {
                debt = (debt - (*at - last).as_secs_f64() * quota.rate_per_s).max(0.0) + 1.0;
                last = *at;
                assert!(debt <= f64::from(quota.burst) + 1e-3, "I4: {debt:.3} of {} at once, {of:?}", quota.burst);
            }
        };
        for region in 0..self.regions {
            let mut all = Vec::new();
            for (sfu, made) in self.made.iter().filter(|(sfu, _)| *sfu % self.regions == region) {
                check(made, self.quotas.sfu, &SfuId::new(format!("sfu-{sfu}")));
                all.extend(made.iter().copied());
            }
            all.sort();
            check(&all, self.quotas.region, &region);
        }
    }
}

proptest! {
    /// Whatever is sent, lost, answered late or out of order: no bucket of an SFU or a region is exceeded, and no
    /// SFU is ever believed to carry less than it does, so that nobody's old report draws a crowd.
    #[test]
    fn r07_no_bucket_is_exceeded_and_no_sfu_thought_emptier_than_it_is(
        walk in prop::collection::vec(ops(), 1..300),
        n in 1usize..8, regions in 1usize..3,
        region in (1.0..200.0f64, 1u32..40), sfu in (0.5..50.0f64, 1u32..20),
        seed: u64,
    ) {
        let quotas = Quotas { region: quota(region.0, region.1), sfu: quota(sfu.0, sfu.1), ..quotas(1e6, 1_000) };
        let mut crowd = Crowd::new(n, regions.min(n), quotas, seed);
        for op in &walk {
            crowd.act(op);
            for sfu in 0..n {
                let (there, believed) = crowd.there_and_believed(sfu);
                prop_assert!(believed >= there, "{there} on sfu-{sfu}, {believed} believed, after {op:?}");
            }
        }
        crowd.check_buckets();
        // And once all is said, what is believed is what is.
        while !crowd.sent.is_empty() { crowd.act(&Op::Arrive(0)); }
        while !crowd.answers.is_empty() { crowd.act(&Op::Answer(0)); }
        crowd.act(&Op::Pass(1));
        for sfu in 0..n {
            crowd.act(&Op::Digest(sfu));
            crowd.act(&Op::Answer(0));
            let (there, believed) = crowd.there_and_believed(sfu);
            prop_assert_eq!(there, believed);
        }
    }

    /// However unevenly they start, and however old what is known of that: a crowd evens the SFUs out.
    #[test]
    fn r07_a_crowd_on_loads_of_long_ago_leaves_the_sfus_even(
        before in prop::collection::vec(0u32..30, 2..60), seed: u64,
    ) {
        let n = before.len();
        let mut crowd = Crowd::new(n, 1, quotas(1e6, 1_000_000), seed);
        crowd.rooms = before;
        for sfu in 0..n {
            crowd.act(&Op::Digest(sfu));
            crowd.act(&Op::Answer(0));
        }
        crowd.act(&Op::Pass(10_000));
        for _ in 0..50 * n {
            let sfu = crowd.place(0).expect("there is room");
            // It is made, and the answer says nothing of the load.
            let (_, reservation) = crowd.sent.pop().expect("it was just sent");
            reservation.settle(Outcome::Success, crowd.now);
            crowd.rooms[sfu] += 1;
        }
        let most = f64::from(*crowd.rooms.iter().max().expect("some"));
        let mean = f64::from(crowd.rooms.iter().sum::<u32>()) / n as f64;
        prop_assert!(most / mean <= 1.5, "{most} on the fullest, {mean} on average");
        let fewest = crowd.rooms.iter().min().copied().expect("some");
        prop_assert!(f64::from(fewest) >= 0.5 * mean, "{fewest} on the emptiest, {mean} on average");
    }

    /// An outage is not hammered: whoever wants to be placed, and however late the failures come, an SFU that serves
    /// nothing sees its openers and then one attempt a step, whose steps grow; and one answer opens it again.
    #[test]
    fn r14_an_sfu_that_serves_nothing_sees_its_openers_and_one_attempt_a_step(
        late_ms in prop::collection::vec(1u64..3_000, 1..20), demand_ms in 1u64..200, seed: u64,
    ) {
        const OUTAGE: Duration = Duration::from_secs(60);
        let mut crowd = Crowd::new(1, 1, quotas(1e6, 1_000_000), seed);
        let sfu = crowd.sfus[0].clone();
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut late, mut pauses) = (late_ms.iter().cycle(), Vec::new());
        let mut fails: Vec<(Instant, Instant)> = Vec::new(); // asked, and told
        let (mut openers, mut later) = (0, 0);
        while crowd.now - crowd.start < OUTAGE {
            crowd.now += ms(demand_ms);
            let now = crowd.now;
            while let Some(due) = fails.iter().position(|(_, at)| *at <= now) {
                let (asked, _) = fails.remove(due);
                let (_, reservation) = crowd.sent.remove(due);
                reservation.settle(Outcome::Neutral, now);
                sfu.leave_alone(asked, now, |step| {
                    pauses.push((step, now));
                    crate::reconcile::pause(step, &mut rng)
                });
            }
            while crowd.place(0).is_some() {
                fails.push((now, now + ms(*late.next().expect("without end"))));
                *(if pauses.is_empty() { &mut openers } else { &mut later }) += 1;
            }
        }
        prop_assert!(openers <= 16, "{openers} before anything was known");
        prop_assert!(later <= pauses.len(), "{later} attempts in {} steps", pauses.len());
        for (n, pair) in pauses.windows(2).enumerate() {
            let least = Duration::from_millis(50 << n.min(7)).min(S(5));
            prop_assert!(pair[1].1 - pair[0].1 >= least, "step {n} took {:?}", pair[1].1 - pair[0].1);
            prop_assert_eq!(pair[1].0, u32::try_from(n + 1).expect("few"), "attempts that were out together are one step");
        }
        // It is well again: the next that is served is one, and then as many as ever.
        crowd.now += S(20);
        while let Some((_, reservation)) = crowd.sent.pop() { reservation.settle(Outcome::Neutral, crowd.now); }
        prop_assert!(crowd.place(0).is_some() && crowd.place(0).is_none(), "one on trial");
        let (_, trial) = crowd.sent.pop().expect("the one");
        trial.settle(Outcome::Success, crowd.now);
        sfu.clear_failures();
        prop_assert_eq!(std::iter::from_fn(|| crowd.place(0)).count(), 16);
    }
}

/// Calls that are placed and calls that are moved are chosen for by two tasks, which know nothing of each other.
#[test]
fn r14_two_who_find_an_sfu_that_served_nothing_free_at_the_same_moment_make_one_trial() {
    let start = Instant::now();
    let sfu = sfus(1, 1, quotas(0.1, 3), start).remove(0);
    sfu.leave_alone(start, start, |_| ms(100));
    let now = start + ms(100);
    assert!(sfu.fit(now).is_ok() && sfu.fit(now).is_ok(), "both look before either takes it");
    let trial = sfu.reserve(now).expect("one finds out");
    assert!(sfu.reserve(now).is_none() && sfu.reserve(now).is_none(), "and nobody else");
    assert_eq!(sfu.window.in_flight(), 1);
    // It is served: everything that was not used is there for others.
    trial.settle(Outcome::Success, now);
    sfu.clear_failures();
    let all = std::iter::from_fn(|| sfu.reserve(now)).collect::<Vec<_>>();
    assert_eq!(all.len(), 2, "of three, the trial took one");
}

/// Whoever found it fit before, too.
#[test]
fn r14_nobody_takes_a_place_in_a_pause() {
    let start = Instant::now();
    let sfu = sfus(1, 1, quotas(0.1, 3), start).remove(0);
    let failed = sfu.reserve(start).expect("it is fit");
    assert!(sfu.fit(start).is_ok(), "another looks");
    sfu.leave_alone(start, start, |_| ms(100));
    failed.unused(Outcome::Neutral, start);
    assert!(sfu.reserve(start).is_none());
    assert_eq!(sfu.window.in_flight(), 0);
    assert!(sfu.reserve(start + ms(100)).is_some());
}

/// Who is held up by it for a moment waits for it; after four steps in which it served nothing, nobody does.
#[test]
fn r14_an_sfu_that_serves_nothing_for_four_steps_is_silent() {
    let start = Instant::now();
    let sfu = sfus(1, 1, quotas(1e6, 1_000), start).remove(0);
    for step in 0..6 {
        let now = start + S(step);
        let trial = sfu.reserve(now).expect("one finds out");
        let silent = step >= 4;
        let on_trial = if silent { Excluded::Silent } else { Excluded::OnTrial };
        assert_eq!(sfu.fit(now).err(), (step > 0).then_some(on_trial), "{step} steps");
        sfu.leave_alone(now, now, |_| ms(500));
        trial.unused(Outcome::Neutral, now);
        let held = if step >= 3 { Excluded::Silent } else { Excluded::Held };
        assert_eq!(sfu.fit(now), Err(held), "{} steps", step + 1);
    }
    sfu.clear_failures();
    assert!(sfu.fit(start + S(6)).is_ok());
}

const S: fn(u64) -> Duration = Duration::from_secs;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
