//! A fleet of SFUs in memory, behind the driver trait, on tokio's (paused) clock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rate_limit::Levers;
use sfu_api::{
    BootId, CallId, CallKind, DIGEST_ROOMS_MAX, Differences, DigestAnswer, Epoch, GatewayId, GuildId, Load, OpId,
    OwnerTerm, RegionId, RoomId, RoomState, SessionId, SfuId, Slot, SyncerId,
};
use syncer::drivers::{
    Capabilities, Credential, CredentialRequest, DigestOutcome, DigestSpec, DriverError, DriverKind, EndSpec, Ended,
    ErrorKind, ListedRoom, Probe, RoomList, RoomReady, RoomSpec, SfuDriver, SfuSpec, Weight,
};
use syncer::engine::{Announcement, Announcer, Engine, EngineStatus, Join, Leave};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How an SFU behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it should.
    Well,
    /// Refuses connections.
    Refuses,
    /// Never answers.
    Hangs,
    /// Makes the room and loses the answer.
    LosesAnswers,
    /// Answers 503.
    Overloaded,
    /// Says no, at once and for good.
    Rejects,
    /// Is draining, for half a minute.
    Draining,
    /// The driver panics.
    Panics,
    /// There is no room for the request on our side.
    Saturated,
}

#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) epoch: Epoch,
    pub(crate) slot: Slot,
    pub(crate) guild: GuildId,
    pub(crate) participants: u32,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) mode: Mode,
    /// How it behaves when it is asked for a list, if otherwise.
    pub(crate) lists: Option<Mode>,
    pub(crate) boot: u32,
    pub(crate) rooms: BTreeMap<RoomId, Room>,
    /// When rooms were made here.
    pub(crate) made: Vec<Instant>,
    pub(crate) asked: u64,
    /// Reports the load of long ago, whatever happens.
    pub(crate) stale: bool,
    /// Was told to take no new rooms.
    pub(crate) draining: bool,
    /// Rooms it can carry.
    pub(crate) capacity: u32,
    /// Who holds a slot here, by the highest term seen.
    pub(crate) holders: HashMap<Slot, (OwnerTerm, SyncerId)>,
    /// Operations done, by id: none may be used for two.
    pub(crate) operations: HashMap<OpId, RoomId>,
}

/// The SFUs, by id.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    nodes: Mutex<HashMap<SfuId, Node>>,
}

impl Fleet {
    pub(crate) fn with<R>(&self, id: &str, f: impl FnOnce(&mut Node) -> R) -> R {
        f(self.nodes.lock().get_mut(id).expect("a known SFU"))
    }

    pub(crate) fn each(&self, mut f: impl FnMut(&SfuId, &mut Node)) {
        self.nodes.lock().iter_mut().for_each(|(id, n)| f(id, n));
    }

    /// Back with a new incarnation and no rooms.
    pub(crate) fn restart(&self, id: &str) {
        self.with(id, |n| {
            n.mode = Mode::Well;
            n.boot += 1;
            n.draining = false;
            n.rooms.clear();
        });
    }

    /// When rooms were made anywhere, in order.
    pub(crate) fn made(&self) -> Vec<Instant> {
        let mut all: Vec<Instant> = self.nodes.lock().values().flat_map(|n| n.made.iter().copied()).collect();
        all.sort();
        all
    }
}

/// Most tokens that any window of `made` took beyond `burst + rate × window`.
pub(crate) fn overdrawn(made: &[Instant], rate: f64, burst: f64) -> usize {
    let mut debt = 0.0_f64;
    let mut last: Option<Instant> = None;
    let mut count = 0;
    for at in made {
        debt = last.map_or(0.0, |l| (debt - (*at - l).as_secs_f64() * rate).max(0.0)) + 1.0;
        last = Some(*at);
        count += usize::from(debt > burst + 1e-6);
    }
    count
}

#[derive(Debug)]
struct FakeSfu {
    id: SfuId,
    fleet: Arc<Fleet>,
    /// Who asks.
    by: SyncerId,
}

