//! What the catalogue says of an SFU. This is the shape of the static file too.

use std::path::PathBuf;

use serde::Deserialize;
use sfu_api::{RegionId, SfuId, ZoneId};

use super::Weight;
use crate::config::Secret;

/// Longest secret file that is read, in bytes: secrets are a line.
const SECRET_BYTES_MAX: usize = 4096;

/// Which protocol an SFU speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriverKind {
    /// The contract of the crate `sfu-api`.
    #[default]
    Native,
    /// The admin API of Janus.
    Janus,
}

/// One SFU of the catalogue.
///
/// ```toml
/// [[sfus]]
/// id = "janus-1"
/// url = "https://127.0.0.1:18089/janus"   # native: the origin; janus: what clients connect to
/// region = "a"
/// zone = "a-1"    # what fails together
/// driver = "janus"
/// capacity = 500
/// weight = 0.5    # half as many calls as one of weight 1
/// [sfus.janus]
/// admin_url = "https://127.0.0.1:17889/admin"
/// admin_secret_file = "janus-1.secret"
/// admin_key_file = "janus-1.key"
/// plugin = "audiobridge"
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SfuSpec {
    /// Unique id.
    pub id: SfuId,
    /// Native: the control origin. Janus: the URL of its client API, told to clients.
    pub url: String,
    /// Region the SFU stands in.
    pub region: RegionId,
    /// Zone of that region: SFUs of one zone fail together.
    #[serde(default)]
    pub zone: Option<ZoneId>,
    /// Protocol it speaks.
    #[serde(default)]
    pub driver: DriverKind,
    /// Calls it can carry.
    pub capacity: u32,
    /// How much of the work it shall have, beside others of the same capacity.
    #[serde(default)]
    pub weight: Weight,
    /// Needed with `driver = "janus"`.
    #[serde(default)]
    pub janus: Option<JanusSpec>,
}

/// What only Janus needs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JanusSpec {
    /// URL of the admin API, for example `https://127.0.0.1:17889/admin`.
    pub admin_url: String,
    /// `admin_secret` of `janus.jcfg`. Either this or `admin_secret_file`.
    #[serde(default)]
    pub admin_secret: Option<Secret>,
    /// File that holds it (surrounding white space is cut off).
    #[serde(default)]
    pub admin_secret_file: Option<PathBuf>,
    /// `admin_key` of the plugin's configuration. Either this or `admin_key_file`.
    #[serde(default)]
    pub admin_key: Option<Secret>,
    /// File that holds it (surrounding white space is cut off).
    #[serde(default)]
    pub admin_key_file: Option<PathBuf>,
    /// Plugin that carries the calls.
    #[serde(default)]
    pub plugin: JanusPlugin,
}

/// A Janus plugin that can carry calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JanusPlugin {
    /// Forwards every publisher's streams to the others.
    #[default]
    Videoroom,
    /// Mixes audio; also admits plain RTP participants.
    Audiobridge,
}

/// Why a catalogue entry cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("SFU {id}: {reason}")]
pub struct SpecError {
    id: SfuId,
    reason: String,
}

// === impl SfuSpec ===

impl SfuSpec {
    pub(super) fn error(&self, reason: impl Into<String>) -> SpecError {
        SpecError { id: self.id.clone(), reason: reason.into() }
    }
}

// === impl JanusSpec ===

impl JanusSpec {
    /// The admin secret, from the entry or its file.
    pub(super) fn admin_secret(&self) -> Result<Secret, String> {
        resolve("admin_secret", self.admin_secret.as_ref(), self.admin_secret_file.as_ref())
    }

    /// The admin key, from the entry or its file.
    pub(super) fn admin_key(&self) -> Result<Secret, String> {
        resolve("admin_key", self.admin_key.as_ref(), self.admin_key_file.as_ref())
    }
}

