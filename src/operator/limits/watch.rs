//! `trunkline limits watch`: what changes, as it changes.
//!
//! A syncer remembers its last changes, each with who, when and why, but it numbers none. What is new is what follows
//! the part of the last look that the next one still holds. Two things leave a value that no change explains: a syncer
//! that restarted, which begins with the values of its configuration, and more changes between two looks than are
//! remembered. Both are told as what they are, so that the lines of a lever always lead from one value to the next.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use reqwest::{Method, Url};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::{Client, none_starts_with, table};
use crate::exit::{Exit, Failure};
use crate::output::{Output, items, plain};

/// Five looks a second are seen at once, and cost a syncer less than one join.
const INTERVAL_MIN: Duration = Duration::from_millis(200);
/// A syncer remembers 256 changes: who looks less often than this may miss some.
const INTERVAL_MAX: Duration = Duration::from_secs(10 * 60);
/// A syncer that takes longer is told as away: what others say is late for it by so much, and no more.
const ANSWER_SOON: Duration = Duration::from_secs(5);

/// Arguments of `limits watch`.
#[derive(Debug, clap::Args)]
pub(super) struct WatchArgs {
    /// Only names that start with one of these
    #[arg(value_name = "PREFIX")]
    prefixes: Vec<String>,
    /// How often to look, from 200ms to 10m
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = bounded)]
    interval: Duration,
}

/// What was seen of one syncer.
#[derive(Debug, Default)]
struct Seen {
    values: BTreeMap<String, Value>,
    changes: Vec<Value>,
}

/// A syncer that is watched.
struct Watched<'a> {
    base: &'a Url,
    /// Nothing before it has answered once.
    seen: Option<Seen>,
    away: bool,
}

/// Watches until it is stopped, or nobody reads any more.
///
/// # Errors
///
/// When no syncer answers at the start, or no limit has such a name. Syncers that are away later are waited for.
pub(super) async fn run(
    client: &Client,
    arguments: WatchArgs,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let WatchArgs { prefixes, interval: every } = arguments;
    let mut looks = interval(every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut syncers: Vec<_> = client.bases().iter().map(|base| Watched { base, seen: None, away: false }).collect();
    let several = syncers.len() > 1;
    let mut first = true;
    loop {
        let look = async {
            looks.tick().await;
            join_all(client.bases().iter().map(|base| ask(client, base))).await
        };
        let answers = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            answers = look => answers,
        };
        let answers = if std::mem::take(&mut first) { start(answers, &prefixes)? } else { answers };
        for (syncer, answer) in syncers.iter_mut().zip(answers) {
            for event in syncer.look(answer, &prefixes) {
                if !output.line(&event, |event| text(output, event, several)) {
                    return Ok(());
                }
            }
        }
    }
}

async fn ask(client: &Client, base: &Url) -> Result<Value, Failure> {
    let answer = timeout(ANSWER_SOON, client.ask(base, Method::GET, "/v1/levers", None)).await;
    let late = || Failure::new(Exit::Dependency, format!("{base} did not answer within {ANSWER_SOON:?}"));
    answer.map_err(|_| late())?
}

/// The first answers, if there is anything to watch: a syncer that answers, and levers of these names.
fn start(answers: Vec<Result<Value, Failure>>, prefixes: &[String]) -> Result<Vec<Result<Value, Failure>>, Failure> {
    if answers.iter().all(Result::is_err) {
        let first: Result<Vec<Value>, Failure> = answers.into_iter().collect();
        return first.map(|_| Vec::new());
    }
    let is_known =
        |prefix| answers.iter().flatten().any(|answer| !wanted(answer, std::slice::from_ref(prefix)).is_empty());
    match prefixes.iter().find(|&prefix| !is_known(prefix)) {
        Some(prefix) => Err(none_starts_with(prefix)),
        None => Ok(answers),
    }
}

/// The levers of an answer whose names start so; all without a prefix.
fn wanted<'a>(answer: &'a Value, prefixes: &[String]) -> Vec<&'a Value> {
    let named = |name: &str| prefixes.is_empty() || prefixes.iter().any(|prefix| name.starts_with(prefix));
    items(answer, "levers").iter().filter(|lever| lever["name"].as_str().is_some_and(named)).collect()
}

