//! Everything that goes wrong, all the time and all at once; and when it is over, nothing is left of it.
//!
//! Real TLS on loopback: held handshakes, resets in them and later, connections closed while idle, GOAWAY, silence,
//! lies about the length, slow and endless bodies, refused dials, a connector that panics; callers who leave,
//! origins that are forgotten and drained, limits that move. Twice the same, and after each half: no permit, no
//! waiter, no connection, no task and no file descriptor is left, no more memory is allocated than after a calm
//! round of all hosts, and the second half leaves no more than the first.
//!
//! `POOL_SOAK_SECONDS` says how long (a few seconds otherwise), `POOL_SOAK_SEED` which dice.

mod common;

use std::alloc::System;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Ca, Callers, Server, after, get, reset, serve, settled_after, soon, until};
use futures_util::FutureExt;
use http::Request;
use parking_lot::Mutex;
use pool::{Body, BoxError, Connected, Error, Lane, LaneLimits, Origin, OriginHandle, Waiting};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How long it lasts when nobody says.
const SECONDS: u64 = 6;

/// The dice when nobody says.
const SEED: u64 = 20_260_325;

/// Callers at once.
const CALLERS: u64 = 48;

/// What the storm may leave allocated beyond what a calm round of all hosts has left: histograms and tables that had not
/// met every error or grown to their size, half of this after half a minute, and no more after a whole one.
const LEFT_BYTES_MAX: usize = 1024 * 1024;

/// What the second half may leave allocated beyond the first: histograms and tables that had not met every label or
/// grown to their size. In a minute, a leak of a hundred bytes with each request leaves megabytes.
const GROWTH_BYTES_MAX: usize = 512 * 1024;

/// What the connector says when it panics.
const POISON: &str = "poison";

/// What becomes of a connection to a rude host.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Served,
    HeldInTls,
    ResetInTls,
    Reset(Duration),
    Goodbye(Duration),
    Silent,
    Liar,
}

/// The hosts, and what they have done.
struct World {
    ca: Ca,
    servers: Vec<Server>,
    /// Everybody behaves.
    healed: Arc<AtomicUsize>,
    answered: AtomicUsize,
    failed: AtomicUsize,
}

fn dice(seed: u64, who: u64) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(who))
}

fn millis(dice: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(dice.random_range(range))
}

// === impl Fate ===

impl Fate {
    fn roll(dice: &mut StdRng) -> Self {
        match dice.random_range(0..20) {
            0..=7 => Self::Served,
            8 => Self::HeldInTls,
            9..=10 => Self::ResetInTls,
            11..=13 => Self::Reset(millis(dice, 0..400)),
            14..=16 => Self::Goodbye(millis(dice, 0..400)),
            17..=18 => Self::Silent,
            _ => Self::Liar,
        }
    }

    async fn befall(self, stream: TcpStream, tls: TlsAcceptor) {
        let goodbye = Arc::new(Notify::new());
        match self {
            Self::HeldInTls => return until_closed(stream).await,
            Self::ResetInTls => return reset(stream),
            Self::Reset(_) => {
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
            }
            Self::Served | Self::Goodbye(_) | Self::Silent | Self::Liar => {}
        }
        let Ok(mut stream) = tls.accept(stream).await else { return };
        let serving = |stream| serve(stream, Arc::default(), Arc::clone(&goodbye));
        match self {
            Self::Served | Self::HeldInTls | Self::ResetInTls => serving(stream).await,
            Self::Reset(after) => drop(timeout(after, serving(stream)).await),
            Self::Goodbye(after) => {
                let later = async {
                    sleep(after).await;
                    goodbye.notify_waiters();
                };
                tokio::join!(serving(stream), later);
            }
            Self::Silent => until_closed(stream).await,
            Self::Liar => {
                drop(stream.read(&mut [0; 1_024]).await);
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort").await);
            }
        }
    }
}

/// Says nothing until the other side has gone.
async fn until_closed(mut stream: impl AsyncRead + Unpin) {
    while !matches!(stream.read(&mut [0; 1_024]).await, Ok(0) | Err(_)) {}
}

// === impl World ===

impl World {
    async fn new(seed: u64) -> Self {
        let (ca, healed) = (Ca::new(), Arc::new(AtomicUsize::new(0)));
        let mut servers = Vec::new();
        for (n, alpn) in [&["h2"][..], &["http/1.1"], &["h2", "http/1.1"]].into_iter().enumerate() {
            servers.push(Server::https(&ca, alpn).await);
            for rude in 0..2 {
                let tls = TlsAcceptor::from(ca.server_config([127, 0, 0, 1].into(), alpn));
                let dice = Mutex::new(dice(seed, 1_000 + 10 * (n as u64) + rude));
                let healed = Arc::clone(&healed);
                let befall = move |stream| {
                    let well = healed.load(Ordering::SeqCst) > 0;
                    let fate = if well { Fate::Served } else { Fate::roll(&mut dice.lock()) };
                    fate.befall(stream, tls.clone())
                };
                servers.push(Server::rude("https", befall).await);
            }
        }
        Self { ca, servers, healed, answered: AtomicUsize::new(0), failed: AtomicUsize::new(0) }
    }

