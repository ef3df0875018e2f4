//! Limits that move, peers that fall silent, servers that keep connections as long as they like, and drains.

use super::*;

/// How long a connection may idle, and until when it does if nobody takes it.
#[derive(Debug)]
pub(super) struct Idling {
    span: Duration,
    until: Instant,
}

/// Any limits that are no larger than those the model begins with.
pub(super) fn retune() -> impl Strategy<Value = Op> {
    let limits = (1..=CONNECTIONS_MAX, 1..=STREAMS_MAX, 1..=WAITERS_MAX, 50..=400_u64);
    limits.prop_map(|(connections, streams, waiters, idle_ms)| Op::Retune { connections, streams, waiters, idle_ms })
}

// === impl Idling ===

impl Idling {
    pub(super) fn new(now: Instant, span: Duration) -> Self {
        Self { span, until: now + span }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        now > self.until
    }
}

// === impl Model ===

impl Model {
    /// As the partition does it: the limits first, then those are told whom it concerns.
    pub(super) fn retune(&mut self, connections: usize, streams: usize, waiters: usize, idle_timeout: Duration) {
        self.check_limits(self.cell.counts());
        self.limits.connections_per_origin_max = connections;
        self.limits.h2_streams_max = streams;
        self.limits.waiters_per_origin_max = waiters;
        self.limits.idle_timeout = idle_timeout;
        self.tuning.set(&self.limits, SLOTS);
        let counts = self.cell.counts();
        if counts.waiters == 0 && counts.live <= connections {
            return;
        }
        self.step(Event::Retune, None);
        let idle = self.cell.counts().idle;
        assert!(self.cell.conns.usable() <= connections || idle == 0, "{idle} are idle beyond a cap of {connections}");
    }

    pub(super) fn speaks(&mut self, at: usize, lively: bool) {
        let Some(pipe) = self.pick_pipe(at) else { return };
        // Whoever is heard of after somebody looked in vain says so.
        if !pipe.lively.swap(lively, Ordering::Relaxed) && lively {
            self.step(Event::Heard, None);
        }
    }

    /// The same for the same steps, unlike the order of the map.
    pub(super) fn pick_pipe(&self, at: usize) -> Option<&Pipe> {
        let mut keys: Vec<_> = self.conns.keys().collect();
        keys.sort_by_key(|key| format!("{key:?}"));
        let key = keys.get(at.checked_rem(keys.len())?)?;
        self.conns.get(key)
    }

    pub(super) fn drain(&mut self, intake: Intake) {
        self.draining = Some(intake);
        self.step(Event::Drain(intake), None);
        assert!(intake == Intake::ServeLine || self.lines.iter().all(VecDeque::is_empty), "some were not told");
    }

    /// A request on this connection ends. The server may have said how long it keeps it then.
    pub(super) fn falls_idle(&mut self, key: ConnKey, keep_alive: Option<Duration>) {
        if let Some(idling) = self.idling.get_mut(&key) {
            let span = keep_alive.map_or(idling.span, |told| told.min(self.limits.idle_timeout));
            *idling = Idling::new(self.now, span);
        }
    }

    /// Nothing grows beyond a limit, and what a smaller one left over only shrinks.
    pub(super) fn check_limits(&mut self, counts: CellCounts) {
        let connections_max = self.limits.connections_per_origin_max + FRESH_EXTRA;
        assert!(counts.permits <= connections_max.max(self.permits_before), "{counts:?}, {connections_max} at most");
        let line = self.lines.iter().map(VecDeque::len).max().unwrap_or(0);
        assert!(line <= self.limits.waiters_per_origin_max.max(self.line_before), "{line} in line");
        (self.permits_before, self.line_before) = (counts.permits, line);
    }

    /// Nobody waits beside an idle connection, and what is drained keeps none for nobody.
    pub(super) fn check_idle(&self, counts: CellCounts) {
        let all_well = self.conns.values().all(|pipe| pipe.is_open() && pipe.is_lively());
        assert!(!all_well || counts.idle == 0 || self.lines[0].is_empty(), "somebody waits beside an idle connection");
        assert!(self.draining.is_none() || counts.idle == 0 || counts.waiters > 0, "idle, and drained");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_speaks_again_serves_those_who_passed_its_connection_over() {
    let mut model = Model::new();
    model.apply(Op::Wait { fresh: false, patience_ms: 60_000 });
    model.apply(Op::GrantSlot);
    model.apply(Op::DialWorks { at: 0, shared: false });
    model.apply(Op::Answer { at: 0, verdict: Verdict::Answered });
    model.apply(Op::Silence(0));
    model.apply(Op::Wait { fresh: false, patience_ms: 60_000 });
    assert_eq!((model.lines[0].len(), model.cell.counts().idle), (1, 1));
    model.apply(Op::Heard(0));
    assert_eq!((model.lines[0].len(), model.leases.len()), (0, 1));
    model.check();
}

#[tokio::test(start_paused = true)]
async fn a_keep_alive_that_ends_after_an_earlier_ring_is_looked_after_too() {
    let mut model = Model::new();
    model.apply(Op::Wait { fresh: false, patience_ms: 300 });
    model.apply(Op::GrantSlot);
    model.apply(Op::DialWorks { at: 0, shared: false });
    let next_ring = model.armed.iter().min().expect("demand is looked at again").saturating_duration_since(model.now);
    let ms = u64::try_from(next_ring.as_millis()).expect("short") + 1;
    assert!(ms < 300, "and somebody's deadline would have come later");
    model.apply(Op::KeepAlive { at: 0, ms });
    model.apply(Op::Pass(ms));
    assert_eq!(model.cell.counts().idle, 0, "the server closes it now");
}
