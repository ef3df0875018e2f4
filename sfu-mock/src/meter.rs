//! Counts of what arrived, by node, region and overall. They outlive restarts of a node.

use serde::Serialize;
use sfu_api::{RegionId, SfuId};

use crate::budget::{Budgets, Gauge, Overdrawn};
use crate::rooms::Tally;

/// Resolution of [`Peak`].
const TICK_US: u64 = 10_000;
/// A second and one tick: any second lies within so many whole ticks, so that a peak is never
/// reported too low.
const TICKS: usize = 101;

/// What the cluster counted since it started.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    /// Rooms made.
    pub creates: u64,
    /// Rooms ended by a request.
    pub ends: u64,
    /// Operations refused for other reasons than fencing.
    pub refused: u64,
    /// Operations refused because a higher term or epoch was seen.
    pub fenced: u64,
    /// Sessions attached to rooms.
    pub attaches: u64,
    /// Requests that reached a handler.
    pub requests: u64,
    /// Answers replaced by an injected error or garbage.
    pub injected: u64,
    /// Creations that broke a budget, since the budgets were set.
    pub overdrawn: Overdrawn,
    /// Most creations in any second.
    pub max_creates_per_s: PeakRates,
    /// The same for each node.
    pub per_node: Vec<NodeStats>,
}

/// Most creations in any second (at a resolution of 10 ms, never too low).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeakRates {
    /// Of the busiest SFU.
    pub sfu: u32,
    /// Of the busiest region.
    pub region: u32,
    /// Of all SFUs together.
    pub overall: u32,
}

/// What one node counted since the cluster started, over all its incarnations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeStats {
    /// The node.
    pub id: SfuId,
    /// Its region.
    pub region: RegionId,
    /// Rooms made.
    pub creates: u64,
    /// Rooms ended by a request.
    pub ends: u64,
    /// Operations refused for other reasons than fencing.
    pub refused: u64,
    /// Operations refused because a higher term or epoch was seen.
    pub fenced: u64,
    /// Sessions attached to rooms.
    pub attaches: u64,
    /// Requests that reached a handler.
    pub requests: u64,
    /// Answers replaced by an injected error or garbage.
    pub injected: u64,
    /// Creations that broke this SFU's budget, since the budgets were set.
    pub overdrawn: u64,
    /// Most creations in any second.
    pub max_creates_per_s: u32,
}

/// Counts of a whole cluster. Time is in microseconds since any fixed moment.
#[derive(Debug)]
pub(crate) struct Meter {
    budgets: Budgets,
    overdrawn: Overdrawn,
    nodes: Vec<NodeMeter>,
    regions: Vec<Level>,
    overall: Level,
}

#[derive(Debug)]
struct NodeMeter {
    stats: NodeStats,
    region: usize,
    level: Level,
}

/// One stream of creations: does it keep its budget, and what was its peak?
#[derive(Debug, Default)]
struct Level {
    gauge: Gauge,
    peak: Peak,
}

/// The most events in any second, in constant memory: a ring of ticks.
#[derive(Debug)]
struct Peak {
    ticks: [u32; TICKS],
    tick: u64,
    sum: u32,
    max: u32,
}

// === impl Meter ===

impl Meter {
    /// A meter of nodes, each with the index of its region.
    pub(crate) fn new(nodes: impl IntoIterator<Item = (SfuId, RegionId, usize)>) -> Self {
        let nodes: Vec<_> = nodes
            .into_iter()
            .map(|(id, region, index)| NodeMeter {
                stats: NodeStats::new(id, region),
                region: index,
                level: Level::default(),
            })
            .collect();
        let regions = nodes.iter().map(|node| node.region + 1).max().unwrap_or(0);
        let regions = (0..regions).map(|_| Level::default()).collect();
        Self { budgets: Budgets::default(), overdrawn: Overdrawn::default(), nodes, regions, overall: Level::default() }
    }

    /// Checks creations against these budgets from now on, with nothing on record.
    pub(crate) fn set_budgets(&mut self, budgets: Budgets) {
        self.budgets = budgets;
        self.overdrawn = Overdrawn::default();
        let levels = self.nodes.iter_mut().map(|node| {
            node.stats.overdrawn = 0;
            &mut node.level
        });
        for level in levels.chain(&mut self.regions).chain([&mut self.overall]) {
            level.gauge = Gauge::default();
        }
    }

    pub(crate) fn budgets(&self) -> Budgets {
        self.budgets
    }

