use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;
use crate::state::Turns;

mod backlog;

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;

fn rules(pace_per_s: f64) -> Rules {
    Rules { queue_age_max: S(5), lag_max: S(1), pace_per_s, turns: Turns::new(3, 1) }
}

fn settings(rate: f64, burst: u32) -> Settings {
    let children = Quota::new(rate, burst).expect("a valid quota");
    Settings {
        children,
        parts: 1,
        guild_share: 1.0,
        throttle: 1.0,
        retry_span_min: S(4),
        blocked: [false; 3],
        rules: rules(1e6),
    }
}

fn guild(n: usize) -> GuildId {
    GuildId::new(format!("g{n}")).expect("valid")
}

fn ask(door: &Admission, n: usize, class: Class, now: Instant) -> Result<(), Denied> {
    door.admit(&guild(n), class, now, || 0.5)
}

#[test]
fn r10_who_joins_a_call_that_exists_does_not_pay_for_new_ones() {
    let t = Instant::now();
    let door = Admission::new(settings(100.0, 10), t);
    (0..10).for_each(|n| ask(&door, n, Class::NewCall, t).expect("the burst"));
    for children in [Quota::new(50.0, 5).expect("a valid quota"), Quota::CLOSED] {
        door.set(Settings { children, parts: 2, ..settings(100.0, 10) }, t);
        ask(&door, 0, Class::NewCall, t).expect_err("nothing is left for a new call");
        ask(&door, 0, Class::Join, t).expect("a join takes none");
    }
}

/// Of ten thousand children asked for at once, how many come in.
fn admitted(guilds: usize, class: impl Fn(usize) -> Class) -> usize {
    let t = Instant::now();
    let door = Admission::new(settings(100.0, 700), t);
    (0..10_000).filter(|n| ask(&door, n % guilds, class(*n), t).is_ok()).count()
}

#[test]
fn r08_one_guild_with_ten_thousand_children_is_held_to_what_ten_thousand_guilds_are() {
    let mixed = |n: usize| if n.is_multiple_of(2) { Class::NewCall } else { Class::Stream };
    let counts = [admitted(1, |_| Class::NewCall), admitted(10_000, |_| Class::NewCall), admitted(1, mixed)];
    assert_eq!(counts, [700; 3], "the bucket, whoever asks and for what");
}

proptest! {
    /// Others become ready just after this one used its burst: it waits for what it took of theirs, so all together
    /// soon admit what one alone would.
    #[test]
    fn r09_who_shares_its_limit_with_a_newcomer_keeps_its_debt(
        used in 0usize..1_200, parts in 2u32..10, steps_ms in prop::collection::vec(1u64..2_000, 1..40),
    ) {
        let t = Instant::now();
        let whole = settings(100.0, 1_000);
        let part = Settings { children: whole.children.share(parts), parts, ..whole };
        let old = Admission::new(whole, t);
        let mut n = 0;
        let mut admit = |door: &Admission, now| {
            n += 1;
            ask(door, n, Class::NewCall, now).is_ok()
        };
        let mut admitted = (0..used).filter(|_| admit(&old, t)).count();
        old.set(part, t);
        let newcomers: Vec<Admission> = (1..parts).map(|_| Admission::new(part, t)).collect();
        let mut now = t;
        for step in steps_ms {
            now += MS(step);
            for door in newcomers.iter().chain([&old]) {
                while admit(door, now) {
                    admitted += 1;
                }
            }
            let whole = 1_000.0 + 100.0 * (now - t).as_secs_f64();
            let others = whole * f64::from(parts - 1) / f64::from(parts);
            let limit = whole.max(used.min(1_000) as f64 + others) + f64::from(parts);
            prop_assert!(admitted as f64 <= limit, "{admitted} of {limit}");
        }
    }
}

#[test]
fn r08_a_guild_takes_what_nobody_needs_and_no_more_once_others_do() {
    let t = Instant::now();
    let door = Admission::new(Settings { guild_share: 0.1, ..settings(100.0, 1_000) }, t);
    let hog = (0..5_000).filter(|_| ask(&door, 0, Class::NewCall, t).is_ok()).count();
    assert!((590..=610).contains(&hog), "the free half and its tenth: {hog}");
    for n in 1..=39 {
        assert_eq!((0..10).filter(|_| ask(&door, n, Class::NewCall, t).is_ok()).count(), 10, "guild {n} gets its own");
    }
    let denied = ask(&door, 0, Class::NewCall, t).expect_err("the hog waits");
    assert_eq!((denied.reason, denied.class), (Reason::Guild, Class::NewCall));
}

