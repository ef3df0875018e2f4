//! A table whose entries are found in one line of the cache.
//!
//! Among a million calls the table of guilds is far away memory, and each write looks into it. So an entry stands in the
//! line that its mark names, or, where that is full, in the next with room: who asks for the line beforehand has asked
//! for all that the look will read, mostly.

use super::{Mark, Numbers};

/// Entries of a line: 64 bytes.
const LINE: usize = 4;
/// Lines of a table that has its first entry.
const FIRST: usize = 4;

/// An entry, or nothing under any mark.
type Entry = (Mark, Numbers);

const NOTHING: Entry = (Mark(0), Numbers::NONE);

/// Entries from the first on, then nothing.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Bin([Entry; LINE]);

/// Entries by their marks, any number of them under one. All lines from the one that a mark names up to the one where its
/// entry stands are full, and no more than three quarters of all room is taken.
#[derive(Debug, Default)]
pub(super) struct Table {
    lines: Vec<Bin>,
    len: usize,
}

// === impl Bin ===

impl Bin {
    const EMPTY: Self = Self([NOTHING; LINE]);

    const fn is_full(&self) -> bool {
        !self.0[LINE - 1].1.is_none()
    }

    fn len(&self) -> usize {
        self.0.iter().take_while(|(_, numbers)| !numbers.is_none()).count()
    }
}

// === impl Table ===

impl Table {
    /// The line that a mark names. Marks keep their order, so that a table that grows is read and written in a row.
    fn home(&self, mark: Mark) -> usize {
        ((u64::from(mark.0) * self.lines.len() as u64) >> u32::BITS) as usize // below the number of lines
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 < self.lines.len() { at + 1 } else { 0 }
    }

    /// Lines from `home` to `at`.
    fn between(&self, home: usize, at: usize) -> usize {
        if at < home { at + self.lines.len() - home } else { at - home }
    }

    /// Reads some of the line that a mark names, so that it is at hand.
    pub(super) fn touch(&self, mark: Mark) -> u32 {
        self.lines.get(self.home(mark)).map_or(0, |line| line.0[0].0.0)
    }

    /// Where an entry under this mark stands.
    fn position(&self, mark: Mark, mut is_it: impl FnMut(&Numbers) -> bool) -> Option<(usize, usize)> {
        let mut at = self.home(mark);
        loop {
            let line = self.lines.get(at)?;
            let is_it = |(kept, numbers): &Entry| *kept == mark && !numbers.is_none() && is_it(numbers);
            if let Some(within) = line.0.iter().position(is_it) {
                return Some((at, within));
            }
            if !line.is_full() {
                return None;
            }
            at = self.next(at);
        }
    }

    /// The entry under this mark that is the one.
    pub(super) fn find(&self, mark: Mark, is_it: impl FnMut(&Numbers) -> bool) -> Option<&Numbers> {
        self.position(mark, is_it).map(|(at, within)| &self.lines[at].0[within].1)
    }

    /// The same, to change it; not into nothing.
    pub(super) fn find_mut(&mut self, mark: Mark, is_it: impl FnMut(&Numbers) -> bool) -> Option<&mut Numbers> {
        self.position(mark, is_it).map(|(at, within)| &mut self.lines[at].0[within].1)
    }

    /// Takes in an entry that is not there yet.
    pub(super) fn insert(&mut self, mark: Mark, numbers: Numbers) {
        if (self.len + 1) * 4 > self.lines.len() * LINE * 3 {
            let lines = vec![Bin::EMPTY; (self.lines.len() * 3 / 2).max(FIRST)];
            let old = std::mem::replace(&mut self.lines, lines);
            let entries = old.into_iter().flat_map(|line| line.0).filter(|(_, numbers)| !numbers.is_none());
            entries.for_each(|(mark, numbers)| self.put(mark, numbers));
        }
        self.put(mark, numbers);
        self.len += 1;
    }

    fn put(&mut self, mark: Mark, numbers: Numbers) {
        let mut at = self.home(mark);
        while self.lines[at].is_full() {
            at = self.next(at);
        }
        let line = &mut self.lines[at];
        line.0[line.len()] = (mark, numbers);
    }

