//! Identifiers: short strings that are safe to log, to put in a URL and to compare.
//!
//! A service holds millions of them, and a busy one reads a million a second. So what is as short as a
//! snowflake is kept in place, without an allocation; only what is longer is shared.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest identifier, in bytes. Snowflakes, UUIDs and host names fit; a row of them stays small.
pub const ID_BYTES_MAX: usize = 128;

/// Longest string kept in place: with its length and the tag it fills three words, one more than a
/// pointer to a shared string takes.
const SHORT_BYTES_MAX: usize = 22;

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

/// A short string.
#[derive(Clone)]
enum Text {
    Short { len: u8, bytes: [u8; SHORT_BYTES_MAX] },
    Long(Arc<str>),
}

// === impl Text ===

impl Text {
    fn new(s: &str) -> Self {
        let mut bytes = [0; SHORT_BYTES_MAX];
        match (u8::try_from(s.len()), bytes.get_mut(..s.len())) {
            (Ok(len), Some(start)) => {
                start.copy_from_slice(s.as_bytes());
                Self::Short { len, bytes }
            }
            _ => Self::Long(Arc::from(s)),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Long(s) => s.as_bytes(),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Short { .. } => std::str::from_utf8(self.as_bytes()).expect("it was copied from a string"),
            Self::Long(s) => s,
        }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            // What is behind a short text is zero: so all of it is compared, at once.
            (Self::Short { len, bytes }, Self::Short { len: other_len, bytes: other }) => {
                len == other_len && bytes == other
            }
            _ => self.as_bytes() == other.as_bytes(),
        }
    }
}

impl Eq for Text {}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes()) // the order of strings is that of their bytes
    }
}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As `str` does, which the ids can be borrowed as; not through it, since that would check the bytes again.
        state.write(self.as_bytes());
        state.write_u8(0xff);
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

fn check(s: &str) -> Result<(), IdError> {
    if s.is_empty() {
        return Err(IdError::Empty);
    }
    if s.len() > ID_BYTES_MAX {
        return Err(IdError::TooLong(s.len()));
    }
    let plain = s.bytes().all(|b| b.is_ascii_graphic());
    if !plain && s.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(IdError::Control);
    }
    Ok(())
}

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// 1 to [`ID_BYTES_MAX`] bytes of UTF-8 without white space or control characters.
        /// Cloning allocates nothing.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = String, min_length = 1, max_length = 128)]
        pub struct $name(Text);

        impl $name {
            /// Checks and takes `s`.
            ///
            /// # Errors
            ///
            /// When `s` is empty, too long, or holds white space or control characters.
            pub fn new(s: impl AsRef<str>) -> Result<Self, IdError> {
                let s = s.as_ref();
                check(s)?;
                Ok(Self(Text::new(s)))
            }

            /// The identifier as it is written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// Its bytes: cheaper than the string, where bytes are all that is needed.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
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
                self.as_str()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Read;
                impl Visitor<'_> for Read {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string")
                    }
                    fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<$name, E> {
                        $name::new(s).map_err(E::custom)
                    }
                }
                d.deserialize_str(Read)
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
    /// A zone of a region: what fails together.
    ZoneId;
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
    fn short_and_long_ids_behave_alike() {
        assert_eq!(size_of::<GuildId>(), 24);
        let texts: Vec<String> = (1..=40).map(|n| "é".repeat(n)).chain((1..=40).map(|n| "a".repeat(n))).collect();
        for a in &texts {
            let id = GuildId::new(a).expect("valid");
            assert_eq!((id.as_str(), id.clone()), (a.as_str(), id.clone()));
            let among: std::collections::HashSet<GuildId> = [id.clone()].into();
            assert!(among.contains(a.as_str()), "hashes as its string");
            for b in &texts {
                let other = GuildId::new(b).expect("valid");
                assert_eq!((id.cmp(&other), id == other), (a.cmp(b), a == b));
            }
        }
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
