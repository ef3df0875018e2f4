//! A mock SFU cluster in a process of its own.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Process;

/// The process and its control port.
#[derive(Debug)]
pub(crate) struct Mock {
    pub(crate) process: Process,
    control: String,
    dir: PathBuf,
    client: reqwest::Client,
}

// === impl Mock ===

impl Mock {
    /// Starts `nodes` SFUs and waits until they are up.
    pub(crate) async fn start(dir: &Path, name: &str, nodes: usize) -> Self {
        let own = dir.join(name);
        let args = ["sfu-mock", "--nodes", &nodes.to_string(), "--name", name, "--dir", &own.display().to_string()];
        let process = Process::trunkline(dir, name, &args);
        let control = super::file(&own.join("control.url")).await.trim().to_owned();
        let client = super::client();
        Self { process, control, dir: own, client }
    }

    /// The catalogue of these SFUs, and the authority that signed their certificates.
    pub(crate) fn files(&self) -> (String, String) {
        let file = |name: &str| self.dir.join(name).display().to_string();
        (file("sfus.toml"), file("ca.pem"))
    }

    /// Breaks some of them.
    pub(crate) async fn fault(&self, fault: &Value) {
        let url = format!("{}/control/faults", self.control);
        let answer = self.client.post(url).json(fault).send().await.expect("the control port answers");
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap_or_default());
    }

    /// Heals all of them.
    pub(crate) async fn heal(&self) {
        let url = format!("{}/control/faults", self.control);
        let answer = self.client.delete(url).send().await.expect("the control port answers");
        assert!(answer.status().is_success(), "{}", answer.status());
    }

    /// What the mock says about itself: `nodes`, `stats`, `nodes/{id}/rooms`.
    pub(crate) async fn says(&self, what: &str) -> Value {
        let url = format!("{}/control/{what}", self.control);
        self.client.get(url).send().await.expect("the control port answers").json().await.expect("JSON")
    }

    /// Every room, as its SFU sees it.
    pub(crate) async fn all_rooms(&self) -> Vec<Value> {
        let nodes = self.says("nodes").await;
        let mut all = Vec::new();
        for node in nodes["nodes"].as_array().expect("a list") {
            let rooms = self.says(&format!("nodes/{}/rooms", node["id"].as_str().expect("an id"))).await;
            all.extend(rooms["rooms"].as_array().expect("a list").iter().cloned());
        }
        all
    }

    /// Rooms on all SFUs together.
    pub(crate) async fn rooms(&self) -> u64 {
        let nodes = self.says("nodes").await;
        nodes["nodes"].as_array().expect("a list").iter().filter_map(|node| node["rooms"].as_u64()).sum()
    }
}
