//! A Janus of a few lines: enough of the admin API to script any answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
    /// What is answered wrongly every time: the request's name, and how.
    lie: Option<(&'static str, Lie)>,
}

/// How to answer wrongly. Each repeats the secrets of the request where something of the server's own should be.
#[derive(Clone, Copy, Debug)]
pub enum Lie {
    /// As an error of the core.
    Core,
    /// As an error of the plugin.
    Plugin,
    /// As what the plugin did.
    Done,
    /// As the transaction.
    Transaction,
    /// As another kind of text.
    Text,
    /// As the body of an HTTP error.
    Status,
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

    /// Somebody comes and stays; false when they are turned away.
    pub fn enter(&self, name: &str) -> bool {
        let mut state = self.state.lock().expect("no poison");
        let accepts = !state.draining;
        let room = state.rooms.get_mut(name).expect("the room exists");
        room.participants += usize::from(accepts);
        accepts
    }

    pub fn rooms(&self) -> Vec<String> {
        self.state.lock().expect("no poison").rooms.keys().cloned().collect()
    }

    /// Answers the next request of this name with `answer`.
    pub fn script(&self, request: &str, answer: ResponseTemplate) {
        let mut state = self.state.lock().expect("no poison");
        state.scripted.entry(request.to_owned()).or_default().push_back(answer);
    }

    /// Answers every request of this name wrongly from now on, and all others as is right.
    pub fn lie(&self, request: &'static str, how: Lie) {
        self.state.lock().expect("no poison").lie = Some((request, how));
    }

    /// Answers all requests as is right.
    pub fn be_honest(&self) {
        self.state.lock().expect("no poison").lie = None;
    }

    /// Every secret it was sent: its own, and those of rooms.
    pub fn secrets(&self) -> BTreeSet<String> {
        self.state.lock().expect("no poison").asked.iter().flat_map(secrets).collect()
    }

    /// The requests of this name, so far.
    pub fn asked(&self, request: &str) -> Vec<Value> {
        let state = self.state.lock().expect("no poison");
        state.asked.iter().filter(|asked| name(asked) == request).cloned().collect()
    }
}

/// What a request holds that nobody else should see.
fn secrets(asked: &Value) -> Vec<String> {
    let request = &asked["request"];
    let all = [&request["pin"], &request["secret"], &request["admin_key"], &asked["admin_secret"]];
    all.into_iter().filter_map(Value::as_str).map(str::to_owned).collect()
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
        if let Some((_, how)) = state.lie.filter(|(about, _)| *about == name(&asked)) {
            return how.answer(&asked, self.1);
        }
        ResponseTemplate::new(200).set_body_json(state.answer(&asked, self.1))
    }
}

impl Lie {
    pub const ALL: [Self; 6] = [Self::Core, Self::Plugin, Self::Done, Self::Transaction, Self::Text, Self::Status];

    fn answer(self, asked: &Value, plugin: JanusPlugin) -> ResponseTemplate {
        let (p, transaction, told) = (plugin.as_str(), &asked["transaction"], secrets(asked).join(" "));
        let json = match self {
            Self::Text => return ResponseTemplate::new(200).set_body_string(told),
            Self::Status => return ResponseTemplate::new(500).set_body_string(told),
            Self::Core => json!({ "janus": "error", "error": { "code": 403, "reason": told } }),
            Self::Plugin => enveloped(transaction, &json!({ p: "event", "error_code": 499, "error": told })),
            Self::Done => enveloped(transaction, &json!({ p: told })),
            Self::Transaction => enveloped(&json!(told), &json!({ p: "success" })),
        };
        ResponseTemplate::new(200).set_body_json(json)
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
