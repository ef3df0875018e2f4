//! Crates that must not be in the tree, and licences that may.
//!
//! Two crypto providers in one graph panic at run time, and a second TLS stack is a second set of
//! certificates to reload; both creep in with a dependency's default features. What counts is what is
//! built, so this reads `cargo tree`: the lock file (and `cargo metadata` with it) also lists optional
//! crates that nothing turns on.

use std::collections::BTreeMap;

use anyhow::Context;

use crate::process::Outcome;
use crate::stages::cargo;

/// Banned crates and why.
const BANNED: &[(&str, &str)] = &[
    ("ring", "aws-lc-rs is the only crypto provider"),
    ("openssl-sys", "rustls is the only TLS stack"),
    ("native-tls", "rustls is the only TLS stack"),
];

/// Licences that MIT OR Apache-2.0 software may be built from.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// The stage.
pub(crate) fn run() -> anyhow::Result<Outcome> {
    let mut tree = cargo("tree --workspace --edges normal,build,dev --target all --prefix none --locked --format");
    let output = tree.arg("{p}\t{l}").output().context("running cargo tree")?;
    anyhow::ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr).trim());
    let tree = String::from_utf8_lossy(&output.stdout);
    let crates = crates(&tree);
    println!("{} crates in the tree", crates.len());
    let faults = faults(&crates);
    Ok(if faults.is_empty() { Outcome::pass() } else { Outcome::fail(faults) })
}

/// Name to licence, from lines such as `serde v1.0.0 (proc-macro)<tab>MIT OR Apache-2.0 (*)`.
fn crates(tree: &str) -> BTreeMap<&str, &str> {
    tree.lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(package, licence)| (package.split(' ').next().unwrap_or(package), licence.trim_end_matches(" (*)")))
        .collect()
}

fn faults(crates: &BTreeMap<&str, &str>) -> Vec<String> {
    let banned = BANNED.iter().filter(|(name, _)| crates.contains_key(name));
    let banned = banned.map(|(name, why)| format!("`{name}` is in the tree: {why} (cargo tree -i {name})"));
    let unknown = crates.iter().filter(|(_, licence)| !is_allowed(licence));
    banned.chain(unknown.map(|(name, licence)| format!("`{name}` has the licence `{licence}`"))).collect()
}

/// Whether an SPDX expression can be met with allowed licences only. `OR` binds weaker than `AND`;
/// an old-style `/` is an `OR`.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any(&mut rest) && rest.is_empty()
}

fn any(rest: &mut &[&str]) -> bool {
    let mut met = all(rest);
    while take(rest, "OR") {
        met |= all(rest);
    }
    met
}

fn all(rest: &mut &[&str]) -> bool {
    let mut met = one(rest);
    while take(rest, "AND") {
        met &= one(rest);
    }
    met
}

fn one(rest: &mut &[&str]) -> bool {
    if take(rest, "(") {
        return any(rest) & take(rest, ")");
    }
    let Some((name, after)) = rest.split_first() else { return false };
    *rest = after;
    if take(rest, "WITH") {
        *rest = rest.get(1..).unwrap_or_default(); // an exception only permits more
    }
    LICENCES.contains(name)
}

fn take(rest: &mut &[&str], word: &str) -> bool {
    let found = rest.first() == Some(&word);
    if found {
        *rest = &rest[1..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_banned_crate_and_a_foreign_licence_are_named() {
        let tree =
            "trunkline v0.1.0 (/x)\tMIT OR Apache-2.0\nring v0.17.14\tApache-2.0 AND ISC (*)\nx v1.0.0\tGPL-3.0\n";
        let faults = faults(&crates(tree));
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("`ring`") && faults[1].contains("GPL-3.0"));
    }

    #[test]
    fn expressions_are_read_as_spdx_means_them() {
        for fine in [
            "MIT",
            "Unlicense/MIT",
            "MIT OR Apache-2.0 OR LGPL-2.1-or-later",
            "Apache-2.0 WITH LLVM-exception",
            "ISC AND (Apache-2.0 OR OpenSSL) AND (MIT)",
            "GPL-3.0 AND ISC OR MIT",
        ] {
            assert!(is_allowed(fine), "{fine}");
        }
        for bad in ["", "GPL-3.0", "MIT AND OpenSSL", "MIT AND (GPL-2.0 OR GPL-3.0)", "(MIT", "MIT MIT", "OR MIT"] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }
}
