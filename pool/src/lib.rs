//! A partitioned outbound HTTPS connection pool for many origins, storms and dead hosts.

mod body;
mod cell;
mod conn;
mod dial;
mod error;
mod lane;
mod limits;
mod metrics;
mod origin;
mod partition;
mod registry_lane;
mod service;
pub mod tls;

pub use self::body::{Body, ResponseBody};
pub use self::cell::BreakerState;
pub use self::dial::connect::{Alpn, Connected, Io};
pub use self::error::{BoxError, Error, Sent, Stage};
pub use self::lane::{DrainReport, Lane, LaneBuilder, LaneSnapshot};
pub use self::limits::{LaneLimits, PARTITIONS_MAX};
pub use self::metrics::Metrics;
pub use self::origin::{Origin, Scheme};
pub use self::partition::PartitionSnapshot;
pub use self::registry_lane::RegistryLane;
pub use self::service::{Deadline, OriginHandle, ResponseFuture};
