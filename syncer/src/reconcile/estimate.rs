//! How long what waits will take, and what makes it take that long. Pure.
//!
//! A wait for work that leaves through limits ends when the slowest of them has let everything through.
//! So each limit is asked how long it needs for its part of the demand, and the longest answer is the
//! estimate, with the name of the limit that gave it: an operator who turns any other one gains
//! nothing. Nothing here knows why SFUs answer slowly or refuse; that is what [measuring](super::Pace)
//! is for, and the longer of both estimates counts.

use std::sync::Arc;

use serde::Serialize;
use sfu_api::RegionId;

use crate::config::RegionGroups;
use crate::state::{Class, Demand, Turns};

/// What may leave per second, and what may leave at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// Placements per second.
    pub rate_per_s: f64,
    /// Placements that may go now.
    pub tokens: u32,
}

/// What one region can take.
#[derive(Clone, Debug, PartialEq)]
pub struct RegionSupply {
    /// The region.
    pub region: RegionId,
    /// Its bucket.
    pub bucket: Flow,
    /// The buckets of its SFUs that are in order, together.
    pub sfus: Flow,
    /// Calls that those can still carry.
    pub room: u64,
}

/// What the fleet can take from this syncer.
#[derive(Clone, Debug, PartialEq)]
pub struct Supply {
    /// A lever stops all placements.
    pub paused: bool,
    /// How the classes share the pace.
    pub turns: Turns,
    /// The bucket over all SFUs.
    pub overall: Flow,
    /// By region.
    pub regions: Vec<RegionSupply>,
    /// Whether calls may leave a region that has no SFU for them.
    pub any_region: bool,
    /// Regions whose SFUs they may go to all the same.
    pub groups: Arc<RegionGroups>,
    /// Attempts that may be in flight.
    pub window: u32,
    /// How long an attempt takes, in seconds.
    pub attempt_s: f64,
}

/// What determines how long it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Limit {
    /// The lever `placement.paused`.
    Paused,
    /// The pace over all SFUs: the lever `placement.overall.rate`.
    Pace,
    /// The bucket of a region: the lever `placement.region.rate`.
    Region {
        /// The region.
        #[schema(value_type = String)]
        region: RegionId,
    },
    /// The buckets of the SFUs that are in order: the lever `placement.sfu.rate`, or too few of them.
    Sfus {
        /// Their region; absent: all of them.
        #[schema(value_type = Option<String>)]
        region: Option<RegionId>,
    },
    /// No SFU that is in order has room: nothing is placed until one has.
    NoSfu {
        /// The region; absent: anywhere.
        #[schema(value_type = Option<String>)]
        region: Option<RegionId>,
    },
    /// This syncer's window of attempts in flight.
    Window,
    /// The attempts themselves: SFUs answer slowly or refuse.
    Attempts,
}

/// When everything is done, and what it depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Seconds; `None`: never, as things are.
    pub seconds: Option<f64>,
    /// What it depends on.
    pub limit: Limit,
}

// === impl Flow ===

impl Flow {
    /// Seconds until `calls` are through; infinite when they never are.
    fn seconds(self, calls: u64) -> f64 {
        let left = calls.saturating_sub(u64::from(self.tokens)) as f64;
        if left > 0.0 { left / self.rate_per_s } else { 0.0 }
    }

    fn add(&mut self, other: Self) {
        self.rate_per_s += other.rate_per_s;
        self.tokens = self.tokens.saturating_add(other.tokens);
    }
}

// === impl RegionSupply ===

impl RegionSupply {
    /// The tighter of its two limits.
    fn flow(&self) -> Flow {
        Flow {
            rate_per_s: self.bucket.rate_per_s.min(self.sfus.rate_per_s),
            tokens: self.bucket.tokens.min(self.sfus.tokens),
        }
    }
}

// === impl Limit ===

