//! The fleet of `dev`: mock SFUs and syncers in this process, found through real files.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, Url};
use sfu_api::{RegionId, SyncerId};
use sfu_mock::{Cluster, ClusterConfig};
use syncer::config::{Config, LISTEN_PORT_DEFAULT, Secret, TlsConfig};
use syncer::server::{Options, Running, Syncer, provide_descriptors};
use tempfile::TempDir;
use tokio::time::Instant;

use super::DevArgs;
use super::pki::{Pki, write};
use crate::exit::{Exit, Failure, WithExit};
use crate::operator::{Client, Connection};

/// Three regions: one more than a call's own and one to fall back to.
const REGIONS: [&str; 3] = ["asia", "europe", "america"];
/// Syncers are ready within this time, or something is wrong: nothing here is far away.
const READY_MAX: Duration = Duration::from_secs(30);
/// Between two looks at whether they are.
const READY_LOOK: Duration = Duration::from_millis(50);
/// A fleet that nobody needs any more need not hand anything over.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// File descriptors between a syncer and an SFU: two connections and one that comes or goes, both ends of each.
const DESCRIPTORS_PER_LINK: usize = 6;
/// Those of the gateways, between the syncers, and of the process itself.
const DESCRIPTORS_OTHER: usize = 512;

/// A running fleet.
pub(super) struct DevFleet {
    cluster: Cluster,
    syncers: Vec<Running>,
    urls: Vec<String>,
    ca_pem: String,
    ca: PathBuf,
    // Removed when this is dropped, if it is a temporary one.
    _dir: Option<TempDir>,
}

// === impl DevFleet ===

impl DevFleet {
    /// Starts everything and waits until it is ready.
    pub(super) async fn start(arguments: &DevArgs) -> Result<Self, Failure> {
        provide_descriptors(descriptors(arguments), "--sfus, --syncers");
        let (dir, temporary) = directory(arguments.dir.as_deref())?;
        let pki = Pki::in_dir(&dir)?;
        let cluster = Cluster::start(ClusterConfig {
            nodes: arguments.sfus.into(),
            regions: REGIONS
                .iter()
                .map(RegionId::new)
                .collect::<Result<_, _>>()
                .or_exit(Exit::Bug, "naming regions")?,
            seed: arguments.seed,
            dir: Some(dir.clone()),
            ..ClusterConfig::default()
        })
        .await
        .or_exit(Exit::Failed, "starting the mock SFUs")?;
        let addresses = addresses(arguments.port, arguments.syncers)?;
        let urls: Vec<String> = addresses.iter().map(|address| format!("https://{address}")).collect();
        let members = write(&dir, "members.toml", &members(&urls))?;
        let ca_pem = format!("{}{}", pki.ca_pem, cluster.ca_pem());
        let ca = write(&dir, "ca-all.pem", &ca_pem)?;
        let mut syncers = Vec::new();
        for (n, &listen) in (1..).zip(&addresses) {
            let config = config(n, listen, &pki, &dir, &members)?;
            let started = Syncer::start(config, Options::default()).await;
            syncers.push(started.or_exit(Exit::Failed, format!("starting syncer-{n}"))?);
        }
        let fleet = Self { cluster, syncers, urls, ca_pem, ca, _dir: temporary };
        fleet.ready().await?;
        Ok(fleet)
    }

    /// What a drill needs to know.
    pub(super) fn targets(&self) -> drill::Targets {
        drill::Targets {
            syncers: self.urls.clone(),
            ca_pem: Some(self.ca_pem.clone()),
            controls: vec![self.cluster.control_url()],
            ..drill::Targets::default()
        }
    }

    /// An operator's client of all syncers.
    pub(super) async fn client(&self) -> Result<Client, Failure> {
        let url = Url::parse(&self.urls[0]).or_exit(Exit::Bug, "our own URL")?;
        Client::new(Connection { url, token: Secret::new("dev"), ca: Some(self.ca.clone()), all: true }).await
    }

    /// Where everything is, and what to try.
    pub(super) fn introduction(&self) -> String {
        let (url, ca, control) = (&self.urls[0], self.ca.display(), self.cluster.control_url());
        format!(
            "syncers   {}\n\
             mock SFUs {control}/control/nodes\n\
             \n\
             Try, in another terminal (CA={ca}):\n\
             \x20 curl --cacert $CA {url}/v1/status\n\
             \x20 curl --cacert $CA -N -H 'authorization: Bearer me' {url}/v1/watch\n\
             \x20 curl --cacert $CA -H 'authorization: Bearer me' -X PUT {url}/v1/guilds/g/calls/c/participants/s \\\n\
             \x20      -H 'content-type: application/json' -d '{{\"seq\":1}}'\n\
             \x20 curl -d '{{\"share\":0.1,\"fault\":{{\"kind\":\"kill\"}}}}' {control}/control/faults\n\
             \x20 trunkline sfus --url {url} --ca $CA\n",
            self.urls.join(" ")
        )
    }

