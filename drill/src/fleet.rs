//! The SFU fleet as the mocks' control ports show it: who is broken since when, what they counted,
//! which rooms they hold.
//!
//! Breaks are noticed wherever they come from: a phase of the plan, another caller of the control
//! port, or the whole mock process killed from outside (its control port falls silent).
//!
//! The ledger is told after the view is let go of, never while it is held: two locks of which one
//! may wait for the other are one deadlock waiting for its moment.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

use crate::checker::{Rule, authority};
use crate::control::{Control, MockStats, Node};
use crate::error::Error;
use crate::ledger::Ledger;
use crate::plan::{Budgets, Fault, FaultKind};
use crate::population::Population;

/// Polls without an answer after which a mock process counts as gone.
const SILENT_POLLS: u32 = 2;
/// Room lists read at once.
const LISTS_AT_ONCE: usize = 16;
/// Examples of wrong rooms that a report names.
const EXAMPLES_MAX: usize = 20;

#[derive(Debug, Default)]
struct Mock {
    nodes: Vec<Node>,
    first: Option<MockStats>,
    last: Option<MockStats>,
    silent: u32,
    gone: bool,
}

#[derive(Debug, Default)]
struct View {
    mocks: Vec<Mock>,
    /// Ids of the SFUs that were ever broken, and of those that were killed.
    hit: BTreeSet<String>,
    killed: BTreeSet<String>,
    /// Ids that are broken until healed, as far as was noticed.
    active: HashSet<String>,
    /// Ids that a phase of ours restarts: down for a moment, but not killed.
    restarting: HashSet<String>,
    /// Rooms that were there before the drill, by `host:port` and name.
    before: HashSet<(String, String)>,
}

/// Rooms that should not be, and rooms that should.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoomAudit {
    pub(crate) orphaned: u64,
    pub(crate) missing: u64,
    pub(crate) examples: Vec<String>,
    /// Those on SFUs that were never broken, which nothing excuses (I6).
    pub(crate) unexcused: Vec<(Rule, String)>,
}

/// SFUs whose rooms are compared with the calls, and what excuses a difference.
#[derive(Debug, Default)]
struct Scope {
    /// The SFUs that were looked at, by `host:port`.
    looked_at: HashSet<String>,
    /// Those of them that were never broken.
    unbroken: HashSet<String>,
    /// Rooms that were there before the drill.
    before: HashSet<(String, String)>,
}

/// What the ledger must hear of an SFU, by its `host:port`.
#[derive(Debug)]
enum News {
    Hit { at: String, lasting: bool },
    Healed { at: String },
}

/// All mocks of a drill.
#[derive(Debug)]
pub(crate) struct Fleet {
    controls: Vec<Control>,
    view: Mutex<View>,
}

// === impl Fleet ===

impl Fleet {
    pub(crate) fn new(urls: &[String], client: &reqwest::Client) -> Self {
        let controls: Vec<_> = urls.iter().map(|url| Control::new(url, client.clone())).collect();
        let mocks = controls.iter().map(|_| Mock::default()).collect();
        Self { controls, view: Mutex::new(View { mocks, ..View::default() }) }
    }

    /// Whether the fleet can be seen at all.
    pub(crate) fn is_visible(&self) -> bool {
        !self.controls.is_empty()
    }

    /// First look: every control port must answer.
    pub(crate) async fn find(&self) -> Result<(), Error> {
        for (ix, control) in self.controls.iter().enumerate() {
            let (nodes, stats) = (control.nodes().await?, control.stats().await?);
            let mut view = self.view.lock();
            // What is broken from before is no news; it may lose calls like the rest of them.
            view.mocks[ix] = Mock { nodes, first: Some(stats), last: Some(stats), ..Mock::default() };
        }
        Ok(())
    }

    pub(crate) fn regions(&self) -> Vec<String> {
        let view = self.view.lock();
        let regions: BTreeSet<_> = view.mocks.iter().flat_map(|m| m.nodes.iter().map(|n| n.region.clone())).collect();
        regions.into_iter().collect()
    }

    /// Tokens must be signed by one of these keys from now on.
    pub(crate) async fn set_jwks(&self, jwks: &Value) -> Result<(), Error> {
        for control in &self.controls {
            control.set_jwks(jwks).await?;
        }
        Ok(())
    }

