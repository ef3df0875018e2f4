//! Bad input at the command line: refused early, with what is wrong, where, and what was meant.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use crate::common::{PATIENCE, Process, run};
use crate::parts::Parts;
use crate::turn;

const CONFIG: Option<i32> = Some(78);

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

/// Runs a command that must refuse, and returns what it said.
fn refused<S: AsRef<std::ffi::OsStr>>(args: &[S], code: Option<i32>, names: &[&str]) -> String {
    let output = run(args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), code, "{text}");
    for name in names {
        assert!(text.contains(name), "{name} is not named in: {text}");
    }
    text
}

#[test]
fn an_unknown_key_names_file_line_and_nearest_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(dir.path(), "syncer.toml", "id = \"s\"\n\n[auth]\npeer_secrt = \"x\"\n");
    refused(&["syncer", "--config", &file], CONFIG, &[&file, "4", "peer_secrt", "auth.peer_secret"]);
    refused(&["config", "check", "--config", &file], CONFIG, &[&file, "peer_secrt"]);
}

#[test]
fn a_certificate_authority_that_cannot_be_read_or_is_none_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let sfus = write(dir.path(), "sfus.toml", "sfus = []\n");
    let wrong = write(dir.path(), "wrong.pem", "this is not a certificate\n");
    let absent = dir.path().join("absent.pem").display().to_string();
    for file in [&wrong, &absent] {
        refused(&["syncer", "--sfus", &sfus, "--sfu-ca", file], CONFIG, &[file]);
        let drill = ["drill", "steady", "--syncer", "https://127.0.0.1:1", "--ca", file];
        refused(&drill, CONFIG, &[file]);
    }
    let locked = write(dir.path(), "locked.pem", "x");
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o000)).expect("ours");
    // Root may read anything; for root the content is what is wrong with it.
    let why = if File::open(&locked).is_ok() { "" } else { "ermission" };
    refused(&["syncer", "--sfus", &sfus, "--sfu-ca", &locked], CONFIG, &[&locked, why]);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let mut syncer = Process::trunkline(dir.path(), "syncer", &["syncer", "--listen", &address]);
    let status = syncer.ended(PATIENCE).await;
    assert!(!status.success() && status.code() != Some(70), "{status}: not a bug of ours");
    assert!(syncer.output().contains(&address), "{}", syncer.output());
    let own = dir.path().join("m").display().to_string();
    let args = ["sfu-mock", "--nodes", "1", "--control", &address, "--dir", &own];
    let mut mock = Process::trunkline(dir.path(), "mock", &args);
    assert!(!mock.ended(PATIENCE).await.success());
    assert!(mock.output().contains(&address), "{}", mock.output());
}

#[test]
fn a_wrong_plan_names_file_line_and_nearest_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let plan = "name = \"x\"\n[population]\nguilds = 1\ncalls = 1\nparticpants = 1\n";
    let file = write(dir.path(), "plan.toml", plan);
    let args = ["drill", &file, "--syncer", "http://127.0.0.1:1"];
    refused(&args, CONFIG, &[&format!("{file}:5:"), "particpants", "participants"]);
    refused(&["drill", "sfu-kil", "--syncer", "http://127.0.0.1:1"], CONFIG, &["sfu-kill"]);
    refused(&["drill", "steady"], CONFIG, &["--syncer"]);
    refused(&["drill", "steady", "--sede", "1"], Some(2), &["--seed"]);
}

#[tokio::test]
async fn an_authority_that_did_not_sign_is_told_from_a_fleet_that_does_not_answer() {
    let _turn = turn().await;
    let fleet = Parts::start(1, 2, 1).await;
    let (url, wrong) = (fleet.url(), fleet.path("pki/ca.pem"));
    refused(&["drill", "steady", "--syncer", &url, "--ca", &wrong], CONFIG, &[&url, "certificate"]);
}
