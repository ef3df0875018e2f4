//! The hub against its contract.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;
use sfu_api::{CallId, Epoch, GatewayId, GuildId, OwnerTerm, SessionId};

use super::cursor::Position;
use super::event::{CREDENTIALS_PER_EVENT_MAX, Item};
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

/// The engine as the hub sees it: what each call's last news was.
#[derive(Default)]
struct Engine(Mutex<BTreeMap<u8, (State, Vec<u8>)>>);

impl Source for Engine {
    fn current(&self, to: &GatewayId) -> Vec<Announcement> {
        let calls = self.0.lock();
        calls
            .iter()
            .filter(|(_, (_, gateways))| gateways.iter().any(|g| gateway(*g) == *to))
            .map(|(call, (state, gateways))| news(*call, *state, gateways, 1))
            .collect()
    }
    fn credential(&self, _: &Announcement, session: &SessionId) -> Option<String> {
        Some(format!("token-of-{session}"))
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
        let watcher = hub.watch(&gateway(n), None).expect("watches");
        Self { gateway: n, watcher, seen: HashMap::new(), last: None }
    }

    fn read(&mut self, source: &Engine, limit: usize) -> Result<(), TestCaseError> {
        for _ in 0..limit {
            let Some(item) = self.watcher.poll(source) else { break };
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
        match self.last.map(|at| hub.watch(&g, Some(at))) {
            Some(Ok(watcher)) => self.watcher = watcher,
            Some(Err(e)) => {
                assert_eq!(e, CursorError::TooOld, "its own cursor is never from the future");
                (self.seen, self.last) = (HashMap::new(), None);
                self.watcher = hub.watch(&g, None).expect("watches");
            }
            None => {
                self.seen.clear();
                self.watcher = hub.watch(&g, None).expect("watches");
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
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0_u8..12).prop_map(Op::News),
        1 => (0_u8..12).prop_map(Op::Late),
        3 => (0_usize..3, 1_usize..9).prop_map(|(c, n)| Op::Read(c, n)),
        1 => (0_usize..3).prop_map(Op::Reconnect),
    ]
}

proptest! {
    /// Whatever is read when, dropped from the log, resumed or overtaken: per watcher and call the
    /// state strictly grows, and the last state always arrives.
    #[test]
    fn i07_states_grow_and_the_last_one_arrives(ops in proptest::collection::vec(op(), 1..200), events_max in 2_usize..8) {
        let (hub, engine) = (Hub::bounded(7, events_max), Engine::default());
        let mut clients = [Client::new(&hub, 0), Client::new(&hub, 0), Client::new(&hub, 1)];
        for op in ops {
            match op {
                Op::News(call) => {
                    let old = engine.0.lock().get(&call).map_or((0, 2), |(s, _)| *s);
                    let state = if old.1 == 1 { (old.0, 2) } else { (old.0 + 1, 1) };
                    let gateways: &[u8] = if call % 3 == 0 { &[0, 1] } else { &[0] };
                    engine.0.lock().insert(call, (state, gateways.to_vec()));
                    hub.announce(&news(call, state, gateways, 1));
                }
                Op::Late(call) => {
                    // Told again, or overtaken: the hub has to drop it while it knows the call.
                    let known = engine.0.lock().get(&call).cloned();
                    if let Some((state, gateways)) = known {
                        let held = hub.log(&gateway(0)).expect("a log").log.lock().after(0, 100).is_ok();
                        if held {
                            hub.announce(&news(call, (state.0, 1), &gateways, 1));
                        }
                    }
                }
                Op::Read(c, n) => clients[c].read(&engine, n)?,
                Op::Reconnect(c) => clients[c].reconnect(&hub),
            }
        }
        for client in &mut clients {
            client.read(&engine, 10_000)?;
            for (call, (state, gateways)) in engine.0.lock().iter() {
                if gateways.contains(&client.gateway) {
                    prop_assert_eq!(client.seen.get(&format!("c-{call}")), Some(state));
                }
            }
        }
    }
}

#[test]
fn r16_a_late_reader_sees_only_the_last_state_of_a_call() {
    let (hub, engine) = (Hub::new(1), Engine::default());
    let mut watcher = hub.watch(&gateway(0), None).expect("watches");
    assert_eq!(watcher.poll(&engine), None);
    for state in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)] {
        hub.announce(&news(1, state, &[0], 1));
    }
    let Some(Item::Endpoint { data, .. }) = watcher.poll(&engine) else { panic!("no event") };
    assert!(data.contains("\"n\":3") && data.contains("token-of-s-0-0"), "{data}");
    assert_eq!(watcher.poll(&engine), None);
    hub.announce(&news(1, (2, 1), &[0], 1));
    assert_eq!(watcher.poll(&engine), None, "overtaken news is dropped");
}

#[test]
fn r16_a_null_carries_no_credentials_and_others_see_nothing() {
    let (hub, engine) = (Hub::new(1), Engine::default());
    let mut mine = hub.watch(&gateway(0), None).expect("watches");
    let mut others = hub.watch(&gateway(1), None).expect("watches");
    assert_eq!((mine.poll(&engine), others.poll(&engine)), (None, None), "nothing to tell yet");
    hub.announce(&news(1, (1, 2), &[0], 3));
    let Some(Item::Endpoint { data, .. }) = mine.poll(&engine) else { panic!("no event") };
    assert!(data.contains("\"endpoint\":null") && data.contains("\"credentials\":[]"), "{data}");
    assert_eq!(others.poll(&engine), None, "a gateway sees only its own sessions' events");
}

#[test]
fn large_calls_come_in_parts_and_only_the_last_moves_the_cursor() {
    let (hub, engine) = (Hub::new(1), Engine::default());
    let mut watcher = hub.watch(&gateway(0), None).expect("watches");
    assert_eq!(watcher.poll(&engine), None);
    hub.announce(&news(1, (1, 1), &[0], 2 * CREDENTIALS_PER_EVENT_MAX + 1));
    let parts: Vec<_> = std::iter::from_fn(|| watcher.poll(&engine)).collect();
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
    let (hub, engine) = (Hub::bounded(1, 2), Engine::default());
    let at = hub.watch(&gateway(0), None).expect("watches").now();
    let future = Position { seq: 10, ..at };
    assert_eq!(hub.watch(&gateway(0), Some(future)).err(), Some(CursorError::Invalid));
    for call in 0..5 {
        hub.announce(&news(call, (1, 1), &[0], 1));
    }
    assert_eq!(hub.watch(&gateway(0), Some(at)).err(), Some(CursorError::TooOld));
    let restarted = Position { boot: 9, seq: 1 };
    let mut watcher = hub.watch(&gateway(0), Some(restarted)).expect("watches");
    assert_eq!(watcher.poll(&engine), Some(Item::Resync { reason: "syncer_restarted" }));
}

#[test]
fn i09_logs_are_bounded_in_events_and_gateways() {
    let hub = Hub::bounded(1, 3);
    for call in 0..20 {
        hub.announce(&news(call, (1, 1), &[0], 1));
    }
    assert!(hub.log(&gateway(0)).expect("a log").log.lock().after(17, 100).expect("held").len() <= 3);
    for n in 0..=GATEWAYS_MAX {
        let mut a = news(1, (1, 1), &[0], 1);
        a.sessions[0].0 = GatewayId::new(format!("many-{n}")).expect("an id");
        hub.announce(&a);
    }
    assert!(hub.logs.read().len() <= GATEWAYS_MAX);
    assert!(hub.metrics.logs_dropped.get() > 0);
}
