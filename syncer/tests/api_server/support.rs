//! A fleet to test against: syncers of one process over mock SFUs, and clients.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;
use sfu_api::{GuildId, SyncerId};
use sfu_mock::{Cluster, ClusterConfig};
use syncer::config::TlsConfig;
use syncer::ownership::slot_of;
use syncer::registry::{Embedded, Member, Registry};
use syncer::token::Signer;
use syncer::{Config, Options, Running, Syncer};
use tokio::time::{Instant, sleep};

/// Generous: two slow cores must not fail a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Syncers over SFUs.
pub(crate) struct Fleet {
    pub(crate) sfus: Cluster,
    pub(crate) syncers: Vec<Running>,
    pub(crate) registry: Arc<Embedded>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) client: Client,
}

pub(crate) fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustls::crypto::aws_lc_rs::default_provider().install_default().expect("the first provider");
    });
}

/// Waits for something to become true.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Awaits something that must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// A configuration for tests: any free port, the SFUs of `dir`.
pub(crate) fn config(id: &str, dir: &Path) -> Config {
    let text = |name: &str| dir.join(name).display().to_string();
    let set = |key: &str, value: String| (key.to_owned(), value);
    let overrides = [
        set("id", id.to_owned()),
        set("listen", "127.0.0.1:0".to_owned()),
        set("sfus_file", text("sfus.toml")),
        set("sfu_ca_file", text("ca.pem")),
    ];
    Config::load(None, [], &overrides).expect("a configuration")
}

/// So many SFUs.
pub(crate) fn nodes(nodes: usize) -> ClusterConfig {
    ClusterConfig { nodes, ..ClusterConfig::default() }
}

pub(crate) async fn sfus(nodes: usize, dir: &Path) -> Cluster {
    let config = ClusterConfig { nodes, dir: Some(dir.to_owned()), ..ClusterConfig::default() };
    Cluster::start(config).await.expect("mock SFUs")
}

// === impl Fleet ===

impl Fleet {
    pub(crate) async fn start(syncers: usize, nodes: usize) -> Self {
        Self::start_with(syncers, nodes, |_| {}).await
    }

    pub(crate) async fn start_with(syncers: usize, nodes: usize, change: impl Fn(&mut Config)) -> Self {
        Self::start_over(syncers, ClusterConfig { nodes, ..ClusterConfig::default() }, change).await
    }

    /// Behind TLS; clients and peers verify whom they speak to.
    pub(crate) async fn start_tls(syncers: usize, cluster: ClusterConfig, change: impl Fn(&mut Config)) -> Self {
        let mut fleet = Self::start_over(syncers, cluster, |config| {
            behind_tls(config);
            change(config);
        })
        .await;
        fleet.client = verifying(fleet.dir.path(), PATIENCE);
        fleet
    }

    async fn start_over(syncers: usize, cluster: ClusterConfig, change: impl Fn(&mut Config)) -> Self {
        install_provider();
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = ClusterConfig { dir: Some(dir.path().to_owned()), ..cluster };
        let sfus = Cluster::start(cluster).await.expect("mock SFUs");
        let registry = Embedded::in_memory();
        let names: Vec<String> = (1..=syncers).map(|n| format!("syncer-{n}")).collect();
        let listed = names.iter().map(|n| Member::new(SyncerId::new(n).expect("an id"), "http://127.0.0.1:1", "z1"));
        registry.list_members(listed.collect()).await.expect("listed");
        let signer = Arc::new(Signer::generate().expect("keys"));
        let mut running = Vec::new();
        for name in names {
            let mut config = config(&name, dir.path());
            change(&mut config);
            let options = Options {
                registry: Some(Arc::clone(&registry) as Arc<dyn Registry>),
                signer: Some(Arc::clone(&signer)),
                ..Options::default()
            };
            running.push(Syncer::start(config, options).await.expect("starts"));
        }
        for syncer in &running {
            until("ready", || async { syncer.is_ready() }).await;
        }
        let client = Client::builder().timeout(PATIENCE).build().expect("a client");
        Self { sfus, syncers: running, registry, dir, client }
    }

    /// Starts a syncer of this name anew, as a new process would.
    pub(crate) async fn restart(&mut self, name: &str, change: impl FnOnce(&mut Config)) {
        let mut config = config(name, self.dir.path());
        change(&mut config);
        let options = Options {
            registry: Some(Arc::clone(&self.registry) as Arc<dyn Registry>),
            signer: Some(Arc::clone(self.syncers[0].signer())),
            ..Options::default()
        };
        let syncer = Syncer::start(config, options).await.expect("starts");
        until("ready", || async { syncer.is_ready() }).await;
        self.syncers.push(syncer);
    }

    pub(crate) fn url(&self, n: usize, path: &str) -> String {
        format!("{}{path}", self.syncers[n].url())
    }

