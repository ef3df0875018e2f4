//! A fleet of SFUs in memory, behind the driver trait, on tokio's (paused) clock.

pub(crate) mod sfu;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rate_limit::Levers;
use sfu_api::{
    BATCH_OPERATIONS_MAX, CallId, CallKind, Epoch, GatewayId, GuildId, OwnerTerm, RegionId, SessionId, SfuId, Slot,
    SyncerId,
};
use syncer::drivers::{DriverKind, SfuSpec, Weight};
use syncer::engine::{Announcement, Announcer, Engine, EngineStatus, Join, Leave};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::sfu::{FakeSfu, Fleet, Mode, Node};

/// One thing heard of a call: epoch, phase, endpoint.
type Heard = (Epoch, u8, Option<Arc<str>>);

/// Hears every announcement and checks what every watcher relies on.
#[derive(Debug, Default)]
pub(crate) struct Ear {
    heard: Mutex<HashMap<CallId, Vec<Heard>>>,
    /// What did not grow. Kept for [`World::wait`]: a panic here would end one task of the engine, which begins anew.
    fell: Mutex<Vec<String>>,
}

impl Ear {
    /// What was said of a call, in order.
    pub(crate) fn of(&self, call: &CallId) -> Vec<Heard> {
        self.heard.lock().get(call).cloned().unwrap_or_default()
    }

    /// Nulls and endpoints heard in all.
    pub(crate) fn totals(&self) -> (usize, usize) {
        let heard = self.heard.lock();
        let all: Vec<u8> = heard.values().flatten().map(|(_, phase, _)| *phase).collect();
        (all.iter().filter(|p| **p == 2).count(), all.iter().filter(|p| **p == 1).count())
    }
}

impl Announcer for Ear {
    fn announce(&self, a: &Announcement) {
        let mut heard = self.heard.lock();
        let of = heard.entry(a.call.clone()).or_default();
        if let Some(last) = of.last().filter(|last| (last.0, last.1) >= (a.epoch, a.phase)) {
            self.fell.lock().push(format!("{a:?} after {last:?}"));
        }
        of.push((a.epoch, a.phase, a.endpoint.clone()));
    }
}

/// An engine on a fake fleet.
pub(crate) struct World {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) ear: Arc<Ear>,
    pub(crate) engine: Engine,
    pub(crate) stop: CancellationToken,
}

impl World {
    /// An engine that owns every slot, and `sfus` SFUs in `regions` regions.
    pub(crate) fn new(sfus: usize, regions: usize) -> Self {
        let world = Self::on(Arc::new(Fleet::default()), "s", sfus, regions);
        world.own_everything(1);
        world
    }

    /// Another engine on the same fleet.
    pub(crate) fn beside(world: &Self, id: &str) -> Self {
        let specs = world.engine.sfus();
        let regions = specs.iter().map(|s| &s.region).collect::<std::collections::HashSet<_>>().len();
        let beside = Self::on(world.fleet.clone(), id, specs.len(), regions);
        beside.own_everything(1);
        beside
    }

    /// The engine dies, and another one comes on the same fleet.
    pub(crate) fn successor(self, id: &str, revision: u64) -> Self {
        let specs = self.engine.sfus();
        let regions = specs.iter().map(|s| &s.region).collect::<std::collections::HashSet<_>>().len();
        let fleet = self.fleet.clone();
        drop(self);
        let world = Self::on(fleet, id, specs.len(), regions);
        world.own_everything(revision);
        world
    }

    fn on(fleet: Arc<Fleet>, id: &str, sfus: usize, regions: usize) -> Self {
        let (ear, stop) = (Arc::new(Ear::default()), CancellationToken::new());
        let specs: Vec<SfuSpec> = (0..sfus).map(|i| spec(i, i % regions)).collect();
        for spec in &specs {
            let node = Node {
                mode: Mode::Well,
                lists: None,
                makes: None,
                boot: 1,
                rooms: BTreeMap::new(),
                made: Vec::new(),
                asked: 0,
                stale: false,
                draining: false,
                capacity: 10_000,
                late: Duration::ZERO,
                batch_largest: 0,
                batch_max: usize::MAX,
                holders: HashMap::new(),
                operations: HashMap::new(),
            };
            fleet.nodes.lock().entry(spec.id.clone()).or_insert(node);
        }
        let (of, by) = (fleet.clone(), SyncerId::new(id).expect("valid"));
        let engine = Engine::start(
            SyncerId::new(id).expect("valid"),
            Levers::new(),
            ear.clone(),
            Arc::new(move |spec: &SfuSpec| {
                Ok(Arc::new(FakeSfu { id: spec.id.clone(), fleet: of.clone(), by: by.clone() }) as Arc<_>)
            }),
            7 + id.len() as u64,
            stop.clone(),
        );
        let now = Instant::now();
        engine.set_catalogue(specs, now);
        Self { fleet, ear, engine, stop }
    }

