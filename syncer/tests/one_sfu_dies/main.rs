//! One SFU that holds most of the participants dies among many, over real HTTPS.
//!
//! By default at a size that fits a test run. With `TRUNKLINE_FULL=1` (in a release build) at the size
//! that the requirement names: 1,000 SFUs, one of which holds 100,000 participants.

#[path = "../api_server/support.rs"]
#[allow(dead_code, reason = "another test's support")]
mod support;

mod load;
mod rig;

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use self::load::{Load, New};
use self::rig::{Rig, Scale};
use self::support::{PATIENCE, until};

fn waiting(recovery: &Value) -> u64 {
    recovery["classes"][0]["waiting"].as_u64().expect("a count")
}

/// Polls until at most `left` repairs wait, and returns that recovery.
async fn repaired_to(rig: &Rig, left: u64) -> Value {
    let deadline = Instant::now() + PATIENCE + rig.scale.repair() * 2;
    loop {
        let recovery = rig.get("/v1/recovery").await;
        if recovery["untold"] == 0 && waiting(&recovery) <= left {
            return recovery;
        }
        assert!(Instant::now() < deadline, "still {recovery}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_one_sfu_with_most_participants_dies_and_the_rest_does_not_notice() {
    let scale = Scale::from_environment();
    let rig = Rig::start(scale).await;
    let mut gateways = rig.gateways().await;
    let load = Load::start(&rig, scale.others);
    let before = load.window(scale.baseline).await;

    load.mark(); // from here on: how it is found out counts too
    rig.kill().await;
    until("the notice", || async { rig.get("/v1/status").await["notices_total"] == 1 }).await;
    let began = Instant::now();
    until("calls wait", || async { waiting(&rig.get("/v1/recovery").await) > 0 }).await;

    // Half-way: the estimate, and what explains a call that waits.
    let half = repaired_to(&rig, scale.calls as u64 / 2).await;
    let asked = Instant::now();
    let eta = half["eta_s"].as_f64().expect("it ends");
    let repair_eta = half["classes"][0]["eta_s"].as_f64().expect("it ends");
    assert_eq!(half["limit"]["kind"], "pace", "{half}");
    rig.explains_one_that_waits().await;
    repaired_to(&rig, 0).await;
    let (truth, took) = (asked.elapsed_s(), began.elapsed_s());
    let during = load.since_mark();
    let after = load.window(scale.baseline).await;
    let (new_calls, New { began: new_began, waited_s: slowest_new, said }) = load.stop().await;
    let after_notice = new_began.map_or(0.0, |new| began.elapsed_s() - new.elapsed_s());

    println!(
        "{} calls in {took:.1} s at {} per second; half-way {repair_eta:.1} s (all {eta:.1} s) said, {truth:.1} s true; \
         p99 {:.1} / {:.1} / {:.1} ms before / during / after; {new_calls} new calls, the slowest in {slowest_new:.2} s, \
         begun {after_notice:.1} s after the notice and told {said:?}",
        scale.calls, scale.pace, before.p99_ms, during.p99_ms, after.p99_ms
    );
    assert!((0.75..=1.25).contains(&(repair_eta / truth)), "{repair_eta:.1} s said, {truth:.1} s true: {half}");
    let calm = scale.calm_ms(before.p99_ms, after.p99_ms);
    assert!(
        during.p99_ms <= 2.0 * calm + scale.noise_ms,
        "unrelated joins: {during:?} against {before:?} and {after:?}"
    );
    let least = scale.repair().as_secs_f64();
    assert!((0.9 * least..=1.5 * least + 2.0).contains(&took), "{took:.1} s at a pace of {least:.1} s");
    assert!(
        new_calls > 0 && slowest_new <= f64::max(2.0, 0.25 * took),
        "new calls wait for the repair: {slowest_new:.2} s"
    );

    let stats = rig.sfus.stats();
    let over = stats.overdrawn;
    assert_eq!((over.sfu, over.region, over.overall), (0, 0, 0), "I4, counted where the requests arrive: {stats:?}");
    rig.checks_calls().await;
    let coalesced = gateways.check(&rig).await;
    println!("{coalesced} nulls were coalesced with the endpoint");
}

/// Seconds since then.
trait Elapsed {
    fn elapsed_s(self) -> f64;
}

impl Elapsed for Instant {
    fn elapsed_s(self) -> f64 {
        Self::now().saturating_duration_since(self).as_secs_f64()
    }
}