    /// A request of gateway `gw-1`.
    pub(crate) fn request(&self, n: usize, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(n, path)).bearer_auth("gw-1")
    }

    pub(crate) async fn get(&self, n: usize, path: &str) -> (StatusCode, Value) {
        answer(self.request(n, Method::GET, path)).await
    }

    pub(crate) async fn join(&self, n: usize, guild: &str, call: &str, session: &str) -> (StatusCode, Value) {
        let path = format!("/v1/guilds/{guild}/calls/{call}/participants/{session}");
        answer(self.request(n, Method::PUT, &path).body("{}")).await
    }

    /// Joins until the answer carries the endpoint.
    pub(crate) async fn join_until_placed(&self, n: usize, guild: &str, call: &str, session: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, body) = self.join(n, guild, call, session).await;
            assert_eq!(status, StatusCode::OK, "{body}");
            if body["endpoint"].is_string() {
                return body;
            }
            assert!(Instant::now() < deadline, "never placed: {body}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// A guild that syncer `n` owns.
    pub(crate) fn guild_of(&self, n: usize) -> String {
        self.guilds_of(n).next().expect("some guild is owned by every syncer")
    }

    pub(crate) fn guilds_of(&self, n: usize) -> impl Iterator<Item = String> {
        let snapshot = Arc::clone(&self.registry.watch().borrow());
        let me = SyncerId::new(format!("syncer-{}", n + 1)).expect("an id");
        (0..10_000).map(|i| format!("guild-{i}")).filter(move |g| {
            let slot = slot_of(&GuildId::new(g).expect("an id"));
            snapshot.slot(slot).is_some_and(|r| r.owner == me)
        })
    }
}

/// Status and JSON (null when the body is none).
pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let text = response.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

pub(crate) type Authority = rcgen::Issuer<'static, rcgen::KeyPair>;

/// A certificate authority, and a certificate for 127.0.0.1 signed by it.
pub(crate) fn certificates(dir: &Path) -> Authority {
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut ca = rcgen::CertificateParams::new(vec![]).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).expect("a certificate");
    let authority = rcgen::Issuer::new(ca, ca_key);
    let (leaf, key) = leaf(&authority);
    for (name, text) in [("api-ca.pem", ca_cert.pem()), ("api.pem", leaf.pem()), ("api-key.pem", key)] {
        std::fs::write(dir.join(name), text).expect("written");
    }
    authority
}

/// Puts a syncer's API behind TLS, with a certificate of the authority that all syncers of its directory share.
pub(crate) fn behind_tls(config: &mut Config) {
    let dir = config.sfus_file.as_deref().and_then(Path::parent).expect("a directory").to_owned();
    if !dir.join("api.pem").exists() {
        certificates(&dir);
    }
    config.tls = Some(TlsConfig { cert: dir.join("api.pem"), key: dir.join("api-key.pem") });
    config.peer_ca_file = Some(dir.join("api-ca.pem"));
}

/// A client that trusts the authority of the syncers of this directory and no other, and speaks to nobody without it.
pub(crate) fn verifying(dir: &Path, timeout: Duration) -> Client {
    let ca = std::fs::read(dir.join("api-ca.pem")).expect("written");
    let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
    Client::builder().tls_certs_only([ca]).https_only(true).timeout(timeout).build().expect("a client")
}

/// A certificate for 127.0.0.1 and its key.
pub(crate) fn leaf(authority: &Authority) -> (rcgen::Certificate, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    (leaf.signed_by(&key, authority).expect("a certificate"), key.serialize_pem())
}

/// Reads server-sent events.
pub(crate) struct Events {
    response: reqwest::Response,
    text: String,
    pub(crate) last_id: Option<String>,
}

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: Value,
}

// === impl Events ===

impl Events {
    /// Opens a watch and waits until it stands.
    pub(crate) async fn open(request: RequestBuilder) -> Self {
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new(), last_id: None }
    }

    /// Waits until the server ends it, or cuts it off.
    pub(crate) async fn ended(&mut self) {
        while let Ok(Some(_)) = self.response.chunk().await {}
    }

    pub(crate) async fn next(&mut self) -> Event {
        soon("an event", async {
            loop {
                if let Some((block, rest)) = self.text.split_once("\n\n") {
                    let (block, rest) = (block.to_owned(), rest.to_owned());
                    self.text = rest;
                    let field = |name: &str| {
                        block.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
                    };
                    self.last_id = field("id").or(self.last_id.take());
                    if let (Some(name), Some(data)) = (field("event"), field("data")) {
                        return Event { name, data: serde_json::from_str(&data).expect("JSON") };
                    }
                    continue;
                }
                let chunk = self.response.chunk().await.expect("open").expect("not ended");
                self.text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
            }
        })
        .await
    }

    /// Reads to the end, which follows by itself; there is no other event.
    pub(crate) async fn end(mut self) {
        soon("the end", async {
            while let Some(chunk) = self.response.chunk().await.expect("a whole answer") {
                self.text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
            }
        })
        .await;
        assert!(!self.text.contains("event:"), "{}", self.text);
    }

    /// The next `endpoint` event of this call.
    pub(crate) async fn of_call(&mut self, guild: &str, call: &str) -> Value {
        loop {
            let event = self.next().await;
            if event.name == "endpoint" && event.data["guild"] == guild && event.data["call"] == call {
                return event.data;
            }
        }
    }
}
