//! The single road: one request an operation.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::Gateway;
use crate::desk::{Op, Step, Verb};
use crate::error::chain;
use crate::pace::{Rotation, full_jitter, retry_after};
use crate::population::Road;
use crate::wire::{Answer, JoinBody};

/// A request that takes longer has failed; whether it was done is unknown, so it is asked again.
const REQUEST_MAX: Duration = Duration::from_secs(10);

// === impl Gateway ===

impl Gateway {
    pub(super) async fn single_loop(self: Arc<Self>, tracker: &TaskTracker) {
        let rotation = Arc::new(Mutex::new(Rotation::new(&self.shared.targets.syncers, usize::from(self.ix))));
        loop {
            let step = self.single.lock().step(Instant::now());
            match step {
                // At most `SINGLE_ON_WIRE_MAX` of these live: the desk gives out no more.
                Step::Send(op) => {
                    let (gateway, rotation) = (Arc::clone(&self), Arc::clone(&rotation));
                    let cancel = self.shared.cancel.clone();
                    tracker
                        .spawn(cancel.run_until_cancelled_owned(async move { gateway.single_op(op, &rotation).await }));
                }
                Step::WaitUntil(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.single_bell.notified() => {}
                    }
                }
                Step::WaitForAnswers | Step::Idle => self.single_bell.notified().await,
            }
        }
    }

    async fn single_op(&self, op: Op, rotation: &Mutex<Rotation>) {
        let base = rotation.lock().url().to_owned();
        self.sending(op, Instant::now());
        match self.request(&base, op).await {
            Ok(answer) => {
                rotation.lock().succeed();
                self.answered(Road::Single, op, &answer, Instant::now());
            }
            Err(reason) => {
                self.shared.stats.error("request");
                tracing::debug!(gateway = self.name, syncer = base, reason, "request failed");
                let mut wait = full_jitter(self.single.lock().attempts(op.slot), &mut rand::rng());
                {
                    let mut rotation = rotation.lock();
                    // Others may have turned to the next syncer already.
                    if rotation.url() == base {
                        wait = wait.max(rotation.fail(&mut rand::rng()));
                    }
                }
                self.retry(Road::Single, op, Instant::now() + wait);
            }
        }
    }

    async fn request(&self, base: &str, op: Op) -> Result<Answer, String> {
        let population = &self.shared.population;
        let call = population.session(op.session).call;
        let (guild, call_name) = (population.guild_name(call), population.call_name(call));
        let session = population.session_name(op.session);
        let url = format!("{base}/v1/guilds/{guild}/calls/{call_name}/participants/{session}");
        let request = match op.verb {
            Verb::Join => {
                let body = JoinBody { seq: op.seq, kind: population.kind(call), region: population.region(call) };
                self.client.put(url).json(&body)
            }
            Verb::Leave => self.client.delete(format!("{url}?seq={}", op.seq)),
        };
        let response = request.bearer_auth(&self.token).timeout(REQUEST_MAX).send().await.map_err(|e| chain(&e))?;
        let status = response.status();
        let wait = retry_after(response.headers());
        let body = response.bytes().await.map_err(|e| chain(&e))?;
        let mut answer = match status {
            StatusCode::NO_CONTENT => Answer::default(),
            _ if status.is_success() => serde_json::from_slice(&body).map_err(|e| format!("answer: {e}"))?,
            _ => serde_json::from_slice(&body).unwrap_or_default(),
        };
        answer.status = status.as_u16();
        if let Some(wait) = wait {
            answer.retry_after_ms = Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        }
        Ok(answer)
    }
}
