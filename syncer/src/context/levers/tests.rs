//! Each lever changes the setting that it names, and no other.

use rate_limit::{LeverValue, LeverView, Levers};
use serde_json::Value;

use super::{EngineLevers, SHARDS};
use crate::select::Quotas;
use crate::state::Class;

/// A lever, and the value of a setting that it stands for, in the lever's own unit.
pub(crate) type Setting = (&'static str, Value);

/// What a lever is turned to: a valid value that it has not.
fn another(lever: &LeverView, times: f64) -> Value {
    match &lever.default {
        Value::Bool(on) => (!on).into(),
        Value::String(text) => {
            let default = humantime::parse_duration(text).expect("a duration");
            default.mul_f64(times).to_json()
        }
        Value::Number(n) if n.is_f64() => (n.as_f64().expect("a number") / 2.0).into(),
        Value::Number(n) if n.as_u64() == Some(0) => lever.max.clone(),
        Value::Number(n) => (n.as_u64().expect("a whole number") * 2).into(),
        other => panic!("{}: {other}", lever.name),
    }
}

/// Turns each lever alone, as `PATCH /v1/levers` does: its settings have that value, all others their default. A lever
/// without a setting is an error. Durations are multiplied by what `times` says of the lever.
pub(crate) fn each_lever_changes_what_it_names<L>(
    register: fn(&Levers) -> L,
    times: fn(&str) -> f64,
    settings: fn(&L) -> Vec<Setting>,
) {
    let registry = Levers::new();
    let levers = register(&registry);
    let before = settings(&levers);
    for lever in registry.list() {
        let value = another(&lever, times(lever.name));
        assert_ne!(value, lever.default, "{}: not turned", lever.name);
        assert!(before.iter().any(|(name, _)| *name == lever.name), "{}: no setting is looked at", lever.name);
        let turn = |to: &Value| registry.set_all([(lever.name, to)], "test", None, 0).expect("in range");
        turn(&value);
        for ((name, now), (_, default)) in settings(&levers).iter().zip(&before) {
            let wanted = if *name == lever.name { &value } else { default };
            assert_eq!(now, wanted, "{} was turned: the setting of {name}", lever.name);
        }
        turn(&lever.default);
    }
}

fn placements(levers: &EngineLevers) -> Vec<Setting> {
    let Quotas { overall, region, sfu, grow_after } = levers.quotas();
    let new_calls = levers.admission(1, 9.0).children;
    let quotas = [
        ("placement.overall.rate", "placement.overall.burst", overall),
        ("placement.region.rate", "placement.region.burst", region),
        ("placement.sfu.rate", "placement.sfu.burst", sfu),
        ("moves.rate", "moves.burst", levers.moves()),
        ("admission.new_calls.rate", "admission.new_calls.burst", new_calls),
    ];
    let mut settings = Vec::new();
    for (rate, burst, quota) in quotas {
        settings.extend([(rate, quota.rate_per_s.to_json()), (burst, u64::from(quota.burst).to_json())]);
    }
    for turns in [levers.turns(), levers.admission(1, 9.0).rules.turns] {
        let of = |class| ((turns.share(class) * 20.0).round() as u64).to_json();
        settings
            .extend([("placement.turns.new_calls", of(Class::New)), ("placement.turns.streams", of(Class::Stream))]);
    }
    settings.extend([
        ("limits.grow_after", grow_after.to_json()),
        ("placement.in_flight_max", levers.in_flight_max.get().to_json()),
        ("placement.sfu.in_flight_max", levers.sfu_in_flight_max.get().to_json()),
        ("placement.in_place_max", levers.in_place_max.get().to_json()),
        ("placement.any_region", levers.any_region.get().to_json()),
        ("placement.zone_failing_share", levers.zone_failing_share.get().to_json()),
        ("placement.paused", levers.paused.get().to_json()),
        ("placement.attempt_timeout", levers.attempt_timeout.get().to_json()),
        ("release.in_flight_max", levers.release_in_flight_max.get().to_json()),
        ("release.remembered_max", levers.releases_max.get().to_json()),
    ]);
    settings
}

fn door(levers: &EngineLevers) -> Vec<Setting> {
    let (door, limits) = (levers.admission(1, 9.0), levers.limits());
    let [joins, new_calls, streams] = door.blocked;
    vec![
        ("admission.guild_share", door.guild_share.to_json()),
        ("admission.throttle", door.throttle.to_json()),
        ("admission.block.joins", joins.to_json()),
        ("admission.block.new_calls", new_calls.to_json()),
        ("admission.block.streams", streams.to_json()),
        ("admission.queue_age_max", door.rules.queue_age_max.to_json()),
        ("admission.lag_max", door.rules.lag_max.to_json()),
        ("admission.memory_max", levers.memory_max.get().to_json()),
        ("admission.retry_span_min", door.retry_span_min.to_json()),
        ("admission.calls_per_guild_max", limits.calls_per_guild_max.to_json()),
        ("admission.participants_per_call_max", limits.participants_per_call_max.to_json()),
        ("calls.left_remembered_max", ((limits.left_remembered_max * SHARDS) as u64).to_json()),
        ("calls.empty_grace", limits.empty_grace.to_json()),
    ]
}

fn looks(levers: &EngineLevers) -> Vec<Setting> {
    let (presence, rules, expire) = (levers.presence(), levers.rules(), levers.expire());
    vec![
        ("gateways.alive_for", presence.alive_for.to_json()),
        ("gateways.resume_window", presence.resume_window.to_json()),
        ("gateways.kept_max", presence.kept_max.to_json()),
        ("gateways.freeze_share", presence.freeze_share.to_json()),
        ("gateways.watches_max", levers.gateway_watches_max.get().to_json()),
        ("gateways.expire.rate", expire.rate_per_s.to_json()),
        ("gateways.expire.rate", (f64::from(expire.burst) * 10.0).to_json()),
        ("health.probe_interval", levers.probe_interval.get().to_json()),
        ("health.suspect_probe_interval", levers.suspect_probe_interval.get().to_json()),
        ("health.probe_timeout", levers.probe_timeout.get().to_json()),
        ("health.dead_failures", u64::from(rules.dead_failures).to_json()),
        ("health.dead_window", rules.dead_window.to_json()),
        ("health.suspect_max", rules.suspect_max.to_json()),
        ("health.freeze_share", levers.freeze_share.get().to_json()),
        ("health.freeze_lifted", levers.freeze_lifted.get().to_json()),
        ("health.flap_hold", rules.flaps.hold.to_json()),
        ("health.flap_hold_max", rules.flaps.hold_max.to_json()),
        ("health.flap_forget", rules.flaps.forget.to_json()),
        ("health.slow_after", rules.slow_after.to_json()),
        ("digest.interval", levers.digest_interval.get().to_json()),
        ("digest.interval", presence.ask_every.to_json()),
        ("digest.paused", levers.digest_paused.get().to_json()),
    ]
}

#[test]
fn r20_each_lever_of_the_engine_changes_the_setting_that_it_names() {
    let settings = |levers: &EngineLevers| [placements(levers), door(levers), looks(levers)].concat();
    each_lever_changes_what_it_names(EngineLevers::register, |_| 2.0, settings);
}
