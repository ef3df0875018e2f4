//! The threads between the parts: each a small loop that the supervisor keeps alive.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pool::Origin;
use sfu_api::{CallId, GatewayId, GuildId, OwnerTerm, SessionId, Slot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::{CATALOGUE, SLOTS};
use crate::api::App;
use crate::drivers::Credential;
use crate::engine::{Announcement, Engine, NewsCursor};
use crate::ownership::{SlotSink, keep_lease};
use crate::registry::{Member, MemberState};
use crate::watch::{SWEEP_EVERY, Source};

/// How often readiness is looked at.
const READY_LOOK: Duration = Duration::from_millis(20);
/// Pause before the roster is told again what it did not take.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(1);

impl SlotSink for Engine {
    fn set_owned(&self, owned: &[(Slot, OwnerTerm)], now: Instant) {
        Self::set_owned(self, owned, now);
    }
    fn set_ready_members(&self, ready: u32, now: Instant) {
        Self::set_ready_members(self, ready, now);
    }
}

impl Source for Engine {
    fn current(&self, gateway: &GatewayId, at: NewsCursor) -> (Vec<Announcement>, Option<NewsCursor>) {
        self.announcements_for(gateway, at)
    }
    fn call(&self, gateway: &GatewayId, guild: &GuildId, call: &CallId) -> Option<Announcement> {
        self.announcement_for(gateway, guild, call)
    }
    fn credential(&self, news: &Announcement, session: &SessionId) -> Option<Credential> {
        Self::credential(self, news, session)
    }
}

/// Follows the registry, claims slots, and resumes above terms that SFUs have seen.
pub(super) async fn ownership(app: Arc<App>, stop: CancellationToken) {
    app.ownership.run(&app.engine, app.engine.fences(), stop).await;
}

/// Hands the registry's SFUs to the engine.
pub(super) async fn catalogue(app: Arc<App>) {
    let mut snapshots = app.ownership.registry().watch();
    let mut last = None;
    loop {
        let sfus = Arc::clone(&snapshots.borrow_and_update().sfus);
        if last.as_ref().is_none_or(|l| !Arc::ptr_eq(l, &sfus)) {
            app.engine.set_catalogue(sfus.to_vec(), Instant::now());
            app.ready.set(CATALOGUE, true);
            last = Some(sfus);
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

/// Has the pool forget peers that left the roster, or moved.
pub(super) async fn peers(app: Arc<App>) {
    let mut snapshots = app.ownership.registry().watch();
    let mut known = HashSet::new();
    loop {
        let roster = snapshots.borrow_and_update().roster.clone();
        let now = roster.values().filter_map(|member| Origin::parse(&member.url).ok()).collect();
        for gone in std::mem::replace(&mut known, now).difference(&known) {
            app.peers.lane().forget(gone);
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

/// Lets old news go.
pub(super) async fn news(app: Arc<App>) {
    let mut tick = interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await;
        app.hub.sweep(now);
    }
}

/// Keeps our lease. Removed from the roster, we stop writing and say so (R12).
pub(super) async fn lease(
    app: Arc<App>,
    stop: CancellationToken,
    failed: CancellationToken,
    why: Arc<Mutex<Option<&'static str>>>,
) {
    let registry = Arc::clone(app.ownership.registry());
    if !keep_lease(&*registry, app.ownership.me(), stop.clone()).await {
        tracing::error!("removed from the roster, this syncer stops serving");
        app.engine.set_owned(&[], Instant::now());
        *why.lock() = Some("removed from the roster");
        failed.cancel();
    }
    stop.cancelled().await;
}

/// Sets the latch of the claims, and tells the roster when all latches are set (R11).
pub(super) async fn readiness(app: Arc<App>, me: Member) {
    while !app.ownership.settled() {
        sleep(READY_LOOK).await;
    }
    app.ready.set(SLOTS, true);
    while !app.ready.missing().is_empty() {
        sleep(READY_LOOK).await;
    }
    let ready = Member { state: MemberState::Ready, ..me };
    while let Err(error) = app.ownership.registry().announce(ready.clone(), Instant::now()).await {
        tracing::warn!(%error, "the roster was not told that this syncer is ready");
        sleep(ANNOUNCE_AGAIN).await;
    }
    tracing::info!("ready");
    app.stop.cancelled().await;
}
