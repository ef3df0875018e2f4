//! What operators read.

use std::collections::BinaryHeap;

use sfu_api::{CallId, GatewayId, GuildId};
use tokio::time::Instant;

use super::sfus::drain_view;
use super::{
    Announcement, CallFilter, CallPage, CallState, CallView, Engine, EngineStatus, NewsCursor, SfuCounts, SfuView,
    ZoneView,
};
use crate::health::Verdict;
use crate::ownership::slot_of;
use crate::select::Sfu;
use crate::state::{Call, SfuIdx, Shard};

/// Calls in a page at most: ~300 KiB of JSON.
const PAGE_MAX: usize = 1_000;

/// Calls in a page of news.
const NEWS_PAGE_MAX: usize = 64;

impl Engine {
    /// The call, if this syncer has it.
    #[must_use]
    pub fn call(&self, guild: &GuildId, call: &CallId) -> Option<CallView> {
        let now = Instant::now();
        let shard = self.ctx.shard(slot_of(guild)).lock();
        find(&shard, guild, call).map(|c| self.view(c, now))
    }

    /// The calls that pass `filter`, a page of at most 1,000 in order of guild and call. Every call is
    /// looked at, and nothing is kept of those that are not on the page.
    #[must_use]
    pub fn calls(&self, filter: &CallFilter) -> CallPage {
        let limit = filter.limit.clamp(1, PAGE_MAX);
        let sfus = self.ctx.catalogue.now();
        let on = filter.sfu.as_ref().map(|id| sfus.named(id).map(|s| s.idx));
        let passes = |call: &Call| {
            filter.state.is_none_or(|s| s == state(call)) && on.is_none_or(|s| s.is_some() && s == call.placement.sfu())
        };
        let mut total = 0;
        let mut page: BinaryHeap<(GuildId, CallId)> = BinaryHeap::new();
        for shard in &self.ctx.shards {
            for call in shard.lock().list(filter.guild.as_ref()).filter(|c| passes(c)) {
                total += 1;
                let at = (&call.guild, &call.id);
                let late = page.len() > limit && page.peek().is_some_and(|(g, c)| at >= (g, c));
                if late || filter.after.as_ref().is_some_and(|(g, c)| at <= (g, c)) {
                    continue;
                }
                page.push((call.guild.clone(), call.id.clone()));
                if page.len() > limit + 1 {
                    page.pop();
                }
            }
        }
        let more = page.len() > limit;
        // One that ended meanwhile is not shown.
        let calls = page.into_sorted_vec().iter().take(limit).filter_map(|(g, c)| self.call(g, c)).collect();
        CallPage { calls, more, total }
    }

    /// Every SFU of the catalogue, by id.
    #[must_use]
    pub fn sfus(&self) -> Vec<SfuView> {
        let mut views: Vec<SfuView> = self.ctx.catalogue.now().all.iter().map(|s| self.sfu_view(s)).collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }

    pub(super) fn sfu_view(&self, sfu: &Sfu) -> SfuView {
        let calls: usize = self.ctx.shards.iter().map(|s| s.lock().calls_on(sfu.idx)).sum();
        let evidence = sfu.with_health(|h| match (h.reason(), h.last_good()) {
            (None, None) => "not heard of yet".to_owned(),
            (Some(reason), None) => format!("{reason:?}, and never answered"),
            (reason, Some(at)) => {
                let ago = Instant::now().saturating_duration_since(at).as_millis();
                reason
                    .map_or_else(|| format!("answered {ago} ms ago"), |r| format!("{r:?}; last answered {ago} ms ago"))
            }
        });
        let entry = sfu.entry();
        let flapping = sfu.flapping_for(Instant::now());
        SfuView {
            id: sfu.id.clone(),
            region: entry.spec.region.clone(),
            zone: entry.spec.zone.clone(),
            zone_failing: sfu.is_zone_failing(),
            url: entry.spec.url.clone(),
            driver: entry.spec.driver,
            verdict: sfu.verdict(),
            cordoned: sfu.is_cordoned(),
            flapping_ms: flapping.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            quarantined: sfu.is_quarantined(),
            drain: drain_view(sfu, calls as u64, Instant::now()),
            accepting: sfu.is_accepting(),
            capacity: entry.spec.capacity,
            weight: entry.spec.weight.get(),
            load: sfu.load(),
            calls: u32::try_from(calls).unwrap_or(u32::MAX),
            evidence,
        }
    }

