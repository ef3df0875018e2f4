//! A fleet of the size that matters.

use reqwest::StatusCode;
use sfu_mock::{Cluster, ClusterConfig, Fault, Target};
use tokio::time::Instant;

use crate::Bench;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_nodes_start_break_and_stop() {
    let before = Instant::now();
    let bench = Bench::with(ClusterConfig { nodes: 1000, ..ClusterConfig::default() }).await;
    println!("1,000 nodes started in {:?}", Instant::now() - before);
    for node in [0, 253, 254, 999] {
        assert_eq!(bench.get(node, "/v1/health").await.0, StatusCode::OK);
    }
    let before = Instant::now();
    let hit = bench.cluster.fault(&Target::share(0.17), &Fault::Kill).await.expect("applies");
    println!("{} nodes killed in {:?}", hit.len(), Instant::now() - before);
    assert_eq!(hit.len(), 170);
    assert_eq!(bench.cluster.nodes().iter().filter(|node| node.state == "killed").count(), 170);
    assert_eq!(bench.cluster.heal_all().await.expect("heals").len(), 170);
    assert!(bench.cluster.nodes().iter().all(|node| node.state == "up"));
    bench.cluster.shutdown().await;
}

#[tokio::test]
async fn after_a_shutdown_nothing_listens() {
    let cluster = Cluster::start(ClusterConfig::default()).await.expect("starts");
    let address = cluster.nodes()[0].url.trim_start_matches("https://").to_owned();
    assert!(std::net::TcpStream::connect(&address).is_ok());
    cluster.shutdown().await;
    let refused = std::net::TcpStream::connect(&address).map(|_| ()).map_err(|e| e.kind());
    assert_eq!(refused, Err(std::io::ErrorKind::ConnectionRefused));
}
