//! Who is measured. All have the same deadline, the same time-out over TCP and TLS, the same TLS
//! settings and a session store that remembers every host.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use benches::client::{self, Sender};
use bytes::Bytes;
use drill::legacy::{ScanCost, Supervisor};
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use pool::{Body, BoxError, Lane, LaneLimits, Metrics, Origin, OriginHandle, RegistryLane};
use rustls::ClientConfig;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tower::Service;
use tower::limit::ConcurrencyLimitLayer;

use crate::load::Storm;

/// Connecting, TLS included, may take this long.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Requests per host that the bar lets out at once; also the pool's cap of connections to an origin.
const PER_HOST: usize = 64;

/// A body longer than this is not one of ours.
const BODY_BYTES_MAX: usize = 1_024;

/// Those that run in every cell.
pub(crate) const MAIN: [&str; 4] = ["reqwest", "bar_16", "bar_256", "ours"];

/// Those that run in the first cells only.
pub(crate) const OTHERS: [&str; 4] = ["hyper_util", "supervisor", "ours_p1", "ours_no_gates"];

/// How a request failed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Failure {
    /// It was refused without a try.
    pub(crate) shed: bool,
    /// When to try again, if the contestant says so.
    pub(crate) retry_after: Option<Duration>,
}

/// How a request went.
pub(crate) type Went = Result<(), Failure>;

type Future_<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Sends a request to the host with this number, by a deadline.
pub(crate) type Send_ = Arc<dyn Fn(usize, Instant) -> Future_<Went> + Send + Sync>;

/// A contestant, ready to run. Host number `hosts` is the registry.
pub(crate) struct Contestant {
    /// How storm traffic is sent.
    pub(crate) send: Send_,
    /// How a lease is renewed.
    pub(crate) renew: Send_,
    /// A thread of their own for leases, if it has one.
    pub(crate) registry: Option<RegistryLane>,
    /// For what is left at the end.
    pub(crate) lane: Option<Lane>,
    /// For the model's own figures.
    pub(crate) supervisor: Option<Supervisor<usize, Sender>>,
}

// === impl Contestant ===

impl Contestant {
    /// Builds one by name.
    pub(crate) fn build(name: &str, storm: &Storm, tasks: &TaskTracker) -> Result<Self> {
        let tls = client::tls(&storm.ca_pem)?;
        let urls: Arc<[String]> = storm.addrs.iter().map(|addr| format!("https://{addr}")).collect();
        let shared =
            |send: Send_| Self { renew: Arc::clone(&send), send, registry: None, lane: None, supervisor: None };
        Ok(match name {
            "reqwest" => shared(reqwest_send(reqwest_client(tls, None)?, urls, None)),
            "bar_16" => shared(reqwest_send(reqwest_client(tls, Some(16))?, urls, Some(PER_HOST))),
            "bar_256" => shared(reqwest_send(reqwest_client(tls, Some(256))?, urls, Some(PER_HOST))),
            "hyper_util" => shared(hyper_util_send(tls, urls)),
            "supervisor" => {
                let (send, supervisor) = supervisor_send(tls, storm, tasks);
                Self { supervisor: Some(supervisor), ..shared(send) }
            }
            "ours" => ours(tls, &urls, limits(), false)?,
            "ours_p1" => ours(tls, &urls, LaneLimits { partitions: 1, ..limits() }, false)?,
            "ours_no_gates" => ours(tls, &urls, LaneLimits { dials_max: 100_000, ..limits() }, true)?,
            _ => bail!("there is no contestant {name}"),
        })
    }
}

/// The pool's defaults, but for what all contestants share and for lines as long as a storm: nobody
/// else sheds, so neither do we.
fn limits() -> LaneLimits {
    LaneLimits {
        dial_timeout: CONNECT_MAX,
        connections_per_origin_max: PER_HOST,
        waiters_per_origin_max: 65_536,
        waiters_max: 8 * 65_536,
        ..LaneLimits::default()
    }
}

