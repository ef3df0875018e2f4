//! What never reaches a log, an error, a debug page or `config print`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that never reaches a log, an error, a debug page or `config print`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// A URL as an error may show it: passwords are put before an `@` and secrets into queries.
pub(crate) fn url_shown(url: &str) -> &str {
    if url.contains(['@', '?']) { "(with a user or a query, not shown)" } else { url }
}

// === impl Secret ===

impl Secret {
    /// Keeps `s` from view.
    #[must_use]
    pub fn new(s: impl Into<String>) -> Self {
        Self(s.into())
    }

    /// The secret itself: for comparing and sending, never for showing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        // The error that serde has for this shows what is there instead: a secret without its quotes.
        String::deserialize(d).map(Self).map_err(|_| de::Error::custom("a secret is a text in quotes"))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str("<redacted>")
    }
}
