//! The bulk road: operations and answers as lines, streamed both ways at once.
//!
//! A stream is opened when something is due and closed after a second of rest, because servers
//! drop bodies that stay silent. Backpressure is the transport's: lines are handed over one small
//! chunk at a time, and at most [`BULK_ON_WIRE_MAX`](super::BULK_ON_WIRE_MAX) operations wait for
//! their answers. When a stream breaks, whatever was unanswered is due again; the server tells
//! repeats by their sequence numbers.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::header::CONTENT_TYPE;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Gateway;
use crate::desk::{Op, Step, Verb};
use crate::error::chain;
use crate::pace::{Rotation, full_jitter, retry_after};
use crate::population::Road;
use crate::wire::{Answer, OpLine};

/// Chunks between the writer and the transport: more would hide its backpressure.
const CHUNKS_BUFFERED: usize = 4;
/// Lines gathered into one chunk.
const CHUNK_LINES_MAX: usize = 32;
/// A stream with nothing to say is closed after this time.
const REST: Duration = Duration::from_secs(1);
/// An operation unanswered for this long is asked again on a new stream.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Longest line of an answer.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Why a stream ended early.
struct Broken {
    reason: String,
    wait: Option<Duration>,
}

fn broken(reason: impl Into<String>) -> Broken {
    Broken { reason: reason.into(), wait: None }
}

// === impl Gateway ===