    /// One lane as it is used, and one whose connector panics now and then.
    fn lanes(&self, seed: u64) -> [Lane; 2] {
        let tls = pool::tls::client_config(self.ca.pem().as_bytes(), None).expect("tls");
        let lane = |name: &'static str| Lane::builder(name).tls(Arc::clone(&tls)).limits(limits());
        let (dice, healed) = (Arc::new(Mutex::new(dice(seed, 2_000))), Arc::clone(&self.healed));
        let connector = tower::service_fn(move |origin: Origin| {
            let (dice, healed) = (Arc::clone(&dice), Arc::clone(&healed));
            async move {
                let roll = dice.lock().random_range(0..8);
                assert!(roll != 0 || healed.load(Ordering::SeqCst) > 0, "{POISON}");
                let stream = TcpStream::connect((origin.host(), origin.port())).await?;
                Ok::<_, BoxError>(Connected::bare(stream))
            }
        });
        [lane("real").build().expect("lane"), lane("poisoned").connector(connector).build().expect("lane")]
    }

    /// Everybody's addresses; the last one refuses.
    fn origins(&self) -> Vec<Origin> {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address");
        let refuses = Origin::parse(&format!("https://{nobody}")).expect("origin");
        self.servers.iter().map(|server| server.origin.clone()).chain([refuses]).collect()
    }

    /// One caller: asks somebody for something, and may leave before the answer.
    async fn call(&self, sfu: &OriginHandle, dice: &mut StdRng) {
        let patience = millis(dice, 1..1_000);
        let asked = match dice.random_range(0..20) {
            0 => async { sfu.probe_dial(after(patience)).await }.boxed(),
            1 => async { sfu.hold(after(patience)).await.map(drop) }.boxed(),
            2 => read(sfu, get("/ok"), patience, true).boxed(),
            3 => read(sfu, get("/never"), patience / 4, false).boxed(),
            4 => read(sfu, get("/stall"), patience / 4, false).boxed(),
            5..=6 => read(sfu, get("/drip/8"), patience, false).boxed(),
            7..=8 => read(sfu, get("/big/200000"), patience, false).boxed(),
            9..=10 => read(sfu, get("/slow/20"), patience, false).boxed(),
            11..=12 => {
                let request = Request::put("/echo").body(Body::from(vec![7; 50_000])).expect("request");
                read(sfu, request, patience, false).boxed()
            }
            _ => read(sfu, get("/ok"), patience, false).boxed(),
        };
        let leaves = if dice.random_bool(0.25) { millis(dice, 0..60) } else { Duration::from_secs(60) };
        match timeout(leaves, asked).await {
            Ok(Ok(())) => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
            Ok(Err(error)) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                // Who is told at once to go away would otherwise come back at once.
                sleep(error.retry_after().unwrap_or_default().min(Duration::from_millis(5))).await;
            }
            Err(_left) => {}
        }
    }

    /// Everybody behaves, and is asked by both lanes: all answer but the last, whom nobody reaches.
    async fn ask_everybody(&self, lanes: &[Lane; 2], origins: &[Origin]) {
        self.healed.store(1, Ordering::SeqCst);
        for (lane, origin) in lanes.iter().flat_map(|lane| origins.iter().map(move |origin| (lane, origin))) {
            let answer = lane.origin(origin).send(get("/ok"), soon()).await;
            assert_eq!(answer.is_ok(), *origin != origins[origins.len() - 1], "{origin}: {answer:?}");
        }
    }

    /// Half of the time: callers and an operator, until `end`.
    async fn rage(self: &Arc<Self>, seed: u64, lanes: &[Lane; 2], origins: &[Origin], end: Instant) {
        self.healed.store(0, Ordering::SeqCst);
        let tasks = Callers::new();
        for caller in 0..CALLERS {
            let (this, lanes, origins) = (Arc::clone(self), lanes.clone(), origins.to_vec());
            let mut dice = dice(seed, caller);
            tasks.spawn(async move {
                while after(Duration::ZERO) < end {
                    let lane = &lanes[dice.random_range(0..lanes.len())];
                    let origin = &origins[dice.random_range(0..origins.len())];
                    this.call(&lane.origin(origin), &mut dice).await;
                }
            });
        }
        let mut dice = dice(seed, 3_000);
        while after(Duration::ZERO) < end {
            let lane = &lanes[dice.random_range(0..lanes.len())];
            operate(lane, &origins[dice.random_range(0..origins.len())], &mut dice).await;
            sleep(millis(&mut dice, 20..200)).await;
        }
        tasks.close();
        tasks.wait().await;
        for lane in lanes {
            lane.set_limits(limits()).expect("the limits it began with");
        }
    }

    /// Waits until nothing is left, and says how much is allocated then.
    async fn quiet(&self, lanes: &[Lane; 2], origins: &[Origin], before: Left) -> usize {
        for lane in lanes {
            settled_after("the storm", lane).await;
            until("idle connections close", || lane.snapshot().live == 0).await;
            origins.iter().for_each(|origin| lane.forget(origin));
            assert_eq!(lane.snapshot().origins, 0);
            until("the budget has all permits back", || lane.snapshot().connections == 0).await;
        }
        until(&format!("{before:?} is all that is left"), || Left::now() <= before).await;
        // Rings that were asked for keep what they name allocated until they come.
        sleep(limits().age_max).await;
        let stats = ALLOCATOR.stats();
        stats.bytes_allocated - stats.bytes_deallocated
    }
}

