//! Those who are served: a steady load, timed from the intended start of each request.

use std::time::Duration;

use anyhow::{Context, Result};
use benches::stats::Latencies;
use reqwest::Client;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::server::{Ready, Seen};

/// Requests a second: far below what the syncer can do, so that waiting is the attackers' doing.
const RATE: u32 = 200;

/// Every so many requests one comes on a new connection, like a gateway that just started.
const FRESH_EVERY: u32 = 10;

/// A request that takes longer has failed, and counts with all of it.
const DEADLINE: Duration = Duration::from_secs(10);

/// What one run measured.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) latencies: Latencies,
    pub(crate) failed: f64,
}

/// Runs the load for this long.
pub(crate) async fn run(ready: &Ready, how_long: Duration) -> Result<Done> {
    let (kept, fresh) = (client(ready, 32)?, client(ready, 0)?);
    let began = Instant::now();
    let mut running = JoinSet::new();
    for n in 0..RATE * u32::try_from(how_long.as_secs())? {
        let due = began + Duration::from_secs(1) * n / RATE;
        sleep_until(due).await;
        let client = if n % FRESH_EVERY == 0 { fresh.clone() } else { kept.clone() };
        let url = format!("{}/v1/guilds/g{}/calls/c/participants/s{n}", ready.url, n % 50);
        running.spawn(async move {
            let sent = timeout(DEADLINE, client.put(url).bearer_auth("gateway").body("{}").send()).await;
            let good = matches!(sent, Ok(Ok(response)) if response.status().is_success());
            (good, Instant::now().saturating_duration_since(due))
        });
    }
    let mut done = Done::default();
    while let Some(one) = running.join_next().await {
        let (good, took) = one.context("a request")?;
        done.latencies.record(if good { took } else { DEADLINE });
        done.failed += f64::from(u8::from(!good));
    }
    Ok(done)
}

/// What the server says of itself.
pub(crate) async fn seen(ready: &Ready) -> Result<Seen> {
    let text = client(ready, 0)?.get(format!("{}/metrics", ready.url)).send().await?.text().await?;
    let connections = text.lines().find_map(|l| l.strip_prefix("trunkline_http_connections ")?.parse().ok());
    Ok(Seen { connections: connections.context("the number of connections")?, ..Seen::of_process(ready.pid) })
}

fn client(ready: &Ready, kept: usize) -> Result<Client> {
    let builder = Client::builder().pool_max_idle_per_host(kept).connect_timeout(DEADLINE);
    let builder = match &ready.ca_pem {
        Some(pem) => builder.tls_certs_only([reqwest::Certificate::from_pem(pem.as_bytes())?]).http1_only(),
        None => builder,
    };
    builder.build().context("a client")
}
