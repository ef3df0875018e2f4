//! Every limit of a lane, with the reason for its default.

use std::time::Duration;

use rate_limit::Quota;

use crate::cell::with_probes;
use crate::dial::connect::ATTEMPTS_MAX;
use crate::error::Error;

/// Most partitions a lane can have: beyond this the per-partition budgets become too small to be useful.
pub const PARTITIONS_MAX: usize = 256;

/// Longest duration a limit may have. Longer ones mean "never", and would overflow the clock they are added to.
const DURATION_MAX: Duration = Duration::from_hours(24 * 365);

/// Most that the limits which count something may be: orders of magnitude above what one process can have, so that
/// there is nothing to gain beyond, and small enough that no sum or product of two overflows.
pub(crate) mod most {
    /// Dials are connections too. What a process may have open where that was raised as far as is usual.
    pub(crate) const CONNECTIONS: usize = 1_000_000;
    /// Ports of one address towards another.
    pub(crate) const CONNECTIONS_PER_ORIGIN: usize = 65_536;
    /// 5 GiB of callers.
    pub(crate) const WAITERS: usize = 10_000_000;
    /// 10 GiB of cells.
    pub(crate) const ORIGINS: usize = 10_000_000;
    /// A thousand times what servers are recommended to allow.
    pub(crate) const H2_STREAMS: usize = 100_000;
}

/// The limits of one lane. All but `partitions` can be changed while the lane runs:
/// [`Lane::set_limits`](crate::Lane::set_limits).
///
/// Lane budgets are *divided* among the partitions, never shared: a partition that is full of dead hosts
/// cannot take a slot from another one, and no counter is touched by all of them. Each partition has one of each at least,
/// however small the whole is.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneLimits {
    /// Partitions. More isolate better, fewer waste less of the divided budgets. No speed is gained.
    pub partitions: usize,
    /// Origins with state. 32,768: the 25,000 SFUs of the largest fleet and room to replace a quarter. Beyond them a new
    /// origin takes the place of one that has no handle, no connection and no back-off; if there is none, its requests
    /// are refused as when a line is full. Hashing is even only on average, so a partition may have half as many again as its
    /// share.
    pub origins_max: usize,
    /// Connections per origin. 64 HTTP/1.1 exchanges at once are more than an SFU's control API takes;
    /// HTTP/2 needs two or three.
    pub connections_per_origin_max: usize,
    /// Connections of the lane, and a quarter of `dials_max` that only health probes open. The process needs a file
    /// descriptor for each, and six for each dial beside them: one to a silent host is up to seven, and probes are dials,
    /// too. [`Self::descriptors_max`] is the sum.
    pub connections_max: usize,
    /// Dials in flight in the lane, and a quarter as many health probes. A dial is mostly waiting, so hundreds; divided among
    /// partitions. One to a silent host is up to seven descriptors.
    pub dials_max: usize,
    /// Dials that may start per second in the lane, divided among partitions. It is there to be lowered in an
    /// incident and must not bite before: a handshake costs 0.1 to 0.2 ms of CPU, so 100,000 leave even one origin,
    /// in one of eight partitions, as many as two cores can do.
    pub dial_rate_per_s: f64,
    /// Dials that may start at once before the rate counts: as many as may be in flight, four times over.
    pub dial_burst: u32,
    /// TLS handshakes that may ever compute at once; how many do is learnt from the lag of the event loop.
    /// `None`: 64 per core.
    pub handshakes_max: Option<u32>,
    /// Callers waiting for one origin. 4,096 at 1 ms each is already longer than most deadlines.
    pub waiters_per_origin_max: usize,
    /// Callers waiting in the lane, and a quarter as many that wait for health probes
    /// ([`LaneLimits::waiters_bound`]). About 0.5 KiB each, so 65,536 are 40 MiB at worst.
    pub waiters_max: usize,
    /// Requests at once on one HTTP/2 connection; the peer's own limit counts too. 100 is the least that
    /// RFC 9113 recommends servers to allow.
    pub h2_streams_max: usize,
    /// Bound of a whole dial: name, TCP, TLS and HTTP handshake together. 1 s to connect and 2 s for TLS. Time for which
    /// it waited for us does not count (for its turn to compute or to ask for a name, or because the process stood still),
    /// but three times as long is the end of any dial.
    pub dial_timeout: Duration,
    /// An idle connection is closed after this. Below the 60 s at which common servers close theirs.
    pub idle_timeout: Duration,
    /// A connection serves at most this long (less up to a fifth, at random, so that they do not all
    /// reconnect at once): load moves with DNS and certificates are checked again. One that idles when its time comes
    /// may stay open until it has idled for `idle_timeout`.
    pub age_max: Duration,
    /// Back-off after the first failed dial of an origin; doubles, with full jitter.
    pub backoff_base: Duration,
    /// Longest back-off; how long a host that came back may stay unnoticed by ordinary traffic.
    pub backoff_max: Duration,
    /// Deadline of requests sent through `tower::Service` without one of their own.
    pub request_timeout: Duration,
    /// HTTP/2 keep-alive PING after this much silence.
    pub ping_interval: Duration,
    /// A connection whose PING is not answered in this time is closed. As long as TCP_USER_TIMEOUT, so a half-open
    /// connection is found 5 s after something was written to it; one that idles is written to after `ping_interval`.
    pub ping_timeout: Duration,
}