impl Limit {
    /// For people.
    #[must_use]
    pub fn words(&self) -> String {
        let of = |region: &Option<RegionId>| region.as_ref().map_or_else(String::new, |r| format!(" of region {r}"));
        match self {
            Self::Paused => "placements are paused (lever placement.paused)".to_owned(),
            Self::Pace => "the pace over all SFUs (lever placement.overall.rate)".to_owned(),
            Self::Region { region } => format!("the bucket of region {region} (lever placement.region.rate)"),
            Self::Sfus { region } => format!("the buckets of the SFUs{} (lever placement.sfu.rate)", of(region)),
            Self::NoSfu { region } => format!("no SFU{} that is in order has room", of(region)),
            Self::Window => "this syncer's window of attempts in flight".to_owned(),
            Self::Attempts => "the SFUs: they answer slowly or refuse".to_owned(),
        }
    }
}

// === impl Supply ===

impl Supply {
    /// How long `demand` takes. Without demand, no time, at the pace.
    #[must_use]
    pub fn estimate(&self, demand: &Demand) -> Estimate {
        if self.paused {
            return Estimate { seconds: None, limit: Limit::Paused };
        }
        let total = demand.total();
        let mut worst = (self.overall.seconds(total), Limit::Pace);
        let mut offer = |seconds: f64, limit: Limit| {
            if seconds > worst.0 {
                worst = (seconds, limit);
            }
        };
        offer(total as f64 * self.attempt_s / f64::from(self.window.max(1)), Limit::Window);
        let (mut everywhere, mut room) = (Flow::default(), 0u64);
        for own in &self.regions {
            everywhere.add(own.flow());
            room = room.saturating_add(own.room);
        }
        if room < total {
            offer(f64::INFINITY, Limit::NoSfu { region: None });
        }
        offer(everywhere.seconds(total), Limit::Sfus { region: None });
        for (region, calls) in demand.regions() {
            let (Some(region), calls) = (region, calls.iter().sum::<u64>()) else { continue };
            match self.regions.iter().find(|own| own.region == *region).filter(|own| own.room > 0) {
                Some(own) => {
                    if own.room < calls && !self.has_room_elsewhere(region, calls) {
                        offer(f64::INFINITY, Limit::NoSfu { region: Some(region.clone()) });
                    }
                    let calls = calls.min(own.room);
                    offer(own.sfus.seconds(calls), Limit::Sfus { region: Some(region.clone()) });
                    offer(own.bucket.seconds(calls), Limit::Region { region: region.clone() });
                }
                None if self.has_room_elsewhere(region, calls) => {} // they go there, which is looked at above
                None => offer(f64::INFINITY, Limit::NoSfu { region: Some(region.clone()) }),
            }
        }
        let (seconds, limit) = worst;
        let last = if total > 0 { self.attempt_s } else { 0.0 };
        Estimate { seconds: seconds.is_finite().then_some(seconds + last), limit }
    }

    /// Whether calls that their region has no room for may go elsewhere; that there is room anywhere is looked at
    /// for all regions together.
    fn has_room_elsewhere(&self, region: &RegionId, calls: u64) -> bool {
        let group = self.groups.of(region);
        let room = self.regions.iter().filter(|own| group.contains(&own.region)).map(|own| own.room);
        self.any_region || room.fold(0, u64::saturating_add) >= calls.max(1)
    }

