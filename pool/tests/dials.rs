//! Whose turn it is to dial, with real TLS beside black holes, and at the end of a runtime.

mod common;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use common::{Ca, Server, get, soon, until};
use pool::{BoxError, Connected, Lane, LaneLimits, Origin};
use tokio::net::TcpStream;
use tokio::runtime;
use tokio_util::task::TaskTracker;

/// Connects to one port and swallows what is meant for others.
fn black_holed(ca: &Ca, alive: u16, limits: LaneLimits) -> Lane {
    let connector = tower::service_fn(move |to: Origin| async move {
        if to.port() != alive {
            std::future::pending::<()>().await;
        }
        let address = format!("{}:{}", to.host(), to.port());
        Ok::<_, BoxError>(Connected::bare(TcpStream::connect(address).await?))
    });
    let tls = pool::tls::client_config(ca.pem().as_bytes(), None).expect("tls");
    Lane::builder("holes").tls(tls).limits(limits).connector(connector).build().expect("lane")
}

#[tokio::test]
async fn r01_a_probe_gets_its_turn_while_dead_hosts_hold_every_slot_place_and_connection() {
    let ca = Ca::new();
    let server = Server::https(&ca, &["h2"]).await;
    // No dial of a dead host ends within this test.
    let limits = LaneLimits {
        partitions: 1,
        dials_max: 8,
        connections_max: 6,
        waiters_max: 300,
        dial_timeout: Duration::from_mins(10),
        ..LaneLimits::default()
    };
    let lane = black_holed(&ca, server.origin.port(), limits);
    let callers = TaskTracker::new();
    for n in 0..100_u16 {
        let dead = lane.origin(&Origin::parse(&format!("https://127.0.0.1:{}", 1 + n)).expect("origin"));
        for _ in 0..4 {
            let dead = dead.clone();
            callers.spawn(async move { drop(dead.send(get("/ok"), soon()).await) });
        }
    }
    until("the line is full and so are the slots", || {
        let now = lane.snapshot();
        now.waiters == 300 && now.dialling == 6
    })
    .await;
    let alive = lane.origin(&server.origin);
    let refused = alive.send(get("/ok"), soon()).await.expect_err("ordinary requests find the line full");
    assert!(refused.is_saturated(), "{refused:?}");
    for _ in 0..3 {
        let answer = alive.fresh(get("/ok"), soon()).await.expect("a probe of a living host");
        drop(answer.into_body().bytes(64).await.expect("a body"));
    }
    assert_eq!(server.accepted(), 3);
}

#[tokio::test]
async fn r01_every_probe_finds_room_though_the_cap_is_full_of_stuck_connections() {
    let ca = Ca::new();
    let server = Server::https(&ca, &["http/1.1"]).await;
    let lane = ca.lane(LaneLimits { connections_per_origin_max: 1, ..LaneLimits::default() });
    let origin = lane.origin(&server.origin);
    let (stuck, callers) = (origin.clone(), TaskTracker::new());
    callers.spawn(async move { drop(stuck.send(get("/never"), soon()).await) });
    until("the only connection is stuck", || lane.snapshot().in_use == 1).await;
    for probes in 1..5 {
        origin.probe_dial(soon()).await.expect("a connection beyond the cap");
        until("it is gone again", || lane.snapshot().live == 1).await;
        assert_eq!(server.accepted(), 1 + probes);
    }
}

#[test]
fn r19_a_runtime_that_ends_beside_a_long_line_overflows_no_stack() {
    // In a thread whose stack holds a few hundred frames, not one for each origin in line.
    let ending = std::thread::Builder::new().stack_size(1 << 20).spawn(|| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let entered = runtime.enter();
        let connector = tower::service_fn(|_: Origin| std::future::pending::<Result<Connected, Infallible>>());
        let limits = LaneLimits { partitions: 1, dials_max: 1, ..LaneLimits::default() };
        let lane = Arc::new(Lane::builder("end").limits(limits).connector(connector).build().expect("lane"));
        let mut waits: Vec<_> = (0..20_000_u32)
            .map(|n| {
                let name = format!("http://10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255);
                let handle = lane.origin(&Origin::parse(&name).expect("origin"));
                Box::pin(async move { handle.hold(soon()).await.map(drop) })
            })
            .collect();
        let mut context = Context::from_waker(Waker::noop());
        for wait in &mut waits {
            assert!(pin!(wait).as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(lane.snapshot().waiters, 20_000);
        drop(entered);
        drop(runtime);
        assert_eq!(lane.snapshot().permits_off, 0);
    });
    ending.expect("a thread").join().expect("no overflow");
}
