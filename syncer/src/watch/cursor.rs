//! Where a watcher stands: per syncer its incarnation and a number, opaque to clients.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sfu_api::SyncerId;

/// Longest cursor, in bytes: 100 syncers, and within the header limit.
const CURSOR_BYTES_MAX: usize = 8 * 1024;

/// A place in one syncer's news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// Incarnation of the syncer's hub.
    pub(crate) boot: u64,
    /// Everything up to this number was seen.
    pub(crate) seq: u64,
}

/// Places in the news of several syncers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor(pub(crate) BTreeMap<SyncerId, Position>);

/// Why a watcher cannot resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CursorError {
    /// Not a cursor, or one that lies in the future.
    Invalid,
    /// What follows it has been dropped.
    TooOld,
}

// === impl Position ===

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.boot, self.seq)
    }
}

impl FromStr for Position {
    type Err = CursorError;
    fn from_str(s: &str) -> Result<Self, CursorError> {
        let (boot, seq) = s.split_once('.').ok_or(CursorError::Invalid)?;
        if boot.len() != 16 || !seq.bytes().all(|b| b.is_ascii_digit()) {
            return Err(CursorError::Invalid);
        }
        let boot = u64::from_str_radix(boot, 16).map_err(|_| CursorError::Invalid)?;
        Ok(Self { boot, seq: seq.parse().map_err(|_| CursorError::Invalid)? })
    }
}

// === impl Cursor ===

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: BTreeMap<&str, String> = self.0.iter().map(|(id, p)| (id.as_str(), p.to_string())).collect();
        let json = serde_json::to_vec(&text).map_err(|_| fmt::Error)?;
        f.write_str(&URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for Cursor {
    type Err = CursorError;
    fn from_str(s: &str) -> Result<Self, CursorError> {
        if s.len() > CURSOR_BYTES_MAX {
            return Err(CursorError::Invalid);
        }
        let json = URL_SAFE_NO_PAD.decode(s).map_err(|_| CursorError::Invalid)?;
        let text: BTreeMap<SyncerId, String> = serde_json::from_slice(&json).map_err(|_| CursorError::Invalid)?;
        if text.is_empty() {
            return Err(CursorError::Invalid);
        }
        text.into_iter().map(|(id, p)| Ok((id, p.parse()?))).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_and_garbage_is_refused() {
        let id = |s| SyncerId::new(s).expect("an id");
        let cursor =
            Cursor([(id("a"), Position { boot: 7, seq: 3 }), (id("b"), Position { boot: u64::MAX, seq: 0 })].into());
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        let encode = |s: &str| URL_SAFE_NO_PAD.encode(s);
        for garbage in [
            String::new(),
            "7".to_owned(),
            "é".to_owned(),
            encode("{}"),
            encode("[]"),
            encode(r#"{"a":"7"}"#),
            encode(r#"{"a":"0000000000000007.-1"}"#),
            encode(r#"{"a":"0000000000000007.+1"}"#),
            encode(r#"{"a":"0000000000000007.99999999999999999999"}"#),
            encode(r#"{"":"0000000000000007.1"}"#),
            "A".repeat(CURSOR_BYTES_MAX + 1),
        ] {
            assert_eq!(garbage.parse::<Cursor>(), Err(CursorError::Invalid), "{garbage}");
        }
    }
}
