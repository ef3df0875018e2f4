//! The suite of `docs/drivers.md`, against every driver there is.

#[path = "driver_support/conformance/mod.rs"]
mod conformance;
mod driver_support;

use std::sync::Arc;

use conformance::{Door, Stand, conformance};
use driver_support::fake_janus::{FakeJanus, Lie};
use driver_support::{built, closed_port, epoch, janus, lane, native, silent_server, soon};
use pool::Lane;
use serde_json::json;
use sfu_api::{CallKind, EnsureRoom, Fence, GuildId, OpId, RoomId, SessionId, Slot, SyncerId};
use sfu_mock::{Cluster, ClusterConfig, Fault, Garbage, Target};
use syncer::drivers::{JanusPlugin, SfuDriver};
use syncer::token::Signer;
use wiremock::matchers::any;
use wiremock::{MockServer, Request, ResponseTemplate};

/// The native contract: a mock SFU over TLS.
struct Mock {
    cluster: Cluster,
    lane: Lane,
    /// A server that repeats what it is sent.
    echo: Option<MockServer>,
}

impl Mock {
    async fn start() -> Self {
        let cluster = Cluster::start(ClusterConfig { nodes: 1, ..ClusterConfig::default() }).await.expect("an address");
        let tls = pool::tls::client_config(cluster.ca_pem().as_bytes(), None).expect("a good authority");
        let lane = Lane::builder("sfu").tls(tls).build().expect("good limits");
        Self { cluster, lane, echo: None }
    }

    fn url(&self) -> String {
        self.cluster.nodes()[0].url.clone()
    }

    fn driver_at(&self, url: &str) -> Arc<dyn SfuDriver> {
        let tokens = Arc::new(Signer::generate().expect("randomness"));
        let entry = self.cluster.catalogue_toml().replace("[[sfus]]", "").replace(&self.url(), url);
        built(&self.lane, &tokens, &entry)
    }

    async fn broken(&self, fault: Fault) -> Arc<dyn SfuDriver> {
        let nodes = self.cluster.nodes().into_iter().map(|n| n.id).collect();
        self.cluster.fault(&Target::Nodes(nodes), &fault).await.expect("a valid fault");
        self.driver()
    }

    /// A driver for a server that answers everything with what it was sent.
    async fn repeating(&mut self, answer: fn(&str) -> ResponseTemplate) -> Arc<dyn SfuDriver> {
        let server = MockServer::start().await;
        let repeat = move |request: &Request| {
            let headers = request.headers.values().map(|value| value.to_str().unwrap_or_default());
            let headers = headers.collect::<Vec<_>>().join(" ");
            answer(&format!("{headers} {}", String::from_utf8_lossy(&request.body)))
        };
        wiremock::Mock::given(any()).respond_with(repeat).mount(&server).await;
        let driver = native(&lane(), &server.uri());
        self.echo = Some(server);
        driver
    }

    /// A client of ours, past the driver.
    fn http(&self) -> reqwest::Client {
        let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let ca = reqwest::Certificate::from_pem(self.cluster.ca_pem().as_bytes()).expect("a certificate");
        reqwest::Client::builder().tls_certs_only([ca]).build().expect("a client")
    }
}

/// The contract's own refusal, with `told` in it.
fn refusal(told: &str) -> ResponseTemplate {
    let load = json!({ "calls": 0, "participants": 0, "capacity": 9, "sampled_at": 0 });
    let body = json!({ "request_id": told, "error_code": "internal", "message": told, "boot_id": "b", "load": load });
    ResponseTemplate::new(500).set_body_json(body)
}

impl Stand for Mock {
    fn driver(&self) -> Arc<dyn SfuDriver> {
        self.driver_at(&self.url())
    }

    async fn restart(&mut self) {
        let driver = self.broken(Fault::Restart { down_ms: 0 }).await;
        let patience = soon();
        while driver.probe(true, soon()).await.is_err() {
            assert!(tokio::time::Instant::now() < patience, "it did not come back");
        }
    }

    async fn dead(&mut self) -> Arc<dyn SfuDriver> {
        self.broken(Fault::Kill).await
    }

    async fn hung(&mut self) -> Arc<dyn SfuDriver> {
        self.broken(Fault::Hang).await
    }

    async fn counted(&mut self) -> (Arc<dyn SfuDriver>, Door) {
        let address = self.url().strip_prefix("https://").expect("TLS").parse().expect("an address");
        let door = Door::to(address).await;
        (self.driver_at(&format!("https://{}", door.address())), door)
    }

    async fn enter(&mut self, _room: &RoomId, endpoint: &str, session: &SessionId, token: &str) -> bool {
        let put = self.http().put(format!("{endpoint}/{session}")).bearer_auth(token);
        match put.send().await.expect("answered").status().as_u16() {
            204 => true,
            503 => false, // what the contract answers while it drains
            other => panic!("status {other}"),
        }
    }

