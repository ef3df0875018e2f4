//! A fleet small enough to misbehave on purpose: two syncers' worth of HTTP over one state, and a
//! control port whose SFUs exist in name only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, patch, post, put};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// SFUs of the fake fleet.
pub const NODES: usize = 5;
/// Answers between the bulk reader and the client.
const ANSWERS_BUFFERED: usize = 64;

#[derive(Clone, Debug)]
pub struct Call {
    pub node: Option<usize>,
    pub n: u64,
    /// Sessions by gateway.
    pub sessions: BTreeMap<String, Vec<String>>,
}

/// One announcement: its position is its cursor.
#[derive(Clone, Debug)]
struct News {
    guild: String,
    call: String,
    n: u64,
    phase: u8,
    node: Option<usize>,
}

/// How the fleet misbehaves.
#[derive(Debug, Default)]
pub struct Whims {
    /// Join answers to refuse with 429 before the first is accepted.
    pub throttle: AtomicU64,
    /// Events of a stream after which it is closed; 0 never.
    pub cut_watch_after: AtomicU64,
    /// Refuse the next resume with 410.
    pub lose_cursors: AtomicU64,
    /// Announce this many placements on a second endpoint at the same epoch.
    pub lie_about_endpoints: AtomicU64,
}

#[derive(Debug, Default)]
pub struct Fleet {
    pub calls: Mutex<HashMap<(String, String), Call>>,
    news: Mutex<Vec<News>>,
    pub down: Mutex<HashSet<usize>>,
    pub whims: Whims,
    /// `Last-Event-ID` of every watch, in order.
    pub resumed_from: Mutex<Vec<Option<String>>>,
    /// Time of each session's refusals and of its accepted join.
    pub refused_at: Mutex<HashMap<String, Instant>>,
    pub too_early: AtomicU64,
    pub levers: Mutex<BTreeMap<String, Value>>,
    pub lever_changes: Mutex<Vec<BTreeMap<String, Value>>>,
    pub heals: AtomicU64,
    pub gateways: Mutex<HashSet<String>>,
    pub leaves: AtomicU64,
    pub puts: AtomicU64,
    pub lines: AtomicU64,
    changed: watch::Sender<u64>,
    tracker: TaskTracker,
}

/// What a throttled session is told to wait.
pub const RETRY_AFTER: Duration = Duration::from_millis(300);

fn endpoint(node: usize, guild: &str, call: &str) -> String {
    format!("https://127.9.0.{node}:1/media/{guild}.{call}")
}

