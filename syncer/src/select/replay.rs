//! A decision, made again.
//!
//! Draws come from a seed of their own, are made from a snapshot of the catalogue, and depend on who was fit only through
//! those that were compared: whoever was drawn before them was not fit, or would have been compared. So the seed, the
//! revision of the snapshot, and those two with their scores are all it takes, and they are kept with the call.

use std::sync::Arc;

use sfu_api::RegionId;

use super::choose::draws;
use super::{Fate, Sfu, Snapshot};
use crate::state::{How, Why};

/// One that the decision looked at.
#[derive(Clone, Debug)]
pub struct Look {
    /// The SFU.
    pub sfu: Arc<Sfu>,
    /// The chance with which a draw of it stood, from its weight.
    pub chance: f64,
    /// What came of it.
    pub fate: Fate,
}

/// A decision, made again.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Those that were drawn, in order; of those looked at in turn, the ones that were compared.
    pub looks: Vec<Look>,
    /// So many were looked at in turn, since the draws had not found two.
    pub in_turn: usize,
    /// What it came to; nothing, when nobody was fit.
    pub came_to: Option<Why>,
}

/// Makes the decision again that was made from this snapshot, for a call that wants to be in `region`. `None`: there was
/// nothing to draw, or not from this one.
#[must_use]
pub fn replay(snapshot: &Snapshot, region: Option<&RegionId>, why: &Why) -> Option<Replay> {
    let How::Drawn(draw) = why.how else { return None };
    if snapshot.revision != draw.revision {
        return None;
    }
    let ladder = snapshot.ladder(region, true);
    let step = ladder.iter().find(|step| step.rung == draw.rung)?;
    let compared = |sfu: &Sfu| {
        let rival = || why.rival().filter(|(rival, _)| *rival == sfu.idx);
        let score = if sfu.idx == why.sfu { Some(draw.score) } else { rival().map(|(_, score)| score) };
        score.map(f64::from)
    };
    let (mut looks, mut seen) = (Vec::new(), 0);
    let drawn = draws(step.sfus.len());
    let choice = step.draw(draw.seed, compared, |i, fate| {
        seen += 1;
        if seen <= drawn || fate == Fate::Compared {
            looks.push(Look { sfu: step.sfus[i].clone(), chance: step.chance(i), fate });
        }
    });
    let came_to = choice.map(|choice| step.why(&choice, draw.care, draw.seed));
    Some(Replay { looks, in_turn: usize::saturating_sub(seen, drawn), came_to })
}
