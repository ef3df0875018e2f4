//! The suite of `docs/drivers.md`, against every driver there is.

#[path = "driver_support/conformance.rs"]
mod conformance;
mod driver_support;

use std::sync::Arc;

use conformance::{SESSION, Stand, conformance};
use driver_support::fake_janus::FakeJanus;
use driver_support::{built, closed_port, janus, lane, silent_server, soon};
use pool::Lane;
use sfu_api::RoomId;
use sfu_mock::{Cluster, ClusterConfig, Fault, Target};
use syncer::drivers::{JanusPlugin, SfuDriver};
use syncer::token::Signer;

/// The native contract: a mock SFU over TLS.
struct Mock {
    cluster: Cluster,
    lane: Lane,
}

impl Mock {
    async fn start() -> Self {
        let cluster = Cluster::start(ClusterConfig { nodes: 1, ..ClusterConfig::default() }).await.expect("an address");
        let tls = pool::tls::client_config(cluster.ca_pem().as_bytes(), None).expect("a good authority");
        Self { cluster, lane: Lane::builder("sfu").tls(tls).build().expect("good limits") }
    }

    async fn broken(&self, fault: Fault) -> Arc<dyn SfuDriver> {
        let nodes = self.cluster.nodes().into_iter().map(|n| n.id).collect();
        self.cluster.fault(&Target::Nodes(nodes), &fault).await.expect("a valid fault");
        self.driver()
    }
}

impl Stand for Mock {
    fn driver(&self) -> Arc<dyn SfuDriver> {
        let tokens = Arc::new(Signer::generate().expect("randomness"));
        built(&self.lane, &tokens, &self.cluster.catalogue_toml().replace("[[sfus]]", ""))
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

    async fn enter(&mut self, _room: &RoomId, endpoint: &str, token: &str) {
        let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let ca = reqwest::Certificate::from_pem(self.cluster.ca_pem().as_bytes()).expect("a certificate");
        let http = reqwest::Client::builder().tls_certs_only([ca]).build().expect("a client");
        let entered = http.put(format!("{endpoint}/{SESSION}")).bearer_auth(token).send().await.expect("answered");
        assert_eq!(entered.status().as_u16(), 204);
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

    async fn enter(&mut self, room: &RoomId, _endpoint: &str, _token: &str) {
        self.janus.people(room.as_str(), 1);
    }
}

conformance!(native, Mock::start(), crate::conformance);
conformance!(janus_videoroom, Fake::start(JanusPlugin::Videoroom), crate::conformance);
conformance!(janus_audiobridge, Fake::start(JanusPlugin::Audiobridge), crate::conformance);
