//! The command line.

use std::sync::LazyLock;

use clap::{Parser, Subcommand};

use crate::configuration::ConfigArgs;
use crate::dev::DevArgs;
use crate::logging::LogArgs;
use crate::operator::{blocks, calls, gateways, limits, members, recovery, sfus, status};
use crate::output::Format;
use crate::serve::SyncerArgs;

/// The version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Which build of it: packagers set `TRUNKLINE_BUILD`, to a commit for example.
pub(crate) const BUILD: &str = match option_env!("TRUNKLINE_BUILD") {
    Some(build) => build,
    None if cfg!(debug_assertions) => "debug build from source",
    None => "release build from source",
};

/// What `--version` shows.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| format!("{VERSION} ({BUILD})"));

/// What stands above the options of every subcommand, after its own.
pub(crate) const GLOBAL: &str = "Global options";

const AFTER_HELP: &str = "\
Start here:
  trunkline dev                      a whole fleet on this machine that breaks and recovers
  trunkline dev --for 40s --json out.json

Separate processes:
  trunkline sfu-mock --nodes 200 --name m1 --ca-dir pki --dir m1
  trunkline syncer --listen 127.0.0.1:8441 --sfus m1/sfus.toml --sfu-ca pki/ca.pem
  trunkline drill steady --syncer http://127.0.0.1:8441
  trunkline status

Exit codes:
  0 done   1 a check failed or the request was refused   2 usage   69 something needed does not answer
  70 a bug   75 stopped before the drain ended   78 the configuration cannot be used

Environment:
  TRUNKLINE_URL, TRUNKLINE_TOKEN, TRUNKLINE_CA   for status, recovery, sfus, calls, limits, blocks,
                                                 gateways, members
  TRUNKLINE_<KEY>, with __ for a dot             settings of a syncer (see `trunkline config sample`)
  RUST_LOG                                       what is logged, as with --log
  NO_COLOR                                       no colours";

/// A voice control plane whose recovery path cannot collapse.
///
/// Syncers keep every live call placed on one SFU of a fleet. When SFUs die, calls come back at a
/// pace the rest can carry.
#[derive(Debug, Parser)]
#[command(name = "trunkline", version = LONG_VERSION.as_str(), after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) logging: LogArgs,
    /// How answers are printed on stdout
    #[arg(
        short,
        long,
        global = true,
        help_heading = GLOBAL,
        value_name = "FORMAT",
        env = "TRUNKLINE_OUTPUT",
        default_value = "table"
    )]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole fleet on this machine: syncers, mock SFUs, gateways; break it, watch it recover
    Dev(DevArgs),
    /// Run one syncer
    Syncer(SyncerArgs),
    /// Run a cluster of mock SFUs over real HTTPS, with faults on demand
    SfuMock(sfu_mock::Args),
    /// Drive a fleet with simulated gateways, break it by plan and check what must hold
    Drill(drill::Args),
    /// Show how a fleet is doing
    Status(status::StatusArgs),
    /// Show what waits for a place, how fast it gets one and how long it will take
    Recovery(recovery::RecoveryArgs),
    /// List SFUs, or take one out of service
    Sfus(sfus::SfusArgs),
    /// List calls, or explain where one is placed and why
    Calls(calls::CallsArgs),
    /// Read or change the limits of running syncers
    Limits(limits::LimitsArgs),
    /// List guilds that are turned away, turn one away, or let it in again
    Blocks(blocks::BlocksArgs),
    /// List gateways, or say that one is gone
    Gateways(gateways::GatewaysArgs),
    /// List the syncers of a fleet
    Members(members::MembersArgs),
    /// Check or print a syncer's configuration, or print a commented sample
    Config(ConfigArgs),
}

// === impl Command ===

impl Command {
    /// Whether it runs until it is stopped and tells a story on the way, which belongs in a log.
    pub(crate) fn is_service(&self) -> bool {
        matches!(self, Self::Syncer(_) | Self::SfuMock(_))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_says_what_it_does() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }

    #[test]
    fn help_shows_a_subcommands_own_options_first() {
        let mut command = Cli::command();
        command.build();
        let syncer = command.find_subcommand_mut("syncer").expect("a subcommand");
        let help = syncer.render_long_help().to_string();
        let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("{text} is not in\n{help}"));
        assert!(
            at("--listen") < at(GLOBAL) && at(GLOBAL) < at("--log-format") && at(GLOBAL) < at("--output"),
            "{help}"
        );
    }

    #[test]
    fn usage_errors_name_what_is_close() {
        let error = Cli::try_parse_from(["trunkline", "stats"]).expect_err("unknown");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("status"), "{error}");
    }
}
