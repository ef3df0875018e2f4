//! How far from its own region a call goes: its region, the regions that stand in for it, any.
//!
//! A call goes down only when a rung has nobody left, not while those there are merely busy: a recovery must
//! not spill over to the other side of the world to save a second. The same holds for those whose [zone](super::Zone)
//! is failing, one rung at a time: they are taken once nobody else of the rung is left, and not while others are
//! merely busy, or a recovery, in which everybody is, would fill them as if nothing were. One that served nothing of
//! late is not busy but silent, and nobody waits for it while there is anybody else. Whoever falls
//! again and again is better than none, but only once there is nobody further down either.
//!
//! Pure: what stands against an SFU is asked of the caller.

use std::sync::Arc;

use rand::Rng;
use sfu_api::RegionId;
use smallvec::SmallVec;

use super::{Care, Choice, Excluded, Sfu, Snapshot, choose, choose_by};
use crate::drivers::Weight;
use crate::state::Rung;

/// A rung, and who is there.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Which rung it is.
    pub rung: Rung,
    /// The SFUs there.
    pub sfus: &'a [Arc<Sfu>],
    /// The highest weight there is, if weights differ.
    pub heaviest: Option<Weight>,
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
    /// They asked for patience, or served nothing of late.
    Silent,
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
        let heaviest = self.heaviest;
        if let Some(region) = region {
            let sfus = self.by_region.get(region).map_or(&[][..], Vec::as_slice);
            ladder.push(Step { rung: Rung::Region, sfus, heaviest });
            if let Some(group) = self.by_group.get(region) {
                ladder.push(Step { rung: Rung::Group, sfus: &group.sfus, heaviest });
            }
        }
        if any_region || region.is_none() {
            ladder.push(Step { rung: Rung::Any, sfus: &self.all, heaviest });
        }
        ladder
    }
}

// === impl Step ===

impl Step<'_> {
    /// Chooses among those that are fit by `care`.
    pub fn choose(
        &self,
        care: Care,
        rng: &mut impl Rng,
        fit: impl Fn(&Sfu, Care) -> Result<f64, Excluded>,
    ) -> Option<Choice> {
        let score = |i: usize| fit(&self.sfus[i], care).ok();
        match self.heaviest {
            None => choose(self.sfus.len(), rng, score),
            Some(most) => choose_by(self.sfus.len(), rng, |i| self.sfus[i].weight().get() / most.get(), score),
        }
    }

    /// Who is in order, when nobody is fit.
    fn left(&self, fit: impl Fn(&Sfu, Care) -> Result<f64, Excluded>) -> Left {
        let mut left = Left::Nobody;
        for sfu in self.sfus {
            left = left.max(match fit(sfu, Care::Full) {
                Ok(_) => Left::Busy, // it has become so just now
                Err(why) if why.is_busy() => Left::Busy,
                Err(Excluded::ZoneFailing) => Left::OfFailingZones,
                Err(why) if why.is_passing() => Left::Silent,
                Err(_) => Left::Nobody,
            });
            if left == Left::Busy {
                break; // nothing the others are makes a difference
            }
        }
        left
    }
}

/// Goes down a ladder. `fit` says of an SFU whether it can be chosen with that care: its score, or why not.
pub fn descend(ladder: &[Step<'_>], rng: &mut impl Rng, fit: impl Fn(&Sfu, Care) -> Result<f64, Excluded>) -> Descent {
    let mut busy = None;
    for (n, step) in ladder.iter().enumerate() {
        if let Some(choice) = step.choose(Care::Full, rng, &fit) {
            return Descent::Chosen(Footing { step: n, care: Care::Full }, choice);
        }
        let left = step.left(&fit);
        if left == Left::OfFailingZones
            && let Some(choice) = step.choose(Care::AnyZone, rng, &fit)
        {
            return Descent::Chosen(Footing { step: n, care: Care::AnyZone }, choice);
        }
        if left != Left::Nobody {
            busy = Some(n);
            break;
        }
    }
    for (n, step) in ladder.iter().enumerate().take(busy.unwrap_or(ladder.len())) {
        if let Some(choice) = step.choose(Care::AtLast, rng, &fit) {
            return Descent::Chosen(Footing { step: n, care: Care::AtLast }, choice);
        }
    }
    busy.map_or(Descent::Nobody, Descent::Busy)
}
