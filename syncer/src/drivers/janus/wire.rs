//! What Janus answers, and the traps in it.
//!
//! Errors arrive with HTTP status 200, on two levels: the core's (`"janus":"error"`) and the
//! plugin's (`error_code` inside the `response`). The plugins number the same errors differently:
//!
//! | error | videoroom | audiobridge |
//! |---|---|---|
//! | no such room | 426 | 485 |
//! | room exists | 427 | 486 |
//! | wrong secret, pin or admin key | 433 | 489 |
//!
//! (Janus 1.1.2, as run.) "Exists" on create and "no such room" on destroy are what we wanted.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::drivers::http::words;
use crate::drivers::{DriverError, ErrorKind, JanusPlugin};

/// The core's codes that say "not now": the server is out of resources or has lost its plugin.
const CORE_UNKNOWN: i64 = 490;

/// Answer to `info`.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    #[serde(rename = "accepting-new-sessions")]
    pub(super) accepting: bool,
}

/// Answer to `exists`.
#[derive(Debug, Deserialize)]
pub(super) struct Exists {
    pub(super) exists: bool,
}

/// Answer to `list`.
#[derive(Debug, Deserialize)]
pub(super) struct Rooms {
    pub(super) list: Vec<Listed>,
}

/// One room of a list. Servers without `string_ids` list numbers; such rooms are not ours.
#[derive(Debug, Deserialize)]
pub(super) struct Listed {
    #[serde(deserialize_with = "text_or_number")]
    pub(super) room: String,
    #[serde(default)]
    pub(super) description: Option<String>,
    #[serde(default)]
    pub(super) num_participants: u32,
}

/// Answer to `listparticipants`.
#[derive(Debug, Deserialize)]
pub(super) struct Participants {
    pub(super) participants: Vec<serde::de::IgnoredAny>,
}

/// A plugin's answer.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It did as it was told; this is what it says.
    Done {
        /// The value under the plugin's own name, for example `created`.
        what: String,
        body: Value,
    },
    /// The room to create exists.
    Exists,
    /// There is no such room.
    Absent,
}

/// An error in the server's own words, which may repeat ours.
#[derive(Debug)]
pub(super) struct Refusal {
    kind: ErrorKind,
    text: String,
}

#[derive(Debug, Deserialize)]
struct CoreError {
    code: i64,
    #[serde(default)]
    reason: String,
}

/// Checks the core's envelope: not an error, and the answer to *our* request.
pub(super) fn unwrap(answer: Value, transaction: &str) -> Result<Value, Refusal> {
    if answer["janus"] == "error" {
        let Ok(error) = CoreError::deserialize(&answer["error"]) else {
            return Err(Refusal::protocol("an error without a code"));
        };
        let kind = if error.code == CORE_UNKNOWN { ErrorKind::Internal } else { ErrorKind::Rejected };
        let hint = if error.code == 403 { " (is admin_secret right?)" } else { "" };
        return Err(Refusal { kind, text: format!("error {}{hint}: {}", error.code, error.reason) });
    }
    if answer["transaction"] != transaction {
        return Err(Refusal::protocol("the answer to another request"));
    }
    Ok(answer)
}

/// Checks the plugin's answer inside an envelope.
pub(super) fn outcome(plugin: JanusPlugin, mut answer: Value) -> Result<Outcome, Refusal> {
    let body = answer["response"].take();
    let Some(what) = body[plugin.as_str()].as_str() else {
        return Err(Refusal::protocol("no answer of the plugin"));
    };
    let Some(code) = body["error_code"].as_i64() else {
        return Ok(Outcome::Done { what: what.to_owned(), body });
    };
    let (absent, exists, unauthorized) = match plugin {
        JanusPlugin::Videoroom => (426, 427, 433),
        JanusPlugin::Audiobridge => (485, 486, 489),
    };
    if code == absent {
        return Ok(Outcome::Absent);
    }
    if code == exists {
        return Ok(Outcome::Exists);
    }
    let (kind, hint) = match code {
        // 499: the plugins' "unknown error".
        499 => (ErrorKind::Internal, ""),
        _ if code == unauthorized => (ErrorKind::Rejected, " (is admin_key right?)"),
        _ => (ErrorKind::Rejected, ""),
    };
    let reason = body["error"].as_str().unwrap_or_default();
    Err(Refusal { kind, text: format!("{} error {code}{hint}: {reason}", plugin.as_str()) })
}

/// Reads an answer as the expected shape.
pub(super) fn shape<T: DeserializeOwned>(body: Value) -> Result<T, DriverError> {
    serde_json::from_value(body).map_err(|_| DriverError::new(ErrorKind::Protocol, "unexpected fields"))
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    match Value::deserialize(d)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(serde::de::Error::custom("a room is a string or a number")),
    }
}

// === impl Outcome ===

impl Outcome {
    /// Succeeds if this is what was done.
    pub(super) fn expect(self, done: &str) -> Result<(), DriverError> {
        match self {
            Self::Done { what, .. } if what == done => Ok(()),
            _ => Err(DriverError::new(ErrorKind::Protocol, format!("expected \"{done}\""))),
        }
    }

    /// Reads what was done as the expected shape.
    pub(super) fn into_shape<T: DeserializeOwned>(self) -> Result<T, DriverError> {
        match self {
            Self::Done { body, .. } => shape(body),
            Self::Exists | Self::Absent => Err(DriverError::new(ErrorKind::Protocol, "unexpected answer about a room")),
        }
    }
}

// === impl Refusal ===

impl Refusal {
    fn protocol(text: &str) -> Self {
        Self { kind: ErrorKind::Protocol, text: text.to_owned() }
    }

    pub(super) fn into_error(self, redact: impl FnOnce(String) -> String) -> DriverError {
        DriverError::new(self.kind, words(&redact(self.text)))
    }
}
