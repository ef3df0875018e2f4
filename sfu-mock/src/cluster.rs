//! Many nodes, one handle.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use futures_util::future::try_join_all;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use serde::Serialize;
use sfu_api::{BootId, RegionId, RoomState, SfuId, ZoneId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::address;
use crate::control;
use crate::meter::Meter;
use crate::node::{Node, World, bind};
use crate::pki::{self, Authority};
use crate::token::Keys;
use crate::{Budgets, ClusterConfig, Error, Fault, Stats, Target};

/// Ports to try when one has to be free on every address.
const PORT_ATTEMPTS: usize = 32;

/// A running cluster of mock SFUs. Dropping it stops everything soon; [`Cluster::shutdown`] waits.
#[derive(Debug)]
pub struct Cluster {
    fleet: Arc<Fleet>,
    control: SocketAddr,
    ca_pem: String,
}

/// One node as the control port shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeView {
    /// Its id.
    pub id: SfuId,
    /// Its region.
    pub region: RegionId,
    /// Its zone there, if there are any.
    pub zone: Option<ZoneId>,
    /// Its base URL, for example `https://127.1.0.1:7443`.
    pub url: String,
    /// The worst of its faults: `up`, `killed`, `restarting`, `black_holed`, `hung`, `garbled`,
    /// `erring` or `slow`.
    pub state: String,
    /// Its incarnation; of a node that is down, the next one.
    pub boot_id: BootId,
    /// All its faults.
    pub faults: Vec<Fault>,
    /// Whether it takes no new rooms.
    pub draining: bool,
    /// Rooms it holds.
    pub rooms: u32,
    /// Participants in them.
    pub participants: u32,
    /// Calls it can carry.
    pub capacity: u32,
}

/// What the handle and the control port work on.
#[derive(Debug)]
pub(crate) struct Fleet {
    nodes: Vec<Arc<Node>>,
    by_id: FxHashMap<SfuId, usize>,
    world: Arc<World>,
}

// === impl Cluster ===

impl Cluster {
    /// Starts all nodes and the control port, and writes the files the configuration asks for.
    /// Needs a tokio runtime with I/O and time; all nodes share it.
    ///
    /// # Errors
    ///
    /// When the configuration cannot work, an address is taken, or a file cannot be written.
    ///
    /// # Cancel safety
    ///
    /// Dropped, nodes that listen already stop soon; files may have been written.
    pub async fn start(config: ClusterConfig) -> Result<Self, Error> {
        config.validate()?;
        let authority = Arc::new(match config.ca_dir.as_deref().or(config.dir.as_deref()) {
            Some(dir) => Authority::in_dir(dir)?,
            None => Authority::new()?,
        });
        let listeners = listeners(&config)?;
        let control_listener = bind(config.control)?;
        let control = control_listener.local_addr().map_err(|e| Error::bind(config.control, e))?;
        let fleet = Arc::new(Fleet::new(&config, &authority, &listeners)?);
        // From here on dropping the handle stops what was started.
        let cluster = Self { fleet, control, ca_pem: authority.pem().to_owned() };
        for (node, (listener, _)) in cluster.fleet.nodes.iter().zip(listeners) {
            node.open(listener).await?;
        }
        control::spawn(&cluster.fleet, control_listener)?;
        if let Some(dir) = &config.dir {
            cluster.write_files(dir)?;
        }
        Ok(cluster)
    }

    fn write_files(&self, dir: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(dir).map_err(|e| Error::file(dir, e))?;
        pki::replace_file(&dir.join("ca.pem"), &self.ca_pem, false)?;
        pki::replace_file(&dir.join("sfus.toml"), &self.catalogue_toml(), false)?;
        pki::replace_file(&dir.join("control.url"), &format!("{}\n", self.control_url()), false)
    }

    /// The certificate to trust, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Base URL of the control port, for example `http://127.0.0.1:40123`.
    #[must_use]
    pub fn control_url(&self) -> String {
        format!("http://{}", self.control)
    }

    /// The nodes as a static catalogue (`sfus.toml`) for a syncer.
    #[must_use]
    pub fn catalogue_toml(&self) -> String {
        let mut toml = String::new();
        for node in &self.fleet.nodes {
            // Ids and URLs are made of characters that need no escape; regions and zones may hold any.
            let region = toml::Value::from(node.spot.region.as_str());
            let (id, url, capacity) = (&node.id, node.url(), self.fleet.world.capacity);
            let zone = node.spot.zone.as_ref().map(|zone| format!("zone = {}\n", toml::Value::from(zone.as_str())));
            let weight = node.spot.weight.map(|weight| format!("weight = {}\n", toml::Value::from(weight)));
            let (zone, weight) = (zone.unwrap_or_default(), weight.unwrap_or_default());
            writeln!(
                toml,
                "[[sfus]]\nid = \"{id}\"\nurl = \"{url}\"\nregion = {region}\n{zone}driver = \"native\"\ncapacity = {capacity}\n{weight}"
            )
            .expect("writing to a string cannot fail");
        }
        toml
    }