// === impl Watched ===

impl Watched<'_> {
    /// What there is to tell.
    fn look(&mut self, answer: Result<Value, Failure>, prefixes: &[String]) -> Vec<Value> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(_) if self.away => return Vec::new(),
            Err(failure) => {
                self.away = true;
                return vec![self.event("away", json!({ "why": failure.to_string() }))];
            }
        };
        let mut events = Vec::new();
        if std::mem::take(&mut self.away) {
            events.push(self.event("back", json!({})));
        }
        let levers = wanted(&answer, prefixes);
        match &mut self.seen {
            Some(seen) => {
                let changes = seen.take(&levers, items(&answer, "changes"));
                events.extend(changes.into_iter().map(|change| self.event("change", change)));
            }
            None => {
                self.seen = Some(Seen::new(&levers, items(&answer, "changes")));
                events.push(self.event("levers", json!({ "levers": levers })));
            }
        }
        events
    }

    fn event(&self, name: &str, mut fields: Value) -> Value {
        fields["event"] = name.into();
        fields["syncer"] = self.base.as_str().into();
        if name != "change" || fields["at"].is_null() {
            fields["at"] = now_ms().into();
        }
        fields
    }
}

// === impl Seen ===

impl Seen {
    fn new(levers: &[&Value], changes: &[Value]) -> Self {
        Self {
            values: levers.iter().map(|lever| (plain(&lever["name"]), lever["value"].clone())).collect(),
            changes: changes.to_vec(),
        }
    }

    /// What changed since the last look, in its order.
    fn take(&mut self, levers: &[&Value], changes: &[Value]) -> Vec<Value> {
        let held = (0..self.changes.len()).find(|&gone| changes.starts_with(&self.changes[gone..]));
        let new = held.map_or(changes, |gone| &changes[self.changes.len() - gone..]);
        let mut told = Vec::new();
        for change in new {
            let Some(value) = change["name"].as_str().and_then(|name| self.values.get_mut(name)) else { continue };
            if *value != change["from"] {
                told.push(unexplained(&change["name"], value, &change["from"]));
            }
            *value = change["to"].clone();
            told.push(change.clone());
        }
        for lever in levers {
            let value = self.values.entry(plain(&lever["name"])).or_insert_with(|| lever["value"].clone());
            if *value != lever["value"] {
                told.push(unexplained(&lever["name"], value, &lever["value"]));
                *value = lever["value"].clone();
            }
        }
        self.changes = changes.to_vec();
        told
    }
}

/// A change of which nothing is known.
fn unexplained(name: &Value, from: &Value, to: &Value) -> Value {
    json!({ "name": name, "from": from, "to": to, "by": null, "reason": null, "at": null })
}

/// An event as a person reads it.
fn text(output: &Output, event: &Value, several: bool) -> String {
    let at = if several { format!(" at {}", plain(&event["syncer"])) } else { String::new() };
    let time = UNIX_EPOCH + Duration::from_millis(event["at"].as_u64().unwrap_or_default());
    let time = humantime::format_rfc3339_seconds(time);
    let part = |name: &str| printable(&plain(&event[name]));
    match event["event"].as_str() {
        Some("levers") => format!("{}\n{time} watching{at}", table(output, items(event, "levers"))),
        Some("away") => format!("{time} away{at}: {}", part("why")),
        Some("back") => format!("{time} back{at}"),
        _ => {
            let by = match &event["by"] {
                Value::Null => "by nobody it remembers; it may have restarted".to_owned(),
                _ => format!("by {}", part("by")),
            };
            let reason = if event["reason"].is_null() { String::new() } else { format!(": {}", part("reason")) };
            format!("{time} {} {} -> {} {by}{at}{reason}", part("name"), part("from"), part("to"))
        }
    }
}

/// Reasons are other people's words: they must not end the line, nor move the cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn bounded(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (INTERVAL_MIN..=INTERVAL_MAX).contains(&time) { Ok(time) } else { Err("must be from 200ms to 10m".to_owned()) }
}

#[cfg(test)]
mod tests;
