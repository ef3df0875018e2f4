//! Why a drill could not be held at all. (A drill that was held and failed is a report.)

use std::fmt;

use crate::plan::PlanError;

/// Why a drill could not be held.
#[derive(Debug)]
pub struct Error(Kind);

#[derive(Debug)]
enum Kind {
    Plan(PlanError),
    Ca(String),
    Target(String),
    Unreachable { url: String, reason: String },
    Control { url: String, reason: String },
    Levers { url: String, reason: String },
}

/// Every level of an error, in one line: connection errors hide the reason in their sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

// === impl Error ===

impl Error {
    pub(crate) fn ca(reason: impl Into<String>) -> Self {
        Self(Kind::Ca(reason.into()))
    }

    pub(crate) fn target(reason: impl Into<String>) -> Self {
        Self(Kind::Target(reason.into()))
    }

    pub(crate) fn unreachable(url: &str, reason: impl Into<String>) -> Self {
        Self(Kind::Unreachable { url: url.to_owned(), reason: reason.into() })
    }

    pub(crate) fn control(url: &str, reason: impl Into<String>) -> Self {
        Self(Kind::Control { url: url.to_owned(), reason: reason.into() })
    }

    pub(crate) fn levers(url: &str, reason: impl Into<String>) -> Self {
        Self(Kind::Levers { url: url.to_owned(), reason: reason.into() })
    }

    /// Whether what was given is wrong (a plan, a certificate, an address): trying again cannot help.
    #[must_use]
    pub fn is_config(&self) -> bool {
        matches!(self.0, Kind::Plan(_) | Kind::Ca(_) | Kind::Target(_))
    }

    /// Whether something the drill needs does not answer.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self.0, Kind::Unreachable { .. } | Kind::Control { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Plan(error) => write!(f, "{error}"),
            Kind::Ca(reason) => write!(f, "CA: {reason}"),
            Kind::Target(reason) => write!(f, "{reason}"),
            Kind::Unreachable { url, reason } => write!(f, "no syncer answers, tried last {url}: {reason}"),
            Kind::Control { url, reason } => write!(f, "mock control port {url}: {reason}"),
            Kind::Levers { url, reason } => write!(f, "levers were not accepted by {url}: {reason}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Self {
        Self(Kind::Plan(error))
    }
}
