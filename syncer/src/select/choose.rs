//! The power of two choices, as a pure function.

use rand::{Rng, RngExt as _};

use crate::state::{How, Rung, SfuIdx, Why};

/// Draws before the whole list is looked at. While half of the SFUs are fit, 16 draws find two
/// different ones but for one time in ~4,000.
const DRAWS: usize = 16;

/// What was chosen, and against whom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Position of the chosen one.
    pub index: usize,
    /// Its score.
    pub score: f64,
    /// Position and score of the one it won against.
    pub rival: Option<(usize, f64)>,
}

// === impl Choice ===

impl Choice {
    /// The choice as it is remembered with a call: made from `among` SFUs of a rung, whose numbers `idx` knows.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "scores are shown with four digits")]
    pub fn why(&self, among: usize, rung: Rung, idx: impl Fn(usize) -> SfuIdx) -> Why {
        let how = How::Drawn {
            score: self.score as f32,
            rival: self.rival.map(|(rival, score)| (idx(rival), score as f32)),
            among: u32::try_from(among).unwrap_or(u32::MAX),
            rung,
        };
        Why { sfu: idx(self.index), how }
    }
}

/// Draws two different fit candidates of `0..n` at random and takes the one with the lower score.
///
/// `score(i)` is `None` for a candidate that is not fit. Falls back to one pass over all when few
/// are fit, so `None` means that there is no fit one at all.
pub fn choose(n: usize, rng: &mut impl Rng, score: impl FnMut(usize) -> Option<f64>) -> Option<Choice> {
    choose_by(n, rng, |_| 1.0, score)
}

/// As [`choose`], but what is drawn stands with `chance(i)`, from 0 to 1.
///
/// Of candidates whose scores are to differ for the same load, the heavier have to be drawn more often: among
/// equal draws, a light one meets another so often that somebody light wins more than is due to them all.
pub fn choose_by(
    n: usize,
    rng: &mut impl Rng,
    chance: impl Fn(usize) -> f64,
    mut score: impl FnMut(usize) -> Option<f64>,
) -> Option<Choice> {
    if n == 0 {
        return None;
    }
    let start = rng.random_range(0..n);
    let draws = (0..DRAWS.min(2 * n)).filter_map(|_| {
        let (i, chance) = (rng.random_range(0..n), &chance);
        let chance = chance(i);
        (chance >= 1.0 || rng.random::<f64>() < chance).then_some(i)
    });
    let mut first: Option<(usize, f64)> = None;
    for i in draws.chain(start..n).chain(0..start) {
        if first.is_some_and(|(f, _)| f == i) {
            continue;
        }
        let Some(s) = score(i) else { continue };
        match first {
            None => first = Some((i, s)),
            Some(f) => return Some(better(f, (i, s))),
        }
    }
    first.map(|(index, score)| Choice { index, score, rival: None })
}

fn better(a: (usize, f64), b: (usize, f64)) -> Choice {
    let (won, lost) = if b.1 < a.1 { (b, a) } else { (a, b) };
    Choice { index: won.0, score: won.1, rival: Some(lost) }
}
