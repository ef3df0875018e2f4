//! Why a syncer did not start.

use std::io;
use std::net::SocketAddr;

use crate::config::ConfigError;
use crate::peer::PeerError;
use crate::registry::{RegistryError, StoreError};
use crate::token::KeyError;

/// A syncer did not start.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StartError(Kind);

#[derive(Debug, thiserror::Error)]
enum Kind {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{key}: {at} is in use; stop the other process or choose another port (0 takes any free one)")]
    PortInUse { key: &'static str, at: SocketAddr },
    #[error("{key}: {what}")]
    Io { key: &'static str, what: String },
    #[error("state_dir: {0}")]
    Store(#[from] StoreError),
    #[error("token_key_file: {0}")]
    Key(#[from] KeyError),
    #[error("pool: {0}")]
    Pool(#[from] pool::Error),
    #[error("peers: {0}")]
    Peers(#[from] PeerError),
    #[error("registry: {0}")]
    Registry(#[from] RegistryError),
}

// === impl StartError ===

impl StartError {
    pub(super) fn bind(key: &'static str, at: SocketAddr, e: &io::Error) -> Self {
        if e.kind() == io::ErrorKind::AddrInUse { Self(Kind::PortInUse { key, at }) } else { Self::io(key, e) }
    }

    pub(super) fn io(key: &'static str, e: &io::Error) -> Self {
        Self(Kind::Io { key, what: e.to_string() })
    }

    /// Whether the configuration is at fault: exit code 78.
    #[must_use]
    pub fn is_config(&self) -> bool {
        matches!(self.0, Kind::Config(_) | Kind::Key(_))
    }

    /// Whether another process has the port.
    #[must_use]
    pub fn is_port_in_use(&self) -> bool {
        matches!(self.0, Kind::PortInUse { .. })
    }
}

impl<E: Into<Kind>> From<E> for StartError {
    fn from(e: E) -> Self {
        Self(e.into())
    }
}
