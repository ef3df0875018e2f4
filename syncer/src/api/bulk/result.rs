//! What comes back for a line.

use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use sfu_api::Epoch;

use crate::api::ApiError;
use crate::engine::CallAnswer;

/// One line out. It says what there is to say: what is absent is null, and nothing is `ignored` unless it
/// says so. In a storm most results say no more than that the line was done.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub(crate) struct OperationResult {
    /// The operation's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) op: Option<String>,
    /// As the status of the same request alone.
    pub(crate) status: u16,
    /// With 200: epoch of the call's last announced placement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) epoch: Option<Epoch>,
    /// With an epoch. 1: endpoint announced. 2: endpoint gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) phase: Option<u8>,
    /// Where to connect; absent while the call awaits an endpoint: the watch will tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) endpoint: Option<Arc<str>>,
    /// What the session shows there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// The write was late or repeated and changed nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ignored: bool,
    /// Otherwise: machine-readable reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error_code: Option<&'static str>,
    /// Otherwise: what happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// With 429 and 503: come back no sooner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_ms: Option<u64>,
    /// With 200 after `sync` or `synced`: the round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) round: Option<u64>,
    /// With 421: who owns the guild.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) owner: Option<Arc<str>>,
}

// === impl OperationResult ===

impl OperationResult {
    /// Writes what became of a line that was done.
    pub(super) fn write_done(op: Option<String>, answer: CallAnswer, to: &mut Vec<u8>) {
        match op {
            // In a storm almost all: they say nothing else.
            Some(op) if answer == CallAnswer::default() => {
                to.extend_from_slice(b"{\"op\":");
                write_json(&op, to);
                to.extend_from_slice(b",\"status\":200}\n");
            }
            op => Self::done(op, answer).write(to),
        }
    }

    pub(super) fn done(op: Option<String>, answer: CallAnswer) -> Self {
        let CallAnswer { epoch, phase, endpoint, token, ignored } = answer;
        Self { op, status: StatusCode::OK.as_u16(), epoch, phase, endpoint, token, ignored, ..Self::default() }
    }

    pub(super) fn failed(op: Option<String>, e: ApiError) -> Self {
        Self {
            op,
            status: e.status.as_u16(),
            error_code: Some(e.code),
            message: Some(e.message),
            retry_after_ms: e.retry_after.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            owner: e.owner,
            ..Self::default()
        }
    }

    pub(super) fn write(&self, to: &mut Vec<u8>) {
        write_json(self, to);
        to.push(b'\n');
    }
}

fn write_json(what: &(impl Serialize + ?Sized), to: &mut Vec<u8>) {
    if let Err(error) = serde_json::to_writer(to, what) {
        tracing::error!(%error, "a result could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(result: &OperationResult) -> String {
        let mut line = Vec::new();
        result.write(&mut line);
        String::from_utf8(line).expect("JSON is UTF-8")
    }

    #[test]
    fn a_result_says_what_there_is_to_say() {
        let op = || Some("o\"1".to_owned());
        let awaiting = OperationResult::done(op(), CallAnswer::default());
        assert_eq!(line(&awaiting), "{\"op\":\"o\\\"1\",\"status\":200}\n");
        let answer = CallAnswer {
            epoch: "1.7.3".parse().ok(),
            phase: Some(1),
            endpoint: Some("wss://sfu/r".into()),
            token: Some("t".into()),
            ignored: true,
        };
        let epoch = r#""epoch":{"term":{"generation":1,"revision":7},"n":3}"#;
        let rest = r#""phase":1,"endpoint":"wss://sfu/r","token":"t","ignored":true"#;
        assert_eq!(line(&OperationResult::done(None, answer.clone())), format!("{{\"status\":200,{epoch},{rest}}}\n"));
        for op in [op(), None] {
            for answer in [CallAnswer::default(), answer.clone(), CallAnswer { ignored: true, ..CallAnswer::default() }]
            {
                let mut written = Vec::new();
                OperationResult::write_done(op.clone(), answer.clone(), &mut written);
                assert_eq!(String::from_utf8(written).ok(), Some(line(&OperationResult::done(op.clone(), answer))));
            }
        }
    }
}
