//! How far from its own region a call goes: its region, the regions that stand in for it, any.
//!
//! A call goes down only when a rung has nobody left, not while those there are merely busy: a recovery must
//! not spill over to the other side of the world to save a second. The same holds for those whose [zone](super::Zone)
//! is failing, one rung at a time: they are taken once nobody else of the rung is left, and not while others are
//! merely busy, or a recovery, in which everybody is, would fill them as if nothing were. One that asked for patience is
//! not busy: it keeps calls on its rung, but not from those of a failing zone there. One that has served nothing for a
//! while, though its probes be fine, keeps them from nothing. Whoever falls again and again is better than none, but only once nobody further down
//! is fit now.
//!
//! Pure: what stands against an SFU is asked of the caller.

use std::sync::Arc;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use sfu_api::RegionId;
use smallvec::SmallVec;

use super::{Care, Choice, Excluded, Fate, Sfu, Snapshot, choose_by};
use crate::state::{Draw, How, Revision, Rung, Seed, Why};

/// A rung, and who is there.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Which rung it is.
    pub rung: Rung,
    /// The SFUs there.
    pub sfus: &'a [Arc<Sfu>],
    /// As in the [`Snapshot`].
    pub chances: &'a [f64],
    /// The snapshot's.
    pub revision: Revision,
}

/// A call's rungs, as far down as it may go.
pub type Ladder<'a> = SmallVec<[Step<'a>; 3]>;

/// Where a call stands on its ladder, and whom it takes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footing {
    /// Which of the ladder's steps.
    pub step: usize,
    /// Whom it takes.
    pub care: Care,
}

/// What a way down a ladder led to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Descent {
    /// One was chosen among those of a step.
    Chosen(Footing, Choice),
    /// Nobody is fit now, but some of this step are in order and held back by limits.
    Busy(usize),
    /// There is nobody.
    Nobody,
}

/// Who of a step is in order although nobody is fit; of several, whoever stands last here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Nobody,
    /// They have served nothing for a while.
    Silent,
    /// They asked for patience, or served nothing just now.
    Patience,
    /// Their zones are failing.
    OfFailingZones,
    /// Limits hold them back.
    Busy,
}

// === impl Footing ===

impl Footing {
    /// Where every call begins.
    pub const TOP: Self = Self { step: 0, care: Care::Full };
}

// === impl Snapshot ===

impl Snapshot {
    /// The ladder of a call that wants to be in `region`; `any_region`: it may leave its region and group.
    #[must_use]
    pub fn ladder(&self, region: Option<&RegionId>, any_region: bool) -> Ladder<'_> {
        let mut ladder = Ladder::new();
        let step = |rung, sfus| Step { rung, sfus, chances: &self.chances[rung as usize], revision: self.revision };
        if let Some(region) = region {
            let sfus = self.by_region.get(region).map_or(&[][..], Vec::as_slice);
            ladder.push(step(Rung::Region, sfus));
            if let Some(group) = self.by_group.get(region) {
                ladder.push(step(Rung::Group, &group.sfus));
            }
        }
        if any_region || region.is_none() {
            ladder.push(step(Rung::Any, &self.all));
        }
        ladder
    }
}

// === impl Step ===

impl Step<'_> {
    /// Chooses among those that are fit by `care`.
    pub fn choose(&self, care: Care, seed: Seed, fit: impl Fn(&Sfu, Care) -> Result<f64, Excluded>) -> Option<Choice> {
        self.draw(seed, |sfu| fit(sfu, care).ok(), |_, _| ())
    }

    /// Draws, by the scores of those that are fit; `seen` as in [`choose_by`]. A replay takes this way too.
    pub(super) fn draw(
        &self,
        seed: Seed,
        score: impl Fn(&Sfu) -> Option<f64>,
        seen: impl FnMut(usize, Fate),
    ) -> Option<Choice> {
        let mut rng = StdRng::seed_from_u64(seed.0.into());
        choose_by(self.sfus.len(), &mut rng, |i| self.chance(i), |i| score(&self.sfus[i]), seen)
    }

    /// The chance with which a draw of this one stands.
    pub(super) fn chance(&self, i: usize) -> f64 {
        self.chances.get(self.sfus[i].idx.0 as usize).copied().unwrap_or(1.0)
    }

    /// A choice that was made here, as it is remembered with a call.
    #[must_use]
    pub fn why(&self, choice: &Choice, care: Care, seed: Seed) -> Why {
        let (rival, rival_score) = choice.rival.unwrap_or((choice.index, choice.score));
        let draw = Draw {
            score: choice.score,
            rival: self.sfus[rival].idx,
            rival_score,
            among: u32::try_from(self.sfus.len()).unwrap_or(u32::MAX),
            seed,
            revision: self.revision,
            rung: self.rung,
            care,
        };
        Why { sfu: self.sfus[choice.index].idx, how: How::Drawn(draw) }
    }

    /// Who is in order, when nobody is fit.
    fn left(&self, fit: impl Fn(&Sfu, Care) -> Result<f64, Excluded>) -> Left {
        let mut left = Left::Nobody;
        for sfu in self.sfus {
            left = left.max(match fit(sfu, Care::Full) {
                Ok(_) => Left::Busy, // it has become so just now
                Err(why) if why.is_busy() => Left::Busy,
                Err(Excluded::ZoneFailing) => Left::OfFailingZones,
                Err(why) if why.is_passing() => Left::Patience,
                Err(Excluded::Silent) => Left::Silent,
                Err(_) => Left::Nobody,
            });
            if left == Left::Busy {
                break; // nothing the others are makes a difference
            }
        }
        left
    }
}

/// Goes down a ladder. `fit` says of an SFU whether it can be chosen with that care: its score, or why not. Each step draws
/// from the same seed: only the last one's draws come to anything.
pub fn descend(ladder: &[Step<'_>], seed: Seed, fit: impl Fn(&Sfu, Care) -> Result<f64, Excluded>) -> Descent {
    let (mut busy, mut silent) = (None, None);
    for (n, step) in ladder.iter().enumerate() {
        if let Some(choice) = step.choose(Care::Full, seed, &fit) {
            return Descent::Chosen(Footing { step: n, care: Care::Full }, choice);
        }
        let left = step.left(&fit);
        if left == Left::OfFailingZones
            && let Some(choice) = step.choose(Care::AnyZone, seed, &fit)
        {
            return Descent::Chosen(Footing { step: n, care: Care::AnyZone }, choice);
        }
        match left {
            Left::Nobody => {}
            Left::Silent => silent = silent.or(Some(n)),
            Left::Patience | Left::OfFailingZones | Left::Busy => {
                busy = Some(n);
                break;
            }
        }
    }
    for (n, step) in ladder.iter().enumerate().take(busy.unwrap_or(ladder.len())) {
        if let Some(choice) = step.choose(Care::AtLast, seed, &fit) {
            return Descent::Chosen(Footing { step: n, care: Care::AtLast }, choice);
        }
    }
    busy.or(silent).map_or(Descent::Nobody, Descent::Busy)
}
