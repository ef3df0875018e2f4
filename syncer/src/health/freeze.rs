//! When silence stops counting as death.
//!
//! One SFU that falls silent is probably ill. When a large part of the fleet falls silent at once, it is
//! probably us: our network, our name server, our certificates. Then soft evidence decides nothing until
//! somebody whose network is not ours sees the same, or an operator says so, or it is over. Hard evidence
//! is never held back: a zone that is really lost refuses, or loses its leases.

use std::collections::BTreeMap;

use sfu_api::SyncerId;
use tokio::time::Instant;

/// The freeze of a fleet.
#[derive(Clone, Debug, Default)]
pub struct Freeze {
    /// Since when so many are silent.
    over_since: Option<Instant>,
    share: f64,
    /// An operator said that silence counts.
    lifted: bool,
    /// Syncers of other zones that see the same, and how long what they said counts. As many as there
    /// are members at most: only those are heard.
    agree: BTreeMap<SyncerId, Instant>,
}

/// What is believed of the whole fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, utoipa::ToSchema)]
pub struct FreezeView {
    /// Share of the SFUs that are suspect although they refuse nothing.
    pub silent_share: f64,
    /// How long that share has been above `health.freeze_share`, in milliseconds.
    pub over_ms: Option<u64>,
    /// Whether a syncer of another zone sees the same, which ends the freeze.
    pub zones_agree: bool,
    /// Whether the lever `health.freeze_lifted` ends it.
    pub lifted: bool,
}

// === impl Freeze ===

impl Freeze {
    /// Looks again: of `all` SFUs, `silent` are suspect on soft evidence alone.
    pub fn look(&mut self, silent: usize, all: usize, share_max: f64, lifted: bool, now: Instant) {
        self.share = silent as f64 / all.max(1) as f64;
        self.lifted = lifted;
        self.agree.retain(|_, until| *until > now);
        self.over_since = (self.share > share_max).then(|| self.over_since.unwrap_or(now));
    }

    /// What a syncer of another zone sees: whether it is over its share too.
    pub fn hear(&mut self, by: &SyncerId, over: bool, until: Instant) {
        if over {
            self.agree.insert(by.clone(), until);
        } else {
            self.agree.remove(by);
        }
    }

    /// Whether too many are silent, as seen from here.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.over_since.is_some()
    }

    /// Whether silence proves nothing now.
    #[must_use]
    pub fn is_frozen(&self, now: Instant) -> bool {
        self.is_over() && !self.lifted && !self.agrees(now)
    }

    fn agrees(&self, now: Instant) -> bool {
        self.agree.values().any(|until| *until > now)
    }

    /// For operators.
    #[must_use]
    pub fn view(&self, now: Instant) -> FreezeView {
        let ms = |since| u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
        FreezeView {
            silent_share: self.share,
            over_ms: self.over_since.map(ms),
            zones_agree: self.agrees(now),
            lifted: self.lifted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn peer() -> SyncerId {
        SyncerId::new("other").expect("valid")
    }

    #[test]
    fn r17_a_freeze_ends_when_another_zone_agrees_or_by_the_lever_or_when_it_is_over() {
        let t = Instant::now();
        let mut freeze = Freeze::default();
        freeze.look(5, 10, 0.5, false, t);
        assert!(!freeze.is_frozen(t), "half is not more than half");
        freeze.look(6, 10, 0.5, false, t);
        assert!(freeze.is_frozen(t));
        let later = t + Duration::from_secs(10);
        freeze.hear(&peer(), true, later);
        assert!(freeze.is_over() && !freeze.is_frozen(t));
        assert!(freeze.is_frozen(later), "what a peer said does not count for ever");
        freeze.hear(&peer(), true, later + Duration::from_secs(10));
        freeze.hear(&peer(), false, later + Duration::from_secs(10));
        assert!(freeze.is_frozen(later), "it has changed its mind");
        freeze.look(6, 10, 0.5, true, later);
        assert!(!freeze.is_frozen(later) && freeze.view(later).lifted);
        freeze.look(6, 10, 0.5, false, later);
        assert_eq!(freeze.view(later).over_ms, Some(10_000), "since it began, not since it was last looked at");
        freeze.look(2, 10, 0.5, false, later);
        assert!(!freeze.is_over() && freeze.view(later).over_ms.is_none());
    }

    proptest! {
        /// Silence proves nothing exactly while more than the share are silent, nobody lifted that, and no syncer of
        /// another zone has said the same of late without taking it back.
        #[test]
        fn r17_silence_of_many_proves_nothing_unless_another_zone_or_an_operator_says_so(
            walk in prop::collection::vec(prop_oneof![
                (0usize..12, 1usize..12, any::<bool>()).prop_map(|(silent, all, lifted)| (Some((silent, all, lifted)), 0, false, 0)),
                (0u8..3, any::<bool>(), 0u64..20).prop_map(|(by, over, secs)| (None, by, over, secs)),
            ], 1..80),
            share in 0.0..=1.0f64, gaps in prop::collection::vec(0u64..10, 80),
        ) {
            let (mut freeze, mut now) = (Freeze::default(), Instant::now());
            let (mut over, mut lifted, mut since) = (false, false, now);
            let mut said: BTreeMap<u8, Instant> = BTreeMap::new();
            for ((look, by, agrees, secs), gap) in walk.into_iter().zip(gaps) {
                now += Duration::from_secs(gap);
                if let Some((silent, all, lever)) = look {
                    freeze.look(silent, all, share, lever, now);
                    let is_over = silent as f64 > share * all as f64 + 1e-9;
                    // On the edge either is right.
                    prop_assume!((silent as f64 - share * all as f64).abs() > 1e-9);
                    if is_over && !over { since = now; }
                    (over, lifted) = (is_over, lever);
                } else {
                    let until = now + Duration::from_secs(secs);
                    freeze.hear(&SyncerId::new(format!("s{by}")).expect("valid"), agrees, until);
                    if agrees { said.insert(by, until); } else { said.remove(&by); }
                }
                let agreed = said.values().any(|until| *until > now);
                prop_assert_eq!(freeze.is_frozen(now), over && !lifted && !agreed);
                prop_assert_eq!(freeze.view(now).over_ms.map(u128::from), over.then(|| (now - since).as_millis()));
            }
        }
    }
}
