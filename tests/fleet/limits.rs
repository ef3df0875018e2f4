//! `trunkline limits` against a syncer process.

use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{PATIENCE, Process, eventually, free_port, run};

const LEVER: &str = "placement.overall.rate";

/// A syncer without SFUs, on plain HTTP.
struct Syncer {
    dir: TempDir,
    address: String,
}

// === impl Syncer ===

impl Syncer {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), address: format!("127.0.0.1:{}", free_port()) }
    }

    fn start(&self) -> Process {
        Process::trunkline(self.dir.path(), "syncer", &["syncer", "--listen", &self.address])
    }

    fn limits(&self, args: &[&str]) -> Output {
        let url = format!("http://{}", self.address);
        run(&[&["limits", "--url", &url], args].concat())
    }

    async fn answers(&self) {
        eventually("the syncer answers", PATIENCE, || async { self.limits(&[]).status.success().then_some(()) }).await;
    }

    fn watch(&self, name: &str, args: &[&str]) -> Process {
        let url = format!("http://{}", self.address);
        let args = [&["limits", "watch", "--url", &url, "--interval", "200ms"], args].concat();
        Process::trunkline(self.dir.path(), name, &args)
    }
}

/// Waits until the watch has told so many events; all of them.
async fn events(watch: &Process, count: usize) -> Vec<Value> {
    eventually(&format!("{count} events"), PATIENCE, || async {
        let text = watch.output();
        let lines = text.rsplit_once('\n').map_or("", |(whole, _)| whole).lines();
        let events: Vec<Value> = lines.map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        (events.len() >= count).then_some(events)
    })
    .await
}

async fn ends_well(mut watch: Process) {
    watch.signal("INT");
    let status = watch.ended(PATIENCE).await;
    assert!(status.success(), "{status}: {}", watch.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_watch_tells_each_change_with_who_and_why_and_survives_a_syncer_that_is_away() {
    let syncer = Syncer::new();
    let first = syncer.start();
    syncer.answers().await;
    let (watch, people) = (syncer.watch("watch", &["-o", "json", LEVER]), syncer.watch("people", &[]));
    let began = &events(&watch, 1).await[0];
    assert_eq!((&began["event"], &began["levers"][0]["name"]), (&"levers".into(), &LEVER.into()), "{began}");
    let levers = began["levers"].as_array().expect("a list");
    assert_eq!(levers.len(), 1, "only those that were named");
    let before = levers[0]["value"].clone();
    eventually("the table", PATIENCE, || async { people.output().contains(" watching\n").then_some(()) }).await;

    let asked = syncer.limits(&["set", &format!("{LEVER}=7"), "--dry-run", "--reason", "only asking"]);
    assert!(asked.status.success() && String::from_utf8_lossy(&asked.stdout).contains("nothing changed"), "{asked:?}");
    let refused = syncer.limits(&["set", &format!("{LEVER}=-7"), "--dry-run"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    for set in [format!("{LEVER}=100"), "health.suspect_max=31s".to_owned(), format!("{LEVER}=50")] {
        assert!(syncer.limits(&["set", &set, "--reason", "SFUs are slow & few"]).status.success(), "{set}");
    }
    let told = events(&watch, 3).await;
    let steps: Vec<_> = told[1..].iter().map(|change| [&change["from"], &change["to"]].map(Value::as_f64)).collect();
    assert_eq!(steps, [[before.as_f64(), Some(100.0)], [Some(100.0), Some(50.0)]], "{told:?}");
    for change in &told[1..] {
        assert_eq!((&change["by"], &change["reason"]), (&"operator".into(), &"SFUs are slow & few".into()));
    }
    let line = "100 -> 50 by operator: SFUs are slow & few\n";
    eventually("lines for people", PATIENCE, || async { people.output().contains(line).then_some(()) }).await;
    assert!(people.output().contains("health.suspect_max"), "all levers, where none is named");

    drop(first);
    assert_eq!(events(&watch, 4).await[3]["event"], "away");
    let _second = syncer.start();
    let told = events(&watch, 6).await;
    assert_eq!(told[4]["event"], "back", "said once, however often it was asked: {told:?}");
    assert_eq!((&told[5]["to"], &told[5]["by"]), (&before, &Value::Null), "what it forgot is told: {told:?}");
    ends_well(watch).await;
    ends_well(people).await;
}

#[tokio::test]
async fn r20_a_watch_of_nothing_is_an_error_that_says_what_is_missing() {
    let syncer = Syncer::new();
    let nobody = syncer.limits(&["watch"]);
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert_eq!(nobody.status.code(), Some(69), "{said}");
    assert!(said.contains(&syncer.address) && said.contains("is it running?"), "{said}");
    let hasty = syncer.limits(&["watch", "--interval", "1ms"]);
    assert_eq!(hasty.status.code(), Some(2), "{hasty:?}");
    let _syncer = syncer.start();
    syncer.answers().await;
    let unknown = syncer.limits(&["watch", "placemnt"]);
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(1), "{said}");
    assert!(said.contains("placemnt"), "{said}");
}

#[tokio::test]
async fn r20_limits_are_listed_by_the_beginning_of_their_names() {
    let syncer = Syncer::new();
    let _syncer = syncer.start();
    syncer.answers().await;
    let listed = |args: &[&str]| -> Vec<(String, Value)> {
        let told = syncer.limits(&[args, &["-o", "json"]].concat());
        assert!(told.status.success(), "{told:?}");
        let told: Value = serde_json::from_slice(&told.stdout).expect("JSON");
        let levers = told["levers"].as_array().expect("a list").iter();
        levers.map(|lever| (lever["name"].as_str().expect("a name").to_owned(), lever["value"].clone())).collect()
    };
    assert!(syncer.limits(&["set", &format!("{LEVER}=123"), "placement.overall.burst=45"]).status.success());
    let all = listed(&[]);
    for prefix in ["placement.overall.", "placement.", LEVER, "p", "health.suspect_max"] {
        let theirs: Vec<_> = all.iter().filter(|(name, _)| name.starts_with(prefix)).cloned().collect();
        assert_eq!(listed(&["get", prefix]), theirs, "{prefix}");
    }
    assert!(all.len() > 50 && listed(&["get"]) == all);
    let mut overall = listed(&["get", "placement.overall."]);
    overall.sort_by(|a, b| a.0.cmp(&b.0));
    let names: Vec<&str> = overall.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["placement.overall.burst", LEVER]);
    assert_eq!(overall.iter().filter_map(|(_, value)| value.as_f64()).collect::<Vec<_>>(), [45.0, 123.0]);

    let table = String::from_utf8(syncer.limits(&["get", LEVER]).stdout).expect("text");
    let rows: Vec<&str> = table.lines().filter(|line| line.contains('.')).collect();
    assert!(rows.len() == 1 && rows[0].contains(LEVER) && rows[0].contains("123"), "{table}");

    let unknown = syncer.limits(&["get", "placemnt"]);
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(1), "{said}");
    assert!(said.contains("`placemnt`") && said.contains("`trunkline limits` lists all"), "{said}");
}