    /// Counts one request of a node.
    pub(crate) fn record(&mut self, node: usize, tally: Tally, injected: bool, now_us: u64) {
        let Some(of) = self.nodes.get_mut(node) else { return };
        let stats = &mut of.stats;
        stats.requests += 1;
        stats.injected += u64::from(injected);
        stats.creates += u64::from(tally.creates);
        stats.ends += u64::from(tally.ends);
        stats.refused += u64::from(tally.refused);
        stats.fenced += u64::from(tally.fenced);
        stats.attaches += u64::from(tally.attaches);
        let Budgets { sfu, region, overall, slack_ms } = self.budgets;
        for _ in 0..tally.creates {
            let beyond = u64::from(of.level.create(sfu, slack_ms, now_us));
            of.stats.overdrawn += beyond;
            self.overdrawn.sfu += beyond;
            self.overdrawn.region += u64::from(self.regions[of.region].create(region, slack_ms, now_us));
            self.overdrawn.overall += u64::from(self.overall.create(overall, slack_ms, now_us));
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let sum = |field: fn(&NodeStats) -> u64| self.nodes.iter().map(|node| field(&node.stats)).sum();
        let peak = |levels: &mut dyn Iterator<Item = &Level>| levels.map(|l| l.peak.max).max().unwrap_or(0);
        let per_node =
            self.nodes.iter().map(|node| NodeStats { max_creates_per_s: node.level.peak.max, ..node.stats.clone() });
        Stats {
            creates: sum(|s| s.creates),
            ends: sum(|s| s.ends),
            refused: sum(|s| s.refused),
            fenced: sum(|s| s.fenced),
            attaches: sum(|s| s.attaches),
            requests: sum(|s| s.requests),
            injected: sum(|s| s.injected),
            overdrawn: self.overdrawn,
            max_creates_per_s: PeakRates {
                sfu: peak(&mut self.nodes.iter().map(|node| &node.level)),
                region: peak(&mut self.regions.iter()),
                overall: self.overall.peak.max,
            },
            per_node: per_node.collect(),
        }
    }
}

// === impl NodeStats ===

impl NodeStats {
    fn new(id: SfuId, region: RegionId) -> Self {
        Self {
            id,
            region,
            creates: 0,
            ends: 0,
            refused: 0,
            fenced: 0,
            attaches: 0,
            requests: 0,
            injected: 0,
            overdrawn: 0,
            max_creates_per_s: 0,
        }
    }
}

// === impl Level ===

impl Level {
    fn create(&mut self, budget: Option<crate::Budget>, slack_ms: u64, now_us: u64) -> bool {
        self.peak.count(now_us);
        budget.is_some_and(|budget| self.gauge.create(budget, slack_ms, now_us))
    }
}

// === impl Peak ===

impl Default for Peak {
    fn default() -> Self {
        Self { ticks: [0; TICKS], tick: 0, sum: 0, max: 0 }
    }
}

impl Peak {
    fn count(&mut self, now_us: u64) {
        let ring = u64::try_from(TICKS).unwrap_or(u64::MAX);
        let slot = |tick: u64| usize::try_from(tick % ring).unwrap_or(0);
        let tick = (now_us / TICK_US).max(self.tick);
        for passed in self.tick + 1..=tick.min(self.tick.saturating_add(ring)) {
            self.sum -= std::mem::take(&mut self.ticks[slot(passed)]);
        }
        self.tick = tick;
        self.ticks[slot(tick)] += 1;
        self.sum += 1;
        self.max = self.max.max(self.sum);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Budget;

    fn meter() -> Meter {
        let id = |i| SfuId::new(format!("sfu-{i}")).expect("valid id");
        let region = |i: usize| RegionId::new(["a", "b"][i % 2]).expect("valid id");
        Meter::new((0..4).map(|i| (id(i), region(i), i % 2)))
    }

    fn creates(n: u32) -> Tally {
        Tally { creates: n, ..Tally::default() }
    }

    #[test]
    fn i04_every_level_is_checked_on_its_own() {
        let mut meter = meter();
        let budget = |burst| Some(Budget { rate: 0.0, burst });
        let budgets = Budgets { sfu: budget(2), region: budget(3), overall: budget(5), slack_ms: 0 };
        meter.set_budgets(budgets);
        meter.record(0, creates(3), false, 1);
        meter.record(1, creates(2), false, 2);
        meter.record(2, creates(1), false, 3);
        let stats = meter.stats();
        assert_eq!(stats.overdrawn, Overdrawn { sfu: 1, region: 1, overall: 1 });
        assert_eq!(stats.per_node[0].overdrawn, 1);
        assert_eq!(stats.creates, 6);
        meter.set_budgets(budgets);
        assert_eq!(meter.stats().overdrawn, Overdrawn::default());
    }

    proptest! {
        #[test]
        fn a_peak_is_never_too_low_and_at_most_a_tick_too_wide(gaps in prop::collection::vec(0..300_000u64, 1..200)) {
            let mut peak = Peak::default();
            let mut at = 0;
            let at_us: Vec<u64> = gaps.iter().map(|gap| { at += gap; at }).collect();
            at_us.iter().for_each(|&at| peak.count(at));
            let most_within = |window: u64| {
                (0..at_us.len())
                    .map(|last| at_us[..=last].iter().filter(|&&first| at_us[last] - first < window).count())
                    .max()
            };
            let max = usize::try_from(peak.max).expect("small");
            prop_assert!(Some(max) >= most_within(1_000_000));
            prop_assert!(Some(max) <= most_within(1_000_000 + TICK_US));
        }
    }
}
