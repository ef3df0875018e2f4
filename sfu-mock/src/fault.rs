//! What can be broken, and on whom.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use sfu_api::{RegionId, SfuId, ZoneId};

use crate::Error;
use crate::config::{LATENCY_MAX, Spot};

/// Longest down time of a restart.
const DOWN_MS_MAX: u64 = 3_600_000;
/// An error without a rate hits every request.
const DEFAULT_RATE: f64 = 1.0;

/// One way to break a node. A node can have several at once, one of each kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The process dies: new connections are refused, live ones reset, everything is forgotten.
    Kill,
    /// [`Fault::Kill`], then a new incarnation at the same address after `down_ms`. A hang ends with
    /// the process; its other faults stay until they are healed.
    Restart {
        /// How long it is down, in milliseconds.
        #[serde(default)]
        down_ms: u64,
    },
    /// The application hangs: connections and TLS handshakes succeed, requests get no answer, on
    /// live connections too. Those that still wait when it is healed are answered then.
    Hang,
    /// The host goes silent: TCP connects (the kernel answers), the TLS handshake never completes,
    /// live connections carry nothing any more.
    BlackHole,
    /// Answers come late. The work is done at once: a caller that gives up does not undo it.
    Slow {
        /// Added to every answer, in milliseconds.
        latency_ms: u64,
    },
    /// Requests of the control contract are answered with an error, at a rate.
    Error {
        /// 429, or 500 to 599.
        status: u16,
        /// Share of the requests, 0 to 1.
        #[serde(default = "always")]
        rate: f64,
        /// Value of `Retry-After`; absent sends none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_s: Option<u32>,
        /// Whether the work is done all the same: the caller sees an error, the room exists.
        #[serde(default)]
        ghost: bool,
    },
    /// Requests of the control contract are done, but the answer is garbage.
    Garbage {
        /// What is wrong with it.
        what: Garbage,
    },
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Garbage {
    /// The body is not JSON, though the headers say so.
    Body,
    /// The body is a web page and says so.
    ContentType,
    /// The body is 10 MB of JSON.
    Huge,
    /// `Content-Length` promises more than is sent.
    Length,
}

/// Which nodes.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// These.
    Nodes(Vec<SfuId>),
    /// A share of those that are up, chosen by a seed.
    Share {
        /// 0 to 1, of all nodes (of the region and zone), rounded; not 0 is at least one node.
        share: f64,
        /// Only from this region.
        region: Option<RegionId>,
        /// Only from zones of this name.
        zone: Option<ZoneId>,
        /// Same seed, same choice among the same nodes.
        seed: u64,
    },
}

/// The faults of one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FaultSet {
    /// [`Fault::Kill`], or [`Fault::Restart`] until it is up again.
    pub(crate) down: Option<Fault>,
    pub(crate) hang: bool,
    pub(crate) black_hole: bool,
    pub(crate) slow: Option<Duration>,
    pub(crate) error: Option<InjectedError>,
    pub(crate) garbage: Option<Garbage>,
}

/// See [`Fault::Error`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct InjectedError {
    pub(crate) status: u16,
    pub(crate) rate: f64,
    pub(crate) retry_after_s: Option<u32>,
    pub(crate) ghost: bool,
}

fn always() -> f64 {
    DEFAULT_RATE
}

// === impl Fault ===

impl Fault {
    /// Checks the values.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        match *self {
            Self::Restart { down_ms } if down_ms > DOWN_MS_MAX => {
                Err(Error::request(format!("down_ms must be at most {DOWN_MS_MAX}, got {down_ms}")))
            }
            Self::Slow { latency_ms } if u128::from(latency_ms) > LATENCY_MAX.as_millis() => {
                Err(Error::request(format!("latency_ms must be at most {}, got {latency_ms}", LATENCY_MAX.as_millis())))
            }
            Self::Error { status, .. } if status != 429 && !(500..=599).contains(&status) => {
                Err(Error::request(format!("status must be 429 or 500 to 599, got {status}")))
            }
            Self::Error { rate, .. } if !(0.0..=1.0).contains(&rate) => {
                Err(Error::request(format!("rate must be 0 to 1, got {rate}")))
            }
            _ => Ok(()),
        }
    }
}

// === impl Target ===

impl Target {
    /// A share of all nodes, chosen by seed 0.
    #[must_use]
    pub fn share(share: f64) -> Self {
        Self::Share { share, region: None, zone: None, seed: 0 }
    }

