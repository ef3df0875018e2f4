//! The mock as its users see it: real sockets, real TLS, both HTTP versions.

mod bad_input;
mod contract;
mod control;
mod faults;
mod media;
mod scale;

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use sfu_api::SfuId;
use sfu_mock::{Cluster, ClusterConfig, Fault, NodeView, Target};

/// Longer than anything here takes on the slowest machine; a wait that ends by it is a failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing must happen for it to count as silence.
const SILENCE: Duration = Duration::from_millis(300);

/// A cluster and clients for it.
struct Bench {
    cluster: Cluster,
    h1: Client,
    h2: Client,
    plain: Client,
}

// === impl Bench ===

impl Bench {
    async fn new(nodes: usize) -> Self {
        Self::with(ClusterConfig { nodes, ..ClusterConfig::default() }).await
    }

    async fn with(config: ClusterConfig) -> Self {
        let cluster = Cluster::start(config).await.expect("the cluster starts");
        let (h1, h2) = (client(cluster.ca_pem(), true), client(cluster.ca_pem(), false));
        let plain = Client::builder().no_proxy().build().expect("a client");
        Self { cluster, h1, h2, plain }
    }

    fn node(&self, index: usize) -> NodeView {
        self.cluster.nodes().swap_remove(index)
    }

    fn id(&self, index: usize) -> SfuId {
        self.node(index).id
    }

    async fn fault(&self, index: usize, fault: Fault) {
        let hit = self.cluster.fault(&Target::node(self.id(index)), &fault).await.expect("the fault applies");
        assert_eq!(hit.len(), 1);
    }

    fn request(&self, method: Method, node: usize, path: &str) -> RequestBuilder {
        self.h2.request(method, format!("{}{path}", self.node(node).url))
    }

    async fn send(&self, method: Method, node: usize, path: &str, body: &Value) -> (StatusCode, Value) {
        read(self.request(method, node, path).json(body).send().await.expect("an answer")).await
    }

    async fn get(&self, node: usize, path: &str) -> (StatusCode, Value) {
        read(self.request(Method::GET, node, path).send().await.expect("an answer")).await
    }

    async fn ensure(&self, node: usize, room: &str, body: &Value) -> (StatusCode, Value) {
        self.send(Method::PUT, node, &format!("/v1/rooms/{room}"), body).await
    }

    async fn control(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let request = self.plain.request(method, format!("{}{path}", self.cluster.control_url()));
        let request = body.into_iter().fold(request, |request, body| request.json(&body));
        read(request.send().await.expect("an answer")).await
    }
}

fn client(ca_pem: &str, http1: bool) -> Client {
    // Whichever test comes first installs it; the others find it there.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes()).expect("a certificate");
    let builder = Client::builder().tls_certs_only([ca]).no_proxy().timeout(PATIENCE);
    if http1 { builder.http1_only() } else { builder }.build().expect("a client")
}

async fn read(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let body = response.bytes().await.expect("a whole body");
    if body.is_empty() {
        return (status, Value::Null);
    }
    (status, serde_json::from_slice(&body).expect("JSON"))
}

/// A fence with everything a mutation needs. `revision` is the term, `n` counts under it.
fn fenced(op: &str, revision: u64, n: u64) -> Value {
    let term = json!({"generation": 1, "revision": revision});
    json!({"slot": 7, "owner_term": term, "epoch": {"term": term, "n": n}, "op_id": op, "syncer": "syncer-1"})
}

/// A body that ensures a room.
fn ensure(op: &str, revision: u64, n: u64) -> Value {
    let mut body = fenced(op, revision, n);
    body["guild"] = json!("g");
    body["kind"] = json!("voice");
    body["capacity"] = json!(50);
    body
}

/// The error of a failed request, all of it.
fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
