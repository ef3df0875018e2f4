//! `trunkline calls`.

use clap::{Subcommand, ValueEnum};
use comfy_table::{Cell, Table};
use serde_json::{Value, json};
use sfu_api::{CallId, GuildId, SfuId};

use super::{Client, Connection, segment};
use crate::exit::{Exit, Failure};
use crate::output::{Output, items, plain};

/// Calls asked for at once.
const PAGE: usize = 500;

/// Candidates shown by `explain`; `-o json` has them all.
const CANDIDATES_SHOWN: usize = 10;

/// Arguments of `calls`.
#[derive(Debug, clap::Args)]
pub(crate) struct CallsArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    filter: Filter,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Args)]
struct Filter {
    /// Only calls in this state
    #[arg(long)]
    state: Option<State>,
    /// Only calls on this SFU
    #[arg(long)]
    sfu: Option<SfuId>,
    /// Only calls of this guild
    #[arg(long)]
    guild: Option<GuildId>,
    /// Show at most this many
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// On an SFU
    Placed,
    /// Waiting for an endpoint
    Awaiting,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show one call
    Show(Which),
    /// Say why a call is where it is, what it waits for, and what would happen next
    Explain(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Its guild
    guild: GuildId,
    /// The call
    call: CallId,
}

/// Runs it.
pub(crate) async fn run(arguments: CallsArgs, output: &Output) -> Result<(), Failure> {
    let client = Client::new(arguments.connection).await?;
    let (which, suffix) = match &arguments.verb {
        None => return list(&client, &arguments.filter, output).await,
        Some(Verb::Show(which)) => (which, ""),
        Some(Verb::Explain(which)) => (which, ":explain"),
    };
    let (guild, call) = (segment(which.guild.as_str())?, segment(which.call.as_str())?);
    let answer = client.get(&format!("/v1/guilds/{guild}/calls/{call}{suffix}")).await?;
    output.show(&answer, |answer| fields(output, answer));
    if answer["replay"].is_object() {
        output.say("");
        output.say(&replayed(&answer["replay"]));
    }
    if !items(&answer["replay"], "looks").is_empty() {
        output.show_table(|| looks(output, items(&answer["replay"], "looks")));
    }
    if !items(&answer, "candidates").is_empty() {
        output.say("");
        output.show_table(|| candidates(output, items(&answer, "candidates")));
    }
    Ok(())
}

async fn list(client: &Client, filter: &Filter, output: &Output) -> Result<(), Failure> {
    let (mut calls, mut total) = (Vec::new(), 0);
    for base in client.bases() {
        let mut cursor = None;
        loop {
            let path = page_path(filter, filter.limit.saturating_sub(calls.len()), cursor.as_deref())?;
            let mut page = client.ask(base, reqwest::Method::GET, &path, None).await?;
            if cursor.is_none() {
                total += page["total"].as_u64().unwrap_or(0);
            }
            cursor = page["next"].as_str().map(str::to_owned);
            if let Value::Array(more) = page["calls"].take() {
                calls.extend(more);
            }
            if cursor.is_none() || calls.len() >= filter.limit {
                break;
            }
        }
    }
    calls.truncate(filter.limit);
    let shown = calls.len();
    output.show(&json!({ "calls": calls, "total": total }), |answer| table(output, items(answer, "calls")));
    output.say(&format!("{shown} of {total}"));
    Ok(())
}

fn page_path(filter: &Filter, left: usize, cursor: Option<&str>) -> Result<String, Failure> {
    let mut url = reqwest::Url::parse("http://h/v1/calls").map_err(|error| Failure::of(Exit::Bug, error))?;
    let limit = left.clamp(1, PAGE).to_string();
    let state = filter.state.map(|state| match state {
        State::Placed => "placed",
        State::Awaiting => "awaiting",
    });
    let (sfu, guild) = (filter.sfu.as_ref().map(SfuId::as_str), filter.guild.as_ref().map(GuildId::as_str));
    for (name, value) in
        [("state", state), ("sfu", sfu), ("guild", guild), ("limit", Some(limit.as_str())), ("cursor", cursor)]
    {
        if let Some(value) = value {
            url.query_pairs_mut().append_pair(name, value);
        }
    }
    Ok(format!("/v1/calls?{}", url.query().unwrap_or_default()))
}

fn table(output: &Output, calls: &[Value]) -> Table {
    let mut table = output.table(&["guild", "call", "kind", "state", "sfu", "region", "participants", "awaiting ms"]);
    for call in calls {
        let cell = |name: &str| Cell::new(plain(&call[name]));
        let state = output.state(call["state"].as_str().unwrap_or("?"));
        let row = [cell("guild"), cell("call"), cell("kind"), state, cell("sfu"), cell("region")];
        table.add_row(row.into_iter().chain([cell("participants"), cell("awaiting_ms")]));
    }
    table
}

/// One row a field; the call inside an explanation is laid out as if it stood alone.
fn fields(output: &Output, answer: &Value) -> Table {
    let mut table = output.table(&["", ""]);
    let call = answer["call"].as_object().into_iter().flatten();
    for (name, value) in call.chain(answer.as_object().into_iter().flatten()) {
        let nested = value.is_object() && matches!(name.as_str(), "call" | "replay");
        if !nested && name != "candidates" {
            table.add_row([name.clone(), plain(value)]);
        }
    }
    table
}

/// What there is to say of a decision that was made again.
fn replayed(replay: &Value) -> String {
    let [revision, now, in_turn] = ["revision", "now", "in_turn"].map(|name| plain(&replay[name]));
    if replay["state"] != "made" {
        return format!(
            "the decision cannot be made again: it drew from revision {revision} of the catalogue, which is not kept any \
             more; now it is {now}"
        );
    }
    let outcome = match replay["as_recorded"].as_bool() {
        Some(true) => "came to what is recorded",
        _ => "did not come to what is recorded: an SFU became fit, or ceased to be, in the midst of it",
    };
    let turn = if in_turn == "0" { String::new() } else { format!("; then {in_turn} were looked at in turn") };
    format!(
        "the decision, made again from revision {revision} of the catalogue, {outcome}; in the order of the draws{turn}:"
    )
}

/// Those that a decision looked at.
fn looks(output: &Output, looks: &[Value]) -> Table {
    let mut table = output.table(&["drawn", "chance", "what came of it", "score"]);
    for look in looks {
        let [sfu, chance, score] = ["sfu", "chance", "score"].map(|name| plain(&look[name]));
        let fate = match (look["fate"].as_str(), look["taken"].as_bool()) {
            (Some("light"), _) => "its weight's chance went against it",
            (Some("unfit"), _) => "it was not fit",
            (Some("again"), _) => "it was already the first of the two",
            (_, Some(true)) => "compared, and taken",
            _ => "compared",
        };
        table.add_row([sfu, chance, fate.to_owned(), score]);
    }
    table
}

/// The SFUs that could be chosen now, best first as the syncer lists them.
fn candidates(output: &Output, candidates: &[Value]) -> Table {
    let mut table = output.table(&["candidate", "region", "score", "excluded"]);
    for candidate in candidates.iter().take(CANDIDATES_SHOWN) {
        table.add_row(["sfu", "region", "score", "excluded"].map(|name| plain(&candidate[name])));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn a_decision_made_again_is_told_draw_by_draw() {
        let look = |sfu: &str, fate: &str, taken: bool| json!({ "sfu": sfu, "chance": 0.5, "fate": fate, "score": 0.25, "taken": taken });
        let each = [look("a", "light", false), look("b", "unfit", false), look("c", "compared", true)];
        let made = json!({ "state": "made", "revision": 7, "in_turn": 0, "as_recorded": true, "looks": each });
        let text = looks(&Output::new(Format::Table), items(&made, "looks")).to_string();
        let told: Vec<&str> = text.lines().skip(1).map(str::trim).collect();
        assert!(told[0].starts_with('a') && told[0].contains("chance went against it"), "{text}");
        assert!(told[1].starts_with('b') && told[1].contains("not fit"), "{text}");
        assert!(told[2].starts_with('c') && told[2].contains("and taken"), "{text}");
        assert!(replayed(&made).contains("revision 7 of the catalogue, came to what is recorded"));
        let other = json!({ "state": "made", "revision": 7, "in_turn": 3, "as_recorded": false });
        assert!(replayed(&other).contains("did not come to") && replayed(&other).contains("3 were looked at in turn"));
        let unknown = replayed(&json!({ "state": "unknown", "revision": 7, "now": 40 }));
        assert!(
            unknown.contains("cannot be made again") && unknown.contains('7') && unknown.contains("40"),
            "{unknown}"
        );
    }

    #[test]
    fn filters_become_a_query_whatever_they_hold() {
        let guild = Some(GuildId::new("a&b=c#d").expect("valid"));
        let filter = Filter { state: Some(State::Awaiting), sfu: None, guild, limit: 50 };
        let path = page_path(&filter, 7, Some("x/y")).expect("builds");
        assert_eq!(path, "/v1/calls?state=awaiting&guild=a%26b%3Dc%23d&limit=7&cursor=x%2Fy");
        assert_eq!(segment("a/b?c").expect("builds"), "a%2Fb%3Fc");
    }
}