    /// One node.
    #[must_use]
    pub fn node(id: SfuId) -> Self {
        Self::Nodes(vec![id])
    }

    /// The indices of the nodes meant, among `(id, spot, up)` in order.
    pub(crate) fn pick(&self, nodes: &[(&SfuId, &Spot, bool)]) -> Result<Vec<usize>, Error> {
        match self {
            Self::Nodes(ids) => {
                let find = |id: &SfuId| nodes.iter().position(|(of, ..)| *of == id);
                let mut picked = ids
                    .iter()
                    .map(|id| find(id).ok_or_else(|| Error::unknown_node(id.clone())))
                    .collect::<Result<Vec<_>, _>>()?;
                picked.sort_unstable();
                picked.dedup();
                Ok(picked)
            }
            Self::Share { share, region, zone, seed } => {
                pick_share(nodes, *share, (region.as_ref(), zone.as_ref()), *seed)
            }
        }
    }
}

fn pick_share(
    nodes: &[(&SfuId, &Spot, bool)],
    share: f64,
    (region, zone): (Option<&RegionId>, Option<&ZoneId>),
    seed: u64,
) -> Result<Vec<usize>, Error> {
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::request(format!("share must be 0 to 1, got {share}")));
    }
    let is_meant =
        |spot: &Spot| region.is_none_or(|r| spot.region == *r) && zone.is_none_or(|z| spot.zone.as_ref() == Some(z));
    let within: Vec<_> = (0..nodes.len()).filter(|&i| is_meant(nodes[i].1)).collect();
    if within.is_empty() {
        let asked = [region.map(|r| format!("region {r}")), zone.map(|z| format!("zone {z}"))];
        let asked = asked.into_iter().flatten().collect::<Vec<_>>().join(" and ");
        return Err(Error::request(format!("no node is in {asked}")));
    }
    #[expect(clippy::cast_precision_loss, reason = "at most 20,000 nodes")]
    let wanted = (within.len() as f64 * share).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to the number of nodes")]
    let wanted = (wanted as usize).max(usize::from(share > 0.0));
    let mut up: Vec<_> = within.into_iter().filter(|&i| nodes[i].2).collect();
    up.shuffle(&mut StdRng::seed_from_u64(seed));
    up.truncate(wanted);
    up.sort_unstable();
    Ok(up)
}

// === impl FaultSet ===

impl FaultSet {
    /// Adds a fault of a running node; the life-cycle ones are the node's business.
    pub(crate) fn add(&mut self, fault: &Fault) {
        match *fault {
            Fault::Kill | Fault::Restart { .. } => self.down = Some(fault.clone()),
            Fault::Hang => self.hang = true,
            Fault::BlackHole => self.black_hole = true,
            Fault::Slow { latency_ms } => self.slow = Some(Duration::from_millis(latency_ms)),
            Fault::Error { status, rate, retry_after_s, ghost } => {
                self.error = Some(InjectedError { status, rate, retry_after_s, ghost });
            }
            Fault::Garbage { what } => self.garbage = Some(what),
        }
    }

