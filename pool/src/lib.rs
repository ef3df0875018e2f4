//! A partitioned outbound HTTPS connection pool for many origins, storms and dead hosts.

mod body;
mod cell;
mod error;
mod lane;
mod limits;
mod origin;
mod service;
pub mod tls;

pub use self::body::{Body, ResponseBody};
pub use self::cell::BreakerState;
pub use self::error::{BoxError, Error, Sent, Stage};
pub use self::lane::{DrainReport, Lane, LaneBuilder, LaneSnapshot};
pub use self::limits::{LaneLimits, PARTITIONS_MAX};
pub use self::origin::{Origin, Scheme};
pub use self::service::{Deadline, OriginHandle};
