//! `trunkline status`.

use comfy_table::{Cell, Table};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Client, Connection};
use crate::exit::Failure;
use crate::output::{Output, items, plain};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    connection: Connection,
}

/// Runs it.
pub(crate) async fn run(arguments: StatusArgs, output: &Output) -> Result<(), Failure> {
    let client = Client::new(arguments.connection).await?;
    let syncers = client.on_each(Method::GET, "/v1/status", None).await?;
    output.show(&json!({ "syncers": syncers }), |answer| table(output, answer));
    Ok(())
}

fn table(output: &Output, answer: &Value) -> Table {
    let syncers = items(answer, "syncers");
    let mut headings = vec![""];
    headings.extend(syncers.iter().map(|syncer| syncer["syncer"].as_str().unwrap_or("?")));
    let mut table = output.table(&headings);
    let state = |syncer: &Value| if syncer["ready"] == true { "ready" } else { "not ready" };
    table.add_row(row("state", syncers, |syncer| output.state(state(syncer))));
    for name in ["calls", "placed", "awaiting", "participants"] {
        table.add_row(row(name, syncers, |syncer| Cell::new(plain(&syncer[name]))));
    }
    table.add_row(row("sfus", syncers, |syncer| Cell::new(nonzero(&syncer["sfus"]))));
    table.add_row(row("zones failing", syncers, |syncer| Cell::new(zones(syncer))));
    for name in ["placements_total", "attempts_total", "moves_total", "notices_total", "invariant_violations"] {
        table.add_row(row(name, syncers, |syncer| Cell::new(plain(&syncer[name]))));
    }
    table.add_row(row("pool", syncers, |syncer| Cell::new(nonzero(&syncer["pool"]))));
    table.add_row(row("uptime", syncers, |syncer| Cell::new(uptime(&syncer["uptime_ms"]))));
    table.add_row(row("version", syncers, |syncer| Cell::new(plain(&syncer["version"]))));
    table
}

fn row(name: &str, syncers: &[Value], cell: impl Fn(&Value) -> Cell) -> Vec<Cell> {
    std::iter::once(Cell::new(name)).chain(syncers.iter().map(cell)).collect()
}

/// The fields that are not zero: `40 healthy, 10 dead`.
fn nonzero(counts: &Value) -> String {
    let counts = counts.as_object().into_iter().flatten().filter(|(_, n)| n.as_u64().is_some_and(|n| n > 0));
    let shown = counts.map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", ");
    if shown.is_empty() { "-".to_owned() } else { shown }
}

/// The zones that fail: `a/a-1, b/b-2`.
fn zones(syncer: &Value) -> String {
    let zones =
        items(syncer, "zones_failing").iter().map(|at| format!("{}/{}", plain(&at["region"]), plain(&at["zone"])));
    let shown = zones.collect::<Vec<_>>().join(", ");
    if shown.is_empty() { "-".to_owned() } else { shown }
}

fn uptime(ms: &Value) -> String {
    let s = ms.as_u64().unwrap_or(0) / 1_000;
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3_600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_zero_are_noise() {
        assert_eq!(nonzero(&json!({"healthy": 40, "slow": 0, "dead": 10})), "10 dead, 40 healthy");
        assert_eq!(nonzero(&json!({})), "-");
        assert_eq!(zones(&json!({"zones_failing": [{"region": "a", "zone": "a-1"}]})), "a/a-1");
        assert_eq!(zones(&json!({"zones_failing": []})), "-");
        assert_eq!(uptime(&json!(3_725_000)), "1 h 2 min");
        assert_eq!(uptime(&json!(61_000)), "1 min 1 s");
    }
}
