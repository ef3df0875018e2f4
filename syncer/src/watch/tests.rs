//! The hub against its contract.

mod levers;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;
use rate_limit::{Lever, Levers};
use sfu_api::{CallId, Epoch, GatewayId, GuildId, OwnerTerm, SessionId};

use super::cursor::Position;
use super::event::{CREDENTIALS_PER_EVENT_MAX, Item};
use super::watcher::STEP_COST_MAX;
use super::*;
use crate::state::Cause;

type State = (u64, u8);

fn gateway(n: u8) -> GatewayId {
    GatewayId::new(format!("gw-{n}")).expect("an id")
}

fn news(call: u8, (n, phase): State, gateways: &[u8], sessions: usize) -> Announcement {
    let sessions = |g: u8| (0..sessions).map(|s| SessionId::new(format!("s-{g}-{s}")).expect("an id")).collect();
    Announcement {
        guild: GuildId::new("g").expect("an id"),
        call: CallId::new(format!("c-{call}")).expect("an id"),
        epoch: Epoch { term: OwnerTerm { generation: 1, revision: 1 }, n },
        phase,
        endpoint: (phase == 1).then(|| Arc::from("https://sfu/media/r")),
        cause: Cause::Placed,
        place: None,
        sessions: gateways.iter().map(|g| (gateway(*g), sessions(*g))).collect(),
    }
}

fn watch(hub: &Arc<Hub>, n: u8, from: Option<Position>) -> Result<Watcher, CursorError> {
    hub.watch(&gateway(n), from, Instant::now())
}

fn poll(watcher: &mut Watcher, engine: &Engine) -> Option<Item> {
    watcher.poll(engine, Instant::now())
}

const RESUME_WINDOW: Duration = Duration::from_secs(120);

fn bounds(per_gateway: usize, all: usize) -> WatchLevers {
    WatchLevers {
        resume_window: Lever::fixed(RESUME_WINDOW),
        events_per_gateway_max: Lever::fixed(per_gateway as u64),
        events_max: Lever::fixed(all as u64),
    }
}

fn hub(boot: u64) -> Arc<Hub> {
    Hub::new(boot, WatchLevers::register(&Levers::new()))
}

/// How much the logs really hold.
fn counted(hub: &Hub) -> usize {
    hub.all_logs().iter().map(|(_, log)| log.log.lock().len()).sum()
}

/// What a call's last news was, its gateways, and how many sessions each has.
type Now = (State, Vec<u8>, usize);

/// The engine as the hub sees it.
#[derive(Default)]
struct Engine(Mutex<BTreeMap<u8, Now>>);

impl Engine {
    /// A call changes; returns its news.
    fn change(&self, call: u8, state: State, gateways: &[u8], sessions: usize) -> Announcement {
        self.0.lock().insert(call, (state, gateways.to_vec(), sessions));
        news(call, state, gateways, sessions)
    }
}

impl Source for Engine {
    /// Pages of up to three of its calls, some of them empty.
    fn current(&self, to: &GatewayId, at: NewsCursor) -> (Vec<Announcement>, Option<NewsCursor>) {
        let calls = self.0.lock();
        let page = calls.range(u8::try_from(at.shard).expect("small")..).take(3);
        let next = page.clone().last().map(|(call, _)| NewsCursor { shard: usize::from(*call) + 1, after: None });
        let news = page
            .filter(|(_, (_, gateways, _))| gateways.iter().any(|g| gateway(*g) == *to))
            .map(|(call, (state, gateways, sessions))| news(*call, *state, gateways, *sessions));
        (news.collect(), next)
    }
    fn call(&self, to: &GatewayId, _: &GuildId, call: &CallId) -> Option<Announcement> {
        let call = call.as_str().strip_prefix("c-")?.parse().ok()?;
        let (state, gateways, sessions) = self.0.lock().get(&call).cloned()?;
        gateways.iter().any(|g| gateway(*g) == *to).then(|| news(call, state, &gateways, sessions))
    }
    fn credential(&self, _: &Announcement, session: &SessionId) -> Option<drivers::Credential> {
        Some(drivers::Credential::new(format!("token-of-{session}")))
    }
}

