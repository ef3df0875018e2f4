//! The outside view of the invariants: pure bookkeeping over what gateways were told.
//!
//! The checker knows nothing of syncers. It is fed every announcement (with the watcher and the
//! stream it came on), every join answer, and which SFUs were broken when; it says what changed
//! and keeps the violations:
//!
//! - I3, one endpoint: a call is never announced on two endpoints at the same epoch;
//! - I7, order: on one stream of one watcher, (epoch, phase) of a call strictly grows. A *new*
//!   stream may begin with repeats (delivery is at least once); those are dropped, not counted;
//! - R16, contract: phase 1 has an endpoint, phase 2 has none;
//! - I10, untouched: an endpoint leaves an SFU only if that SFU was broken;
//! - I7, last state: at quiescence every watcher of a call knows its last state.

mod judge;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use rustc_hash::FxHashMap;
use sfu_api::Epoch;
use tokio::time::Instant;

use crate::population::CallIx;

/// A call's position in its own history: epoch, then 1 (announced) or 2 (went away).
pub type Position = (Epoch, u8);

/// Epochs of one call whose endpoints are remembered: repeats that arrive later than this are not
/// compared. Four covers a restart, a move and a move back.
const REMEMBERED_EPOCHS: usize = 4;
/// Violations kept with their text; all are counted.
const DETAILS_MAX: usize = 100;
/// Moves waiting for their verdict; beyond it the oldest is judged at once.
const MOVES_PENDING_MAX: usize = 1 << 16;

/// What can be broken, seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// I3: two endpoints at one epoch.
    OneEndpoint,
    /// I7: not strictly growing on one stream.
    Order,
    /// R16: endpoint and phase contradict each other.
    Contract,
    /// I10: moved off an SFU that was not broken.
    Untouched,
    /// I7: a watcher was not told the last state.
    LastState,
}

/// What a piece of news meant for its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: known already, or older than what is known.
    None,
    /// The endpoint went away.
    Lost,
    /// The call has an endpoint.
    Placed {
        /// Whether it never had one before.
        first: bool,
        /// If its SFU was broken: how long ago.
        outage: Option<Duration>,
    },
}

/// What a watcher was told.
#[derive(Clone, Copy, Debug)]
pub struct News<'a> {
    /// The call.
    pub call: CallIx,
    /// Epoch of the placement.
    pub epoch: Epoch,
    /// 1 announced, 2 went away.
    pub phase: u8,
    /// The endpoint.
    pub endpoint: Option<&'a str>,
}

/// Numbers the checker keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls whose endpoint went to another SFU.
    pub moved: u64,
    /// Calls placed anew on the same SFU.
    pub replaced: u64,
    /// Calls that were on an SFU when it was broken.
    pub affected: u64,
    /// Of these: calls that were placed anew since, wherever.
    pub recovered: u64,
    /// Calls first placed on an SFU while it was broken.
    pub new_on_hit: u64,
    /// Repeats that were dropped.
    pub repeats: u64,
    /// Violations.
    pub violations: u64,
}

#[derive(Debug, Default)]
struct CallSeen {
    last: Option<Position>,
    node: Option<u32>,
    endpoint: Option<Box<str>>,
    /// Endpoints of the latest epochs, oldest first.
    recent: VecDeque<(Epoch, Box<str>)>,
    /// The SFU that it left last, and when.
    left: Option<(u32, Instant)>,
    moved: bool,
    replaced: bool,
    /// Since when its SFU is, or was, broken under it.
    affected: Option<Instant>,
    recovered: bool,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    /// The stream of the last event, and the event's position.
    heard: Option<(u32, Position)>,
    /// The newest the watcher knows, from events and join answers.
    known: Option<Position>,
}

/// Why and when an SFU was broken.
#[derive(Clone, Copy, Debug)]
struct Hit {
    since: Instant,
    /// Whether it still is.
    active: bool,
}

#[derive(Clone, Copy, Debug)]
struct Move {
    call: CallIx,
    from: u32,
    at: Instant,
}

/// The bookkeeping of one drill.
#[derive(Debug)]
pub struct Checker {
    calls: Vec<CallSeen>,
    watchers: Vec<FxHashMap<CallIx, Watched>>,
    nodes: FxHashMap<Box<str>, u32>,
    hits: FxHashMap<u32, Hit>,
    moves: VecDeque<Move>,
    tally: Tally,
    broken: FxHashMap<Rule, u64>,
    details: Vec<String>,
}

/// The SFU of an endpoint: its `host:port`.
#[must_use]
pub fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or(rest)
}

// === impl Rule ===

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneEndpoint => "i03_one_endpoint",
            Self::Order => "i07_order",
            Self::Contract => "r16_contract",
            Self::Untouched => "i10_untouched",
            Self::LastState => "i07_last_state",
        })
    }
}

// === impl Checker ===

impl Checker {
    /// A checker of `calls` calls and `watchers` watchers.
    #[must_use]
    pub fn new(calls: u32, watchers: u16) -> Self {
        Self {
            calls: (0..calls).map(|_| CallSeen::default()).collect(),
            watchers: (0..watchers).map(|_| FxHashMap::default()).collect(),
            nodes: FxHashMap::default(),
            hits: FxHashMap::default(),
            moves: VecDeque::new(),
            tally: Tally::default(),
            broken: FxHashMap::default(),
            details: Vec::new(),
        }
    }

