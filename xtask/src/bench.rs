//! Runs the benches one after the other and, when asked, keeps what they leave.
//!
//! A bench needs the machine to itself, so nothing is built while one runs. What is kept is the evidence
//! behind docs/benchmarks.md: tables, JSON and plots in docs/bench, from the commit they name.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

use crate::stages::cargo;

/// Where a run's files are kept in the repository.
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/bench");

/// What each bench leaves in `target/bench`.
const LEFT: [&str; 3] = ["json", "svg", "md"];

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// The benches; all of them when none is named.
    names: Vec<String>,
    /// Fewer rounds and scenarios: a few minutes.
    #[arg(long)]
    quick: bool,
    /// Copy tables, JSON and plots to docs/bench. Not for quick runs.
    #[arg(long, conflicts_with = "quick")]
    keep: bool,
}

/// Builds, runs, keeps.
pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let known = known()?;
    if let Some(unknown) = bench.names.iter().find(|name| !known.contains(name)) {
        anyhow::bail!("no bench is called `{unknown}`; there are: {}", known.join(", "));
    }
    let names = if bench.names.is_empty() { &known } else { &bench.names };
    let built = cargo("build --release --locked -p benches").status().context("building the benches")?;
    ensure!(built.success(), "the benches do not build");
    for name in names {
        println!("\n=== {name}");
        let mut command = cargo("run --release --locked -p benches --bin");
        command.arg(name).arg("--").args(bench.quick.then_some("--quick"));
        let ran = command.status().with_context(|| format!("running {name}"))?;
        ensure!(ran.success(), "{name} failed: {ran}");
        if bench.keep {
            keep(name)?;
        }
    }
    Ok(())
}

/// The binaries of the package `benches`, by their folders.
fn known() -> anyhow::Result<Vec<String>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/src/bin");
    let entries = fs::read_dir(folder).with_context(|| format!("reading {folder}"))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn keep(name: &str) -> anyhow::Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let from = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(target).join("bench");
    fs::create_dir_all(KEPT).context("making docs/bench")?;
    for kind in LEFT {
        let file = format!("{name}.{kind}");
        fs::copy(from.join(&file), Path::new(KEPT).join(&file)).with_context(|| format!("keeping {file}"))?;
    }
    Ok(())
}
