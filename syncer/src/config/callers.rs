//! Who may call, by token or by certificate, and for which guilds.
//!
//! Callers are listed in the configuration, which is read once, or in a file of their own
//! (`auth.callers_file`), which is read again when it changes: a token that leaked is withdrawn
//! without a restart.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sfu_api::{GatewayId, GuildId};

use super::load::{Known, in_file, read_text};
use super::{ConfigError, Secret};

/// Callers of one list: ten times the gateways of a large fleet.
const CALLERS_MAX: usize = 50_000;

/// One token and what it may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// The bearer token.
    pub token: Secret,
    /// Identity of who presents it.
    pub id: GatewayId,
    /// What it may do.
    pub role: Role,
    /// The only guilds it may speak of: names, or beginnings that end with `*`. All when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guilds: Option<Guilds>,
}

/// One certificate and what it may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateConfig {
    /// A subject alternative name (DNS, URI, e-mail) of the certificate; the common name of one that
    /// has none.
    pub name: String,
    /// Identity of who presents it.
    pub id: GatewayId,
    /// What it may do.
    pub role: Role,
    /// The only guilds it may speak of: names, or beginnings that end with `*`. All when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guilds: Option<Guilds>,
}

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Joins, leaves and watches; sees only its own sessions' events.
    Gateway,
    /// Sees everything, cordons SFUs, changes levers.
    Operator,
    /// Another syncer that presents a token instead of the shared secret.
    Peer,
}

/// Guilds by name, or by a beginning that ends with `*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Guilds(Vec<String>);

/// A list of callers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Callers {
    pub(crate) tokens: Vec<TokenConfig>,
    pub(crate) certificates: Vec<CertificateConfig>,
}

// === impl Guilds ===

impl Guilds {
    /// Whether the guild is one of them.
    #[must_use]
    pub fn hold(&self, guild: &GuildId) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => guild.as_str().starts_with(beginning),
            None => guild.as_str() == pattern,
        })
    }
}

// === impl Callers ===

impl Callers {
    /// Reads a file of callers.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        let callers: Self = toml::from_str(&text).map_err(|e| in_file(path, &text, &e, Known::Listed))?;
        callers.check().map_err(|(key, message)| ConfigError::file(path, None, message).with_key(key))?;
        Ok(callers)
    }

    /// What types cannot say: the key at fault, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.tokens.len() + self.certificates.len() > CALLERS_MAX {
            return Err(("tokens", "more than 50,000 callers"));
        }
        if self.tokens.iter().any(|t| t.token.expose().trim().is_empty()) {
            return Err(("tokens", "an empty token would let everyone in"));
        }
        let limited = |role: Role, guilds: &Option<Guilds>| role != Role::Gateway && guilds.is_some();
        if self.tokens.iter().any(|t| limited(t.role, &t.guilds)) {
            return Err(("tokens", "`guilds` limits gateways only: operators and peers see everything"));
        }
        if self.certificates.iter().any(|c| limited(c.role, &c.guilds) || c.role == Role::Peer) {
            return Err(("certificates", "for gateways and operators, and `guilds` for gateways only"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guilds_are_named_or_begun() {
        let guilds = Guilds(vec!["one".to_owned(), "acme-*".to_owned()]);
        let holds = |name: &str| guilds.hold(&GuildId::new(name).expect("an id"));
        assert!(holds("one") && holds("acme-") && holds("acme-7"));
        assert!(!holds("one-more") && !holds("on") && !holds("acme") && !holds("ACME-7"));
        assert!(!Guilds(vec![]).hold(&GuildId::new("x").expect("an id")), "none is none");
    }

    #[test]
    fn lists_that_would_let_in_too_many_are_refused() {
        let check = |text: &str| toml::from_str::<Callers>(text).expect("TOML").check();
        assert_eq!(check("tokens = [{ token = \"t\", id = \"g\", role = \"gateway\", guilds = [\"a\"] }]"), Ok(()));
        assert!(check("tokens = [{ token = \" \", id = \"g\", role = \"gateway\" }]").is_err());
        assert!(check("tokens = [{ token = \"t\", id = \"o\", role = \"operator\", guilds = [\"a\"] }]").is_err());
        assert!(check("certificates = [{ name = \"n\", id = \"o\", role = \"peer\" }]").is_err());
    }
}
