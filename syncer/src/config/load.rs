//! Layers: defaults, file, environment, command line; then what must hold of the whole.

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::keys::{self, Kind};
use super::{AuthMode, Callers, Config, ConfigError, Source};

/// Variables with this prefix are settings.
const PREFIX: &str = "TRUNKLINE_";
/// Variables of the command itself, which are no settings of a syncer.
const NOT_SETTINGS: &[&str] = &["LOG", "URL", "TOKEN", "CONFIG", "CA", "OUTPUT"];
/// Largest configuration file: a thousand times a real one.
pub(crate) const FILE_BYTES_MAX: u64 = 4 << 20;

// === impl Config ===

impl Config {
    /// Reads the file (when there is one), then the environment, then `overrides` (dotted key, text),
    /// checks the whole and reads every file it names.
    ///
    /// Relative paths in the configuration are taken as they are: relative to the working directory.
    ///
    /// # Errors
    ///
    /// Names the file, line and key, the nearest known key, and what to do.
    pub fn load(
        path: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let mut table = match path {
            Some(path) => from_file(path)?,
            None => Table::new(),
        };
        for (name, text) in env {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            if NOT_SETTINGS.contains(&rest) {
                continue;
            }
            let key = rest.to_ascii_lowercase().replace("__", ".");
            overlay(&mut table, &key, &text, &Source::Environment(name.clone()))?;
        }
        for (key, text) in overrides {
            overlay(&mut table, key, text, &Source::Flag)?;
        }
        let mut config: Self =
            table.try_into().map_err(|e: toml::de::Error| ConfigError::new(Source::Whole, e.message()))?;
        config.file = path.map(Path::to_path_buf);
        config.check()?;
        Ok(config)
    }

    /// Checks what types cannot: combinations, and the files named.
    ///
    /// # Errors
    ///
    /// Names the key, the file and what to do.
    pub fn check(&self) -> Result<(), ConfigError> {
        let whole = |key: &str, message: &str| Err(ConfigError::new(Source::Whole, message).with_key(key));
        if self.tls.is_none() && !self.listen.ip().is_loopback() {
            return whole("tls", "needed unless `listen` is a loopback address: tokens would travel in clear text");
        }
        if self.auth.mode == AuthMode::Open && !self.listen.ip().is_loopback() {
            return whole(
                "auth.mode",
                "`open` trusts every caller, so it is allowed on a loopback address only; use `tokens`",
            );
        }
        self.check_callers()?;
        if self.auth.mode == AuthMode::Tokens && self.members_file.is_some() && self.auth.peer_secret.is_none() {
            return whole(
                "auth.peer_secret",
                "needed with members: without it no syncer believes another's forwarded requests",
            );
        }
        if self.admin_listen.is_some_and(|a| !a.ip().is_loopback()) {
            return whole("admin_listen", "plain HTTP, so it must be a loopback address");
        }
        if self.zone.is_empty() {
            return whole("zone", "must not be empty");
        }
        if let Some(url) = &self.advertise
            && url.parse::<http::Uri>().ok().and_then(|u| u.scheme_str().map(|s| s == "https" || s == "http"))
                != Some(true)
        {
            return whole("advertise", "must be a URL such as `https://syncer-1.internal:8441`");
        }
        self.check_files()
    }

    fn check_callers(&self) -> Result<(), ConfigError> {
        let whole = |key: &str, message: &str| Err(ConfigError::new(Source::Whole, message).with_key(key));
        let auth = &self.auth;
        let listed = Callers { tokens: auth.tokens.clone(), certificates: auth.certificates.clone() };
        if auth.mode == AuthMode::Tokens && listed == Callers::default() && auth.callers_file.is_none() {
            return whole("auth.tokens", "mode `tokens` without tokens or certificates would refuse everyone");
        }
        if auth.mode == AuthMode::Open && auth.client_ca_file.is_some() {
            return whole("auth.client_ca_file", "mode `open` believes everyone; use `tokens`");
        }
        if auth.client_ca_file.is_some() && self.tls.is_none() {
            return whole("auth.client_ca_file", "certificates need [tls]");
        }
        if !auth.certificates.is_empty() && auth.client_ca_file.is_none() {
            return whole("auth.client_ca_file", "needed: without it no certificate is asked for");
        }
        listed.check().or_else(|(key, message)| whole(&format!("auth.{key}"), message))
    }
}

