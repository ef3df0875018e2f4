//! A Janus of a few lines: enough of the admin API to script any answer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use syncer::drivers::JanusPlugin;
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

/// A scripted Janus.
pub struct FakeJanus {
    server: MockServer,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    rooms: BTreeMap<String, Room>,
    draining: bool,
    /// Every admin request, in order.
    asked: Vec<Value>,
    /// Answers to give instead of the honest one, by the request's name.
    scripted: BTreeMap<String, VecDeque<ResponseTemplate>>,
}

struct Room {
    request: Value,
    participants: usize,
}

struct Responder(Arc<Mutex<State>>, JanusPlugin);

impl FakeJanus {
    pub async fn start(plugin: JanusPlugin) -> Self {
        let server = MockServer::start().await;
        let state = Arc::new(Mutex::new(State::default()));
        let responder = Responder(Arc::clone(&state), plugin);
        Mock::given(method("POST")).and(path("/admin")).respond_with(responder).mount(&server).await;
        Self { server, state }
    }

    pub fn url(&self) -> String {
        self.server.uri()
    }

    /// Forgets every room, as a restart does.
    pub fn restart(&self) {
        let mut state = self.state.lock().expect("no test panics while holding it");
        state.rooms.clear();
        state.draining = false;
    }

    pub fn add_room(&self, name: &str, participants: usize) {
        let room = Room { request: json!({ "description": "foreign" }), participants };
        self.state.lock().expect("no poison").rooms.insert(name.to_owned(), room);
    }

    pub fn remove_room(&self, name: &str) {
        self.state.lock().expect("no poison").rooms.remove(name);
    }

    pub fn people(&self, name: &str, participants: usize) {
        self.state.lock().expect("no poison").rooms.get_mut(name).expect("the room exists").participants = participants;
    }

    pub fn rooms(&self) -> Vec<String> {
        self.state.lock().expect("no poison").rooms.keys().cloned().collect()
    }

    /// Answers the next request of this name with `answer`.
    pub fn script(&self, request: &str, answer: ResponseTemplate) {
        let mut state = self.state.lock().expect("no poison");
        state.scripted.entry(request.to_owned()).or_default().push_back(answer);
    }

    /// The requests of this name, so far.
    pub fn asked(&self, request: &str) -> Vec<Value> {
        let state = self.state.lock().expect("no poison");
        state.asked.iter().filter(|asked| name(asked) == request).cloned().collect()
    }
}

fn name(asked: &Value) -> &str {
    asked["request"]["request"].as_str().or_else(|| asked["janus"].as_str()).unwrap_or_default()
}

/// An answer in Janus's envelope; `{T}` stands for the transaction.
pub fn enveloped(transaction: &Value, response: &Value) -> Value {
    json!({ "janus": "success", "transaction": transaction, "response": response })
}

impl Respond for Responder {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let asked: Value = serde_json::from_slice(&request.body).expect("the driver sends JSON");
        let mut state = self.0.lock().expect("no poison");
        state.asked.push(asked.clone());
        if let Some(answer) = state.scripted.get_mut(name(&asked)).and_then(VecDeque::pop_front) {
            return answer;
        }
        ResponseTemplate::new(200).set_body_json(state.answer(&asked, self.1))
    }
}

impl State {
    fn answer(&mut self, asked: &Value, plugin: JanusPlugin) -> Value {
        let transaction = &asked["transaction"];
        match name(asked) {
            "info" => {
                json!({ "janus": "server_info", "transaction": transaction, "accepting-new-sessions": !self.draining })
            }
            "accept_new_sessions" => {
                self.draining = asked["accept"] == false;
                json!({ "janus": "success", "transaction": transaction, "accept": !self.draining })
            }
            request => enveloped(transaction, &self.plugin(request, &asked["request"], plugin)),
        }
    }

    fn plugin(&mut self, request: &str, body: &Value, plugin: JanusPlugin) -> Value {
        let p = plugin.as_str();
        let (absent, exists) = match plugin {
            JanusPlugin::Videoroom => (426, 427),
            JanusPlugin::Audiobridge => (485, 486),
        };
        let room = body["room"].as_str().unwrap_or_default().to_owned();
        let known = self.rooms.get(&room);
        match (request, known) {
            ("create", Some(_)) => json!({ p: "event", "error_code": exists, "error": "already exists" }),
            ("create", None) => {
                self.rooms.insert(room.clone(), Room { request: body.clone(), participants: 0 });
                json!({ p: "created", "room": room, "permanent": false })
            }
            ("exists", known) => json!({ p: "success", "room": room, "exists": known.is_some() }),
            ("list", _) => {
                let listed = |(name, room): (&String, &Room)| json!({ "room": name, "description": room.request["description"], "num_participants": room.participants });
                json!({ p: "success", "list": self.rooms.iter().map(listed).collect::<Vec<_>>() })
            }
            ("listparticipants", Some(known)) => {
                let people: Vec<_> = (0..known.participants).map(|n| json!({ "id": n.to_string() })).collect();
                json!({ p: "participants", "room": room, "participants": people })
            }
            ("destroy", Some(_)) => {
                self.rooms.remove(&room);
                json!({ p: "destroyed", "room": room, "permanent": false })
            }
            (_, None) => json!({ p: "event", "error_code": absent, "error": "No such room" }),
            _ => json!({ p: "event", "error_code": 423, "error": "Unknown request" }),
        }
    }
}