    /// Takes over a catalogue that `change` made of the first one.
    pub(crate) fn recatalogue(&self, sfus: usize, regions: usize, change: impl Fn(&mut Vec<SfuSpec>)) {
        let mut specs = (0..sfus).map(|i| spec(i, i % regions)).collect();
        change(&mut specs);
        self.engine.set_catalogue(specs, Instant::now());
    }

    /// All slots are ours, under this term.
    pub(crate) fn own_everything(&self, revision: u64) {
        let term = OwnerTerm { generation: 1, revision };
        self.engine.set_owned(&(0..4096).filter_map(Slot::new).map(|s| (s, term)).collect::<Vec<_>>(), Instant::now());
    }

    pub(crate) fn set(&self, lever: &str, value: &serde_json::Value) {
        self.engine.levers().set(lever, value, "test", None, 0).expect("a valid lever");
    }

    /// Places up to 5,000 calls a second, on one SFU too.
    pub(crate) fn place_fast(&self) {
        for lever in ["placement.overall", "placement.region", "placement.sfu"] {
            self.set(&format!("{lever}.rate"), &5_000.into());
            self.set(&format!("{lever}.burst"), &5_000.into());
        }
    }

    pub(crate) fn join(&self, call: usize, session: usize) {
        self.engine.join(&join(call, session), Instant::now()).expect("joins");
    }

    /// Joins a call that wants to be in this region.
    pub(crate) fn join_in(&self, call: usize, region: &str) {
        let region = Some(RegionId::new(region).expect("valid"));
        self.engine.join(&Join { region, ..join(call, 0) }, Instant::now()).expect("joins");
    }

    /// Whether a call may begin.
    pub(crate) fn may_begin(&self, call: usize) -> bool {
        self.may_begin_as(CallKind::Voice, call)
    }

    /// Whether a call of this kind may begin.
    pub(crate) fn may_begin_as(&self, kind: CallKind, call: usize) -> bool {
        self.engine.join(&Join { kind, ..join(call, 0) }, Instant::now()).is_ok()
    }

    /// Whether a session may join.
    pub(crate) fn may_join(&self, call: usize, session: usize) -> bool {
        self.engine.join(&join(call, session), Instant::now()).is_ok()
    }

    pub(crate) fn leave(&self, call: usize, session: usize) {
        let Join { guild, call, session, gateway, .. } = join(call, session);
        self.engine.leave(&Leave { guild, call, session, gateway, seq: None }, Instant::now()).expect("owned");
    }

    /// Begins calls of so many sessions, and waits until all are placed.
    pub(crate) async fn place(&self, calls: usize, sessions: usize) {
        for call in 0..calls {
            (0..sessions).for_each(|session| self.join(call, session));
        }
        let all = |s: &EngineStatus| s.placed == calls as u64 && s.awaiting == 0;
        self.wait("placing everything", Duration::from_secs(120), all).await;
    }

    /// Waits on the paused clock until `until` holds; fails after `limit`.
    pub(crate) async fn wait(&self, what: &str, limit: Duration, until: impl Fn(&EngineStatus) -> bool) -> Duration {
        let start = Instant::now();
        loop {
            let status = self.engine.status();
            assert_eq!(status.invariant_violations, 0);
            assert_eq!(*self.ear.fell.lock(), [""; 0], "I7: what a watcher hears grows");
            self.fleet.each(|id, n| assert!(n.batch_largest <= BATCH_OPERATIONS_MAX, "{id}: {}", n.batch_largest));
            if until(&status) {
                return Instant::now() - start;
            }
            assert!(Instant::now() - start < limit, "{what} did not come within {limit:?}: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Which SFU a call is on.
    pub(crate) fn sfu_of(&self, call: usize) -> Option<SfuId> {
        let join = join(call, 0);
        self.engine.call(&join.guild, &join.call)?.sfu
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn call_id(call: usize) -> CallId {
    CallId::new(format!("c{call}")).expect("valid")
}

fn join(call: usize, session: usize) -> Join {
    Join {
        guild: GuildId::new(format!("g{}", call / 4)).expect("valid"),
        call: call_id(call),
        session: SessionId::new(format!("s{session}")).expect("valid"),
        gateway: GatewayId::new("gw").expect("valid"),
        seq: None,
        kind: CallKind::Voice,
        region: None,
    }
}

fn spec(i: usize, region: usize) -> SfuSpec {
    SfuSpec {
        id: SfuId::new(format!("sfu-{i}")).expect("valid"),
        url: format!("https://127.0.0.{i}:7443"),
        region: RegionId::new(format!("r{region}")).expect("valid"),
        zone: None,
        driver: DriverKind::Native,
        capacity: 10_000,
        weight: Weight::default(),
        janus: None,
    }
}
