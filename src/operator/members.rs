//! `trunkline members`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Client, Connection};
use crate::exit::Failure;
use crate::output::{Output, items, plain};

/// Arguments of `members`.
#[derive(Debug, clap::Args)]
pub(crate) struct MembersArgs {
    #[command(flatten)]
    connection: Connection,
}

/// Runs it.
pub(crate) async fn run(arguments: MembersArgs, output: &Output) -> Result<(), Failure> {
    let connection = Connection { all: false, ..arguments.connection };
    let answer = Client::new(connection).await?.get("/v1/members").await?;
    output.show(&answer, |answer| {
        // Columns are whatever the registry knows of its members, the well-known ones first.
        let members = items(answer, "members");
        let known = ["id", "state", "zone", "url"];
        let names: BTreeSet<&str> =
            members.iter().filter_map(Value::as_object).flat_map(|m| m.keys().map(String::as_str)).collect();
        let columns: Vec<&str> = known
            .into_iter()
            .filter(|name| names.contains(name))
            .chain(names.iter().copied().filter(|name| !known.contains(name)))
            .collect();
        let mut table = output.table(&columns);
        for member in members {
            table.add_row(columns.iter().map(|name| plain(&member[*name])));
        }
        table
    });
    Ok(())
}
