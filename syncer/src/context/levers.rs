//! The limits of a syncer that an operator can turn while it runs.
//!
//! Here are those of the engine; those of the HTTP server are `api::HttpLevers`, those of the watch `watch::WatchLevers`,
//! of what is said to other syncers `peer::PeerLevers`, of tokens `token::TokenLevers`, and the pool has its own for each
//! lane. What stays a constant, and why: `docs/decisions/0038-which-limits-are-levers.md`.

use std::time::Duration;

use rate_limit::Quota;

use super::SHARDS;
use crate::admission;
use crate::health::{FlapRules, Rules};
use crate::presence;
use crate::select::Quotas;
use crate::state::{Limits, Turns};

/// A struct of levers, and how it is registered.
macro_rules! lever_set {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[doc = $help:literal])+ $field:ident: $ty:ty =
        $lever:literal [$unit:literal] $default:expr, $min:expr => $max:expr;)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name { $($(#[doc = $help])+ pub $field: ::rate_limit::Lever<$ty>,)* }

        impl $name {
            /// Registers every lever with its default.
            #[must_use]
            pub fn register(levers: &::rate_limit::Levers) -> Self {
                Self { $($field: levers.register(::rate_limit::LeverSpec {
                    name: $lever,
                    doc: concat!($($help),+).trim_ascii(),
                    unit: $unit,
                    default: $default,
                    min: $min,
                    max: $max,
                }),)* }
            }
        }
    };
}
pub(crate) use lever_set;

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

lever_set! {
    /// The levers of the engine. Rates and bursts are those of the whole fleet; every syncer takes
    /// its share of them.
    pub struct EngineLevers {
        /// Room creations per second on all SFUs together: the pace of every recovery.
        overall_rate: f64 = "placement.overall.rate" ["per second"] 400.0, 0.0 => 100_000.0;
        /// Room creations on all SFUs that may go at once.
        overall_burst: u64 = "placement.overall.burst" ["creations"] 100, 0 => 100_000;
        /// Room creations per second on the SFUs of one region.
        region_rate: f64 = "placement.region.rate" ["per second"] 200.0, 0.0 => 100_000.0;
        /// Room creations on the SFUs of one region that may go at once.
        region_burst: u64 = "placement.region.burst" ["creations"] 60, 0 => 100_000;
        /// Room creations per second on one SFU.
        sfu_rate: f64 = "placement.sfu.rate" ["per second"] 20.0, 0.0 => 10_000.0;
        /// Room creations on one SFU that may go at once.
        sfu_burst: u64 = "placement.sfu.burst" ["creations"] 15, 0 => 10_000;
        /// Attempts of one syncer that are under way at once, however well they go. What is found between a few and this
        /// follows from how they end.
        in_flight_max: u64 = "placement.in_flight_max" ["attempts"] 512, 8 => 100_000;
        /// Attempts on one SFU that are under way at once, however well they go.
        sfu_in_flight_max: u64 = "placement.sfu.in_flight_max" ["attempts"] 64, 1 => 10_000;
        /// How long a call waits for its own SFU, which restarted, to have a token again before it goes elsewhere.
        /// One whose people are in its room waits for a token as long as it takes, and this long for an SFU that is
        /// suspect or asked for patience.
        in_place_max: Duration = "placement.in_place_max" ["duration"] S(10), S(0) => S(600);
        /// Planned moves of calls per second in the whole fleet: drains, never repairs.
        moves_rate: f64 = "moves.rate" ["per second"] 20.0, 0.0 => 10_000.0;
        /// Planned moves that may go at once.
        moves_burst: u64 = "moves.burst" ["calls"] 5, 0 => 10_000;
        /// Whether a call may go to any region when its own, and the group of that, have no SFU left.
        any_region: bool = "placement.any_region" [""] true, false => true;
        /// Share of a zone's SFUs that must fail, and two at least, for new calls to go to other zones if they can;
        /// 1 means never.
        zone_failing_share: f64 = "placement.zone_failing_share" ["share"] 0.5, 0.0 => 1.0;
        /// Stops all placements: the global throttle at its lowest step.
        paused: bool = "placement.paused" [""] false, false => true;
        /// Of every 20 placements, how many are the turn of new calls, whatever else waits. The others go to who is most
        /// urgent, repairs before all. So it is what a long repair leaves to new calls, at the door too, and how much
        /// longer it takes: at 3 and 1 up to a fourth, at 8 and 4 up to two and a half times.
        turns_new_calls: u64 = "placement.turns.new_calls" ["of 20"] 3, 1 => Turns::NEW_CALLS_MAX;
        /// Of every 20 placements, how many are the turn of streams, whatever else waits. New calls that wait count
        /// against streams at the door, so that streams are turned away first.
        turns_streams: u64 = "placement.turns.streams" ["of 20"] 1, 1 => Turns::STREAMS_MAX;
        /// How long one attempt to create a room may take, connecting included.
        attempt_timeout: Duration = "placement.attempt_timeout" ["duration"] S(3), MS(100) => S(30);
        /// Rooms being ended at the same time, apart from the permits of placements.
        release_in_flight_max: u64 = "release.in_flight_max" ["operations"] 16, 1 => 1_000;
        /// Rooms to be ended that are remembered, each with when it is tried (again). Those beyond are forgotten until the
        /// rooms of their SFU are compared: an orphan costs an SFU a little memory, a list without bound this syncer.
        releases_max: u64 = "release.remembered_max" ["rooms"] 100_000, 0 => 10_000_000;
        /// New calls and streams per second that the fleet admits, whichever guild asks.
        new_calls_rate: f64 = "admission.new_calls.rate" ["per second"] 5_000.0, 0.0 => 1_000_000.0;
        /// New calls and streams that the fleet admits at once.
        new_calls_burst: u64 = "admission.new_calls.burst" ["calls"] 10_000, 0 => 1_000_000;
        /// Part of that which one guild may take while others need theirs; as long as less than half is
        /// used, anybody may take the rest.
        guild_share: f64 = "admission.guild_share" ["share"] 0.1, 0.0 => 1.0;
        /// The global throttle: how far the door is open for sessions, new calls and streams. It shuts
        /// at once and opens in steps of 0.1, one a second.
        throttle: f64 = "admission.throttle" ["share"] 1.0, 0.0 => 1.0;
        /// Turns away every session that would join a call which has begun; one that begins a call is of the next two.
        block_joins: bool = "admission.block.joins" [""] false, false => true;
        /// Turns away every new voice call.
        block_new_calls: bool = "admission.block.new_calls" [""] false, false => true;
        /// Turns away every new stream.
        block_streams: bool = "admission.block.streams" [""] false, false => true;
        /// Age of the oldest call that waits for a place, its turn come, at which new ones are turned away,
        /// streams first. As many may wait as the pace of placements serves in this time.
        queue_age_max: Duration = "admission.queue_age_max" ["duration"] S(10), MS(100) => S(86_400);
        /// How late the process's own timer may be before work is turned away: sweeps, streams, new calls,
        /// joins, in this order.
        lag_max: Duration = "admission.lag_max" ["duration"] S(1), MS(10) => S(60);
        /// Resident memory at which every session is turned away; streams are from 90 % of it on, new calls
        /// from 95 %. 0: nine tenths of what the machine or the control group has.
        memory_max: u64 = "admission.memory_max" ["bytes"] 0, 0 => 1 << 50;
        /// Narrowest span of `Retry-After`, in whole seconds: callers that are turned away at one moment come back spread
        /// over so long, and none before it is his turn. Where a limit tells the turn, the farthest is 30 s away.
        retry_span_min: Duration = "admission.retry_span_min" ["duration"] S(4), S(1) => S(30);
        /// Calls that one guild may have.
        calls_per_guild_max: u64 = "admission.calls_per_guild_max" ["calls"] 10_000, 1 => 1_000_000;
        /// Sessions that one call may have.
        participants_per_call_max: u64 = "admission.participants_per_call_max" ["sessions"] 5_000, 1 => 1_000_000;
        /// Leaves that are remembered for a minute, so that a join which was sent before and comes later brings nobody back;
        /// each takes 40 to 100 bytes. Beyond, the oldest are forgotten earlier, and counted (`leaves_forgotten_total`). Guilds
        /// share it in sixteen parts.
        left_remembered_max: u64 = "calls.left_remembered_max" ["leaves"] 640_000, 16 => 100_000_000;
        /// How long a call without sessions keeps its place, so that a reconnect finds it.
        empty_grace: Duration = "calls.empty_grace" ["duration"] S(5), MS(0) => S(3_600);
        /// Silence after which a gateway that used to send heartbeats has vanished: no heartbeat, no watch
        /// and no bulk stream.
        gateway_alive_for: Duration = "gateways.alive_for" ["duration"] S(30), MS(200) => S(3_600);
        /// How long the sessions of a vanished gateway are kept, and those that a gateway did not tell
        /// again.
        resume_window: Duration = "gateways.resume_window" ["duration"] S(120), MS(0) => S(86_400);
        /// How much longer sessions of a vanished gateway are kept at most while people may talk in their calls; 0:
        /// never, and SFUs are not asked. It is a bound for SFUs that count somebody for ever.
        kept_max: Duration = "gateways.kept_max" ["duration"] S(3_600), MS(0) => S(86_400);
        /// Share of the gateways that may be gone at once before their sessions stop expiring: then it is
        /// probably us. Two or fewer never stop it.
        gateway_freeze_share: f64 = "gateways.freeze_share" ["share"] 0.5, 0.0 => 1.0;
        /// Watches that a gateway may have open at one syncer; with one more its oldest ends. It needs one, two while
        /// its process is replaced, as many again when connections broke without a word; the rest is to spare.
        gateway_watches_max: u64 = "gateways.watches_max" ["watches"] 8, 1 => 8_192;
        /// Sessions that this syncer lets expire per second.
        expire_rate: f64 = "gateways.expire.rate" ["per second"] 5_000.0, 0.0 => 1_000_000.0;
        /// How often an SFU that holds calls is asked for a sign of life, unless it gave one.
        probe_interval: Duration = "health.probe_interval" ["duration"] S(2), MS(100) => S(300);
        /// How often a suspect or dead SFU is tried on a fresh connection.
        suspect_probe_interval: Duration = "health.suspect_probe_interval" ["duration"] MS(700), MS(50) => S(300);
        /// How long a sign of life may take.
        probe_timeout: Duration = "health.probe_timeout" ["duration"] S(2), MS(50) => S(30);
        /// Fresh connections that must be refused or reset in a row before an SFU is dead.
        dead_failures: u64 = "health.dead_failures" ["connections"] 3, 1 => 100;
        /// Time that the first and the last of them must be apart.
        dead_window: Duration = "health.dead_window" ["duration"] S(2), MS(0) => S(600);
        /// Time without any good sign after which a suspect SFU's calls move; 0 means never.
        suspect_max: Duration = "health.suspect_max" ["duration"] S(600), MS(0) => S(86_400);
        /// Share of the fleet that may be suspect before silence stops counting as death: then it is
        /// probably us. Hard evidence still moves calls.
        freeze_share: f64 = "health.freeze_share" ["share"] 0.5, 0.0 => 1.0;
        /// Ends a freeze by hand: silence counts as death again, however much of the fleet is silent.
        freeze_lifted: bool = "health.freeze_lifted" [""] false, false => true;
        /// How long an SFU that fell for the second time is kept out of selection when it is back; twice as
        /// long after each further fall; 0 means never.
        flap_hold: Duration = "health.flap_hold" ["duration"] S(5), S(0) => S(3_600);
        /// The longest time an SFU is kept out of selection for falling again and again.
        flap_hold_max: Duration = "health.flap_hold_max" ["duration"] S(600), S(0) => S(86_400);
        /// How long an SFU must not fall for one of its falls to be forgotten.
        flap_forget: Duration = "health.flap_forget" ["duration"] S(600), S(1) => S(86_400);
        /// An answer that takes longer is late; three late ones make an SFU slow.
        slow_after: Duration = "health.slow_after" ["duration"] S(1), MS(10) => S(30);
        /// How often rooms are compared with each SFU.
        digest_interval: Duration = "digest.interval" ["duration"] S(60), S(1) => S(3_600);
        /// Stops comparing rooms and removing orphans.
        digest_paused: bool = "digest.paused" [""] false, false => true;
        /// How long after a change of membership a share of the limits may grow.
        grow_after: Duration = "limits.grow_after" ["duration"] S(10), S(0) => S(600);
    }
}

// === impl EngineLevers ===

impl EngineLevers {
    /// The limits of placement.
    #[must_use]
    pub fn quotas(&self) -> Quotas {
        Quotas {
            overall: quota(self.overall_rate.get(), self.overall_burst.get()),
            region: quota(self.region_rate.get(), self.region_burst.get()),
            sfu: quota(self.sfu_rate.get(), self.sfu_burst.get()),
            grow_after: self.grow_after.get(),
        }
    }

    /// How the classes share the pace.
    #[must_use]
    pub fn turns(&self) -> Turns {
        Turns::new(self.turns_new_calls.get(), self.turns_streams.get())
    }

    /// The budget of planned moves.
    #[must_use]
    pub fn moves(&self) -> Quota {
        quota(self.moves_rate.get(), self.moves_burst.get())
    }

    /// What admission goes by, for one of `parts` syncers that places `pace_per_s` calls a second.
    #[must_use]
    pub fn admission(&self, parts: u32, pace_per_s: f64) -> admission::Settings {
        admission::Settings {
            children: quota(self.new_calls_rate.get(), self.new_calls_burst.get()).share(parts),
            parts,
            guild_share: self.guild_share.get(),
            throttle: self.throttle.get(),
            retry_span_min: self.retry_span_min.get(),
            blocked: [self.block_joins.get(), self.block_new_calls.get(), self.block_streams.get()],
            rules: admission::Rules {
                queue_age_max: self.queue_age_max.get(),
                lag_max: self.lag_max.get(),
                pace_per_s,
                turns: self.turns(),
            },
        }
    }

    /// The size limits of calls and guilds; no session is admitted by itself.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            calls_per_guild_max: self.calls_per_guild_max.get(),
            participants_per_call_max: self.participants_per_call_max.get(),
            left_remembered_max: usize::try_from(self.left_remembered_max.get()).unwrap_or(usize::MAX) / SHARDS,
            empty_grace: self.empty_grace.get(),
            admit_sessions: false,
        }
    }

    /// The rules of presence.
    #[must_use]
    pub fn presence(&self) -> presence::Rules {
        presence::Rules {
            alive_for: self.gateway_alive_for.get(),
            resume_window: self.resume_window.get(),
            kept_max: self.kept_max.get(),
            ask_every: self.digest_interval.get(),
            freeze_share: self.gateway_freeze_share.get(),
        }
    }

    /// The pace at which sessions expire: a tenth of a second's worth at once.
    #[must_use]
    pub fn expire(&self) -> Quota {
        let rate = self.expire_rate.get();
        quota(rate, (rate / 10.0).ceil() as u64)
    }

    /// The rules of the verdicts, as far as they are levers.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules {
            dead_failures: u32::try_from(self.dead_failures.get()).unwrap_or(u32::MAX),
            dead_window: self.dead_window.get(),
            suspect_max: self.suspect_max.get(),
            slow_after: self.slow_after.get(),
            flaps: FlapRules {
                hold: self.flap_hold.get(),
                hold_max: self.flap_hold_max.get(),
                forget: self.flap_forget.get(),
            },
            ..Rules::default()
        }
    }
}

fn quota(rate_per_s: f64, burst: u64) -> Quota {
    let burst = u32::try_from(burst).unwrap_or(u32::MAX);
    Quota::new(rate_per_s, burst).unwrap_or(Quota::CLOSED) // the levers' ranges are inside the quota's
}

#[cfg(test)]
pub(crate) mod tests;
