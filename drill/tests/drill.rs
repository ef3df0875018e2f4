//! Whole drills against a fake fleet that misbehaves on purpose: what the drill must survive, obey
//! and find.

// Documentation of test helpers is their names.
#![allow(missing_docs, unreachable_pub)]

mod fake;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use drill::{Error, Observer, Outcome, Plan, Report, Targets, run};
use tokio_util::sync::CancellationToken;

use self::fake::{Fleet, Served, control, syncer};

/// No drill here may take longer: a hang fails with a name instead of a time-out of the runner.
const DRILL_MAX: Duration = Duration::from_secs(60);

fn plan(rest: &str) -> Plan {
    let text = format!("name = \"t\"\nduration = \"30s\"\nlinger = \"300ms\"\nsettle_max = \"10s\"\n{rest}");
    Plan::parse(&text, "test").expect("valid plan")
}

const POPULATION: &str = "[population]\ngateways = 3\nguilds = 4\ncalls = 20\nparticipants = 60\nput_share = 0.3\n\
    ramp = \"300ms\"\n[[phases]]\nname = \"placed\"\nwhen = \"placed >= 100%\"\n";

fn targets(syncers: &[&Served], controls: &[&Served]) -> Targets {
    let urls = |of: &[&Served]| of.iter().map(|served| served.url.clone()).collect();
    Targets { syncers: urls(syncers), controls: urls(controls), ..Targets::default() }
}

async fn hold(plan: Plan, targets: Targets) -> Report {
    let drill = run(plan, targets, Observer::none(), CancellationToken::new());
    tokio::time::timeout(DRILL_MAX, drill).await.expect("the drill ends").expect("the drill is held")
}

#[tokio::test]
async fn every_call_is_placed_over_both_roads_and_everyone_leaves() {
    let fleet = Arc::new(Fleet::default());
    let (one, two, port) = (syncer(&fleet).await, syncer(&fleet).await, control(&fleet).await);
    let checks = "[[checks]]\nexpect = \"calls_awaiting == 0\"\n[[checks]]\nexpect = \"rooms_missing == 0\"\n\
        [[checks]]\nexpect = \"invariant_violations == 0\"\n[[checks]]\nexpect = \"watchers_behind == 0\"\n";
    let plan = plan(&format!("leave_at_end = true\n{POPULATION}{checks}"));
    let report = hold(plan, targets(&[&one, &two], &[&port])).await;
    assert!(report.passed, "{report:#?}");
    assert_eq!((report.calls, report.placed, report.participants), (20, 20, 60));
    assert_eq!(report.awaiting_ms.count, 20);
    assert_eq!(fleet.leaves.load(Ordering::SeqCst), 60);
    assert!(fleet.puts.load(Ordering::SeqCst) > 0 && fleet.lines.load(Ordering::SeqCst) > 0);
    assert_eq!(fleet.gateways.lock().len(), 3, "every gateway beats its heart");
    assert!(!report.series.is_empty() && !report.phases.is_empty());
}

#[tokio::test]
async fn retry_after_is_obeyed_on_both_roads() {
    let fleet = Arc::new(Fleet::default());
    fleet.whims.throttle.store(30, Ordering::SeqCst);
    let one = syncer(&fleet).await;
    let report = hold(plan(POPULATION), targets(&[&one], &[])).await;
    assert_eq!(report.placed, 20, "{report:#?}");
    assert_eq!(report.end.throttled, 30);
    assert_eq!(fleet.too_early.load(Ordering::SeqCst), 0, "came back before Retry-After was over");
}

#[tokio::test]
async fn a_broken_watch_resumes_where_it_was() {
    let fleet = Arc::new(Fleet::default());
    fleet.whims.cut_watch_after.store(3, Ordering::SeqCst);
    let one = syncer(&fleet).await;
    let report = hold(plan(POPULATION), targets(&[&one], &[])).await;
    assert_eq!((report.placed, report.invariant_violations, report.resyncs), (20, 0, 0), "{report:#?}");
    let resumed: Vec<_> = fleet.resumed_from.lock().iter().flatten().cloned().collect();
    assert!(!resumed.is_empty() && resumed.iter().all(|id| id.parse::<u64>().is_ok()), "{resumed:?}");
}

#[tokio::test]
async fn a_lost_cursor_leads_to_a_re_read() {
    let fleet = Arc::new(Fleet::default());
    fleet.whims.cut_watch_after.store(3, Ordering::SeqCst);
    fleet.whims.lose_cursors.store(1, Ordering::SeqCst);
    let one = syncer(&fleet).await;
    let report = hold(plan(POPULATION), targets(&[&one], &[])).await;
    assert_eq!((report.placed, report.resyncs), (20, 1), "{report:#?}");
    assert_eq!(report.watchers_behind, 0);
}

#[tokio::test]
async fn an_unreachable_syncer_is_left_for_another() {
    let fleet = Arc::new(Fleet::default());
    let (one, two) = (syncer(&fleet).await, syncer(&fleet).await);
    let targets = targets(&[&one, &two], &[]);
    one.stop();
    let report = hold(plan(POPULATION), targets).await;
    assert_eq!((report.placed, report.invariant_violations), (20, 0), "{report:#?}");
    assert!(report.errors.values().sum::<u64>() > 0);
}

