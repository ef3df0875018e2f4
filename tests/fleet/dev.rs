//! `trunkline dev`: the promise of the README, by the figures of its own report.

use serde_json::Value;

use crate::common::{PATIENCE, Process, eventually};
use crate::turn;

#[tokio::test]
async fn r22_dev_recovers_unaided_from_the_loss_of_a_fifth_of_its_sfus() {
    let _turn = turn().await;
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("out.json");
    let args = ["dev", "--for", "40s", "--json", &json.display().to_string()];
    let mut dev = Process::trunkline(dir.path(), "dev", &args);
    let status = dev.ended(PATIENCE * 3).await;
    let text = std::fs::read_to_string(&json).unwrap_or_else(|_| panic!("no report:\n{}", dev.output()));
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("no {key} in the report"));
    assert!(status.success(), "{status}: {} {}", report["checks"], report["findings"]);
    assert_eq!((number("calls"), number("placed"), number("calls_awaiting")), (2_000.0, 2_000.0, 0.0));
    assert_eq!(number("sfus_killed"), 10.0);
    assert!(number("calls_moved") > 0.0);
    assert_eq!(number("calls_moved"), number("calls_affected"), "those on dead SFUs moved, and no other");
    assert_eq!(number("buckets_overdrawn"), 0.0);
    assert_eq!(number("invariant_violations"), 0.0, "{}", report["findings"]);
    assert!(number("attempts_per_first") <= 1.1);
    for key in ["p50", "p99", "max"] {
        assert!(report["awaiting_ms"][key].is_number(), "{key}");
    }
}

#[tokio::test]
async fn dev_runs_until_interrupted_and_then_reports() {
    let _turn = turn().await;
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("out.json");
    let json_arg = json.display().to_string();
    let small = ["--sfus", "6", "--calls", "40", "--participants", "90", "--kill", "0"];
    let args: Vec<&str> = ["dev", "--json", &json_arg].into_iter().chain(small).collect();
    let mut dev = Process::trunkline(dir.path(), "dev", &args);
    eventually("every call is placed", PATIENCE, || async { dev.output().contains("placed 40/40").then_some(()) })
        .await;
    assert!(dev.is_running());
    dev.signal("INT");
    let status = dev.ended(PATIENCE).await;
    assert!(status.success(), "{status}:\n{}", dev.output());
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).expect("a report")).expect("JSON");
    assert_eq!((&report["placed"], &report["calls_awaiting"]), (&40.into(), &0.into()));
    assert_eq!(report["cancelled"], true);
}
