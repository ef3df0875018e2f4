//! Talking to the other syncers, on a lane of its own.
//!
//! Any syncer takes any request; what another one owns is forwarded there, once: a forwarded
//! request that reaches a syncer which does not own it either is refused there (`not_owner`), so
//! two syncers with different views cannot play ping-pong. The caller's identity goes along and
//! is believed because of the secret the syncers share. Nobody is retried here: the gateway gets
//! a 503 whose `Retry-After` spreads the callers, and the reconciler stays the only retry layer.

mod metrics;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use pool::{Body, Lane, LaneLimits, Origin, ResponseBody};
use rustls::ClientConfig;
use sfu_api::{GatewayId, SyncerId};
use tokio::time::{Instant, timeout_at};

pub use self::metrics::PeerMetrics;

/// Carries the syncers' shared secret.
pub(crate) const SECRET_HEADER: HeaderName = HeaderName::from_static("trunkline-peer");
/// Names the syncer that forwarded the request.
pub(crate) const FORWARDED_HEADER: HeaderName = HeaderName::from_static("trunkline-forwarded");
/// Names the gateway on whose behalf it was forwarded.
pub(crate) const GATEWAY_HEADER: HeaderName = HeaderName::from_static("trunkline-gateway");
/// Says what the forwarded caller may do.
pub(crate) const ROLE_HEADER: HeaderName = HeaderName::from_static("trunkline-role");

/// Where peers take what we see of the SFUs.
pub(crate) const EVIDENCE_PATH: &str = "/v1/peers/evidence";

/// How long the owner may take to answer. Joins answer from memory; a gateway's own time-out is
/// longer, so that it learns of ours.
pub(crate) const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer taken from a peer: a page of calls.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Connections to one peer. Over TLS everything shares a few; a plain HTTP/1.1 peer needs one per
/// watching gateway.
const CONNECTIONS_PER_PEER_MAX: usize = 1_024;
/// How long one watch at a peer may last before it is opened anew: its cursor makes that cheap.
const WATCH_MAX: Duration = Duration::from_secs(24 * 3600);

/// The lane to the other syncers.
#[derive(Debug)]
pub struct Peers {
    lane: Lane,
    me: HeaderValue,
    secret: Option<HeaderValue>,
    metrics: PeerMetrics,
}

/// On whose behalf a request is forwarded.
#[derive(Clone, Debug)]
pub(crate) struct OnBehalf {
    /// The caller.
    pub(crate) gateway: GatewayId,
    /// Whether it may do what operators may.
    pub(crate) operator: bool,
}

/// The peer gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct PeerError {
    what: String,
    retry_after: Option<Duration>,
}

// === impl PeerError ===

impl PeerError {
    fn new(what: impl std::fmt::Display) -> Self {
        Self { what: what.to_string(), retry_after: None }
    }

    /// When the peer may be asked again, if the pool knows.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl From<pool::Error> for PeerError {
    fn from(e: pool::Error) -> Self {
        Self { retry_after: e.retry_after(), what: format!("{e} ({})", e.cause()) }
    }
}

// === impl Peers ===

impl Peers {
    /// The limits with which the lane starts.
    #[must_use]
    pub fn limits() -> LaneLimits {
        LaneLimits { partitions: 4, connections_per_origin_max: CONNECTIONS_PER_PEER_MAX, ..LaneLimits::default() }
    }

    /// Builds the lane on the current runtime. Without a secret nothing is forwarded.
    ///
    /// # Errors
    ///
    /// When the secret cannot be a header value, or no runtime is running.
    pub fn new(
        me: &SyncerId,
        tls: Arc<ClientConfig>,
        secret: Option<&str>,
        pool_metrics: &pool::Metrics,
    ) -> Result<Self, PeerError> {
        let value = |s: &str| HeaderValue::from_bytes(s.as_bytes()).map_err(PeerError::new);
        let secret = secret
            .map(|s| {
                let mut secret = value(s)?;
                secret.set_sensitive(true);
                Ok::<_, PeerError>(secret)
            })
            .transpose()?;
        let lane = Lane::builder("peer").tls(tls).limits(Self::limits()).metrics(pool_metrics.clone()).build()?;
        Ok(Self { lane, me: value(me.as_str())?, secret, metrics: PeerMetrics::default() })
    }

