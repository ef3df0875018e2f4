//! What comes back for a line.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use sfu_api::Epoch;

use crate::api::ApiError;
use crate::drivers::Credential;
use crate::engine::CallAnswer;

/// What most results take: an op id, and that it was done.
const RESULT_BYTES: usize = 40;
/// Results gathered into one write: a frame takes 16 KiB, and two batches of the shortest results (op ids of up to nine
/// bytes) are a little less. A third would not fit, and most of its bytes would go in a frame of their own.
const WRITE_BYTES: usize = 12 * 1024;
/// Lines that share a result at most. While lines keep coming, whoever sent them hears of them after about a millisecond
/// of work: seldom enough that telling costs next to nothing, and soon enough to forget what is done.
const RUN_LINES: u32 = 1_024;

/// One line out. It says what there is to say: what is absent is null, and nothing is `ignored` unless it
/// says so. In a storm most results say no more than that the line was done.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub(crate) struct OperationResult {
    /// The operation's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) op: Option<String>,
    /// As the status of the same request alone.
    pub(crate) status: u16,
    /// With `Prefer: return=minimal`: id of the last of several operations that follow each other on the stream, from
    /// `op` on. Each was done (200), and there is nothing else to say of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) through: Option<String>,
    /// With `through`: how many they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lines: Option<u32>,
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
    #[schema(value_type = Option<String>)]
    pub(crate) token: Option<Credential>,
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
    pub(super) fn done(op: Option<String>, answer: CallAnswer) -> Self {
        let CallAnswer { epoch, phase, endpoint, token, ignored } = answer;
        Self { op, status: StatusCode::OK.as_u16(), epoch, phase, endpoint, token, ignored, ..Self::default() }
    }

    pub(super) fn failed(op: Option<String>, e: ApiError, retry_span_min: Duration) -> Self {
        Self {
            op,
            status: e.status.as_u16(),
            error_code: Some(e.code),
            message: Some(e.message),
            retry_after_ms: e
                .retry_after
                .map(|r| u64::try_from(r.wait(retry_span_min).as_millis()).unwrap_or(u64::MAX)),
            owner: e.owner,
            ..Self::default()
        }
    }

    fn write(&self, to: &mut Vec<u8>) {
        write_json(self, to);
        to.push(b'\n');
    }
}

/// Results that are not told yet, in the order of their lines.
#[derive(Debug)]
pub(super) struct Results {
    text: Vec<u8>,
    /// Lines that say no more than that they were done share a result.
    minimal: bool,
    /// The last of such lines.
    run: Option<Run>,
}

/// Lines that follow each other, were done, and say nothing else.
#[derive(Debug)]
struct Run {
    first: String,
    /// If there is more than one.
    last: Option<String>,
    lines: u32,
}

// === impl Results ===

impl Results {
    pub(super) const fn new(minimal: bool) -> Self {
        Self { text: Vec::new(), minimal, run: None }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.text.is_empty() && self.run.is_none()
    }

    /// Whether enough is there for a write of its own.
    pub(super) fn is_full(&self) -> bool {
        self.text.len() >= WRITE_BYTES || self.run.as_ref().is_some_and(|run| run.lines >= RUN_LINES)
    }

    /// Room for the usual results of `lines` lines, and for as many that go with them, so that they are not moved.
    pub(super) fn reserve(&mut self, lines: usize) {
        if self.text.is_empty() && !self.minimal {
            self.text.reserve(2 * lines * RESULT_BYTES);
        }
    }

    /// A line was done.
    pub(super) fn done(&mut self, op: Option<String>, answer: CallAnswer) {
        match op {
            // In a storm almost all: they say nothing else.
            Some(op) if answer == CallAnswer::default() && self.minimal => self.run_on(op),
            Some(op) if answer == CallAnswer::default() => write_plain(&op, &mut self.text),
            op => self.push(&OperationResult::done(op, answer)),
        }
    }

    /// A line has this result.
    pub(super) fn push(&mut self, result: &OperationResult) {
        self.end_run();
        result.write(&mut self.text);
    }

    /// The next line does not follow the last one.
    pub(super) fn end_run(&mut self) {
        match self.run.take() {
            None => {}
            Some(Run { first, last: None, .. }) => write_plain(&first, &mut self.text),
            Some(Run { first, last, lines }) => {
                let status = StatusCode::OK.as_u16();
                OperationResult {
                    op: Some(first),
                    status,
                    through: last,
                    lines: Some(lines),
                    ..OperationResult::default()
                }
                .write(&mut self.text);
            }
        }
    }

    fn run_on(&mut self, op: String) {
        if self.run.as_ref().is_some_and(|run| run.lines >= RUN_LINES) {
            self.end_run();
        }
        match &mut self.run {
            Some(run) => {
                run.last = Some(op);
                run.lines += 1;
            }
            None => self.run = Some(Run { first: op, last: None, lines: 1 }),
        }
    }

    /// What there is to tell; nothing is left.
    pub(super) fn take(&mut self) -> Bytes {
        self.end_run();
        std::mem::take(&mut self.text).into()
    }
}

