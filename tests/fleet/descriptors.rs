//! A syncer that runs out of file descriptors.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use tokio::time::Instant;

use crate::common::{PATIENCE, Process, TRUNKLINE, client, eventually, free_port};

/// As many as the syncer needs for itself, and some tens of connections.
const DESCRIPTORS_MAX: u32 = 96;

/// Tries to accept in a second that has no descriptor for a connection.
const TRIES_PER_S: f64 = 10.0;

/// Limits under which a syncer needs 64 descriptors of its own, 11 and 257 for those who come, 24 + 4 + 6 × 20 towards SFUs
/// and 32 + 5 + 6 × 25 towards peers.
const SMALL: [&str; 6] = [
    "http.first_request_timeout=10m",
    "http.connections_max=10",
    "pool.sfu.connections_max=24",
    "pool.sfu.dials_max=16",
    "pool.peer.connections_max=32",
    "pool.peer.dials_max=20",
];
/// Their sum.
const NEEDED: u64 = 667;

/// `trunkline`, in a process whose limit of open files a shell sets.
fn limited(ulimit: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{ulimit} && exec \"$0\" \"$@\""), TRUNKLINE]).env_remove("RUST_LOG");
    command
}

/// A syncer in such a process.
fn start(dir: &Path, address: &str, ulimit: &str, limits: &[&str]) -> Process {
    let mut command = limited(ulimit);
    command.args(["syncer", "--listen", address]);
    for limit in limits {
        command.args(["--set", &format!("limits.{limit}")]);
    }
    Process::start(dir, "syncer", &mut command)
}

/// The gauges of descriptors: open, the most there may be, the most that are needed.
async fn gauges(client: &reqwest::Client, address: &str) -> Option<[u64; 3]> {
    let answer = client.get(format!("http://{address}/metrics")).send().await.ok()?.error_for_status().ok()?;
    let text = answer.text().await.ok()?;
    let of = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    let names =
        ["trunkline_file_descriptors_open ", "trunkline_file_descriptors_max ", "trunkline_file_descriptors_needed "];
    Some([of(names[0])?, of(names[1])?, of(names[2])?]).filter(|[open, ..]| *open != 0) // they were counted
}

/// What was logged of the limit, as JSON.
fn warnings(syncer: &Process) -> Vec<serde_json::Value> {
    let output = syncer.output();
    let lines = output.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|line| line["message"].as_str().is_some_and(|m| m.starts_with("fewer open files"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_who_may_not_have_enough_descriptors_is_told_once_how_many_and_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let address = format!("127.0.0.1:{}", free_port());
    let syncer = start(dir.path(), &address, &format!("ulimit -n {DESCRIPTORS_MAX}"), &SMALL);
    let client = client();
    let [open, max, needed] = eventually("gauges", PATIENCE, || gauges(&client, &address)).await;
    assert_eq!((max, needed), (u64::from(DESCRIPTORS_MAX), NEEDED));
    assert!(open < max, "{open} are open");
    let warning = eventually("a word", PATIENCE, || async { warnings(&syncer).pop() }).await;
    assert_eq!(warnings(&syncer).len(), 1, "{}", syncer.output());
    assert_eq!(
        (&warning["level"], &warning["needed"], &warning["limit"]),
        (&"WARN".into(), &NEEDED.into(), &max.into())
    );
    for part in [format!("ulimit -n {NEEDED}"), format!("LimitNOFILE={NEEDED}"), "pool.sfu.connections_max".to_owned()]
    {
        assert!(warning.to_string().contains(&part), "{part} is not in {warning}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_soft_limit_of_descriptors_is_raised_to_what_is_needed_and_those_open_are_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let address = format!("127.0.0.1:{}", free_port());
    let ulimit = format!("ulimit -S -n {DESCRIPTORS_MAX} && ulimit -H -n 900");
    let syncer = start(dir.path(), &address, &ulimit, &SMALL);
    let client = client();
    let few = eventually("the limit is raised", PATIENCE, || async {
        let [few, limits @ ..] = gauges(&client, &address).await?;
        (limits == [NEEDED; 2]).then_some(few)
    })
    .await;
    assert_eq!(warnings(&syncer), Vec::<serde_json::Value>::new());

    let limits = |max: u32| {
        let body = serde_json::json!({ "http.connections_max": max });
        client.patch(format!("http://{address}/v1/levers")).bearer_auth("o").json(&body).send()
    };
    assert!(limits(150).await.expect("an answer").status().is_success());
    eventually("a turned lever counts", PATIENCE, || async {
        (gauges(&client, &address).await?[1..] == [NEEDED + 140; 2]).then_some(())
    })
    .await;
    let crowd: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&address).expect("the kernel takes it")).collect();
    eventually("they are counted", PATIENCE, || async {
        (gauges(&client, &address).await?[0] >= few + 100).then_some(())
    })
    .await;
    drop(crowd);
    assert!(limits(1_000).await.expect("an answer").status().is_success());
    eventually("a word of what may not be had", PATIENCE, || async { (warnings(&syncer).len() == 1).then_some(()) })
        .await;
    eventually("all that may be had", PATIENCE, || async {
        (gauges(&client, &address).await?[1..] == [900, NEEDED + 990]).then_some(())
    })
    .await;
}

/// All of it is in one process: 40 SFUs, each with three connections to each of two syncers, of which both ends count.
#[tokio::test(flavor = "multi_thread")]
async fn r21_a_whole_fleet_in_one_process_is_told_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = limited(&format!("ulimit -n {DESCRIPTORS_MAX}"));
    let fleet = Process::start(dir.path(), "dev", command.args(["dev", "--sfus", "40", "--syncers", "2"]));
    let warning = eventually("a word", PATIENCE, || async { warnings(&fleet).pop() }).await;
    assert_eq!((&warning["needed"], &warning["limit"]), (&1_032.into(), &DESCRIPTORS_MAX.into()));
    assert!(warning["or_lower"].as_str().is_some_and(|text| text.contains("--sfus")), "{warning}");
}

/// It says so, tries again ten times a second instead of all the time, goes on with whom it has, and serves again when
/// there are some.
#[tokio::test(flavor = "multi_thread")]
async fn i09_a_syncer_without_file_descriptors_waits_until_there_are_some() {
    let dir = tempfile::tempdir().expect("a directory");
    let address = format!("127.0.0.1:{}", free_port());
    let syncer = start(dir.path(), &address, &format!("ulimit -n {DESCRIPTORS_MAX}"), &[]);
    let known = client();
    let answers = async |client: &reqwest::Client| {
        let answer = client.get(format!("http://{address}/livez")).send().await.ok()?.error_for_status().ok()?;
        answer.bytes().await.ok().map(drop) // or the connection could not be used again
    };
    eventually("the syncer answers", PATIENCE, || answers(&known)).await;

    let began = Instant::now();
    let crowd: Vec<TcpStream> =
        (0..DESCRIPTORS_MAX).map(|_| TcpStream::connect(&address).expect("the kernel takes it")).collect();
    let said = || syncer.output().matches("cannot accept connections").count();
    eventually("a word of it", PATIENCE, || async { (said() >= 3).then_some(()) }).await;
    answers(&known).await.expect("whoever has a connection is served");
    let (said, took) = (said(), Instant::now().saturating_duration_since(began).as_secs_f64());
    assert!(said as f64 <= TRIES_PER_S * took + 1.0, "{said} tries in {took:.1} s");

    drop(crowd);
    eventually("new connections", PATIENCE, || async { answers(&client()).await }).await;
    assert!(syncer.is_running(), "it did not end of it");
}
