//! The control port, as scripts and the drill use it.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sfu_mock::{Cluster, ClusterConfig};

use crate::{Bench, ensure};

#[tokio::test]
async fn the_control_port_breaks_and_heals() {
    let bench = Bench::new(10).await;
    let share = json!({"share": 0.2, "seed": 7, "fault": {"kind": "kill"}});
    let (status, hit) = bench.control(Method::POST, "/control/faults", Some(share)).await;
    assert_eq!((status, hit["nodes"].as_array().map(Vec::len)), (StatusCode::OK, Some(2)));
    let nodes = bench.control(Method::GET, "/control/nodes", None).await.1;
    let killed = nodes["nodes"].as_array().expect("a list").iter().filter(|node| node["state"] == "killed");
    assert_eq!(killed.count(), 2);
    let one = hit["nodes"][0].as_str().expect("an id");
    let healed = bench.control(Method::DELETE, &format!("/control/faults/{one}"), None).await;
    assert_eq!(healed, (StatusCode::OK, json!({"nodes": [one]})));
    let rest = bench.control(Method::DELETE, "/control/faults", None).await.1;
    assert_eq!(rest["nodes"], json!([hit["nodes"][1]]));
    let named = json!({"nodes": ["sfu-3"], "fault": {"kind": "error", "status": 503, "rate": 1.0, "retry_after_s": 1}});
    assert_eq!(bench.control(Method::POST, "/control/faults", Some(named)).await.1, json!({"nodes": ["sfu-3"]}));
    assert_eq!(bench.get(2, "/v1/health").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn i04_budgets_are_checked_where_rooms_are_made() {
    let bench = Bench::new(2).await;
    let budgets = json!({"sfu": {"rate": 0.0, "burst": 2}, "overall": {"rate": 0.0, "burst": 4}, "slack_ms": 1000});
    assert_eq!(bench.control(Method::PUT, "/control/budgets", Some(budgets)).await.0, StatusCode::OK);
    for i in 0..3 {
        for node in 0..2 {
            let name = format!("r{i}");
            assert_eq!(bench.ensure(node, &name, &ensure(&name, 1, 1)).await.0, StatusCode::OK);
            // Neither repeating nor ensuring again is a creation.
            assert_eq!(bench.ensure(node, &name, &ensure(&name, 1, 1)).await.0, StatusCode::OK);
            assert_eq!(bench.ensure(node, &name, &ensure(&format!("again-{i}"), 1, 2)).await.1["created"], false);
        }
    }
    let stats = bench.control(Method::GET, "/control/stats", None).await.1;
    assert_eq!(stats["overdrawn"], json!({"sfu": 2, "region": 0, "overall": 2}));
    assert_eq!(stats["creates"], 6);
    assert_eq!(stats["per_node"][0]["creates"], 3);
    let peak = stats["max_creates_per_s"]["overall"].as_u64().expect("a number");
    assert!((1..=6).contains(&peak));
}

#[tokio::test]
async fn rooms_of_a_node_are_listed() {
    let bench = Bench::new(2).await;
    assert_eq!(bench.ensure(1, "r", &ensure("o", 1, 1)).await.0, StatusCode::OK);
    let (status, rooms) = bench.control(Method::GET, "/control/nodes/sfu-2/rooms", None).await;
    assert_eq!((status, &rooms["rooms"][0]["room"]), (StatusCode::OK, &json!("r")));
    assert_eq!(bench.control(Method::GET, "/control/nodes/sfu-1/rooms", None).await.1, json!({"rooms": []}));
}

#[tokio::test]
async fn nonsense_on_the_control_port_is_refused_with_a_reason() {
    let bench = Bench::new(2).await;
    let kill = || json!({"kind": "kill"});
    for (path, method, body, status) in [
        ("/control/faults", Method::POST, json!({"fault": kill()}), 400),
        ("/control/faults", Method::POST, json!({"nodes": ["sfu-1"], "share": 0.5, "fault": kill()}), 400),
        ("/control/faults", Method::POST, json!({"share": 1.5, "fault": kill()}), 400),
        ("/control/faults", Method::POST, json!({"share": 0.5, "region": "nowhere", "fault": kill()}), 400),
        ("/control/faults", Method::POST, json!({"nodes": ["nobody"], "fault": kill()}), 404),
        ("/control/faults", Method::POST, json!({"nodes": ["sfu-1"], "fault": {"kind": "explode"}}), 400),
        ("/control/faults", Method::POST, json!({"nodes": ["sfu-1"], "fault": {"kind": "error", "status": 200}}), 400),
        ("/control/faults/nobody", Method::DELETE, Value::Null, 404),
        ("/control/nodes/nobody/rooms", Method::GET, Value::Null, 404),
        ("/control/budgets", Method::PUT, json!({"sfu": {"rate": -1.0, "burst": 1}}), 400),
        ("/control/budgets", Method::PUT, json!({"sfus": {"rate": 1.0, "burst": 1}}), 400),
        ("/control/jwks", Method::PUT, json!({"keys": [{"kty": "oct", "k": "AAAA", "kid": "1"}]}), 400),
        ("/control/nothing", Method::GET, Value::Null, 404),
        ("/control/stats", Method::POST, json!({}), 405),
    ] {
        let (got, error) = bench.control(method.clone(), path, Some(body.clone())).await;
        assert_eq!(got.as_u16(), status, "{method} {path} {body}");
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{method} {path} {error}");
    }
    assert!(bench.cluster.nodes().iter().all(|node| node.state == "up"));
}

#[tokio::test]
async fn two_clusters_share_a_ca_and_leave_files_for_a_syncer() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = |name: &str| ClusterConfig {
        nodes: 2,
        name: name.to_owned(),
        dir: Some(dir.path().join(name)),
        ca_dir: Some(dir.path().join("ca")),
        ..ClusterConfig::default()
    };
    let one = Bench::with(config("m1")).await;
    let two = Cluster::start(config("m2")).await.expect("starts");
    let ids: Vec<_> = two.nodes().into_iter().map(|node| node.id.to_string()).collect();
    assert_eq!(ids, ["m2-1", "m2-2"]);
    // A client that trusts the first one's CA reaches the nodes of the second.
    let answer = one.h2.get(format!("{}/v1/health", two.nodes()[1].url)).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    let read = |file: &str| std::fs::read_to_string(dir.path().join("m2").join(file)).expect("written");
    assert_eq!(read("control.url").trim(), two.control_url());
    assert_eq!(read("sfus.toml"), two.catalogue_toml());
    assert!(read("ca.pem").contains("BEGIN CERTIFICATE"));
    two.shutdown().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let bench = Bench::new(1).await;
    let port = bench.node(0).url.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
    let again = Cluster::start(ClusterConfig { nodes: 1, port, ..ClusterConfig::default() }).await;
    let error = again.expect_err("refused");
    assert!(error.is_address_in_use() && error.to_string().contains(&format!(":{port}")), "{error}");
}
