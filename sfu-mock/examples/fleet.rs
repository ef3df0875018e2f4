//! Runs a fleet until Ctrl-C: `cargo run -p sfu-mock --example fleet -- --nodes 1000`.
//!
//! The same as `trunkline sfu-mock`, without the rest of the command; prints how long the start took.

#![allow(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use clap::Parser;
use sfu_mock::{Args, Cluster};
use tokio::time::Instant;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

fn main() -> anyhow::Result<()> {
    let Command { args } = Command::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let before = Instant::now();
        let cluster = Cluster::start(args.into_config()).await?;
        let took = Instant::now() - before;
        println!("{} nodes in {took:?}, control {}", cluster.nodes().len(), cluster.control_url());
        tokio::signal::ctrl_c().await?;
        cluster.shutdown().await;
        Ok(())
    })
}
