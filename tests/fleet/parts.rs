//! A fleet of separate processes, as an operator would start it: mock SFU processes that share an
//! authority, syncers behind TLS that find each other and the SFUs through files.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{PATIENCE, Process, eventually, file, free_port};

/// What one fleet is made of.
pub(crate) struct Parts {
    dir: TempDir,
    pub(crate) mocks: Vec<Process>,
    controls: Vec<String>,
    syncers: Vec<Process>,
    urls: Vec<String>,
    client: reqwest::Client,
}

impl Parts {
    /// Starts `mocks` processes of `nodes` SFUs each and `syncers` syncers, and waits until all are ready.
    pub(crate) async fn start(mocks: usize, nodes: usize, syncers: usize) -> Self {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok(); // one of several tests was first
        let dir = tempfile::tempdir().expect("a directory");
        api_certificate(dir.path());
        let ca = reqwest::Certificate::from_pem(&std::fs::read(dir.path().join("api-ca.pem")).expect("written"));
        let client = reqwest::Client::builder().tls_certs_only([ca.expect("a certificate")]).build().expect("a client");
        let mut fleet =
            Self { dir, mocks: Vec::new(), controls: Vec::new(), syncers: Vec::new(), urls: Vec::new(), client };
        fleet.start_mocks(mocks, nodes).await;
        fleet.start_syncers(syncers).await;
        fleet
    }

    async fn start_mocks(&mut self, mocks: usize, nodes: usize) {
        let root = self.dir.path();
        let mut catalogue = String::new();
        let nodes = nodes.to_string();
        for name in (1..=mocks).map(|n| format!("m{n}")) {
            let (own, pki) = (self.path(&name), self.path("pki"));
            let args =
                ["sfu-mock", "--nodes", &nodes, "--name", &name, "--regions", "a,b", "--ca-dir", &pki, "--dir", &own];
            self.mocks.push(Process::trunkline(root, &format!("{name}-process"), &args));
        }
        for name in (1..=mocks).map(|n| format!("m{n}")) {
            self.controls.push(file(&root.join(&name).join("control.url")).await.trim().to_owned());
            catalogue.push_str(&file(&root.join(&name).join("sfus.toml")).await);
            catalogue.push('\n');
        }
        std::fs::write(root.join("sfus.toml"), catalogue).expect("written");
    }

    async fn start_syncers(&mut self, syncers: usize) {
        let ports: Vec<u16> = (0..syncers).map(|_| free_port()).collect();
        self.urls = ports.iter().map(|port| format!("https://127.0.0.1:{port}")).collect();
        let member = |(n, url): (usize, &String)| {
            format!("[[members]]\nid = \"syncer-{n}\"\nurl = \"{url}\"\nzone = \"z{n}\"\n")
        };
        let members: String = (1..).zip(&self.urls).map(member).collect();
        std::fs::write(self.dir.path().join("members.toml"), members).expect("written");
        let settings = [
            format!("tls.cert={}", self.path("api.pem")),
            format!("tls.key={}", self.path("api-key.pem")),
            format!("peer_ca_file={}", self.path("api-ca.pem")),
        ];
        for (n, port) in (1..).zip(ports) {
            let (id, listen) = (format!("syncer-{n}"), format!("127.0.0.1:{port}"));
            let (members, sfus, ca) = (self.path("members.toml"), self.path("sfus.toml"), self.path("pki/ca.pem"));
            let zone = format!("zone=z{n}");
            let mut args = vec!["syncer", "--id", &id, "--listen", &listen, "--members", &members, "--sfus", &sfus];
            args.extend(["--sfu-ca", &ca, "--set", &zone]);
            args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
            self.syncers.push(Process::trunkline(self.dir.path(), &id, &args));
        }
        for url in &self.urls {
            eventually(&format!("{url} is ready"), PATIENCE, || async {
                let status = self.client.get(format!("{url}/v1/status")).send().await.ok()?;
                (status.json::<Value>().await.ok()?["ready"] == true).then_some(())
            })
            .await;
        }
    }

