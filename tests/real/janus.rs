//! Janus processes: started on free ports, killed, frozen, restarted, and gone with their test.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use pool::Lane;
use serde_json::{Value, json};
use sfu_api::SyncerId;
use syncer::drivers::{JanusPlugin, SfuDriver, SfuSpec, build};
use syncer::token::Signer;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::pki::Authority;

/// Secrets of every Janus here.
pub(crate) const ADMIN_SECRET: &str = "admin-secret-of-the-test";
pub(crate) const ADMIN_KEY: &str = "admin-key-of-the-test";
pub(crate) const API_SECRET: &str = "api-secret-of-the-test";

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ports of one Janus: as UDP, 20 participants with two each, for both plugins' ranges; as TCP, the
/// first two for its APIs.
const PORTS: u16 = 80;

/// Where ports are taken from: below the range from which the kernel picks others' ports, so that
/// nobody takes them while a server is down.
const PORTS_FIRST: u16 = 20_000;
const PORTS_END: u16 = 32_000;

/// The next share of the ports to try.
static SHARE: AtomicU16 = AtomicU16::new(0);

/// One Janus server.
#[derive(Debug)]
pub(crate) struct Janus {
    pub(crate) name: String,
    dir: TempDir,
    child: Option<Child>,
    /// The first of its [`PORTS`] ports.
    first_port: u16,
    http: reqwest::Client,
    ca_pem: String,
}

/// A moment by which anything healthy has happened.
pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// A client that trusts the test's authority.
pub(crate) fn trusting(ca_pem: &str) -> reqwest::Client {
    // Another test of this process may have been first.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes()).expect("a certificate");
    // The largest wait is a long poll of Janus: 30 s.
    reqwest::Client::builder().tls_certs_only([ca]).timeout(Duration::from_secs(40)).build().expect("a client")
}

// === impl Janus ===

