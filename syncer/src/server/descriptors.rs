//! File descriptors: how many a syncer may come to need, how many its process may have, and how many it has (R21).
//!
//! Whatever limits connections limits descriptors too, so the most that are needed is a sum. A process that may have fewer
//! finds that out in a storm, when a dial without a descriptor fails although its SFU is well. So its own (soft) limit is
//! raised to the sum when it starts, which it may do up to the hard one; where that is too low, whoever runs it is told. It
//! starts all the same: most fleets never come near.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pool::LaneLimits;
use rate_limit::LeverView;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::{MissedTickBehavior, interval};

use super::{PEER_LEVERS, SFU_LEVERS};
use crate::api::App;

/// How often descriptors are counted: 10,000 take a few milliseconds, on a thread of their own.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Those of the process itself: standard streams, event loop, signals, listeners, and files while they are read.
const OTHERS: usize = 64;

/// The levers with the largest parts of the sum.
pub(super) const LEVERS: &str =
    "http.connections_max, pool.sfu.connections_max, pool.sfu.dials_max, pool.peer.connections_max";

/// Counts descriptors, and provides more when levers were turned.
pub(super) async fn watch(app: Arc<App>) {
    let [open, max, needed] = &app.http.descriptors;
    let mut known = most(&app);
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let before = std::mem::replace(&mut known, most(&app));
        if known > before {
            provide_descriptors(known, LEVERS);
        }
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        max.set(gauge(limit));
        needed.set(gauge(known as u64));
        let found = match app.tracker.spawn_blocking(count).await {
            Ok(Ok(count)) => count,
            Ok(Err(e)) if is_exhausted(&e) => limit,
            Ok(Err(_)) | Err(_) => continue, // no such directory on this system
        };
        open.set(gauge(found));
    }
}

/// The most descriptors that a syncer may have open, by its levers.
pub(super) fn most(app: &App) -> usize {
    let levers = app.engine.levers().list();
    let lanes = [(&app.sfu_lane, SFU_LEVERS), (app.peers.lane(), PEER_LEVERS)];
    let listeners = [app.limits.connections_max.get(), app.limits.admin_connections_max.get()];
    sum(&lanes.map(|(lane, prefix)| turned(&lane.limits(), &levers, prefix)), &listeners)
}

/// A lane's limits as its levers want them: a lane follows within milliseconds, which at the start is too late.
fn turned(now: &LaneLimits, levers: &[LeverView], prefix: &str) -> LaneLimits {
    let value = |limit: &str, now: usize| {
        let lever = levers.iter().find(|lever| lever.name.strip_prefix(prefix) == Some(limit));
        lever.and_then(|lever| usize::try_from(lever.value.as_u64()?).ok()).unwrap_or(now)
    };
    let connections_max = value(".connections_max", now.connections_max);
    LaneLimits { connections_max, dials_max: value(".dials_max", now.dials_max), ..now.clone() }
}

/// Raises the limit of open files of this process to `needed`, or as far as it may. If that is not enough, it says so, and
/// what else could be lowered.
pub fn provide_descriptors(needed: usize, or_lower: &str) {
    let found = getrlimit(Resource::Nofile);
    let wanted = raised(found, needed as u64);
    let raised = wanted != found && setrlimit(Resource::Nofile, wanted).is_ok();
    let limit = if raised { wanted.current } else { found.current };
    if limit.is_some_and(|limit| limit < needed as u64) {
        tracing::warn!(
            needed,
            limit,
            raise = format!("`ulimit -n {needed}`, or `LimitNOFILE={needed}` in the unit"),
            or_lower,
            "fewer open files are allowed than may be needed: without them, connections fail"
        );
    }
}

/// A listener accepts one connection more than it has places for.
fn sum(lanes: &[LaneLimits], listeners: &[u64]) -> usize {
    let listeners = listeners.iter().map(|max| usize::try_from(*max).unwrap_or(usize::MAX).saturating_add(1));
    lanes.iter().map(LaneLimits::descriptors_max).chain(listeners).fold(OTHERS, usize::saturating_add)
}

/// The limit that has room for `needed`, if there may be such a one. `None` is no limit.
fn raised(now: Rlimit, needed: u64) -> Rlimit {
    let current = now.current.map(|soft| soft.max(now.maximum.map_or(needed, |hard| needed.min(hard))));
    Rlimit { current, ..now }
}

fn count() -> io::Result<u64> {
    let all = std::fs::read_dir("/proc/self/fd")?.count();
    Ok(all.saturating_sub(1) as u64) // without the one that was read
}

/// No descriptor was left to count them with.
fn is_exhausted(e: &io::Error) -> bool {
    e.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error())
}

fn gauge(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r21_the_sum_is_of_all_that_limits_connections() {
        let lane = |connections_max, dials_max| LaneLimits { connections_max, dials_max, ..LaneLimits::default() };
        for (lanes, listeners, want) in [
            (vec![], vec![], 64),
            (vec![lane(100, 0)], vec![], 164),
            (vec![lane(100, 10)], vec![], 245),
            (vec![lane(100, 10), lane(1_000, 1)], vec![], 1_258),
            (vec![lane(100, 10), lane(1_000, 1)], vec![500, 8], 1_768),
            (vec![LaneLimits::default()], vec![], 12_048),
            (vec![lane(usize::MAX, usize::MAX)], vec![u64::MAX], usize::MAX),
        ] {
            assert_eq!(sum(&lanes, &listeners), want, "{lanes:?} {listeners:?}");
        }
    }

    #[test]
    fn r21_a_soft_limit_is_raised_to_what_is_needed_as_far_as_the_hard_one() {
        for (soft, hard, want) in [
            (Some(1_024), Some(1_000_000), Some(25_000)),
            (Some(1_024), None, Some(25_000)),
            (Some(1_024), Some(4_096), Some(4_096)),
            (Some(96), Some(96), Some(96)),
            (Some(30_000), Some(40_000), Some(30_000)), // never lowered
            (None, None, None),
        ] {
            let limit = Rlimit { current: soft, maximum: hard };
            assert_eq!(raised(limit, 25_000), Rlimit { current: want, maximum: hard }, "{soft:?} {hard:?}");
        }
    }
}
