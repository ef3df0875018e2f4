//! A partitioned outbound HTTPS connection pool for many origins, storms and dead hosts.
//!
//! Most pools are built for a few healthy servers. This one is built for the minute in which a sixth of
//! 25,000 servers vanish and everybody reconnects: nothing in it is shared by all, nothing waits without
//! a bound and a deadline, and a dead host costs one dial per back-off step, whoever asks.
//!
//! # The model in five minutes
//!
//! - A [`Lane`] is an isolation class: the SFU fleet is one, the peers another. Lanes share nothing.
//! - A lane has partitions; rendezvous hashing puts each [`Origin`] (scheme, host, port) into one. A
//!   partition owns its connections: it dials, counts, times out and closes them. Budgets of the lane
//!   (waiters, dials, connections) are *divided* among partitions, so a partition full of dead hosts
//!   takes nothing from the next.
//! - An origin's cell knows its idle connections, who waits, and what is being dialled. It is a state
//!   machine without I/O behind one mutex. An [`OriginHandle`] points at it: the hot path looks nothing up.
//! - **Checkout.** The newest idle connection or a free HTTP/2 stream at once; else a place in line,
//!   first in, first out, until the request's deadline. A full line refuses: [`Error::is_saturated`].
//!   A line that is too long for a request's deadline refuses it at once: [`Error::is_wont_make_deadline`].
//! - **Dials** belong to the partition. Demand is a number, read again when a dial slot is free, so callers
//!   who came and gave up leave nothing behind. Waiters who will be served by what is open sooner than a
//!   dial takes, by the origin's own measured times, are no demand. An unknown origin is dialled once,
//!   however many wait; when that worked, twice as many at a time. Origins take turns by the slot time
//!   their dials cost; one may have a quarter of the slots, and a quarter is kept for those that dialled
//!   and answered last. One time-out covers name, TCP, TLS and HTTP together.
//! - **Fail fast.** A failed dial answers everyone in line with one shared error, and everyone who comes
//!   during the back-off ([`Error::is_fail_fast`]). Exactly one caller gets it first hand: that one is
//!   evidence. [`OriginHandle::fresh`] goes past the back-off on a new connection: the health probe.
//! - **Retry** is not ours. A request is sent again only if hyper hands it back unsent from a connection
//!   that had served others. [`Error::sent`] tells the caller the rest.
//! - **Levers.** Every limit but the number of partitions can be changed while the lane runs: [`Lane::set_limits`], or
//!   by name through [`Lane::register_levers`]. [`Lane::debug`] shows the busiest origins and what was learnt of them.
//!
//! # What it tells
//!
//! - **Metrics**: [`Metrics`] in any `prometheus_client` registry. Per lane and partition, never per origin: what waits
//!   and how long the oldest has, what dials, lives and idles; histograms of every stage of a request and a dial;
//!   counters by outcome and reason. `pool/tests/metrics.txt` lists the names.
//! - **Spans** (`tracing`, level debug, target `pool`): `pool.request` with `lane`, `origin` and `outcome`, and in it a
//!   `pool.stage` for each `stage`: `queue` (only if there was a wait), `send` (until the head; with `reused`) and
//!   `response` (until the end of the body). `pool.dial` is a span of its own, because a dial outlives the caller
//!   that caused it and may serve another; its stages are `dns` and `tcp` (of a connector that was given, one of
//!   them), `tls`, `handshake`, and `dial_slot` while it waits for its turn to compute or to look a name up. Where nobody listens, none is made.
//! - **Snapshots**: [`Lane::snapshot`] and [`Lane::debug`], which are JSON.
//!
//! Permits add up: those that the budget has given are the connections and the dials in flight, counted apart from it, and
//! [`LaneSnapshot::permits_off`] is 0 but for what is being given or returned at that moment.
//!
//! A panic, of a connector, a waker or in here, costs one dial, or one origin a moment. That needs `panic = "unwind"`,
//! which is the default.
//!
//! The registry has a lane of its own kind, [`RegistryLane`]: its own thread, and none of the cell's code.
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//!
//! use http::Request;
//! use pool::{Body, Lane, LaneLimits, Origin};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio::time::Instant;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! // A server that knows one answer.
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let origin = Origin::parse(&format!("http://{}", listener.local_addr()?))?;
//! let server = async {
//!     let (mut stream, _) = listener.accept().await?;
//!     stream.read(&mut [0; 1024]).await?;
//!     stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await
//! };
//!
//! // For https, add `.tls(pool::tls::client_config(ca_pem, None)?)`.
//! let limits = LaneLimits { connections_per_origin_max: 8, ..LaneLimits::default() };
//! let lane = Lane::builder("sfu").limits(limits).build()?;
//! let sfu = lane.origin(&origin);
//! let client = async {
//!     let deadline = Instant::now() + Duration::from_secs(5);
//!     let response = sfu.send(Request::get("/v1/health").body(Body::empty())?, deadline).await?;
//!     let body = response.into_body().bytes(64 * 1024).await?;
//!     Ok::<_, pool::BoxError>(body)
//! };
//! let (served, body) = tokio::join!(server, client);
//! served?;
//! assert_eq!(body?, "hello");
//! assert_eq!(lane.snapshot().permits_off, 0);
//! # Ok::<_, pool::BoxError>(()) }).unwrap();
//! ```

mod body;
mod cell;
mod conn;
mod debug;
mod dial;
mod error;
mod fault;
mod lane;
mod levers;
mod limits;
mod metrics;
mod origin;
mod partition;
mod pool;
mod registry_lane;
mod service;
mod spans;
pub mod tls;

pub use self::body::{Body, ResponseBody};
pub use self::cell::BreakerState;
pub use self::debug::{LaneDebug, OriginDebug};
pub use self::dial::connect::{Alpn, Connected, Io};
pub use self::error::{BoxError, Error, Sent, Stage};
pub use self::lane::{DrainReport, Lane, LaneBuilder, LaneSnapshot, Waiting};
pub use self::limits::{LaneLimits, PARTITIONS_MAX};
pub use self::metrics::Metrics;
pub use self::origin::{Origin, Scheme};
pub use self::partition::PartitionSnapshot;
pub use self::pool::Pool;
pub use self::registry_lane::RegistryLane;
pub use self::service::{Deadline, HeldConnection, OriginHandle, ResponseFuture};
