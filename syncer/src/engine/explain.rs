//! Why a call is where it is, what it waits for, and what would become of it.

use std::sync::Arc;

use rand::RngExt as _;
use sfu_api::{CallId, GuildId, RegionId};
use tokio::time::Instant;

use super::recovery::reason;
use super::views::find;
use super::{CallState, CallView, CandidateView, Engine, Explanation, LookView, ReplayView};
use crate::ownership::slot_of;
use crate::reconcile::Estimate;
use crate::select::{Descent, Fate, Ladder, Look, Sfu, Step, descend, replay};
use crate::state::{Class, How, Place, Placement, Rung, Seed, Why};

/// Candidates shown by an explanation.
const CANDIDATES_MAX: usize = 10;

impl Engine {
    /// Why the call is where it is, what it waits for, and what would happen if its SFU died now.
    #[must_use]
    pub fn explain(&self, guild: &GuildId, call: &CallId, now: Instant) -> Option<Explanation> {
        let (view, decision, placed, place, demand) = {
            let shard = self.ctx.shard(slot_of(guild)).lock();
            let found = find(&shard, guild, call)?;
            let decision = found.decision.as_deref().copied();
            let on = match &found.placement {
                Placement::Lost { last, .. } => Some(last.sfu),
                placement => placement.seated().map(|(sfu, ..)| sfu),
            };
            let placed = decision.is_some_and(|why| Some(why.sfu) == on);
            (self.view(found, now), decision, placed, found.place().clone(), found.demand())
        };
        let eta = demand.map(|class| self.eta(class, now));
        Some(Explanation {
            decision: decision.map(|why| {
                let words = self.words(why, view.region.as_ref());
                if placed { words } else { format!("the last attempt, which has not placed it: {words}") }
            }),
            replay: decision.and_then(|why| self.replay(&why, view.region.as_ref())),
            waiting_for: self.waiting_for(&view, &place, demand, eta.as_ref(), now),
            eta_s: eta.and_then(|eta| eta.seconds),
            would_go: self.would_go(&view, now),
            if_sfu_died: self.if_sfu_died(&view, now),
            candidates: self.candidates(&view, now),
            call: view,
        })
    }

    fn waiting_for(
        &self,
        view: &CallView,
        place: &Place,
        demand: Option<Class>,
        eta: Option<&Estimate>,
        now: Instant,
    ) -> Option<String> {
        let class = demand.map_or("its", Class::name);
        let limit = eta.map_or_else(String::new, |eta| format!(": {}", eta.limit.words()));
        Some(match place {
            Place::Clean => return None,
            Place::InFlight => "the SFU's answer".to_owned(),
            Place::Ready(_) => format!("its turn among the calls of class {class}; what holds them back{limit}"),
            Place::Waiting(at) => match view.state {
                CallState::Ending => "its end, unless someone joins".to_owned(),
                _ => format!("{} ms after a failed attempt", at.saturating_duration_since(now).as_millis()),
            },
            Place::Blocked(blocked) => {
                format!("{}; the candidates say what is against each", reason(&self.ctx, &blocked.0))
            }
        })
    }

    fn if_sfu_died(&self, view: &CallView, now: Instant) -> String {
        let snapshot = self.ctx.catalogue.now();
        let Some(sfu) = view.sfu.as_ref() else { return "it is on no SFU".to_owned() };
        let Some(known) = snapshot.named(sfu) else {
            return format!("{sfu} has left the catalogue");
        };
        let calls = self.calls_on(known);
        let Estimate { seconds, limit } = self.eta_without(known.idx, now);
        let told = format!("this syncer's {calls} calls on {sfu} would get a null, then ");
        match seconds {
            Some(s) => {
                format!("{told}a new endpoint, the last of them after about {s:.1} s; limited by {}", limit.words())
            }
            None => format!("{told}await an endpoint for as long as it takes: {}", limit.words()),
        }
    }

