//! Things one can wait for, and never get.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use anyhow::{Result, ensure};
use http::Request;
use hyper_util::client::legacy::pool::{self as legacy, Poolable, Reservation};
use hyper_util::client::pool::cache;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use pool::{Body, Connected, Lane, LaneLimits, Origin, OriginHandle};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::sync::Semaphore;
use tokio::task::unconstrained;
use tokio::time::Instant;
use tower::Service;

/// Operations of one measurement among others in line.
const OPERATIONS: u32 = 20_000;

/// Longer than any bench: neither a dial nor a caller gives up by itself.
const NEVER: Duration = Duration::from_hours(1);

/// Who makes callers wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parker {
    Ours,
    OursRequest,
    Semaphore,
    SemaphoreRequest,
    /// These wait for nothing: what their cancel costs is what it costs to drop a caller at all.
    Nothing,
    NothingRequest,
    HyperUtil,
    Cache,
}

/// A caller in line.
type Parked = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Makes another caller.
type Make = Box<dyn FnMut() -> Parked + Send>;

struct Nothing;

// === impl Parker ===

impl Parker {
    pub(crate) const ALL: &'static [Self] = &[
        Self::Ours,
        Self::OursRequest,
        Self::Semaphore,
        Self::SemaphoreRequest,
        Self::Nothing,
        Self::NothingRequest,
        Self::HyperUtil,
        Self::Cache,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OursRequest => "ours_request",
            Self::Semaphore => "semaphore",
            Self::SemaphoreRequest => "semaphore_request",
            Self::Nothing => "nothing",
            Self::NothingRequest => "nothing_request",
            Self::HyperUtil => "hyper_util",
            Self::Cache => "hyper_util_cache",
        }
    }

    /// A maker of callers that will wait for ever, and the lane they wait in if it is ours.
    fn start(self, most: usize) -> Result<(Make, Option<Lane>)> {
        Ok(match self {
            Self::Ours => {
                let (lane, handle, deadline) = ours(most)?;
                let make = move || -> Parked {
                    let handle = handle.clone();
                    Box::pin(async move { drop(handle.hold(deadline).await) })
                };
                (Box::new(make), Some(lane))
            }
            Self::OursRequest => {
                let (lane, handle, deadline) = ours(most)?;
                let make = move || -> Parked {
                    let handle = handle.clone();
                    // Made here, because an async block keeps what it captures beside what that was moved into.
                    Box::pin(async move { drop(handle.send(Request::new(Body::empty()), deadline).await) })
                };
                (Box::new(make), Some(lane))
            }
            Self::Semaphore => {
                let semaphore = Arc::new(Semaphore::new(0));
                let make = move || -> Parked {
                    let semaphore = Arc::clone(&semaphore);
                    Box::pin(async move { drop(semaphore.acquire().await) })
                };
                (Box::new(make), None)
            }
            Self::SemaphoreRequest => {
                let semaphore = Arc::new(Semaphore::new(0));
                let make = move || -> Parked {
                    let semaphore = Arc::clone(&semaphore);
                    let request = Request::new(Body::empty());
                    Box::pin(async move {
                        drop(semaphore.acquire().await);
                        drop(request);
                    })
                };
                (Box::new(make), None)
            }
            Self::Nothing => {
                let shared = Arc::new(Semaphore::new(0));
                (Box::new(move || hold(Arc::clone(&shared))), None)
            }
            Self::NothingRequest => {
                let shared = Arc::new(Semaphore::new(0));
                (Box::new(move || hold((Arc::clone(&shared), Request::new(Body::empty())))), None)
            }
            Self::HyperUtil => {
                let config = legacy::Config { idle_timeout: Some(NEVER), max_idle_per_host: usize::MAX };
                let pool: legacy::Pool<Nothing, u32> =
                    legacy::Pool::new(config, TokioExecutor::new(), Some(TokioTimer::new()));
                let make = move || -> Parked {
                    let checkout = pool.checkout(7);
                    Box::pin(async move { drop(checkout.await) })
                };
                (Box::new(make), None)
            }
            Self::Cache => {
                let connector = tower::service_fn(|(): ()| Box::pin(pending::<Result<u32, Infallible>>()));
                let mut cache = cache::builder().build(connector);
                let make = move || -> Parked {
                    let call = cache.call(());
                    Box::pin(async move { drop(call.await) })
                };
                (Box::new(make), None)
            }
        })
    }
}

/// A lane in which every dial hangs.
fn ours(most: usize) -> Result<(Lane, OriginHandle, Instant)> {
    let limits = LaneLimits {
        partitions: 1,
        waiters_per_origin_max: most,
        waiters_max: most,
        dial_timeout: NEVER,
        ..LaneLimits::default()
    };
    let connector = tower::service_fn(|_: Origin| pending::<Result<Connected, Infallible>>());
    let lane = Lane::builder("bench").limits(limits).connector(connector).build()?;
    let handle = lane.origin(&Origin::parse("http://127.0.0.1:7443")?);
    let deadline = Instant::now() + NEVER;
    Ok((lane, handle, deadline))
}

/// Microseconds per caller that gives up, of `parked` that do so in random order.
pub(crate) async fn cancel_all(parker: Parker, parked: usize, seed: u64) -> Result<f64> {
    let (mut make, lane) = parker.start(parked * 2)?;
    let mut callers: Vec<_> = (0..parked).map(|_| park(make())).collect();
    let in_line = lane.as_ref().map(|lane| lane.snapshot().waiters);
    ensure!(in_line.is_none_or(|count| count == parked), "{in_line:?} of {parked} in line");
    callers.shuffle(&mut StdRng::seed_from_u64(seed));
    let began = Instant::now();
    drop(callers);
    let took = Instant::now().saturating_duration_since(began);
    let left = lane.map(|lane| lane.snapshot().waiters);
    ensure!(left.is_none_or(|count| count == 0), "{left:?} are still in line");
    #[allow(clippy::cast_precision_loss)]
    Ok(took.as_secs_f64() * 1e6 / parked as f64)
}

/// Microseconds for one caller to join a line of `waiting` and leave it.
pub(crate) async fn join_and_leave(parker: Parker, waiting: usize) -> Result<f64> {
    let (mut make, _lane) = parker.start(waiting * 2 + 10)?;
    let callers: Vec<_> = (0..waiting).map(|_| park(make())).collect();
    let began = Instant::now();
    for _ in 0..OPERATIONS {
        drop(park(make()));
    }
    let took = Instant::now().saturating_duration_since(began);
    drop(callers);
    Ok(took.as_secs_f64() * 1e6 / f64::from(OPERATIONS))
}

/// Polls a caller once, so that it stands in line. Without a budget, and without another box for that, which would have
/// to be fetched from memory when the caller is dropped.
fn park(mut caller: Parked) -> Parked {
    let polled = pin!(unconstrained(caller.as_mut())).poll(&mut Context::from_waker(Waker::noop()));
    debug_assert!(polled.is_pending(), "there is nothing to get");
    caller
}

// === impl Nothing ===

impl Poolable for Nothing {
    fn is_open(&self) -> bool {
        true
    }

    fn reserve(self) -> Reservation<Self> {
        Reservation::Unique(self)
    }

    fn can_share(&self) -> bool {
        false
    }
}

/// Waits for nothing and has this until it is dropped.
fn hold<T: Send + 'static>(held: T) -> Parked {
    Box::pin(async move {
        pending::<()>().await;
        drop(held);
    })
}
