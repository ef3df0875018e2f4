//! `trunkline gateways`.

use clap::Subcommand;
use comfy_table::{Cell, Table};
use reqwest::Method;
use serde_json::Value;
use sfu_api::GatewayId;

use super::{Client, Connection, query, segment};
use crate::exit::Failure;
use crate::output::{Output, items, plain};

/// Arguments of `gateways`.
#[derive(Debug, clap::Args)]
pub(crate) struct GatewaysArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the gateways that are looked after (the default)
    List,
    /// Say that a gateway is gone: what it does not tell again within gateways.resume_window expires
    Expire {
        /// Its id
        gateway: GatewayId,
        /// Why, for the audit
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

/// Runs it.
pub(crate) async fn run(arguments: GatewaysArgs, output: &Output) -> Result<(), Failure> {
    let client = Client::new(arguments.connection).await?;
    match arguments.verb.unwrap_or(Verb::List) {
        Verb::List => {
            let answer = client.get("/v1/gateways").await?;
            output.show(&answer, |answer| table(output, items(answer, "gateways")));
        }
        Verb::Expire { gateway, reason } => {
            let path = format!("/v1/gateways/{}:expire{}", segment(gateway.as_str())?, query(reason.as_deref())?);
            client.on_each(Method::POST, &path, None).await?;
            output.say(&format!("what {gateway} does not tell again expires after gateways.resume_window"));
        }
    }
    Ok(())
}

fn table(output: &Output, gateways: &[Value]) -> Table {
    let mut table =
        output.table(&["gateway", "incarnation", "streams", "heard", "silent for", "kept", "told everything"]);
    for gateway in gateways {
        let seconds =
            |name: &str| gateway[name].as_f64().map_or_else(String::new, |ms| format!("{:.0} s", ms / 1_000.0));
        table.add_row([
            Cell::new(plain(&gateway["gateway"])),
            Cell::new(plain(&gateway["incarnation"])),
            Cell::new(plain(&gateway["streams"])),
            Cell::new(seconds("heard_ms_ago")),
            Cell::new(seconds("vanished_ms")),
            Cell::new(plain(&gateway["kept"])),
            Cell::new(plain(&gateway["synced"])),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::output::Format;

    #[test]
    fn a_table_shows_who_is_silent_and_since_when() {
        let gateway = json!({ "gateway": "gw-1", "incarnation": "i", "streams": 0, "heard_ms_ago": 41_000,
            "vanished_ms": 11_000, "kept": 37, "synced": true });
        let text = table(&Output::new(Format::Table), &[gateway]).to_string();
        assert!(["gw-1", "41 s", "11 s", "37"].iter().all(|part| text.contains(part)), "{text}");
    }
}
