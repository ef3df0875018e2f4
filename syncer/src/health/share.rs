//! What syncers tell each other of SFUs.
//!
//! Every syncer looks at the SFUs itself. What it tells the others is only what is wrong and what no
//! longer is: one message a second at most, whatever the number of calls and SFUs, and nothing while all
//! is well but a word now and then that we are there to be asked. What was told is told again before it
//! expires at the other end, so a lost message is made up for, and a syncer that dies takes its opinion
//! with it.
//!
//! The types are what is on the wire. Unknown fields are ignored, so that a newer syncer can say more;
//! a change that older ones would misunderstand raises [`WIRE`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sfu_api::{GatewayId, SfuId, SyncerId};
use tokio::time::Instant;

/// Version of these types. A message of another one is counted and ignored.
pub const WIRE: u16 = 1;

/// Shortest time between two messages. What is new after a quiet second goes at once.
const MESSAGE_EVERY: Duration = Duration::from_secs(1);
/// What is still so is told again after this: three times before it expires.
const REFRESH_EVERY: Duration = Duration::from_secs(3);
/// How long evidence of a peer counts, and how long one answer makes it somebody who can be asked.
pub const EVIDENCE_TTL: Duration = Duration::from_secs(10);
/// Most of a message's text that is spent on SFUs. Below the 64 KiB that a body may have, with room for
/// the frame; at ~50 bytes each, 1,000 SFUs. The rest goes a second later.
const SIGHTS_BYTES_MAX: usize = 52 * 1024;
/// Entries taken from a peer: more do not fit into a body.
pub const SIGHTS_MAX: usize = 4_096;
/// Gateways named for one SFU: two decide.
pub const GATEWAYS_NAMED_MAX: usize = 2;

/// What a syncer sees of an SFU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    /// Nothing is wrong, or no longer.
    #[default]
    Fine,
    /// It did not answer, or refused, too few times to be sure: look yourself.
    Doubted,
    /// It refuses or resets fresh connections, often enough and for long enough.
    Refused,
}

/// One SFU in a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SfuSight {
    /// The SFU.
    pub sfu: SfuId,
    /// What is seen of it.
    pub sight: Sight,
    /// Gateways whose clients lost their media since it last answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<GatewayId>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceMessage {
    /// [`WIRE`].
    pub v: u16,
    /// Who says it.
    pub from: SyncerId,
    /// Whether more of the fleet is silent, seen from there, than silence can explain.
    #[serde(default)]
    pub over: bool,
    /// What has changed, or is to be remembered.
    #[serde(default)]
    pub sfus: Vec<SfuSight>,
}

/// The answer to a message: only who gives it can confirm what we see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceAnswer {
    /// [`WIRE`].
    pub v: u16,
}

/// What was told, and when.
#[derive(Debug, Default)]
pub struct Outbox {
    /// What the others remember of us. As many as SFUs are in doubt at most.
    told: HashMap<SfuId, (Sight, usize, Instant)>,
    over: bool,
    sent: Option<Instant>,
}

/// The syncers that answered lately: whoever is among them can confirm what we see.
#[derive(Debug, Default)]
pub struct Witnesses(BTreeMap<SyncerId, Instant>);

// === impl Outbox ===

impl Outbox {
    /// The next message's content, if it is time for one. `seen` is every SFU of which something is
    /// wrong.
    pub fn next(&mut self, mut seen: Vec<SfuSight>, over: bool, now: Instant) -> Option<Vec<SfuSight>> {
        let since = self.sent.map(|at| now.saturating_duration_since(at));
        if since.is_some_and(|since| since < MESSAGE_EVERY) {
            return None;
        }
        let wrong: HashSet<&SfuId> = seen.iter().map(|s| &s.sfu).collect();
        let over_it = self.told.keys().filter(|sfu| !wrong.contains(sfu)).cloned().collect::<Vec<_>>();
        let fine = over_it.into_iter().map(|sfu| SfuSight { sfu, sight: Sight::Fine, gateways: Vec::new() });
        seen.extend(fine);
        seen.retain(|s| self.is_news(s, now));
        // Should there be too much for one message: what is new first, the worst of it before the rest, and
        // then what was told the longest ago.
        seen.sort_by_key(|s| {
            let told = self.told.get(&s.sfu).filter(|(sight, ..)| *sight == s.sight);
            (told.map(|(.., at)| *at), Reverse(s.sight))
        });
        let mut bytes = 0;
        let fits = seen.iter().take_while(|s| {
            bytes += 40 + s.sfu.as_str().len() + s.gateways.iter().map(|g| g.as_str().len() + 3).sum::<usize>();
            bytes <= SIGHTS_BYTES_MAX
        });
        let fits = fits.count();
        seen.truncate(fits);
        if seen.is_empty() && over == self.over && since.is_some_and(|since| since < REFRESH_EVERY) {
            return None;
        }
        for s in &seen {
            if s.sight == Sight::Fine && s.gateways.is_empty() {
                self.told.remove(&s.sfu);
            } else {
                self.told.insert(s.sfu.clone(), (s.sight, s.gateways.len(), now));
            }
        }
        self.over = over;
        self.sent = Some(now);
        Some(seen)
    }

    fn is_news(&self, s: &SfuSight, now: Instant) -> bool {
        self.told.get(&s.sfu).is_none_or(|(sight, gateways, at)| {
            *sight != s.sight || *gateways != s.gateways.len() || now.saturating_duration_since(*at) >= REFRESH_EVERY
        })
    }
}

// === impl Witnesses ===