impl FakeSfu {
    /// One exchange: the answer after a round trip, or the failure that the mode asks for.
    fn exchange<'a, R: Send + 'a>(
        &'a self,
        fresh: bool,
        deadline: Instant,
        serve: impl FnOnce(&mut Node) -> Result<R, DriverError> + Send + 'a,
    ) -> BoxFuture<'a, Result<R, DriverError>> {
        self.exchange_in(|n| n.mode, fresh, deadline, serve)
    }

    fn exchange_in<'a, R: Send + 'a>(
        &'a self,
        mode: impl FnOnce(&Node) -> Mode + Send + 'a,
        fresh: bool,
        deadline: Instant,
        serve: impl FnOnce(&mut Node) -> Result<R, DriverError> + Send + 'a,
    ) -> BoxFuture<'a, Result<R, DriverError>> {
        async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let mode = self.fleet.with(self.id.as_str(), |n| {
                n.asked += 1;
                mode(n)
            });
            match mode {
                Mode::Well => self.fleet.with(self.id.as_str(), serve),
                Mode::Refuses => Err(DriverError::new(ErrorKind::Refused, "connection refused").with_fresh(fresh)),
                Mode::Hangs => {
                    tokio::time::sleep_until(deadline).await;
                    Err(DriverError::new(ErrorKind::TimedOutAfterSend, "no answer"))
                }
                Mode::LosesAnswers => {
                    self.fleet.with(self.id.as_str(), serve)?;
                    Err(DriverError::new(ErrorKind::Reset, "closed before the answer"))
                }
                Mode::Overloaded => {
                    Err(DriverError::new(ErrorKind::Overloaded, "503").with_retry_after(Some(Duration::from_secs(1))))
                }
                Mode::Rejects => Err(DriverError::new(ErrorKind::Rejected, "422")),
                Mode::Draining => {
                    Err(DriverError::new(ErrorKind::Draining, "503").with_retry_after(Some(Duration::from_secs(30))))
                }
                Mode::Panics => panic!("a driver with a bug"),
                Mode::Saturated => Err(DriverError::new(ErrorKind::Saturated, "no room")),
            }
        }
        .boxed()
    }
}

/// Notes who holds a slot; refuses a lower term than seen.
fn claim(n: &mut Node, by: &SyncerId, slot: Slot, term: OwnerTerm) -> Result<(), DriverError> {
    if let Some((highest, _)) = n.holders.get(&slot).filter(|(highest, _)| *highest > term) {
        return Err(DriverError::new(ErrorKind::Fenced, "").with_fence(Some(*highest), None));
    }
    n.holders.insert(slot, (term, by.clone()));
    Ok(())
}

fn ensure(id: &SfuId, by: &SyncerId, n: &mut Node, spec: &RoomSpec) -> Result<RoomReady, DriverError> {
    claim(n, by, spec.slot, spec.owner_term)?;
    let known = n.operations.insert(spec.op_id.clone(), spec.room.clone());
    assert!(known.is_none_or(|room| room == spec.room), "R15: {} was used for two rooms", spec.op_id);
    if let Some(room) = n.rooms.get(&spec.room).filter(|r| r.epoch > spec.epoch) {
        return Err(DriverError::new(ErrorKind::Fenced, "").with_fence(None, Some(room.epoch)));
    }
    let people = n.rooms.get(&spec.room).map(|room| room.participants);
    let participants = people.unwrap_or_default();
    let room = Room { epoch: spec.epoch, slot: spec.slot, guild: spec.guild.clone(), participants };
    n.rooms.insert(spec.room.clone(), room);
    let created = people.is_none();
    if created {
        n.made.push(Instant::now());
    }
    let endpoint = format!("https://{id}/media/{}", spec.room).into();
    Ok(RoomReady { endpoint, boot_id: Some(boot(n)), load: Some(load(n)), created })
}

fn boot(n: &Node) -> BootId {
    BootId::new(format!("boot-{}", n.boot)).expect("valid")
}

fn load(n: &Node) -> Load {
    if n.stale {
        return Load { calls: 0, participants: 0, capacity: n.capacity, sampled_at: 1 };
    }
    Load {
        calls: u32::try_from(n.rooms.len()).expect("few"),
        participants: n.rooms.values().map(|r| r.participants).sum(),
        capacity: n.capacity,
        sampled_at: n.asked,
    }
}

