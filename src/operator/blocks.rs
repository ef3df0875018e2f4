//! `trunkline blocks`: guilds that are turned away.

use clap::Subcommand;
use comfy_table::{Cell, Table};
use reqwest::{Method, Url};
use serde_json::{Value, json};
use sfu_api::GuildId;

use super::{Client, Connection, query, segment};
use crate::exit::{Exit, Failure};
use crate::output::{Output, items, plain};

/// Arguments of `blocks`.
#[derive(Debug, clap::Args)]
pub(crate) struct BlocksArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the guilds that are turned away, and where (the default)
    List,
    /// Turn away new sessions, calls and streams of a guild; what is live stays
    Add(Which),
    /// Let a guild in again
    Remove(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Its id
    guild: GuildId,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Runs it.
pub(crate) async fn run(arguments: BlocksArgs, output: &Output) -> Result<(), Failure> {
    let client = Client::new(arguments.connection).await?;
    match arguments.verb.unwrap_or(Verb::List) {
        Verb::List => {}
        Verb::Add(which) => {
            client.on_each(Method::POST, &path(&which, "block")?, None).await?;
        }
        Verb::Remove(which) => remove(&client, &which).await?,
    }
    let blocks: Vec<Value> = list(&client).await?.into_iter().flat_map(|(_, blocks)| blocks).collect();
    output.show(&json!({ "blocks": blocks }), |answer| table(output, items(answer, "blocks")));
    Ok(())
}

/// Where it is blocked. Elsewhere there is nothing to lift, and a refusal would end the round.
async fn remove(client: &Client, which: &Which) -> Result<(), Failure> {
    let path = path(which, "unblock")?;
    let holding = list(client)
        .await?
        .into_iter()
        .filter(|(_, blocks)| blocks.iter().any(|block| block["guild"] == which.guild.as_str()));
    let mut lifted = 0;
    for (base, _) in holding {
        client.ask(&base, Method::POST, &path, None).await?;
        lifted += 1;
    }
    if lifted == 0 {
        return Err(Failure::new(Exit::Failed, format!("{} is not blocked there", which.guild)));
    }
    Ok(())
}

/// The blocks of every syncer that is asked, each with the syncer it is at.
async fn list(client: &Client) -> Result<Vec<(Url, Vec<Value>)>, Failure> {
    let answers = client.on_each(Method::GET, "/v1/blocks", None).await?;
    let each = client.bases().iter().cloned().zip(answers).map(|(base, answer)| {
        let at = |mut block: Value| {
            block["at_syncer"] = base.as_str().into();
            block
        };
        let blocks = items(&answer, "blocks").iter().cloned().map(at).collect();
        (base.clone(), blocks)
    });
    Ok(each.collect())
}

fn path(which: &Which, verb: &str) -> Result<String, Failure> {
    Ok(format!("/v1/guilds/{}:{verb}{}", segment(which.guild.as_str())?, query(which.reason.as_deref())?))
}

fn table(output: &Output, blocks: &[Value]) -> Table {
    let mut table = output.table(&["guild", "by", "reason", "syncer"]);
    for block in blocks {
        table.add_row(["guild", "by", "reason", "at_syncer"].map(|name| Cell::new(plain(&block[name]))));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    fn which(guild: &str, reason: Option<&str>) -> Which {
        Which { guild: GuildId::new(guild).expect("an id"), reason: reason.map(str::to_owned) }
    }

    #[test]
    fn a_guild_and_a_reason_reach_the_path_whole() {
        let path = |guild, reason| path(&which(guild, reason), "block").expect("a path");
        assert_eq!(path("g", None), "/v1/guilds/g:block");
        assert_eq!(path("a/b?c", Some("50 % & more")), "/v1/guilds/a%2Fb%3Fc:block?reason=50+%25+%26+more");
    }

    #[test]
    fn a_table_says_who_why_and_where() {
        let block = json!({ "guild": "raid", "by": "ops", "reason": "spam", "at": 1, "at_syncer": "http://h:1/" });
        let text = table(&Output::new(Format::Table), &[block]).to_string();
        assert!(["raid", "ops", "spam", "http://h:1/"].iter().all(|part| text.contains(part)), "{text}");
    }
}