    /// All nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeView> {
        self.fleet.nodes()
    }

    /// The rooms a node holds.
    ///
    /// # Errors
    ///
    /// When no node has this id.
    pub fn rooms(&self, id: &SfuId) -> Result<Vec<RoomState>, Error> {
        self.fleet.rooms(id)
    }

    /// Breaks nodes and says which. When this returns the fault is in effect.
    ///
    /// # Errors
    ///
    /// When the fault or the target makes no sense, or a node cannot listen again.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: some nodes may have the fault.
    pub async fn fault(&self, target: &Target, fault: &Fault) -> Result<Vec<SfuId>, Error> {
        self.fleet.fault(target, fault).await
    }

    /// Removes all faults of one node; one that was killed comes back as a new incarnation.
    ///
    /// # Errors
    ///
    /// When no node has this id, or it cannot listen again.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the node may listen again and still have faults.
    pub async fn heal(&self, id: &SfuId) -> Result<(), Error> {
        self.fleet.node(id)?.heal().await
    }

    /// Removes all faults of all nodes and says which had any.
    ///
    /// # Errors
    ///
    /// When a node cannot listen again.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: some nodes may be healed.
    pub async fn heal_all(&self) -> Result<Vec<SfuId>, Error> {
        self.fleet.heal_all().await
    }

    /// What was counted since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.fleet.stats()
    }

    /// Checks every room creation from now on against these budgets.
    ///
    /// # Errors
    ///
    /// When a rate or the slack is out of range.
    pub fn set_budgets(&self, budgets: Budgets) -> Result<(), Error> {
        self.fleet.set_budgets(budgets)
    }

    /// The budgets in force.
    #[must_use]
    pub fn budgets(&self) -> Budgets {
        self.fleet.budgets()
    }

    /// Verifies tokens with these keys (a JWKS document) from now on.
    ///
    /// # Errors
    ///
    /// When the document is not a set of Ed25519 keys with ids.
    pub fn set_jwks(&self, document: &[u8]) -> Result<(), Error> {
        self.fleet.set_jwks(document)
    }

    /// Stops everything and waits until nothing runs any more.
    ///
    /// # Cancel safety
    ///
    /// Dropped, everything still stops; nobody waits for it.
    pub async fn shutdown(self) {
        let world = &self.fleet.world;
        world.stop.cancel();
        world.tasks.close();
        world.tasks.wait().await;
        for node in &self.fleet.nodes {
            node.stopped().await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.fleet.world.stop.cancel();
    }
}

// === impl Fleet ===

