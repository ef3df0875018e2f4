//! One SFU: an incarnation of the state machine behind a TLS listener that can be broken.
//!
//! A node has no timers and no polling. While nobody connects it is one task that waits in
//! `accept`; what has to happen over time (expiry of rooms) happens when somebody looks.

mod garble;
mod listen;
mod media;
mod serve;

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sfu_api::{BootId, RoomState, SfuId};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::config::Spot;
use crate::fault::{Fault, FaultSet, Garbage, InjectedError};
use crate::meter::Meter;
use crate::rooms::{Now, Profile, Rooms, Tally};
use crate::token::Keys;

pub(crate) use self::listen::{bind, serve_plain};

/// What all nodes share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) meter: Mutex<Meter>,
    /// `None` until keys were given: tokens are not verified then.
    pub(crate) keys: RwLock<Option<Arc<Keys>>>,
    pub(crate) capacity: u32,
    pub(crate) latency: Duration,
    pub(crate) empty_room_ttl: Duration,
    pub(crate) started: Instant,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// One SFU of the cluster.
pub(crate) struct Node {
    pub(crate) id: SfuId,
    pub(crate) spot: Spot,
    pub(crate) address: SocketAddr,
    index: usize,
    tls: Arc<rustls::ServerConfig>,
    world: Arc<World>,
    /// Held across opening and closing, so that faults of one node happen one after the other.
    life: tokio::sync::Mutex<Life>,
    core: Mutex<Core>,
    mood: watch::Sender<Mood>,
}

#[derive(Debug, Default)]
struct Life {
    door: Option<Door>,
    /// Counts closings, so that a restart that was overtaken by another fault does not open.
    closings: u64,
}

#[derive(Debug)]
struct Core {
    rooms: Rooms,
    faults: FaultSet,
    rng: StdRng,
    requests: u64,
}

/// How a live process behaves; connections and handlers watch it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mood {
    hung: bool,
    black_holed: bool,
}

/// The listener of one incarnation, and everything that lives behind it.
#[derive(Clone, Debug)]
struct Door {
    stop: CancellationToken,
    /// Whether connections end with a reset instead of a goodbye.
    reset: Arc<AtomicBool>,
    tasks: TaskTracker,
}

/// What is to happen to one request.
#[derive(Debug)]
struct Injection {
    latency: Duration,
    error: Option<InjectedError>,
    garbage: Option<Garbage>,
}

// === impl World ===

impl World {
    pub(crate) fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { instant: Instant::now(), unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
    }