    /// What selection would do with the call at this moment. Takes nothing.
    fn would_go(&self, view: &CallView, now: Instant) -> Option<String> {
        let (snapshot, region) = (self.ctx.catalogue.now(), view.region.as_ref());
        let seed = Seed(self.ctx.with_rng(|rng| rng.random()));
        let whole = snapshot.ladder(region, self.ctx.levers.any_region.get());
        let others = |step: &Step<'_>| -> Vec<Arc<Sfu>> {
            step.sfus.iter().filter(|s| Some(&s.id) != view.sfu.as_ref()).cloned().collect()
        };
        let others: Vec<_> = whole.iter().map(|step| (step, others(step))).collect();
        let ladder: Ladder<'_> = others.iter().map(|(step, sfus)| Step { sfus, ..**step }).collect();
        let Descent::Chosen(at, choice) = descend(&ladder, seed, |sfu, care| sfu.fit_by(care, now)) else {
            return None;
        };
        Some(self.words(ladder[at.step].why(&choice, at.care, seed), region))
    }

    /// A decision in words, with its figures.
    fn words(&self, why: Why, region: Option<&RegionId>) -> String {
        let name = |idx| self.ctx.catalogue.get(idx).map_or_else(|| "an SFU".to_owned(), |s| s.id.to_string());
        let sfu = name(why.sfu);
        let How::Drawn(draw) = why.how else {
            return format!("its room is made again in place on {sfu}");
        };
        let (score, among) = (draw.score, draw.among);
        let from = match (draw.rung, region) {
            (Rung::Region, Some(region)) => format!("region {region}"),
            (Rung::Group, Some(region)) => match self.ctx.catalogue.now().by_group.get(region) {
                Some(group) => format!("group {} of region {region}", group.name),
                None => format!("the group of region {region}"),
            },
            (_, None) | (Rung::Any, _) => "any region".to_owned(),
        };
        match why.rival() {
            Some((rival, other)) => format!(
                "{sfu} with score {score:.4} won against {} with {other:.4}, drawn from {among} in {from}",
                name(rival)
            ),
            None => format!("{sfu} with score {score:.4} was the only fit one of {among} in {from}"),
        }
    }

    /// The decision made again, if anything was drawn.
    fn replay(&self, why: &Why, region: Option<&RegionId>) -> Option<ReplayView> {
        let How::Drawn(draw) = why.how else { return None };
        let again = self.ctx.catalogue.at(draw.revision).and_then(|snapshot| replay(&snapshot, region, why));
        let Some(again) = again else {
            let revision = draw.revision;
            return Some(ReplayView::Unknown { revision, now: self.ctx.catalogue.now().revision });
        };
        let score = |sfu: &Sfu| match why.rival() {
            _ if sfu.idx == why.sfu => Some(draw.score),
            Some((rival, score)) if rival == sfu.idx => Some(score),
            _ => None,
        };
        let look = |Look { sfu, chance, fate }: &Look| LookView {
            sfu: sfu.id.clone(),
            chance: *chance,
            fate: *fate,
            score: score(sfu).filter(|_| *fate == Fate::Compared),
            taken: *fate == Fate::Compared && again.came_to.is_some_and(|came_to| came_to.sfu == sfu.idx),
        };
        Some(ReplayView::Made {
            revision: draw.revision,
            seed: draw.seed,
            care: draw.care,
            looks: again.looks.iter().map(look).collect(),
            in_turn: again.in_turn,
            as_recorded: again.came_to == Some(*why),
        })
    }

    fn candidates(&self, view: &CallView, now: Instant) -> Vec<CandidateView> {
        let snapshot = self.ctx.catalogue.now();
        let own = view.region.as_ref().and_then(|r| snapshot.by_region.get(r));
        let mut list: Vec<CandidateView> = own
            .unwrap_or(&snapshot.all)
            .iter()
            .filter(|s| Some(&s.id) != view.sfu.as_ref())
            .map(|s| CandidateView {
                sfu: s.id.clone(),
                region: s.entry().spec.region.clone(),
                score: s.score(),
                excluded: s.fit(now).err().map(|e| e.to_string()),
            })
            .collect();
        list.sort_by(|a, b| (a.excluded.is_some()).cmp(&b.excluded.is_some()).then(a.score.total_cmp(&b.score)));
        list.truncate(CANDIDATES_MAX);
        list
    }
}
