//! Secrets stay where they belong: a whole syncer, logging all it can, and every page it serves.

use std::path::Path;
use std::process::Command;

use rcgen::KeyPair;
use serde_json::Value;

use crate::common::{PATIENCE, Process, TRUNKLINE, client, eventually, file, free_port, run};
use crate::turn;

/// Everything that our own code can log, and libraries down to `debug`.
const LOG: &str = "debug,syncer=trace,pool=trace,trunkline=trace";

const GATEWAY: &str = "tok-gateway-7f3a";
const OPERATOR: &str = "tok-operator-91bc";
const CALLERS: &str = "tok-callers-8d21";
const WRONG: &str = "tok-wrong-55aa";
const PEER: &str = "peer-secret-c0ffee";

/// What is served to be read.
const PAGES: [&str; 16] = [
    "/v1/status",
    "/v1/levers",
    "/v1/members",
    "/v1/sfus",
    "/v1/calls",
    "/v1/audit",
    "/v1/blocks",
    "/v1/gateways",
    "/v1/recovery",
    "/v1/guilds/g/calls/c",
    "/v1/guilds/g/calls/c:explain",
    "/debug/pool",
    "/metrics",
    "/openapi.json",
    "/.well-known/jwks.json",
    "/",
];

/// The middle line of a PEM file: its secret part.
fn middle(pem: &str) -> String {
    pem.lines().nth(1).expect("a line").to_owned()
}

fn configure(dir: &Path, port: u16, token_key: &str) -> String {
    let path = |name: &str| dir.join(name).display().to_string();
    std::fs::write(dir.join("token-key.pem"), token_key).expect("written");
    let callers = format!("[[tokens]]\ntoken = \"{CALLERS}\"\nid = \"gw-2\"\nrole = \"gateway\"\n");
    std::fs::write(dir.join("callers.toml"), callers).expect("written");
    let config = format!(
        "listen = \"127.0.0.1:{port}\"\nsfus_file = \"{}\"\nsfu_ca_file = \"{}\"\ntoken_key_file = \"{}\"\n\
         [auth]\nmode = \"tokens\"\npeer_secret = \"{PEER}\"\ncallers_file = \"{}\"\ntokens = [\n\
         {{ token = \"{GATEWAY}\", id = \"gw-1\", role = \"gateway\" }},\n\
         {{ token = \"{OPERATOR}\", id = \"op\", role = \"operator\" }},\n]\n",
        path("m1/sfus.toml"),
        path("pki/ca.pem"),
        path("token-key.pem"),
        path("callers.toml"),
    );
    std::fs::write(dir.join("syncer.toml"), config).expect("written");
    path("syncer.toml")
}

/// The first so many session tokens that a watch tells.
async fn told(mut watch: reqwest::Response, count: usize) -> Vec<String> {
    assert!(watch.status().is_success(), "{}", watch.status());
    let mut text = String::new();
    loop {
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
        let credentials = events.flat_map(|event| event["credentials"].as_array().cloned().unwrap_or_default());
        let tokens: Vec<String> = credentials.filter_map(|c| c["token"].as_str().map(str::to_owned)).collect();
        if tokens.len() >= count {
            return tokens;
        }
        let chunk = watch.chunk().await.expect("the watch goes on").expect("the watch goes on");
        text += &String::from_utf8_lossy(&chunk);
    }
}

/// Session tokens from each road: a join, a line of many, and a watch of both whose caller is named in its query.
async fn credentials(client: &reqwest::Client, url: &str) -> Vec<String> {
    let token = |answer: &str| Some(serde_json::from_str::<Value>(answer).ok()?["token"].as_str()?.to_owned());
    let join = eventually("a session token", PATIENCE, || async {
        let join = client.put(format!("{url}/v1/guilds/g/calls/c/participants/s"));
        token(&join.bearer_auth(GATEWAY).body("{}").send().await.ok()?.text().await.ok()?)
    })
    .await;
    let line = r#"{"op":"o","do":"join","guild":"g","call":"c","session":"s2"}"#;
    let lines = client.post(format!("{url}/v1/voice-states")).bearer_auth(GATEWAY).body(format!("{line}\n"));
    let results = lines.send().await.expect("an answer").text().await.expect("text");
    let watch = client.get(format!("{url}/v1/watch?access_token={GATEWAY}")).send().await.expect("an answer");
    let mut credentials = told(watch, 2).await;
    credentials.extend([join, token(&results).expect("a session token")]);
    credentials
}

#[tokio::test]
async fn no_secret_is_in_logs_pages_or_printed_configuration() {
    let _turn = turn().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (root, port) = (dir.path(), free_port());
    let path = |name: &str| root.join(name).display().to_string();
    let mock = ["sfu-mock", "--nodes", "1", "--name", "m1", "--ca-dir", &path("pki"), "--dir", &path("m1")];
    let _mock = Process::trunkline(root, "mock", &mock);
    file(&root.join("m1/control.url")).await;
    let token_key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key").serialize_pem();
    let config = configure(root, port, &token_key);
    let mut syncer =
        Process::start(root, "syncer", Command::new(TRUNKLINE).args(["syncer", "--config", &config, "--log", LOG]));

    let (client, url) = (client(), format!("http://127.0.0.1:{port}"));
    let credentials = credentials(&client, &url).await;

    let mut shown = String::new();
    for token in [OPERATOR, GATEWAY, CALLERS, WRONG, PEER] {
        for page in PAGES {
            let asked = client.get(format!("{url}{page}")).bearer_auth(token).send();
            shown += &asked.await.expect("an answer").text().await.expect("text");
        }
    }
    let query = format!("/v1/watch?access_token={WRONG}&scope=nowhere");
    shown += &client.get(format!("{url}{query}")).send().await.expect("an answer").text().await.expect("text");
    let said = |args: &[&str]| {
        let output = run(args);
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    shown += &said(&["config", "print", "--config", &config]);
    // A file of callers that is wrong, and wrong on the line of its secret.
    std::fs::write(root.join("callers.toml"), format!("[[tokens]]\ntoken = [\"{CALLERS}\"]\n")).expect("written");
    syncer.signal("HUP");
    eventually("the bad file is noticed", PATIENCE, || async {
        syncer.output().contains("callers.toml").then_some(())
    })
    .await;
    shown += &said(&["config", "check", "--config", &config]);
    let bad = Command::new(TRUNKLINE)
        .args(["config", "print"])
        .env("TRUNKLINE_AUTH__TOKENS", format!("\"{GATEWAY}\""))
        .output()
        .expect("trunkline runs");
    assert!(!bad.status.success());
    shown += &String::from_utf8_lossy(&bad.stderr);
    syncer.signal("TERM");
    syncer.ended(PATIENCE).await;
    shown += &syncer.output();

    assert!(shown.contains("<redacted>") && shown.contains("syncer started"), "this test reads nothing: {shown}");
    let secrets = [GATEWAY, OPERATOR, CALLERS, WRONG, PEER, &middle(&token_key)];
    for secret in secrets.into_iter().chain(credentials.iter().map(String::as_str)) {
        let line = shown.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret} is in: {line:?}");
    }
}
