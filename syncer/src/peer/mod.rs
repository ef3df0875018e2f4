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
use crate::context::lever_set;
use crate::registry::MEMBERS_MAX;

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

/// Largest answer taken from a peer: a page of calls.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Connections to one peer. Over TLS everything shares a few; a plain HTTP/1.1 peer needs one per
/// watching gateway.
const CONNECTIONS_PER_PEER_MAX: usize = 1_024;
/// Connections to one peer over TLS, of 100 requests each ([`LaneLimits::h2_streams_max`]), where a fleet has as many
/// members as it may: the watches of 1,200 gateways, what is forwarded, and those that retire. With the 30 syncers of a
/// large fleet there are 136 for each peer, and all watches there may be (`WATCHERS_MAX`) need 82.
const CONNECTIONS_PER_PEER: usize = 16;
/// Partitions of the lane: few peers, so that few share one.
const PARTITIONS: usize = 4;
/// Connections of the lane: what the largest fleet needs, not what one to the SFUs does.
const CONNECTIONS_MAX: usize = MEMBERS_MAX * CONNECTIONS_PER_PEER;
// A peer without TLS may have its most out of one partition's share.
const _: () = assert!(CONNECTIONS_MAX / PARTITIONS >= CONNECTIONS_PER_PEER_MAX);
/// How long one watch at a peer may last before it is opened anew: its cursor makes that cheap.
const WATCH_MAX: Duration = Duration::from_secs(24 * 3600);

lever_set! {
    /// The limits of what is said to other syncers, beside those of their lane.
    pub struct PeerLevers {
        // Joins answer from memory, so that 3 s is a peer that hangs or a network that lost what was sent.
        /// How long another syncer may take to answer what is forwarded to it, and what it is told; then the caller gets a
        /// 503. Gateways' own time-outs have to be longer, so that they learn of this one, and `http.request_timeout` longer by
        /// the time that bodies take. A peer that answers later is no witness for the death of an SFU.
        forward_timeout: Duration = "peer.forward_timeout" ["duration"] Duration::from_secs(3),
            Duration::from_millis(100) => Duration::from_secs(30);
    }
}

/// The lane to the other syncers.
#[derive(Debug)]
pub struct Peers {
    lane: Lane,
    me: HeaderValue,
    secret: Option<HeaderValue>,
    metrics: PeerMetrics,
    levers: PeerLevers,
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
        LaneLimits {
            partitions: PARTITIONS,
            connections_per_origin_max: CONNECTIONS_PER_PEER_MAX,
            connections_max: CONNECTIONS_MAX,
            dials_max: MEMBERS_MAX, // all peers at once
            ..LaneLimits::default()
        }
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
        levers: PeerLevers,
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
        Ok(Self { lane, me: value(me.as_str())?, secret, metrics: PeerMetrics::default(), levers })
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
        let by = Instant::now() + self.levers.forward_timeout.get();
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
        let head_by = now + self.levers.forward_timeout.get();
        let (parts, body) = self.send(url, request, head_by, now + WATCH_MAX).await?.into_parts();
        Ok((parts.status, body))
    }
}

#[cfg(test)]
mod tests {
    use rate_limit::LeverValue as _;

    use super::*;
    use crate::context::each_lever_changes_what_it_names;

    #[test]
    fn r20_the_lever_of_peers_changes_what_it_names() {
        let settings = |levers: &PeerLevers| vec![("peer.forward_timeout", levers.forward_timeout.get().to_json())];
        each_lever_changes_what_it_names(PeerLevers::register, |_| 2.0, settings);
    }

    /// Who asks a silent peer first waits on, while one who asks by a shorter limit gives up.
    async fn outwaits<T>(turn: impl Fn(&str), ask: impl AsyncFn() -> Result<T, PeerError>) {
        turn("30s");
        let mut early = std::pin::pin!(ask());
        assert!(futures_util::poll!(&mut early).is_pending());
        turn("100ms");
        tokio::select! {
            _ = &mut early => panic!("not by the limit of then"),
            answer = ask() => assert!(answer.is_err()),
        }
    }

    #[tokio::test]
    async fn r20_how_long_a_peer_may_take_turns_for_requests_and_watches() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", silent.local_addr().expect("bound"));
        let registry = rate_limit::Levers::new();
        let levers = PeerLevers::register(&registry);
        let turn =
            |time: &str| drop(registry.set("peer.forward_timeout", &time.into(), "test", None, 0).expect("in range"));
        let tls = crate::config::Config::default().peer_tls().expect("a configuration");
        let me = SyncerId::new("me").expect("an id");
        let peers = Peers::new(&me, tls, Some("secret"), &pool::Metrics::default(), levers).expect("a lane");
        let gateway = GatewayId::new("gw").expect("an id");
        let who = OnBehalf { gateway: gateway.clone(), operator: false };
        outwaits(&turn, async || peers.watch(&url, &gateway, None).await).await;
        outwaits(&turn, async || peers.forward(&url, Method::GET, "/", &who, None, Bytes::new()).await).await;
    }
}
