//! A lease that must be renewed while the storm blows.
//!
//! The real one lives 60 s and is renewed every 20 s; a storm of the bench lasts a second. So time is
//! scaled: a TTL of 600 ms, renewed every 10 ms, from the intended time of each renewal.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use benches::stats::Latencies;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::contestants::{Contestant, Send_};
use crate::load::num;

/// How long a lease lives without renewal.
pub(crate) const TTL: Duration = Duration::from_millis(600);

/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_millis(10);

/// Renewals still under way at the end are waited for at most this long.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The lease's story over one or two ways.
pub(crate) struct Leases {
    host: usize,
    own: Arc<Mutex<Story>>,
    /// The same request sent over the lane of the storm, for comparison.
    storm_lane: Option<Arc<Mutex<Story>>>,
}

#[derive(Default)]
struct Story {
    latencies: Latencies,
    last: Option<Instant>,
    lost: u64,
    under_way: u64,
}

// === impl Leases ===

impl Leases {
    /// Takes the lease before the storm, as in steady state.
    pub(crate) async fn warm(contestant: &Contestant, host: usize) -> Result<Self> {
        for way in [&contestant.renew, &contestant.send] {
            if way(host, Instant::now() + Duration::from_secs(5)).await.is_err() {
                bail!("the registry does not answer");
            }
        }
        let storm_lane = contestant.registry.is_some().then(Arc::default);
        Ok(Self { host, own: Arc::default(), storm_lane })
    }

    /// Renews until it is over: on the registry's own thread if there is one.
    pub(crate) fn start(&self, contestant: &Contestant, over: &CancellationToken, began: Instant, tasks: &TaskTracker) {
        let renewing = renew(Arc::clone(&contestant.renew), self.host, Arc::clone(&self.own), over.clone(), began);
        match &contestant.registry {
            Some(lane) => lane.spawn(renewing),
            None => drop(tasks.spawn(renewing)),
        }
        if let Some(story) = &self.storm_lane {
            let way = Arc::clone(&contestant.send);
            drop(tasks.spawn(renew(way, self.host, Arc::clone(story), over.clone(), began)));
        }
    }

    /// What became of it.
    pub(crate) async fn figures(&self) -> Vec<(String, String, f64)> {
        let until = Instant::now() + LAST_WAIT;
        while self.own.lock().under_way > 0 && Instant::now() < until {
            sleep(RENEW_EVERY).await;
        }
        let figure = |name: &str, unit: &str, value| (name.to_owned(), unit.to_owned(), value);
        let story = self.own.lock();
        let mut figures = vec![
            figure("lease_p99", "ms", story.latencies.ms(0.99)),
            figure("leases_lost", "", num(story.lost + u64::from(story.under_way > 0))),
        ];
        if let Some(story) = &self.storm_lane {
            figures.push(figure("same_on_storm_lane_p99", "ms", story.lock().latencies.ms(0.99)));
        }
        figures
    }
}

async fn renew(way: Send_, host: usize, story: Arc<Mutex<Story>>, over: CancellationToken, began: Instant) {
    let tasks = TaskTracker::new();
    story.lock().last = Some(began);
    let mut intended = began;
    while !over.is_cancelled() {
        story.lock().under_way += 1;
        let renewal = way(host, intended + TTL);
        let story = Arc::clone(&story);
        drop(tasks.spawn(async move {
            let went = renewal.await;
            let now = Instant::now();
            let mut story = story.lock();
            story.under_way -= 1;
            story.latencies.record(if went.is_ok() { now.saturating_duration_since(intended) } else { TTL });
            if went.is_ok() {
                let late = story.last.is_some_and(|last| now.saturating_duration_since(last) > TTL);
                story.lost += u64::from(late);
                story.last = Some(now);
            }
        }));
        intended += RENEW_EVERY;
        sleep_until(intended).await;
    }
    if story.lock().last.is_some_and(|last| Instant::now().saturating_duration_since(last) > TTL) {
        story.lock().lost += 1;
    }
}
