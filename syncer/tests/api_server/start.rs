//! Starting: ports, files, certificates, levers.

use std::time::Duration;

use reqwest::{Client, StatusCode, Version};
use syncer::{Options, Syncer};

use crate::support::{Events, answer, certificates, config, install_provider, leaf, sfus, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let sfus = sfus(1, dir.path()).await;
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut config = config("syncer-1", dir.path());
    config.listen = held.local_addr().expect("bound");
    let error = Syncer::start(config, Options::default()).await.expect_err("in use");
    assert!(error.is_port_in_use() && !error.is_config());
    assert!(error.to_string().contains(&held.local_addr().expect("bound").to_string()), "{error}");
    drop(sfus);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_files_and_levers_are_configuration_errors_that_name_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let sfus = sfus(1, dir.path()).await;
    let good = config("syncer-1", dir.path());
    let start = |change: &dyn Fn(&mut syncer::Config)| {
        let mut config = good.clone();
        change(&mut config);
        Syncer::start(config, Options::default())
    };
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, "[[sfus]]\nid = \"a\"\nurll = \"x\"\n").expect("written");
    let error = start(&|c| c.sfus_file = Some(bad.clone())).await.expect_err("a bad file");
    assert!(error.is_config() && error.to_string().contains("bad.toml:3"), "{error}");
    let error = start(&|c| c.sfu_ca_file = Some("/nowhere.pem".into())).await.expect_err("no file");
    assert!(error.is_config() && error.to_string().contains("/nowhere.pem"), "{error}");
    let error = start(&|c| {
        c.limits.insert("placement.sfu.rate".to_owned(), toml::Value::Float(-1.0));
    })
    .await
    .expect_err("out of range");
    assert!(error.is_config() && error.to_string().contains("limits.placement.sfu.rate"), "{error}");
    let file = dir.path().join("syncer.toml");
    let text = "id = \"x\"\nlisten = \"127.0.0.1:0\"\n[limits]\n\"placement.sfu.rat\" = 3.0\n";
    std::fs::write(&file, text).expect("written");
    let named = syncer::Config::load(Some(&file), [], &[]).expect("levers are checked where they are known");
    let error = Syncer::start(named, Options::default()).await.expect_err("unknown");
    let text = error.to_string();
    assert!(error.is_config() && text.contains("syncer.toml:4") && text.contains("`placement.sfu.rate`"), "{text}");
    let limits: toml::Table = toml::from_str("placement.sfu.rate = 3.5").expect("TOML");
    let running = start(&|c| c.limits = limits.clone().into_iter().collect()).await.expect("starts");
    let levers = running.engine().levers().list();
    let rate = levers.iter().find(|l| l.name == "placement.sfu.rate").expect("a lever");
    assert_eq!(rate.value, serde_json::json!(3.5));
    drop(sfus);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_alpn_decides_and_peers_forward() {
    install_provider();
    let dir = tempfile::tempdir().expect("a directory");
    let sfus = sfus(1, dir.path()).await;
    certificates(dir.path());
    let registry = syncer::registry::Embedded::in_memory();
    let list = ["syncer-1", "syncer-2"]
        .map(|n| syncer::registry::Member::new(n.parse().expect("an id"), "https://127.0.0.1:1", "z1"));
    syncer::registry::Registry::list_members(&*registry, list.to_vec()).await.expect("listed");
    let mut syncers = Vec::new();
    for name in ["syncer-1", "syncer-2"] {
        let mut config = config(name, dir.path());
        config.tls =
            Some(syncer::config::TlsConfig { cert: dir.path().join("api.pem"), key: dir.path().join("api-key.pem") });
        config.peer_ca_file = Some(dir.path().join("api-ca.pem"));
        let options = Options { registry: Some(registry.clone()), ..Options::default() };
        syncers.push(Syncer::start(config, options).await.expect("starts"));
    }
    for syncer in &syncers {
        until("ready", || async { syncer.is_ready() }).await;
    }
    let ca = std::fs::read(dir.path().join("api-ca.pem")).expect("readable");
    let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
    let builder = || Client::builder().tls_certs_only([ca.clone()]).timeout(Duration::from_secs(60));
    let url = syncers[0].url();
    assert!(url.starts_with("https://"));
    for (client, version) in [(builder(), Version::HTTP_2), (builder().http1_only(), Version::HTTP_11)] {
        let client = client.build().expect("a client");
        let response = client.get(format!("{url}/v1/status")).send().await.expect("an answer");
        assert_eq!((response.status(), response.version()), (StatusCode::OK, version));
        let gateway = format!("gw-{version:?}").replace(['/', '.'], "");
        let mut events = Events::open(client.get(format!("{url}/v1/watch")).bearer_auth(&gateway)).await;
        // Some of these are the other syncer's: forwarded, and told through its watch.
        for n in 0..8 {
            let put = client.put(format!("{url}/v1/guilds/g{n}/calls/c/participants/{gateway}"));
            let (status, body) = answer(put.bearer_auth(&gateway).body("{}")).await;
            assert_eq!(status, StatusCode::OK, "{body}");
        }
        let mut guilds = std::collections::BTreeSet::new();
        if version == Version::HTTP_2 {
            while guilds.len() < 8 {
                let event = events.next().await;
                guilds.insert(event.data["guild"].to_string());
            }
        }
    }
    let counts: Vec<u64> = syncers.iter().map(|s| s.engine().status().calls).collect();
    assert!(counts.iter().all(|c| *c > 0) && counts.iter().sum::<u64>() == 8, "{counts:?}");
    drop(sfus);
}

