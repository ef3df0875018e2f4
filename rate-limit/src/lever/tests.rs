use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn levers() -> (Levers, Lever<f64>, Lever<u64>, Lever<bool>, Lever<Duration>) {
    let levers = Levers::new();
    let doc = "for the test";
    let rate =
        levers.register(LeverSpec { name: "place.rate", doc, unit: "per second", default: 20.0, min: 1.0, max: 500.0 });
    let burst =
        levers.register(LeverSpec { name: "place.burst", doc, unit: "tokens", default: 20, min: 1, max: 1_000 });
    let sweep = levers.register(LeverSpec { name: "sweep", doc, unit: "", default: true, min: false, max: true });
    let (min, max) = (Duration::ZERO, Duration::from_secs(86_400));
    let default = Duration::from_secs(600);
    let suspect = levers.register(LeverSpec { name: "suspect_max", doc, unit: "", default, min, max });
    (levers, rate, burst, sweep, suspect)
}

#[test]
fn r20_a_change_is_read_at_once_by_every_clone() {
    let (levers, rate, burst, sweep, suspect) = levers();
    let clone = rate.clone();
    for (name, value) in
        [("place.rate", json!(2)), ("place.burst", json!(7)), ("sweep", json!(false)), ("suspect_max", json!("250ms"))]
    {
        let change = levers.set(name, &value, "ops", Some("drill"), 1_000).expect("in range");
        assert_eq!((change.name, change.by.as_str(), change.reason.as_deref()), (name, "ops", Some("drill")));
    }
    assert_eq!((rate.get(), clone.get()), (2.0, 2.0));
    assert_eq!((burst.get(), sweep.get(), suspect.get()), (7, false, Duration::from_millis(250)));
}

#[test]
fn r20_an_invalid_value_is_refused_with_the_reason() {
    let (levers, rate, ..) = levers();
    let refuse = |name: &str, value: Value| levers.set(name, &value, "ops", None, 0).expect_err("invalid").to_string();
    assert_eq!(refuse("place.rate", json!(501)), "`place.rate` must be from 1 to 500 per second, got 501");
    assert_eq!(refuse("place.rate", json!("fast")), "`place.rate` takes a number, got \"fast\"");
    assert_eq!(refuse("place.burst", json!(-1)), "`place.burst` takes a whole number, got -1");
    assert_eq!(refuse("place.burst", json!(1.5)), "`place.burst` takes a whole number, got 1.5");
    assert_eq!(refuse("sweep", json!(1)), "`sweep` takes true or false, got 1");
    assert_eq!(refuse("suspect_max", json!("2days")), "`suspect_max` must be from 0s to 1day, got \"2days\"");
    assert_eq!(refuse("suspect_max", json!(5)), "`suspect_max` takes a duration such as \"250ms\" or \"10m\", got 5");
    assert_eq!(refuse("place.rats", json!(5)), "no lever is called `place.rats`; did you mean `place.rate`?");
    assert_eq!(refuse("zzz", json!(5)), "no lever is called `zzz`");
    assert!(refuse("place.rate", json!("x".repeat(10_000))).len() < 1_000, "an error does not echo a novel");
    assert_eq!(rate.get(), 20.0);
    assert!(levers.audit().is_empty());
}

#[test]
fn r20_several_changes_apply_all_or_none() {
    let (levers, rate, burst, ..) = levers();
    let (good, bad) = (json!(5), json!(0));
    let error = levers.set_all([("place.rate", &good), ("place.burst", &bad)], "ops", None, 0).expect_err("one is bad");
    assert!(matches!(error, LeverError::OutOfRange { name: "place.burst", .. }));
    assert_eq!((rate.get(), burst.get()), (20.0, 20));
    levers.set_all([("place.rate", &good), ("place.burst", &good)], "ops", None, 0).expect("both are good");
    assert_eq!((rate.get(), burst.get()), (5.0, 5));
}