/// What most lines have for a result where each has its own.
fn write_plain(op: &str, to: &mut Vec<u8>) {
    to.extend_from_slice(b"{\"op\":");
    write_json(op, to);
    to.extend_from_slice(b",\"status\":200}\n");
}

fn write_json(what: &(impl Serialize + ?Sized), to: &mut Vec<u8>) {
    if let Err(error) = serde_json::to_writer(to, what) {
        tracing::error!(%error, "a result could not be written");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

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
            token: Some(Credential::new("t".to_owned())),
            ignored: true,
        };
        let epoch = r#""epoch":{"term":{"generation":1,"revision":7},"n":3}"#;
        let rest = r#""phase":1,"endpoint":"wss://sfu/r","token":"t","ignored":true"#;
        assert_eq!(line(&OperationResult::done(None, answer.clone())), format!("{{\"status\":200,{epoch},{rest}}}\n"));
        for op in [op(), None] {
            for answer in [CallAnswer::default(), answer.clone(), CallAnswer { ignored: true, ..CallAnswer::default() }]
            {
                let mut results = Results::new(false);
                results.done(op.clone(), answer.clone());
                assert!(!results.is_empty());
                let written = String::from_utf8(results.take().into());
                assert_eq!(written.ok(), Some(line(&OperationResult::done(op.clone(), answer))));
            }
        }
    }

    /// What a line can come to, as far as its result is concerned.
    #[derive(Clone, Debug)]
    enum Came {
        Done { op: bool, ignored: bool },
        Refused,
        Elsewhere,
        Told,
    }

    fn anything() -> impl Strategy<Value = Came> {
        prop_oneof![
            8 => Just(Came::Done { op: true, ignored: false }),
            1 => (any::<bool>(), any::<bool>()).prop_map(|(op, ignored)| Came::Done { op, ignored }),
            1 => Just(Came::Refused),
            1 => Just(Came::Elsewhere),
            1 => Just(Came::Told),
        ]
    }

    /// The results a gateway reads, with those that many lines share said for each: it knows what it sent.
    fn read(text: &str, sent: &[Option<String>]) -> Vec<Value> {
        let mut all = Vec::new();
        for line in text.lines() {
            let mut result: Value = serde_json::from_str(line).expect("JSON");
            let Some(through) = result.as_object_mut().and_then(|r| r.remove("through")) else {
                all.push(result);
                continue;
            };
            let place = |op: &Value| sent.iter().position(|s| s.as_deref() == op.as_str()).expect("it was sent");
            let (from, to) = (place(&result["op"]), place(&through));
            assert_eq!(result["lines"], to - from + 1);
            all.extend((from..=to).map(|at| json!({"op": sent[at], "status": result["status"]})));
        }
        all
    }

    proptest! {
        #[test]
        fn minimal_results_say_of_each_line_what_its_own_would(came in proptest::collection::vec(anything(), 0..60)) {
            let (mut each, mut few) = (Results::new(false), Results::new(true));
            let (mut of_each, mut of_few) = (String::new(), String::new());
            let mut sent = Vec::new();
            for (n, came) in came.iter().enumerate() {
                let named = !matches!(came, Came::Done { op: false, .. } | Came::Told);
                let op = named.then(|| n.to_string());
                sent.extend((!matches!(came, Came::Told)).then(|| op.clone()));
                for (results, text) in [(&mut each, &mut of_each), (&mut few, &mut of_few)] {
                    match came {
                        Came::Done { ignored, .. } => {
                            results.done(op.clone(), CallAnswer { ignored: *ignored, ..CallAnswer::default() });
                        }
                        Came::Refused => results.push(&OperationResult::failed(op.clone(), ApiError::invalid("no"), Duration::ZERO)),
                        Came::Elsewhere => results.end_run(),
                        Came::Told => text.push_str(std::str::from_utf8(&results.take()).expect("text")),
                    }
                }
            }
            of_each.push_str(std::str::from_utf8(&each.take()).expect("text"));
            of_few.push_str(std::str::from_utf8(&few.take()).expect("text"));
            prop_assert!(each.is_empty() && few.is_empty());
            prop_assert_eq!(read(&of_few, &sent), read(&of_each, &sent));
            prop_assert!(of_few.lines().count() <= of_each.lines().count());
        }
    }

    #[test]
    fn lines_that_share_a_result_are_told_before_they_are_too_many() {
        let mut results = Results::new(true);
        for n in 1..RUN_LINES {
            results.done(Some(n.to_string()), CallAnswer::default());
        }
        assert!(!results.is_full());
        results.done(Some("last".to_owned()), CallAnswer::default());
        assert!(results.is_full());
        results.done(Some("next".to_owned()), CallAnswer::default()); // of the same batch
        let told =
            "{\"op\":\"1\",\"status\":200,\"through\":\"last\",\"lines\":1024}\n{\"op\":\"next\",\"status\":200}\n";
        assert_eq!(results.take(), told);
    }
}
