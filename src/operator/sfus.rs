//! `trunkline sfus`.

use clap::Subcommand;
use comfy_table::{Cell, Table};
use reqwest::Method;
use serde_json::{Value, json};
use sfu_api::SfuId;

use super::{Client, Connection, segment};
use crate::exit::Failure;
use crate::output::{Output, items, plain};

/// Arguments of `sfus`.
#[derive(Debug, clap::Args)]
pub(crate) struct SfusArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the SFUs with the verdict on each (the default)
    List,
    /// Place nothing more on an SFU; its calls stay
    Cordon(Which),
    /// Place on it again
    Uncordon(Which),
    /// Move its calls elsewhere, one by one, without a moment without an endpoint
    Drain(DrainArgs),
    /// Take a drain back: what has moved stays where it went
    Undrain(Which),
    /// Take it out of service and keep it for debugging
    Quarantine(Which),
    /// Put it back into service
    Unquarantine(Which),
    /// Show one SFU, with the progress of its drain and the calls left on it
    Show(Which),
    /// Say that an SFU is dead: its calls move, paced
    DeclareDead(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Its id
    sfu: SfuId,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, clap::Args)]
struct DrainArgs {
    #[command(flatten)]
    which: Which,
    /// How long calls may be moved; what is left then stays and is listed
    #[arg(long, value_name = "TIME", default_value = "10m")]
    deadline: String,
}

/// Runs it.
pub(crate) async fn run(arguments: SfusArgs, output: &Output) -> Result<(), Failure> {
    let client = Client::new(arguments.connection).await?;
    let mut body = serde_json::Map::new();
    let (which, action) = match arguments.verb.unwrap_or(Verb::List) {
        Verb::List => {
            let answer = client.get("/v1/sfus").await?;
            output.show(&answer, |answer| table(output, items(answer, "sfus")));
            return Ok(());
        }
        Verb::Cordon(which) => (which, "cordon"),
        Verb::Uncordon(which) => (which, "uncordon"),
        Verb::Drain(DrainArgs { which, deadline }) => {
            body.insert("deadline".to_owned(), deadline.into());
            (which, "drain")
        }
        Verb::Undrain(which) => (which, "undrain"),
        Verb::Quarantine(which) => (which, "quarantine"),
        Verb::Unquarantine(which) => (which, "unquarantine"),
        Verb::DeclareDead(which) => (which, "declare-dead"),
        Verb::Show(which) => {
            let path = format!("/v1/sfus/{}", segment(which.sfu.as_str())?);
            let answers = client.on_each(Method::GET, &path, None).await?;
            output.show(&json!({ "sfus": answers }), |answer| table(output, items(answer, "sfus")));
            return Ok(());
        }
    };
    if let Some(reason) = which.reason {
        body.insert("reason".to_owned(), reason.into());
    }
    let path = format!("/v1/sfus/{}:{action}", segment(which.sfu.as_str())?);
    let answers = client.on_each(Method::POST, &path, Some(&body.into())).await?;
    output.show(&json!({ "sfus": answers }), |answer| table(output, items(answer, "sfus")));
    Ok(())
}

fn table(output: &Output, sfus: &[Value]) -> Table {
    let mut table =
        output.table(&["id", "region", "zone", "verdict", "service", "calls", "capacity", "url", "evidence"]);
    for sfu in sfus {
        let cell = |name: &str| Cell::new(plain(&sfu[name]));
        let verdict = output.state(sfu["verdict"].as_str().unwrap_or("?"));
        let zone = Cell::new(zone(sfu));
        let row = [cell("id"), cell("region"), zone, verdict, Cell::new(service(sfu)), cell("calls"), cell("capacity")];
        table.add_row(row.into_iter().chain([cell("url"), cell("evidence")]));
    }
    table
}

/// Its zone, and whether that is failing.
fn zone(sfu: &Value) -> String {
    let name = plain(&sfu["zone"]);
    if sfu["zone_failing"] == true { format!("{name} (failing)") } else { name }
}

/// What operators decided of it, and how far a drain is: moved of those that were there.
fn service(sfu: &Value) -> String {
    let mut words = Vec::new();
    for word in ["cordoned", "quarantined"] {
        if sfu[word] == true {
            words.push(word.to_owned());
        }
    }
    let drain = &sfu["drain"];
    if let Some(state) = drain["state"].as_str().filter(|state| *state != "undone") {
        words.push(format!("drain {state} {}/{}, {} left", drain["moved"], drain["at_start"], drain["left"]));
    }
    words.join(", ")
}
