//! What SFUs have said of people whose gateway is gone, one answer after the other.
//!
//! An answer is a count, and of one moment: whoever has joined and is not in the room yet hides one who talks, a list
//! fails, a connection is made anew. A session that is taken out does not come back by itself, so nothing is taken from
//! one answer that could mean either.

use std::time::Duration;

use tokio::time::Instant;

/// Answers in a row without the people of a call, after which they are gone. Doubts are asked about once a second, so
/// that is three seconds: media of one who has joined is there after one or two.
const ANSWERS_MIN: u8 = 4;

/// Failures in a row after which an SFU keeps nobody. They are counted once in a digest interval: ten minutes, in which a
/// machine that is ill has been mended or has been declared dead.
const FAILURES_MAX: u32 = 10;

/// Whether people may talk in a call whose gateway is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Answers in a row that did not show them.
    without: u8,
}

/// Failures of an SFU to say who is there, since it did so last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failures {
    count: u32,
    counted: Instant,
}

// === impl Sight ===

impl Sight {
    /// With one more answer: so many `people` are in the call's room, if the SFU said, and the call has so many
    /// sessions of gateways that are `here`.
    ///
    /// With more people than such sessions somebody talks whose gateway is gone; which of them it is, counts do not say.
    /// Somebody here who is not in the room, or whom its SFU does not count, hides one who talks. One who has just left, or
    /// is not ours, is taken for one who talks. A room that was never seen with anybody to keep and has nobody in it
    /// leaves no doubt.
    #[must_use]
    pub fn next(before: Option<Self>, people: Option<u32>, here: usize) -> Self {
        let without = before.map_or(0, |before| before.without);
        let without = match people {
            None => without,
            Some(people) if people as usize > here => 0,
            Some(0) if before.is_none() => ANSWERS_MIN,
            Some(_) => without.saturating_add(1).min(ANSWERS_MIN),
        };
        Self { without }
    }

    /// Whether the call keeps its sessions.
    #[must_use]
    pub const fn keeps(self) -> bool {
        self.without < ANSWERS_MIN
    }

    /// Whether it keeps them although its people were not in the last answer.
    #[must_use]
    pub const fn is_doubtful(self) -> bool {
        self.without > 0 && self.keeps()
    }
}

// === impl Failures ===

impl Failures {
    /// With one more, of a question asked at `asked`. More than one within `every` count as one: how often SFUs are
    /// asked depends on how many gateways vanish.
    #[must_use]
    pub fn next(before: Option<Self>, every: Duration, asked: Instant) -> Self {
        match before {
            None => Self { count: 1, counted: asked },
            Some(same) if asked.saturating_duration_since(same.counted) < every => same,
            Some(Self { count, .. }) => Self { count: count.saturating_add(1), counted: asked },
        }
    }

    /// Whether they are so many that the SFU keeps nobody.
    #[must_use]
    pub const fn are_too_many(self) -> bool {
        self.count >= FAILURES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(answers: &[(Option<u32>, usize)]) -> Option<Sight> {
        answers.iter().fold(None, |before, (people, here)| Some(Sight::next(before, *people, *here)))
    }

    #[test]
    fn people_are_gone_after_answers_in_a_row() {
        let (talks, silent, empty, no_answer) = ((Some(2), 1), (Some(1), 1), (Some(0), 0), (None, 1));
        let keeps = |answers: &[_]| after(answers).is_some_and(Sight::keeps);
        assert!(keeps(&[talks]) && keeps(&[no_answer]), "nothing else is known");
        assert!(!keeps(&[empty]), "nobody was ever there");
        for no in [silent, empty] {
            assert!(keeps(&[talks, no, no, no]));
            assert!(!keeps(&[talks, no, no, no, no]));
            assert!(keeps(&[talks, no, no, no, talks, no, no, no]), "in a row");
            assert!(keeps(&[talks, no, no, no, no_answer, no_answer]), "no answer says nothing");
            assert!(!keeps(&[talks, no, no, no_answer, no, no]), "and undoes nothing");
            assert!(!keeps(&[talks, no, no, no, no, silent, no_answer]), "who is gone stays so");
            assert!(keeps(&[talks, no, no, no, no, talks]), "until he is seen");
        }
        assert!(keeps(&[silent, silent, silent]) && !keeps(&[silent; 4]), "the first answer is no other");
    }

    #[test]
    fn only_what_may_still_turn_is_in_doubt() {
        let doubtful = |answers: &[_]| after(answers).is_some_and(Sight::is_doubtful);
        let (talks, silent) = ((Some(2), 1), (Some(1), 1));
        assert!(!doubtful(&[talks]) && doubtful(&[silent]) && doubtful(&[talks, silent, silent, silent]));
        assert!(!doubtful(&[silent; 4]) && !doubtful(&[(Some(0), 0)]) && !doubtful(&[(None, 0)]));
    }

    #[test]
    fn failures_count_once_in_an_interval() {
        let (every, start) = (Duration::from_secs(60), Instant::now());
        let mut failures = None;
        for second in 0..540 {
            failures = Some(Failures::next(failures, every, start + Duration::from_secs(second)));
        }
        assert_eq!(failures.map(|f| (f.count, f.are_too_many())), Some((9, false)));
        assert!(Failures::next(failures, every, start + every * 9).are_too_many());
    }
}
