//! A storm against hosts of which some are dead, with levers that move meanwhile:
//! `cargo run -p pool --example storm`.
//!
//! Twenty hosts; two of them refuse, two never answer. Two thousand requests come at once. The healthy
//! hosts' requests do not wait for the dead ones', and a dead one costs a dial per back-off step, not per
//! request. In the middle the lane's dials are throttled to a few and opened again.

#![allow(clippy::print_stdout)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use http::Request;
use pool::{Body, BoxError, Error, Lane, LaneLimits, Origin, OriginHandle};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

const HOSTS: u8 = 20;
const REQUESTS: usize = 2_000;

/// How a request ended, and after how long.
type Tally = BTreeMap<&'static str, (usize, Duration)>;

fn main() -> Result<(), BoxError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let (authority, tasks) = (support::Authority::new()?, TaskTracker::new());
    let (mut origins, mut silent) = (Vec::new(), Vec::new());
    for n in 1..=HOSTS {
        let ip = format!("127.0.7.{n}");
        let addr = match n % 10 {
            9 => TcpListener::bind((ip, 0)).await?.local_addr()?, // Dropped at once: refuses.
            0 => {
                let listener = TcpListener::bind((ip, 0)).await?; // Kept, never accepted: silence.
                let addr = listener.local_addr()?;
                silent.push(listener);
                addr
            }
            _ => authority.serve(&ip, Duration::from_millis(5), &tasks).await?,
        };
        origins.push(Origin::parse(&format!("https://{addr}"))?);
    }

    let tls = pool::tls::client_config(authority.pem().as_bytes(), None)?;
    let limits = LaneLimits { dial_timeout: Duration::from_secs(1), ..LaneLimits::default() };
    let lane = Lane::builder("example").tls(tls).limits(limits).build()?;
    let handles: Vec<OriginHandle> = origins.iter().map(|origin| lane.origin(origin)).collect();

    let levers = lane.clone();
    tasks.spawn(async move {
        levers.set_dials_max(8);
        sleep(Duration::from_millis(100)).await;
        let before = levers.snapshot();
        levers.set_dials_max(256);
        println!("opened the throttle with {} waiting and {} dialling", before.waiters, before.dialling);
    });

    let began = Instant::now();
    let mut requests = JoinSet::new();
    for handle in handles.iter().cycle().take(REQUESTS) {
        let handle = handle.clone();
        requests.spawn(async move {
            let result = get(&handle, began + Duration::from_secs(5)).await;
            (how(result), Instant::now().saturating_duration_since(began))
        });
    }
    let mut tally = Tally::new();
    while let Some(ended) = requests.join_next().await {
        let (how, took) = ended?;
        let (count, latest) = tally.entry(how).or_default();
        *count += 1;
        *latest = took.max(*latest);
    }
    for (how, (count, latest)) in tally {
        println!("{count:>5} {how}, the last after {} ms", latest.as_millis());
    }
    let snapshot = lane.snapshot();
    println!("{} connections, {} permits off", snapshot.live, snapshot.permits_off);
    Ok(())
}

async fn get(handle: &OriginHandle, deadline: Instant) -> Result<(), Error> {
    let response = handle.send(Request::new(Body::empty()), deadline).await?;
    response.into_body().bytes(1_024).await.map(drop)
}

fn how(result: Result<(), Error>) -> &'static str {
    match result {
        Ok(()) => "answered",
        Err(error) if error.is_fail_fast() => "told of somebody else's failed dial",
        Err(error) if error.is_refused() => "refused, first hand",
        Err(error) if error.is_timeout() => "timed out, first hand",
        Err(_) => "failed otherwise",
    }
}