    /// A path in the fleet's directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// As an operator: the SFU with the most calls of the first syncer is declared dead, though it is not.
    pub(crate) async fn declare_the_fullest_dead(&self) {
        let url = format!("{}/v1/sfus", self.urls[0]);
        let answer = self.client.get(&url).bearer_auth("operator").send().await.expect("the syncer answers");
        let answer: Value = answer.json().await.expect("JSON");
        let sfus = answer["sfus"].as_array().expect("a list");
        let fullest = sfus.iter().max_by_key(|sfu| sfu["calls"].as_u64()).expect("there are SFUs");
        let id = fullest["id"].as_str().expect("it has an id");
        let request = self.client.post(format!("{url}/{id}:declare-dead")).bearer_auth("operator");
        let status = request.send().await.expect("the syncer answers").status();
        assert!(status.is_success(), "{status}");
    }

    /// Where the first syncer is.
    pub(crate) fn url(&self) -> String {
        self.urls[0].clone()
    }

    /// Starts a drill of this plan against the whole fleet.
    pub(crate) fn drill(&self, plan: &str) -> Drill {
        let json = self.dir.path().join("report.json");
        let (api_ca, sfu_ca, out) = (self.path("api-ca.pem"), self.path("pki/ca.pem"), json.display().to_string());
        let mut args = vec!["drill", plan, "--ca", &api_ca, "--ca", &sfu_ca, "--json", &out];
        args.extend(self.urls.iter().flat_map(|url| ["--syncer", url]));
        args.extend(self.controls.iter().flat_map(|url| ["--control", url]));
        Drill { process: Process::trunkline(self.dir.path(), "drill", &args), json }
    }

    /// Whether every syncer still runs.
    pub(crate) fn syncers_run(&self) -> bool {
        self.syncers.iter().all(Process::is_running)
    }
}

/// A running drill.
pub(crate) struct Drill {
    process: Process,
    json: PathBuf,
}

impl Drill {
    /// Waits until the console shows `text`.
    pub(crate) async fn shows(&self, text: &str) {
        eventually(&format!("the drill shows {text}"), PATIENCE, || async {
            self.process.output().contains(text).then_some(())
        })
        .await;
    }

    /// Waits for its end: how it ended, and its report.
    pub(crate) async fn report(mut self) -> (ExitStatus, Value) {
        // Longer than the plans' own limits: they end by themselves, with a report.
        let status = self.process.ended(PATIENCE * 4).await;
        let text = std::fs::read_to_string(&self.json).unwrap_or_else(|_| panic!("{}", self.process.output()));
        (status, serde_json::from_str(&text).expect("JSON"))
    }

    /// As [`Self::report`], of a drill that must pass.
    pub(crate) async fn passed(self) -> Value {
        let (status, report) = self.report().await;
        let shown = |key: &str| serde_json::to_string(&report[key]).unwrap_or_default();
        let about =
            ["checks", "findings", "errors", "violations", "phases"].map(|key| format!("{key}: {}", shown(key)));
        assert!(status.success() && report["passed"] == true, "{status}\n{}", about.join("\n"));
        report
    }
}

/// Writes `api-ca.pem`, and a certificate of 127.0.0.1 that it signed.
fn api_certificate(dir: &Path) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "the syncers' authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca_pem = ca.self_signed(&ca_key).expect("signs itself").pem();
    let key = KeyPair::generate().expect("a key");
    let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    leaf.distinguished_name.push(DnType::CommonName, "a syncer");
    let cert = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).expect("signed").pem();
    for (name, text) in [("api-ca.pem", ca_pem), ("api.pem", cert), ("api-key.pem", key.serialize_pem())] {
        std::fs::write(dir.join(name), text).expect("written");
    }
}
