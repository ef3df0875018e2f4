//! A connector of one's own: `cargo run -p pool --example connector`.
//!
//! How byte streams are made is a `tower::Service` from origin to stream. Here it makes pipes inside the
//! process and serves the other end, so the whole pool runs without a socket: for tests, a simulated
//! network, a Unix socket or a proxy.

#![allow(clippy::print_stdout)]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pool::{Alpn, Body, BoxError, Connected, Lane, LaneLimits, Origin};
use tokio::io::{DuplexStream, duplex};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Bytes in flight in a pipe, each way.
const PIPE_BYTES: usize = 16 * 1_024;

fn main() -> Result<(), BoxError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let (servers, made) = (TaskTracker::new(), Arc::new(AtomicUsize::new(0)));
    let (tasks, count) = (servers.clone(), Arc::clone(&made));
    let connector = tower::service_fn(move |origin: Origin| {
        let (near, far) = duplex(PIPE_BYTES);
        count.fetch_add(1, Ordering::Relaxed);
        tasks.spawn(serve(far, origin.to_string()));
        // A stream on which HTTP can start at once; `Connected::bare` would leave TLS to the pool.
        std::future::ready(Ok::<_, Infallible>(Connected::ready(near, Alpn::Http1)))
    });

    let limits = LaneLimits { connections_per_origin_max: 2, ..LaneLimits::default() };
    let lane = Lane::builder("pipes").limits(limits).connector(connector).build()?;
    let handle = lane.origin(&Origin::parse("http://nowhere.example")?);
    let deadline = Instant::now() + Duration::from_secs(5);
    for n in 0..10 {
        let request = Request::get(format!("/{n}")).body(Body::empty())?;
        let response = handle.send(request, deadline).await?;
        let body = response.into_body().bytes(1_024).await?;
        println!("{}", std::str::from_utf8(&body)?);
    }
    println!("pipes made: {}", made.load(Ordering::Relaxed));
    Ok(())
}

async fn serve(pipe: DuplexStream, origin: String) {
    let answer = service_fn(|request: Request<Incoming>| {
        let text = format!("{} says you asked for {}", origin, request.uri());
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text)))))
    });
    // The client leaves when the lane does.
    let _left = http1::Builder::new().serve_connection(TokioIo::new(pipe), answer).await;
}
