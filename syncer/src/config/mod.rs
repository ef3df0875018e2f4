//! Configuration of a syncer: typed, layered, and refused early.
//!
//! Layers, later ones win: defaults, the TOML file, the environment (`TRUNKLINE_AUTH__PEER_SECRET`
//! is `auth.peer_secret`), then what the command line gives. An unknown key is an error that names
//! where it stands and the nearest known key, because a silently ignored limit is how the incidents
//! began. Files that the configuration names are read once at load, so that a wrong certificate is
//! found before the port is open and not at the first hand-shake.
//!
//! One table ([`keys::KEYS`]) lists every key with its doc and default; the sample file, the nearest
//! key in an error and the reading of environment variables all come from it, and a test holds it
//! against the types.

mod callers;
mod error;
mod keys;
mod load;
mod regions;
mod secret;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sfu_api::SyncerId;

pub(crate) use self::callers::Callers;
pub use self::callers::{CertificateConfig, Guilds, Role, TokenConfig};
pub use self::error::{ConfigError, Source};
pub(crate) use self::load::{Known, in_file, read_text};
pub use self::regions::{RegionGroups, RegionGroupsError};
pub use self::secret::Secret;
pub(crate) use self::secret::url_shown;
pub(crate) use self::tls::ClientTls;

/// The port of the API when none is configured.
pub const LISTEN_PORT_DEFAULT: u16 = 8441;
/// The port of the second listener when the API is not on loopback and none is configured.
pub const ADMIN_LISTEN_PORT_DEFAULT: u16 = 8442;
/// How long a drain may take. Kubernetes grants 30 s unless told otherwise; 5 s are left for exit.
pub const DRAIN_GRACE_DEFAULT: Duration = Duration::from_secs(25);
/// The peer secret in `open` mode when none is configured: there every caller is trusted anyway,
/// and syncers of one machine can forward to each other without further settings.
pub const PEER_SECRET_OPEN: &str = "open";

/// Configuration of one syncer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of this syncer, unique in the fleet.
    pub id: SyncerId,
    /// Failure domain: the second candidate of a slot lies in another zone when there is one.
    pub zone: String,
    /// Address of the API.
    pub listen: SocketAddr,
    /// URL under which peers reach the API; derived from `listen` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// Address of a second listener, for operators, probes and metrics (plain HTTP on loopback). When
    /// absent, there is one at [`ADMIN_LISTEN_PORT_DEFAULT`] if the API is not on loopback itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_listen: Option<SocketAddr>,
    /// Operators may use the API's own address even when it is no loopback address.
    pub operate_remotely: bool,
    /// Certificate of the API; plain HTTP on loopback when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Who may call.
    pub auth: AuthConfig,
    /// TOML file with the static members of the fleet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members_file: Option<PathBuf>,
    /// TOML file with the SFUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sfus_file: Option<PathBuf>,
    /// PEM file of the authority that signed the SFUs' certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sfu_ca_file: Option<PathBuf>,
    /// PEM file with the certificate chain, the leaf first, that SFUs which ask for one are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sfu_cert_file: Option<PathBuf>,
    /// PEM file with its private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sfu_key_file: Option<PathBuf>,
    /// PEM file of the authority that signed the peers' certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_ca_file: Option<PathBuf>,
    /// PEM file with the Ed25519 key that signs session tokens; a fresh key when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_key_file: Option<PathBuf>,
    /// Directory for what must survive a restart; nothing survives when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// How long a drain may take.
    #[serde(with = "humantime_serde")]
    pub drain_grace: Duration,
    /// Regions that stand in for each other, by the name of their group.
    pub region_groups: RegionGroups,
    /// Initial values of levers, by name.
    pub limits: BTreeMap<String, toml::Value>,
    /// The file this was read from, so that later errors can name it.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// Certificate and key of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificate chain, the leaf first.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// Who may call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// How callers are told apart.
    pub mode: AuthMode,
    /// The tokens of mode `tokens`.
    pub tokens: Vec<TokenConfig>,
    /// The certificates of mode `tokens`.
    pub certificates: Vec<CertificateConfig>,
    /// TOML file with more tokens and certificates, read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callers_file: Option<PathBuf>,
    /// PEM file of the authorities that signed the callers' certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
    /// Shared secret of the syncers, by which they believe each other's forwarded requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_secret: Option<Secret>,
}

/// How callers are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMode {
    /// Any bearer token is the gateway's id and may do everything. Only on loopback.
    #[default]
    Open,
    /// Only the tokens and certificates listed.
    Tokens,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            id: SyncerId::new("syncer-1").expect("a valid id"),
            zone: "z1".to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, LISTEN_PORT_DEFAULT)),
            advertise: None,
            admin_listen: None,
            operate_remotely: false,
            tls: None,
            auth: AuthConfig::default(),
            members_file: None,
            sfus_file: None,
            sfu_ca_file: None,
            sfu_cert_file: None,
            sfu_key_file: None,
            peer_ca_file: None,
            token_key_file: None,
            state_dir: None,
            drain_grace: DRAIN_GRACE_DEFAULT,
            region_groups: RegionGroups::default(),
            limits: BTreeMap::new(),
            file: None,
        }
    }
}

impl Config {
    /// The commented sample file: every key, its meaning and its default.
    #[must_use]
    pub fn sample() -> String {
        keys::sample()
    }

    /// The effective configuration as TOML, secrets replaced by `"<redacted>"`.
    #[must_use]
    pub fn print(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_else(|e| format!("# cannot be printed: {e}\n"))
    }

    /// The error of a lever's configured value: names the line when the file has it.
    pub(crate) fn limit_error(&self, name: &str, message: impl Into<String>) -> ConfigError {
        let last = name.rsplit('.').next().unwrap_or(name);
        let line = self.file.as_deref().and_then(|path| {
            let text = read_text(path).ok()?;
            let mut inside = false;
            let at = text.lines().position(|l| {
                let l = l.trim();
                if l.starts_with('[') {
                    inside = l.trim_start_matches('[').trim_start().starts_with("limits");
                }
                inside && l.split('=').next().is_some_and(|key| key.trim().trim_matches('"').ends_with(last))
            });
            Some(at? + 1)
        });
        let error = match (&self.file, line) {
            (Some(path), Some(line)) => ConfigError::file(path, Some(line), message),
            _ => ConfigError::new(Source::Whole, message),
        };
        error.with_key(format!("limits.{name}"))
    }

    /// Where the second listener is, when there is one.
    #[must_use]
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        let default = || SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_LISTEN_PORT_DEFAULT));
        self.admin_listen.or_else(|| (!self.listen.ip().is_loopback()).then(default))
    }

    /// Whether operators may use the API's own address.
    #[must_use]
    pub fn operators_on_api(&self) -> bool {
        self.operate_remotely || self.listen.ip().is_loopback()
    }

    /// The secret that syncers show each other, when they may believe each other at all.
    #[must_use]
    pub fn peer_secret(&self) -> Option<&str> {
        match (&self.auth.peer_secret, self.auth.mode) {
            (Some(secret), _) => Some(secret.expose()),
            (None, AuthMode::Open) => Some(PEER_SECRET_OPEN),
            (None, AuthMode::Tokens) => None,
        }
    }
}
