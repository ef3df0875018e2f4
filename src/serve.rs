//! The subcommands that run a crate's own program: a syncer, a cluster of mock SFUs, a drill.

use std::net::SocketAddr;
use std::path::PathBuf;

use syncer::config::Config;
use syncer::server::{Options, Syncer};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Failure};

/// Where the settings of a syncer come from: defaults < file < environment < these flags.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
    /// Configuration file (TOML; see `trunkline config sample`)
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_CONFIG")]
    config: Option<PathBuf>,
    /// One setting, by its dotted key; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
}

/// Arguments of `syncer`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SyncerArgs {
    #[command(flatten)]
    settings: Settings,
    /// Name of this syncer, unique in the fleet
    #[arg(long)]
    id: Option<String>,
    /// Address of the API
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// File with the syncers of the fleet
    #[arg(long, value_name = "FILE")]
    members: Option<PathBuf>,
    /// File with the SFUs
    #[arg(long, value_name = "FILE")]
    sfus: Option<PathBuf>,
    /// Authority that signed the SFUs' certificates
    #[arg(long, value_name = "FILE")]
    sfu_ca: Option<PathBuf>,
}

/// Loads the configuration, or says which line of which file is wrong.
pub(crate) fn load(settings: &Settings) -> Result<Config, Failure> {
    let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    Config::load(settings.config.as_deref(), variables, &settings.set).map_err(|error| Failure::of(Exit::Config, error))
}

/// Runs a syncer until `stop`, then drains it.
pub(crate) async fn syncer(arguments: &SyncerArgs, stop: CancellationToken) -> Result<(), Failure> {
    let config = load(&arguments.settings())?;
    let grace = config.drain_grace;
    let running = Syncer::start(config, Options::default()).await.map_err(|error| {
        let exit = if error.is_config() { Exit::Config } else { Exit::Failed };
        Failure::of(exit, error)
    })?;
    running.provide_descriptors();
    let expelled = tokio::select! {
        () = stop.cancelled() => None,
        why = running.failed() => Some(why),
    };
    let report = running.shutdown(Instant::now() + grace).await;
    match expelled {
        Some(why) => Err(Failure::new(Exit::Failed, why)),
        None if !report.is_clean() => Err(Failure::new(Exit::Deadline, format!("the drain left {report:?}"))),
        None => Ok(()),
    }
}

/// Runs a cluster of mock SFUs until `stop`.
pub(crate) async fn sfu_mock(arguments: sfu_mock::Args, stop: CancellationToken) -> Result<(), Failure> {
    sfu_mock::run(arguments, stop).await.map_err(|error| {
        let usage = error.downcast_ref::<sfu_mock::Error>().is_some_and(sfu_mock::Error::is_config);
        Failure::of(if usage { Exit::Usage } else { Exit::Failed }, error)
    })
}

/// Holds a drill.
pub(crate) async fn drill(arguments: drill::Args, stop: CancellationToken) -> Result<(), Failure> {
    let passed = drill::run_cli(arguments, &mut std::io::stdout(), stop).await.map_err(drill_failure)?;
    if passed { Ok(()) } else { Err(Failure::new(Exit::Failed, "the drill did not pass")) }
}

/// A drill that could not be held: was the input wrong, or did nobody answer?
pub(crate) fn drill_failure(error: anyhow::Error) -> Failure {
    let exit = match error.downcast_ref::<drill::Error>() {
        Some(error) if error.is_config() => Exit::Config,
        Some(error) if error.is_unreachable() => Exit::Dependency,
        _ => Exit::Failed,
    };
    Failure::of(exit, error)
}

// === impl SyncerArgs ===

impl SyncerArgs {
    /// The settings, the shorthands of this subcommand last.
    fn settings(&self) -> Settings {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let shorthands = [
            ("id", self.id.clone()),
            ("listen", self.listen.map(|address| address.to_string())),
            ("members_file", path(&self.members)),
            ("sfus_file", path(&self.sfus)),
            ("sfu_ca_file", path(&self.sfu_ca)),
        ];
        let mut settings = self.settings.clone();
        settings.set.extend(shorthands.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        settings
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}
