//! Programs that real tests drive: they come from the distribution, and a missing one is a failure.
//!
//! A test that is skipped because its server is absent looks like a test that passed. So there is no
//! skipping: either the program is there, or it is installed, or the stage fails and says what to do.
//! Tests start these programs themselves, on ports of their own; a service that a package happens to
//! start on installation is never used.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::process::{Outcome, check};

/// A program and the Debian package that brings it.
struct Dependency {
    program: &'static str,
    package: &'static str,
    used_for: &'static str,
}

const DEPENDENCIES: &[Dependency] = &[
    Dependency { program: "curl", package: "curl", used_for: "the API as scripts see it" },
    // No test uses it yet: the registry's conformance suite runs against the embedded one so far.
    Dependency { program: "etcd", package: "etcd-server", used_for: "a registry on etcd, not tested yet" },
    Dependency { program: "janus", package: "janus", used_for: "an SFU with real media" },
    Dependency { program: "promtool", package: "prometheus", used_for: "checking the text of /metrics" },
    Dependency { program: "chromium", package: "chromium", used_for: "the watch as a browser sees it" },
];

/// Makes sure that every program is there.
pub(crate) fn ensure(install: bool) -> anyhow::Result<Outcome> {
    let missing: Vec<_> = DEPENDENCIES.iter().filter(|dependency| !report(dependency)).collect();
    if missing.is_empty() {
        return Ok(Outcome::pass());
    }
    if install && let Err(error) = apt_install(missing.iter().map(|dependency| dependency.package)) {
        eprintln!("{error:#}");
    }
    let notes: Vec<_> = missing.into_iter().filter(|dependency| !report(dependency)).map(Dependency::help).collect();
    Ok(if notes.is_empty() { Outcome::pass() } else { Outcome::fail(notes) })
}

// === impl Dependency ===

impl Dependency {
    fn help(&self) -> String {
        let Self { program, package, used_for } = self;
        format!(
            "`{program}` ({used_for}) is not on the PATH; install it: apt-get install --no-install-recommends {package}"
        )
    }
}

/// Shows and returns whether the program is there.
fn report(dependency: &Dependency) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(dependency.program)).find(|path| is_program(path));
    match &found {
        Some(path) => println!("{:<10} {}", dependency.program, path.display()),
        None => println!("{:<10} missing", dependency.program),
    }
    found.is_some()
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn apt_install<'a>(packages: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
    println!("apt-get update");
    let updated = check(apt().args(["-q", "update"])).context("apt-get is needed to install what is missing")?;
    anyhow::ensure!(updated.failed == 0, "apt-get update failed; is there a network, and are we root?");
    for package in packages {
        println!("apt-get install {package}");
        let installed = check(apt().args(["-q", "-y", "--no-install-recommends", "install", package]))?;
        if installed.failed > 0 {
            eprintln!("apt-get install {package} failed");
        }
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