fn signals(memory: f64, waiting: Waiting) -> Signals {
    Signals { oldest: Duration::ZERO, waiting, lag: Duration::ZERO, memory }
}

#[test]
fn r08_a_token_to_spare_comes_back_from_who_is_not_admitted() {
    let t = Instant::now();
    let door = Admission::new(settings(100.0, 10), t);
    door.tick(&signals(1.0, Waiting::default()), t);
    for n in 0..100 {
        ask(&door, n, Class::NewCall, t).expect_err("there is no memory left");
    }
    assert_eq!(door.children.available(t), 10);
}

#[test]
fn r10_what_waits_is_what_waited_at_the_last_tick_and_what_came_since() {
    let t = Instant::now();
    let door = Admission::new(settings(100.0, 100), t);
    door.tick(&signals(0.0, Waiting { all: 30, new_calls: 12, streams: 5 }), t);
    for (class, n) in [(Class::NewCall, 4), (Class::Stream, 3), (Class::Join, 2)] {
        (0..n).for_each(|n| ask(&door, n, class, t).expect("nothing presses"));
    }
    let AdmissionView { waiting, waiting_new_calls, waiting_streams, .. } = door.view();
    assert_eq!((waiting, waiting_new_calls, waiting_streams), (37, 16, 8));
}

#[test]
fn r08_what_a_later_check_refuses_costs_the_guild_nothing() {
    let t = Instant::now();
    let door = Admission::new(Settings { guild_share: 0.5, ..settings(1.0, 10) }, t);
    for n in 0..10 {
        ask(&door, n, Class::NewCall, t).expect("in the burst");
    }
    for _ in 0..100 {
        assert_eq!(ask(&door, 50, Class::NewCall, t).expect_err("used up").reason, Reason::Rate);
    }
    assert_eq!(door.guilds.available(&guild(50), t), 5);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn r08_no_crowd_of_guilds_overdraws_the_child_bucket(
        asks in proptest::collection::vec((0usize..40, any::<bool>(), 0u64..40), 1..600),
        rate in 1.0..200.0f64, burst in 1u32..50, share in prop_oneof![0.0..1.0f64, Just(1.0)],
    ) {
        let start = Instant::now();
        let door = Admission::new(Settings { guild_share: share, ..settings(rate, burst) }, start);
        let (mut now, mut debt, mut last) = (start, 0.0_f64, start);
        for (n, stream, gap_ms) in asks {
            now += MS(gap_ms);
            if ask(&door, n, if stream { Class::Stream } else { Class::NewCall }, now).is_ok() {
                debt = (debt - (now - last).as_secs_f64() * rate).max(0.0) + 1.0;
                last = now;
                prop_assert!(debt <= f64::from(burst) + 1e-3, "{debt} of {burst}");
            } else if share >= 1.0 - 1e-9 {
                let owed = (debt - (now - last).as_secs_f64() * rate).max(0.0) + 1.0;
                prop_assert!(owed > f64::from(burst) - 1e-3, "turned away with {owed} of {burst} used");
            }
        }
    }

    #[test]
    fn r10_under_any_pressure_no_class_comes_in_while_a_better_one_is_shed(
        felt in proptest::collection::vec(
            ((0u64..20_000, 0u64..4_000, 0.0..1.2f64, 0u64..2_000), (0u64..3_000, 0u64..600, 0u64..300)), 1..60),
        draw in 0.0..1.0f64,
    ) {
        let rules = rules(100.0);
        let mut now = Instant::now();
        let mut gate = Gate::new(&rules, now);
        for ((oldest, lag, memory, gap), (repairs, new_calls, streams)) in felt {
            now += MS(gap);
            let waiting = Waiting { all: repairs + new_calls + streams, new_calls, streams };
            gate.tick(&Signals { oldest: MS(oldest), waiting, lag: MS(lag), memory }, &rules, now);
            let may = |class| {
                // What trickles in is let in first: it is for those who are shed.
                (0..3).any(|_| gate.admit(class, &waiting, now, || 2.0).is_err());
                gate.admit(class, &waiting, now, || draw).is_ok()
            };
            let may: Vec<bool> = Class::ALL.map(may).to_vec();
            prop_assert!(may.windows(2).all(|pair| pair[0] >= pair[1]), "{may:?}");
            prop_assert!(may[..3].iter().all(|m| *m), "leases, leaves and repairs are never shed");
            prop_assert!(gate.window() >= 16 && gate.window() <= 500);
        }
    }

    #[test]
    fn r10_every_slot_is_to_come_and_within_half_a_minute(
        asks in proptest::collection::vec((0u64..70_000, 0u64..900, 0.0..1.0f64), 1..300), rate in 0.0..100.0f64,
        span_s in 1u64..=30,
    ) {
        let mut now = Instant::now();
        let mut slots = Slots::new(now);
        for (ready_ms, gap_ms, draw) in asks {
            now += MS(gap_ms);
            let wait = slots.take(now + MS(ready_ms), rate, S(span_s), now, draw);
            prop_assert!(wait > Duration::ZERO && wait <= S(31), "{wait:?}");
            prop_assert!(wait + S(1) >= MS(ready_ms.min(26_000)), "{wait:?} is before {ready_ms} ms");
        }
    }
}

