//! `trunkline recovery`.

use comfy_table::{Cell, Table};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Client, Connection};
use crate::exit::Failure;
use crate::output::{Output, items, plain};

/// Arguments of `recovery`.
#[derive(Debug, clap::Args)]
pub(crate) struct RecoveryArgs {
    #[command(flatten)]
    connection: Connection,
}

/// Runs it.
pub(crate) async fn run(arguments: RecoveryArgs, output: &Output) -> Result<(), Failure> {
    let client = Client::new(arguments.connection).await?;
    let syncers = client.on_each(Method::GET, "/v1/recovery", None).await?;
    output.show(&json!({ "syncers": syncers }), |answer| table(output, answer));
    Ok(())
}

/// A row for each class that waits, and one for each reason that holds single calls back.
fn table(output: &Output, answer: &Value) -> Table {
    let mut table = output.table(&["syncer", "what", "waiting", "oldest", "per second", "done in", "limited by"]);
    for syncer in items(answer, "syncers") {
        let name = plain(&syncer["syncer"]);
        let limit = plain(&syncer["limited_by"]);
        let seconds = |eta: &Value| eta.as_f64().map_or_else(|| "never".to_owned(), |s| format!("{s:.0} s"));
        let all = [plain(&syncer["waiting"]), String::new(), rate(&syncer["rate_per_s"]), seconds(&syncer["eta_s"])];
        table.add_row(row(&name, "all", all, &limit));
        for class in items(syncer, "classes").iter().filter(|class| class["waiting"].as_u64() != Some(0)) {
            let oldest = class["oldest_ms"].as_f64().map_or_else(String::new, |ms| format!("{:.0} s", ms / 1_000.0));
            let cells = [plain(&class["waiting"]), oldest, rate(&class["rate_per_s"]), seconds(&class["eta_s"])];
            table.add_row(row(&name, &plain(&class["class"]), cells, ""));
        }
        for blocked in items(syncer, "blocked") {
            let cells = [plain(&blocked["calls"]), String::new(), String::new(), String::new()];
            table.add_row(row(&name, "blocked", cells, &plain(&blocked["on"])));
        }
    }
    table
}

fn rate(value: &Value) -> String {
    value.as_f64().map_or_else(String::new, |rate| format!("{rate:.0}"))
}

fn row(syncer: &str, what: &str, cells: [String; 4], limit: &str) -> Vec<Cell> {
    let text = [syncer.to_owned(), what.to_owned()].into_iter().chain(cells).chain([limit.to_owned()]);
    text.map(Cell::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn a_recovery_shows_what_waits_how_fast_it_goes_and_what_holds_it_back() {
        let answer = json!({ "syncers": [{
            "syncer": "s-1", "waiting": 300, "rate_per_s": 20.0, "eta_s": 15.2, "limited_by": "the pace",
            "classes": [
                { "class": "repair", "waiting": 300, "oldest_ms": 12_000, "rate_per_s": 20.0, "eta_s": 15.2 },
                { "class": "new", "waiting": 0, "oldest_ms": null, "rate_per_s": 0.0, "eta_s": 0.0 },
            ],
            "blocked": [{ "on": "an SFU", "calls": 3 }],
        }, { "syncer": "s-2", "waiting": 1, "eta_s": null, "classes": [], "blocked": [] }] });
        let text = table(&Output::new(Format::Table), &answer).to_string();
        for part in ["s-1", "300", "12 s", "15 s", "the pace", "an SFU", "never"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("new"), "what does not wait is noise\n{text}");
    }
}
