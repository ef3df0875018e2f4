//! Certificates as identities, limits to guilds, where operators are served, and what is read again.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair};
use reqwest::{Client, Identity, Method, StatusCode};
use serde_json::{Value, json};
use syncer::Config;
use syncer::config::{AuthConfig, TlsConfig};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{Authority, Events, Fleet, answer, certificates, soon, until};

const AUTH: &str = r#"
    mode = "tokens"
    peer_secret = "hush"
    tokens = [{ token = "t-o", id = "op", role = "operator" }, { token = "t-g", id = "gw-0", role = "gateway" }]
    certificates = [
        { name = "gw-1.test", id = "gw-1", role = "gateway" },
        { name = "few.test", id = "gw-2", role = "gateway", guilds = ["acme-*"] },
        { name = "op.test", id = "op-1", role = "operator" },
    ]"#;

fn dir_of(config: &Config) -> std::path::PathBuf {
    config.sfus_file.as_deref().and_then(Path::parent).expect("a directory").to_owned()
}

/// TLS, whose authority also signs the callers; `signer.pem` and `signer-key.pem` are its own.
fn behind_tls(config: &mut Config) {
    let dir = dir_of(config);
    if !dir.join("api.pem").exists() {
        let authority = certificates(&dir);
        std::fs::write(dir.join("signer-key.pem"), authority.key().serialize_pem()).expect("written");
        std::fs::write(dir.join("callers.toml"), "").expect("written");
    }
    config.tls = Some(TlsConfig { cert: dir.join("api.pem"), key: dir.join("api-key.pem") });
    config.peer_ca_file = Some(dir.join("api-ca.pem"));
    std::fs::copy(dir.join("api-ca.pem"), dir.join("client-ca.pem")).expect("copied");
    config.auth = toml::from_str::<AuthConfig>(AUTH).expect("an auth table");
    config.auth.client_ca_file = Some(dir.join("client-ca.pem"));
    config.auth.callers_file = Some(dir.join("callers.toml"));
}

/// The fleet's own authority, as it signs another certificate.
fn authority(fleet: &Fleet) -> Authority {
    let key = std::fs::read_to_string(fleet.dir.path().join("signer-key.pem")).expect("written");
    let mut ca = CertificateParams::new(vec![]).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    rcgen::Issuer::new(ca, KeyPair::from_pem(&key).expect("a key"))
}

/// A client that trusts the fleet and, when there is a name, shows a certificate with it.
fn client(fleet: &Fleet, shown: Option<(&Authority, &str)>) -> Client {
    let ca = std::fs::read(fleet.dir.path().join("api-ca.pem")).expect("written");
    let builder = Client::builder().tls_certs_only([reqwest::Certificate::from_pem(&ca).expect("a certificate")]);
    let builder = match shown {
        Some((authority, name)) => {
            let key = KeyPair::generate().expect("a key");
            let leaf = CertificateParams::new(vec![name.to_owned()]).expect("a name");
            let leaf = leaf.signed_by(&key, authority).expect("a certificate");
            let pem = leaf.pem() + &key.serialize_pem();
            builder.identity(Identity::from_pem(pem.as_bytes()).expect("an identity"))
        }
        None => builder,
    };
    builder.build().expect("a client")
}

