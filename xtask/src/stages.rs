//! What `cargo xtask test` runs, in the order it runs.
//!
//! Cheap checks come first, so that a slip shows early; whole binaries and foreign servers last.

use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::process::{Outcome, check, check_within, tests};
use crate::{deny, dependencies};

/// Longest an example may run: what it waits for is a second or two.
const EXAMPLE_TIME_MAX: Duration = Duration::from_secs(120);

/// One stage.
pub(crate) struct Stage {
    /// What `--only` takes.
    pub(crate) name: String,
    /// What it shows, in a few words.
    pub(crate) what: String,
    /// Does it.
    pub(crate) work: Box<dyn FnOnce() -> anyhow::Result<Outcome>>,
}

/// All stages. The suites of the root package are found, not listed, so that none can be forgotten.
pub(crate) fn all(install: bool) -> anyhow::Result<Vec<Stage>> {
    let mut stages = vec![
        stage("dependencies", "the programs that real tests need", move || dependencies::ensure(install)),
        stage("format", "rustfmt has nothing to change", || check(&mut cargo("fmt --all -- --check"))),
        stage("deny", "no banned crate, no unknown licence", deny::run),
        stage("lint", "clippy has nothing to say", || {
            check(&mut cargo("clippy --workspace --all-targets --locked -- -D warnings"))
        }),
        stage("docs", "rustdoc builds without a warning", || {
            // Module docs are written for whoever works on the code, so they may point at private items.
            let flags = "-D warnings -A rustdoc::private_intra_doc_links";
            check(cargo("doc --workspace --no-deps --locked").env("RUSTDOCFLAGS", flags))
        }),
        stage("crates", "unit, property and simulation tests of every crate", || {
            tests(&mut cargo("test --workspace --exclude trunkline --lib --bins --tests --locked --no-fail-fast"))
        }),
        stage("soak", "a minute of faults leaves nothing behind in the pool", || {
            tests(cargo("test -p pool --test soak --locked").env("POOL_SOAK_SECONDS", "60"))
        }),
        stage("command", "unit tests of the command", || tests(&mut cargo("test -p trunkline --bins --locked"))),
        stage("examples", "the examples in the documentation run, and the programs", || {
            let documented = tests(&mut cargo("test --workspace --doc --locked --no-fail-fast"))?;
            Ok(documented.and(programs()?))
        }),
    ];
    for suite in suites()? {
        let what = format!("integration tests in tests/{suite}");
        let work = format!("test -p trunkline --locked --no-fail-fast --test {suite} -- --show-output");
        stages.push(stage(&suite, &what, move || tests(&mut cargo(&work))));
    }
    Ok(stages)
}

fn stage(name: &str, what: &str, work: impl FnOnce() -> anyhow::Result<Outcome> + 'static) -> Stage {
    Stage { name: name.to_owned(), what: what.to_owned(), work: Box::new(work) }
}

/// Runs every example of the pool: each is an item, and ends by itself. The mock's runs until Ctrl-C, as the command
/// does that the suites run.
fn programs() -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    for (package, name) in targets("example")?.into_iter().filter(|(package, _)| package == "pool") {
        let built = check(&mut cargo(&format!("build -p {package} --example {name} --locked")))?;
        let ran = if built.failed > 0 {
            built
        } else {
            println!("--- example {name}");
            check_within(&mut cargo(&format!("run -q -p {package} --example {name} --locked")), EXAMPLE_TIME_MAX)?
        };
        outcome = outcome.and(ran.of(&format!("example {name}")));
    }
    Ok(outcome)
}

/// The integration suites of the root package, by name.
fn suites() -> anyhow::Result<Vec<String>> {
    let suites = targets("test")?.into_iter().filter(|(package, _)| package == "trunkline");
    Ok(suites.map(|(_, name)| name).collect())
}

/// Package and name of every target of this kind.
fn targets(kind: &str) -> anyhow::Result<Vec<(String, String)>> {
    let output = cargo("metadata --no-deps --format-version 1 --locked").output().context("running cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        let targets = list(&package["targets"]).into_iter().filter(|target| target["kind"][0] == kind);
        found.extend(targets.map(|target| (text(&package["name"]), text(&target["name"]))));
    }
    anyhow::ensure!(!found.is_empty(), "there is no target of the kind `{kind}`");
    Ok(found)
}

/// `cargo` in the workspace root. The arguments hold no spaces of their own.
pub(crate) fn cargo(arguments: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments.split(' ')).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}