/// What a gateway does with a watch: reads it, remembers states, obeys `resync`.
struct Client {
    gateway: u8,
    watcher: Watcher,
    seen: HashMap<String, State>,
    last: Option<Position>,
}

impl Client {
    fn new(hub: &Arc<Hub>, n: u8) -> Self {
        let watcher = hub.watch(&gateway(n), None, Instant::now()).expect("watches");
        Self { gateway: n, watcher, seen: HashMap::new(), last: None }
    }

    fn read(&mut self, source: &Engine, limit: usize) -> Result<(), TestCaseError> {
        for _ in 0..limit {
            let Some(item) = self.watcher.poll(source, Instant::now()) else { break };
            match item {
                Item::Resync { .. } => self.seen.clear(),
                Item::Endpoint { data, seq } => {
                    let event: serde_json::Value = serde_json::from_str(&data).expect("JSON");
                    let state = (
                        event["epoch"]["n"].as_u64().expect("n"),
                        u8::try_from(event["phase"].as_u64().expect("phase")).expect("small"),
                    );
                    let call = event["call"].as_str().expect("a call").to_owned();
                    let before = self.seen.insert(call.clone(), state);
                    prop_assert!(before.is_none_or(|b| b < state), "{call}: {state:?} after {before:?}");
                    self.last = seq.map(|s| self.watcher.position(s)).or(self.last);
                }
            }
        }
        Ok(())
    }

