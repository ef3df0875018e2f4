//! Identifiers: short strings that are safe to log, to put in a URL and to compare.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

/// Longest identifier, in bytes. Snowflakes, UUIDs and host names fit; a row of them stays small.
pub const ID_BYTES_MAX: usize = 128;

/// Why a string is not an identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The string has no characters.
    #[error("must not be empty")]
    Empty,
    /// The string is longer than [`ID_BYTES_MAX`] bytes.
    #[error("must be at most {ID_BYTES_MAX} bytes, got {0}")]
    TooLong(usize),
    /// The string holds a control character or white space.
    #[error("must not contain white space or control characters")]
    Control,
}

fn check(s: &str) -> Result<(), IdError> {
    if s.is_empty() {
        return Err(IdError::Empty);
    }
    if s.len() > ID_BYTES_MAX {
        return Err(IdError::TooLong(s.len()));
    }
    if s.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(IdError::Control);
    }
    Ok(())
}

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// 1 to [`ID_BYTES_MAX`] bytes of UTF-8 without white space or control characters.
        /// Cloning shares the string.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = String, min_length = 1, max_length = 128)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes `s`.
            ///
            /// # Errors
            ///
            /// When `s` is empty, too long, or holds white space or control characters.
            pub fn new(s: impl AsRef<str>) -> Result<Self, IdError> {
                let s = s.as_ref();
                check(s)?;
                Ok(Self(Arc::from(s)))
            }

            /// The identifier as it is written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::new(&s).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

id! {
    /// A guild: the tenant that calls belong to.
    GuildId;
    /// A call: one voice channel or stream of a guild.
    CallId;
    /// A participant's session in a call.
    SessionId;
    /// A gateway: a server that holds users' sockets.
    GatewayId;
    /// An SFU of the catalogue.
    SfuId;
    /// A syncer.
    SyncerId;
    /// A region of the fleet.
    RegionId;
    /// A room on an SFU.
    RoomId;
    /// One incarnation of an SFU process.
    BootId;
    /// One operation; the same id gets the same answer.
    OpId;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_empty_long_and_control() {
        assert_eq!(GuildId::new(""), Err(IdError::Empty));
        assert_eq!(GuildId::new("a\nb"), Err(IdError::Control));
        assert_eq!(GuildId::new("a b"), Err(IdError::Control));
        assert_eq!(GuildId::new("x".repeat(129)), Err(IdError::TooLong(129)));
        assert!(GuildId::new("x".repeat(128)).is_ok());
    }

    #[test]
    fn json_is_a_checked_string() {
        let id: CallId = serde_json::from_str("\"c-1\"").expect("valid");
        assert_eq!(id.as_str(), "c-1");
        assert_eq!(serde_json::to_string(&id).expect("json"), "\"c-1\"");
        assert!(serde_json::from_str::<CallId>("\"\"").is_err());
        assert!(serde_json::from_str::<CallId>("\"\\u0000\"").is_err());
    }
}
