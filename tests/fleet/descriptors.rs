//! A syncer that runs out of file descriptors.

use std::net::TcpStream;
use std::process::Command;

use tokio::time::Instant;

use crate::common::{PATIENCE, Process, TRUNKLINE, client, eventually, free_port};

/// As many as the syncer needs for itself, and some tens of connections.
const DESCRIPTORS_MAX: u32 = 96;

/// Tries to accept in a second that has no descriptor for a connection.
const TRIES_PER_S: f64 = 10.0;

/// It says so, tries again ten times a second instead of all the time, goes on with whom it has, and serves again when
/// there are some.
#[tokio::test(flavor = "multi_thread")]
async fn i09_a_syncer_without_file_descriptors_waits_until_there_are_some() {
    let dir = tempfile::tempdir().expect("a directory");
    let address = format!("127.0.0.1:{}", free_port());
    let script = format!("ulimit -n {DESCRIPTORS_MAX} && exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, TRUNKLINE, "syncer", "--listen", &address]).env_remove("RUST_LOG");
    let syncer = Process::start(dir.path(), "syncer", &mut command);
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