    /// Reconnects from the last id, as EventSource does.
    fn reconnect(&mut self, hub: &Arc<Hub>) {
        let g = gateway(self.gateway);
        match self.last.map(|at| hub.watch(&g, Some(at), Instant::now())) {
            Some(Ok(watcher)) => self.watcher = watcher,
            Some(Err(e)) => {
                assert_eq!(e, CursorError::TooOld, "its own cursor is never from the future");
                (self.seen, self.last) = (HashMap::new(), None);
                self.watcher = hub.watch(&g, None, Instant::now()).expect("watches");
            }
            None => {
                self.seen.clear();
                self.watcher = hub.watch(&g, None, Instant::now()).expect("watches");
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    News(u8),
    Late(u8),
    Read(usize, usize),
    Reconnect(usize),
    /// Time passes, and old news goes.
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0_u8..12).prop_map(Op::News),
        1 => (0_u8..12).prop_map(Op::Late),
        3 => (0_usize..3, 1_usize..9).prop_map(|(c, n)| Op::Read(c, n)),
        1 => (0_usize..3).prop_map(Op::Reconnect),
        1 => (1_u64..150).prop_map(Op::Pass),
    ]
}

#[derive(Clone, Debug)]
enum LateOp {
    /// A call changes; its news is under way.
    Change(u8),
    /// One of the news under way arrives.
    Arrive(usize),
    Open(usize),
    Read(usize, usize),
}

fn late_op() -> impl Strategy<Value = LateOp> {
    prop_oneof![
        4 => (0_u8..4).prop_map(LateOp::Change),
        4 => any::<usize>().prop_map(LateOp::Arrive),
        1 => (0_usize..2).prop_map(LateOp::Open),
        2 => (0_usize..2, 1_usize..9).prop_map(|(c, n)| LateOp::Read(c, n)),
    ]
}

fn next_state((n, phase): State) -> State {
    if phase == 1 { (n, 2) } else { (n + 1, 1) }
}

proptest! {
    /// Whatever is read when, dropped from the log, resumed or overtaken: per watcher and call the
    /// state strictly grows, and the last state always arrives.
    #[test]
    fn r16_i07_states_grow_and_the_last_one_arrives(
        ops in proptest::collection::vec(op(), 1..200),
        per_gateway in 2_usize..8,
        all in 2_usize..16,
    ) {
        let (hub, engine) = (Hub::new(7, bounds(per_gateway, all)), Engine::default());
        let mut now = Instant::now();
        let mut clients = [Client::new(&hub, 0), Client::new(&hub, 0), Client::new(&hub, 1)];
        for op in ops {
            match op {
                Op::News(call) => {
                    let old = engine.0.lock().get(&call).map_or((0, 2), |(s, _, _)| *s);
                    let state = next_state(old);
                    let gateways: &[u8] = if call % 3 == 0 { &[0, 1] } else { &[0] };
                    hub.take(&engine.change(call, state, gateways, 1), now);
                }
                Op::Late(call) => {
                    // Told again, or overtaken: the hub has to drop it while it knows the call.
                    let known = engine.0.lock().get(&call).cloned();
                    if let Some((state, gateways, _)) = known {
                        let held = hub.log(&gateway(0), Instant::now()).expect("a log").log.lock().after(0, 100).is_ok();
                        if held {
                            hub.take(&news(call, (state.0, 1), &gateways, 1), now);
                        }
                    }
                }
                Op::Read(c, n) => clients[c].read(&engine, n)?,
                Op::Reconnect(c) => clients[c].reconnect(&hub),
                Op::Pass(s) => {
                    now += Duration::from_secs(s);
                    hub.sweep(now);
                }
            }
            prop_assert!(hub.held.load(Ordering::Relaxed) <= all);
            prop_assert_eq!(hub.held.load(Ordering::Relaxed), counted(&hub));
        }
        for client in &mut clients {
            client.read(&engine, 10_000)?;
            for (call, (state, gateways, _)) in engine.0.lock().iter() {
                if gateways.contains(&client.gateway) {
                    prop_assert_eq!(client.seen.get(&format!("c-{call}")), Some(state));
                }
            }
        }
    }
}

proptest! {
    /// News is made under a lock and told after it: a snapshot may be ahead of what is under way,
    /// and two news of one call may arrive in either order.
    #[test]
    fn r16_i07_news_that_a_snapshot_overtook_is_not_told_after_it(ops in proptest::collection::vec(late_op(), 1..120)) {
        let (hub, engine) = (hub(7), Engine::default());
        let mut clients = [Client::new(&hub, 0), Client::new(&hub, 0)];
        let mut under_way = Vec::new();
        for op in ops {
            match op {
                LateOp::Change(call) => {
                    let state = next_state(engine.0.lock().get(&call).map_or((0, 2), |(s, _, _)| *s));
                    under_way.push(engine.change(call, state, &[0], 1));
                }
                LateOp::Arrive(_) if under_way.is_empty() => {}
                LateOp::Arrive(n) => hub.announce(&under_way.swap_remove(n % under_way.len())),
                LateOp::Open(c) => clients[c] = Client::new(&hub, 0),
                LateOp::Read(c, n) => clients[c].read(&engine, n)?,
            }
        }
        under_way.iter().for_each(|n| hub.announce(n));
        for client in &mut clients {
            client.read(&engine, 10_000)?;
            for (call, (state, ..)) in engine.0.lock().iter() {
                prop_assert_eq!(client.seen.get(&format!("c-{call}")), Some(state));
            }
        }
    }
}

#[test]
fn i07_equal_news_after_overtaken_news_is_not_told_again() {
    let (hub, engine) = (hub(1), Engine::default());
    engine.change(1, (2, 1), &[0], 1);
    let mut watcher = watch(&hub, 0, None).expect("watches");
    let Some(Item::Endpoint { data, .. }) = poll(&mut watcher, &engine) else { panic!("no snapshot") };
    assert!(data.contains("\"n\":2"), "{data}");
    for state in [(1, 1), (1, 2), (2, 1)] {
        hub.announce(&news(1, state, &[0], 1));
        assert_eq!(poll(&mut watcher, &engine), None, "{state:?} after (2, 1)");
    }
    hub.announce(&engine.change(1, (2, 2), &[0], 1));
    assert!(poll(&mut watcher, &engine).is_some(), "what is greater is told");
}

#[test]
fn news_is_let_go_after_the_resume_window_and_older_cursors_with_it() {
    let (hub, engine, start) = (hub(1), Engine::default(), Instant::now());
    let before = watch(&hub, 0, None).expect("watches").now();
    hub.take(&engine.change(1, (1, 1), &[0, 1], 1), start);
    hub.take(&engine.change(2, (1, 1), &[0], 1), start + Duration::from_secs(60));
    let mut mine = watch(&hub, 0, Some(before)).expect("all is there");
    let Some(Item::Endpoint { seq: Some(first), .. }) = poll(&mut mine, &engine) else { panic!("news") };
    let middle = mine.position(first);
    assert!(poll(&mut mine, &engine).is_some());
    let mut slow = watch(&hub, 0, Some(middle)).expect("all is there");
    hub.sweep(start + RESUME_WINDOW - Duration::from_millis(1));
    assert_eq!(counted(&hub), 3, "nothing is old yet");

    hub.sweep(start + RESUME_WINDOW);
    assert_eq!((counted(&hub), hub.held.load(Ordering::Relaxed)), (1, 1), "both logs let the first go");
    assert_eq!(watch(&hub, 0, Some(before)).err(), Some(CursorError::TooOld));
    assert!(watch(&hub, 0, Some(middle)).is_ok(), "whoever has seen it goes on");
    assert_eq!(hub.logs.read().len(), 1, "the log of a gateway that is away goes with its last news");

    hub.sweep(start + 10 * RESUME_WINDOW);
    assert_eq!((counted(&hub), hub.logs.read().len()), (0, 1), "a log that is watched stays");
    hub.take(&engine.change(3, (1, 1), &[0], 1), start + 10 * RESUME_WINDOW);
    assert!(matches!(poll(&mut mine, &engine), Some(Item::Endpoint { .. })), "it has seen the others");
    assert_eq!(poll(&mut slow, &engine), Some(Item::Resync { reason: "fell_behind" }), "it has not");
    drop((mine, slow));
    hub.sweep(Instant::now() + 20 * RESUME_WINDOW);
    assert_eq!((hub.logs.read().len(), hub.metrics.held.get()), (0, 0), "and goes when it is not");
}

#[test]
fn i09_all_news_together_is_bounded_and_the_oldest_goes_first() {
    let (hub, now) = (Hub::new(1, bounds(1_000, 640)), Instant::now());
    let quiet = watch(&hub, 0, None).expect("watches").now();
    hub.take(&news(0, (1, 1), &[0], 1), now);
    for n in 0..2_000_u32 {
        let busy = 1 + u8::try_from(n % 7).expect("small");
        let mut one = news(0, (1, 1), &[busy], 1);
        one.call = CallId::new(format!("c-{n}")).expect("an id");
        hub.take(&one, now);
        assert!(hub.held.load(Ordering::Relaxed) <= 640);
    }
    assert_eq!(hub.held.load(Ordering::Relaxed), counted(&hub));
    assert!(counted(&hub) > 500, "no more goes than has to: {} left", counted(&hub));
    assert_eq!(hub.metrics.overflowed.get(), 2_001 - counted(&hub) as u64);
    let oldest = hub.all_logs().iter().filter_map(|(_, l)| l.log.lock().oldest()).min().expect("news");
    assert_eq!(oldest + counted(&hub) as u64, 2_002, "what is left is the newest of all gateways");
    assert_eq!(watch(&hub, 0, Some(quiet)).err(), Some(CursorError::TooOld), "also of a quiet one");
}

#[test]
fn i09_counts_hold_while_logs_come_and_go() {
    let hub = Hub::new(1, bounds(50, 300));
    std::thread::scope(|scope| {
        for t in 0..4_u8 {
            let hub = &hub;
            scope.spawn(move || {
                for n in 0..2_000_u64 {
                    hub.announce(&news(t, (n, 1), &[t, (n % 9) as u8], 1));
                    if n % 50 == 0 {
                        hub.sweep(Instant::now() + 2 * RESUME_WINDOW);
                        let watcher = watch(hub, t, None).expect("watches");
                        assert!(hub.logs.read().contains_key(&gateway(t)), "a watched log stays");
                        drop(watcher);
                    }
                }
            });
        }
    });
    assert_eq!(hub.held.load(Ordering::Relaxed), counted(&hub));
    assert!(counted(&hub) <= 304);
}

/// Counts the credentials it makes.
struct Counting<'a>(&'a Engine, AtomicUsize);

