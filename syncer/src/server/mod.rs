//! Puts a syncer together, runs it, and takes it down again.
//!
//! [`Syncer::start`] returns when the port is open and the parts are wired; warm it is when its
//! latches say so (`/readyz`). Every task hangs on one tracker, so a shutdown can wait for all of
//! them and say who is left. Critical tasks are restarted when they fail, and counted.

mod descriptors;
mod error;
mod evidence;
mod files;
mod gateways;
mod invariants;
mod pressure;
mod supervise;
mod wiring;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pool::{Lane, LaneLimits};
use rand::RngExt as _;
use rate_limit::Levers;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{
    self, App, Audit, Auth, HttpLevers, HttpMetrics, Readiness, WATCHERS_MAX, connection::Serving, listener::Listener,
};
use crate::config::{Config, ConfigError};
use crate::context::EngineLevers;
use crate::drivers;
use crate::engine::{DriverFactory, Engine};
use crate::ownership::Ownership;
use crate::peer::{PeerLevers, Peers};
use crate::registry::{Embedded, Member, MemberState, Registry};
use crate::token::{Signer, TokenLevers};
use crate::watch::{Hub, WatchLevers};

pub use self::descriptors::provide_descriptors;
pub use self::error::StartError;
use self::files::Files;
use self::supervise::Supervisor;

/// Latch: the SFU catalogue was loaded.
const CATALOGUE: &str = "the SFU catalogue";
/// Latch: the slots that are ours by rank were claimed.
const SLOTS: &str = "the claims of slots";
/// Latch: taken back when the syncer leaves.
const STAYING: &str = "nothing: this syncer is leaving";

/// Where the levers of the lane to the SFUs begin.
const SFU_LEVERS: &str = "pool.sfu";
/// Where the levers of the lane to the peers begin.
const PEER_LEVERS: &str = "pool.peer";

/// A syncer that is not running yet.
#[derive(Debug)]
pub struct Syncer;

/// What a syncer is given besides its configuration.
#[derive(Debug, Default)]
pub struct Options {
    /// A registry shared with other syncers of this process; an embedded one of its own when absent.
    pub registry: Option<Arc<dyn Registry>>,
    /// Keys shared with other syncers of this process; from the configuration when absent.
    pub signer: Option<Arc<Signer>>,
    /// Stops the syncer at once, without a drain, when cancelled.
    pub shutdown: CancellationToken,
}

/// A running syncer. Dropping it stops it at once; [`Running::shutdown`] lets it finish.
#[derive(Debug)]
pub struct Running {
    url: String,
    addr: SocketAddr,
    admin_addr: Option<SocketAddr>,
    app: Arc<App>,
    /// Ends everything at once.
    end: CancellationToken,
    /// Ends everything but the engine's loops, which end with the drain.
    stop: CancellationToken,
    /// Cancelled when the syncer can no longer do its work.
    failed: CancellationToken,
    why: Arc<Mutex<Option<&'static str>>>,
    reload: Arc<Notify>,
    /// Us, as the roster knows us.
    me: Member,
}

/// What a shutdown left behind.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct DrainReport {
    /// The engine's share: attempts and releases under way.
    pub engine: crate::engine::DrainReport,
    /// Connections to SFUs and peers cut at the deadline.
    pub connections_cut: usize,
    /// Tasks that had not ended at the deadline.
    pub tasks_left: usize,
}

// === impl Syncer ===

impl Syncer {
    /// Whether a start would refuse this configuration: reads the lists and the key, and tries the
    /// limits. Nothing is started and no port is opened.
    ///
    /// # Errors
    ///
    /// As [`Self::start`] for what the configuration and the files it names say.
    pub fn check(config: &Config) -> Result<(), StartError> {
        config.check()?;
        if let Some(path) = &config.token_key_file {
            Signer::from_pem_file(path)?;
        }
        files::check(config)?;
        let levers = Levers::new();
        let _registered = (
            EngineLevers::register(&levers),
            HttpLevers::register(&levers),
            WatchLevers::register(&levers),
            PeerLevers::register(&levers),
            TokenLevers::register(&levers),
        );
        sfu_limits().register_levers(&levers, SFU_LEVERS);
        Peers::limits().register_levers(&levers, PEER_LEVERS);
        apply_limits(config, &levers)?;
        Ok(())
    }