    /// The contract knows no rooms but those made through it, so this is another system that speaks it too: with
    /// names of its own, and in a slot of ours.
    async fn make_foreign(&mut self) -> Vec<RoomId> {
        let names = ["stage", "a~b~c"].map(|name| RoomId::new(name).expect("valid id"));
        for room in &names {
            let body = EnsureRoom {
                fence: Fence {
                    slot: Slot::new(7).expect("valid slot"),
                    owner_term: epoch(1).term,
                    epoch: epoch(1),
                    boot_id: None,
                },
                op_id: OpId::new(format!("op-{room}")).expect("valid id"),
                syncer: SyncerId::new("stranger").expect("valid id"),
                guild: GuildId::new("theirs").expect("valid id"),
                kind: CallKind::Voice,
                capacity: 10,
            };
            let put = self.http().put(format!("{}/v1/rooms/{room}", self.url())).json(&body);
            assert!(put.send().await.expect("answered").status().is_success());
        }
        names.to_vec()
    }

    async fn is_there(&mut self, room: &RoomId) -> bool {
        let node = self.cluster.nodes()[0].id.clone();
        self.cluster.rooms(&node).expect("a node").iter().any(|held| held.room == *room)
    }

    async fn lying(&mut self, n: usize) -> Option<Arc<dyn SfuDriver>> {
        self.cluster.heal_all().await.expect("the address is free");
        let error = |status, retry_after_s| Fault::Error { status, rate: 1.0, retry_after_s, ghost: true };
        let garbage = |what| Fault::Garbage { what };
        let faults = [
            error(429, Some(1)),
            error(500, None),
            error(503, None),
            garbage(Garbage::Body),
            garbage(Garbage::ContentType),
            garbage(Garbage::Huge),
            garbage(Garbage::Length),
        ];
        let echoes: [fn(&str) -> ResponseTemplate; 3] = [
            refusal,
            |told| ResponseTemplate::new(200).set_body_string(told),
            |told| ResponseTemplate::new(200).set_body_json(json!({ "boot_id": told, "endpoint": told })),
        ];
        match (faults.get(n), echoes.get(n.wrapping_sub(faults.len()))) {
            (Some(fault), _) => Some(self.broken(fault.clone()).await),
            (None, Some(echo)) => Some(self.repeating(*echo).await),
            (None, None) => None,
        }
    }

    /// The control contract carries none: whoever may reach the SFU may tell it what to do.
    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Janus, as far as a few lines are one. `tests/real` runs the suite against Janus itself.
struct Fake {
    janus: FakeJanus,
    plugin: JanusPlugin,
    lane: Lane,
}

impl Fake {
    async fn start(plugin: JanusPlugin) -> Self {
        Self { janus: FakeJanus::start(plugin).await, plugin, lane: lane() }
    }
}

impl Stand for Fake {
    fn driver(&self) -> Arc<dyn SfuDriver> {
        janus(&self.lane, &self.janus.url(), self.plugin)
    }

    async fn restart(&mut self) {
        self.janus.restart();
    }

    async fn dead(&mut self) -> Arc<dyn SfuDriver> {
        janus(&self.lane, &closed_port(), self.plugin)
    }

    async fn hung(&mut self) -> Arc<dyn SfuDriver> {
        janus(&self.lane, &silent_server(), self.plugin)
    }

    async fn counted(&mut self) -> (Arc<dyn SfuDriver>, Door) {
        let address = self.janus.url().strip_prefix("http://").expect("no TLS").parse().expect("an address");
        let door = Door::to(address).await;
        (janus(&self.lane, &format!("http://{}", door.address()), self.plugin), door)
    }

    async fn enter(&mut self, room: &RoomId, _endpoint: &str, _session: &SessionId, _token: &str) -> bool {
        self.janus.enter(room.as_str())
    }

    async fn make_foreign(&mut self) -> Vec<RoomId> {
        let names = ["stage", "1234", "tl~7~stage"].map(|name| RoomId::new(name).expect("valid id"));
        for room in &names {
            self.janus.add_room(room.as_str(), 0);
        }
        names.to_vec()
    }

    async fn is_there(&mut self, room: &RoomId) -> bool {
        self.janus.rooms().iter().any(|held| held == room.as_str())
    }

    async fn lying(&mut self, n: usize) -> Option<Arc<dyn SfuDriver>> {
        const ASKED: [&str; 7] =
            ["info", "accept_new_sessions", "list", "exists", "create", "listparticipants", "destroy"];
        self.janus.be_honest();
        let request = ASKED.get(n / Lie::ALL.len())?;
        let driver = janus(&lane(), &self.janus.url(), self.plugin);
        // It knows the server already, so that it comes as far as the request that is answered wrongly.
        driver.probe(false, soon()).await.expect("alive");
        self.janus.lie(request, Lie::ALL[n % Lie::ALL.len()]);
        Some(driver)
    }

    fn secrets(&self) -> Vec<String> {
        self.janus.secrets().into_iter().collect()
    }
}

conformance!(native, Mock::start(), crate::conformance);
conformance!(janus_videoroom, Fake::start(JanusPlugin::Videoroom), crate::conformance);
conformance!(janus_audiobridge, Fake::start(JanusPlugin::Audiobridge), crate::conformance);