impl Source for Counting<'_> {
    fn current(&self, to: &GatewayId, at: NewsCursor) -> (Vec<Announcement>, Option<NewsCursor>) {
        self.0.current(to, at)
    }
    fn call(&self, to: &GatewayId, guild: &GuildId, call: &CallId) -> Option<Announcement> {
        self.0.call(to, guild, call)
    }
    fn credential(&self, news: &Announcement, session: &SessionId) -> Option<drivers::Credential> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.credential(news, session)
    }
}

#[tokio::test]
async fn r16_a_snapshot_is_rendered_in_bounded_steps_with_a_yield_between() {
    let (hub, engine) = (hub(1), Engine::default());
    engine.0.lock().extend((0..200).map(|call| (call, ((1, 1), vec![0], 1))));
    let source = Counting(&engine, AtomicUsize::new(0));
    let mut watcher = watch(&hub, 0, None).expect("watches");
    let (mut seen, mut made) = (0, 0);
    for turn in 0..200 {
        if turn == 1 {
            // The snapshot was taken in the first turn: this comes by the log.
            hub.announce(&engine.change(251, (1, 1), &[0], 5 * CREDENTIALS_PER_EVENT_MAX));
        }
        let item = futures_util::poll!(std::pin::pin!(watcher.next(&source)));
        let now_made = source.1.load(Ordering::Relaxed);
        let step = now_made - made;
        assert!(step < STEP_COST_MAX + CREDENTIALS_PER_EVENT_MAX, "{step} credentials without a yield");
        made = now_made;
        seen += usize::from(item.is_ready());
        while watcher.rendered().is_some() {
            seen += 1;
            assert_eq!(source.1.load(Ordering::Relaxed), made, "what is rendered costs nothing");
        }
    }
    assert_eq!((seen, made), (205, 200 + 5 * CREDENTIALS_PER_EVENT_MAX));
}