impl Gateway {
    pub(super) async fn bulk_loop(self: Arc<Self>) {
        let mut rotation = Rotation::new(&self.shared.targets.syncers, usize::from(self.ix));
        loop {
            let step = self.bulk.lock().peek(Instant::now());
            match step {
                Step::WaitUntil(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.bulk_bell.notified() => {}
                },
                Step::Idle | Step::WaitForAnswers => self.bulk_bell.notified().await,
                Step::Send(_) => {
                    let result = self.bulk_stream(rotation.url()).await;
                    let wait = self.after_stream(result, &mut rotation);
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Takes back what the stream left unanswered; the wait before the next one.
    fn after_stream(&self, result: Result<(), Broken>, rotation: &mut Rotation) -> Duration {
        let now = Instant::now();
        let wait = match result {
            Ok(()) => {
                rotation.succeed();
                Duration::ZERO
            }
            Err(Broken { reason, wait }) => {
                self.shared.stats.error("bulk_stream");
                tracing::debug!(gateway = self.name, syncer = rotation.url(), reason, "bulk stream broke");
                let turn = rotation.fail(&mut rand::rng());
                wait.unwrap_or(turn)
            }
        };
        let mut rng = rand::rng();
        let taken = self.bulk.lock().take_back(now, || now + wait + full_jitter(1, &mut rng));
        self.shared.stats.retries.add(u64::try_from(taken).unwrap_or(u64::MAX));
        wait
    }

    async fn bulk_stream(&self, base: &str) -> Result<(), Broken> {
        let (lines, mut taken) = mpsc::channel::<Bytes>(CHUNKS_BUFFERED);
        let body = futures_util::stream::poll_fn(move |cx| taken.poll_recv(cx).map(|b| b.map(Ok::<_, std::io::Error>)));
        let request = self
            .client
            .post(format!("{base}/v1/voice-states"))
            .bearer_auth(&self.token)
            .header(CONTENT_TYPE, "application/x-ndjson")
            .body(reqwest::Body::wrap_stream(body));
        let reading = self.read_answers(request);
        let writing = self.write_lines(lines);
        tokio::pin!(reading, writing);
        let mut open = true;
        loop {
            tokio::select! {
                result = &mut reading => return result,
                () = &mut writing, if open => open = false,
            }
        }
    }

    /// Writes until there was nothing to do for [`REST`], or the stream is gone.
    async fn write_lines(&self, lines: mpsc::Sender<Bytes>) {
        let mut rest_until = Instant::now() + REST;
        loop {
            let now = Instant::now();
            let chunk = self.gather(now);
            if !chunk.is_empty() {
                rest_until = now + REST;
                if lines.send(chunk).await.is_err() {
                    return;
                }
                continue;
            }
            let step = self.bulk.lock().peek(now);
            let wake = match step {
                Step::Send(_) => continue,
                Step::WaitForAnswers => now + ANSWER_MAX,
                Step::WaitUntil(at) if at <= rest_until => at,
                Step::WaitUntil(_) | Step::Idle if self.bulk.lock().on_wire() > 0 => now + REST,
                Step::WaitUntil(_) | Step::Idle => rest_until,
            };
            if matches!(step, Step::WaitUntil(_) | Step::Idle) && now >= rest_until && self.bulk.lock().on_wire() == 0 {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(wake) => {}
                () = self.bulk_bell.notified() => {}
                () = lines.closed() => return,
            }
        }
    }

    /// The next lines that are due.
    fn gather(&self, now: Instant) -> Bytes {
        let mut chunk = BytesMut::new();
        for _ in 0..CHUNK_LINES_MAX {
            let step = self.bulk.lock().step(now);
            let Step::Send(op) = step else { break };
            self.sending(op, now);
            chunk.extend_from_slice(&self.line(op));
        }
        chunk.freeze()
    }

    fn line(&self, op: Op) -> Vec<u8> {
        let population = &self.shared.population;
        let call = population.session(op.session).call;
        let join = op.verb == Verb::Join;
        let line = OpLine {
            op: format!("{}.{}", op.slot, op.seq),
            verb: if join { "join" } else { "leave" },
            guild: population.guild_name(call),
            call: population.call_name(call),
            session: population.session_name(op.session),
            seq: op.seq,
            kind: join.then(|| population.kind(call)),
            region: if join { population.region(call) } else { None },
        };
        let mut bytes = serde_json::to_vec(&line).expect("strings and numbers always serialise");
        bytes.push(b'\n');
        bytes
    }

    async fn read_answers(&self, request: reqwest::RequestBuilder) -> Result<(), Broken> {
        let response = tokio::time::timeout(ANSWER_MAX, request.send()).await;
        let response = response.map_err(|_| broken("no answer in time"))?.map_err(|e| broken(chain(&e)))?;
        let status = response.status();
        if !status.is_success() {
            return Err(Broken { reason: status.to_string(), wait: retry_after(response.headers()) });
        }
        let mut body = response.bytes_stream();
        let mut rest = BytesMut::new();
        loop {
            let chunk = match tokio::time::timeout(ANSWER_MAX, body.next()).await {
                Ok(Some(chunk)) => chunk.map_err(|e| broken(chain(&e)))?,
                Ok(None) if self.bulk.lock().on_wire() > 0 => return Err(broken("ended with operations unanswered")),
                Ok(None) => return Ok(()),
                Err(_) if self.bulk.lock().on_wire() > 0 => return Err(broken("answers stopped coming")),
                Err(_) => continue,
            };
            rest.extend_from_slice(&chunk);
            while let Some(at) = rest.iter().position(|&b| b == b'\n') {
                let line = rest.split_to(at + 1);
                self.take_line(line.trim_ascii());
            }
            if rest.len() > LINE_BYTES_MAX {
                return Err(broken("a line without an end"));
            }
        }
    }

    fn take_line(&self, line: &[u8]) {
        if line.is_empty() {
            return;
        }
        let Ok(answer) = serde_json::from_slice::<Answer>(line) else {
            self.shared.stats.error("unreadable_line");
            return;
        };
        let Some((slot, seq)) = answer.op.as_deref().and_then(parse_op) else {
            // A line of ours that could not be read; its operation is asked again when it is late.
            self.shared.stats.error(answer.error_code.as_deref().unwrap_or("line_without_op"));
            return;
        };
        let Some((session, verb)) = self.bulk.lock().at(slot) else {
            self.shared.stats.error("answer_of_unknown_op");
            return;
        };
        self.answered(Road::Bulk, Op { slot, session, verb, seq }, &answer, Instant::now());
    }
}

fn parse_op(op: &str) -> Option<(usize, u64)> {
    let (slot, seq) = op.split_once('.')?;
    Some((slot.parse().ok()?, seq.parse().ok()?))
}
