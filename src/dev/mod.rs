//! `trunkline dev`: a whole fleet on this machine that breaks and recovers.
//!
//! Nothing here is special: the mock SFUs, the syncers and the simulated gateways are the same code
//! as in processes of their own, and they talk over the same sockets and the same TLS. What is
//! shown and judged comes from a drill, which knows the fleet from outside only.

mod fleet;
mod live;
mod pki;
mod plan;

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::fleet::DevFleet;
use self::live::Live;
use crate::exit::{Exit, Failure, WithExit};
use crate::output::Output;
use crate::serve::drill_failure;

/// Arguments of `dev`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DevArgs {
    /// End after this long, for example 40s [default: at Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Write the report, with the time series, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Same seed, same calls and same SFUs killed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Syncers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=15))]
    syncers: u16,
    /// Mock SFUs, spread over three regions
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=2000))]
    sfus: u16,
    /// Calls
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    calls: u32,
    /// Participants of the calls
    #[arg(long, default_value_t = 6_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    participants: u32,
    /// Share of the SFUs that are killed; 0 kills none
    #[arg(long, default_value_t = 0.2, value_parser = share)]
    kill: f64,
    /// Kill them this long after the start, once everything is placed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    kill_after: Duration,
    /// Port of the first syncer; the others follow [default: 8441, or free ones when it is taken]
    #[arg(long)]
    port: Option<u16>,
    /// Keep certificates, keys and catalogue in this directory [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs it: build the fleet, hold the drill, show it, take the fleet down.
pub(crate) async fn run(arguments: DevArgs, output: &Output, stop: CancellationToken) -> Result<(), Failure> {
    let plan = plan::plan(&arguments)?;
    let fleet = DevFleet::start(&arguments).await?;
    output.say(&fleet.introduction());
    let (observer, counts) = drill::Observer::new();
    let held = {
        let drill = drill::run(plan, fleet.targets(), observer, stop);
        let live = Live::new(output, counts, fleet.client().await?).run();
        tokio::pin!(drill, live);
        tokio::select! {
            held = &mut drill => held,
            never = &mut live => match never {},
        }
    };
    fleet.stop().await;
    let report = held.map_err(|error| drill_failure(error.into()))?;
    let json = serde_json::to_vec_pretty(&report).or_exit(Exit::Bug, "writing the report")?;
    if let Some(file) = &arguments.json {
        tokio::fs::write(file, &json).await.or_exit(Exit::Failed, format!("writing {}", file.display()))?;
    }
    output.report(&json, &drill::summary(&report));
    if report.passed { Ok(()) } else { Err(Failure::new(Exit::Failed, "the fleet did not recover as it must")) }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("a share is from 0 to 1".to_owned()) }
}
