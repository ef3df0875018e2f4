//! The one error of this crate.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use sfu_api::SfuId;

/// Why the cluster could not start, or could not do what was asked.
#[derive(Debug)]
pub struct Error(Box<Kind>);

#[derive(Debug)]
enum Kind {
    Config(String),
    Bind { address: SocketAddr, source: io::Error },
    File { path: PathBuf, source: io::Error },
    Certificate(String),
    UnknownNode(SfuId),
    Request(String),
}

// === impl Error ===

impl Error {
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self(Box::new(Kind::Config(message.into())))
    }

    pub(crate) fn bind(address: SocketAddr, source: io::Error) -> Self {
        Self(Box::new(Kind::Bind { address, source }))
    }

    pub(crate) fn file(path: &Path, source: io::Error) -> Self {
        Self(Box::new(Kind::File { path: path.to_owned(), source }))
    }

    pub(crate) fn certificate(source: impl fmt::Display) -> Self {
        Self(Box::new(Kind::Certificate(source.to_string())))
    }

    pub(crate) fn unknown_node(id: SfuId) -> Self {
        Self(Box::new(Kind::UnknownNode(id)))
    }

    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self(Box::new(Kind::Request(message.into())))
    }

    /// The configuration cannot work; the message says what to change.
    #[must_use]
    pub fn is_config(&self) -> bool {
        matches!(*self.0, Kind::Config(_))
    }

    /// An address to listen on is taken.
    #[must_use]
    pub fn is_address_in_use(&self) -> bool {
        matches!(&*self.0, Kind::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }

    /// This machine does not have the address to listen on.
    pub(crate) fn is_address_missing(&self) -> bool {
        matches!(&*self.0, Kind::Bind { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable)
    }

    /// No node has the id that was named.
    #[must_use]
    pub fn is_unknown_node(&self) -> bool {
        matches!(*self.0, Kind::UnknownNode(_))
    }

    /// The fault, target, budget or key set that was asked for makes no sense.
    #[must_use]
    pub fn is_bad_request(&self) -> bool {
        matches!(*self.0, Kind::Request(_))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::Config(message) | Kind::Request(message) => f.write_str(message),
            Kind::Bind { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "{address} is in use: stop what listens there, or choose another --port or --base")
            }
            Kind::Bind { address, .. } => write!(f, "cannot listen on {address}"),
            Kind::File { path, .. } => write!(f, "cannot use {}", path.display()),
            Kind::Certificate(message) => write!(f, "cannot make a certificate: {message}"),
            Kind::UnknownNode(id) => write!(f, "no node has the id {id}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            Kind::Bind { source, .. } | Kind::File { source, .. } => Some(source),
            _ => None,
        }
    }
}
