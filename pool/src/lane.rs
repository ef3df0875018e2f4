//! A lane: an isolation class of the pool.

use std::sync::Arc;

use rustls::ClientConfig;
use tokio::time::Instant;

use crate::error::Error;
use crate::limits::LaneLimits;
use crate::origin::Origin;
use crate::service::OriginHandle;

/// An isolation class. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lane {
    name: Arc<str>,
}

/// Builds a [`Lane`].
#[derive(Debug)]
pub struct LaneBuilder {
    name: Arc<str>,
    tls: Option<Arc<ClientConfig>>,
    limits: LaneLimits,
}

/// What a lane holds at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneSnapshot {
    /// Origins with state.
    pub origins: usize,
    /// Callers waiting.
    pub waiters: usize,
    /// Dials in flight.
    pub dialling: usize,
    /// Open connections.
    pub live: usize,
    /// Open connections without a request.
    pub idle: usize,
    /// Permits that are neither a live connection nor a dial; must be 0.
    pub permits_off: i64,
}

/// What a drain found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Waiting callers that were told to go elsewhere.
    pub waiters_refused: usize,
    /// Connections still in use at the deadline and cut.
    pub connections_aborted: usize,
}

impl Lane {
    /// Starts building a lane.
    pub fn builder(name: impl Into<Arc<str>>) -> LaneBuilder {
        LaneBuilder { name: name.into(), tls: None, limits: LaneLimits::default() }
    }

    /// The lane's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The handle of an origin.
    #[must_use]
    pub fn origin(&self, origin: &Origin) -> OriginHandle {
        OriginHandle::stub(origin.clone())
    }

    /// Closes what is open to an origin and forgets it.
    pub fn forget(&self, _origin: &Origin) {}

    /// What the lane holds now.
    #[must_use]
    pub fn snapshot(&self) -> LaneSnapshot {
        LaneSnapshot::default()
    }

    /// Ends the lane: refuses new requests, answers waiters, closes idle connections, waits for those in
    /// use until `deadline` and cuts the rest.
    ///
    /// # Cancel safety
    ///
    /// A dropped drain leaves the lane closed for new requests; calling it again goes on.
    pub async fn drain(&self, _deadline: Instant) -> DrainReport {
        DrainReport::default()
    }
}

impl LaneBuilder {
    /// TLS settings; without them only `http://` origins can be reached.
    #[must_use]
    pub fn tls(mut self, config: Arc<ClientConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// Limits; [`LaneLimits::default`] otherwise.
    #[must_use]
    pub fn limits(mut self, limits: LaneLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Starts the lane on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// When the limits contradict each other or no runtime is running.
    pub fn build(self) -> Result<Lane, Error> {
        self.limits.validate()?;
        Ok(Lane { name: self.name })
    }
}