fn ours(tls: ClientConfig, urls: &[String], limits: LaneLimits, no_gates: bool) -> Result<Contestant> {
    let registry = RegistryLane::start("registry", Some(&tls), &Metrics::default())?;
    let lane = Lane::builder("sfu").tls(Arc::new(tls)).limits(limits).build()?;
    if no_gates {
        lane.set_handshakes_max(100_000);
    }
    let origins = urls.iter().map(|url| Origin::parse(url)).collect::<Result<Vec<_>, _>>()?;
    let handles: Arc<[OriginHandle]> = origins.iter().map(|origin| lane.origin(origin)).collect();
    let send: Send_ = Arc::new(move |host, deadline| {
        let handle = handles[host].clone();
        Box::pin(async move { finish(handle.send(Request::new(Body::empty()), deadline).await).await })
    });
    let to = origins.last().cloned().context("no registry")?;
    let over = registry.clone();
    let renew: Send_ = Arc::new(move |_, deadline| {
        let (registry, to) = (over.clone(), to.clone());
        Box::pin(async move { finish(registry.send(&to, Request::new(Body::empty()), deadline).await).await })
    });
    Ok(Contestant { send, renew, registry: Some(registry), lane: Some(lane), supervisor: None })
}

async fn finish(response: Result<http::Response<pool::ResponseBody>, pool::Error>) -> Went {
    let failure = |error: pool::Error| Failure { shed: error.is_saturated(), retry_after: error.retry_after() };
    let response = response.map_err(failure)?;
    if !response.status().is_success() {
        return Err(Failure::default());
    }
    response.into_body().bytes(BODY_BYTES_MAX).await.map(drop).map_err(failure)
}

fn reqwest_client(tls: ClientConfig, dials: Option<usize>) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder().tls_backend_preconfigured(tls).connect_timeout(CONNECT_MAX).no_proxy();
    if let Some(dials) = dials {
        builder = builder.connector_layer(ConcurrencyLimitLayer::new(dials));
    }
    Ok(builder.build()?)
}

fn reqwest_send(client: reqwest::Client, urls: Arc<[String]>, per_host: Option<usize>) -> Send_ {
    let places: Option<Arc<[Semaphore]>> = per_host.map(|most| urls.iter().map(|_| Semaphore::new(most)).collect());
    Arc::new(move |host, deadline| {
        let request = client.get(&urls[host]);
        let places = places.clone();
        Box::pin(async move {
            let exchange = async {
                let _place = match &places {
                    Some(places) => Some(places[host].acquire().await?),
                    None => None,
                };
                let response = request.send().await?.error_for_status()?;
                response.bytes().await?;
                anyhow::Ok(())
            };
            in_time(deadline, exchange).await
        })
    })
}

fn hyper_util_send(mut tls: ClientConfig, urls: Arc<[String]>) -> Send_ {
    tls.alpn_protocols.clear(); // The builder sets them.
    let https =
        hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_all_versions().build();
    let connector = tower::service_fn(move |uri: Uri| {
        let mut https = https.clone();
        let connecting = async move { timeout(CONNECT_MAX, https.call(uri)).await.map_err(BoxError::from)? };
        Box::pin(connecting) as Future_<Result<_, BoxError>>
    });
    let client: Client<_, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).timer(TokioTimer::new()).build(connector);
    Arc::new(move |host, deadline| {
        let (client, url) = (client.clone(), urls[host].clone());
        Box::pin(async move {
            let exchange = async {
                let response = client.get(url.parse()?).await?;
                response.into_body().collect().await?;
                anyhow::Ok(())
            };
            in_time(deadline, exchange).await
        })
    })
}

fn supervisor_send(tls: ClientConfig, storm: &Storm, tasks: &TaskTracker) -> (Send_, Supervisor<usize, Sender>) {
    let (tls, addrs): (_, Arc<[_]>) = (Arc::new(tls), storm.addrs.clone().into());
    let (targets, drivers) = (Arc::clone(&addrs), tasks.clone());
    let supervisor = Supervisor::start(tasks, ScanCost::measured(), move |host: &usize| {
        let (addr, tls, drivers) = (targets[*host], Arc::clone(&tls), drivers.clone());
        async move { Sender::open(addr, &tls, CONNECT_MAX, &drivers).await }
    });
    let own = supervisor.clone();
    let send: Send_ = Arc::new(move |host, deadline| {
        let (supervisor, addr) = (supervisor.clone(), addrs[host]);
        Box::pin(async move {
            let exchange = async {
                let mut checked = supervisor.checkout(host).await?;
                checked.connection.get(&addr.to_string(), "/").await?;
                checked.give_back();
                anyhow::Ok(())
            };
            in_time(deadline, exchange).await
        })
    });
    (send, own)
}

async fn in_time(deadline: Instant, exchange: impl Future<Output = Result<()>>) -> Went {
    match timeout_at(deadline, exchange).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Failure::default()),
    }
}
