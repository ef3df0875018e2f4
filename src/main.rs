//! The `trunkline` command.
//!
//! This file is the table of contents: parse, log, install the crypto provider, build the runtime,
//! run, drain, report. Each subcommand has a module of its own; the work is done in the crates.

mod cli;
mod configuration;
mod dev;
mod exit;
mod logging;
mod operator;
mod output;
mod serve;
mod shutdown;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio_util::sync::CancellationToken;

use self::cli::{Cli, Command};
use self::exit::{Exit, Failure, WithExit};

/// A syncer keeps a million calls in small pieces while every placement leaves garbage between them.
/// Here the system's allocator keeps twice as much memory and spends a fifth more CPU on a join.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long tasks that outlived their command may take to end: they have been told already.
const RUNTIME_STOP_MAX: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    match panic::catch_unwind(AssertUnwindSafe(|| start(cli))) {
        Ok(done) => exit::report(done),
        Err(_) => Exit::Bug.into(), // the panic hook has said what and where
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    logging::init(&cli.logging, &cli.command)?;
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        return Err(Failure::new(Exit::Bug, "another crypto provider is installed already"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .or_exit(Exit::Failed, "starting the runtime")?;
    let stop = CancellationToken::new();
    let done = runtime.block_on(async {
        tokio::select! {
            done = run(cli, stop.clone()) => done,
            stopped = shutdown::on_signals(&stop) => stopped,
        }
    });
    runtime.shutdown_timeout(RUNTIME_STOP_MAX);
    done
}

async fn run(cli: Cli, stop: CancellationToken) -> Result<(), Failure> {
    let output = output::Output::new(cli.output);
    match cli.command {
        Command::Dev(arguments) => dev::run(arguments, &output, stop).await,
        Command::Syncer(arguments) => serve::syncer(&arguments, stop).await,
        Command::SfuMock(arguments) => serve::sfu_mock(arguments, stop).await,
        Command::Drill(arguments) => serve::drill(arguments, stop).await,
        Command::Config(arguments) => configuration::run(&arguments, &output),
        Command::Status(arguments) => operator::status::run(arguments, &output).await,
        Command::Recovery(arguments) => operator::recovery::run(arguments, &output).await,
        Command::Sfus(arguments) => operator::sfus::run(arguments, &output).await,
        Command::Calls(arguments) => operator::calls::run(arguments, &output).await,
        Command::Limits(arguments) => operator::limits::run(arguments, &output, stop).await,
        Command::Blocks(arguments) => operator::blocks::run(arguments, &output).await,
        Command::Gateways(arguments) => operator::gateways::run(arguments, &output).await,
        Command::Members(arguments) => operator::members::run(arguments, &output).await,
    }
}