impl Fleet {
    fn new(
        config: &ClusterConfig,
        authority: &Arc<Authority>,
        listeners: &[(TcpListener, SocketAddr)],
    ) -> Result<Self, Error> {
        let names: Vec<_> = (0..config.nodes)
            .map(|i| {
                let id = format!("{}-{}", config.name, config.first_node + i);
                let region = i % config.regions.len();
                (SfuId::new(id).expect("a validated name and a number are an id"), config.spot(i), region)
            })
            .collect();
        let world = Arc::new(World {
            meter: Mutex::new(Meter::new(
                names.iter().map(|(id, spot, region)| (id.clone(), spot.region.clone(), *region)),
            )),
            keys: RwLock::new(None),
            capacity: config.capacity,
            latency: config.latency,
            empty_room_ttl: config.empty_room_ttl,
            started: Instant::now(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let base = pki::base_config()?;
        let mut nodes = Vec::with_capacity(names.len());
        let mut by_id = FxHashMap::default();
        for (index, ((id, spot, _), (_, address))) in names.into_iter().zip(listeners).enumerate() {
            let tls = pki::for_node(&base, authority, &id, address.ip());
            by_id.insert(id.clone(), index);
            nodes.push(Node::new((index, id, spot), *address, tls, config.seed, Arc::clone(&world)));
        }
        Ok(Self { nodes, by_id, world })
    }

    pub(crate) fn world(&self) -> &Arc<World> {
        &self.world
    }

    pub(crate) fn nodes(&self) -> Vec<NodeView> {
        self.nodes.iter().map(|node| node.view()).collect()
    }

    fn node(&self, id: &SfuId) -> Result<&Arc<Node>, Error> {
        let index = self.by_id.get(id).ok_or_else(|| Error::unknown_node(id.clone()))?;
        Ok(&self.nodes[*index])
    }

    pub(crate) fn rooms(&self, id: &SfuId) -> Result<Vec<RoomState>, Error> {
        Ok(self.node(id)?.rooms())
    }

    pub(crate) async fn fault(&self, target: &Target, fault: &Fault) -> Result<Vec<SfuId>, Error> {
        fault.validate()?;
        let seen: Vec<_> = self.nodes.iter().map(|node| (&node.id, &node.spot, !node.is_down())).collect();
        let picked = target.pick(&seen)?;
        try_join_all(picked.iter().map(|&i| self.nodes[i].fault(fault))).await?;
        tracing::info!(?fault, nodes = picked.len(), "fault injected");
        Ok(picked.into_iter().map(|i| self.nodes[i].id.clone()).collect())
    }

    pub(crate) async fn heal(&self, id: &SfuId) -> Result<(), Error> {
        self.node(id)?.heal().await
    }

    pub(crate) async fn heal_all(&self) -> Result<Vec<SfuId>, Error> {
        let broken: Vec<_> = self.nodes.iter().filter(|node| !node.view().faults.is_empty()).collect();
        try_join_all(broken.iter().map(|node| node.heal())).await?;
        tracing::info!(nodes = broken.len(), "faults healed");
        Ok(broken.iter().map(|node| node.id.clone()).collect())
    }

    pub(crate) fn stats(&self) -> Stats {
        self.world.meter.lock().stats()
    }

    pub(crate) fn set_budgets(&self, budgets: Budgets) -> Result<(), Error> {
        budgets.validate()?;
        self.world.meter.lock().set_budgets(budgets);
        Ok(())
    }

    pub(crate) fn budgets(&self) -> Budgets {
        self.world.meter.lock().budgets()
    }

    pub(crate) fn set_jwks(&self, document: &[u8]) -> Result<(), Error> {
        let keys = Keys::from_jwks(document)?;
        *self.world.keys.write() = Some(Arc::new(keys));
        Ok(())
    }
}

/// A listener for every node: one port on an address each or, where there is only 127.0.0.1, ports.
fn listeners(config: &ClusterConfig) -> Result<Vec<(TcpListener, SocketAddr)>, Error> {
    let addresses = address::plan(config)?;
    if let Err(error) = bind(SocketAddr::from((addresses[0], 0)))
        && error.is_address_missing()
    {
        return on_localhost(config);
    }
    let attempts = if config.port == 0 { PORT_ATTEMPTS } else { 1 };
    let mut last = None;
    for _ in 0..attempts {
        match on_own_addresses(&addresses, config.port) {
            Err(error) if error.is_address_in_use() => last = Some(error),
            done => return done,
        }
    }
    Err(last.unwrap_or_else(|| Error::config("no port was tried")))
}

fn on_own_addresses(addresses: &[Ipv4Addr], port: u16) -> Result<Vec<(TcpListener, SocketAddr)>, Error> {
    let mut port = port;
    let mut listeners = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let (listener, at) = bind_at(IpAddr::V4(address), port)?;
        port = at.port();
        listeners.push((listener, at));
    }
    Ok(listeners)
}

fn on_localhost(config: &ClusterConfig) -> Result<Vec<(TcpListener, SocketAddr)>, Error> {
    tracing::info!("this machine has no loopback address but 127.0.0.1: every node gets a port of its own");
    let offset = config.first_node - 1;
    let port = |i: usize| match config.port {
        0 => Ok(0),
        first => u16::try_from(usize::from(first) + offset + i)
            .map_err(|_| Error::config(format!("{} ports from {first} on do not fit below 65536", config.nodes))),
    };
    (0..config.nodes).map(|i| bind_at(IpAddr::V4(Ipv4Addr::LOCALHOST), port(i)?)).collect()
}

fn bind_at(ip: IpAddr, port: u16) -> Result<(TcpListener, SocketAddr), Error> {
    let listener = bind(SocketAddr::new(ip, port))?;
    let at = listener.local_addr().map_err(|e| Error::bind(SocketAddr::new(ip, port), e))?;
    Ok((listener, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn where_there_is_only_one_address_every_node_gets_a_port() {
        let config = ClusterConfig { nodes: 20, ..ClusterConfig::default() };
        let listeners = on_localhost(&config).expect("binds");
        let ports: std::collections::HashSet<_> = listeners.iter().map(|(_, at)| at.port()).collect();
        assert_eq!(ports.len(), 20);
        assert!(listeners.iter().all(|(_, at)| at.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let high = ClusterConfig { port: 65_530, ..config };
        assert!(on_localhost(&high).is_err_and(|e| e.is_config() || e.is_address_in_use()));
    }
}