fn resolve(name: &str, inline: Option<&Secret>, file: Option<&PathBuf>) -> Result<Secret, String> {
    let secret = match (inline, file) {
        (Some(secret), None) => secret.clone(),
        (None, Some(path)) => read_secret(path).map_err(|why| format!("{name}_file {}: {why}", path.display()))?,
        (None, None) => return Err(format!("janus needs {name} or {name}_file")),
        (Some(_), Some(_)) => return Err(format!("{name} and {name}_file are both given; keep one")),
    };
    if secret.expose().is_empty() { Err(format!("{name} is empty")) } else { Ok(secret) }
}

fn read_secret(path: &PathBuf) -> Result<Secret, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut text = String::new();
    let limit = u64::try_from(SECRET_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if text.len() > SECRET_BYTES_MAX {
        return Err(format!("longer than {SECRET_BYTES_MAX} bytes"));
    }
    Ok(Secret::new(text.trim()))
}

// === impl JanusPlugin ===

impl JanusPlugin {
    /// The plugin's name within its own messages: `videoroom` or `audiobridge`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Videoroom => "videoroom",
            Self::Audiobridge => "audiobridge",
        }
    }

    /// The plugin's package name, for example `janus.plugin.videoroom`.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Videoroom => "janus.plugin.videoroom",
            Self::Audiobridge => "janus.plugin.audiobridge",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JANUS: &str = r#"
        id = "j-1"
        url = "https://127.0.0.1:18089/janus"
        region = "a"
        driver = "janus"
        capacity = 500
        [janus]
        admin_url = "https://127.0.0.1:17889/admin"
        admin_secret = "s3cret-admin"
        admin_key = "s3cret-key"
        plugin = "audiobridge"
    "#;

    #[test]
    fn secrets_do_not_show() {
        let spec: SfuSpec = toml::from_str(JANUS).expect("parses");
        let janus = spec.janus.as_ref().expect("given");
        assert_eq!(janus.admin_secret().expect("given").expose(), "s3cret-admin");
        let shown = format!("{spec:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn a_secret_without_quotes_is_not_shown() {
        let wrong = JANUS.replace("\"s3cret-key\"", "20071983");
        let error = toml::from_str::<SfuSpec>(&wrong).expect_err("a number");
        assert_eq!(error.message(), "a secret is a text in quotes");
        assert!(error.span().is_some(), "the error knows its line");
    }

    #[test]
    fn unknown_keys_are_errors() {
        let wrong = JANUS.replace("plugin", "plugni");
        let error = toml::from_str::<SfuSpec>(&wrong).expect_err("unknown key");
        assert!(error.to_string().contains("plugni"), "{error}");
    }

    #[test]
    fn a_weight_is_one_unless_the_entry_says_otherwise() {
        let with = |weight: &str| toml::from_str::<SfuSpec>(&JANUS.replace("capacity = 500", weight));
        let weight = |line: &str| with(&format!("capacity = 500\n{line}")).map(|spec| spec.weight.get());
        assert_eq!(weight("").expect("an old entry"), 1.0);
        assert_eq!(weight("weight = 2").expect("a whole number"), 2.0);
        assert_eq!(weight("weight = 0.5").expect("a part"), 0.5);
        for wrong in ["0", "-1", "nan", "inf", "1000"] {
            let error = weight(&format!("weight = {wrong}")).expect_err("no weight").to_string();
            assert!(error.contains("from 0.01 to 100"), "{error}");
        }
    }

    #[test]
    fn secrets_come_from_exactly_one_place() {
        let mut janus = toml::from_str::<SfuSpec>(JANUS).expect("parses").janus.expect("given");
        janus.admin_secret_file = Some("x".into());
        assert!(janus.admin_secret().expect_err("two places").contains("both"));
        janus.admin_secret = None;
        assert!(janus.admin_secret().expect_err("no such file").starts_with("admin_secret_file x: "));
        janus.admin_secret_file = None;
        assert_eq!(janus.admin_secret().expect_err("none"), "janus needs admin_secret or admin_secret_file");
    }

    #[test]
    fn secret_files_are_trimmed_and_bounded() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("secret");
        std::fs::write(&path, "abc\n").expect("written");
        assert_eq!(read_secret(&path).expect("read").expose(), "abc");
        std::fs::write(&path, "x".repeat(5000)).expect("written");
        assert!(read_secret(&path).expect_err("too long").contains("4096"));
    }
}
