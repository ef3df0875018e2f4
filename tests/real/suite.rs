//! The suite that every driver passes, against Janus itself.

use std::sync::Arc;

use serde_json::json;
use sfu_api::{RoomId, SessionId};
use syncer::drivers::{JanusPlugin, SfuDriver};

use self::checks::{Door, Stand, conformance};
use crate::client::{Endpoint, Handle};
use crate::janus::{ADMIN_KEY, ADMIN_SECRET, API_SECRET, Janus, trusting};
use crate::pki::Authority;

#[path = "../../syncer/tests/driver_support/conformance/mod.rs"]
mod checks;

/// What Janus says to a new client while it drains.
const TAKES_NO_SESSIONS: &str = "\"code\":472,";

/// Instead of a secret, what an operator mistook for it: it opens something else, so it is as secret.
const MISTAKEN: &str = "opens-another-door";

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

    async fn counted(&mut self) -> (Arc<dyn SfuDriver>, Door) {
        let admin_url = self.janus.admin_url();
        let address = admin_url.strip_prefix("https://").and_then(|rest| rest.strip_suffix("/admin"));
        let door = Door::to(address.expect("TLS").parse().expect("an address")).await;
        let by_door = format!("https://{}/admin", door.address());
        let entry = self.janus.entry(self.plugin).replace(&admin_url, &by_door);
        (self.janus.driver_with(&entry, self.authority.pem()), door)
    }

    async fn enter(&mut self, _room: &RoomId, endpoint: &str, _session: &SessionId, token: &str) -> bool {
        let endpoint = Endpoint::parse(endpoint).expect("an endpoint of Janus");
        let handle = match Handle::open(&trusting(self.authority.pem()), &endpoint).await {
            Err(refused) if refused.0.contains(TAKES_NO_SESSIONS) => return false,
            handle => handle.expect("attached"),
        };
        handle.enter(&endpoint, token).await.expect("joined");
        true
    }

    /// As somebody would who knows the plugin's key; without a secret, so that everybody may end them.
    async fn make_foreign(&mut self) -> Vec<RoomId> {
        let names = ["stage", "1234", "tl~7~stage"].map(|name| RoomId::new(name).expect("valid id"));
        for room in &names {
            let request = json!({ "request": "create", "admin_key": ADMIN_KEY, "room": room });
            let answer = self.janus.plugin(self.plugin, request).await;
            assert_eq!(answer[self.plugin.as_str()], "created", "{answer}");
        }
        names.to_vec()
    }

    async fn is_there(&mut self, room: &RoomId) -> bool {
        self.janus.rooms(self.plugin).await.iter().any(|held| held == room.as_str())
    }

    async fn lying(&mut self, n: usize) -> Option<Arc<dyn SfuDriver>> {
        let entry = self.janus.entry(self.plugin);
        let told = |entry: &str| Some(self.janus.driver_with(entry, self.authority.pem()));
        match n {
            0 => told(&entry.replace(ADMIN_SECRET, MISTAKEN)),
            1 => told(&entry.replace(ADMIN_KEY, MISTAKEN)),
            2 => told(&entry.replace(&self.janus.admin_url(), &self.janus.client_url())),
            3 => Some(self.janus.driver_with(&entry, Authority::new().pem())),
            _ => None,
        }
    }

    fn secrets(&self) -> Vec<String> {
        [ADMIN_SECRET, ADMIN_KEY, API_SECRET, MISTAKEN].map(str::to_owned).into()
    }
}

conformance!(videoroom, Real::start(JanusPlugin::Videoroom), crate::suite::checks);
conformance!(audiobridge, Real::start(JanusPlugin::Audiobridge), crate::suite::checks);