fn take(whim: &AtomicU64) -> bool {
    whim.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn gateway(headers: &HeaderMap) -> String {
    let value = headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or("");
    value.trim_start_matches("Bearer ").to_owned()
}

fn epoch(n: u64) -> Value {
    json!({"term": {"generation": 1, "revision": 1}, "n": n})
}

// === impl Fleet ===

impl Fleet {
    fn up(&self) -> Vec<usize> {
        let down = self.down.lock();
        (0..NODES).filter(|node| !down.contains(node)).collect()
    }

    /// Joins a session; the answer's status and body.
    fn join(&self, gateway: &str, guild: &str, call: &str, session: &str) -> (u16, Value) {
        let now = Instant::now();
        if let Some(refused) = self.refused_at.lock().remove(session) {
            // The client's clock starts when it hears of the refusal, later than ours.
            if now < refused + RETRY_AFTER {
                self.too_early.fetch_add(1, Ordering::SeqCst);
            }
        } else if take(&self.whims.throttle) {
            self.refused_at.lock().insert(session.to_owned(), now);
            return (429, json!({"error_code": "limited", "message": "later", "retry_after_ms": 300}));
        }
        let key = (guild.to_owned(), call.to_owned());
        let mut calls = self.calls.lock();
        let fresh = !calls.contains_key(&key);
        let entry = calls.entry(key).or_insert_with(|| Call { node: None, n: 0, sessions: BTreeMap::new() });
        let sessions = entry.sessions.entry(gateway.to_owned()).or_default();
        if !sessions.iter().any(|s| s == session) {
            sessions.push(session.to_owned());
        }
        if fresh {
            let up = self.up();
            entry.n = 1;
            entry.node = Some(up[call.len() % up.len()]);
            let news = News { guild: guild.into(), call: call.into(), n: 1, phase: 1, node: entry.node };
            drop(calls);
            self.announce(news);
            // As a real syncer: not placed yet when the first join is answered.
            return (200, json!({"epoch": null, "phase": null, "endpoint": null, "token": null, "durable": false}));
        }
        let url = entry.node.map(|node| endpoint(node, guild, call));
        let phase = if url.is_some() { 1 } else { 2 };
        (200, json!({"epoch": epoch(entry.n), "phase": phase, "endpoint": url, "token": "t", "durable": false}))
    }

    fn leave(&self, gateway: &str, guild: &str, call: &str, session: &str) {
        self.leaves.fetch_add(1, Ordering::SeqCst);
        let key = (guild.to_owned(), call.to_owned());
        if let Some(call) = self.calls.lock().get_mut(&key)
            && let Some(sessions) = call.sessions.get_mut(gateway)
        {
            sessions.retain(|s| s != session);
        }
    }

    fn announce(&self, news: News) {
        self.news.lock().push(news);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Nodes die; what was on them is lost, then placed elsewhere.
    fn kill(&self, nodes: &[usize]) {
        self.down.lock().extend(nodes);
        let up = self.up();
        let lost: Vec<_> = {
            let calls = self.calls.lock();
            let on = |call: &Call| call.node.is_some_and(|node| nodes.contains(&node));
            calls.iter().filter(|(_, call)| on(call)).map(|(key, call)| (key.clone(), call.n)).collect()
        };
        for ((guild, call), n) in lost {
            self.announce(News { guild: guild.clone(), call: call.clone(), n, phase: 2, node: None });
            self.place(&guild, &call, up[call.len() % up.len()]);
        }
    }

    /// Puts a call on a node, at the next epoch.
    pub fn place(&self, guild: &str, call: &str, node: usize) {
        let key = (guild.to_owned(), call.to_owned());
        let mut calls = self.calls.lock();
        let Some(entry) = calls.get_mut(&key) else { return };
        entry.node = Some(node);
        entry.n += 1;
        let news = News { guild: guild.into(), call: call.into(), n: entry.n, phase: 1, node: Some(node) };
        drop(calls);
        self.announce(news);
    }

    /// The event at `seq`, as `gateway` sees it.
    fn event(&self, seq: usize, gateway: &str) -> Option<String> {
        let news = self.news.lock()[seq].clone();
        let sessions = {
            let calls = self.calls.lock();
            calls.get(&(news.guild.clone(), news.call.clone()))?.sessions.get(gateway)?.clone()
        };
        let url = news.node.map(|node| endpoint(node, &news.guild, &news.call));
        let credentials: Vec<_> = sessions.iter().map(|s| json!({"session": s, "token": "t"})).collect();
        let mut data = json!({"guild": news.guild, "call": news.call, "epoch": epoch(news.n), "phase": news.phase,
            "endpoint": url, "cause": "test", "credentials": credentials});
        let mut text = format!("event: endpoint\nid: {}\ndata: {data}\n\n", seq + 1);
        if news.phase == 1 && take(&self.whims.lie_about_endpoints) {
            data["endpoint"] = json!(endpoint(99, &news.guild, &news.call));
            text.push_str(&format!("event: endpoint\ndata: {data}\n\n"));
        }
        Some(text)
    }
}

async fn watch_calls(State(fleet): State<Arc<Fleet>>, headers: HeaderMap) -> Response {
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
    fleet.resumed_from.lock().push(last.clone());
    if last.is_some() && take(&fleet.whims.lose_cursors) {
        return (StatusCode::GONE, Json(json!({"error_code": "cursor_too_old"}))).into_response();
    }
    let gateway = gateway(&headers);
    let mut at: usize = last.and_then(|id| id.parse().ok()).unwrap_or_else(|| fleet.news.lock().len());
    let (send, receive) = mpsc::channel::<Result<Bytes, Infallible>>(4);
    let task = Arc::clone(&fleet);
    fleet.tracker.spawn(async move {
        let mut changed = task.changed.subscribe();
        let cut = task.whims.cut_watch_after.load(Ordering::SeqCst);
        let mut sent = 0;
        if send.send(Ok(Bytes::from_static(b": hello\n\n"))).await.is_err() {
            return;
        }
        loop {
            while at < task.news.lock().len() {
                let event = task.event(at, &gateway);
                at += 1;
                let Some(event) = event else { continue };
                if send.send(Ok(Bytes::from(event))).await.is_err() {
                    return;
                }
                sent += 1;
                if cut > 0 && sent >= cut {
                    task.whims.cut_watch_after.store(0, Ordering::SeqCst);
                    return;
                }
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = send.closed() => return,
            }
        }
    });
    let body = stream::unfold(receive, |mut receive| async { Some((receive.recv().await?, receive)) });
    ([("content-type", "text/event-stream")], Body::from_stream(body)).into_response()
}

async fn voice_states(State(fleet): State<Arc<Fleet>>, headers: HeaderMap, body: Body) -> Response {
    let gateway = gateway(&headers);
    let (send, receive) = mpsc::channel::<Result<Bytes, Infallible>>(ANSWERS_BUFFERED);
    let task = Arc::clone(&fleet);
    fleet.tracker.spawn(async move {
        let mut rest = Vec::new();
        let mut chunks = body.into_data_stream();
        while let Some(Ok(chunk)) = chunks.next().await {
            rest.extend_from_slice(&chunk);
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let line: Value = serde_json::from_slice(&line).expect("the drill writes JSON");
                task.lines.fetch_add(1, Ordering::SeqCst);
                let text = |name: &str| line[name].as_str().unwrap_or("").to_owned();
                let (guild, call, session) = (text("guild"), text("call"), text("session"));
                let (status, mut answer) = if line["do"] == "leave" {
                    task.leave(&gateway, &guild, &call, &session);
                    (200, json!({}))
                } else {
                    task.join(&gateway, &guild, &call, &session)
                };
                answer["op"] = line["op"].clone();
                answer["status"] = json!(status);
                if send.send(Ok(Bytes::from(format!("{answer}\n")))).await.is_err() {
                    return;
                }
            }
        }
    });
    let body = stream::unfold(receive, |mut receive| async { Some((receive.recv().await?, receive)) });
    ([("content-type", "application/x-ndjson")], Body::from_stream(body)).into_response()
}

async fn join_one(
    State(fleet): State<Arc<Fleet>>,
    Path((guild, call, session)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    fleet.puts.fetch_add(1, Ordering::SeqCst);
    let (status, answer) = fleet.join(&gateway(&headers), &guild, &call, &session);
    let status = StatusCode::from_u16(status).expect("valid");
    if status == StatusCode::TOO_MANY_REQUESTS {
        return (status, [("retry-after", "0.3")], Json(answer)).into_response();
    }
    (status, Json(answer)).into_response()
}

async fn leave_one(
    State(fleet): State<Arc<Fleet>>,
    Path((guild, call, session)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> StatusCode {
    fleet.leave(&gateway(&headers), &guild, &call, &session);
    StatusCode::NO_CONTENT
}

async fn beat(State(fleet): State<Arc<Fleet>>, Path(id): Path<String>) -> StatusCode {
    fleet.gateways.lock().insert(id);
    StatusCode::NO_CONTENT
}

async fn status(State(fleet): State<Arc<Fleet>>) -> Json<Value> {
    let calls = fleet.calls.lock();
    let attempts: u64 = calls.values().map(|call| call.n).sum();
    Json(json!({"syncer": "fake", "calls": calls.len(), "attempts_total": attempts,
        "first_attempts_total": attempts, "invariant_violations": 0}))
}

async fn levers(State(fleet): State<Arc<Fleet>>) -> Json<Value> {
    let levers = fleet.levers.lock();
    let list: Vec<_> = levers.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    Json(json!({"levers": list}))
}

async fn set_levers(State(fleet): State<Arc<Fleet>>, Json(levers): Json<BTreeMap<String, Value>>) -> Json<Value> {
    fleet.lever_changes.lock().push(levers.clone());
    fleet.levers.lock().extend(levers);
    Json(json!({"levers": []}))
}

async fn nodes(State(fleet): State<Arc<Fleet>>) -> Json<Value> {
    let down = fleet.down.lock();
    let node = |n: usize| {
        let state = if down.contains(&n) { "killed" } else { "up" };
        json!({"id": format!("n{n}"), "region": "a", "url": format!("https://127.9.0.{n}:1"), "state": state,
            "boot_id": "b", "faults": []})
    };
    Json(json!({"nodes": (0..NODES).map(node).collect::<Vec<_>>()}))
}

async fn faults(State(fleet): State<Arc<Fleet>>, Json(body): Json<Value>) -> Json<Value> {
    assert_eq!(body["fault"]["kind"], "kill");
    let hit: Vec<usize> = match body["nodes"].as_array() {
        Some(ids) => (0..NODES).filter(|n| ids.contains(&json!(format!("n{n}")))).collect(),
        None => vec![0],
    };
    // The answer is sent before the calls move: a syncer needs time to notice, too.
    let (task, killed) = (Arc::clone(&fleet), hit.clone());
    fleet.tracker.spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        task.kill(&killed);
    });
    Json(json!({"nodes": hit.iter().map(|n| format!("n{n}")).collect::<Vec<_>>()}))
}

async fn heal(State(fleet): State<Arc<Fleet>>) -> Json<Value> {
    fleet.heals.fetch_add(1, Ordering::SeqCst);
    fleet.down.lock().clear();
    Json(json!({"nodes": []}))
}

async fn rooms(State(fleet): State<Arc<Fleet>>, Path(id): Path<String>) -> Json<Value> {
    let calls = fleet.calls.lock();
    let here = calls.iter().filter(|(_, call)| call.node.is_some_and(|n| format!("n{n}") == id));
    let room = |((guild, call), state): (&(String, String), &Call)| {
        json!({"room": format!("{guild}.{call}"), "slot": 0, "epoch": epoch(state.n), "syncer": "fake",
            "guild": guild, "participants": 0})
    };
    Json(json!({"rooms": here.map(room).collect::<Vec<_>>()}))
}

/// A running server; it stops when dropped.
#[derive(Debug)]
pub struct Served {
    pub url: String,
    stop: CancellationToken,
}

impl Served {
    /// Closes the listener and every connection.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(fleet: &Fleet, router: Router) -> Served {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback binds");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let stop = CancellationToken::new();
    let server = axum::serve(listener, router).into_future();
    fleet.tracker.spawn(stop.clone().run_until_cancelled_owned(server));
    Served { url, stop }
}

/// A syncer of the fleet. Any number can run; they share the state.
pub async fn syncer(fleet: &Arc<Fleet>) -> Served {
    let participant = "/v1/guilds/{guild}/calls/{call}/participants/{session}";
    let router = Router::new()
        .route("/v1/watch", get(watch_calls))
        .route("/v1/voice-states", post(voice_states))
        .route(participant, put(join_one).delete(leave_one))
        .route("/v1/gateways/{id}", put(beat))
        .route("/v1/status", get(status))
        .route("/v1/levers", patch(set_levers).get(levers))
        .with_state(Arc::clone(fleet));
    serve(fleet, router).await
}

/// The control port of the fleet's SFUs.
pub async fn control(fleet: &Arc<Fleet>) -> Served {
    let router = Router::new()
        .route("/control/nodes", get(nodes))
        .route("/control/nodes/{id}/rooms", get(rooms))
        .route("/control/stats", get(|| async { Json(json!({"creates": 1, "overdrawn": {"sfu": 0}})) }))
        .route("/control/faults", post(faults).delete(heal))
        .with_state(Arc::clone(fleet));
    serve(fleet, router).await
}