    /// Takes everything down.
    pub(super) async fn stop(self) {
        let deadline = Instant::now() + DRAIN_MAX;
        join_all(self.syncers.into_iter().map(|syncer| syncer.shutdown(deadline))).await;
        self.cluster.shutdown().await;
    }

    /// Waits until every syncer knows all members and SFUs, and the SFUs can verify tokens.
    async fn ready(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_MAX;
        let client = self.client().await?;
        for base in client.bases() {
            while !client.ask(base, Method::GET, "/v1/status", None).await.is_ok_and(|status| status["ready"] == true) {
                if Instant::now() >= deadline {
                    return Err(Failure::new(Exit::Failed, format!("{base} did not get ready in {READY_MAX:?}")));
                }
                tokio::time::sleep(READY_LOOK).await;
            }
        }
        let jwks = client.get("/.well-known/jwks.json").await?;
        self.cluster.set_jwks(jwks.to_string().as_bytes()).or_exit(Exit::Bug, "the syncers' token keys")
    }
}

fn directory(asked: Option<&Path>) -> Result<(PathBuf, Option<TempDir>), Failure> {
    match asked {
        Some(dir) => {
            std::fs::create_dir_all(dir).or_exit(Exit::Failed, format!("making {}", dir.display()))?;
            Ok((dir.to_owned(), None))
        }
        None => {
            let temporary = TempDir::with_prefix("trunkline-").or_exit(Exit::Failed, "making a temporary directory")?;
            Ok((temporary.path().to_owned(), Some(temporary)))
        }
    }
}

/// The syncers' addresses. A port that was asked for must be free; the default gives way.
fn addresses(port: Option<u16>, count: u16) -> Result<Vec<SocketAddr>, Failure> {
    let first = port.unwrap_or(LISTEN_PORT_DEFAULT);
    let last = first.checked_add(count - 1).ok_or_else(|| Failure::new(Exit::Usage, "--port is too high"))?;
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // Held until all are known, so that none is given out twice.
    let mut held = Vec::new();
    for wanted in first..=last {
        match (TcpListener::bind(at(wanted)), port) {
            (Ok(listener), _) => held.push(listener),
            (Err(error), Some(_)) => return Err(error).or_exit(Exit::Failed, format!("listening on {}", at(wanted))),
            (Err(_), None) => held.push(TcpListener::bind(at(0)).or_exit(Exit::Failed, "finding a free port")?),
        }
    }
    held.iter().map(|listener| listener.local_addr().or_exit(Exit::Failed, "finding a free port")).collect()
}

/// What such a fleet comes to have open; the limits of its syncers add up to far more.
fn descriptors(arguments: &DevArgs) -> usize {
    let (syncers, sfus) = (usize::from(arguments.syncers), usize::from(arguments.sfus));
    DESCRIPTORS_OTHER + sfus * (1 + syncers * DESCRIPTORS_PER_LINK)
}

fn members(urls: &[String]) -> String {
    let member =
        |(n, url): (usize, &String)| format!("[[members]]\nid = \"syncer-{n}\"\nurl = \"{url}\"\nzone = \"z{n}\"\n");
    (1..).zip(urls).map(member).collect()
}

fn config(n: usize, listen: SocketAddr, pki: &Pki, dir: &Path, members: &Path) -> Result<Config, Failure> {
    Ok(Config {
        id: SyncerId::new(format!("syncer-{n}")).or_exit(Exit::Bug, "naming a syncer")?,
        zone: format!("z{n}"),
        listen,
        advertise: Some(format!("https://{listen}")),
        tls: Some(TlsConfig { cert: pki.certificate.clone(), key: pki.key.clone() }),
        members_file: Some(members.to_owned()),
        sfus_file: Some(dir.join("sfus.toml")),
        sfu_ca_file: Some(dir.join("ca.pem")),
        peer_ca_file: Some(pki.ca.clone()),
        token_key_file: Some(pki.token_key.clone()),
        drain_grace: DRAIN_MAX,
        limits: BTreeMap::new(),
        ..Config::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_port_that_is_taken_gives_way_and_a_chosen_one_does_not() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = taken.local_addr().expect("bound").port();
        let failure = addresses(Some(port), 1).expect_err("taken");
        assert!(failure.to_string().contains(&port.to_string()), "{failure}");
        let three = addresses(None, 3).expect("some are free");
        assert_eq!(three.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn members_are_a_file_that_syncers_read() {
        let text = members(&["https://127.0.0.1:1".to_owned(), "https://127.0.0.1:2".to_owned()]);
        let table: toml::Table = toml::from_str(&text).expect("TOML");
        assert_eq!(table["members"].as_array().map(Vec::len), Some(2));
        assert_eq!(table["members"][1]["id"].as_str(), Some("syncer-2"));
    }
}