proptest! {
    /// However the lever is pulled: the door is never open wider than it says, shuts with it at once, opens by no
    /// more than a step a second, and gets there in the end; what comes in keeps to how far it was open.
    #[test]
    fn r20_the_throttle_never_runs_ahead_of_its_lever_and_follows_it_in_steps(
        pulls in prop::collection::vec((0.0..=1.0f64, 0u64..4_000), 1..30),
    ) {
        let start = Instant::now();
        let full = settings(1_000.0, 10);
        let door = Admission::new(full, start);
        let (mut now, mut open, mut stepped, mut lever) = (start, 1.0_f64, start, 1.0);
        for (to, for_ms) in pulls {
            lever = to;
            for _ in 0..=for_ms / 250 {
                door.set(Settings { throttle: lever, ..full }, now);
                let is = door.view().throttle;
                prop_assert!(is <= lever, "{is} open where {lever} is allowed");
                if is > open {
                    prop_assert!(is <= open + 0.1 + 1e-9 && now - stepped >= S(1), "from {open} to {is} after {:?}", now - stepped);
                }
                if is > open || lever <= open {
                    stepped = now;
                }
                open = is;
                prop_assert!((door.view().new_calls_per_s - 1_000.0 * open).abs() < 1e-6);
                // Joins are let in by a draw, so that a part of them is.
                let joins = (0..20u32).filter(|n| {
                    door.admit(&guild(0), Class::Join, now, || f64::from(*n) / 20.0).is_ok()
                });
                prop_assert!((joins.count() as f64 - 20.0 * open).abs() <= 1.0);
                now += MS(250);
            }
        }
        for _ in 0..11 {
            now += S(1);
            door.set(Settings { throttle: lever, ..full }, now);
        }
        prop_assert_eq!(door.view().throttle, lever, "it gets there");
    }

    /// A door that is made narrower in a crowd is narrow at once, and not shut: from then on, as many come in as
    /// its new rate says, also after it was shut for a while.
    #[test]
    fn r09_r20_a_narrower_door_lets_in_at_its_own_rate_from_the_first_second(
        before in (100.0..10_000.0f64, 1_000u32..20_000), after in (5.0..100.0f64, 1u32..50), shut_s in 0u64..30,
    ) {
        let mut now = Instant::now();
        let door = Admission::new(settings(before.0, before.1), now);
        while ask(&door, 0, Class::NewCall, now).is_ok() {}
        if shut_s > 0 {
            door.set(Settings { throttle: 0.0, ..settings(before.0, before.1) }, now);
            now += S(shut_s);
        }
        let narrow = Settings { throttle: if shut_s > 0 { 0.1 } else { 1.0 }, ..settings(after.0, after.1) };
        door.set(narrow, now);
        let rate = door.view().new_calls_per_s;
        prop_assert!((rate - after.0 * narrow.throttle).abs() < 1e-9);
        // Twenty looks or more for each token: a bucket that holds one loses what it earns until it is looked at.
        let lasting = S(20).min(Duration::from_secs_f64(200.0 / rate));
        let mut admitted = 0.0;
        for _ in 0..4_000 {
            now += lasting / 4_000;
            admitted += f64::from(u8::from(ask(&door, 0, Class::NewCall, now).is_ok()));
        }
        let served = lasting.as_secs_f64() * rate;
        prop_assert!(admitted <= served + 1.0 && admitted >= 0.9 * served - 2.0, "{admitted} of {served} came in");
    }

    /// Who asks changes nothing: the same children at the same moments, by one guild, by a few or each by its own,
    /// as calls or as streams: as many come in.
    #[test]
    fn r08_the_same_children_are_admitted_whichever_guilds_ask(
        asks in prop::collection::vec((0usize..1_000, any::<bool>(), 0u64..60), 1..400),
        rate in 1.0..200.0f64, burst in 1u32..50, few in 2usize..20,
    ) {
        let admitted = |guild: &dyn Fn(usize) -> usize| {
            let mut now = Instant::now();
            let door = Admission::new(settings(rate, burst), now);
            let mut come_in = |(who, stream, gap_ms): &(usize, bool, u64)| {
                now += MS(*gap_ms);
                ask(&door, guild(*who), if *stream { Class::Stream } else { Class::NewCall }, now).is_ok()
            };
            asks.iter().map(&mut come_in).collect::<Vec<bool>>()
        };
        let one = admitted(&|_| 0);
        prop_assert!(one[0], "the first finds a full bucket");
        prop_assert_eq!(&one, &admitted(&|who| who));
        prop_assert_eq!(&one, &admitted(&|who| who % few));
    }
}