fn from_file(path: &Path) -> Result<Table, ConfigError> {
    let text = read_text(path)?;
    // Typed first, alone: its errors know their line. The table is what later layers go on.
    if let Err(e) = toml::from_str::<Config>(&text) {
        return Err(in_file(path, &text, &e, Known::Settings));
    }
    toml::from_str::<Table>(&text).map_err(|e| in_file(path, &text, &e, Known::Settings))
}

/// Reads a file of bounded size as text.
pub(crate) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let at = |e: std::io::Error| ConfigError::file(path, None, format!("cannot be read: {e}"));
    let length = std::fs::metadata(path).map_err(at)?.len();
    if length > FILE_BYTES_MAX {
        return Err(ConfigError::file(path, None, format!("is {length} bytes; at most {FILE_BYTES_MAX} are read")));
    }
    std::fs::read_to_string(path).map_err(at)
}

/// Which keys a file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Those of the configuration.
    Settings,
    /// Those that the error lists: members, SFUs.
    Listed,
}

/// Turns a TOML error into ours: line, key, nearest known key.
pub(crate) fn in_file(path: &Path, text: &str, e: &toml::de::Error, known: Known) -> ConfigError {
    let span = e.span();
    let line = span.as_ref().map(|s| 1 + text.bytes().take(s.start).filter(|b| *b == b'\n').count());
    match unknown_field(e.message()) {
        Some(field) => {
            let key = match line.and_then(|line| table_of(text, line)) {
                Some(table) => format!("{table}.{field}"),
                None => field.to_owned(),
            };
            let nearest = match known {
                Known::Settings => keys::nearest(&key),
                Known::Listed => keys::nearest_of(&expected(e.message()), field),
            };
            ConfigError::file(path, line, "unknown key").with_key(key).with_nearest(nearest)
        }
        None => ConfigError::file(path, line, e.message().replace('\n', ", ")),
    }
}

fn unknown_field(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

/// The keys in serde's "expected one of `a`, `b`", "expected `a` or `b`" or "expected `a`".
fn expected(message: &str) -> Vec<&str> {
    let list = message.split_once("expected ").map_or("", |(_, list)| list.lines().next().unwrap_or(""));
    list.split('`').skip(1).step_by(2).collect()
}

/// The table header above a line, when there is one.
fn table_of(text: &str, line: usize) -> Option<String> {
    text.lines()
        .take(line)
        .filter_map(|l| l.trim().strip_prefix('[')?.split(']').next().map(|t| t.trim_matches('[').trim().to_owned()))
        .last()
}

/// Puts one setting given as text over the table.
fn overlay(table: &mut Table, path: &str, text: &str, source: &Source) -> Result<(), ConfigError> {
    let error = |message: &str| ConfigError::new(source.clone(), message).with_key(path);
    let Some(key) = keys::find(path) else {
        return Err(error("unknown key").with_nearest(keys::nearest(path)));
    };
    let value = match key.kind {
        Kind::Text => Value::String(text.to_owned()),
        Kind::Toml | Kind::Free => as_toml(text),
    };
    let mut alone = Table::new();
    insert(&mut alone, path, value.clone());
    // Alone a table may miss keys that another layer gives (`tls.key`): that is judged on the whole.
    if let Err(e) = Config::deserialize(Value::Table(alone))
        && !e.message().starts_with("missing field")
    {
        // What is wrong may be the secret itself.
        let secret = path.starts_with("auth.tokens") || path.starts_with("auth.peer");
        return Err(error(if secret { "is not of the form that the sample shows" } else { e.message() }));
    }
    insert(table, path, value);
    Ok(())
}

/// Text as the TOML value it looks like, else as a string.
fn as_toml(text: &str) -> Value {
    toml::from_str::<Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn insert(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        // Names under `limits` may hold dots of their own.
        Some((head, rest)) => {
            let inner = table.entry(head.to_owned()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                if head == "limits" {
                    inner.insert(rest.to_owned(), value);
                } else {
                    insert(inner, rest, value);
                }
            }
        }
    }
}