impl Witnesses {
    /// A peer answered, or did not.
    pub fn note(&mut self, peer: &SyncerId, answered: bool, now: Instant) {
        if answered {
            self.0.insert(peer.clone(), now + EVIDENCE_TTL);
        } else {
            self.0.remove(peer);
        }
    }

    /// How many could confirm what we see. Those that are no peers any more are forgotten.
    pub fn count(&mut self, is_peer: impl Fn(&SyncerId) -> bool, now: Instant) -> u32 {
        self.0.retain(|peer, until| *until > now && is_peer(peer));
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn sight(n: usize, sight: Sight) -> SfuSight {
        SfuSight { sfu: SfuId::new(format!("sfu-{n}")).expect("valid"), sight, gateways: Vec::new() }
    }

    #[test]
    fn r17_only_what_changed_is_told_and_again_before_it_expires() {
        let (mut out, t) = (Outbox::default(), Instant::now());
        let doubted = || vec![sight(1, Sight::Doubted)];
        assert_eq!(out.next(Vec::new(), false, t), Some(Vec::new()), "the first word: we are here");
        assert_eq!(out.next(doubted(), false, t + MS(900)), None, "one a second");
        assert_eq!(out.next(doubted(), false, t + MS(1_000)), Some(doubted()));
        assert_eq!(out.next(doubted(), false, t + MS(2_000)), None, "nothing new");
        let refused = vec![sight(1, Sight::Refused)];
        assert_eq!(out.next(refused.clone(), false, t + MS(2_100)), Some(refused.clone()));
        assert_eq!(out.next(refused.clone(), false, t + MS(5_100)), Some(refused), "again, before it expires");
        assert_eq!(out.next(Vec::new(), false, t + MS(6_200)), Some(vec![sight(1, Sight::Fine)]), "taken back");
        assert_eq!(out.next(Vec::new(), false, t + MS(7_300)), None, "once");
        assert_eq!(out.next(Vec::new(), false, t + MS(9_300)), Some(Vec::new()), "still here");
    }

    #[test]
    fn the_wire_is_what_it_was() {
        let gateways = vec![GatewayId::new("gw-1").expect("valid")];
        let sfus = vec![SfuSight { gateways, ..sight(7, Sight::Refused) }, sight(8, Sight::Fine)];
        let message = EvidenceMessage { v: WIRE, from: SyncerId::new("a").expect("valid"), over: false, sfus };
        let text = r#"{"v":1,"from":"a","over":false,"sfus":[{"sfu":"sfu-7","sight":"refused","gateways":["gw-1"]},{"sfu":"sfu-8","sight":"fine"}]}"#;
        assert_eq!(serde_json::to_string(&message).expect("JSON"), text);
        let newer = r#"{"v":1,"from":"a","news":[1],"sfus":[{"sfu":"s","sight":"doubted","colour":"red"}]}"#;
        let heard: EvidenceMessage = serde_json::from_str(newer).expect("a newer syncer may say more");
        assert_eq!((heard.over, heard.sfus[0].sight), (false, Sight::Doubted));
    }

    #[test]
    fn witnesses_are_those_that_answered_lately() {
        let (mut witnesses, t) = (Witnesses::default(), Instant::now());
        let [a, b] = ["a", "b"].map(|id| SyncerId::new(id).expect("valid"));
        witnesses.note(&a, true, t);
        witnesses.note(&b, true, t);
        assert_eq!(witnesses.count(|_| true, t), 2);
        witnesses.note(&b, false, t);
        assert_eq!(witnesses.count(|_| true, t), 1, "who does not answer confirms nothing");
        assert_eq!(witnesses.count(|_| true, t + EVIDENCE_TTL), 0);
        witnesses.note(&a, true, t);
        assert_eq!(witnesses.count(|peer| *peer != a, t), 0, "it has left");
    }

    proptest! {
        /// Whatever happens to however many SFUs: no message is too large, none comes too soon, and a
        /// peer that hears all of them ends up believing what is so.
        #[test]
        fn r17_messages_are_small_and_rare_and_tell_the_truth_in_the_end(
            steps in prop::collection::vec((prop::collection::vec((0usize..3_000, 1u8..3), 0..2_500), 0u64..1_500), 1..8),
        ) {
            let (mut out, mut now) = (Outbox::default(), Instant::now());
            let mut last: Option<Instant> = None;
            let mut believed: HashMap<SfuId, Sight> = HashMap::new();
            let mut truth: Vec<SfuSight> = Vec::new();
            let quiet = std::iter::repeat_n((None, 1_000u64), 10);
            for (change, gap) in steps.into_iter().map(|(c, g)| (Some(c), g)).chain(quiet) {
                now += MS(gap);
                if let Some(change) = change {
                    let by_id: BTreeMap<usize, u8> = change.into_iter().collect();
                    let of = |s| if s == 1 { Sight::Doubted } else { Sight::Refused };
                    truth = by_id.into_iter().map(|(n, s)| sight(n, of(s))).collect();
                }
                let Some(told) = out.next(truth.clone(), false, now) else { continue };
                prop_assert!(last.is_none_or(|at| now - at >= MESSAGE_EVERY));
                last = Some(now);
                prop_assert!(serde_json::to_string(&told).expect("JSON").len() <= 60 * 1024);
                for s in told {
                    if s.sight == Sight::Fine { believed.remove(&s.sfu); } else { believed.insert(s.sfu, s.sight); }
                }
            }
            let truth: HashMap<SfuId, Sight> = truth.into_iter().map(|s| (s.sfu, s.sight)).collect();
            prop_assert_eq!(believed, truth);
        }
    }
}