#[test]
fn r20_who_changed_what_is_visible_and_the_memory_of_it_bounded() {
    let (levers, ..) = levers();
    for n in 1..=300_u64 {
        levers.set("place.burst", &json!(n), &"o".repeat(1_000), None, n).expect("in range");
    }
    let audit = levers.audit();
    assert_eq!(audit.len(), AUDIT_CHANGES_MAX);
    let last = audit.last().expect("not empty");
    assert_eq!((&last.from, &last.to, last.at_unix_ms, last.by.len()), (&json!(299), &json!(300), 300, 512));
    let view = &levers.list()[0];
    assert_eq!((view.name, &view.value, &view.default), ("place.burst", &json!(300), &json!(20)));
    assert_eq!(view.changed_at, Some(300));
}

#[test]
fn r20_listing_is_sorted_and_shows_ranges_in_the_units_of_the_caller() {
    let (levers, ..) = levers();
    let names: Vec<_> = levers.list().iter().map(|view| view.name).collect();
    assert_eq!(names, ["place.burst", "place.rate", "suspect_max", "sweep"]);
    let suspect = serde_json::to_value(&levers.list()[2]).expect("json");
    assert_eq!(suspect["value"], "10m");
    assert_eq!(suspect["max"], "1day");
    assert_eq!(suspect["changed_by"], Value::Null);
}

#[tokio::test]
async fn r20_whoever_waits_hears_of_a_change() {
    let (levers, ..) = levers();
    let mut changed = levers.changed();
    levers.set("sweep", &json!(false), "ops", None, 0).expect("valid");
    changed.changed().await.expect("the registry lives");
    assert_eq!(*changed.borrow_and_update(), 1);
    assert!(levers.set("sweep", &json!(7), "ops", None, 0).is_err());
    assert!(!changed.has_changed().expect("the registry lives"), "a refusal is not a change");
}

#[test]
#[should_panic(expected = "two levers are called")]
fn a_name_is_taken_once() {
    let (levers, ..) = levers();
    levers.register(LeverSpec { name: "sweep", doc: "", unit: "", default: 1_u64, min: 0, max: 2 });
}

#[test]
#[should_panic(expected = "out of its range")]
fn a_default_outside_its_range_is_a_mistake() {
    Levers::new().register(LeverSpec { name: "nan", doc: "", unit: "", default: f64::NAN, min: 0.0, max: 2.0 });
}

#[test]
fn a_fixed_lever_needs_no_registry() {
    assert_eq!(Lever::fixed(0.25).get(), 0.25);
    assert!(Lever::fixed(true).get());
}

#[test]
fn r20_a_dry_run_tells_and_changes_nothing() {
    let (levers, rate, ..) = levers();
    assert!(levers.check_all([("place.rate", &json!(2)), ("sweep", &json!(false))]).is_ok());
    assert!(levers.check_all([("place.rate", &json!(2)), ("sweep", &json!(3))]).is_err());
    assert_eq!((rate.get(), levers.audit().len()), (20.0, 0));
}

#[test]
fn r20_an_act_that_is_no_lever_is_in_the_same_ring() {
    let (levers, ..) = levers();
    levers.note("guild.block", json!({ "guild": "g" }), "ops", Some("a raid"), 7);
    let audit = levers.audit();
    assert_eq!(
        (audit[0].name, audit[0].by.as_str(), audit[0].reason.as_deref()),
        ("guild.block", "ops", Some("a raid"))
    );
}

/// What an operator, or a script of one, may send: near the ranges of the levers above and far from them.
fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => (0_u64..1_200).prop_map(|n| json!(n)),
        1 => any::<u64>().prop_map(|n| json!(n)),
        1 => any::<i64>().prop_map(|n| json!(n)),
        2 => (-10.0_f64..600.0).prop_map(|n| json!(n)),
        1 => any::<f64>().prop_map(|n| json!(n)), // one that is no number becomes null
        2 => any::<bool>().prop_map(|b| json!(b)),
        3 => (0_u64..200_000_000, prop_oneof![Just("ms"), Just("s"), Just("h"), Just("")])
            .prop_map(|(n, unit)| json!(format!("{n}{unit}"))),
        1 => ".{0,20}".prop_map(|text| json!(text)),
        1 => Just(Value::Null),
        1 => Just(json!([1])),
        1 => Just(json!({ "value": 1 })),
    ]
}

