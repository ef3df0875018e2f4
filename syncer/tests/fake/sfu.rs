//! An SFU in memory behind the driver trait, and how it may behave.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use sfu_api::{
    BootId, CallId, DIGEST_ROOMS_MAX, Differences, DigestAnswer, Epoch, GuildId, Load, OpId, OwnerTerm, RoomId,
    RoomState, SfuId, Slot, SlotTerm, SyncerId,
};
use syncer::drivers::{
    Capabilities, Credential, CredentialRequest, DigestOutcome, DigestSpec, DriverError, EndSpec, Ended, ErrorKind,
    ListedRoom, Probe, RoomList, RoomReady, RoomSpec, SfuDriver,
};
use tokio::time::Instant;

/// How an SFU behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it should.
    Well,
    /// Refuses connections.
    Refuses,
    /// Never answers.
    Hangs,
    /// Never takes a connection: time runs out before anything is sent.
    NoWay,
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
    /// Others hold its connections until time runs out.
    Queues,
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
    /// How it behaves when it is asked for rooms, if otherwise.
    pub(crate) makes: Option<Mode>,
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
    /// Answers so much later.
    pub(crate) late: Duration,
    /// Operations in the largest request so far.
    pub(crate) batch_largest: usize,
    /// Operations of one request that it does; it is overloaded for the others, and says so of each.
    pub(crate) batch_max: usize,
    /// Who holds a slot here, by the highest term seen.
    pub(crate) holders: HashMap<Slot, (OwnerTerm, SyncerId)>,
    /// Operations done, by id: none may be used for two.
    pub(crate) operations: HashMap<OpId, RoomId>,
}

/// The SFUs, by id.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    pub(super) nodes: Mutex<HashMap<SfuId, Node>>,
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

/// One SFU of the fleet, as one syncer sees it.
#[derive(Debug)]
pub(super) struct FakeSfu {
    pub(super) id: SfuId,
    pub(super) fleet: Arc<Fleet>,
    /// Who asks.
    pub(super) by: SyncerId,
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
            let late = self.fleet.with(self.id.as_str(), |n| n.late);
            tokio::time::sleep(Duration::from_millis(5) + late).await;
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
                Mode::NoWay => {
                    tokio::time::sleep_until(deadline).await;
                    Err(DriverError::new(ErrorKind::TimedOutBeforeSend, "no connection"))
                }
                Mode::LosesAnswers => {
                    self.fleet.with(self.id.as_str(), serve)?;
                    Err(DriverError::new(ErrorKind::Reset, "closed before the answer"))
                }
                Mode::Overloaded => Err(overloaded()),
                Mode::Rejects => Err(DriverError::new(ErrorKind::Rejected, "422")),
                Mode::Draining => {
                    Err(DriverError::new(ErrorKind::Draining, "503").with_retry_after(Some(Duration::from_secs(30))))
                }
                Mode::Panics => panic!("a driver with a bug"),
                Mode::Saturated => Err(DriverError::new(ErrorKind::Saturated, "no room")),
                Mode::Queues => {
                    tokio::time::sleep_until(deadline).await;
                    Err(DriverError::new(ErrorKind::Queued, "no turn"))
                }
            }
        }
        .boxed()
    }
}

fn overloaded() -> DriverError {
    DriverError::new(ErrorKind::Overloaded, "503").with_retry_after(Some(Duration::from_secs(1)))
}

/// What came of the operations of one request.
fn each_of<T, R>(
    n: &mut Node,
    operations: &[T],
    mut serve: impl FnMut(&mut Node, &T) -> Result<R, DriverError>,
) -> Vec<Result<R, DriverError>> {
    // Not judged here, in a task of the engine, but in `World::wait`.
    n.batch_largest = n.batch_largest.max(operations.len());
    let max = n.batch_max;
    let one = |(nth, operation)| if nth < max { serve(n, operation) } else { Err(overloaded()) };
    operations.iter().enumerate().map(one).collect()
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

fn ended(n: &mut Node, end: &EndSpec, force: bool) -> Result<Ended, DriverError> {
    match n.rooms.get(&end.room) {
        None => Ok(Ended::WasAbsent),
        Some(room) if room.epoch > end.epoch => Err(DriverError::new(ErrorKind::Fenced, "")),
        Some(room) if room.participants > 0 && !force => Ok(Ended::Occupied),
        Some(_) => {
            n.rooms.remove(&end.room);
            Ok(Ended::Destroyed)
        }
    }
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
        let mode = |n: &Node| n.makes.unwrap_or(n.mode);
        self.exchange_in(mode, false, deadline, move |n| ensure(&self.id, &self.by, n, &spec))
    }

    fn ensure_rooms(
        &self,
        specs: Vec<RoomSpec>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Result<RoomReady, DriverError>>, DriverError>> {
        let mode = |n: &Node| n.makes.unwrap_or(n.mode);
        let serve = move |n: &mut Node| Ok(each_of(n, &specs, |n, spec| ensure(&self.id, &self.by, n, spec)));
        self.exchange_in(mode, false, deadline, serve)
    }

    fn end_room(&self, end: EndSpec, force: bool, deadline: Instant) -> BoxFuture<'_, Result<Ended, DriverError>> {
        self.exchange(false, deadline, move |n| ended(n, &end, force))
    }

    fn end_rooms(
        &self,
        ends: Vec<EndSpec>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Result<Ended, DriverError>>, DriverError>> {
        self.exchange(false, deadline, move |n| Ok(each_of(n, &ends, |n, end| ended(n, end, false))))
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
            let higher =
                |own: &SlotTerm| n.holders.get(&own.slot).map(|(seen, _)| *seen).filter(|seen| *seen > own.term);
            let fenced = digest.terms.iter().filter_map(|own| Some(SlotTerm { term: higher(own)?, ..*own }));
            let fenced: Vec<SlotTerm> = fenced.collect();
            if let Some(first) = fenced.first() {
                let error = DriverError::new(ErrorKind::Fenced, "").with_fence(Some(first.term), None);
                return Err(error.with_fenced_slots(fenced));
            }
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
