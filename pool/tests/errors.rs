//! What an error says about the host, about us, and about the request.

mod common;

use common::{Ca, Server, get, quick_limits, settled, soon, until};
use pool::Stage;
use tokio::time::Instant;

const KIB: usize = 1024;

#[tokio::test(flavor = "multi_thread")]
async fn r04_no_request_starts_after_its_deadline() {
    let ca = Ca::new();
    for alpn in ["h2", "http/1.1"] {
        let (server, lane) = (Server::https(&ca, &[alpn]).await, ca.lane(quick_limits()));
        let sfu = lane.origin(&server.origin);
        let answer = sfu.send(get("/ok"), soon()).await.expect("answered");
        answer.into_body().bytes(KIB).await.expect("body");
        until("the connection is back", || lane.snapshot().idle == 1).await;
        let late = sfu.send(get("/ok"), Instant::now()).await.expect_err("too late");
        assert!(late.is_timeout() && late.is_retry_safe() && late.stage() == Stage::Queue, "{late:?}");
        let answer = sfu.send(get("/ok"), soon()).await.expect("answered");
        answer.into_body().bytes(KIB).await.expect("body");
        assert_eq!((server.requests(), server.accepted()), (2, 1), "it was sent, or cost the connection");
        settled(&lane).await;
    }
}
