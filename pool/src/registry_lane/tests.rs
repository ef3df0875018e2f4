//! Panics on the lane's thread.

use std::convert::Infallible;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::*;
use crate::fault::{self, Point};

const PATIENCE: Duration = Duration::from_secs(30);

/// A member that answers everything.
async fn member() -> Origin {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let origin = Origin::parse(&format!("http://{}", listener.local_addr().expect("an address"))).expect("origin");
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(async |_: Request<Incoming>| Ok::<_, Infallible>(Response::new(String::new())));
            let serving = auto::Builder::new(TokioExecutor::new());
            tasks.spawn(async move { drop(serving.serve_connection(TokioIo::new(stream), service).await) });
        }
    });
    origin
}

#[tokio::test(flavor = "multi_thread")]
async fn r19_a_panic_on_its_thread_costs_the_lane_one_request_and_no_place() {
    let (lane, origin) = (RegistryLane::start("registry", None, &Metrics::default()).expect("lane"), member().await);
    for point in [Point::RegistryDial, Point::RegistryDriver] {
        // Faults are a thread's own.
        let (armed, is_armed) = oneshot::channel();
        lane.spawn(async move {
            fault::arm(point, 0, 1);
            let _sent = armed.send(());
        });
        is_armed.await.expect("armed");
        let ask = || lane.send(&origin, Request::new(Body::empty()), Instant::now() + PATIENCE);
        assert!(ask().await.is_err(), "{point:?}");
        for _ in 0..40 {
            let answer = ask().await.unwrap_or_else(|error| panic!("after {point:?}: {error:?}"));
            answer.into_body().bytes(64).await.expect("a body");
        }
        let now = lane.snapshot();
        assert_eq!((now.dialling, now.waiters, now.live, lane.requests()), (0, 0, 1, 0), "{point:?}");
        lane.inner.let_go();
        let closed = async {
            while lane.connections() > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, closed).await.expect("a connection that ended is not counted");
    }
}