    /// An event on a watcher's stream. Streams of one watcher are numbered upwards.
    pub fn event(&mut self, watcher: u16, stream: u32, news: News<'_>, now: Instant) -> Change {
        let position = (news.epoch, news.phase);
        let watched = self.watched(watcher, news.call);
        let before = watched.heard.replace((stream, position));
        watched.known = watched.known.max(Some(position));
        match before {
            Some((same, last)) if same == stream && position <= last => {
                watched.heard = before;
                let (call, (le, lp)) = (news.call, last);
                let text = format!("gateway {watcher}, c{call}: {}/{} after {le}/{lp}", news.epoch, news.phase);
                self.violate(Rule::Order, &text);
            }
            Some((_, last)) if position <= last => {
                watched.heard = Some((stream, last));
                self.tally.repeats += 1;
            }
            _ => {}
        }
        self.observe(news, now)
    }

    /// The state in the answer to a join of this watcher.
    pub fn answer(&mut self, watcher: u16, news: News<'_>, now: Instant) -> Change {
        let watched = self.watched(watcher, news.call);
        watched.known = watched.known.max(Some((news.epoch, news.phase)));
        self.observe(news, now)
    }

    fn watched(&mut self, watcher: u16, call: CallIx) -> &mut Watched {
        self.watchers[usize::from(watcher)].entry(call).or_insert(Watched { heard: None, known: None })
    }

    fn observe(&mut self, news: News<'_>, now: Instant) -> Change {
        if (news.phase == 1) != news.endpoint.is_some() {
            let text = format!("c{}: phase {} with endpoint {:?}", news.call, news.phase, news.endpoint);
            self.violate(Rule::Contract, &text);
        }
        if let Some(endpoint) = news.endpoint {
            self.compare_endpoints(news.call, news.epoch, endpoint);
        }
        let position = (news.epoch, news.phase);
        let seen = &mut self.calls[news.call as usize];
        if seen.last.is_some_and(|last| position <= last) {
            return Change::None;
        }
        seen.last = Some(position);
        seen.endpoint = news.endpoint.map(Box::from);
        match news.endpoint {
            Some(endpoint) => self.placed(news.call, endpoint, now),
            None => {
                seen.left = seen.node.map(|node| (node, now)).or(seen.left);
                Change::Lost
            }
        }
    }

    fn compare_endpoints(&mut self, call: CallIx, epoch: Epoch, endpoint: &str) {
        let recent = &mut self.calls[call as usize].recent;
        match recent.iter().find(|(e, _)| *e == epoch) {
            Some((_, known)) if **known != *endpoint => {
                let text = format!("c{call}: {known} and {endpoint} at epoch {epoch}");
                self.violate(Rule::OneEndpoint, &text);
            }
            Some(_) => {}
            None => {
                if recent.len() == REMEMBERED_EPOCHS {
                    recent.pop_front();
                }
                recent.push_back((epoch, endpoint.into()));
            }
        }
    }

    fn placed(&mut self, call: CallIx, endpoint: &str, now: Instant) -> Change {
        let node = self.node(authority(endpoint));
        let on_hit = self.hits.get(&node).is_some_and(|hit| hit.active);
        let seen = &mut self.calls[call as usize];
        let before = seen.node.replace(node);
        match before {
            None => self.tally.new_on_hit += u64::from(on_hit),
            Some(same) if same == node => {
                self.tally.replaced += u64::from(!std::mem::replace(&mut seen.replaced, true));
            }
            Some(from) => {
                self.tally.moved += u64::from(!std::mem::replace(&mut seen.moved, true));
                // After a null the time of the null counts.
                seen.left = seen.left.filter(|(node, _)| *node == from).or(Some((from, now)));
                self.moves.push_back(Move { call, from, at: now });
            }
        }
        let mut outage = None;
        match seen.affected {
            None if on_hit => {
                seen.affected = Some(now);
                self.tally.affected += 1;
            }
            Some(since) if !on_hit && !seen.recovered => {
                seen.recovered = true;
                self.tally.recovered += 1;
                outage = Some(now.saturating_duration_since(since));
            }
            _ => {}
        }
        if self.moves.len() > MOVES_PENDING_MAX {
            self.judge_oldest();
        }
        Change::Placed { first: before.is_none(), outage }
    }

    fn node(&mut self, authority: &str) -> u32 {
        if let Some(&node) = self.nodes.get(authority) {
            return node;
        }
        let node = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.insert(authority.into(), node);
        node
    }

    fn violate(&mut self, rule: Rule, text: &str) {
        self.tally.violations += 1;
        *self.broken.entry(rule).or_default() += 1;
        if self.details.len() < DETAILS_MAX {
            self.details.push(format!("{rule}: {text}"));
        }
    }

    /// The numbers so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Violations by rule, and the first of them in words.
    #[must_use]
    pub fn violations(&self) -> (Vec<(Rule, u64)>, &[String]) {
        let mut by_rule: Vec<_> = self.broken.iter().map(|(rule, n)| (*rule, *n)).collect();
        by_rule.sort_unstable();
        (by_rule, &self.details)
    }

    /// Where each call is now.
    pub fn endpoints(&self) -> impl Iterator<Item = (CallIx, &str)> {
        (0..).zip(&self.calls).filter_map(|(call, seen)| Some((call, seen.endpoint.as_deref()?)))
    }
}

#[cfg(test)]
mod tests;
