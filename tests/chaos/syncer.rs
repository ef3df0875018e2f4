//! One syncer process that can be killed, frozen and started again.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::mock::Mock;
use crate::common::{PATIENCE, Process, client, eventually, free_port};

/// The syncer and a client of it.
#[derive(Debug)]
pub(crate) struct Syncer {
    pub(crate) process: Process,
    args: Vec<String>,
    url: String,
    client: reqwest::Client,
}

// === impl Syncer ===

impl Syncer {
    /// Starts a syncer in front of `mock` and waits until it is ready.
    pub(crate) async fn start(dir: &Path, mock: &Mock, settings: &[&str]) -> Self {
        let (sfus, ca) = mock.files();
        let listen = format!("127.0.0.1:{}", free_port());
        let plain = ["syncer", "--listen", &listen, "--sfus", &sfus, "--sfu-ca", &ca];
        let mut args: Vec<String> = plain.map(str::to_owned).into();
        args.extend(settings.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
        let process = Process::trunkline(dir, "syncer", &args);
        let client = client();
        let syncer = Self { process, args, url: format!("http://{listen}"), client };
        syncer.ready().await;
        syncer
    }

    async fn ready(&self) {
        eventually("the syncer is ready", PATIENCE, || async {
            assert!(self.process.is_running(), "the syncer ended");
            let answer = self.client.get(format!("{}/readyz", self.url)).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// Kills it with SIGKILL and starts it again: it remembers nothing.
    pub(crate) async fn kill_and_restart(&mut self, dir: &Path) {
        self.process.signal("KILL");
        self.process.ended(PATIENCE).await;
        self.process = Process::trunkline(dir, "syncer-again", &self.args);
        self.ready().await;
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}{path}", self.url)).send().await.expect("the syncer answers");
        answer.json().await.expect("JSON")
    }

    pub(crate) async fn text(&self, path: &str) -> String {
        let answer = self.client.get(format!("{}{path}", self.url)).send().await.expect("the syncer answers");
        answer.text().await.expect("text")
    }

    pub(crate) async fn lever(&self, name: &str, value: &Value) {
        let patch = self.client.patch(format!("{}/v1/levers", self.url)).json(&json!({ name: value }));
        let answer = patch.send().await.expect("the syncer answers");
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap_or_default());
    }

    /// One session joins each of these calls; all of them are accepted.
    pub(crate) async fn join(&self, calls: std::ops::Range<usize>) {
        let lines: String = calls
            .clone()
            .map(|c| json!({"op": c.to_string(), "do": "join", "guild": format!("g{}", c % 7), "call": format!("c{c}"), "session": "s"}))
            .map(|line| format!("{line}\n"))
            .collect();
        let post = self.client.post(format!("{}/v1/voice-states", self.url)).bearer_auth("gw");
        let answer = post.header("content-type", "application/x-ndjson").body(lines).send().await.expect("answers");
        let text = answer.text().await.expect("text");
        let results: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(results.len(), calls.len(), "one result a line");
        assert!(results.iter().all(|result| result["status"] == 200), "{text}");
    }

    /// The session in this call connects to the SFU that it is told of.
    pub(crate) async fn connect(&self, call: usize, mock: &Mock) {
        let path = format!("/v1/guilds/g{}/calls/c{call}/participants/s", call % 7);
        let put = self.client.put(format!("{}{path}", self.url)).bearer_auth("gw");
        let answer: Value = put.send().await.expect("answers").json().await.expect("JSON");
        let (endpoint, token) = (answer["endpoint"].as_str(), answer["token"].as_str());
        let (endpoint, token) = endpoint.zip(token).unwrap_or_else(|| panic!("c{call} has no place: {answer}"));
        let media = crate::common::client_that_trusts(&mock.files().1).put(format!("{endpoint}/s")).bearer_auth(token);
        let status = media.send().await.expect("the SFU answers").status();
        assert!(status.is_success(), "{endpoint} said {status}");
    }

    /// Waits until this many calls are placed and none awaits, and returns (call, SFU) of each.
    pub(crate) async fn placed(&self, count: usize) -> Vec<(String, String)> {
        eventually(&format!("{count} calls placed"), PATIENCE, || async {
            let status = self.get("/v1/status").await;
            assert_eq!(status["invariant_violations"], 0, "{status}");
            (status["placed"] == count && status["awaiting"] == 0).then_some(())
        })
        .await;
        self.calls().await
    }

    /// (call, SFU) of every call.
    pub(crate) async fn calls(&self) -> Vec<(String, String)> {
        let answer = self.get("/v1/calls?limit=1000").await;
        let text = |call: &Value, key: &str| call[key].as_str().unwrap_or_default().to_owned();
        let mut calls: Vec<_> =
            answer["calls"].as_array().expect("a list").iter().map(|c| (text(c, "call"), text(c, "sfu"))).collect();
        calls.sort();
        calls
    }

    /// Waits until the verdict of this SFU is one of these.
    pub(crate) async fn believes(&self, sfu: &str, verdicts: &[&str]) {
        eventually(&format!("{sfu} is {verdicts:?}"), PATIENCE, || async {
            let sfus = self.get("/v1/sfus").await;
            let view = sfus["sfus"].as_array()?.iter().find(|view| view["id"] == sfu)?.clone();
            verdicts.iter().any(|verdict| view["verdict"] == *verdict).then_some(())
        })
        .await;
    }
}