    /// Starts a syncer on the current runtime.
    ///
    /// # Errors
    ///
    /// When the configuration is wrong ([`StartError::is_config`]), the port is in use, or a file or
    /// directory cannot be used.
    ///
    /// # Cancel safety
    ///
    /// Dropped, what was started ends.
    pub async fn start(config: Config, options: Options) -> Result<Running, StartError> {
        config.check()?;
        let tcp = bind("listen", config.listen).await?;
        let admin = match config.admin_addr() {
            Some(at) => Some(bind("admin_listen", at).await?),
            None => None,
        };
        let addr = tcp.local_addr().map_err(|e| StartError::io("listen", &e))?;
        let admin_addr = admin.as_ref().and_then(|l| l.local_addr().ok());
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let url = config.advertise.clone().unwrap_or_else(|| format!("{scheme}://{addr}"));
        let url = url.trim_end_matches('/').to_owned();

        let end = options.shutdown.child_token();
        let stop = end.child_token();
        let tracker = TaskTracker::new();
        let app = Arc::new(build(&config, &options, &end, &stop, &tracker)?);
        let tls = config.server_tls()?.map(|tls| Arc::new(ArcSwap::new(tls)));
        let own_signer = options.signer.is_none().then_some(&app.signer);
        let files = Files::new(&config, tls.clone(), &app, own_signer);
        let me = Member {
            boot_id: Some(format!("{:016x}", app.boot)),
            state: MemberState::Warming,
            ..Member::new(config.id.clone(), url.as_str(), config.zone.clone())
        };
        let registry = Arc::clone(app.ownership.registry());
        files.load_all(&*registry).await?;
        registry.announce(me.clone(), Instant::now()).await?;

        let running = Running {
            url,
            addr,
            admin_addr,
            app: Arc::clone(&app),
            end,
            stop: stop.clone(),
            failed: CancellationToken::new(),
            why: Arc::default(),
            reload: Arc::new(Notify::new()),
            me,
        };
        let supervisor = Supervisor::new(tracker, stop, app.http.restarts.clone());
        running.run_listeners(&supervisor, tcp, admin, tls, config.operators_on_api());
        running.run_background(&supervisor, files);
        tracing::info!(syncer = %config.id, url = running.url, "syncer started");
        Ok(running)
    }
}

/// The lane to the SFUs is what the pool's defaults are made for.
fn sfu_limits() -> LaneLimits {
    LaneLimits::default()
}

async fn bind(key: &'static str, at: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(at).await.map_err(|e| StartError::bind(key, at, &e))
}