/// A second opinion of what each lever above takes.
fn is_allowed(name: &str, value: &Value) -> bool {
    let within = |value: Option<f64>, min: f64, max: f64| value.is_some_and(|v| (min..=max).contains(&v));
    let day = || Some(humantime::parse_duration(value.as_str()?).ok()? <= Duration::from_secs(86_400));
    match name {
        "place.rate" => within(value.as_f64(), 1.0, 500.0),
        "place.burst" => value.is_u64() && within(value.as_f64(), 1.0, 1_000.0),
        "sweep" => value.is_boolean(),
        "suspect_max" => day() == Some(true),
        _ => false,
    }
}

proptest! {
    /// Whatever is sent, in whatever company: all of it is in force at once and says who did it, or none of it
    /// is and the first that is wrong is named.
    #[test]
    fn r20_any_change_is_in_force_whole_or_refused_with_the_name_of_what_is_wrong(
        changes in prop::collection::vec(
            prop::collection::vec(
                (prop::sample::select(vec!["place.rate", "place.burst", "sweep", "suspect_max", "none.such"]), any_value()),
                0..4),
            1..40),
    ) {
        let (levers, rate, burst, sweep, suspect) = levers();
        let values = || (rate.get(), burst.get(), sweep.get(), suspect.get());
        let mut heard = levers.changed();
        for (at, change) in (0_u64..).zip(&changes) {
            let (before, shown, audited) = (values(), levers.list(), levers.audit());
            heard.mark_unchanged();
            let pairs = || change.iter().map(|(name, value)| (*name, value));
            let wrong = change.iter().find(|(name, value)| !is_allowed(name, value));
            prop_assert_eq!(levers.check_all(pairs()).is_err(), wrong.is_some(), "a dry run says the same");
            prop_assert_eq!(values(), before, "and changes nothing");
            match (levers.set_all(pairs(), "ops", Some("why"), at), wrong) {
                (Err(error), Some((name, _))) => {
                    prop_assert!(error.to_string().contains(&format!("`{name}`")), "{error} does not name {name}");
                    prop_assert_eq!((values(), levers.list()), (before, shown), "all or none");
                    prop_assert_eq!(levers.audit(), audited);
                    prop_assert!(!heard.has_changed().expect("the registry lives"));
                }
                (Ok(done), None) => {
                    prop_assert_eq!(done.len(), change.len());
                    prop_assert!(heard.has_changed().expect("the registry lives"));
                    for view in levers.list() {
                        let last = change.iter().rev().find(|(name, _)| *name == view.name);
                        let Some((name, value)) = last else { continue };
                        prop_assert_eq!((view.changed_by.as_deref(), view.changed_at), (Some("ops"), Some(at)));
                        match *name {
                            "place.rate" => prop_assert_eq!(Some(rate.get()), value.as_f64()),
                            "place.burst" => prop_assert_eq!(Some(burst.get()), value.as_u64()),
                            "sweep" => prop_assert_eq!(Some(sweep.get()), value.as_bool()),
                            _ => prop_assert_eq!(
                                humantime::parse_duration(value.as_str().expect("text")), Ok(suspect.get())),
                        }
                    }
                    let audit = levers.audit();
                    let newest: Vec<_> = audit.iter().rev().take(change.len()).map(|c| c.name).collect();
                    let mine: Vec<_> = change.iter().rev().map(|(name, _)| *name).take(audit.len()).collect();
                    prop_assert_eq!(newest, mine, "who changed what is there to read");
                }
                (done, wrong) => prop_assert!(false, "{done:?}, though wrong is {wrong:?}"),
            }
        }
    }
}
