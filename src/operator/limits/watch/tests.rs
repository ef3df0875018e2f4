use super::*;
use crate::output::Format;

fn lever(name: &str, value: u64) -> Value {
    json!({ "name": name, "value": value })
}

fn change(name: &str, from: u64, to: u64, at: u64) -> Value {
    json!({ "name": name, "from": from, "to": to, "by": "ops", "reason": null, "at": at })
}

/// As `lever from>to`, with a `?` where nobody is named.
fn told(changes: &[Value]) -> Vec<String> {
    let mark = |c: &Value| if c["by"].is_null() { "?" } else { "" };
    changes.iter().map(|c| format!("{} {}>{}{}", plain(&c["name"]), c["from"], c["to"], mark(c))).collect()
}

#[test]
fn each_change_is_told_once_and_in_its_order() {
    let (a, b) = (lever("a", 1), lever("b", 1));
    let mut seen = Seen::new(&[&a, &b], &[change("a", 9, 1, 1)]);
    assert!(seen.take(&[&a, &b], &[change("a", 9, 1, 1)]).is_empty());
    let changes = [change("a", 9, 1, 1), change("a", 1, 2, 2), change("b", 1, 3, 2), change("a", 2, 2, 3)];
    let (a, b) = (lever("a", 2), lever("b", 3));
    assert_eq!(told(&seen.take(&[&a, &b], &changes)), ["a 1>2", "b 1>3", "a 2>2"]);
    // The oldest are forgotten, one more came, and it looks like the one before.
    let changes = [change("b", 1, 3, 2), change("a", 2, 2, 3), change("a", 2, 2, 3)];
    assert_eq!(told(&seen.take(&[&a, &b], &changes)), ["a 2>2"]);
    assert!(seen.take(&[&a, &b], &changes).is_empty());
}

#[test]
fn what_is_not_watched_and_acts_that_are_no_lever_are_not_told() {
    let a = lever("a", 1);
    let mut seen = Seen::new(&[&a], &[]);
    assert!(seen.take(&[&a], &[change("guild.block", 0, 1, 1), change("b", 1, 2, 2)]).is_empty());
}

#[test]
fn values_that_no_change_explains_are_told_so_that_lines_lead_on_from_each_other() {
    let a = lever("a", 5);
    let mut seen = Seen::new(&[&a], &[change("a", 1, 5, 1)]);
    let a = lever("a", 1);
    assert_eq!(told(&seen.take(&[&a], &[])), ["a 5>1?"], "it restarted");
    assert!(seen.take(&[&a], &[]).is_empty(), "once");
    let a = lever("a", 9);
    assert_eq!(told(&seen.take(&[&a], &[change("a", 7, 8, 5), change("a", 8, 9, 6)])), ["a 1>7?", "a 7>8", "a 8>9"]);
}

#[test]
fn a_syncer_that_is_away_is_told_of_once_and_once_when_it_is_back() {
    let base = Url::parse("http://h:1").expect("a URL");
    let mut syncer = Watched { base: &base, seen: None, away: false };
    let mut look = |answer| -> Vec<String> {
        let events = syncer.look(answer, &["a".to_owned()]);
        events.iter().map(|event| plain(&event["event"])).collect()
    };
    let answer = |value| Ok(json!({ "levers": [lever("a", value), lever("b", value)], "changes": [] }));
    let gone = || Err(Failure::new(Exit::Dependency, "nobody there"));
    assert_eq!(look(gone()), ["away"], "others may have answered");
    assert_eq!(look(answer(1)), ["back", "levers"]);
    assert!(look(answer(1)).is_empty());
    assert_eq!(look(gone()), ["away"]);
    assert!(look(gone()).is_empty());
    assert_eq!(look(answer(2)), ["back", "change"]);
}

#[test]
fn a_line_says_when_what_who_where_and_why_and_stays_one_line() {
    let mut event = change("placement.overall.rate", 200, 100, 1_000);
    event["reason"] = "slow\u{1b}[2J\nSFUs".into();
    event["syncer"] = "http://h:1/".into();
    let output = Output::new(Format::Table);
    let line = text(&output, &event, true);
    assert_eq!(line, "1970-01-01T00:00:01Z placement.overall.rate 200 -> 100 by ops at http://h:1/: slow [2J SFUs");
    event["by"] = Value::Null;
    event["reason"] = Value::Null;
    let line = text(&output, &event, false);
    assert!(line.ends_with("200 -> 100 by nobody it remembers; it may have restarted"), "{line}");
}

#[test]
fn intervals_have_bounds() {
    for good in ["200ms", "2s", "10m"] {
        assert!(bounded(good).is_ok(), "{good}");
    }
    for bad in ["199ms", "0s", "11m", "soon", ""] {
        assert!(bounded(bad).is_err(), "{bad}");
    }
}
