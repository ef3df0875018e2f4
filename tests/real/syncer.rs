//! A syncer process in front of Janus servers, and its API as a gateway and an operator see it.

use std::fmt::Write as _;

use serde_json::Value;
use syncer::drivers::JanusPlugin;
use tempfile::TempDir;

use crate::common::{PATIENCE, Process, eventually, free_port};
use crate::janus::Janus;
use crate::pki::Authority;

/// The gateway that the tests play; in mode `open` the bearer token is the identity.
const GATEWAY: &str = "gw-1";

/// A syncer and a client of it.
#[derive(Debug)]
pub(crate) struct Syncer {
    _process: Process,
    _dir: TempDir,
    http: reqwest::Client,
    url: String,
}

/// A call as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) sfu: String,
    pub(crate) room: String,
    pub(crate) endpoint: String,
}

/// The event stream of a gateway.
#[derive(Debug)]
pub(crate) struct Watch {
    response: reqwest::Response,
    buffer: String,
}

/// One event of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) endpoint: Option<String>,
    pub(crate) phase: u64,
    pub(crate) epoch: Value,
    pub(crate) cause: String,
    credentials: Value,
}

// === impl Syncer ===

impl Syncer {
    /// Starts a syncer whose catalogue is these servers, and waits until it is ready and knows them all.
    pub(crate) async fn start(authority: &Authority, janus: &[Janus], settings: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut catalogue = String::new();
        for server in janus {
            writeln!(catalogue, "{}", server.entry(JanusPlugin::Audiobridge)).expect("a string");
        }
        let (sfus, ca) = (dir.path().join("sfus.toml"), dir.path().join("ca.pem"));
        std::fs::write(&sfus, catalogue).expect("a file");
        std::fs::write(&ca, authority.pem()).expect("a file");
        let address = format!("127.0.0.1:{}", free_port());
        let (sfus, ca) = (sfus.display().to_string(), ca.display().to_string());
        let mut arguments = vec!["syncer", "--id", "syncer-1", "--listen", &address, "--sfus", &sfus, "--sfu-ca", &ca];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        let process = Process::trunkline(dir.path(), "syncer", &arguments);
        let http = reqwest::Client::builder().build().expect("a client");
        let syncer = Self { _process: process, _dir: dir, http, url: format!("http://{address}") };
        eventually("the syncer is ready", PATIENCE, || async {
            let answer = syncer.http.get(format!("{}/readyz", syncer.url)).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        eventually("every SFU is healthy", PATIENCE, || async {
            let verdicts = syncer.verdicts().await;
            (verdicts.len() == janus.len() && verdicts.iter().all(|(_, verdict)| verdict == "healthy")).then_some(())
        })
        .await;
        syncer
    }

    async fn get(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(GATEWAY);
        let answer = request.send().await.expect("the syncer answers");
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.json().await.expect("JSON")
    }

    /// A session joins a call; gives where the call is now.
    pub(crate) async fn join(&self, call: &str, session: &str) -> Value {
        let url = format!("{}/v1/guilds/g/calls/{call}/participants/{session}", self.url);
        let request = self.http.put(url).bearer_auth(GATEWAY).json(&serde_json::json!({ "seq": 1, "region": "a" }));
        let answer = request.send().await.expect("the syncer answers");
        assert!(answer.status().is_success(), "join {call}: {}", answer.status());
        answer.json().await.expect("JSON")
    }

    /// Opens the event stream.
    pub(crate) async fn watch(&self) -> Watch {
        let request = self.http.get(format!("{}/v1/watch", self.url)).bearer_auth(GATEWAY);
        let response = request.send().await.expect("the syncer answers");
        assert!(response.status().is_success(), "watch: {}", response.status());
        Watch { response, buffer: String::new() }
    }

    /// All calls, by name.
    pub(crate) async fn calls(&self) -> Vec<Call> {
        let answer = self.get("/v1/calls?limit=1000").await;
        let text = |call: &Value, key: &str| call[key].as_str().unwrap_or_default().to_owned();
        let calls = answer["calls"].as_array().expect("a list").iter();
        let mut calls: Vec<_> = calls
            .map(|call| Call {
                name: text(call, "call"),
                state: text(call, "state"),
                sfu: text(call, "sfu"),
                room: text(call, "room"),
                endpoint: text(call, "endpoint"),
            })
            .collect();
        calls.sort_by(|a, b| a.name.cmp(&b.name));
        calls
    }

    /// Waits until this many calls exist, all of them are placed, and `good` likes where.
    pub(crate) async fn placed(&self, count: usize, good: impl Fn(&[Call]) -> bool) -> Vec<Call> {
        eventually(&format!("{count} calls are placed well"), PATIENCE, || async {
            let calls = self.calls().await;
            let placed = calls.len() == count && calls.iter().all(|call| call.state == "placed");
            (placed && good(&calls)).then_some(calls)
        })
        .await
    }

    /// The SFUs with the syncer's verdict of each.
    pub(crate) async fn verdicts(&self) -> Vec<(String, String)> {
        let answer = self.get("/v1/sfus").await;
        let text = |sfu: &Value, key: &str| sfu[key].as_str().unwrap_or_default().to_owned();
        answer["sfus"].as_array().expect("a list").iter().map(|sfu| (text(sfu, "id"), text(sfu, "verdict"))).collect()
    }

    /// Waits until the syncer knows that an SFU takes no new rooms.
    pub(crate) async fn sees_draining(&self, sfu: &str) {
        eventually(&format!("{sfu} is seen draining"), PATIENCE, || async {
            let answer = self.get("/v1/sfus").await;
            let mut sfus = answer["sfus"].as_array().expect("a list").iter();
            sfus.any(|held| held["id"] == sfu && held["accepting"] == false).then_some(())
        })
        .await;
    }

    /// Waits until the syncer believes this of an SFU.
    pub(crate) async fn believes(&self, sfu: &str, verdict: &str) {
        eventually(&format!("{sfu} is {verdict}"), PATIENCE, || async {
            self.verdicts().await.iter().any(|(id, held)| id == sfu && held == verdict).then_some(())
        })
        .await;
    }

    /// A counter of the status.
    pub(crate) async fn status(&self, counter: &str) -> u64 {
        self.get("/v1/status").await[counter].as_u64().expect("a counter")
    }
}

// === impl Watch ===

impl Watch {
    /// Waits for the next news of an endpoint.
    pub(crate) async fn next(&mut self) -> News {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("news in time")
    }

    /// Waits for the next news that has an endpoint; gives the news before it as well.
    pub(crate) async fn endpoint(&mut self) -> (Vec<News>, News) {
        let mut before = Vec::new();
        loop {
            let news = self.next().await;
            if news.endpoint.is_some() {
                return (before, news);
            }
            before.push(news);
        }
    }

    async fn read(&mut self) -> News {
        loop {
            if let Some(event) = self.event() {
                if let Some(news) = News::parse(&event) {
                    return news;
                }
                continue;
            }
            let chunk = self.response.chunk().await.expect("the stream goes on").expect("the stream goes on");
            self.buffer.push_str(std::str::from_utf8(&chunk).expect("events are ASCII here"));
        }
    }

    /// Takes one whole event out of the buffer.
    fn event(&mut self) -> Option<String> {
        let end = self.buffer.find("\n\n")?;
        let rest = self.buffer.split_off(end + 2);
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}

// === impl News ===

impl News {
    fn parse(event: &str) -> Option<Self> {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if field("event:") != Some("endpoint") {
            return None;
        }
        let data: Value = serde_json::from_str(field("data:")?).expect("data is JSON");
        Some(Self {
            endpoint: data["endpoint"].as_str().map(str::to_owned),
            phase: data["phase"].as_u64().expect("a phase"),
            epoch: data["epoch"].clone(),
            cause: data["cause"].as_str().unwrap_or_default().to_owned(),
            credentials: data["credentials"].clone(),
        })
    }

    /// The credential of a session.
    pub(crate) fn credential(&self, session: &str) -> Option<String> {
        let credentials = self.credentials.as_array()?;
        let of = credentials.iter().find(|credential| credential["session"] == session)?;
        of["token"].as_str().map(str::to_owned)
    }
}