impl Default for LaneLimits {
    fn default() -> Self {
        Self {
            partitions: 8,
            origins_max: 32_768,
            connections_per_origin_max: 64,
            connections_max: 10_000,
            dials_max: 256,
            dial_rate_per_s: 100_000.0,
            dial_burst: 1_024,
            handshakes_max: None,
            waiters_per_origin_max: 4_096,
            waiters_max: 65_536,
            h2_streams_max: 100,
            dial_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(45),
            age_max: Duration::from_mins(10),
            backoff_base: Duration::from_millis(200),
            backoff_max: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(5),
        }
    }
}

// === impl LaneLimits ===

impl LaneLimits {
    /// Refuses limits under which the lane could not work.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::config(reason));
        if self.partitions == 0 || self.partitions > PARTITIONS_MAX {
            return fail(format!("partitions must be 1 to {PARTITIONS_MAX}"));
        }
        // What is divided among partitions must leave one to each.
        for (name, value, min, max) in [
            ("dials_max", self.dials_max, self.partitions, most::CONNECTIONS),
            ("connections_max", self.connections_max, self.partitions, most::CONNECTIONS),
            ("waiters_max", self.waiters_max, self.partitions, most::WAITERS),
            ("origins_max", self.origins_max, 1, most::ORIGINS),
            ("connections_per_origin_max", self.connections_per_origin_max, 1, most::CONNECTIONS_PER_ORIGIN),
            ("waiters_per_origin_max", self.waiters_per_origin_max, 1, most::WAITERS),
            ("h2_streams_max", self.h2_streams_max, 1, most::H2_STREAMS),
        ] {
            if !(min..=max).contains(&value) {
                return fail(format!("{name} must be {min} to {max}"));
            }
        }
        if self.handshakes_max == Some(0) {
            return fail("handshakes_max must not be 0".to_owned());
        }
        self.dial_quota()?;
        for (name, span) in [
            ("dial_timeout", self.dial_timeout),
            ("idle_timeout", self.idle_timeout),
            ("age_max", self.age_max),
            ("backoff_base", self.backoff_base),
            ("backoff_max", self.backoff_max),
            ("request_timeout", self.request_timeout),
            ("ping_interval", self.ping_interval),
            ("ping_timeout", self.ping_timeout),
        ] {
            if span.is_zero() || span > DURATION_MAX {
                return fail(format!(
                    "{name} must be more than 0 and at most {} days",
                    DURATION_MAX.as_secs() / 86_400
                ));
            }
        }
        Ok(())
    }

    /// Callers that wait in a lane with these limits at most, those that wait for health probes included.
    #[must_use]
    pub fn waiters_bound(&self) -> usize {
        with_probes(self.share(self.waiters_max)).saturating_mul(self.partitions)
    }

    /// File descriptors that the lane may have open at once: the budget to keep below the limit of the process. One for
    /// each connection, dials included, and six more for each dial, and health probes are a quarter as many dials again.
    ///
    /// ```
    /// # use pool::LaneLimits;
    /// let limits = LaneLimits { connections_max: 1_000, dials_max: 100, ..LaneLimits::default() };
    /// assert_eq!(limits.descriptors_max(), 1_000 + 25 + 6 * 125);
    /// ```
    #[must_use]
    pub fn descriptors_max(&self) -> usize {
        let dials = with_probes(self.dials_max);
        let probed = dials - self.dials_max;
        self.connections_max.saturating_add(probed).saturating_add(dials.saturating_mul(ATTEMPTS_MAX - 1))
    }

    /// One partition's share of a lane's budget.
    pub(crate) fn share(&self, whole: usize) -> usize {
        (whole / self.partitions.max(1)).max(1)
    }

    /// One partition's share of the dial rate.
    pub(crate) fn dial_quota(&self) -> Result<Quota, Error> {
        let quota = Quota::new(self.dial_rate_per_s, self.dial_burst).map_err(Error::config)?;
        Ok(quota.share(u32::try_from(self.partitions).unwrap_or(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r19_durations_that_would_spin_or_overflow_a_clock_are_refused() {
        assert!(LaneLimits::default().validate().is_ok());
        for wrong in [Duration::ZERO, Duration::MAX] {
            let refused = |limits: LaneLimits| limits.validate().is_err();
            assert!(refused(LaneLimits { age_max: wrong, ..LaneLimits::default() }));
            assert!(refused(LaneLimits { request_timeout: wrong, ..LaneLimits::default() }));
            assert!(refused(LaneLimits { ping_interval: wrong, ..LaneLimits::default() }));
            assert!(refused(LaneLimits { ping_timeout: wrong, ..LaneLimits::default() }));
        }
    }

    #[test]
    fn r19_counts_that_would_overflow_are_refused() {
        let counts: [fn(&mut LaneLimits) -> &mut usize; 7] = [
            |limits| &mut limits.origins_max,
            |limits| &mut limits.connections_per_origin_max,
            |limits| &mut limits.connections_max,
            |limits| &mut limits.dials_max,
            |limits| &mut limits.waiters_per_origin_max,
            |limits| &mut limits.waiters_max,
            |limits| &mut limits.h2_streams_max,
        ];
        for (at, count) in counts.into_iter().enumerate() {
            for wrong in [0, usize::MAX] {
                let mut limits = LaneLimits::default();
                *count(&mut limits) = wrong;
                assert!(limits.validate().is_err(), "count {at} may be {wrong}");
            }
        }
    }
}