#[test]
fn r16_a_late_reader_sees_only_the_last_state_of_a_call() {
    let (hub, engine) = (hub(1), Engine::default());
    let mut watcher = watch(&hub, 0, None).expect("watches");
    assert_eq!(poll(&mut watcher, &engine), None);
    for state in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)] {
        hub.announce(&engine.change(1, state, &[0], 1));
    }
    let Some(Item::Endpoint { data, .. }) = poll(&mut watcher, &engine) else { panic!("no event") };
    assert!(data.contains("\"n\":3") && data.contains("token-of-s-0-0"), "{data}");
    assert_eq!(poll(&mut watcher, &engine), None);
    hub.announce(&news(1, (2, 1), &[0], 1));
    assert_eq!(poll(&mut watcher, &engine), None, "overtaken news is dropped");
}

#[test]
fn r16_what_changed_again_is_told_as_it_is_and_once() {
    let (hub, engine) = (hub(1), Engine::default());
    let mut watcher = watch(&hub, 0, None).expect("watches");
    assert_eq!(poll(&mut watcher, &engine), None);
    hub.announce(&engine.change(1, (1, 1), &[0], 1));
    let later = engine.change(1, (1, 2), &[0], 1);
    assert_eq!(poll(&mut watcher, &engine), None, "it is so no more, and the news of it is under way");
    hub.announce(&later);
    let Some(Item::Endpoint { data, .. }) = poll(&mut watcher, &engine) else { panic!("no event") };
    assert!(data.contains("\"phase\":2"), "{data}");
    hub.announce(&engine.change(2, (1, 1), &[0], 1));
    engine.change(2, (1, 1), &[1], 1);
    assert_eq!(poll(&mut watcher, &engine), None, "its last session went elsewhere");
}