impl Janus {
    /// Starts a Janus and waits until it answers.
    pub(crate) async fn start(name: &str, authority: &Authority) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let http = trusting(authority.pem());
        let ca_pem = authority.pem().to_owned();
        let mut janus = Self { name: name.to_owned(), dir, child: None, first_port: free_ports(), http, ca_pem };
        janus.configure(authority);
        janus.start_again().await;
        janus
    }

    /// Starts it (again) with the same configuration and ports, and waits until it answers.
    pub(crate) async fn start_again(&mut self) {
        self.kill();
        let log = File::create(self.log()).expect("a log");
        let conf = self.dir.path();
        // setpriv: a test process that is itself killed takes its servers with it.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "janus", "-F"])
            .arg(conf)
            .arg("-C")
            .arg(conf.join("janus.jcfg"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("setpriv and janus can be started: apt-get install -y --no-install-recommends janus");
        self.child = Some(child);
        let deadline = soon();
        while self.http.get(format!("{}/info", self.client_url())).send().await.is_err() {
            let exited = self.child.as_mut().and_then(|child| child.try_wait().expect("a child of ours"));
            assert!(exited.is_none(), "janus ended ({exited:?}): {}", self.last_words());
            assert!(Instant::now() < deadline, "janus does not answer: {}", self.last_words());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child of ours");
            child.wait().expect("a child of ours");
        }
    }

    /// Stops it from running, with its sockets open.
    pub(crate) async fn freeze(&self) {
        self.signal("-STOP");
        // The signal is taken by one thread after the other.
        let tasks = format!("/proc/{}/task", self.child.as_ref().expect("running").id());
        let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let status = std::fs::read_to_string(task.expect("a thread").path().join("stat")).unwrap_or_default();
            status.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        };
        let by = soon();
        while !std::fs::read_dir(&tasks).expect("it runs").all(is_stopped) {
            assert!(Instant::now() < by, "it does not stop");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets it run on.
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().expect("running").id().to_string();
        let status = Command::new("kill").args([signal, &id]).status().expect("kill can be started");
        assert!(status.success());
    }

    /// URL of the client API.
    pub(crate) fn client_url(&self) -> String {
        format!("https://127.0.0.1:{}/janus", self.first_port)
    }

    /// URL of the admin API.
    pub(crate) fn admin_url(&self) -> String {
        format!("https://127.0.0.1:{}/admin", self.first_port + 1)
    }

    /// This server as an entry of the static catalogue.
    pub(crate) fn entry(&self, plugin: JanusPlugin) -> String {
        let (name, plugin) = (&self.name, plugin.as_str());
        let (url, admin_url) = (self.client_url(), self.admin_url());
        format!(
            "[[sfus]]\nid = \"{name}\"\nurl = \"{url}\"\nregion = \"a\"\ndriver = \"janus\"\ncapacity = 200\n\
             [sfus.janus]\nadmin_url = \"{admin_url}\"\nadmin_secret = \"{ADMIN_SECRET}\"\n\
             admin_key = \"{ADMIN_KEY}\"\nplugin = \"{plugin}\"\n"
        )
    }

    /// A driver for this server with a lane of its own, as every syncer has one.
    pub(crate) fn driver(&self, plugin: JanusPlugin) -> Arc<dyn SfuDriver> {
        self.driver_with(&self.entry(plugin), &self.ca_pem)
    }

    /// A driver for another entry or authority.
    pub(crate) fn driver_with(&self, entry: &str, ca_pem: &str) -> Arc<dyn SfuDriver> {
        let table: toml::Table = toml::from_str(entry).expect("a good entry");
        let spec: SfuSpec = table["sfus"][0].clone().try_into().expect("a good entry");
        let tls = pool::tls::client_config(ca_pem.as_bytes(), None).expect("a good authority");
        let lane = Lane::builder("sfu").tls(tls).build().expect("default limits are good");
        let tokens = Arc::new(Signer::generate().expect("randomness"));
        build(&spec, &lane, &tokens, &SyncerId::new("syncer-1").expect("valid id")).expect("a good entry")
    }

    /// Asks a plugin through the admin API, past the driver.
    pub(crate) async fn plugin(&self, plugin: JanusPlugin, request: Value) -> Value {
        let body = json!({ "janus": "message_plugin", "transaction": "t", "admin_secret": ADMIN_SECRET,
                           "plugin": plugin.package(), "request": request });
        let answer = self.http.post(self.admin_url()).body(body.to_string()).send().await.expect("janus answers");
        let answer = answer.bytes().await.expect("janus answers");
        let mut answer: Value = serde_json::from_slice(&answer).expect("janus answers JSON");
        answer["response"].take()
    }

    /// Names in Janus's own list, without the sentinels.
    pub(crate) async fn rooms(&self, plugin: JanusPlugin) -> Vec<String> {
        let answer = self.plugin(plugin, json!({ "request": "list", "admin_key": ADMIN_KEY })).await;
        let names = answer["list"].as_array().expect("a list").iter().map(|room| room["room"].as_str());
        let mut names: Vec<_> = names.flatten().filter(|name| !name.starts_with("_boot")).map(str::to_owned).collect();
        names.sort();
        names
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("janus.log")
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn configure(&self, authority: &Authority) {
        let dir = self.dir.path();
        let identity = authority.issue();
        write(dir, "cert.pem", &identity.chain_pem);
        write(dir, "key.pem", &identity.key_pem);
        let (conf, lib) = (dir.display(), libraries());
        let lib = lib.display();
        let first = self.first_port;
        let (middle, last) = (first + PORTS / 2, first + PORTS - 1);
        let name = &self.name;
        write(
            dir,
            "janus.jcfg",
            &format!(
                r#"general: {{ configs_folder="{conf}" plugins_folder="{lib}/plugins" transports_folder="{lib}/transports"
  events_folder="{lib}/events" loggers_folder="{lib}/loggers" interface="127.0.0.1" server_name="{name}"
  session_timeout=10 api_secret="{API_SECRET}" admin_secret="{ADMIN_SECRET}" }}
media: {{ ipv6=false, rtp_port_range="{first}-{}" }}
nat: {{ ice_enforce_list="127.0.0.1", full_trickle=true }}
plugins: {{ disable="libjanus_voicemail.so,libjanus_recordplay.so,libjanus_lua.so,libjanus_duktape.so,libjanus_sip.so,libjanus_nosip.so,libjanus_streaming.so,libjanus_textroom.so,libjanus_videocall.so,libjanus_echotest.so" }}
transports: {{ disable="libjanus_rabbitmq.so,libjanus_mqtt.so,libjanus_nanomsg.so,libjanus_pfunix.so,libjanus_websockets.so" }}
"#,
                middle - 1
            ),
        );
        let (client, admin) = (first, first + 1);
        write(
            dir,
            "janus.transport.http.jcfg",
            &format!(
                r#"general: {{ json="compact" base_path="/janus" http=false https=true secure_port={client} secure_ip="127.0.0.1" acl="127." }}
admin: {{ admin_base_path="/admin" admin_http=false admin_https=true admin_secure_port={admin} admin_secure_ip="127.0.0.1" admin_acl="127." }}
certificates: {{ cert_pem="{conf}/cert.pem" cert_key="{conf}/key.pem" }}
"#
            ),
        );
        let general = format!(r#"admin_key="{ADMIN_KEY}" string_ids=true events=false"#);
        write(dir, "janus.plugin.videoroom.jcfg", &format!("general: {{ {general} }}\n"));
        let rtp = format!(r#"local_ip="127.0.0.1" rtp_port_range="{middle}-{last}""#);
        write(dir, "janus.plugin.audiobridge.jcfg", &format!("general: {{ {general} {rtp} }}\n"));
    }
}

impl Drop for Janus {
    fn drop(&mut self) {
        self.kill();
    }
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).expect("a file in our own directory");
}

/// The first of [`PORTS`] ports that no other Janus of this process uses and whose TCP ports are free.
/// Processes start at different places; Janus itself passes over RTP ports that are taken.
fn free_ports() -> u16 {
    let shares = (PORTS_END - PORTS_FIRST) / PORTS;
    let start = u16::try_from(std::process::id() % u32::from(shares)).unwrap_or(0);
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..shares)
        .map(|_| PORTS_FIRST + (start + SHARE.fetch_add(1, Ordering::Relaxed)) % shares * PORTS)
        .find(|&first| free(first) && free(first + 1))
        .expect("some ports are free")
}

/// Where Debian puts the plugins: below the machine's own triplet.
fn libraries() -> PathBuf {
    let candidates = std::fs::read_dir("/usr/lib").expect("a system").flatten().map(|entry| entry.path().join("janus"));
    candidates
        .into_iter()
        .find(|path| path.join("plugins").is_dir())
        .expect("janus is installed: apt-get install -y --no-install-recommends janus")
}
