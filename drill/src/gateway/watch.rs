//! The watch: endpoint events as they happen, resumed where the last stream broke.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use http::StatusCode;
use http::header::ACCEPT;
use tokio::time::Instant;

use super::Gateway;
use crate::checker::News;
use crate::error::chain;
use crate::pace::{Rotation, retry_after};
use crate::sse::{Event, Parser};
use crate::wire::EndpointEvent;

/// Servers send a comment every 10 s; silence for two and a half of these is a dead stream.
const SILENCE_MAX: Duration = Duration::from_secs(25);
/// Until the head of the answer.
const HEAD_MAX: Duration = Duration::from_secs(5);

/// After the server has ended a watch for good: as long as it says, and whoever has the others may be gone by then.
const TOLD_FOR: Duration = Duration::from_secs(30);

/// How a stream ended.
enum End {
    /// The connection failed or was closed.
    Broken(String),
    /// Refused for now; not before this wait.
    Refused(Option<Duration>, StatusCode),
    /// The server does not know where we were: begin anew and re-read.
    CursorLost,
    /// The server ended it because this gateway has too many: whoever opened the others has it.
    Told(String),
}

// === impl Gateway ===

impl Gateway {
    pub(super) async fn watch_loop(self: Arc<Self>) {
        let mut rotation = Rotation::new(&self.shared.targets.syncers, usize::from(self.ix));
        let mut cursor: Option<String> = None;
        let mut stream = 0;
        for attempt in 0_u64.. {
            if attempt > 0 {
                self.shared.stats.reconnects.add(1);
            }
            stream += 1;
            let end = self.watch_once(&mut stream, &mut rotation, &mut cursor).await;
            if self.watching.send_replace(false) {
                self.shared.stats.watches.sub(1);
            }
            let wait = match end {
                End::CursorLost => {
                    // Re-reading waits for the next stream: before it, more could be missed.
                    cursor = None;
                    rotation.fail(&mut rand::rng())
                }
                End::Refused(wait, status) => {
                    self.shared.stats.error("watch_refused");
                    tracing::debug!(gateway = self.name, syncer = rotation.url(), %status, "watch refused");
                    let turn = rotation.fail(&mut rand::rng());
                    wait.unwrap_or(turn)
                }
                End::Told(reason) => {
                    self.shared.stats.error("watch_ended");
                    tracing::warn!(gateway = self.name, syncer = rotation.url(), reason, "watch ended by the server");
                    TOLD_FOR
                }
                End::Broken(reason) => {
                    self.shared.stats.error("watch_broken");
                    tracing::debug!(gateway = self.name, syncer = rotation.url(), reason, "watch broke");
                    rotation.fail(&mut rand::rng())
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn watch_once(&self, stream: &mut u32, rotation: &mut Rotation, cursor: &mut Option<String>) -> End {
        let url = format!("{}/v1/watch", rotation.url());
        let mut request = self.client.get(url).bearer_auth(&self.token).header(ACCEPT, "text/event-stream");
        if let Some(cursor) = cursor {
            request = request.header("last-event-id", &**cursor);
        }
        let resumed = cursor.is_some();
        let response = match tokio::time::timeout(HEAD_MAX, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return End::Broken(chain(&error)),
            Err(_) => return End::Broken("no answer in time".to_owned()),
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::GONE | StatusCode::BAD_REQUEST if resumed => return End::CursorLost,
            status => return End::Refused(retry_after(response.headers()), status),
        }
        rotation.succeed();
        self.shared.stats.watches.add(1);
        self.watching.send_replace(true);
        if *stream > 1 && !resumed {
            // Without a cursor to resume from, what was missed since the last stream is unknown.
            self.reread(Instant::now());
        }
        let mut body = response.bytes_stream();
        let (mut parser, mut events) = (Parser::new(), Vec::new());
        loop {
            let chunk = match tokio::time::timeout(SILENCE_MAX, body.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return End::Broken(chain(&error)),
                Ok(None) => return End::Broken("closed by the server".to_owned()),
                Err(_) => return End::Broken("silent for too long".to_owned()),
            };
            if let Err(error) = parser.feed(&chunk, &mut events) {
                return End::Broken(error.to_string());
            }
            for event in events.drain(..) {
                if event.name == "end" {
                    return End::Told(event.data);
                }
                self.heard(stream, &event);
            }
            if let Some(id) = parser.last_id() {
                *cursor = Some(id.to_owned());
            }
        }
    }

    fn heard(&self, stream: &mut u32, event: &Event) {
        self.shared.stats.events.add(1);
        match event.name.as_str() {
            "endpoint" => match serde_json::from_str::<EndpointEvent>(&event.data) {
                Ok(endpoint) => self.endpoint(*stream, &endpoint),
                Err(error) => {
                    self.shared.stats.error("unreadable_event");
                    tracing::warn!(%error, "an endpoint event cannot be read");
                }
            },
            "resync" => {
                tracing::debug!(gateway = self.name, reason = event.data, "told to re-read");
                // The present state of calls may follow: for the order of events, a new stream.
                *stream += 1;
                self.reread(Instant::now());
            }
            _ => {}
        }
    }

    fn endpoint(&self, stream: u32, event: &EndpointEvent) {
        let shared = &self.shared;
        let Some(call) = shared.population.find_call(&event.guild, &event.call) else { return };
        if shared.is_leaving() {
            return;
        }
        let endpoint = event.endpoint.as_deref();
        let news = News { call, epoch: event.epoch, phase: event.phase, endpoint };
        if event.part.is_none_or(|part| part <= 1) {
            shared.ledger.lock().event(self.ix, stream, news, Instant::now());
        }
        let Some(endpoint) = endpoint else {
            shared.media.lost(self.ix, call, event.epoch);
            return;
        };
        for credential in &event.credentials {
            if let Some(session) = shared.population.find_session(&credential.session) {
                shared.media.offer(session, event.epoch, endpoint, &credential.token);
            }
        }
    }
}
