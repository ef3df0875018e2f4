//! The suite that every driver passes, against Janus itself.

use std::sync::Arc;

use sfu_api::RoomId;
use syncer::drivers::{JanusPlugin, SfuDriver};

use self::checks::{Stand, conformance};
use crate::client::{Endpoint, Handle};
use crate::janus::{Janus, trusting};
use crate::pki::Authority;

#[path = "../../syncer/tests/driver_support/conformance.rs"]
mod checks;

struct Real {
    janus: Janus,
    plugin: JanusPlugin,
    authority: Authority,
}

impl Real {
    async fn start(plugin: JanusPlugin) -> Self {
        let authority = Authority::new();
        Self { janus: Janus::start("sfu-1", &authority).await, plugin, authority }
    }
}

impl Stand for Real {
    fn driver(&self) -> Arc<dyn SfuDriver> {
        self.janus.driver(self.plugin)
    }

    async fn restart(&mut self) {
        self.janus.start_again().await;
    }

    async fn dead(&mut self) -> Arc<dyn SfuDriver> {
        self.janus.kill();
        self.driver()
    }

    async fn hung(&mut self) -> Arc<dyn SfuDriver> {
        self.janus.freeze().await;
        self.driver()
    }

    async fn enter(&mut self, _room: &RoomId, endpoint: &str, token: &str) {
        let endpoint = Endpoint::parse(endpoint).expect("an endpoint of Janus");
        let handle = Handle::open(&trusting(self.authority.pem()), &endpoint).await.expect("attached");
        handle.enter(&endpoint, token).await.expect("joined");
    }
}

conformance!(videoroom, Real::start(JanusPlugin::Videoroom), crate::suite::checks);
conformance!(audiobridge, Real::start(JanusPlugin::Audiobridge), crate::suite::checks);
