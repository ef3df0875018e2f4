//! Logs go to stderr: readable on a terminal, JSON for machines.

use std::io::{IsTerminal, stderr};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::cli::{BUILD, Command, GLOBAL, VERSION};
use crate::exit::{Exit, Failure};
use crate::output::color_wanted;

/// A service tells what it does; a command that prints a result only tells what went wrong.
const SERVICE_LEVEL: &str = "info";
/// See [`SERVICE_LEVEL`].
const COMMAND_LEVEL: &str = "warn";

/// What is logged, and how it looks.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// What is logged: a level, or targets such as `info,syncer=debug` [default: info for services, else warn]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILTER", env = "TRUNKLINE_LOG")]
    log: Option<String>,
    /// How logs look on stderr
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FORMAT", default_value = "auto")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Pretty,
    /// For machines.
    Json,
}

/// Starts logging.
pub(crate) fn init(arguments: &LogArgs, command: &Command) -> Result<(), Failure> {
    let level = if command.is_service() { SERVICE_LEVEL } else { COMMAND_LEVEL };
    let filter = filter(arguments.log.clone().or_else(|| std::env::var("RUST_LOG").ok()), level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let json = match arguments.log_format {
        LogFormat::Json => true,
        LogFormat::Pretty => false,
        LogFormat::Auto => !stderr().is_terminal(),
    };
    let started = if json {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    } else {
        builder.with_ansi(stderr().is_terminal() && color_wanted()).try_init()
    };
    started.map_err(|error| Failure::new(Exit::Bug, format!("logging: {error}")))?;
    if command.is_service() {
        tracing::info!(version = VERSION, build = BUILD, pid = std::process::id(), "trunkline starts");
    }
    Ok(())
}

fn filter(asked: Option<String>, level: &str) -> Result<EnvFilter, Failure> {
    let text = asked.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| level.to_owned());
    EnvFilter::try_new(&text)
        .map_err(|error| Failure::new(Exit::Usage, format!("`{text}` does not say what to log: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_makes_no_sense_is_a_usage_error() {
        let failure = filter(Some("syncer=loud".to_owned()), "info").expect_err("refused");
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("syncer=loud"), "{failure}");
        assert_eq!(filter(Some(" ".to_owned()), "info").expect("default").to_string(), "info");
    }
}
