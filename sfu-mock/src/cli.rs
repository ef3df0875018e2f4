//! The command line of a cluster that runs as a process of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use sfu_api::{RegionId, ZoneId};
use tokio_util::sync::CancellationToken;

use crate::{Cluster, ClusterConfig, Error};

/// Descriptors a node needs at least: its listener and a connection from a syncer.
const DESCRIPTORS_PER_NODE: usize = 2;
/// Descriptors of the process itself: control port, logs, runtime.
const DESCRIPTORS_OTHER: usize = 64;

/// Runs a cluster of mock SFUs over real HTTPS, with faults on demand.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// SFUs to run
    #[arg(long, default_value_t = 50)]
    pub nodes: usize,
    /// Regions, comma-separated; nodes are spread over them in turn
    #[arg(long, value_delimiter = ',', default_value = "a,b,c")]
    pub regions: Vec<RegionId>,
    /// Zones of each region, comma-separated; its nodes are spread over them in turn [default: none]
    #[arg(long, value_delimiter = ',')]
    pub zones: Vec<ZoneId>,
    /// Weights, comma-separated; the nodes of each zone have them in turn [default: none]
    #[arg(long, value_delimiter = ',')]
    pub weights: Vec<f64>,
    /// Seeds error rates and choices by share
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// First part of the ids: NAME-1, NAME-2...; a number at its end chooses the addresses
    #[arg(long, visible_alias = "prefix", default_value = "sfu")]
    pub name: String,
    /// Number of the first node, in ids and addresses
    #[arg(long, default_value_t = 1)]
    pub first_node: usize,
    /// Address of node 1, in 127.0.0.0/8 [default: 127.N.0.1 for a name that ends in N, else 127.1.0.1]
    #[arg(long)]
    pub base: Option<Ipv4Addr>,
    /// Port of every node; 0 chooses a free one
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Control port (plain HTTP, loopback only)
    #[arg(long, default_value = "127.0.0.1:0")]
    pub control: SocketAddr,
    /// Where to write ca.pem, sfus.toml and control.url [default: ./trunkline-NAME]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Where the certificate authority is kept, to share it between clusters [default: DIR]
    #[arg(long)]
    pub ca_dir: Option<PathBuf>,
    /// Calls each SFU can carry
    #[arg(long, default_value_t = 1000)]
    pub capacity: u32,
    /// Added to every answer, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub latency_ms: u64,
    /// Seconds after which an empty room that nobody names removes itself
    #[arg(long, default_value_t = 120)]
    pub empty_room_s: u64,
}

/// Runs a cluster until `shutdown`.
///
/// What the user needs to know is logged at info level; scripts read `DIR/control.url`, which is
/// written last.
///
/// # Errors
///
/// When the cluster cannot start; the message says what to change.
///
/// # Cancel safety
///
/// Dropped, the cluster stops soon, without waiting for its tasks; its files stay.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = args.into_config();
    check_descriptors(config.nodes, open_files_max())?;
    let dir = config.dir.clone().unwrap_or_default();
    let nodes = config.nodes;
    let cluster = Cluster::start(config).await?;
    tracing::info!(
        nodes,
        control = %cluster.control_url(),
        ca = %dir.join("ca.pem").display(),
        catalogue = %dir.join("sfus.toml").display(),
        "mock SFUs are up"
    );
    shutdown.cancelled().await;
    cluster.shutdown().await;
    Ok(())
}

// === impl Args ===

impl Args {
    /// The configuration these arguments ask for.
    #[must_use]
    pub fn into_config(self) -> ClusterConfig {
        let dir = self.dir.unwrap_or_else(|| PathBuf::from(format!("trunkline-{}", self.name)));
        ClusterConfig {
            nodes: self.nodes,
            regions: self.regions,
            zones: self.zones,
            weights: self.weights,
            seed: self.seed,
            name: self.name,
            first_node: self.first_node,
            base: self.base,
            port: self.port,
            control: self.control,
            capacity: self.capacity,
            latency: Duration::from_millis(self.latency_ms),
            empty_room_ttl: Duration::from_secs(self.empty_room_s),
            dir: Some(dir),
            ca_dir: self.ca_dir,
        }
    }
}

fn check_descriptors(nodes: usize, limit: Option<usize>) -> Result<(), Error> {
    let needed = nodes.saturating_mul(DESCRIPTORS_PER_NODE).saturating_add(DESCRIPTORS_OTHER);
    match limit {
        Some(limit) if limit < needed => Err(Error::config(format!(
            "{nodes} nodes need at least {needed} open files, this process may have {limit}: run `ulimit -n {}` first, \
             or use fewer --nodes",
            needed.next_power_of_two()
        ))),
        _ => Ok(()),
    }
}

/// The soft limit of open files; `None` where it cannot be told.
fn open_files_max() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    parse_limit(&limits)
}

fn parse_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok() // "unlimited" is no limit
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn defaults_make_a_valid_cluster() {
        let command = Command::try_parse_from(["sfu-mock"]).expect("parses");
        let config = command.args.into_config();
        assert!(config.validate().is_ok());
        assert_eq!((config.nodes, config.regions.len()), (50, 3));
    }

    #[test]
    fn bad_arguments_say_what_to_do() {
        let parse = |args: &[&str]| {
            let all = ["sfu-mock"].iter().chain(args);
            Command::try_parse_from(all)
                .expect("parses")
                .args
                .into_config()
                .validate()
                .expect_err("refused")
                .to_string()
        };
        assert!(parse(&["--nodes", "0"]).contains("1 to 20000"));
        assert!(parse(&["--name", "Bad Name"]).contains("a-z"));
        assert!(parse(&["--regions", "a,b,a"]).contains("a twice"));
        assert!(parse(&["--zones", "x,x"]).contains("x twice"));
        assert!(parse(&["--weights", "1,0"]).contains("0.01 to 100"));
        assert!(parse(&["--control", "0.0.0.0:1"]).contains("loopback"));
        assert!(parse(&["--base", "10.0.0.1"]).contains("127.0.0.0/8"));
        assert!(Command::try_parse_from(["sfu-mock", "--regions", "a b"]).is_err());
    }

    #[test]
    fn too_many_nodes_for_the_limit_of_open_files_are_refused_early() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(parse_limit(limits), Some(1024));
        assert_eq!(parse_limit(&limits.replace("1024  ", "unlimited")), None);
        let error = check_descriptors(1000, Some(1024)).expect_err("refused");
        assert!(error.to_string().contains("ulimit -n 4096"), "{error}");
        assert!(check_descriptors(1000, Some(4096)).is_ok());
        assert!(check_descriptors(1000, None).is_ok());
    }

    #[tokio::test]
    async fn a_run_leaves_its_files_and_ends_on_shutdown() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = dir.path().to_str().expect("text");
        let args = Command::try_parse_from(["sfu-mock", "--nodes", "2", "--dir", at]).expect("parses").args;
        let shutdown = CancellationToken::new();
        let url = dir.path().join("control.url");
        let stop_when_up = async {
            while !url.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            shutdown.cancel();
        };
        let both = async { tokio::join!(run(args, shutdown.clone()), stop_when_up).0 };
        let done = tokio::time::timeout(Duration::from_secs(30), both).await;
        assert!(done.expect("in time").is_ok());
        let url = std::fs::read_to_string(url).expect("written");
        let address = url.trim().trim_start_matches("http://");
        assert!(std::net::TcpStream::connect(address).is_err(), "the control port is closed");
    }
}