    /// Numbers of the whole engine.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        let metrics = &self.ctx.metrics;
        let mut status = EngineStatus {
            sfus: self.sfu_counts(),
            zones_failing: self.zones_failing(),
            placements_total: metrics.placements.get(),
            attempts_total: metrics.attempts.get(),
            first_attempts_total: metrics.first_attempts.get(),
            attempts_in_flight: self.ctx.window.in_flight(),
            frozen: self.ctx.is_frozen(),
            freeze: self.ctx.freeze.lock().view(Instant::now()),
            witnesses: self.ctx.witnesses.load(std::sync::atomic::Ordering::Relaxed),
            moves_total: metrics.moves.get(),
            planned_moves_total: metrics.planned_moves.get(),
            notices_total: metrics.notices.get(),
            releases_total: metrics.releases.get(),
            releases_waiting: self.ctx.releases.len() as u64,
            sessions_expired_total: metrics.sessions_expired.get(),
            admission: self.ctx.admission.view(),
            ..EngineStatus::default()
        };
        let (gateways, expiry_frozen) = self.gateway_counts();
        (status.gateways, status.expiry_frozen) = (gateways, expiry_frozen);
        for shard in &self.ctx.shards {
            let shard = shard.lock();
            let counts = shard.counts();
            status.placed += counts.placed;
            status.awaiting += counts.awaiting;
            status.ending += counts.ending;
            status.participants += counts.participants;
            status.leaves_forgotten_total += shard.leaves_forgotten();
            status.invariant_violations += shard.violations();
        }
        status.calls = status.placed + status.awaiting;
        status
    }

    fn zones_failing(&self) -> Vec<ZoneView> {
        let snapshot = self.ctx.catalogue.now();
        let failing = snapshot.zones.values().filter(|zone| zone.is_failing());
        let mut failing: Vec<_> =
            failing.map(|zone| ZoneView { region: zone.region.clone(), zone: zone.id.clone() }).collect();
        failing.sort_unstable();
        failing
    }

    fn sfu_counts(&self) -> SfuCounts {
        let mut counts = SfuCounts::default();
        for sfu in &self.ctx.catalogue.now().all {
            match sfu.verdict() {
                Verdict::Healthy => counts.healthy += 1,
                Verdict::Slow => counts.slow += 1,
                Verdict::Suspect => counts.suspect += 1,
                Verdict::Restarted => counts.restarted += 1,
                Verdict::Dead => counts.dead += 1,
            }
            counts.cordoned += u32::from(sfu.is_cordoned());
            counts.draining += u32::from(sfu.is_draining());
            counts.quarantined += u32::from(sfu.is_quarantined());
        }
        counts
    }

    /// The last news of the calls in which `gateway` has sessions, a page of at most 64 from `at` on, and
    /// where the next page begins: what a new watcher, or one that fell behind, reads. A page holds one
    /// shard's lock for ~100 µs, however many calls there are.
    #[must_use]
    pub fn announcements_for(&self, gateway: &GatewayId, at: NewsCursor) -> (Vec<Announcement>, Option<NewsCursor>) {
        let Some(shard) = self.ctx.shards.get(at.shard) else { return (Vec::new(), None) };
        let page = shard.lock().news_for(gateway, at.after, NEWS_PAGE_MAX);
        let next = match page.next {
            Some(after) => Some(NewsCursor { shard: at.shard, after: Some(after) }),
            None => Some(NewsCursor { shard: at.shard + 1, after: None }).filter(|c| c.shard < self.ctx.shards.len()),
        };
        (page.news.into_iter().map(|n| self.ctx.to_announcement(n)).collect(), next)
    }

    /// The last news of one call, if `gateway` has sessions in it.
    #[must_use]
    pub fn announcement_for(&self, gateway: &GatewayId, guild: &GuildId, call: &CallId) -> Option<Announcement> {
        let news = self.ctx.shard(slot_of(guild)).lock().news_about(gateway, guild, call)?;
        Some(self.ctx.to_announcement(news))
    }

    pub(super) fn view(&self, call: &Call, now: Instant) -> CallView {
        let seat = call.placement.seated().map(|(_, _, seat)| seat);
        let (room, endpoint) =
            seat.map(|seat| (seat.room(&call.guild, &call.id), seat.endpoint(&call.guild, &call.id))).unzip();
        let name = |idx: Option<SfuIdx>| idx.and_then(|idx| self.ctx.catalogue.get(idx)).map(|s| s.id.clone());
        let [on, to] = call.placement.sfus();
        CallView {
            guild: call.guild.clone(),
            call: call.id.clone(),
            kind: call.kind,
            region: call.region.clone(),
            participants: u32::try_from(call.participants.len()).unwrap_or(u32::MAX),
            state: state(call),
            sfu: name(on),
            moving_to: name(to),
            room,
            endpoint,
            epoch: call.placement.epoch(),
            awaiting_ms: call
                .awaiting_since
                .map(|since| u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

fn state(call: &Call) -> CallState {
    match (call.is_live(), call.placement.is_placed()) {
        (false, _) => CallState::Ending,
        (true, true) => CallState::Placed,
        (true, false) => CallState::Awaiting,
    }
}

pub(super) fn find<'a>(shard: &'a Shard, guild: &GuildId, call: &CallId) -> Option<&'a Call> {
    shard.find(guild, call).and_then(|k| shard.get(k))
}
