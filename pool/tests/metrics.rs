//! The names of the metrics are an interface: dashboards and alerts are made of them.

mod common;

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use common::{Ca, Server, after, get, quick_limits, settled, soon, until};
use pool::Lane;

fn exposition(lane: &Lane) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    lane.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
    text
}

/// The sum of all lines that begin with this name and contain all of these.
fn sum(text: &str, name: &str, labels: &[&str]) -> u64 {
    let lines = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label))
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_names_and_types_are_the_golden_file_and_every_stage_is_measured() {
    let ca = Ca::new();
    let (server, lane) = (Server::https(&ca, &["h2"]).await, ca.lane(quick_limits()));
    let sfu = lane.origin(&server.origin);
    for path in ["/ok", "/ok", "/big/100000"] {
        sfu.send(get(path), soon()).await.expect("answered").into_body().bytes(1 << 20).await.expect("body");
    }
    // One leaves the body, one the request, one the line.
    drop(sfu.send(get("/stall"), soon()).await.expect("a head"));
    let leaves = |path: &'static str| {
        let sfu = sfu.clone();
        async move { sfu.send(get(path), soon()).await.map(drop) }
    };
    tokio::select! {
        answer = leaves("/never") => panic!("{answer:?}"),
        () = until("it was sent", || server.requests() == 5) => {}
    }
    let silent = Server::rude("https", |stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let waiting = lane.origin(&silent.origin);
    tokio::select! {
        answer = waiting.send(get("/ok"), soon()) => panic!("{answer:?}"),
        () = until("it waits", || lane.snapshot().waiters == 1) => {}
    }
    waiting.send(get("/ok"), after(Duration::from_millis(20))).await.expect_err("held");
    lane.forget(&silent.origin);
    lane.forget(&server.origin);
    drop(silent);
    settled(&lane).await;
    until("its connection is closed", || sum(&exposition(&lane), "pool_closed_total", &[]) == 1).await;

    let text = exposition(&lane);
    for (name, labels, at_least) in [
        ("pool_requests_total", &["connection=\"new\"", "outcome=\"answered\""][..], 1),
        ("pool_requests_total", &["connection=\"reused\"", "outcome=\"answered\""], 3),
        ("pool_dials_total", &["outcome=\"connected\""], 1),
        ("pool_tls_handshakes_total", &["handshake=\"full\""], 1),
        ("pool_cancelled_total", &["outcome=\"queue\""], 1),
        ("pool_cancelled_total", &["outcome=\"sent\""], 1),
        ("pool_cancelled_total", &["outcome=\"body\""], 1),
        ("pool_shed_total", &["outcome=\"timeout\""], 1),
        ("pool_wait_seconds_count", &[], 1),
        ("pool_dial_slot_seconds_count", &[], 2),
        ("pool_dial_seconds_count", &[], 1),
        ("pool_dial_stage_seconds_count", &["outcome=\"tcp\""], 1),
        ("pool_dial_stage_seconds_count", &["outcome=\"tls\""], 1),
        ("pool_dial_stage_seconds_count", &["outcome=\"handshake\""], 1),
        ("pool_head_seconds_count", &[], 4),
        ("pool_body_seconds_count", &[], 3),
    ] {
        assert!(sum(&text, name, labels) >= at_least, "{name} {labels:?}: {text}");
    }
    assert_eq!(sum(&text, "pool_permits_off", &[]), 0);

    let mut names = String::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        writeln!(names, "{line}").expect("a string");
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metrics.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &names).expect("written");
    }
    let kept = std::fs::read_to_string(&golden).expect("the golden file");
    assert!(
        kept == names,
        "tests/metrics.txt is not what the code says; run this with UPDATE_GOLDEN=1 and read the diff"
    );
}