async fn ask(client: &Client, method: Method, url: String) -> (StatusCode, Value) {
    answer(client.request(method, url).body("{}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_say_who_calls_and_for_which_guilds() {
    let fleet = Fleet::start_with(2, 1, behind_tls).await;
    let authority = authority(&fleet);
    let join = |guild: &str| fleet.url(0, &format!("/v1/guilds/{guild}/calls/c/participants/s"));
    let levers = || fleet.url(0, "/v1/levers");
    let gateway = client(&fleet, Some((&authority, "gw-1.test")));
    let operator = client(&fleet, Some((&authority, "op.test")));
    let few = client(&fleet, Some((&authority, "few.test")));
    let stranger = client(&fleet, Some((&authority, "stranger.test")));
    let nobody = client(&fleet, None);
    for (who, client, url, method, status) in [
        ("gateway", &gateway, join("g"), Method::PUT, 200),
        ("gateway", &gateway, levers(), Method::GET, 403),
        ("operator", &operator, levers(), Method::GET, 200),
        ("few", &few, join("acme-1"), Method::PUT, 200),
        ("few", &few, join("acme"), Method::PUT, 403),
        ("few", &few, join("g"), Method::DELETE, 403),
        ("few", &few, fleet.url(0, "/v1/status"), Method::GET, 200),
        ("stranger", &stranger, join("g"), Method::PUT, 401),
        ("nobody", &nobody, join("g"), Method::PUT, 401),
        ("nobody", &nobody, fleet.url(0, "/livez"), Method::GET, 200),
    ] {
        let (got, body) = ask(client, method, url.clone()).await;
        assert_eq!(got.as_u16(), status, "{who} {url}: {body}");
    }
    // The bulk road too, and guilds of the other syncer: they are judged where they come in.
    let line = |guild: &str| format!("{{\"do\":\"join\",\"guild\":\"{guild}\",\"call\":\"c\",\"session\":\"s\"}}\n");
    let guilds: Vec<String> = [fleet.guild_of(0), fleet.guild_of(1)].into_iter().chain(["acme-1".into()]).collect();
    let body: String = guilds.iter().map(|g| line(g)).collect();
    let sent = few.post(fleet.url(0, "/v1/voice-states")).body(body).send().await.expect("an answer");
    let text = sent.text().await.expect("text");
    let statuses: Vec<u64> = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON")["status"].as_u64().expect("one"))
        .collect();
    assert_eq!(statuses.iter().filter(|s| **s == 403).count(), 2, "{text}");
    assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 1, "{text}");

    let key = KeyPair::generate().expect("a key");
    let false_authority = rcgen::Issuer::new(CertificateParams::new(vec![]).expect("parameters"), key);
    let forged = client(&fleet, Some((&false_authority, "op.test")));
    assert!(forged.get(levers()).send().await.is_err(), "not of our authority: no connection");
}

/// Whoever shows a certificate watches for the gateway that it names, whatever the request says.
#[tokio::test(flavor = "multi_thread")]
async fn r16_a_watch_over_mtls_shows_the_sessions_of_the_certificates_gateway_alone() {
    let fleet = Fleet::start_with(1, 1, behind_tls).await;
    let authority = authority(&fleet);
    let [mine, theirs] = ["gw-1.test", "few.test"].map(|name| client(&fleet, Some((&authority, name))));
    let join = async |client: &Client, call: &str, session: &str| {
        let url = fleet.url(0, &format!("/v1/guilds/acme-1/calls/{call}/participants/{session}"));
        assert_eq!(ask(client, Method::PUT, url).await.0, StatusCode::OK);
    };
    let sessions = |event: &Value| -> Vec<Value> {
        event["credentials"].as_array().expect("a list").iter().map(|c| c["session"].clone()).collect()
    };
    for (client, call, session) in
        [(&theirs, "theirs", "b1"), (&mine, "both", "a2"), (&theirs, "both", "b2"), (&mine, "mine", "a3")]
    {
        join(client, call, session).await;
        let placed = || async { fleet.syncers[0].engine().status().awaiting == 0 };
        until("a place", placed).await; // so that the events of one watch come in this order
    }
    for (client, end, letter, own) in [
        (&mine, "mine-end", "a", [("both", "a2"), ("mine", "a3")]),
        (&theirs, "theirs-end", "b", [("both", "b2"), ("theirs", "b1")]),
    ] {
        let mut events = Events::open(client.get(fleet.url(0, "/v1/watch"))).await;
        // What follows is of both, and the last of the one who watches: all before it was said by then.
        join(&mine, &format!("{end}-a"), "a4").await;
        join(&theirs, &format!("{end}-b"), "b4").await;
        until("places", || async { fleet.syncers[0].engine().status().awaiting == 0 }).await;
        join(client, end, "last").await;
        let mut seen = Vec::new();
        loop {
            let event = events.next().await;
            let call = event.data["call"].as_str().expect("a call").to_owned();
            let sessions = sessions(&event.data);
            if call == end {
                break;
            }
            seen.push((call, sessions));
        }
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        let all_own = seen.iter().flat_map(|(_, s)| s).all(|s| s.as_str().expect("an id").starts_with(letter));
        assert!(all_own, "a session of another gateway: {seen:?}");
        for (call, session) in own {
            assert!(seen.contains(&(call.to_owned(), vec![session.into()])), "{call} in {seen:?}");
        }
        assert!(seen.iter().all(|(_, s)| s.len() == 1), "a call that is not its own: {seen:?}");
    }
    let stranger = client(&fleet, Some((&authority, "stranger.test")));
    assert_eq!(ask(&stranger, Method::GET, fleet.url(0, "/v1/watch")).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_authorities_and_keys_are_read_again_and_cut_no_connection() {
    let fleet = Fleet::start_with(1, 1, behind_tls).await;
    let dir = fleet.dir.path();
    let plain = client(&fleet, None);
    let with = |token: &'static str| answer(plain.get(fleet.url(0, "/v1/status")).bearer_auth(token));
    let mut events = Events::open(plain.get(fleet.url(0, "/v1/watch")).bearer_auth("t-g")).await;
    assert_eq!(with("t-new").await.0, 401);

    let listed = "[[tokens]]\ntoken = \"t-new\"\nid = \"n\"\nrole = \"gateway\"\n";
    std::fs::write(dir.join("callers.toml"), listed).expect("written");
    fleet.syncers[0].reload();
    until("the new token is known", || async { with("t-new").await.0 == 200 }).await;
    std::fs::write(dir.join("callers.toml"), "[[tokens]]\ntoken = 5\n").expect("written");
    fleet.syncers[0].reload();
    let counted = || async {
        let metrics = plain.get(fleet.url(0, "/metrics")).send().await.expect("an answer").text().await;
        !metrics.expect("text").contains("trunkline_bad_files_total 0")
    };
    until("the bad file is counted", counted).await;
    assert_eq!(with("t-new").await.0, 200, "the last good one stays");
    std::fs::write(dir.join("callers.toml"), "").expect("written");
    fleet.syncers[0].reload();
    until("the token is withdrawn", || async { with("t-new").await.0 == 401 }).await;

    // Another authority of callers.
    let mut ca = CertificateParams::new(vec![]).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "another authority");
    let key = KeyPair::generate().expect("a key");
    let pem = ca.self_signed(&key).expect("a certificate").pem();
    let other = rcgen::Issuer::new(ca, key);
    let both = std::fs::read_to_string(dir.join("client-ca.pem")).expect("readable") + &pem;
    let levers = || client(&fleet, Some((&other, "op.test"))).get(fleet.url(0, "/v1/levers")).send();
    assert!(levers().await.is_err(), "not trusted yet");
    std::fs::write(dir.join("client-ca.pem"), both).expect("written");
    fleet.syncers[0].reload();
    until("it is trusted", || async { levers().await.is_ok_and(|r| r.status() == 200) }).await;

    // The watch of before all that still tells.
    let put = plain.put(fleet.url(0, "/v1/guilds/g/calls/c/participants/s")).bearer_auth("t-g").body("{}");
    assert_eq!(answer(put).await.0, 200);
    assert_eq!(events.of_call("g", "c").await["phase"], 1);
}

/// One caller with both its streams open, and a call of its own.
struct Open {
    name: &'static str,
    lines: mpsc::Sender<Result<String, std::io::Error>>,
    results: reqwest::Response,
    events: Events,
}

// === impl Open ===

impl Open {
    async fn at(fleet: &Fleet, name: &'static str, client: &Client, token: Option<&str>) -> Self {
        let request = |method, path: &str| {
            let request = client.request(method, fleet.url(0, path));
            match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            }
        };
        let (lines, body) = mpsc::channel(1);
        let body = reqwest::Body::wrap_stream(ReceiverStream::new(body));
        let events = Events::open(request(Method::GET, "/v1/watch")).await;
        lines.send(Ok(Self::line(name, "first"))).await.expect("there is room");
        let sent = request(Method::POST, "/v1/voice-states").body(body).send();
        let results = soon("the head", sent).await.expect("an answer");
        let mut open = Self { name, lines, results, events };
        assert_eq!(open.result().await.expect("one")["status"], 200, "{name}");
        assert_eq!(open.events.of_call("g", &format!("{name}-first")).await["phase"], 1, "{name}");
        open
    }

    fn line(name: &str, call: &str) -> String {
        json!({ "op": call, "do": "join", "guild": "g", "call": format!("{name}-{call}"), "session": "s" }).to_string()
            + "\n"
    }

    /// The next result, or the end of the stream.
    async fn result(&mut self) -> Option<Value> {
        let chunk = soon("a result", self.results.chunk()).await.expect("open").filter(|chunk| !chunk.is_empty())?;
        Some(serde_json::from_slice(&chunk).expect("one result"))
    }
}

/// Whoever is taken off the list, or may do something else by it, speaks and hears no longer on streams that stand.
#[tokio::test(flavor = "multi_thread")]
async fn r16_streams_of_a_caller_that_is_withdrawn_or_changed_end_and_those_of_others_go_on() {
    const GONE: &str = "[[tokens]]\ntoken = \"t-gone\"\nid = \"gone\"\nrole = \"gateway\"\n\
        [[certificates]]\nname = \"gone.test\"\nid = \"gone-too\"\nrole = \"gateway\"\n";
    let listed = |guilds: &str| {
        format!(
            "[[tokens]]\ntoken = \"t-few\"\nid = \"few\"\nrole = \"gateway\"\nguilds = [{guilds}]\n\
             [[tokens]]\ntoken = \"t-stays\"\nid = \"stays\"\nrole = \"gateway\"\nguilds = [\"g\"]\n"
        )
    };
    let fleet = Fleet::start_with(1, 1, behind_tls).await;
    let list = async |text: String, token: &str, status: u16| {
        std::fs::write(fleet.dir.path().join("callers.toml"), text).expect("written");
        fleet.syncers[0].reload();
        let request = || client(&fleet, None).get(fleet.url(0, "/v1/status")).bearer_auth(token);
        until("the list is read", || async { answer(request()).await.0 == status }).await;
    };
    list(listed("\"g\"") + GONE, "t-gone", 200).await;
    let plain = client(&fleet, None);
    let certified = client(&fleet, Some((&authority(&fleet), "gone.test")));
    let mut withdrawn = [
        Open::at(&fleet, "gone", &plain, Some("t-gone")).await,
        Open::at(&fleet, "gone-too", &certified, None).await,
        Open::at(&fleet, "few", &plain, Some("t-few")).await,
    ];
    let mut others = [
        Open::at(&fleet, "stays", &plain, Some("t-stays")).await,
        Open::at(&fleet, "fixed", &plain, Some("t-g")).await,
    ];

    list(listed("\"g\", \"h\""), "t-gone", 401).await;
    for open in withdrawn.iter_mut().chain(&mut others) {
        open.lines.send(Ok(Open::line(open.name, "second"))).await.expect("there is room");
    }
    for open in &mut withdrawn {
        let result = open.result().await.expect("a last word");
        let seen = (&result["op"], &result["status"], &result["error_code"]);
        assert_eq!(seen, (&json!("second"), &json!(401), &json!("caller_changed")), "{}", open.name);
        assert_eq!(open.result().await, None, "{}", open.name);
        let event = open.events.next().await;
        assert_eq!((&*event.name, &event.data), ("end", &json!({ "reason": "caller_changed" })), "{}", open.name);
        soon("the end", open.events.ended()).await;
    }
    for open in &mut others {
        assert_eq!(open.result().await.expect("open")["status"], 200, "{}", open.name);
        assert_eq!(open.events.of_call("g", &format!("{}-second", open.name)).await["phase"], 1);
    }
    assert_eq!(fleet.syncers[0].engine().status().participants, 5 + 2, "the withdrawn did nothing more");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_the_sfus_that_is_exchanged_is_trusted_without_a_restart() {
    let fleet = Fleet::start_with(1, 1, |config| {
        let dir = dir_of(config);
        certificates(&dir); // of somebody else
        config.sfu_ca_file = Some(dir.join("sfu-ca.pem"));
        std::fs::copy(dir.join("api-ca.pem"), dir.join("sfu-ca.pem")).expect("copied");
    })
    .await;
    let (status, body) = fleet.join(0, "g", "c", "s").await;
    assert!(status == 200 && body["endpoint"].is_null(), "{body}");
    let sfu = || async { fleet.get(0, "/v1/sfus").await.1["sfus"][0].to_string() };
    until("the SFU is not trusted", || async { !sfu().await.contains("\"healthy\"") }).await;
    std::fs::copy(fleet.dir.path().join("ca.pem"), fleet.dir.path().join("sfu-ca.pem")).expect("copied");
    fleet.syncers[0].reload();
    fleet.join_until_placed(0, "g", "c", "s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_key_signs_and_the_former_stays_published() {
    crate::support::install_provider();
    let dir = tempfile::tempdir().expect("a directory");
    let sfus = crate::support::sfus(1, dir.path()).await;
    let path = dir.path().join("token-key.pem");
    let write = || {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        std::fs::write(&path, key.serialize_pem()).expect("written");
    };
    write();
    let mut config = crate::support::config("syncer-1", dir.path());
    config.token_key_file = Some(path.clone());
    let syncer = syncer::Syncer::start(config, syncer::Options::default()).await.expect("starts");
    let former = syncer.signer().jwks().keys[0].kid.clone();
    write();
    syncer.reload();
    until("both are published", || async { syncer.signer().jwks().keys.len() == 2 }).await;
    let keys = syncer.signer().jwks().keys;
    assert!(keys[0].kid != former && keys[1].kid == former, "{keys:?}");
    drop(sfus);
}

#[tokio::test(flavor = "multi_thread")]
async fn away_from_loopback_operators_are_served_by_the_second_listener_only() {
    for remotely in [false, true] {
        let fleet = Fleet::start_with(1, 1, |config| {
            behind_tls(config);
            config.listen = "0.0.0.0:0".parse().expect("an address");
            config.admin_listen = Some("127.0.0.1:0".parse().expect("an address"));
            config.operate_remotely = remotely;
        })
        .await;
        let client = client(&fleet, None);
        let api = format!("https://127.0.0.1:{}", fleet.syncers[0].addr().port());
        let admin = format!("http://{}", fleet.syncers[0].admin_addr().expect("listens"));
        let status = async |at: &str, path: &str, method: Method| {
            let request = client.request(method, format!("{at}{path}")).bearer_auth("t-o");
            request.send().await.expect("an answer").status().as_u16()
        };
        for (path, method, hidden) in [
            ("/v1/levers", Method::GET, 403),
            ("/v1/levers", Method::PATCH, 403),
            ("/v1/sfus", Method::GET, 403),
            ("/v1/sfus/sfu-1:cordon", Method::POST, 403),
            ("/v1/calls", Method::GET, 403),
            ("/v1/members", Method::GET, 403),
            ("/debug/pool", Method::GET, 404),
            ("/metrics", Method::GET, 404),
        ] {
            let got = (status(&api, path, method.clone()).await, status(&admin, path, method.clone()).await);
            assert_eq!(got.0 < 300, remotely, "{method} {path} of the API: {got:?}");
            assert!(remotely || got.0 == hidden, "{method} {path} of the API: {got:?}");
            assert!(got.1 < 300, "{method} {path} of the second listener: {got:?}");
        }
        for path in ["/livez", "/readyz", "/v1/status"] {
            assert_eq!(status(&api, path, Method::GET).await, 200, "{path}");
        }
        let without = client.get(format!("{admin}/v1/levers")).send().await.expect("an answer").status();
        assert_eq!(without, 401, "loopback is no identity");
    }
}

#[test]
fn away_from_loopback_there_is_a_second_listener_by_default() {
    let near = Config::default();
    assert!(near.admin_addr().is_none() && near.operators_on_api());
    let far = Config { listen: "0.0.0.0:8441".parse().expect("an address"), ..Config::default() };
    assert_eq!(far.admin_addr(), Some("127.0.0.1:8442".parse().expect("an address")));
    assert!(!far.operators_on_api());
    let error = Config { admin_listen: Some("0.0.0.0:1".parse().expect("an address")), ..Config::default() };
    assert_eq!(error.check().expect_err("refused").key(), Some("admin_listen"));
}