/// Makes the parts; no task of ours runs yet.
fn build(
    config: &Config,
    options: &Options,
    end: &CancellationToken,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) -> Result<App, StartError> {
    let boot = rand::rng().random::<u64>();
    let registry: Arc<dyn Registry> = match (&options.registry, &config.state_dir) {
        (Some(registry), _) => Arc::clone(registry),
        (None, Some(dir)) => Embedded::open(dir)?,
        (None, None) => Embedded::in_memory(),
    };
    let signer = match (&options.signer, &config.token_key_file) {
        (Some(signer), _) => Arc::clone(signer),
        (None, Some(path)) => Arc::new(Signer::from_pem_file(path)?),
        (None, None) => Arc::new(Signer::generate()?),
    };
    let pool_metrics = pool::Metrics::default();
    let sfu_lane =
        Lane::builder("sfu").tls(config.sfu_tls()?).limits(sfu_limits()).metrics(pool_metrics.clone()).build()?;
    let levers = Levers::new();
    let forwarding = PeerLevers::register(&levers);
    let peers = Arc::new(Peers::new(&config.id, config.peer_tls()?, config.peer_secret(), &pool_metrics, forwarding)?);
    let signer = Arc::new(signer.with_ttl(TokenLevers::register(&levers).ttl));
    let limits = Arc::new(HttpLevers::register(&levers));
    let hub = Hub::new(boot, WatchLevers::register(&levers));
    let factory: DriverFactory = {
        let (lane, signer, id) = (sfu_lane.clone(), Arc::clone(&signer), config.id.clone());
        Arc::new(move |spec| drivers::build(spec, &lane, &signer, &id))
    };
    let announcer = Arc::clone(&hub);
    // Not a child of `stop`: the engine's loops end with its drain.
    let engine_stop = end.child_token();
    let engine = Engine::start(config.id.clone(), levers, announcer, factory, boot, engine_stop);
    sfu_lane.register_levers(engine.levers(), SFU_LEVERS);
    peers.lane().register_levers(engine.levers(), PEER_LEVERS);
    apply_limits(config, engine.levers())?;
    engine.set_region_groups(config.region_groups.clone());

    let http = HttpMetrics::default();
    let mut metrics = prometheus_client::registry::Registry::with_prefix("trunkline");
    engine.register_metrics(&mut metrics);
    hub.metrics().register(&mut metrics);
    peers.metrics().register(&mut metrics);
    pool_metrics.register(&mut metrics);
    http.register(&mut metrics);
    Ok(App {
        engine,
        hub,
        ownership: Ownership::new(config.id.clone(), registry),
        peers,
        sfu_lane,
        signer,
        auth: Arc::new(Auth::new(config)),
        audit: Audit::default(),
        ready: Readiness::waiting_for(&[CATALOGUE, SLOTS]),
        watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
        registry: metrics,
        http,
        limits,
        stop: stop.clone(),
        tracker: tracker.clone(),
        started: Instant::now(),
        boot,
        requests: AtomicU64::new(0),
    })
}

/// Sets levers to their configured values. Names may be written dotted or as tables.
fn apply_limits(config: &Config, levers: &Levers) -> Result<(), ConfigError> {
    let mut values = Vec::new();
    for (name, value) in &config.limits {
        flatten(name.clone(), value, &mut values);
    }
    for (name, value) in values {
        levers
            .set(&name, &value, "configuration", None, api::unix_ms())
            .map_err(|e| config.limit_error(&name, e.to_string()))?;
    }
    Ok(())
}

fn flatten(name: String, value: &toml::Value, to: &mut Vec<(String, serde_json::Value)>) {
    match value {
        toml::Value::Table(table) => {
            for (inner, value) in table {
                flatten(format!("{name}.{inner}"), value, to);
            }
        }
        toml::Value::Integer(n) => to.push((name, (*n).into())),
        toml::Value::Float(n) => to.push((name, (*n).into())),
        toml::Value::Boolean(b) => to.push((name, (*b).into())),
        other => to.push((name, other.as_str().map_or_else(|| other.to_string(), str::to_owned).into())),
    }
}

// === impl Running ===

