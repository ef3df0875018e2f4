//! The power of two choices, as a pure function.

use rand::{Rng, RngExt as _};
use serde::Serialize;

/// Draws before the whole list is looked at. While half of the SFUs are fit, 16 draws find two
/// different ones but for one time in ~4,000.
const DRAWS: usize = 16;

/// What was chosen, and against whom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Position of the chosen one.
    pub index: usize,
    /// Its score.
    pub score: f32,
    /// Position and score of the one it won against.
    pub rival: Option<(usize, f32)>,
}

/// What came of one that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Its weight's chance went against it.
    Light,
    /// It was not fit.
    Unfit,
    /// It was already the first of the two.
    Again,
    /// It is one of those that were compared.
    Compared,
}

/// Draws two different fit candidates of `0..n` at random and takes the one with the lower score.
///
/// `score(i)` is `None` for a candidate that is not fit. Falls back to one pass over all when few
/// are fit, so `None` means that there is no fit one at all.
pub fn choose(n: usize, rng: &mut impl Rng, score: impl FnMut(usize) -> Option<f64>) -> Option<Choice> {
    choose_by(n, rng, |_| 1.0, score, |_, _| ())
}

/// As [`choose`], but what is drawn stands with `chance(i)`, from 0 to 1; `seen` hears of each that was looked at, the
/// first of them by lot (at most 16) and those after them in turn.
///
/// Of candidates whose scores are to differ for the same load, the heavier have to be drawn more often: among
/// equal draws, a light one meets another so often that somebody light wins more than is due to them all.
///
/// What it does follows from what `rng` and `chance` say, and from the fit ones it came upon, of which there are two at
/// most: with these, and their scores as they stand in the [`Choice`], it takes the same way again.
pub fn choose_by(
    n: usize,
    rng: &mut impl Rng,
    chance: impl Fn(usize) -> f64,
    mut score: impl FnMut(usize) -> Option<f64>,
    mut seen: impl FnMut(usize, Fate),
) -> Option<Choice> {
    if n == 0 {
        return None;
    }
    let start = rng.random_range(0..n);
    let drawn = (0..draws(n)).map(|_| {
        let i = rng.random_range(0..n);
        let chance = chance(i);
        (i, chance >= 1.0 || rng.random::<f64>() < chance)
    });
    let mut first: Option<(usize, f32)> = None;
    for (i, stands) in drawn.chain((start..n).chain(0..start).map(|i| (i, true))) {
        let again = first.is_some_and(|(f, _)| f == i);
        let fit = if stands && !again { score(i).map(single) } else { None };
        seen(
            i,
            match fit {
                _ if !stands => Fate::Light,
                _ if again => Fate::Again,
                None => Fate::Unfit,
                Some(_) => Fate::Compared,
            },
        );
        match (first, fit) {
            (_, None) => {}
            (None, Some(s)) => first = Some((i, s)),
            (Some(f), Some(s)) => return Some(better(f, (i, s))),
        }
    }
    first.map(|(index, score)| Choice { index, score, rival: None })
}

/// How many of `n` are drawn before all are looked at in turn.
#[must_use]
pub(super) fn draws(n: usize) -> usize {
    DRAWS.min(2 * n)
}

/// Scores are compared as they are remembered, or two that are told apart now would be equal in a replay.
#[allow(clippy::cast_possible_truncation, reason = "seven digits are more than a load report has")]
const fn single(score: f64) -> f32 {
    score as f32
}

fn better(a: (usize, f32), b: (usize, f32)) -> Choice {
    let (won, lost) = if b.1 < a.1 { (b, a) } else { (a, b) };
    Choice { index: won.0, score: won.1, rival: Some(lost) }
}