/// The certificate that a server shows to a new connection.
async fn shown(addr: std::net::SocketAddr, ca: &[u8]) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(ca).expect("a certificate")).expect("an authority");
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(addr).await.expect("connects");
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let name = rustls::pki_types::ServerName::from(addr.ip());
    let stream = connector.connect(name, tcp).await.expect("a trusted certificate");
    stream.get_ref().1.peer_certificates().expect("certificates")[0].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_serves_new_connections_and_cuts_none() {
    install_provider();
    let dir = tempfile::tempdir().expect("a directory");
    let sfus = sfus(1, dir.path()).await;
    let authority = certificates(dir.path());
    let mut config = config("syncer-1", dir.path());
    let file = |name: &str| dir.path().join(name);
    config.tls = Some(syncer::config::TlsConfig { cert: file("api.pem"), key: file("api-key.pem") });
    let syncer = Syncer::start(config, Options::default()).await.expect("starts");
    until("ready", || async { syncer.is_ready() }).await;
    let ca = std::fs::read(file("api-ca.pem")).expect("readable");
    let builder = Client::builder().tls_certs_only([reqwest::Certificate::from_pem(&ca).expect("a certificate")]);
    let (client, url) = (builder.build().expect("a client"), syncer.url());
    let mut events = Events::open(client.get(format!("{url}/v1/watch")).bearer_auth("gw-1")).await;
    let old = shown(syncer.addr(), &ca).await;

    // A certificate without its key, as between two writes, changes nothing.
    let (renewed, key) = leaf(&authority);
    std::fs::write(file("api.pem"), renewed.pem()).expect("written");
    syncer.reload();
    let misfit = || async {
        let metrics = client.get(format!("{url}/metrics")).send().await.expect("an answer");
        !metrics.text().await.expect("text").contains("trunkline_bad_files_total 0")
    };
    until("the misfit is counted", misfit).await;
    assert_eq!(shown(syncer.addr(), &ca).await, old);

    std::fs::write(file("api-key.pem"), key).expect("written");
    until("the new one is shown", || async { shown(syncer.addr(), &ca).await != old }).await;
    assert_eq!(shown(syncer.addr(), &ca).await, renewed.der().to_vec());
    // The connection of old goes on, and so does what it carries.
    let put = client.put(format!("{url}/v1/guilds/g/calls/c/participants/s")).bearer_auth("gw-1").body("{}");
    assert_eq!(answer(put).await.0, StatusCode::OK);
    assert_eq!(events.of_call("g", "c").await["phase"], 1);
    drop(sfus);
}