impl SfuDriver for FakeSfu {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            fences: true,
            digests: true,
            load_in_answers: true,
            batches: true,
            credential_per_session: true,
            drain_keeps_sessions: true,
        }
    }

    fn room_name(&self, guild: &GuildId, call: &CallId, _: Slot, _: Epoch) -> RoomId {
        RoomId::new(format!("{guild}~{call}")).expect("valid")
    }

    fn call_of(&self, room: &RoomId) -> Option<(GuildId, CallId)> {
        let (guild, call) = room.as_str().split_once('~')?;
        GuildId::new(guild).ok().zip(CallId::new(call).ok())
    }

    fn probe(&self, fresh: bool, deadline: Instant) -> BoxFuture<'_, Result<Probe, DriverError>> {
        self.exchange(fresh, deadline, |n| {
            Ok(Probe { boot_id: Some(boot(n)), accepting: !n.draining, load: Some(load(n)) })
        })
    }

    fn ensure_room(&self, spec: RoomSpec, deadline: Instant) -> BoxFuture<'_, Result<RoomReady, DriverError>> {
        self.exchange(false, deadline, move |n| ensure(&self.id, &self.by, n, &spec))
    }

    fn ensure_rooms(
        &self,
        specs: Vec<RoomSpec>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Result<RoomReady, DriverError>>, DriverError>> {
        self.exchange(false, deadline, move |n| {
            Ok(specs.iter().map(|spec| ensure(&self.id, &self.by, n, spec)).collect())
        })
    }

    fn end_room(&self, end: EndSpec, force: bool, deadline: Instant) -> BoxFuture<'_, Result<Ended, DriverError>> {
        self.exchange(false, deadline, move |n| match n.rooms.get(&end.room) {
            None => Ok(Ended::WasAbsent),
            Some(room) if room.epoch > end.epoch => Err(DriverError::new(ErrorKind::Fenced, "")),
            Some(room) if room.participants > 0 && !force => Ok(Ended::Occupied),
            Some(_) => {
                n.rooms.remove(&end.room);
                Ok(Ended::Destroyed)
            }
        })
    }

    fn list_rooms(&self, deadline: Instant) -> BoxFuture<'_, Result<RoomList, DriverError>> {
        self.exchange_in(
            |n| n.lists.unwrap_or(n.mode),
            false,
            deadline,
            |n| {
                let rooms = n.rooms.iter().map(|(room, r)| ListedRoom {
                    room: room.clone(),
                    slot: Some(r.slot),
                    epoch: Some(r.epoch),
                    guild: None,
                    call: None,
                    participants: r.participants,
                });
                Ok(RoomList { rooms: rooms.collect(), boot_id: Some(boot(n)), load: Some(load(n)) })
            },
        )
    }

    fn digest(&self, digest: DigestSpec, deadline: Instant) -> BoxFuture<'_, Result<DigestOutcome, DriverError>> {
        self.exchange(false, deadline, move |n| {
            for of in &digest.terms {
                claim(n, &self.by, of.slot, of.term)?;
            }
            // A room of a slot that nobody holds was put there by a test.
            let is_mine = |r: &Room| n.holders.get(&r.slot).is_none_or(|(_, holder)| *holder == self.by);
            let mine: BTreeMap<&RoomId, &Room> = n.rooms.iter().filter(|(_, r)| is_mine(r)).collect();
            let hash = sfu_api::room_set_hash(mine.iter().map(|(id, r)| (*id, r.epoch)));
            let named =
                digest.named.map(|named| named.into_iter().map(|r| (r.room, r.epoch)).collect::<HashMap<_, _>>());
            // As the contract has it: more are not named, and no answer carries more.
            assert!(named.as_ref().is_none_or(|named| named.len() <= DIGEST_ROOMS_MAX), "too many rooms named");
            let differences = named.map(|named| Differences {
                missing: named.keys().filter(|id| !n.rooms.contains_key(*id)).cloned().collect(),
                surplus: mine
                    .iter()
                    .filter(|(id, _)| !named.contains_key(**id))
                    .map(|(id, r)| state(id, r))
                    .take(DIGEST_ROOMS_MAX)
                    .collect(),
            });
            Ok(DigestOutcome::Answer(DigestAnswer {
                matches: hash == digest.hash && digest.rooms as usize == mine.len(),
                differences,
                boot_id: boot(n),
                load: load(n),
            }))
        })
    }

    fn participants(&self, room: RoomId, deadline: Instant) -> BoxFuture<'_, Result<Option<u32>, DriverError>> {
        self.exchange(false, deadline, move |n| Ok(n.rooms.get(&room).map(|r| r.participants)))
    }

    fn set_draining(&self, draining: bool, deadline: Instant) -> BoxFuture<'_, Result<(), DriverError>> {
        self.exchange(false, deadline, move |n| {
            n.draining = draining;
            Ok(())
        })
    }

    fn credential(&self, request: &CredentialRequest<'_>) -> Result<Credential, DriverError> {
        Ok(Credential::new(format!("{}@{}", request.session, request.room)))
    }
}

fn state(id: &RoomId, r: &Room) -> RoomState {
    RoomState {
        room: id.clone(),
        slot: r.slot,
        epoch: r.epoch,
        syncer: SyncerId::new("s").expect("valid"),
        guild: r.guild.clone(),
        participants: r.participants,
    }
}

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
                boot: 1,
                rooms: BTreeMap::new(),
                made: Vec::new(),
                asked: 0,
                stale: false,
                draining: false,
                capacity: 10_000,
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
        self.engine.join(&join(call, 0), Instant::now()).is_ok()
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
