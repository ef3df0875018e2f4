//! What gateways and syncers say to each other, as a gateway sees it.
//!
//! Unknown fields of answers are ignored on purpose: a gateway must survive a newer syncer.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sfu_api::{CallKind, Epoch};

use crate::checker::News;
use crate::population::CallIx;

/// One line of the bulk road.
#[derive(Debug, Serialize)]
pub(crate) struct OpLine<'a> {
    pub(crate) op: String,
    #[serde(rename = "do")]
    pub(crate) verb: &'static str,
    pub(crate) guild: String,
    pub(crate) call: String,
    pub(crate) session: String,
    pub(crate) seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<CallKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) region: Option<&'a str>,
}

/// Body of a single join.
#[derive(Debug, Serialize)]
pub(crate) struct JoinBody<'a> {
    pub(crate) seq: u64,
    pub(crate) kind: CallKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) region: Option<&'a str>,
}

/// Answer to a join, on either road; errors fill the lower half.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    pub(crate) op: Option<String>,
    pub(crate) status: u16,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) phase: Option<u8>,
    pub(crate) endpoint: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) error_code: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) retry_after_ms: Option<u64>,
}

/// Data of an `endpoint` event.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct EndpointEvent {
    pub(crate) guild: String,
    pub(crate) call: String,
    pub(crate) epoch: Epoch,
    pub(crate) phase: u8,
    #[serde(default)]
    pub(crate) endpoint: Option<String>,
    #[serde(default)]
    pub(crate) credentials: Vec<Credential>,
    /// Which part this is, when the credentials of one event come in several.
    #[serde(default)]
    pub(crate) part: Option<u32>,
}

/// The token of one session.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Credential {
    pub(crate) session: String,
    pub(crate) token: String,
}

/// The part of `GET /v1/status` that a drill reads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncerStatus {
    /// The syncer's id.
    pub syncer: String,
    /// Calls it owns.
    pub calls: u64,
    /// Of these, placed.
    pub placed: u64,
    /// Of these, awaiting an endpoint.
    pub awaiting: u64,
    /// SFUs by verdict.
    pub sfus: BTreeMap<String, u64>,
    /// Placement attempts.
    pub attempts_total: u64,
    /// First attempts among them.
    pub first_attempts_total: u64,
    /// Calls it moved to another SFU.
    pub moves_total: u64,
    /// Invariants it found broken itself.
    pub invariant_violations: u64,
    /// Its pool's lane to the SFUs.
    pub pool: PoolStatus,
    /// Time since its start, in milliseconds.
    pub uptime_ms: u64,
}

/// The part of a syncer's pool that a drill judges.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolStatus {
    /// Requests that wait for a connection.
    pub waiters: u64,
    /// Most that may wait; absent: the syncer does not say.
    pub waiters_max: Option<u64>,
    /// Permits and dial slots that neither a connection nor a dial has.
    pub permits_off: i64,
}

// === impl Answer ===

impl Answer {
    /// What the answer says of the call, when it has a placement.
    pub(crate) fn news(&self, call: CallIx) -> Option<News<'_>> {
        let endpoint = self.endpoint.as_deref();
        let phase = self.phase.unwrap_or(if endpoint.is_some() { 1 } else { 2 });
        Some(News { call, epoch: self.epoch?, phase, endpoint })
    }

    /// When the server wants to hear of this again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after_ms.map(|ms| crate::pace::clamp_retry_after(Duration::from_millis(ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_both_kinds_parse() {
        let placed = r#"{"op":"1.7","status":200,"epoch":{"term":{"generation":1,"revision":7},"n":1},"phase":1,
            "endpoint":"https://a:1/media/r","token":"t","durable":false,"ignored":false,"new_field":1}"#;
        let answer: Answer = serde_json::from_str(placed).expect("parses");
        assert_eq!(answer.news(3).map(|n| (n.call, n.phase)), Some((3, 1)));
        let waiting = r#"{"op":"2.7","status":200,"epoch":null,"phase":null,"endpoint":null,"token":null}"#;
        let answer: Answer = serde_json::from_str(waiting).expect("parses");
        assert!(answer.news(3).is_none());
        let refused = r#"{"op":null,"status":429,"error_code":"limited","message":"later","retry_after_ms":1500}"#;
        let answer: Answer = serde_json::from_str(refused).expect("parses");
        assert_eq!(answer.retry_after(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn an_endpoint_event_parses() {
        let data = r#"{"guild":"g","call":"c","epoch":{"term":{"generation":1,"revision":7},"n":2},"phase":2,
            "endpoint":null,"cause":"sfu_dead","credentials":[]}"#;
        let event: EndpointEvent = serde_json::from_str(data).expect("parses");
        assert_eq!((event.phase, event.endpoint), (2, None));
    }
}