    /// How long a class takes beside the others, which is at most as long as everything takes.
    #[must_use]
    pub fn estimate_of(&self, class: Class, demand: &Demand) -> Estimate {
        let all = self.estimate(demand);
        let alone = self.estimate(&demand.only(class));
        let beside = alone.seconds.map(|seconds| seconds / self.turns.share(class));
        match (beside, all.seconds) {
            (Some(beside), Some(all)) if all < beside => Estimate { seconds: Some(all), ..alone },
            _ => Estimate { seconds: beside, ..alone },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region(n: usize) -> RegionId {
        RegionId::new(format!("r{n}")).expect("valid")
    }

    fn supply(regions: usize) -> Supply {
        let flow = |rate_per_s| Flow { rate_per_s, tokens: 0 };
        let one = |n| RegionSupply { region: region(n), bucket: flow(200.0), sfus: flow(1_000.0), room: 1_000_000 };
        Supply {
            paused: false,
            turns: Turns::new(3, 1),
            overall: flow(400.0),
            regions: (0..regions).map(one).collect(),
            any_region: true,
            groups: Arc::default(),
            window: 512,
            attempt_s: 0.0,
        }
    }

    fn demand(calls: &[u64]) -> Demand {
        let mut demand = Demand::default();
        for (n, calls) in calls.iter().enumerate() {
            demand.add(Some(&region(n)), Class::Repair, *calls);
        }
        demand
    }

    #[test]
    fn the_slowest_limit_is_named() {
        let s = supply(3);
        let of = |s: &Supply, calls: &[u64]| {
            let Estimate { seconds, limit } = s.estimate(&demand(calls));
            (seconds.map(f64::round), limit)
        };
        assert_eq!(of(&s, &[100, 100, 100]), (Some(1.0), Limit::Pace));
        assert_eq!(of(&s, &[4_000, 0, 0]), (Some(20.0), Limit::Region { region: region(0) }));
        let mut few = s.clone();
        few.regions[1].sfus.rate_per_s = 20.0;
        assert_eq!(of(&few, &[100, 400, 100]), (Some(20.0), Limit::Sfus { region: Some(region(1)) }));
        let mut slow = s.clone();
        (slow.window, slow.attempt_s) = (8, 1.0);
        assert_eq!(of(&slow, &[800, 0, 0]), (Some(101.0), Limit::Window));
        let mut full = s.clone();
        full.regions[2].room = 0;
        assert_eq!(of(&full, &[0, 0, 400]), (Some(1.0), Limit::Pace), "they may go elsewhere");
        full.any_region = false;
        assert_eq!(of(&full, &[0, 0, 400]), (None, Limit::NoSfu { region: Some(region(2)) }));
        let group = [("g".to_owned(), vec![region(1), region(2)])].into();
        full.groups = Arc::new(RegionGroups::new(group).expect("valid"));
        assert_eq!(of(&full, &[0, 0, 400]), (Some(1.0), Limit::Pace), "its group has room");
        full.regions[1].room = 399;
        assert_eq!(of(&full, &[0, 0, 400]), (None, Limit::NoSfu { region: Some(region(2)) }));
        assert_eq!(of(&Supply { paused: true, ..s.clone() }, &[1]), (None, Limit::Paused));
        assert_eq!(of(&s, &[]), (Some(0.0), Limit::Pace));
    }

    #[test]
    fn a_class_is_done_by_its_turns_or_with_all_the_rest() {
        let s = supply(3);
        let mut demand = demand(&[2_000, 2_000, 2_000]);
        demand.add(Some(&region(0)), Class::New, 30);
        let of = |class| s.estimate_of(class, &demand).seconds.expect("it ends");
        assert!((of(Class::New) - 30.0 / 200.0 / 0.15).abs() < 1e-9, "{}", of(Class::New));
        assert!((of(Class::Repair) - 6_030.0 / 400.0).abs() < 1e-9, "the few new calls cost little");
    }

    proptest! {
        /// More demand, or less of anything, never takes less time.
        #[test]
        fn an_estimate_is_monotone(calls in prop::collection::vec(0u64..5_000, 0..4), more in 0u64..500, cut in 0.1f64..1.0) {
            let s = supply(3);
            let seconds = |s: &Supply, d: &Demand| s.estimate(d).seconds.unwrap_or(f64::INFINITY);
            let before = seconds(&s, &demand(&calls));
            let mut bigger = demand(&calls);
            bigger.add(None, Class::New, more);
            prop_assert!(seconds(&s, &bigger) >= before);
            for n in 0..s.regions.len() {
                let mut less = s.clone();
                less.regions[n].bucket.rate_per_s *= cut;
                prop_assert!(seconds(&less, &demand(&calls)) >= before);
            }
        }
    }
}
