//! R3 up to its full size, in every run of the tests.

use crate::contestants::{Parker, join_and_leave};
use crate::supervisor::us_per_start;

const FEW: usize = 10;

/// Others in line. A million are a quarter of a GiB and some seconds for each side, one after the other; what walks
/// through all of them would take hours, and is found out among fewer.
const MANY: [usize; 2] = [100_000, 1_000_000];

/// Microseconds for one caller of ours to come and go among so many.
fn ours(waiting: usize) -> f64 {
    let runtime = benches::runtime().expect("runtime");
    let us = runtime.block_on(join_and_leave(Parker::Ours, waiting)).expect("measured");
    runtime.shutdown_background();
    us
}

/// A ratio of two rises in one run, for the machine is in both.
#[test]
fn r03_a_million_in_line_cost_the_next_a_hundredth_at_most_of_what_they_cost_at_the_single_supervisor() {
    let supervisor = |waiting| us_per_start(waiting).expect("measured");
    for many in MANY {
        for round in 1.. {
            let (mine, theirs) = (ours(many) - ours(FEW), supervisor(many) - supervisor(FEW));
            if mine <= theirs / 100.0 {
                break;
            }
            assert!(round < 2, "among {many} {mine} µs more for us, {theirs} µs for the supervisor");
        }
    }
}