    /// Its counters.
    #[must_use]
    pub fn metrics(&self) -> &PeerMetrics {
        &self.metrics
    }

    /// The lane, for its numbers and its drain.
    #[must_use]
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    fn request(&self, url: &str, method: Method, path: &str, who: &OnBehalf) -> Result<Request<Body>, PeerError> {
        let secret = self.secret.clone().ok_or_else(|| PeerError::new("no peer secret is configured"))?;
        let uri: Uri = format!("{url}{path}").parse().map_err(PeerError::new)?;
        let gateway = HeaderValue::from_bytes(who.gateway.as_str().as_bytes()).map_err(PeerError::new)?;
        Request::builder()
            .method(method)
            .uri(uri)
            .header(SECRET_HEADER, secret)
            .header(FORWARDED_HEADER, self.me.clone())
            .header(GATEWAY_HEADER, gateway)
            .header(ROLE_HEADER, if who.operator { "operator" } else { "gateway" })
            .body(Body::empty())
            .map_err(PeerError::new)
    }

    async fn send(
        &self,
        url: &str,
        request: Request<Body>,
        head_by: Instant,
        by: Instant,
    ) -> Result<Response<ResponseBody>, PeerError> {
        let origin = Origin::parse(url)?;
        let answer = timeout_at(head_by, self.lane.origin(&origin).send(request, by)).await;
        match answer {
            Ok(Ok(response)) => {
                self.metrics.answered.inc();
                Ok(response)
            }
            Ok(Err(e)) => {
                self.metrics.failed.inc();
                Err(e.into())
            }
            Err(_) => {
                self.metrics.failed.inc();
                Err(PeerError::new("no answer in time"))
            }
        }
    }

    /// Forwards one request; the answer is the owner's, whole.
    ///
    /// # Errors
    ///
    /// When the owner gave no whole answer in time.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the request may or may not have reached the owner.
    pub(crate) async fn forward(
        &self,
        url: &str,
        method: Method,
        path: &str,
        who: &OnBehalf,
        content_type: Option<&HeaderValue>,
        body: Bytes,
    ) -> Result<(http::response::Parts, Bytes), PeerError> {
        let mut request = self.request(url, method, path, who)?;
        if let Some(kind) = content_type {
            request.headers_mut().insert(CONTENT_TYPE, kind.clone());
        }
        *request.body_mut() = Body::from(body);
        let by = Instant::now() + FORWARD_TIMEOUT;
        let (parts, body) = self.send(url, request, by, by).await?.into_parts();
        let bytes = timeout_at(by, body.bytes(ANSWER_BYTES_MAX))
            .await
            .map_err(|_| PeerError::new("no whole answer in time"))??;
        Ok((parts, bytes))
    }

    /// Opens the peer's own watch on behalf of a gateway.
    ///
    /// # Errors
    ///
    /// When the peer does not answer in time.
    pub(crate) async fn watch(
        &self,
        url: &str,
        gateway: &GatewayId,
        cursor: Option<&str>,
    ) -> Result<(StatusCode, ResponseBody), PeerError> {
        let who = OnBehalf { gateway: gateway.clone(), operator: false };
        let mut request = self.request(url, Method::GET, "/v1/watch?scope=local", &who)?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(cursor) = cursor {
            let value = HeaderValue::from_str(cursor).map_err(PeerError::new)?;
            request.headers_mut().insert("last-event-id", value);
        }
        let now = Instant::now();
        let (parts, body) = self.send(url, request, now + FORWARD_TIMEOUT, now + WATCH_MAX).await?.into_parts();
        Ok((parts.status, body))
    }
}
