//! Lines for another owner, taken there a batch at a time.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::sync::mpsc;

use super::NDJSON;
use super::result::{OperationResult, Results};
use crate::api::error::RETRY_BASE;
use crate::api::{ApiError, App, Caller};
use crate::ownership::Owner;

/// Lines in one batch to an owner; 128 of typically 150 bytes.
pub(super) const BATCH_LINES_MAX: usize = 128;

/// A line for another owner.
#[derive(Debug)]
pub(super) struct Foreign {
    pub(super) op: Option<String>,
    /// A copy: it may wait for long, and must not keep all that arrived with it.
    pub(super) line: Bytes,
}

/// Takes lines to one owner, a batch at a time.
pub(super) struct Worker {
    pub(super) app: Arc<App>,
    pub(super) caller: Caller,
    pub(super) owner: Arc<Owner>,
    pub(super) out: mpsc::Sender<Bytes>,
}

// === impl Worker ===

impl Worker {
    pub(super) async fn run(self, mut from: mpsc::Receiver<Foreign>) {
        let mut batch = Vec::with_capacity(BATCH_LINES_MAX);
        while from.recv_many(&mut batch, BATCH_LINES_MAX).await > 0 {
            let results = self.send(&batch).await;
            batch.clear();
            if self.out.send(results).await.is_err() {
                return;
            }
        }
    }

    /// Sends a batch; every line gets a result, whatever became of the batch.
    async fn send(&self, batch: &[Foreign]) -> Bytes {
        let lines = batch.iter().flat_map(|foreign| [foreign.line.as_ref(), b"\n"]);
        let body = Bytes::from(lines.collect::<Vec<_>>().concat());
        let who = self.caller.on_behalf();
        let path = "/v1/voice-states";
        let sent = self.app.peers.forward(&self.owner.url, Method::POST, path, &who, Some(&NDJSON), body).await;
        let (told, answered) = match sent {
            // The owner answers our lines in their order, since none of them is forwarded again.
            Ok((head, bytes)) if head.status == StatusCode::OK => {
                let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                let bytes = bytes.slice(..whole);
                let lines = bytes.iter().filter(|b| **b == b'\n').count();
                (bytes, lines)
            }
            Ok((head, _)) => {
                tracing::warn!(owner = %self.owner.id, status = %head.status, "owner refused a batch");
                (Bytes::new(), 0)
            }
            Err(error) => {
                tracing::debug!(owner = %self.owner.id, %error, "owner not reached");
                (Bytes::new(), 0)
            }
        };
        let mut results = Results::new(false);
        for foreign in batch.iter().skip(answered) {
            let e = ApiError::unavailable(
                "owner_unreachable",
                format!(
                    "syncer {} owns this guild and gave no answer: the operation may or may not be done",
                    self.owner.id
                ),
                RETRY_BASE,
            );
            results.push(&OperationResult::failed(foreign.op.clone(), e, self.app.engine.retry_span_min()));
        }
        if results.is_empty() { told } else { [told, results.take()].concat().into() }
    }
}
