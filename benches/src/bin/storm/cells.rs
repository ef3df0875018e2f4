//! The named cells: not the full product of everything, but those that tell something.

use std::ops::Range;

use benches::fleet::{Fault, FleetSpec, Protocol};

/// How long the hosts of `recovery` are away: a blip of a region's network, or a process that starts again. It is drawn
/// anew for each round, for all contestants alike, because how it lies to anybody's time-outs is chance.
const OUTAGE_MS: Range<u64> = 1_000..3_000;

/// One cell.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    /// Its name.
    pub(crate) name: &'static str,
    /// The servers.
    pub(crate) fleet: FleetSpec,
    /// Requests, spread evenly over the hosts in random order, all at once.
    pub(crate) tasks: usize,
    /// The faulty hosts come back after this, and whoever fails tries again.
    pub(crate) outage_ms: Option<Range<u64>>,
    /// Part of a quick run.
    pub(crate) quick: bool,
    /// All contestants instead of the main ones.
    pub(crate) all: bool,
}

// === impl Cell ===

impl Cell {
    fn new(name: &'static str, hosts: u32, tasks: usize) -> Self {
        let fleet = FleetSpec::healthy(hosts);
        Self { name, fleet, tasks, outage_ms: None, quick: false, all: false }
    }

    fn fault(mut self, fault: Fault) -> Self {
        self.fleet.fault = fault;
        self
    }

    fn handler(mut self, handler_ms: u64) -> Self {
        self.fleet.handler_ms = handler_ms;
        self
    }

    fn rtt(mut self, rtt_ms: u64) -> Self {
        self.fleet.rtt_ms = rtt_ms;
        self
    }

    fn protocol(mut self, protocol: Protocol) -> Self {
        self.fleet.protocol = protocol;
        self
    }

    /// The incident itself: everybody reconnects at once while a fifth of the hosts is away, and those come back in the
    /// middle of it. Who fails tries again, as clients do: where the pool tells its callers at once, that is all that
    /// brings them back. What counts is how soon everybody has an answer, and what that costs those who could have had
    /// one at once.
    fn outage(mut self, outage_ms: Range<u64>) -> Self {
        self.outage_ms = Some(outage_ms);
        self
    }

    fn quick(mut self) -> Self {
        self.quick = true;
        self
    }

    fn all(mut self) -> Self {
        self.all = true;
        self
    }
}

/// All cells, those that matter most first.
pub(crate) fn cells() -> Vec<Cell> {
    vec![
        Cell::new("plain_100h_h2_2k", 100, 2_000).quick().all(),
        Cell::new("blackhole_100h_h2_2k", 100, 2_000).fault(Fault::BlackHole).quick().all(),
        Cell::new("one_host_h2_2k", 1, 2_000).quick(),
        Cell::new("slow_100h_h2_2k_200ms", 100, 2_000).handler(200),
        Cell::new("slow_1h_h2_2k_200ms", 1, 2_000).handler(200),
        Cell::new("plain_500h_h2_2k", 500, 2_000),
        Cell::new("refused_100h_h2_2k", 100, 2_000).fault(Fault::Refused),
        Cell::new("resets_100h_h2_2k", 100, 2_000).fault(Fault::Resets),
        Cell::new("plain_100h_h1_2k", 100, 2_000).protocol(Protocol::Http1),
        Cell::new("mixed_100h_2k_rtt20", 100, 2_000).protocol(Protocol::Mixed).rtt(20),
        Cell::new("far_100h_h2_2k_rtt100", 100, 2_000).rtt(100),
        Cell::new("blackhole_500h_h2_10k", 500, 10_000).fault(Fault::BlackHole),
        Cell::new("recovery_100h_h2_10k", 100, 10_000).fault(Fault::BlackHole).outage(OUTAGE_MS),
        Cell::new("plain_100h_h2_50k", 100, 50_000),
    ]
}