    fn record(&self, node: usize, tally: Tally, injected: bool) {
        let mut meter = self.meter.lock();
        // Read under the lock, so that the meter's time never runs backwards.
        let since = Instant::now().saturating_duration_since(self.started);
        meter.record(node, tally, injected, u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
    }
}

// === impl Node ===

impl Node {
    /// A node that listens already; [`Node::open`] starts serving.
    pub(crate) fn new(
        (index, id, spot): (usize, SfuId, Spot),
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        seed: u64,
        world: Arc<World>,
    ) -> Arc<Self> {
        let rooms = Rooms::new(profile(address, &world));
        let node_seed = seed ^ u64::try_from(index).unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let rng = StdRng::seed_from_u64(node_seed);
        Arc::new(Self {
            id,
            spot,
            address,
            index,
            tls,
            world,
            life: tokio::sync::Mutex::default(),
            core: Mutex::new(Core { rooms, faults: FaultSet::default(), rng, requests: 0 }),
            mood: watch::Sender::default(),
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Starts serving on a listener; does nothing when the node serves already.
    pub(crate) async fn open(self: &Arc<Self>, listener: TcpListener) -> Result<(), Error> {
        self.open_life(&mut *self.life.lock().await, listener)
    }

    fn open_life(self: &Arc<Self>, life: &mut Life, listener: TcpListener) -> Result<(), Error> {
        if life.door.is_some() {
            return Ok(());
        }
        let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| Error::bind(self.address, e))?;
        let stop = self.world.stop.child_token();
        let door = Door { stop, reset: Arc::default(), tasks: TaskTracker::new() };
        self.core.lock().faults.down = None;
        door.tasks.spawn(listen::accept(Arc::clone(self), listener, door.clone()));
        life.door = Some(door);
        Ok(())
    }

    /// Injects a fault. When this returns it is in effect: a killed node refuses connections and
    /// its old ones are reset.
    pub(crate) async fn fault(self: &Arc<Self>, fault: &Fault) -> Result<(), Error> {
        match fault {
            Fault::Kill => self.close(fault).await,
            Fault::Restart { down_ms } => {
                let closings = self.close(fault).await;
                return self.reopen_after(Duration::from_millis(*down_ms), closings).await;
            }
            _ => {
                let mut core = self.core.lock();
                core.faults.add(fault);
                self.mood.send_replace(mood(&core.faults));
                return Ok(());
            }
        };
        Ok(())
    }

    /// Removes all faults; a node that was down comes back as a new incarnation.
    pub(crate) async fn heal(self: &Arc<Self>) -> Result<(), Error> {
        let mut life = self.life.lock().await;
        if life.door.is_none() {
            life.closings += 1; // a pending restart is overtaken
            self.open_life(&mut life, bind(self.address)?)?;
        }
        let mut core = self.core.lock();
        core.faults = FaultSet::default();
        self.mood.send_replace(Mood::default());
        Ok(())
    }

    async fn close(&self, fault: &Fault) -> u64 {
        let mut life = self.life.lock().await;
        life.closings += 1;
        if let Some(door) = life.door.take() {
            door.reset.store(true, Ordering::Release);
            door.stop.cancel();
            door.tasks.close();
            door.tasks.wait().await;
        }
        let mut core = self.core.lock();
        core.rooms = Rooms::new(profile(self.address, &self.world));
        // A process that hung is gone; the other faults are those of its host and its build.
        core.faults.hang = false;
        core.faults.add(fault);
        self.mood.send_replace(mood(&core.faults));
        life.closings
    }

    async fn reopen_after(self: &Arc<Self>, down: Duration, closings: u64) -> Result<(), Error> {
        if down.is_zero() {
            return self.reopen(closings).await;
        }
        let node = Arc::clone(self);
        self.world.tasks.spawn(async move {
            tokio::select! {
                () = node.world.stop.cancelled() => return,
                () = tokio::time::sleep(down) => {}
            }
            if let Err(error) = node.reopen(closings).await {
                tracing::error!(sfu = %node.id, %error, "cannot come back after a restart");
            }
        });
        Ok(())
    }

    async fn reopen(self: &Arc<Self>, closings: u64) -> Result<(), Error> {
        let mut life = self.life.lock().await;
        if life.closings != closings || life.door.is_some() {
            return Ok(());
        }
        self.open_life(&mut life, bind(self.address)?)
    }

    /// Waits until nothing of this node runs any more. The world was told to stop.
    pub(crate) async fn stopped(&self) {
        let door = self.life.lock().await.door.take();
        if let Some(door) = door {
            door.tasks.close();
            door.tasks.wait().await;
        }
    }

    /// What the node looks like from the control port.
    pub(crate) fn view(&self) -> crate::NodeView {
        let now = self.world.now();
        let mut core = self.core.lock();
        core.rooms.expire(now);
        let load = core.rooms.load(now);
        crate::NodeView {
            id: self.id.clone(),
            region: self.spot.region.clone(),
            zone: self.spot.zone.clone(),
            url: self.url(),
            state: core.faults.state().to_owned(),
            boot_id: core.rooms.boot_id().clone(),
            faults: core.faults.list(),
            draining: core.rooms.health(now).draining,
            rooms: load.calls,
            participants: load.participants,
            capacity: load.capacity,
        }
    }

    pub(crate) fn rooms(&self) -> Vec<RoomState> {
        let mut core = self.core.lock();
        core.rooms.expire(self.world.now());
        core.rooms.all()
    }

    pub(crate) fn is_down(&self) -> bool {
        self.core.lock().faults.down.is_some()
    }

    /// Returns once requests are answered: at once, unless the node hangs.
    async fn answering(&self) {
        let mut mood = self.mood.subscribe();
        let awake = mood.wait_for(|mood| !mood.hung).await;
        debug_assert!(awake.is_ok(), "the sender lives in self");
    }

    fn inject(&self) -> (u64, Injection) {
        let mut core = self.core.lock();
        core.requests += 1;
        let error = core.faults.error;
        let error = error.filter(|error| core.rng.random_bool(error.rate));
        let latency = self.world.latency + core.faults.slow.unwrap_or_default();
        (core.requests, Injection { latency, error, garbage: core.faults.garbage })
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id).field("address", &self.address).finish_non_exhaustive()
    }
}

fn mood(faults: &FaultSet) -> Mood {
    Mood { hung: faults.hang, black_holed: faults.black_hole }
}

fn profile(address: SocketAddr, world: &World) -> Profile {
    // Never seeded: a process that is started again must not look like the one that died.
    let boot_id = BootId::new(uuid::Uuid::new_v4().simple().to_string()).expect("hexadecimal digits are an id");
    let media_url = format!("https://{address}/media/");
    Profile { boot_id, media_url, capacity: world.capacity, empty_room_ttl: world.empty_room_ttl }
}