    pub(crate) async fn set_budgets(&self, budgets: &Budgets) -> Result<(), Error> {
        for control in &self.controls {
            control.set_budgets(budgets).await?;
        }
        Ok(())
    }

    /// Looks at every mock and tells the ledger of SFUs that were broken or healed meanwhile.
    pub(crate) async fn poll(&self, ledger: &Mutex<Ledger>) {
        let looks = self.controls.iter().map(|control| async move {
            let nodes = control.nodes().await.ok()?;
            Some((nodes, control.stats().await.ok()))
        });
        let looks = join_all(looks).await;
        let mut news = Vec::new();
        {
            let mut view = self.view.lock();
            for (ix, look) in looks.into_iter().enumerate() {
                match look {
                    Some((nodes, stats)) => view.seen(ix, nodes, stats, &mut news),
                    None => view.silent(ix, &mut news),
                }
            }
        }
        tell(ledger, &news);
    }

    /// Breaks what the plan says; how many SFUs were hit.
    pub(crate) async fn fault(&self, fault: &Fault, seed: u64, ledger: &Mutex<Ledger>) -> Result<usize, Error> {
        let mut count = 0;
        for (ix, control) in self.controls.iter().enumerate() {
            let Some(mine) = self.view.lock().mocks[ix].concerned_by(fault) else { continue };
            let hit = control.fault(fault, &mine, seed).await?;
            count += hit.len();
            let mut news = Vec::new();
            self.view.lock().hit_by_us(ix, &hit, fault.kind, &mut news);
            tell(ledger, &news);
        }
        Ok(count)
    }

    pub(crate) async fn heal(&self) -> Result<(), Error> {
        for (ix, control) in self.controls.iter().enumerate() {
            if !self.view.lock().mocks[ix].gone {
                control.heal().await?;
            }
        }
        Ok(())
    }

    /// SFUs ever broken, and SFUs ever killed.
    pub(crate) fn broken(&self) -> (u64, u64) {
        let view = self.view.lock();
        let len = |set: &BTreeSet<String>| u64::try_from(set.len()).unwrap_or(u64::MAX);
        (len(&view.hit), len(&view.killed))
    }

    /// What the mocks counted since the start; of a mock that is gone, what it said last.
    pub(crate) fn counted(&self) -> Option<MockStats> {
        if self.controls.is_empty() {
            return None;
        }
        let view = self.view.lock();
        let mut sum = MockStats::default();
        for mock in &view.mocks {
            let (first, last) = (mock.first.unwrap_or_default(), mock.last.unwrap_or_default());
            sum.creates += last.creates.saturating_sub(first.creates);
            sum.ends += last.ends.saturating_sub(first.ends);
            sum.refused += last.refused.saturating_sub(first.refused);
            sum.fenced += last.fenced.saturating_sub(first.fenced);
            sum.attaches += last.attaches.saturating_sub(first.attaches);
            sum.overdrawn.sfu += last.overdrawn.sfu.saturating_sub(first.overdrawn.sfu);
            sum.overdrawn.region += last.overdrawn.region.saturating_sub(first.overdrawn.region);
            sum.overdrawn.overall += last.overdrawn.overall.saturating_sub(first.overdrawn.overall);
        }
        Some(sum)
    }

    /// Compares the rooms on the SFUs that are up with where the calls are.
    pub(crate) async fn audit(&self, population: &Population, ledger: &Mutex<Ledger>) -> Result<RoomAudit, Error> {
        let (held, looked_at) = self.rooms(population).await?;
        let claimed: HashMap<(String, String), u32> = ledger
            .lock()
            .checker
            .endpoints()
            .map(|(call, url)| ((authority(url).to_owned(), room_of(url)), call))
            .collect();
        let view = self.view.lock();
        let nodes = view.mocks.iter().flat_map(|mock| &mock.nodes);
        let unbroken = nodes.filter(|node| !view.hit.contains(&node.id)).map(|node| authority(&node.url).to_owned());
        let scope = Scope { unbroken: unbroken.collect(), before: view.before.clone(), looked_at };
        Ok(compare(&held, &claimed, &scope))
    }

