//! Who joins which call through which gateway: generated from the plan's seed, never stored as text.
//!
//! Names are numbers with a prefix, so that the road back from an event to a call is parsing a
//! number and a million sessions cost a few bytes each.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use sfu_api::CallKind;

use crate::plan::Plan;

/// A call, by number.
pub type CallIx = u32;
/// A session, by number.
pub type SessionIx = u32;

/// How a session joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    /// A line of the bulk road.
    Bulk,
    /// A request of its own.
    Single,
}

/// A session of the population.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// Its call.
    pub call: CallIx,
    /// Its gateway, from 0.
    pub gateway: u16,
    /// How it joins.
    pub road: Road,
    /// Whether it connects to the endpoint.
    pub media: bool,
}

/// Calls that arrive together: the start, or what one phase adds.
#[derive(Clone, Debug)]
pub struct Wave {
    /// Its calls.
    pub calls: Range<CallIx>,
    /// Their sessions.
    pub sessions: Range<SessionIx>,
    /// Joins are spread over this time.
    pub over: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    guild: u32,
    region: Option<u16>,
    kind: CallKind,
}

/// Everyone who takes part in a drill.
#[derive(Debug)]
pub struct Population {
    prefix: String,
    regions: Vec<String>,
    calls: Vec<Call>,
    sessions: Vec<Session>,
    waves: Vec<Wave>,
}

// === impl Population ===

impl Population {
    /// The plan's population; `regions` are those that calls ask for.
    #[must_use]
    pub fn generate(plan: &Plan, regions: Vec<String>) -> Self {
        let mut rng = StdRng::seed_from_u64(plan.seed);
        let mut all =
            Self { prefix: plan.name.clone(), regions, calls: Vec::new(), sessions: Vec::new(), waves: Vec::new() };
        let p = &plan.population;
        all.add_wave(plan, p.calls, p.participants, p.ramp, &mut rng);
        for phase in plan.phases.iter().filter(|phase| phase.add_calls > 0) {
            let participants = u64::from(phase.add_calls) * u64::from(p.participants) / u64::from(p.calls.max(1));
            let participants = u32::try_from(participants).unwrap_or(u32::MAX);
            all.add_wave(plan, phase.add_calls, participants, phase.over, &mut rng);
        }
        all
    }

    fn add_wave(&mut self, plan: &Plan, calls: u32, participants: u32, over: Duration, rng: &mut StdRng) {
        let p = &plan.population;
        let first_call = count(self.calls.len());
        let first_session = count(self.sessions.len());
        for _ in 0..calls {
            let region = (!self.regions.is_empty()).then(|| rng.random_range(0..self.regions.len()));
            let kind = if rng.random_bool(p.stream_share) { CallKind::Stream } else { CallKind::Voice };
            let region = region.map(|r| u16::try_from(r).unwrap_or(0));
            self.calls.push(Call { guild: rng.random_range(0..p.guilds), region, kind });
        }
        // One participant for each call, then the rest at random: every call lives, sizes differ.
        // In any order, so that a ramp spreads the calls and not only their sessions.
        let mut offsets: Vec<u32> = (0..calls).collect();
        offsets.extend((calls..participants).map(|_| rng.random_range(0..calls)));
        offsets.shuffle(rng);
        for offset in offsets {
            self.sessions.push(Session {
                call: first_call + offset,
                gateway: u16::try_from(rng.random_range(0..p.gateways)).unwrap_or(0),
                road: if rng.random_bool(p.put_share) { Road::Single } else { Road::Bulk },
                media: rng.random_bool(p.media_share),
            });
        }
        self.waves.push(Wave {
            calls: first_call..count(self.calls.len()),
            sessions: first_session..count(self.sessions.len()),
            over,
        });
    }

    /// The waves; the first is the start's.
    #[must_use]
    pub fn waves(&self) -> &[Wave] {
        &self.waves
    }

    /// Calls of all waves.
    #[must_use]
    pub fn calls(&self) -> u32 {
        count(self.calls.len())
    }