#[test]
fn r16_a_null_carries_no_credentials_and_others_see_nothing() {
    let (hub, engine) = (hub(1), Engine::default());
    let mut mine = watch(&hub, 0, None).expect("watches");
    let mut others = watch(&hub, 1, None).expect("watches");
    assert_eq!((poll(&mut mine, &engine), poll(&mut others, &engine)), (None, None), "nothing to tell yet");
    hub.announce(&engine.change(1, (1, 2), &[0], 3));
    let Some(Item::Endpoint { data, .. }) = poll(&mut mine, &engine) else { panic!("no event") };
    assert!(data.contains("\"endpoint\":null") && data.contains("\"credentials\":[]"), "{data}");
    assert_eq!(poll(&mut others, &engine), None, "a gateway sees only its own sessions' events");
}

#[test]
fn large_calls_come_in_parts_and_only_the_last_moves_the_cursor() {
    let (hub, engine) = (hub(1), Engine::default());
    let mut watcher = watch(&hub, 0, None).expect("watches");
    assert_eq!(poll(&mut watcher, &engine), None);
    hub.announce(&engine.change(1, (1, 1), &[0], 2 * CREDENTIALS_PER_EVENT_MAX + 1));
    let parts: Vec<_> = std::iter::from_fn(|| poll(&mut watcher, &engine)).collect();
    let seqs: Vec<_> = parts
        .iter()
        .map(|p| match p {
            Item::Endpoint { seq, .. } => *seq,
            Item::Resync { .. } => panic!("resync"),
        })
        .collect();
    assert_eq!(seqs, [None, None, Some(1)]);
}

#[test]
fn cursors_of_the_future_and_of_the_past_are_told_apart() {
    let (hub, engine) = (Hub::new(1, bounds(2, 100)), Engine::default());
    let at = watch(&hub, 0, None).expect("watches").now();
    let future = Position { seq: 10, ..at };
    assert_eq!(watch(&hub, 0, Some(future)).err(), Some(CursorError::Invalid));
    for call in 0..5 {
        hub.announce(&news(call, (1, 1), &[0], 1));
    }
    assert_eq!(watch(&hub, 0, Some(at)).err(), Some(CursorError::TooOld));
    let restarted = Position { boot: 9, seq: 1 };
    let mut watcher = watch(&hub, 0, Some(restarted)).expect("watches");
    assert_eq!(poll(&mut watcher, &engine), Some(Item::Resync { reason: "syncer_restarted" }));
}

#[test]
fn i09_logs_are_bounded_in_events_and_gateways() {
    let hub = Hub::new(1, bounds(3, 100_000));
    for call in 0..20 {
        hub.announce(&news(call, (1, 1), &[0], 1));
    }
    assert!(hub.log(&gateway(0), Instant::now()).expect("a log").log.lock().after(17, 100).expect("held").len() <= 3);
    for n in 0..=GATEWAYS_MAX {
        let mut a = news(1, (1, 1), &[0], 1);
        a.sessions[0].0 = GatewayId::new(format!("many-{n}")).expect("an id");
        hub.announce(&a);
    }
    assert!(hub.logs.read().len() <= GATEWAYS_MAX);
    assert!(hub.metrics.logs_dropped.get() > 0);
}

#[test]
fn a_token_is_in_an_event_and_not_in_what_a_log_would_show_of_it() {
    let credential =
        Credential { session: SessionId::new("s").expect("valid"), token: drivers::Credential::new("tok-5e11".into()) };
    let data = serde_json::to_string(&credential).expect("JSON");
    assert_eq!(data, r#"{"session":"s","token":"tok-5e11"}"#);
    for shown in [format!("{credential:?}"), format!("{:?}", Item::Endpoint { data, seq: Some(7) })] {
        assert!(!shown.contains("tok-5e11"), "{shown}");
    }
}
