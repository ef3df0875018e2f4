//! `trunkline sfus`.

use clap::Subcommand;
use comfy_table::{Cell, Table};
use reqwest::Method;
use serde_json::{Value, json};
use sfu_api::SfuId;

use super::{Client, Connection};
use crate::exit::{Exit, Failure};
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
    /// Say that an SFU is dead: its calls move, paced
    DeclareDead(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Its id
    sfu: SfuId,
}

/// Runs it.
pub(crate) async fn run(arguments: SfusArgs, output: &Output) -> Result<(), Failure> {
    let client = Client::new(arguments.connection).await?;
    let (which, action) = match arguments.verb.unwrap_or(Verb::List) {
        Verb::List => {
            let answer = client.get("/v1/sfus").await?;
            output.show(&answer, |answer| table(output, items(answer, "sfus")));
            return Ok(());
        }
        Verb::Cordon(which) => (which, "cordon"),
        Verb::Uncordon(which) => (which, "uncordon"),
        Verb::DeclareDead(which) => (which, "declare-dead"),
    };
    let path = format!("/v1/sfus/{}:{action}", segment(which.sfu.as_str())?);
    let answers = client.on_each(Method::POST, &path, None).await?;
    output.show(&json!({ "sfus": answers }), |answer| table(output, items(answer, "sfus")));
    Ok(())
}

/// A part of a path. Ids may hold any character that is not white space; some would end the path.
pub(super) fn segment(id: &str) -> Result<String, Failure> {
    let mut base = reqwest::Url::parse("http://h/").map_err(|error| Failure::of(Exit::Bug, error))?;
    if let Ok(mut segments) = base.path_segments_mut() {
        segments.push(id);
    }
    Ok(base.path().trim_start_matches('/').to_owned())
}

fn table(output: &Output, sfus: &[Value]) -> Table {
    let mut table = output.table(&["id", "region", "verdict", "cordoned", "calls", "capacity", "url", "evidence"]);
    for sfu in sfus {
        let cell = |name: &str| Cell::new(plain(&sfu[name]));
        let verdict = output.state(sfu["verdict"].as_str().unwrap_or("?"));
        let cordoned = if sfu["cordoned"] == true { "yes" } else { "" };
        let row = [cell("id"), cell("region"), verdict, Cell::new(cordoned), cell("calls"), cell("capacity")];
        table.add_row(row.into_iter().chain([cell("url"), cell("evidence")]));
    }
    table
}