#[test]
fn r10_lag_closes_one_class_after_another_and_joins_keep_a_chance() {
    let rules = rules(1e6);
    let mut now = Instant::now();
    let mut gate = Gate::new(&rules, now);
    let lagging = Signals { lag: S(2), ..Signals::default() };
    let mut closed = Vec::new();
    for _ in 0..40 {
        now += S(2);
        gate.tick(&lagging, &rules, now);
        for class in Class::ALL {
            if gate.chance(class) < 0.1 && !closed.contains(&class) {
                closed.push(class);
            }
        }
    }
    assert_eq!(closed, [Class::Sweep, Class::Stream, Class::NewCall, Class::Join]);
    assert!(gate.admit(Class::Join, &Waiting::default(), now, || 0.05).is_ok(), "nothing starves for ever");
    assert_eq!(gate.admit(Class::Join, &Waiting::default(), now, || 0.5), Err(Reason::Lag));
    assert!(!gate.is_open_to_joins());
    for _ in 0..40 {
        now += MS(100);
        gate.tick(&Signals::default(), &rules, now);
    }
    assert!(Class::ALL.iter().all(|class| gate.chance(*class) >= 1.0), "4 s later everything is open");
}

#[test]
fn r04_memory_sheds_new_work_first_and_by_chance_lets_nothing_in() {
    let rules = rules(1e6);
    let now = Instant::now();
    let shed_at = |memory| {
        let mut gate = Gate::new(&rules, now);
        gate.tick(&Signals { memory, ..Signals::default() }, &rules, now);
        let shed =
            |class: &Class| (0..9).all(|_| gate.admit(*class, &Waiting::default(), now, || 0.0) == Err(Reason::Memory));
        Class::ALL.into_iter().filter(shed).collect::<Vec<_>>()
    };
    assert_eq!(shed_at(0.89), []);
    assert_eq!(shed_at(0.91), [Class::Stream, Class::Sweep]);
    assert_eq!(shed_at(0.96), [Class::NewCall, Class::Stream, Class::Sweep]);
    assert_eq!(shed_at(5.0), [Class::Join, Class::NewCall, Class::Stream, Class::Sweep]);
}