    /// All sessions.
    #[must_use]
    pub fn sessions(&self) -> &[Session] {
        &self.sessions
    }

    /// The session of this number.
    #[must_use]
    pub fn session(&self, ix: SessionIx) -> Session {
        self.sessions[ix as usize]
    }

    /// Name of the call's guild.
    #[must_use]
    pub fn guild_name(&self, call: CallIx) -> String {
        format!("{}-g{}", self.prefix, self.calls[call as usize].guild)
    }

    /// Name of the call.
    #[must_use]
    pub fn call_name(&self, call: CallIx) -> String {
        format!("c{call}")
    }

    /// Name of the session.
    #[must_use]
    pub fn session_name(&self, session: SessionIx) -> String {
        format!("s{session}")
    }

    /// Name of the gateway, from 0.
    #[must_use]
    pub fn gateway_name(&self, gateway: u16) -> String {
        format!("{}-gateway-{gateway}", self.prefix)
    }

    /// Region that the call asks for.
    #[must_use]
    pub fn region(&self, call: CallIx) -> Option<&str> {
        self.calls[call as usize].region.map(|r| self.regions[usize::from(r)].as_str())
    }

    /// Kind of the call.
    #[must_use]
    pub fn kind(&self, call: CallIx) -> CallKind {
        self.calls[call as usize].kind
    }

    /// The call of these names, when it is one of ours.
    #[must_use]
    pub fn find_call(&self, guild: &str, call: &str) -> Option<CallIx> {
        let ix: CallIx = call.strip_prefix('c')?.parse().ok()?;
        let found = self.calls.get(ix as usize)?;
        let guild = guild.strip_prefix(self.prefix.as_str())?.strip_prefix("-g")?;
        (guild.parse() == Ok(found.guild)).then_some(ix)
    }

    /// The session of this name, when it is one of ours.
    #[must_use]
    pub fn find_session(&self, session: &str) -> Option<SessionIx> {
        let ix: SessionIx = session.strip_prefix('s')?.parse().ok()?;
        ((ix as usize) < self.sessions.len()).then_some(ix)
    }

    /// Whether the guild is one of ours.
    #[must_use]
    pub fn owns_guild(&self, guild: &str) -> bool {
        guild.strip_prefix(self.prefix.as_str()).is_some_and(|rest| rest.starts_with("-g"))
    }
}

/// Lengths fit: plans are limited to a million sessions.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Plan {
        let text = format!(
            "name = \"t\"\nseed = {seed}\n[population]\nguilds = 5\ncalls = 40\nparticipants = 100\nmedia_share = 0.5\n\
             [[phases]]\nname = \"more\"\nat = \"1s\"\nadd_calls = 10\n"
        );
        Plan::parse(&text, "t").expect("valid")
    }

    #[test]
    fn every_call_has_a_session_and_totals_are_exact() {
        let all = Population::generate(&plan(1), vec!["a".into()]);
        assert_eq!((all.calls(), all.sessions().len()), (50, 125));
        for call in 0..all.calls() {
            assert!(all.sessions().iter().any(|s| s.call == call), "call {call}");
        }
        for wave in all.waves() {
            for session in wave.sessions.clone() {
                assert!(wave.calls.contains(&all.session(session).call));
            }
        }
    }

    #[test]
    fn names_lead_back() {
        let all = Population::generate(&plan(1), Vec::new());
        for call in 0..all.calls() {
            assert_eq!(all.find_call(&all.guild_name(call), &all.call_name(call)), Some(call));
        }
        assert_eq!(all.find_call("t-g99", "c0"), None);
        assert_eq!(all.find_call("other-g0", "c0"), None);
        assert_eq!(all.find_session("s124"), Some(124));
        assert_eq!(all.find_session("s125"), None);
    }

    #[test]
    fn the_same_seed_is_the_same_population() {
        let of = |seed| format!("{:?}", Population::generate(&plan(seed), vec!["a".into(), "b".into()]).sessions);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }
}
