//! A GET through the pool: `cargo run -p pool --example get`.
//!
//! Three requests at once to a host nobody has talked to: one connection is dialled for all of them.

#![allow(clippy::print_stdout)]

mod support;

use std::time::Duration;

use http::Request;
use pool::{Body, BoxError, Lane, Origin};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

fn main() -> Result<(), BoxError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let (authority, tasks) = (support::Authority::new()?, TaskTracker::new());
    let addr = authority.serve("127.0.0.1", Duration::from_millis(5), &tasks).await?;

    let tls = pool::tls::client_config(authority.pem().as_bytes(), None)?;
    let lane = Lane::builder("example").tls(tls).build()?;
    let handle = lane.origin(&Origin::parse(&format!("https://{addr}"))?);

    let deadline = Instant::now() + Duration::from_secs(5);
    let get = |path: &'static str| {
        let handle = handle.clone();
        async move {
            let response = handle.send(Request::get(path).body(Body::empty())?, deadline).await?;
            let status = response.status();
            let body = response.into_body().bytes(1_024).await?;
            println!("GET {path}: {status}, {} bytes", body.len());
            Ok::<_, BoxError>(())
        }
    };
    tokio::try_join!(get("/a"), get("/b"), get("/c"))?;
    println!("connections for three requests: {}", lane.snapshot().live);

    let report = lane.drain(Instant::now() + Duration::from_secs(1)).await;
    println!("drained; {} connections had to be cut", report.connections_aborted);
    Ok(())
}