#[tokio::test]
async fn i10_killed_sfus_are_the_only_ones_to_lose_calls() {
    let fleet = Arc::new(Fleet::default());
    let (one, port) = (syncer(&fleet).await, control(&fleet).await);
    let rest = "[[phases]]\nname = \"kill\"\nafter = \"100ms\"\nfault = { kind = \"kill\", nodes = [\"n2\", \"n3\"] }\n\
        [[phases]]\nname = \"moved\"\nwhen = \"moved == affected\"\n\
        [[phases]]\nname = \"levers\"\nafter = \"10ms\"\nlevers = { \"a.b\" = \"3s\" }\n\
        [[checks]]\nexpect = \"affected > 0\"\n[[checks]]\nexpect = \"moved == affected\"\n\
        [[checks]]\nexpect = \"calls_awaiting == 0\"\n[[checks]]\nexpect = \"violations == 0\"\n";
    fleet.levers.lock().insert("a.b".to_owned(), serde_json::json!("600s"));
    let plan = plan(&format!("leave_at_end = true\n{POPULATION}{rest}"));
    let report = hold(plan, targets(&[&one], &[&port])).await;
    assert!(report.passed, "{report:#?}");
    assert_eq!(report.sfus_killed, 2);
    assert_eq!(report.recovery_ms.count, report.calls_moved);
    let changes: Vec<_> = fleet.lever_changes.lock().iter().map(|levers| levers["a.b"].clone()).collect();
    assert_eq!(changes, ["3s", "600s"], "set, and set back at the end");
    assert_eq!(fleet.heals.load(Ordering::SeqCst), 1, "healed at the end");
}

#[tokio::test]
async fn i10_a_move_off_a_healthy_sfu_is_found() {
    let fleet = Arc::new(Fleet::default());
    let (one, port) = (syncer(&fleet).await, control(&fleet).await);
    let (observer, mut counts) = Observer::new();
    let plan = plan(
        &format!("{POPULATION}[[checks]]\nexpect = \"violations == 0\"\n").replace("300ms\"\nsettle", "1s\"\nsettle"),
    );
    let meddle = async {
        counts.wait_for(|counts| counts.placed == 20).await.expect("runs");
        let ((guild, call), node) = {
            let calls = fleet.calls.lock();
            let (key, state) = calls.iter().next().expect("there are calls");
            (key.clone(), state.node.expect("placed"))
        };
        fleet.place(&guild, &call, (node + 1) % fake::NODES);
        counts.wait_for(|counts| counts.calls_moved == 1).await.expect("runs");
    };
    let drill = run(plan, targets(&[&one], &[&port]), observer, CancellationToken::new());
    let (report, ()) = tokio::time::timeout(DRILL_MAX, async { tokio::join!(drill, meddle) }).await.expect("ends");
    let report = report.expect("held");
    assert!(!report.passed);
    assert_eq!(report.violations.get("i10_untouched"), Some(&1), "{report:#?}");
}

#[tokio::test]
async fn i03_a_second_endpoint_at_one_epoch_is_found() {
    let fleet = Arc::new(Fleet::default());
    fleet.whims.lie_about_endpoints.store(1, Ordering::SeqCst);
    let one = syncer(&fleet).await;
    let report =
        hold(plan(&format!("{POPULATION}[[checks]]\nexpect = \"violations == 0\"\n")), targets(&[&one], &[])).await;
    assert!(!report.passed);
    assert_eq!(report.violations.get("i03_one_endpoint"), Some(&1), "{report:#?}");
    assert_eq!(report.checks.last().map(|check| check.outcome), Some(Outcome::Failed));
}

#[tokio::test]
async fn a_phase_that_never_begins_fails_the_drill() {
    let fleet = Arc::new(Fleet::default());
    let one = syncer(&fleet).await;
    let rest = "[[phases]]\nname = \"never\"\nwhen = \"moved > 0\"\nwithin = \"500ms\"\n";
    let report = hold(plan(&format!("{POPULATION}{rest}")), targets(&[&one], &[])).await;
    assert!(!report.passed && !report.cancelled);
    assert!(report.checks.iter().any(|check| check.expect.contains("phase never")), "{:?}", report.checks);
}

#[tokio::test]
async fn cancelling_ends_with_a_report() {
    let fleet = Arc::new(Fleet::default());
    let one = syncer(&fleet).await;
    let mut plan = plan(POPULATION);
    (plan.duration, plan.linger) = (None, None);
    let (observer, mut counts) = Observer::new();
    let cancel = CancellationToken::new();
    let drill = run(plan, targets(&[&one], &[]), observer, cancel.clone());
    let stop = async {
        counts.wait_for(|counts| counts.placed == 20).await.expect("runs");
        cancel.cancel();
    };
    let (report, ()) = tokio::time::timeout(DRILL_MAX, async { tokio::join!(drill, stop) }).await.expect("ends");
    let report = report.expect("held");
    assert!(report.cancelled && report.passed);
    assert_eq!(report.placed, 20);
}

#[tokio::test]
async fn breaking_sfus_without_a_control_port_is_refused() {
    let fleet = Arc::new(Fleet::default());
    let one = syncer(&fleet).await;
    let rest = "[[phases]]\nname = \"kill\"\nafter = \"1ms\"\nfault = { kind = \"kill\", share = 0.2 }\n";
    let plan = plan(&format!("{POPULATION}{rest}"));
    let drill = run(plan, targets(&[&one], &[]), Observer::none(), CancellationToken::new());
    let error: Error = tokio::time::timeout(DRILL_MAX, drill).await.expect("ends").expect_err("refused");
    assert!(error.is_config() && error.to_string().contains("--control"), "{error}");
}
