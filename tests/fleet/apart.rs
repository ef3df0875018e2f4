//! Separate processes under the drills: built-in plans, and a mock process that is killed outright.

use crate::parts::Parts;
use crate::turn;

/// A fifth of the fleet is one process, which the test kills: the plan only watches. It ends when
/// everything that was on it has moved.
const WATCH_A_KILL: &str = r#"
name = "process-kill"
about = "A process with a fifth of the SFUs is killed from outside."
duration = "120s"
linger = "3s"
settle_max = "60s"
leave_at_end = true
budgets = { from_levers = true }

[population]
gateways = 4
guilds = 100
calls = 500
participants = 1500
media_share = 0.05
ramp = "4s"

[[phases]]
name = "all-placed"
when = "placed >= 100%"

[[phases]]
name = "noticed"
when = "sfus_killed > 0"

[[phases]]
name = "moved-off"
when = "calls_moved == calls_affected"
within = "90s"

[[checks]]
expect = "calls_awaiting == 0"
[[checks]]
expect = "calls_moved == calls_affected"
[[checks]]
expect = "attempts_per_first <= 1.1"
[[checks]]
expect = "buckets_overdrawn == 0"
[[checks]]
expect = "invariant_violations == 0"
[[checks]]
expect = "rooms_missing == 0"
[[checks]]
expect = "media_missing == 0"
"#;

#[tokio::test]
async fn i10_a_killed_process_moves_its_own_calls_and_no_other() {
    let _turn = turn().await;
    let fleet = Parts::start(5, 20, 3).await;
    let plan = fleet.path("process-kill.toml");
    std::fs::write(&plan, WATCH_A_KILL).expect("written");
    let drill = fleet.drill(&plan);
    drill.shows("[all-placed]").await;
    fleet.mocks[2].signal("KILL");
    let report = drill.passed().await;
    assert_eq!(report["sfus_killed"], 20);
    assert!(report["calls_moved"].as_u64() > Some(0), "some calls were on them");
    assert_eq!(report["violations"].get("i10_untouched"), None);
    assert!(fleet.syncers_run());
}

#[tokio::test]
async fn steady_places_every_call_once_and_moves_none() {
    let _turn = turn().await;
    let fleet = Parts::start(2, 10, 3).await;
    let report = fleet.drill("steady").passed().await;
    assert_eq!(report["placed"], report["calls"]);
    assert!(report["end"]["media_attached"].as_u64() > Some(0), "endpoints and tokens were used");
}

#[tokio::test]
async fn r17_hung_sfus_keep_their_calls_until_silence_may_count_as_death() {
    let _turn = turn().await;
    let fleet = Parts::start(2, 15, 3).await;
    let report = fleet.drill("sfu-hang").passed().await;
    assert!(report["calls_affected"].as_u64() > Some(0));
    assert_eq!(report["calls_moved"], report["calls_affected"]);
}

#[tokio::test]
async fn restarted_sfus_get_their_rooms_back_in_place() {
    let _turn = turn().await;
    let fleet = Parts::start(2, 15, 3).await;
    let report = fleet.drill("sfu-restart").passed().await;
    assert!(report["calls_replaced"].as_u64() > report["calls_moved"].as_u64());
    assert_eq!(report["calls_recovered"], report["calls_affected"]);
}

#[tokio::test]
async fn r17_killed_sfus_lose_their_calls_to_the_others() {
    let _turn = turn().await;
    let fleet = Parts::start(2, 15, 3).await;
    let report = fleet.drill("sfu-kill").passed().await;
    assert_eq!(report["sfus_killed"], 6);
}

/// The positive control: a checker that cannot find a wrong move proves nothing by finding none.
#[tokio::test]
async fn i10_a_move_off_an_sfu_that_works_is_found_from_outside() {
    let _turn = turn().await;
    let fleet = Parts::start(1, 6, 1).await;
    let plan = fleet.path("meddled.toml");
    let text = "name = \"meddled\"\nduration = \"60s\"\nlinger = \"3s\"\n[population]\nguilds = 5\ncalls = 60\n\
        participants = 120\nramp = \"1s\"\n[[phases]]\nname = \"all-placed\"\nwhen = \"placed >= 100%\"\n\
        [[phases]]\nname = \"meddled-with\"\nwhen = \"calls_moved > 0\"\n\
        [[checks]]\nexpect = \"invariant_violations == 0\"\n";
    std::fs::write(&plan, text).expect("written");
    let drill = fleet.drill(&plan);
    drill.shows("[all-placed]").await;
    fleet.declare_the_fullest_dead().await;
    let (status, report) = drill.report().await;
    assert_eq!(status.code(), Some(1), "{report}");
    assert!(report["violations"]["i10_untouched"].as_u64() > Some(0), "{}", report["findings"]);
}

#[tokio::test]
async fn a_check_that_fails_fails_the_drill() {
    let _turn = turn().await;
    let fleet = Parts::start(1, 4, 1).await;
    let plan = fleet.path("impossible.toml");
    let text = "name = \"impossible\"\nduration = \"20s\"\nlinger = \"1s\"\n[population]\nguilds = 2\ncalls = 10\n\
        participants = 10\nramp = \"500ms\"\n[[phases]]\nname = \"placed\"\nwhen = \"placed >= 100%\"\n\
        [[checks]]\nexpect = \"placed == 11\"\n";
    std::fs::write(&plan, text).expect("written");
    let (status, report) = fleet.drill(&plan).report().await;
    assert_eq!(status.code(), Some(1));
    assert_eq!((report["placed"].as_u64(), &report["passed"]), (Some(10), &false.into()));
}