impl Running {
    /// Where the API is, for clients and peers.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Address of the API's socket.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Address of the second listener's socket.
    #[must_use]
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.app.engine
    }

    /// Raises the process's limit of open files to what this syncer may need. For a process that is this syncer's alone;
    /// others sum up, and [provide](provide_descriptors) by themselves.
    pub fn provide_descriptors(&self) {
        provide_descriptors(descriptors::most(&self.app), descriptors::LEVERS);
    }

    /// The keys that sign tokens.
    #[must_use]
    pub fn signer(&self) -> &Arc<Signer> {
        &self.app.signer
    }

    /// Whether the syncer is warm and takes traffic.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.app.ready.missing().is_empty()
    }

    /// Reads the files again, as SIGHUP does.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Waits until the syncer can no longer do its work, and says why: it was removed from the
    /// roster. The command then shuts it down.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub async fn failed(&self) -> &'static str {
        self.failed.cancelled().await;
        self.why.lock().unwrap_or("unknown")
    }

    /// Leaves: readiness off, no new work, then what is under way until `deadline`.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the syncer stops at once.
    pub async fn shutdown(self, deadline: Instant) -> DrainReport {
        self.app.ready.set(STAYING, false);
        let registry = Arc::clone(self.app.ownership.registry());
        let leaving = Member { state: MemberState::Draining, ..self.me.clone() };
        if let Err(error) = registry.announce(leaving, Instant::now()).await {
            tracing::warn!(%error, "the roster was not told that this syncer leaves");
        }
        let engine = self.app.engine.drain(deadline).await;
        self.stop.cancel();
        if let Err(error) = registry.remove(self.app.ownership.me()).await {
            tracing::warn!(%error, "not removed from the roster");
        }
        let (sfus, peers) = tokio::join!(self.app.sfu_lane.drain(deadline), self.app.peers.lane().drain(deadline));
        let tracker = self.app.tracker.clone();
        tracker.close();
        let tasks_left = match timeout_at(deadline, tracker.wait()).await {
            Ok(()) => 0,
            Err(_) => tracker.len(),
        };
        let connections_cut = sfus.connections_aborted + peers.connections_aborted;
        tracing::info!(tasks_left, connections_cut, "syncer stopped");
        DrainReport { engine, connections_cut, tasks_left }
    }

    fn run_listeners(
        &self,
        supervisor: &Supervisor,
        tcp: TcpListener,
        admin: Option<TcpListener>,
        tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
        operators: bool,
    ) {
        let app = &self.app;
        let serving = |tls, operators| Serving {
            tls,
            operators,
            router: api::router(Arc::clone(app), operators),
            limits: Arc::clone(&app.limits),
            metrics: app.http.clone(),
            tracker: app.tracker.clone(),
            stop: self.stop.clone(),
        };
        let turned = || app.engine.levers().changed();
        let api = Listener::new(tcp, app.limits.connections_max.clone(), turned(), serving(tls, operators));
        supervisor.run("accept loop", move || api.clone().run());
        if let Some(tcp) = admin {
            let admin = Listener::new(tcp, app.limits.admin_connections_max.clone(), turned(), serving(None, true));
            supervisor.run("admin accept loop", move || admin.clone().run());
        }
    }

    fn run_background(&self, supervisor: &Supervisor, files: Files) {
        let (app, stop) = (Arc::clone(&self.app), self.stop.clone());
        supervisor.run("ownership", move || wiring::ownership(Arc::clone(&app), stop.clone()));
        let app = Arc::clone(&self.app);
        supervisor.run("catalogue", move || wiring::catalogue(Arc::clone(&app)));
        let app = Arc::clone(&self.app);
        supervisor.run("peers", move || wiring::peers(Arc::clone(&app)));
        let app = Arc::clone(&self.app);
        supervisor.run("invariants", move || invariants::watch(Arc::clone(&app)));
        let app = Arc::clone(&self.app);
        supervisor.run("pressure", move || pressure::watch(Arc::clone(&app)));
        let app = Arc::clone(&self.app);
        supervisor.run("descriptors", move || descriptors::watch(Arc::clone(&app)));
        let app = Arc::clone(&self.app);
        supervisor.run("evidence", move || evidence::tell(Arc::clone(&app)));
        let app = Arc::clone(&self.app);
        supervisor.run("news", move || wiring::news(Arc::clone(&app)));
        let app = Arc::clone(&self.app);
        supervisor.run("gateways heard", move || gateways::share(Arc::clone(&app)));
        let (app, files, reload) = (Arc::clone(&self.app), Arc::new(files), Arc::clone(&self.reload));
        supervisor.run("files", move || {
            let (app, files, reload) = (Arc::clone(&app), Arc::clone(&files), Arc::clone(&reload));
            async move { files.follow(&**app.ownership.registry(), &app.http, &reload).await }
        });
        let (app, stop) = (Arc::clone(&self.app), self.stop.clone());
        let (failed, why) = (self.failed.clone(), Arc::clone(&self.why));
        supervisor
            .run("lease", move || wiring::lease(Arc::clone(&app), stop.clone(), failed.clone(), Arc::clone(&why)));
        let (app, me) = (Arc::clone(&self.app), self.me.clone());
        supervisor.run("readiness", move || wiring::readiness(Arc::clone(&app), me.clone()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl DrainReport {
    /// Whether nothing was left behind.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.engine.releases_left == 0 && self.engine.attempts_left == 0 && self.tasks_left == 0
    }
}
