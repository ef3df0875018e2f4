//! Several engines on one fleet, on a paused clock: what each of them may do.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::fake::World;
use crate::fake::sfu::overdrawn;

const S: fn(u64) -> Duration = Duration::from_secs;

#[tokio::test(start_paused = true)]
async fn i04_two_syncers_share_the_buckets_of_one_fleet() {
    let one = World::new(6, 2);
    let other = World::beside(&one, "other");
    for world in [&one, &other] {
        world.set("placement.overall.rate", &json!(60.0));
        world.set("placement.overall.burst", &json!(10));
        world.set("placement.region.rate", &json!(40.0));
        world.set("placement.region.burst", &json!(8));
        world.engine.set_ready_members(2, Instant::now());
    }
    tokio::time::sleep(S(1)).await;
    for call in 0..200 {
        one.join(call, 0);
        other.join(call + 1_000, 0);
    }
    one.wait("placing", S(120), |s| s.placed == 200).await;
    other.wait("placing", S(120), |s| s.placed == 200).await;
    assert_eq!(overdrawn(&one.fleet.made(), 60.0, 10.0 + 2.0), 0, "overall");
    for region in 0..2 {
        let mut made = Vec::new();
        one.fleet.each(|id, n| {
            let of_region = id.as_str().trim_start_matches("sfu-").parse::<usize>().expect("a number") % 2 == region;
            made.extend(n.made.iter().copied().filter(|_| of_region));
        });
        made.sort();
        assert_eq!(overdrawn(&made, 40.0, 8.0 + 2.0), 0, "region {region}");
    }
}

/// New calls per second that these engines admit together within 5 s, while each is asked for 1,000 a second.
async fn admitted_per_s(worlds: &[World], calls: &mut usize) -> f64 {
    let mut admitted = 0;
    for _ in 0..500 {
        for world in worlds {
            admitted += (0..10).filter(|n| world.may_begin(*calls + n)).count();
            *calls += 10;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    admitted as f64 / 5.0
}

#[tokio::test(start_paused = true)]
async fn r09_the_fleet_is_halved_and_doubled_and_admits_what_it_did() {
    let mut worlds = vec![World::new(4, 1)];
    for id in ["b", "c", "d"] {
        let world = World::beside(&worlds[0], id);
        worlds.push(world);
    }
    for world in &worlds {
        world.set("admission.new_calls.rate", &json!(200.0));
        world.set("admission.new_calls.burst", &json!(20));
        world.set("admission.queue_age_max", &json!("1h"));
        world.engine.set_ready_members(4, Instant::now());
    }
    let mut calls = 0;
    let near = |rate: f64, of: &str| assert!((rate / 200.0 - 1.0).abs() <= 0.1, "{rate} of 200 per second, {of}");
    admitted_per_s(&worlds, &mut calls).await; // empties the buckets
    near(admitted_per_s(&worlds, &mut calls).await, "by four");
    for world in &worlds[..2] {
        world.engine.set_ready_members(2, Instant::now());
    }
    let soon = admitted_per_s(&worlds[..2], &mut calls).await;
    assert!(soon <= 110.0, "shares grow only when all have heard of it: {soon}");
    admitted_per_s(&worlds[..2], &mut calls).await;
    near(admitted_per_s(&worlds[..2], &mut calls).await, "by two, ten seconds after it was noticed");
    for world in &worlds {
        world.engine.set_ready_members(4, Instant::now());
    }
    near(admitted_per_s(&worlds, &mut calls).await, "by four again, at once");
}