    pub(crate) fn list(&self) -> Vec<Fault> {
        let mut faults: Vec<_> = self.down.iter().cloned().collect();
        faults.extend(self.black_hole.then_some(Fault::BlackHole));
        faults.extend(self.hang.then_some(Fault::Hang));
        faults.extend(
            self.slow.map(|latency| Fault::Slow { latency_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX) }),
        );
        faults.extend(self.error.map(|InjectedError { status, rate, retry_after_s, ghost }| Fault::Error {
            status,
            rate,
            retry_after_s,
            ghost,
        }));
        faults.extend(self.garbage.map(|what| Fault::Garbage { what }));
        faults
    }

    /// The worst of them in a word.
    pub(crate) fn state(&self) -> &'static str {
        match (&self.down, self) {
            (Some(Fault::Restart { .. }), _) => "restarting",
            (Some(_), _) => "killed",
            (None, Self { black_hole: true, .. }) => "black_holed",
            (None, Self { hang: true, .. }) => "hung",
            (None, Self { garbage: Some(_), .. }) => "garbled",
            (None, Self { error: Some(_), .. }) => "erring",
            (None, Self { slow: Some(_), .. }) => "slow",
            _ => "up",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterConfig;

    fn ids(n: usize) -> Vec<(SfuId, Spot)> {
        let config = ClusterConfig {
            regions: ["a", "b"].map(|r| RegionId::new(r).expect("valid id")).into(),
            zones: ["x", "y"].map(|z| ZoneId::new(z).expect("valid id")).into(),
            weights: vec![1.0, 0.5],
            ..ClusterConfig::default()
        };
        (0..n).map(|i| (SfuId::new(format!("sfu-{}", i + 1)).expect("valid id"), config.spot(i))).collect()
    }

    fn pick(target: &Target, ids: &[(SfuId, Spot)], down: &[usize]) -> Result<Vec<usize>, Error> {
        let nodes: Vec<_> = ids.iter().enumerate().map(|(i, (id, r))| (id, r, !down.contains(&i))).collect();
        target.pick(&nodes)
    }

    #[test]
    fn a_share_is_seeded_rounded_and_spares_the_dead() {
        let ids = ids(50);
        let share = |share, seed| Target::Share { share, region: None, zone: None, seed };
        let first = pick(&share(0.2, 7), &ids, &[]).expect("picks");
        assert_eq!(first.len(), 10);
        assert_eq!(first, pick(&share(0.2, 7), &ids, &[]).expect("picks"));
        assert_ne!(first, pick(&share(0.2, 8), &ids, &[]).expect("picks"));
        let second = pick(&share(0.2, 7), &ids, &first).expect("picks");
        assert!(second.len() == 10 && second.iter().all(|i| !first.contains(i)));
        assert_eq!(pick(&share(0.001, 7), &ids, &[]).expect("picks").len(), 1);
        assert_eq!(pick(&share(0.0, 7), &ids, &[]).expect("picks").len(), 0);
        assert_eq!(pick(&share(1.0, 7), &ids, &[]).expect("picks").len(), 50);
    }

    #[test]
    fn a_region_and_a_zone_bound_the_choice() {
        let ids = ids(10);
        let of = |region: Option<&str>, zone: Option<&str>| {
            let region = region.map(|r| RegionId::new(r).expect("valid id"));
            let zone = zone.map(|z| ZoneId::new(z).expect("valid id"));
            pick(&Target::Share { share: 1.0, region, zone, seed: 1 }, &ids, &[])
        };
        assert_eq!(of(Some("a"), None).expect("picks"), [0, 2, 4, 6, 8]);
        assert_eq!(of(Some("a"), Some("x")).expect("picks"), [0, 4, 8]);
        assert_eq!(of(None, Some("y")).expect("picks"), [2, 3, 6, 7]);
        assert!(of(Some("nowhere"), None).is_err_and(|e| e.is_bad_request()));
        let error = of(Some("a"), Some("nowhere")).expect_err("nobody is there");
        assert!(error.is_bad_request() && error.to_string().contains("region a and zone nowhere"), "{error}");
        let weights: Vec<_> = ids.iter().map(|(_, spot)| spot.weight.expect("one")).collect();
        assert_eq!(weights, [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0], "each zone has both");
    }

    #[test]
    fn unknown_nodes_are_named() {
        let target = Target::node(SfuId::new("other").expect("valid id"));
        let error = pick(&target, &ids(3), &[]).expect_err("refused");
        assert!(error.is_unknown_node() && error.to_string().contains("other"));
    }

    #[test]
    fn faults_read_as_documented() {
        for json in [
            r#"{"kind":"kill"}"#,
            r#"{"kind":"restart","down_ms":500}"#,
            r#"{"kind":"restart"}"#,
            r#"{"kind":"hang"}"#,
            r#"{"kind":"black_hole"}"#,
            r#"{"kind":"slow","latency_ms":200}"#,
            r#"{"kind":"error","status":503,"rate":0.3,"retry_after_s":1}"#,
            r#"{"kind":"garbage","what":"content_type"}"#,
        ] {
            let fault: Fault = serde_json::from_str(json).expect(json);
            assert!(fault.validate().is_ok(), "{json}");
        }
        for json in [
            r#"{"kind":"error","status":200}"#,
            r#"{"kind":"error","status":503,"rate":1.5}"#,
            r#"{"kind":"slow","latency_ms":999999999}"#,
        ] {
            let fault: Fault = serde_json::from_str(json).expect(json);
            assert!(fault.validate().is_err_and(|e| e.is_bad_request()), "{json}");
        }
    }
}