/// What must not grow, whatever happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    file_descriptors: usize,
    tasks: usize,
}

// === impl Left ===

impl Left {
    fn now() -> Self {
        let file_descriptors = std::fs::read_dir("/proc/self/fd").expect("procfs").count();
        Self { file_descriptors, tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks() }
    }
}

impl PartialOrd for Left {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        let fewer = self.file_descriptors <= other.file_descriptors && self.tasks <= other.tasks;
        fewer.then_some(if self == other { std::cmp::Ordering::Equal } else { std::cmp::Ordering::Less })
    }
}

fn limits() -> LaneLimits {
    LaneLimits {
        partitions: 3,
        connections_max: 60,
        connections_per_origin_max: 12,
        dials_max: 24,
        dial_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_millis(700),
        age_max: Duration::from_secs(2),
        backoff_base: Duration::from_millis(20),
        backoff_max: Duration::from_millis(200),
        ping_interval: Duration::from_millis(300),
        ping_timeout: Duration::from_millis(300),
        ..LaneLimits::default()
    }
}

async fn read(sfu: &OriginHandle, request: Request<Body>, patience: Duration, fresh: bool) -> Result<(), Error> {
    let deadline = after(patience);
    let answer = if fresh { sfu.fresh(request, deadline).await? } else { sfu.send(request, deadline).await? };
    answer.into_body().bytes(1 << 20).await.map(drop)
}

/// What an operator does in such a minute.
async fn operate(lane: &Lane, origin: &Origin, dice: &mut StdRng) {
    match dice.random_range(0..6) {
        0 => lane.forget(origin),
        1 => {
            lane.drain_origin(origin, Waiting::Serve, after(millis(dice, 0..100))).await;
        }
        2 => {
            lane.drain_origin(origin, Waiting::Refuse, after(Duration::ZERO)).await;
        }
        _ => {
            let limits = LaneLimits {
                connections_max: dice.random_range(6..100),
                connections_per_origin_max: dice.random_range(1..20),
                dials_max: dice.random_range(3..60),
                h2_streams_max: dice.random_range(1..100),
                waiters_max: dice.random_range(3..200),
                dial_rate_per_s: dice.random_range(20.0..1_000.0),
                ..limits()
            };
            lane.set_limits(limits).expect("they do not contradict each other");
        }
    }
}

async fn soak(seed: u64, lasts: Duration) {
    let world = Arc::new(World::new(seed).await);
    let (lanes, origins) = (world.lanes(seed), world.origins());
    sleep(Duration::from_millis(50)).await; // The lanes' own tasks have started.
    let before = Left::now();
    world.ask_everybody(&lanes, &origins).await;
    let mut left = vec![world.quiet(&lanes, &origins, before).await];
    for half in 0..2 {
        let end = after(lasts / 2);
        world.rage(seed.wrapping_add(half), &lanes, &origins, end).await;
        left.push(world.quiet(&lanes, &origins, before).await);
    }
    let (answered, failed) = (world.answered.load(Ordering::SeqCst), world.failed.load(Ordering::SeqCst));
    assert!(answered > 100 && failed > 100, "{answered} answered, {failed} failed: that was no storm");
    let most = left[0] + LEFT_BYTES_MAX;
    assert!(left.iter().all(|left| *left <= most), "{left:?} bytes left, {answered} answered, {failed} failed");
    assert!(left[2] <= left[1] + GROWTH_BYTES_MAX, "{left:?} bytes left, {answered} answered, {failed} failed");
    world.ask_everybody(&lanes, &origins).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r02_r04_r19_i08_a_minute_of_faults_leaves_nothing_behind() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (seed, seconds) = (number("POOL_SOAK_SEED").unwrap_or(SEED), number("POOL_SOAK_SECONDS").unwrap_or(SECONDS));
    let loud = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        if what.payload_as_str() != Some(POISON) {
            loud(what);
        }
    }));
    if let Err(panic) = AssertUnwindSafe(soak(seed, Duration::from_secs(seconds))).catch_unwind().await {
        eprintln!("again: POOL_SOAK_SEED={seed} POOL_SOAK_SECONDS={seconds} cargo test -p pool --test soak");
        panic::resume_unwind(panic);
    }
}
