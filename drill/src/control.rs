//! The control ports of the mock SFUs: break, heal, count.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sfu_api::RoomState;

use crate::error::{Error, chain};
use crate::plan::{Budgets, Fault};

/// A control port is on the same machine and answers at once.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// An SFU as its mock shows it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) region: String,
    pub(crate) url: String,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) boot_id: String,
    #[serde(default)]
    pub(crate) faults: Vec<Value>,
}

/// Creations over budget at one mock, by level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overdrawn {
    /// Beyond the budget of their SFU.
    pub sfu: u64,
    /// Beyond the budget of their region.
    pub region: u64,
    /// Beyond the overall budget.
    pub overall: u64,
}

/// What a mock counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MockStats {
    /// Rooms created.
    pub creates: u64,
    /// Rooms ended.
    pub ends: u64,
    /// Requests refused by a fault.
    pub refused: u64,
    /// Requests refused by a fence.
    pub fenced: u64,
    /// Sessions attached.
    pub attaches: u64,
    /// Creations over budget.
    pub overdrawn: Overdrawn,
}

#[derive(Deserialize)]
struct Nodes {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Hit {
    nodes: Vec<String>,
}

#[derive(Deserialize)]
struct Rooms {
    rooms: Vec<RoomState>,
}

/// One control port.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    url: String,
    client: reqwest::Client,
}

// === impl Overdrawn ===

impl Overdrawn {
    /// All levels together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.sfu + self.region + self.overall
    }
}

// === impl Control ===

impl Control {
    pub(crate) fn new(url: &str, client: reqwest::Client) -> Self {
        Self { url: url.to_owned(), client }
    }

    async fn ask<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, Error> {
        let failed = |reason: String| Error::control(&self.url, reason);
        let response = request.timeout(ANSWER_MAX).send().await.map_err(|e| failed(chain(&e)))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|e| failed(chain(&e)))?;
        if !status.is_success() {
            return Err(failed(format!("{status}: {}", String::from_utf8_lossy(&body))));
        }
        let body = if body.is_empty() { b"null".as_slice() } else { &body };
        serde_json::from_slice(body).map_err(|e| failed(format!("unexpected answer: {e}")))
    }

    fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    pub(crate) async fn nodes(&self) -> Result<Vec<Node>, Error> {
        Ok(self.ask::<Nodes>(self.get("/control/nodes")).await?.nodes)
    }

    pub(crate) async fn stats(&self) -> Result<MockStats, Error> {
        self.ask(self.get("/control/stats")).await
    }

    pub(crate) async fn rooms(&self, node: &str) -> Result<Vec<RoomState>, Error> {
        Ok(self.ask::<Rooms>(self.get(&format!("/control/nodes/{node}/rooms"))).await?.rooms)
    }

    /// Breaks nodes; the ids of those hit. `nodes` are the plan's that this mock has.
    pub(crate) async fn fault(&self, fault: &Fault, nodes: &[String], seed: u64) -> Result<Vec<String>, Error> {
        let mut what = json!({ "kind": fault.kind });
        let fields = [
            ("down_ms", json!(fault.down_ms)),
            ("latency_ms", json!(fault.latency_ms)),
            ("status", json!(fault.status)),
            ("rate", json!(fault.rate)),
            ("retry_after_s", json!(fault.retry_after_s)),
            ("what", json!(fault.what)),
        ];
        for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
            what[name] = value;
        }
        let body = match fault.share {
            Some(share) => {
                let mut body = json!({ "share": share, "seed": seed, "fault": what });
                if let Some(zone) = &fault.zone {
                    body["zone"] = json!(zone);
                }
                if let Some(region) = &fault.region {
                    body["region"] = json!(region);
                }
                body
            }
            None => json!({ "nodes": nodes, "fault": what }),
        };
        let request = self.client.post(format!("{}/control/faults", self.url)).json(&body);
        Ok(self.ask::<Hit>(request).await?.nodes)
    }

    pub(crate) async fn heal(&self) -> Result<(), Error> {
        self.ask::<Value>(self.client.delete(format!("{}/control/faults", self.url))).await.map(drop)
    }

    pub(crate) async fn set_jwks(&self, jwks: &Value) -> Result<(), Error> {
        self.ask::<Value>(self.client.put(format!("{}/control/jwks", self.url)).json(jwks)).await.map(drop)
    }

    pub(crate) async fn set_budgets(&self, budgets: &Budgets) -> Result<(), Error> {
        let mut body = json!({ "slack_ms": budgets.slack_ms });
        for (level, budget) in [("sfu", budgets.sfu), ("region", budgets.region), ("overall", budgets.overall)] {
            if let Some(budget) = budget {
                body[level] = json!(budget);
            }
        }
        self.ask::<Value>(self.client.put(format!("{}/control/budgets", self.url)).json(&body)).await.map(drop)
    }
}