/// Callers by the second in which they come back: those who are told whole seconds, and those who are told
/// milliseconds.
fn back(slots: &mut Slots, now: Instant, callers: u32, rate: f64, start: Instant) -> [BTreeMap<u64, u32>; 2] {
    let mut seconds = [BTreeMap::new(), BTreeMap::new()];
    for n in 0..callers {
        let wait = slots.take(now, rate, S(4), now, f64::from(n % 97) / 97.0);
        let whole = S(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
        for (by_second, wait) in seconds.iter_mut().zip([whole, wait]) {
            *by_second.entry((now + wait - start).as_secs()).or_default() += 1;
        }
    }
    seconds
}

/// A second without a caller counts as well, from the first that has one to the last.
fn assert_flat(by_second: &BTreeMap<u64, u32>) {
    let (first, last) = by_second.keys().next().zip(by_second.keys().next_back()).expect("some");
    let mean = f64::from(by_second.values().sum::<u32>()) / (last - first + 1) as f64;
    let max = f64::from(*by_second.values().max().expect("some"));
    assert!(max <= 1.5 * mean, "max {max} over mean {mean}: {by_second:?}");
}

#[test]
fn r10_no_second_gets_more_than_its_share_of_a_crowd_that_comes_back() {
    let start = Instant::now();
    for (callers, rate, phase_ms) in [(40, 5_000.0, 0), (3_000, 100.0, 300), (100_000, 100.0, 700), (9_000, 1_000.0, 1)]
    {
        let mut slots = Slots::new(start);
        let now = start + MS(phase_ms);
        for by_second in back(&mut slots, now, callers, rate, start) {
            assert_flat(&by_second);
        }
        assert_eq!(slots.out(), u64::from(callers));
    }
}

#[test]
fn r10_callers_that_are_turned_away_for_a_minute_come_back_flat() {
    let start = Instant::now();
    let mut slots = Slots::new(start);
    let mut all = [BTreeMap::<u64, u32>::new(), BTreeMap::new()];
    for step in 0..600 {
        for (all, now) in all.iter_mut().zip(back(&mut slots, start + MS(step * 100), 90, 100.0, start)) {
            now.into_iter().for_each(|(second, n)| *all.entry(second).or_default() += n);
        }
    }
    // Whole seconds alone would hide it if every other one were left out: they are rounded up from anywhere in a second.
    all.iter().for_each(assert_flat);
}

/// The same at the door itself, for a crowd that comes ten times as fast as it is served, of many guilds and classes.
#[test]
fn r10_those_turned_away_at_the_door_come_back_flat() {
    let start = Instant::now();
    let door = Admission::new(settings(100.0, 10), start);
    let mut by_second = BTreeMap::<u64, u32>::new();
    let mut rng = StdRng::seed_from_u64(10);
    for n in 0..30_000 {
        let now = start + MS(n as u64);
        let class = if n % 5 == 0 { Class::Stream } else { Class::NewCall };
        let Err(denied) = door.admit(&guild(n % 50), class, now, || rng.random()) else { continue };
        assert!(denied.retry_after > Duration::ZERO && denied.retry_after <= S(31), "{denied:?}");
        *by_second.entry((now + denied.retry_after - start).as_secs()).or_default() += 1;
    }
    // Of the first seconds and of the last some were promised before and after it was looked at.
    let whole = by_second.range(5..30).map(|(second, n)| (*second, *n)).collect();
    assert_flat(&whole);
}

#[test]
fn r20_the_throttle_shuts_at_once_and_opens_in_steps() {
    let t = Instant::now();
    let full = settings(100.0, 10);
    let door = Admission::new(full, t);
    assert!(door.is_calm());
    door.set(Settings { throttle: 0.0, ..full }, t);
    assert!(!door.is_calm());
    assert_eq!(ask(&door, 0, Class::Join, t).expect_err("shut").reason, Reason::Throttled);
    assert_eq!(ask(&door, 0, Class::NewCall, t).expect_err("shut").reason, Reason::Throttled);
    let mut rates = Vec::new();
    for s in 1..=12 {
        for tenth in 0..10 {
            door.set(full, t + S(s) + MS(tenth * 100));
        }
        rates.push(door.view().new_calls_per_s.round() as u64);
    }
    assert_eq!(rates, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100, 100]);
    assert!(door.is_calm());
}

#[test]
fn r20_a_block_of_a_guild_or_a_class_holds_until_it_is_lifted() {
    let t = Instant::now();
    let full = settings(100.0, 100);
    let door = Admission::new(full, t);
    assert!(door.blocks.add(Block { guild: guild(1), by: "ops".to_owned(), reason: None, at: 0 }));
    assert!(!door.is_calm(), "joins have to ask now");
    for class in [Class::Join, Class::NewCall, Class::Stream] {
        assert_eq!(ask(&door, 1, class, t).expect_err("blocked").reason, Reason::Blocked);
        assert_eq!(ask(&door, 2, class, t), Ok(()));
    }
    assert!(door.blocks.remove(&guild(1)) && !door.blocks.remove(&guild(1)));
    assert_eq!(ask(&door, 1, Class::Join, t), Ok(()));
    door.set(Settings { blocked: [false, false, true], ..full }, t);
    assert!(door.is_calm());
    assert_eq!(ask(&door, 1, Class::Stream, t).expect_err("blocked").reason, Reason::Blocked);
    assert_eq!(ask(&door, 1, Class::NewCall, t), Ok(()));
    assert_eq!(door.sheds.get(Class::Stream, Reason::Blocked), 2);
    assert_eq!(door.sheds.view().iter().map(|shed| shed.count).sum::<u64>(), 4);
}

#[test]
fn i09_blocks_have_a_bound() {
    let blocks = Blocks::default();
    let block = |n: usize| Block { guild: guild(n), by: String::new(), reason: None, at: 0 };
    assert!((0..BLOCKS_MAX).all(|n| blocks.add(block(n))));
    assert!(!blocks.add(block(BLOCKS_MAX)));
    assert!(blocks.add(block(7)), "the same again takes no room");
    assert_eq!(blocks.list().len(), BLOCKS_MAX);
}
