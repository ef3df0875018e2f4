//! Whose turn a placement is: classes share the pace by number, whatever waits before them.
//!
//! Rank alone would let a repair of minutes stand before every call that begins after it (see
//! docs/decisions/0011). So of every [`Turns::ROUND`] placements some are the turn of new calls and some that of streams;
//! the others are nobody's, and go by rank. A class that has nothing ready gives its turn to the most urgent call.
//! Admission and estimates count with the same shares.

use super::Class;

/// How many of [`Turns::ROUND`] placements are whose turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    new_calls: u64,
    streams: u64,
}

// === impl Turns ===

impl Turns {
    /// Placements until every class had its turns.
    pub const ROUND: u64 = 20;
    /// Most turns of new calls. With [`Self::STREAMS_MAX`] it leaves two fifths to who is most urgent.
    pub const NEW_CALLS_MAX: u64 = 8;
    /// Most turns of streams.
    pub const STREAMS_MAX: u64 = 4;

    /// So many turns of new calls and of streams. Both have one at least, so that no backlog stops them, and no more
    /// than [`Self::NEW_CALLS_MAX`] and [`Self::STREAMS_MAX`].
    #[must_use]
    pub fn new(new_calls: u64, streams: u64) -> Self {
        Self { new_calls: new_calls.clamp(1, Self::NEW_CALLS_MAX), streams: streams.clamp(1, Self::STREAMS_MAX) }
    }

    /// The class whose turn the placement of this number is; the most urgent call's otherwise. Turns of new calls are
    /// as far apart as they can be, those of streams as far as they can among the others.
    #[must_use]
    pub const fn whose(self, number: u64) -> Option<Class> {
        let number = number % Self::ROUND;
        if is_turn(number, self.new_calls, Self::ROUND) {
            return Some(Class::New);
        }
        let others = Self::ROUND - self.new_calls;
        let before = number - number * self.new_calls / Self::ROUND; // that are not those of new calls
        if is_turn(before, self.streams, others) { Some(Class::Stream) } else { None }
    }

    /// The part of all placements that a class gets at least while others wait too.
    #[must_use]
    pub fn share(self, class: Class) -> f64 {
        let turns = match class {
            Class::Repair => Self::ROUND - self.new_calls - self.streams,
            Class::New => self.new_calls,
            Class::Stream => self.streams,
        };
        turns as f64 / Self::ROUND as f64
    }
}

/// Whether the place `at` of `of` is one of `turns` that are spread over all of them.
const fn is_turn(at: u64, turns: u64, of: u64) -> bool {
    (at + 1) * turns / of > at * turns / of
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_every_class_has_its_turns_as_far_apart_as_can_be_and_urgency_the_others() {
        for (new_calls, streams) in
            (1..=Turns::NEW_CALLS_MAX).flat_map(|n| (1..=Turns::STREAMS_MAX).map(move |s| (n, s)))
        {
            let turns = Turns::new(new_calls, streams);
            let whose: Vec<Option<Class>> = (0..2 * Turns::ROUND).map(|number| turns.whose(number)).collect();
            let of = |class| whose.iter().filter(|whose| **whose == class).count() as u64;
            let free = Turns::ROUND - new_calls - streams;
            assert_eq!(
                [None, Some(Class::New), Some(Class::Stream)].map(of),
                [free, new_calls, streams].map(|turns| 2 * turns)
            );
            for (class, own) in [(Class::Repair, free), (Class::New, new_calls), (Class::Stream, streams)] {
                assert!((turns.share(class) - own as f64 / Turns::ROUND as f64).abs() < 1e-9);
            }
            // No class waits for longer than its share says, but for one turn of another.
            for (class, own, slack) in [(Class::New, new_calls, 0), (Class::Stream, streams, 1)] {
                let at: Vec<usize> = (0..whose.len()).filter(|n| whose[*n] == Some(class)).collect();
                let most = Turns::ROUND.div_ceil(own) + slack;
                assert!(at.windows(2).all(|pair| (pair[1] - pair[0]) as u64 <= most), "{turns:?}, {class:?}: {at:?}");
            }
        }
        assert_eq!(Turns::new(0, 0), Turns::new(1, 1), "nobody is left without");
        assert_eq!(Turns::new(20, 20), Turns::new(8, 4), "and the repair keeps two fifths");
    }
}
