//! Each lever changes the limit that it names, and no other.

use rate_limit::LeverValue;
use serde_json::Value;

use super::*;

/// A lever, and the value of the limit that it stands for, in the lever's own unit.
type Setting = (&'static str, Value);

/// All but `partitions`, which no lever changes.
fn settings(limits: &LaneLimits) -> Vec<Setting> {
    // In full, so that no limit is forgotten.
    let LaneLimits {
        partitions: _,
        origins_max,
        connections_per_origin_max,
        connections_max,
        dials_max,
        dial_rate_per_s,
        dial_burst,
        handshakes_max,
        waiters_per_origin_max,
        waiters_max,
        h2_streams_max,
        dial_timeout,
        idle_timeout,
        age_max,
        backoff_base,
        backoff_max,
        request_timeout,
        ping_interval,
        ping_timeout,
    } = *limits;
    vec![
        ("origins_max", whole(origins_max).to_json()),
        ("connections_per_origin_max", whole(connections_per_origin_max).to_json()),
        ("connections_max", whole(connections_max).to_json()),
        ("dials_max", whole(dials_max).to_json()),
        ("dial_rate", dial_rate_per_s.to_json()),
        ("dial_burst", u64::from(dial_burst).to_json()),
        ("handshakes_max", u64::from(handshakes_max.unwrap_or(0)).to_json()),
        ("waiters_per_origin_max", whole(waiters_per_origin_max).to_json()),
        ("waiters_max", whole(waiters_max).to_json()),
        ("h2_streams_max", whole(h2_streams_max).to_json()),
        ("dial_timeout", dial_timeout.to_json()),
        ("idle_timeout", idle_timeout.to_json()),
        ("age_max", age_max.to_json()),
        ("backoff_base", backoff_base.to_json()),
        ("backoff_max", backoff_max.to_json()),
        ("request_timeout", request_timeout.to_json()),
        ("ping_interval", ping_interval.to_json()),
        ("ping_timeout", ping_timeout.to_json()),
    ]
}

#[test]
fn r20_each_lever_of_a_lane_changes_the_limit_that_it_names() {
    let configured = LaneLimits { handshakes_max: Some(7), ..LaneLimits::default() };
    let registry = Levers::new();
    let levers = LaneLevers::register(&registry, "pool.sfu", &configured);
    let applied = || {
        let mut limits = LaneLimits { partitions: configured.partitions, ..LaneLimits::default() };
        levers.apply(&mut limits);
        limits
    };
    assert_eq!(applied(), configured, "levers that nobody has turned");
    let before = settings(&configured);
    let views = registry.list();
    assert_eq!(views.len(), before.len(), "a lever for each limit but `partitions`");
    for lever in views {
        let limit = lever.name.strip_prefix("pool.sfu.").expect("the prefix");
        assert!(before.iter().any(|(name, _)| *name == limit), "{limit}: no limit is looked at");
        assert_ne!(lever.max, lever.default, "{limit}: not turned");
        let turn = |to: &Value| registry.set(lever.name, to, "test", None, 0).expect("in range");
        turn(&lever.max);
        let now = applied();
        now.validate().unwrap_or_else(|error| panic!("{limit}: {error}"));
        for ((name, now), (_, default)) in settings(&now).iter().zip(&before) {
            let wanted = if *name == limit { &lever.max } else { default };
            assert_eq!(now, wanted, "{limit} was turned: the limit {name}");
        }
        turn(&lever.default);
    }
}
