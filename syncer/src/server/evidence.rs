//! Tells the other syncers what we see of the SFUs, and learns who of them could confirm it.
//!
//! A peer that did not answer the last message is no witness: it may be as dead as the SFU, and calls
//! must not wait for it. One that answers what we do not understand is of another version, and no witness
//! either. So the fleet falls back to the eyes of one, and never to nobody's.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use sfu_api::{GatewayId, SyncerId};
use tokio::time::{Instant, MissedTickBehavior};

use crate::api::App;
use crate::health::{EvidenceAnswer, EvidenceMessage, Outbox, WIRE, Witnesses};
use crate::peer::{EVIDENCE_PATH, OnBehalf};
use crate::registry::MemberState;

/// How often it is looked whether there is something to tell: what is new waits no longer than this, and a
/// connection that is refused is tried again only after seven times as long.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Tells and listens until the task is dropped.
pub(super) async fn tell(app: Arc<App>) {
    let witnesses: Arc<Mutex<Witnesses>> = Arc::default();
    let mut busy: HashMap<SyncerId, Arc<AtomicBool>> = HashMap::new();
    let mut outbox = Outbox::default();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = Instant::now();
        let peers = peers(&app);
        busy.retain(|id, _| peers.contains_key(id));
        app.engine.set_witnesses(witnesses.lock().count(|id| peers.contains_key(id), now));
        if peers.is_empty() {
            continue;
        }
        let (sights, over) = app.engine.sights(now);
        let Some(sfus) = outbox.next(sights, over, now) else { continue };
        let message = EvidenceMessage { v: WIRE, from: app.engine.id().clone(), over, sfus };
        let Ok(body) = serde_json::to_vec(&message).map(Bytes::from) else { continue };
        for (id, url) in peers {
            // One that is slow misses messages; what is still so is told again.
            let flag = busy.entry(id.clone()).or_default().clone();
            if flag.swap(true, Ordering::AcqRel) {
                continue;
            }
            let (app, witnesses, body) = (Arc::clone(&app), Arc::clone(&witnesses), body.clone());
            app.tracker.clone().spawn(async move {
                let answered = send(&app, &url, body).await;
                witnesses.lock().note(&id, answered, Instant::now());
                flag.store(false, Ordering::Release);
            });
        }
    }
}

/// The other members that serve, and where.
fn peers(app: &App) -> HashMap<SyncerId, Arc<str>> {
    let snapshot = Arc::clone(&app.ownership.registry().watch().borrow());
    let serves = snapshot.roster.values().filter(|m| m.live && m.state == MemberState::Ready);
    serves.filter(|m| m.id != *app.ownership.me()).map(|m| (m.id.clone(), Arc::clone(&m.url))).collect()
}

/// Whether the peer took the message, and understood it.
async fn send(app: &App, url: &str, body: Bytes) -> bool {
    let Ok(gateway) = GatewayId::new(app.engine.id().as_str()) else { return false };
    let who = OnBehalf { gateway, operator: false };
    let json = HeaderValue::from_static("application/json");
    let answer = app.peers.forward(url, Method::POST, EVIDENCE_PATH, &who, Some(&json), body).await;
    match answer {
        Ok((head, bytes)) => {
            let understood = head.status == StatusCode::OK
                && serde_json::from_slice::<EvidenceAnswer>(&bytes).is_ok_and(|answer| answer.v == WIRE);
            if !understood {
                app.peers.metrics().evidence_refused.inc();
            }
            understood
        }
        Err(error) => {
            tracing::debug!(url, %error, "a peer was not told what we see");
            false
        }
    }
}
