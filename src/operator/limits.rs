//! `trunkline limits`: levers.

mod watch;

use std::str::FromStr;

use clap::Subcommand;
use comfy_table::{Cell, Table};
use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use self::watch::WatchArgs;
use super::{Client, Connection, pairs};
use crate::exit::{Exit, Failure};
use crate::output::{Output, items, plain};

/// Arguments of `limits`.
#[derive(Debug, clap::Args)]
pub(crate) struct LimitsArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show limits: value, default, range, and who changed it (the default)
    Get {
        /// Only names that start with this
        prefix: Option<String>,
    },
    /// Change limits of running syncers, all or none; they are in force at once
    Set(SetArgs),
    /// Show limits, then a line for each change: when, who, why, from what to what. Until Ctrl-C
    Watch(WatchArgs),
}

#[derive(Debug, clap::Args)]
struct SetArgs {
    /// For example placement.overall.rate=200 or health.suspect_max=30s
    #[arg(required = true, value_name = "NAME=VALUE")]
    values: Vec<Assignment>,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only ask whether the values would be taken; nothing changes
    #[arg(long)]
    dry_run: bool,
}

/// `name=value`; the value is JSON where it reads as such, else text.
#[derive(Clone, Debug, PartialEq)]
struct Assignment(String, Value);

/// Runs it.
pub(crate) async fn run(arguments: LimitsArgs, output: &Output, stop: CancellationToken) -> Result<(), Failure> {
    let client = Client::new(arguments.connection).await?;
    match arguments.verb.unwrap_or(Verb::Get { prefix: None }) {
        Verb::Get { prefix } => get(&client, &prefix.unwrap_or_default(), output).await,
        Verb::Set(arguments) => set(&client, arguments, output).await,
        Verb::Watch(arguments) => watch::run(&client, arguments, output, &stop).await,
    }
}

async fn get(client: &Client, prefix: &str, output: &Output) -> Result<(), Failure> {
    let mut answer = client.get("/v1/levers").await?;
    if let Some(levers) = answer["levers"].as_array_mut() {
        levers.retain(|lever| lever["name"].as_str().is_some_and(|name| name.starts_with(prefix)));
        if levers.is_empty() {
            return Err(none_starts_with(prefix));
        }
    }
    output.show(&answer, |answer| table(output, items(answer, "levers")));
    Ok(())
}

async fn set(client: &Client, arguments: SetArgs, output: &Output) -> Result<(), Failure> {
    let SetArgs { values, reason, dry_run } = arguments;
    let changes: Map<String, Value> = values.into_iter().map(|Assignment(name, value)| (name, value)).collect();
    let wanted = changes.clone();
    let reason = reason.as_deref().map(|reason| ("reason", reason));
    let path = format!("/v1/levers{}", pairs(reason.into_iter().chain(dry_run.then_some(("dry_run", "true"))))?);
    let answers = client.on_each(Method::PATCH, &path, Some(&Value::Object(changes))).await?;
    let named = |lever: &&Value| lever["name"].as_str().is_some_and(|name| wanted.contains_key(name));
    let mut levers: Vec<Value> = items(&answers[0], "levers").iter().filter(named).cloned().collect();
    if dry_run {
        // The answer has what is in force.
        for lever in &mut levers {
            let value = lever["name"].as_str().and_then(|name| wanted.get(name)).cloned();
            lever["value"] = value.unwrap_or_default();
        }
    }
    output.show(&json!({ "levers": levers }), |answer| table(output, items(answer, "levers")));
    let what = if dry_run { "nothing changed; it would be taken by" } else { "in force on" };
    let bases = client.bases().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    output.say(&format!("{what} {bases}"));
    Ok(())
}

fn none_starts_with(prefix: &str) -> Failure {
    Failure::new(Exit::Failed, format!("no limit starts with `{prefix}`; `trunkline limits` lists all"))
}

fn table(output: &Output, levers: &[Value]) -> Table {
    let mut table = output.table(&["name", "value", "default", "range", "unit", "changed by"]);
    for lever in levers {
        let cell = |name: &str| Cell::new(plain(&lever[name]));
        let range = format!("{} – {}", plain(&lever["min"]), plain(&lever["max"]));
        table.add_row([
            cell("name"),
            cell("value"),
            cell("default"),
            Cell::new(range),
            cell("unit"),
            cell("changed_by"),
        ]);
    }
    table
}

// === impl Assignment ===

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME=VALUE"))?;
        if name.is_empty() || value.is_empty() {
            return Err(format!("`{text}` is not NAME=VALUE"));
        }
        let json = serde_json::from_str(value).ok().filter(|json: &Value| json.is_number() || json.is_boolean());
        Ok(Self(name.to_owned(), json.unwrap_or_else(|| value.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_switches_are_json_and_the_rest_is_text() {
        let value = |text: &str| text.parse::<Assignment>().map(|assignment| assignment.1);
        assert_eq!(value("a=200"), Ok(json!(200)));
        assert_eq!(value("a=0.5"), Ok(json!(0.5)));
        assert_eq!(value("a=true"), Ok(json!(true)));
        assert_eq!(value("a=30s"), Ok(json!("30s")));
        assert_eq!(value("a={}"), Ok(json!("{}")));
        for bad in ["a", "=1", "a=", ""] {
            assert!(value(bad).is_err(), "{bad}");
        }
    }
}
