//! `trunkline drill`: arguments, console, files.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::client::Targets;
use crate::error::Error;
use crate::observe::Observer;
use crate::plan::Plan;
use crate::report::Report;
use crate::table;

/// Simulate gateways, break SFUs, and check from outside what must hold.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Name of a built-in plan (see --list), or a TOML file.
    pub plan: Option<String>,
    /// Show the built-in plans.
    #[arg(long)]
    pub list: bool,
    /// Base URL of a syncer; repeat for more.
    #[arg(long, value_name = "URL")]
    pub syncer: Vec<String>,
    /// PEM file with certificates that syncers and SFUs are trusted by; repeat for more.
    #[arg(long, value_name = "FILE")]
    pub ca: Vec<PathBuf>,
    /// Base URL of a mock's control port; repeat for more.
    #[arg(long, value_name = "URL")]
    pub control: Vec<String>,
    /// Write the report, with the time series, to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Use this seed instead of the plan's.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Run for this long instead of the plan's duration, for example 40s.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Bearer token for levers and status.
    #[arg(long, value_name = "TOKEN", env = "TRUNKLINE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Identity of a gateway; repeat, in order. Others use their name as token.
    #[arg(long, value_name = "ID:TOKEN")]
    pub gateway_token: Vec<String>,
    /// Do not print a line every second.
    #[arg(long)]
    pub quiet: bool,
}

/// Holds the drill that the arguments ask for and prints to `out`; whether it passed.
///
/// # Errors
///
/// When the drill cannot be held (a [`crate::Error`] inside: `is_config` tells wrong input from an
/// unreachable fleet), or `out` or the JSON file cannot be written.
///
/// # Cancel safety
///
/// Cancel `shutdown` to end the drill early with a report; dropping the future gives none.
pub async fn run_cli(args: Args, out: &mut (dyn Write + Send), shutdown: CancellationToken) -> anyhow::Result<bool> {
    if args.list {
        write!(out, "{}", table::list())?;
        return Ok(true);
    }
    let name = args.plan.as_deref().ok_or_else(|| Error::target("which plan? (`--list` shows the built-in ones)"))?;
    let mut plan = Plan::load(name).map_err(Error::from)?;
    plan.seed = args.seed.unwrap_or(plan.seed);
    if let Some(duration) = args.duration {
        plan.duration = Some(duration);
        plan.linger = None;
    }
    let targets = Targets {
        syncers: args.syncer,
        ca_pem: read_ca(&args.ca).await?,
        controls: args.control,
        gateway_tokens: args.gateway_token,
        operator_token: args.token,
    };
    let report = with_progress(plan, targets, out, args.quiet, shutdown).await?;
    write!(out, "{}", table::summary(&report))?;
    if let Some(file) = &args.json {
        let json = serde_json::to_vec_pretty(&report)?;
        tokio::fs::write(file, json).await.with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(report.passed)
}

async fn with_progress(
    plan: Plan,
    targets: Targets,
    out: &mut (dyn Write + Send),
    quiet: bool,
    shutdown: CancellationToken,
) -> anyhow::Result<Report> {
    let (observer, mut counts) = Observer::new();
    let drill = crate::run(plan, targets, observer, shutdown);
    tokio::pin!(drill);
    let mut printed = None;
    loop {
        tokio::select! {
            report = &mut drill => return Ok(report?),
            Ok(()) = counts.changed() => {
                let counts = counts.borrow_and_update().clone();
                let second = counts.at_ms / 1000;
                if !quiet && printed != Some(second) {
                    printed = Some(second);
                    writeln!(out, "{}", table::progress(&counts))?;
                }
            }
        }
    }
}

async fn read_ca(files: &[PathBuf]) -> Result<Option<String>, Error> {
    let mut all = String::new();
    for file in files {
        all.push_str(&read_pem(file).await?);
        all.push('\n');
    }
    Ok((!files.is_empty()).then_some(all))
}

/// Each file is checked on its own, so that the one that is wrong is named.
async fn read_pem(file: &Path) -> Result<String, Error> {
    let named = |reason: String| Error::ca(format!("{}: {reason}", file.display()));
    let pem = tokio::fs::read_to_string(file).await.map_err(|e| named(e.to_string()))?;
    crate::client::tls(Some(&pem)).map_err(|e| named(e.to_string()))?;
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(args: Args) -> String {
        let mut out = Vec::new();
        let error = run_cli(args, &mut out, CancellationToken::new()).await.expect_err("refused");
        assert!(error.downcast_ref::<Error>().is_some_and(Error::is_config), "{error:?}");
        error.to_string()
    }

    #[tokio::test]
    async fn the_list_shows_every_plan() {
        let mut out = Vec::new();
        let args = Args { list: true, ..Args::default() };
        assert!(run_cli(args, &mut out, CancellationToken::new()).await.expect("lists"));
        let text = String::from_utf8(out).expect("utf-8");
        assert!(crate::plan::BUILT_IN.iter().all(|plan| text.contains(plan.name)), "{text}");
    }

    #[tokio::test]
    async fn an_unreadable_or_wrong_ca_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        let wrong = dir.path().join("wrong.pem");
        std::fs::write(&wrong, "not a certificate").expect("written");
        for file in [wrong, dir.path().join("absent.pem")] {
            let args = Args { plan: Some("steady".into()), ca: vec![file.clone()], ..Args::default() };
            let text = refusal(args).await;
            assert!(text.contains(file.to_str().expect("utf-8")), "{text}");
        }
    }

    #[tokio::test]
    async fn a_wrong_plan_and_a_missing_target_are_named() {
        assert!(refusal(Args::default()).await.contains("which plan"));
        assert!(refusal(Args { plan: Some("sfu-kil".into()), ..Args::default() }).await.contains("sfu-kill"));
        assert!(refusal(Args { plan: Some("steady".into()), ..Args::default() }).await.contains("--syncer"));
    }
}
