//! File descriptors are the process's, so what is counted here has a process to itself.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Ca, Callers, Server, after, get, settled, soon, until};
use pool::{LaneLimits, Waiting};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn r02_the_end_of_a_partition_gives_its_descriptors_back_and_the_others_never_notice() {
    let ca = Ca::new();
    let lane = ca.lane(LaneLimits { partitions: 4, ..common::quick_limits() });
    let mut servers = Vec::new();
    for n in 0..24 {
        servers.push(Server::https(&ca, &[if n % 2 == 0 { "h2" } else { "http/1.1" }]).await);
    }
    let before = descriptors();
    for server in &servers {
        lane.origin(&server.origin).send(get("/ok"), soon()).await.expect("answered");
    }
    until("all are back", || lane.snapshot().idle == 24).await;
    let rows = lane.debug(usize::MAX).top;
    let doomed = rows[0].partition;
    let inside = rows.iter().filter(|row| row.partition == doomed).count();
    assert_eq!(descriptors(), before + 2 * 24, "both ends of every connection");

    // The others are asked all the time, and one request is under way in the partition that ends.
    let (stop, asked, traffic) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Callers::new());
    for server in &servers {
        let row = rows.iter().find(|row| row.origin == server.origin.to_string()).expect("a row for each");
        let (sfu, stop, asked) = (lane.origin(&server.origin), Arc::clone(&stop), Arc::clone(&asked));
        if row.partition != doomed {
            traffic.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    sfu.send(get("/ok"), soon())
                        .await
                        .expect("never notices")
                        .into_body()
                        .bytes(64)
                        .await
                        .expect("body");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        } else if row.origin == rows[0].origin {
            traffic.spawn(async move { drop(sfu.send(get("/never"), soon()).await.expect_err("cut")) });
        }
    }
    until("one request is under way", || lane.snapshot().partitions[doomed].in_use == 1).await;
    // Idle connections close by themselves, in their own time. What is there after that is in use, and is cut.
    tokio::select! {
        report = lane.drain_partition(doomed, Waiting::Refuse, soon()) => panic!("a request is under way: {report:?}"),
        () = until("the idle ones are closed", || lane.snapshot().partitions[doomed].live == 1) => {}
    }
    let report = lane.drain_partition(doomed, Waiting::Refuse, after(Duration::ZERO)).await.expect("there is one");
    assert_eq!(report.connections_aborted, 1);
    until("its descriptors are back", || descriptors() <= before + 2 * (24 - inside)).await;
    let so_far = asked.load(Ordering::SeqCst);
    until("the others go on", || asked.load(Ordering::SeqCst) > so_far + 100).await;
    assert_eq!(descriptors(), before + 2 * (24 - inside));
    assert_eq!(servers.iter().map(Server::accepted).sum::<usize>(), 24, "nobody had to dial again");
    stop.store(true, Ordering::SeqCst);
    traffic.close();
    traffic.wait().await;
    settled(&lane).await;
    lane.drain(after(Duration::ZERO)).await;
    until("all descriptors are back", || descriptors() <= before).await;
}
