//! What to make of a term that an SFU says it has seen.

use sfu_api::OwnerTerm;

/// The generation grows by an operator's word alone, so a greater step at once is a mistake or a lie; should it be
/// true, the next refusals say so again.
const GENERATIONS_MAX: u64 = 1_000;

/// More claims than any registry ever counts, and moments since 1970 in milliseconds.
const REVISION_MAX: u64 = 1 << 62;

/// The term above which a slot is claimed again, whose owner was told that a higher one than its own was `seen`. What
/// is said to be above all that can be counted is not taken as it is, or the next claims would have no numbers left: a
/// revision beyond all is left behind by the next generation, and generations are raised a step at a time. So whatever an
/// SFU says, terms go on growing, and the truth is reached after some refusals.
#[must_use]
pub fn believed(ours: OwnerTerm, seen: OwnerTerm) -> OwnerTerm {
    let counted = seen.revision <= REVISION_MAX;
    let believed = if counted { seen } else { generation(seen.generation.saturating_add(1)) };
    let most = ours.generation.saturating_add(GENERATIONS_MAX);
    if believed.generation > most { generation(most) } else { believed }
}

/// Its first term.
const fn generation(generation: u64) -> OwnerTerm {
    OwnerTerm { generation, revision: 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn term() -> impl Strategy<Value = OwnerTerm> {
        let number = || prop_oneof![0u64..3, 900u64..3_000, (1u64 << 62) - 2..(1 << 62) + 2, u64::MAX - 2..=u64::MAX];
        (number(), number()).prop_map(|(generation, revision)| OwnerTerm { generation, revision })
    }

    proptest! {
        /// Whatever SFUs say, a claim above it has a number, and is above what was ours.
        #[test]
        fn i01_terms_go_on_growing_whatever_an_sfu_says(said in prop::collection::vec(term(), 1..200)) {
            let mut ours = OwnerTerm { generation: 1, revision: 7 };
            for seen in said.into_iter().filter(|seen| *seen < OwnerTerm { generation: u64::MAX, revision: 0 }) {
                let above = believed(ours, seen.max(ours));
                let next = OwnerTerm { revision: above.revision + 1, ..above };
                prop_assert!(next > ours && next.revision <= REVISION_MAX + 1, "{next} after {ours}");
                prop_assert!(next.generation <= ours.generation + GENERATIONS_MAX);
                ours = next;
            }
        }

        /// What can be true is believed, at once or after some refusals.
        #[test]
        fn i01_the_truth_is_reached(generation in 1u64..100_000, revision in 0..=REVISION_MAX) {
            let (truth, mut ours) = (OwnerTerm { generation, revision }, OwnerTerm { generation: 1, revision: 7 });
            for refusals in 0.. {
                if ours > truth {
                    break;
                }
                prop_assert!(refusals <= generation / GENERATIONS_MAX + 1, "{ours} after {refusals} refusals");
                let above = believed(ours, truth);
                ours = OwnerTerm { revision: above.revision + 1, ..above };
            }
        }
    }
}
