//! `trunkline config`: what a syncer would run with.

use clap::Subcommand;
use syncer::config::Config;
use syncer::server::Syncer;

use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::serve::{Settings, load};

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check the configuration and every file it names; exits with 78 when it cannot be used
    Check(Settings),
    /// Print the configuration in force, secrets hidden
    Print(Settings),
    /// Print a commented sample with every key and its default
    Sample,
}

/// Runs it.
pub(crate) fn run(arguments: &ConfigArgs, output: &Output) -> Result<(), Failure> {
    match &arguments.verb {
        Verb::Check(settings) => {
            let config = load(settings)?;
            Syncer::check(&config).map_err(|error| Failure::of(Exit::Config, error))?;
            output.say(&format!("the configuration of {} can be used", config.id));
        }
        Verb::Print(settings) => output.text(&load(settings)?.print()),
        Verb::Sample => output.text(&Config::sample()),
    }
    Ok(())
}