    /// Lets go of an entry; says whether it was there.
    pub(super) fn remove(&mut self, mark: Mark, is_it: impl FnMut(&Numbers) -> bool) -> bool {
        let Some((mut at, mut within)) = self.position(mark, is_it) else { return false };
        self.len -= 1;
        loop {
            let line = &mut self.lines[at];
            let (was_full, last) = (line.is_full(), line.len() - 1);
            line.0[within] = line.0[last];
            line.0[last] = NOTHING;
            let Some((from, moved)) = was_full.then(|| self.passed(at)).flatten() else { return true };
            self.lines[at].0[last] = self.lines[from].0[moved];
            (at, within) = (from, moved);
        }
    }

    /// An entry that stands further on because this line was full.
    fn passed(&self, full: usize) -> Option<(usize, usize)> {
        let mut at = self.next(full);
        loop {
            let line = &self.lines[at];
            let passed = |(mark, numbers): &Entry| {
                !numbers.is_none() && self.between(self.home(*mark), at) >= self.between(full, at)
            };
            if let Some(within) = line.0.iter().position(passed) {
                return Some((at, within));
            }
            if !line.is_full() {
                return None; // at most three quarters are taken, so there is such a line
            }
            at = self.next(at);
        }
    }

    /// All entries.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Numbers> {
        self.lines.iter().flat_map(|line| &line.0).map(|(_, numbers)| numbers).filter(|numbers| !numbers.is_none())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_guild_takes_16_bytes_and_is_found_in_one_line_of_the_cache() {
        assert_eq!((size_of::<Entry>(), size_of::<Bin>(), align_of::<Bin>()), (16, 64, 64));
    }

    /// A few, or many.
    fn numbers(number: u32) -> Numbers {
        if number.is_multiple_of(2) { Numbers::some([number]) } else { Numbers::many(number as usize) }
    }

    impl Table {
        /// What the description promises.
        fn check(&self) {
            for (at, line) in self.lines.iter().enumerate() {
                assert!(
                    line.0[line.len()..].iter().all(|(_, numbers)| numbers.is_none()),
                    "nothing and then something"
                );
                for (mark, _) in &line.0[..line.len()] {
                    let mut on_the_way = self.home(*mark);
                    while on_the_way != at {
                        assert!(self.lines[on_the_way].is_full(), "who looks for {mark:?} stops before");
                        on_the_way = self.next(on_the_way);
                    }
                }
            }
            assert_eq!(self.iter().count(), self.len);
            assert!(self.len * 4 <= self.lines.len() * LINE * 3);
        }
    }

    proptest! {
        /// They are a map, with many entries under one mark, in one line and behind it, over the end of the table too.
        #[test]
        fn entries_are_found(steps in prop::collection::vec((0u32..3, 0u32..14, 0u32..3), 1..300)) {
            let (mut table, mut model) = (Table::default(), Vec::new());
            for (insert, place, low) in steps {
                // Most stand at either end, some under one mark.
                let mark = Mark(if place < 12 { (place << 28).wrapping_add(0xe000_0000) | low } else { low });
                let number = place * 3 + low;
                if insert > 0 && !model.contains(&(mark, number)) {
                    table.insert(mark, numbers(number));
                    model.push((mark, number));
                } else {
                    let known = model.iter().position(|kept| *kept == (mark, number)).map(|at| model.swap_remove(at));
                    prop_assert_eq!(table.remove(mark, |kept| kept.0 == numbers(number).0), known.is_some());
                }
                table.check();
                for number in 0..42 {
                    for mark in model.iter().map(|(mark, _)| *mark).chain([Mark(low)]) {
                        let found = table.find_mut(mark, |kept| kept.0 == numbers(number).0).is_some();
                        prop_assert_eq!(found, model.contains(&(mark, number)));
                    }
                }
                for mark in (0..3).map(Mark) {
                    let any = model.iter().any(|(kept, _)| *kept == mark);
                    prop_assert_eq!(table.find(mark, |_| true).is_some(), any);
                }
            }
        }
    }
}
