//! Developer tasks. `cargo xtask test` is everything: what passes there may be merged.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool talks on the terminal")]

mod bench;
mod deny;
mod dependencies;
mod full;
mod process;
mod stages;
mod summary;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer tasks of Trunkline.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run every check and every test.
    ///
    /// A stage that fails does not stop the next one, so that one run shows everything that is wrong.
    /// The last line reads `N passed, N failed`: each test and each example counts, and each other stage
    /// counts as one.
    /// The exit code is 0 only when nothing failed.
    Test(Test),
    /// Run the tests whose requirement names a size that takes minutes, at that size, in a release build.
    ///
    /// They want the machine to themselves. `test` runs the same tests smaller.
    Full(Full),
    /// Run the benches, each alone on the machine.
    Bench(bench::Bench),
}

#[derive(Debug, clap::Args)]
struct Test {
    /// Run only this stage (may be given several times; see --list).
    #[arg(long, value_name = "STAGE")]
    only: Vec<String>,
    /// Show the stages and exit.
    #[arg(long)]
    list: bool,
    /// Check that the programs which real tests need are there, but do not install them.
    #[arg(long)]
    no_install: bool,
}

#[derive(Debug, clap::Args)]
struct Full {
    /// Run only this one (may be given several times).
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Test(test) => run(&test),
        Task::Full(full) => chosen(full::all(), &full.only).map(run_all),
        Task::Bench(bench) => bench::run(&bench).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything passed.
fn run(test: &Test) -> anyhow::Result<bool> {
    let stages = chosen(stages::all(!test.no_install)?, &test.only)?;
    if test.list {
        for stage in &stages {
            println!("{:<14} {}", stage.name, stage.what);
        }
        return Ok(true);
    }
    Ok(run_all(stages))
}

/// The stages of these names; all of them when none is named.
fn chosen(mut stages: Vec<stages::Stage>, only: &[String]) -> anyhow::Result<Vec<stages::Stage>> {
    if let Some(unknown) = only.iter().find(|&name| stages.iter().all(|stage| stage.name != *name)) {
        let known: Vec<_> = stages.iter().map(|stage| stage.name.as_str()).collect();
        anyhow::bail!("no stage is called `{unknown}`; there are: {}", known.join(", "));
    }
    stages.retain(|stage| only.is_empty() || only.contains(&stage.name));
    Ok(stages)
}

/// Whether everything passed.
fn run_all(stages: Vec<stages::Stage>) -> bool {
    let mut results = Vec::new();
    for stage in stages {
        println!("\n=== {}: {}", stage.name, stage.what);
        results.push(summary::Row::of(stage));
    }
    summary::print(&results)
}