    /// Remembers the rooms that an earlier drill of the same name left: they are no fault of this one.
    pub(crate) async fn remember_rooms(&self, population: &Population) -> Result<(), Error> {
        let (held, _) = self.rooms(population).await?;
        self.view.lock().before = held;
        Ok(())
    }

    /// Our guilds' rooms on the SFUs that are up, and which SFUs these are.
    async fn rooms(&self, population: &Population) -> Result<(HashSet<(String, String)>, HashSet<String>), Error> {
        let ask: Vec<(Control, String, String)> = {
            let view = self.view.lock();
            let mocks = self.controls.iter().zip(&view.mocks).filter(|(_, mock)| !mock.gone);
            let up = mocks.flat_map(|(c, m)| m.nodes.iter().filter(|n| n.state == "up").map(move |n| (c, n)));
            up.map(|(c, n)| (c.clone(), n.id.clone(), authority(&n.url).to_owned())).collect()
        };
        let lists = stream::iter(ask)
            .map(|(control, id, authority)| async move { control.rooms(&id).await.map(|rooms| (authority, rooms)) });
        let mut lists = lists.buffer_unordered(LISTS_AT_ONCE);
        let mut held: HashSet<(String, String)> = HashSet::new();
        let mut looked_at: HashSet<String> = HashSet::new();
        while let Some(list) = lists.next().await {
            let (authority, rooms) = list?;
            let ours = rooms.into_iter().filter(|room| population.owns_guild(room.guild.as_str()));
            held.extend(ours.map(|room| (authority.clone(), room.room.to_string())));
            looked_at.insert(authority);
        }
        drop(lists);
        Ok((held, looked_at))
    }
}

fn tell(ledger: &Mutex<Ledger>, news: &[News]) {
    if news.is_empty() {
        return;
    }
    let now = Instant::now();
    let mut ledger = ledger.lock();
    for item in news {
        match item {
            News::Hit { at, lasting } => ledger.checker.hit(at, *lasting, now),
            News::Healed { at } => ledger.checker.healed(at),
        }
    }
}

// === impl News ===

impl News {
    fn hit(node: &Node, lasting: bool) -> Self {
        Self::Hit { at: authority(&node.url).to_owned(), lasting }
    }
}

// === impl Mock ===

impl Mock {
    /// Whether the fault concerns this mock, and which of the nodes that it names are here.
    fn concerned_by(&self, fault: &Fault) -> Option<Vec<String>> {
        let has = |id: &&String| self.nodes.iter().any(|node| node.id == **id);
        let mine: Vec<_> = fault.nodes.iter().filter(has).cloned().collect();
        let in_region = |region: &String| self.nodes.iter().any(|node| node.region == *region);
        let concerned = match fault.share {
            Some(_) => fault.region.as_ref().is_none_or(in_region),
            None => !mine.is_empty(),
        };
        (concerned && !self.gone).then_some(mine)
    }
}

// === impl View ===

impl View {
    fn seen(&mut self, ix: usize, nodes: Vec<Node>, stats: Option<MockStats>, news: &mut Vec<News>) {
        let before: BTreeMap<String, String> =
            self.mocks[ix].nodes.drain(..).map(|node| (node.id, node.boot_id)).collect();
        for node in &nodes {
            let broken = node.state != "up" || !node.faults.is_empty();
            if broken && self.active.insert(node.id.clone()) {
                self.hit.insert(node.id.clone());
                news.push(News::hit(node, true));
            }
            if node.state == "killed" && !self.restarting.contains(&node.id) {
                self.killed.insert(node.id.clone());
            }
            if !broken {
                if self.active.remove(&node.id) {
                    news.push(News::Healed { at: authority(&node.url).to_owned() });
                }
                let rebooted = before.get(&node.id).is_some_and(|boot| *boot != node.boot_id);
                if rebooted && self.hit.insert(node.id.clone()) {
                    news.push(News::hit(node, false));
                }
            }
        }
        let mock = &mut self.mocks[ix];
        mock.nodes = nodes;
        mock.silent = 0;
        mock.gone = false;
        if stats.is_some() {
            mock.last = stats;
        }
    }

