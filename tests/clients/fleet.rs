//! A small fleet of real processes: one mock cluster, one syncer on plain HTTP, one on HTTPS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::mock::Mock;
use crate::common::{PATIENCE, Process, eventually, free_port};

/// The processes and how to reach them. They end with it.
pub(crate) struct Fleet {
    dir: TempDir,
    mock: Mock,
    plain: u16,
    secure: u16,
    client: reqwest::Client,
    _processes: Vec<Process>,
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok(); // one of several tests was first
        let dir = tempfile::tempdir().expect("a directory");
        let mock = Mock::start(dir.path(), "sfu", 6).await;
        let (cert, key) = api_certificate(dir.path());
        let (plain, secure) = (free_port(), free_port());
        let start = |name: &str, port: u16, more: &[String]| {
            let listen = format!("127.0.0.1:{port}");
            let (sfus, ca) = mock.files();
            let mut args = vec!["syncer", "--id", name, "--listen", &listen, "--sfus", &sfus, "--sfu-ca", &ca];
            args.extend(more.iter().flat_map(|set| ["--set", set]));
            Process::trunkline(dir.path(), name, &args)
        };
        let tls = [format!("tls.cert={}", cert.display()), format!("tls.key={}", key.display())];
        let processes = vec![start("plain", plain, &[]), start("secure", secure, &tls)];
        let ca = std::fs::read(dir.path().join("api-ca.pem")).expect("written above");
        let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
        let client = reqwest::Client::builder().tls_certs_only([ca]).timeout(Duration::from_secs(30)).build();
        let fleet = Self { dir, mock, plain, secure, client: client.expect("a client"), _processes: processes };
        for url in [fleet.plain_url(), fleet.secure_url()] {
            let ready = format!("{url}/readyz");
            eventually(&ready, PATIENCE, || async {
                fleet.client.get(&ready).send().await.ok().filter(|answer| answer.status().is_success())
            })
            .await;
        }
        fleet
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn api_ca(&self) -> PathBuf {
        self.dir.path().join("api-ca.pem")
    }

    pub(crate) fn plain_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.plain)
    }

    pub(crate) fn secure_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.secure)
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}{path}", self.plain_url())).send().await.expect("the syncer answers");
        answer.json().await.expect("JSON")
    }

    pub(crate) async fn join(&self, gateway: &str, call: &str) {
        let url = format!("{}/v1/guilds/g/calls/{call}/participants/s", self.plain_url());
        let answer = self.client.put(url).bearer_auth(gateway).json(&json!({})).send().await.expect("answers");
        assert!(answer.status().is_success(), "{}", answer.status());
        eventually("a placement", PATIENCE, || async {
            (self.get(&format!("/v1/guilds/g/calls/{call}")).await["state"] == "placed").then_some(())
        })
        .await;
    }

    pub(crate) async fn sfu_of(&self, call: &str) -> String {
        self.get(&format!("/v1/guilds/g/calls/{call}")).await["sfu"].as_str().expect("placed").to_owned()
    }

    pub(crate) async fn status(&self) -> Value {
        self.get("/v1/status").await
    }

    pub(crate) async fn fault(&self, fault: &Value) {
        self.mock.fault(fault).await;
    }
}

/// Writes `api-ca.pem` and a certificate for 127.0.0.1 signed by it.
fn api_certificate(dir: &Path) -> (PathBuf, PathBuf) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("no names");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL takes a certificate for self-signed when its issuer has its own name.
    ca.distinguished_name.push(DnType::CommonName, "the API's authority");
    let ca_pem = ca.self_signed(&ca_key).expect("signs itself").pem();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    params.distinguished_name.push(DnType::CommonName, "the API");
    let cert = params.signed_by(&key, &issuer).expect("signed").pem();
    let (cert_file, key_file) = (dir.join("api.pem"), dir.join("api-key.pem"));
    std::fs::write(dir.join("api-ca.pem"), ca_pem).expect("written");
    std::fs::write(&cert_file, cert).expect("written");
    std::fs::write(&key_file, key.serialize_pem()).expect("written");
    (cert_file, key_file)
}