    fn silent(&mut self, ix: usize, news: &mut Vec<News>) {
        let mock = &mut self.mocks[ix];
        mock.silent += 1;
        if mock.silent < SILENT_POLLS || std::mem::replace(&mut mock.gone, true) {
            return;
        }
        tracing::warn!(sfus = mock.nodes.len(), "a mock process fell silent, its SFUs count as killed");
        for node in &mock.nodes {
            self.hit.insert(node.id.clone());
            self.killed.insert(node.id.clone());
            self.active.insert(node.id.clone());
            news.push(News::hit(node, true));
        }
    }

    fn hit_by_us(&mut self, ix: usize, ids: &[String], kind: FaultKind, news: &mut Vec<News>) {
        for id in ids {
            self.hit.insert(id.clone());
            match kind {
                FaultKind::Kill => {
                    self.killed.insert(id.clone());
                }
                FaultKind::Restart => {
                    self.restarting.insert(id.clone());
                }
                _ => {}
            }
            let lasting = kind != FaultKind::Restart;
            if lasting {
                self.active.insert(id.clone());
            }
            if let Some(node) = self.mocks[ix].nodes.iter().find(|node| node.id == *id) {
                news.push(News::hit(node, lasting));
            }
        }
    }
}

// === impl RoomAudit ===

impl RoomAudit {
    fn add(&mut self, rule: Rule, excused: bool, text: String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text.clone());
        }
        if !excused {
            self.unexcused.push((rule, text));
        }
    }
}

/// The room of an endpoint `https://host:port/media/{room}`.
fn room_of(url: &str) -> String {
    url.rsplit('/').next().unwrap_or_default().to_owned()
}

fn compare(held: &HashSet<(String, String)>, claimed: &HashMap<(String, String), u32>, scope: &Scope) -> RoomAudit {
    let mut audit = RoomAudit::default();
    for place in held.iter().filter(|room| !claimed.contains_key(*room)) {
        audit.orphaned += 1;
        let excused = !scope.unbroken.contains(&place.0) || scope.before.contains(place);
        audit.add(Rule::OrphanRoom, excused, format!("{} holds {}, where no call is", place.0, place.1));
    }
    for (place, call) in claimed.iter().filter(|(room, _)| scope.looked_at.contains(&room.0) && !held.contains(*room)) {
        audit.missing += 1;
        let excused = !scope.unbroken.contains(&place.0);
        audit.add(Rule::MissingRoom, excused, format!("c{call} is at {}, which does not hold {}", place.0, place.1));
    }
    audit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i06_rooms_that_no_call_claims_and_calls_without_a_room_are_told_apart() {
        let place = |at: &str, room: &str| (at.to_owned(), room.to_owned());
        let held = HashSet::from([place("a", "r1"), place("b", "r1"), place("b", "r2")]);
        let claimed = HashMap::from([(place("a", "r1"), 1), (place("b", "r3"), 3), (place("dead", "r4"), 4)]);
        let looked_at = HashSet::from(["a".to_owned(), "b".to_owned()]);
        let mut scope = Scope { looked_at: looked_at.clone(), unbroken: looked_at, before: HashSet::new() };
        let audit = compare(&held, &claimed, &scope);
        assert_eq!((audit.orphaned, audit.missing), (2, 1));
        let unexcused = |audit: &RoomAudit, rule| audit.unexcused.iter().filter(|(r, _)| *r == rule).count();
        assert_eq!((unexcused(&audit, Rule::OrphanRoom), unexcused(&audit, Rule::MissingRoom)), (2, 1));
        scope.before.insert(place("b", "r1"));
        assert_eq!(unexcused(&compare(&held, &claimed, &scope), Rule::OrphanRoom), 1, "one was there before");
        scope.unbroken.remove("b");
        assert!(compare(&held, &claimed, &scope).unexcused.is_empty(), "b was broken: nothing is its fault");
        assert!(audit.examples.iter().any(|e| e.contains("c3")), "{:?}", audit.examples);
    }

    #[test]
    fn the_room_is_the_last_part_of_the_endpoint() {
        assert_eq!(room_of("https://127.1.0.1:7443/media/g1.c1"), "g1.c1");
    }
}
