//! Tests at the sizes that the requirements name.
//!
//! `cargo xtask test` runs the same tests at sizes that a debug build on two cores can carry: seconds of overload
//! and sixty SFUs. Here they run one after the other in a release build, with nothing beside them: a minute of
//! ten times the load, a thousand SFUs of which one holds a hundred thousand participants, two million sessions on
//! twenty-one gateways, one gateway that tells two hundred thousand sessions again, and leases that are renewed while
//! everything else has no processor to spare.

use crate::process::tests;
use crate::stages::{Stage, cargo};

/// The variable that tests look at.
const VARIABLE: &str = "TRUNKLINE_FULL";

/// Name, what it shows, the test's package and target, and its path in it.
const TESTS: [(&str, &str, &str, &str, &str); 5] = [
    (
        "overload",
        "a minute of ten times the load costs the rest nothing",
        "syncer",
        "api_server",
        "overload::r04_r10_ten_times_the_load_costs_the_rest_nothing",
    ),
    (
        "one-sfu",
        "one of 1,000 SFUs dies with 100,000 participants",
        "syncer",
        "one_sfu_dies",
        "r13_one_sfu_with_most_participants_dies_and_the_rest_does_not_notice",
    ),
    (
        "gateways",
        "21 gateways of 100,000 sessions each hear of an SFU that dies, one of them too slowly",
        "syncer",
        "many_gateways",
        "r16_i07_every_gateway_hears_of_its_own_sessions_once_and_a_laggard_costs_nobody",
    ),
    (
        "resync",
        "one gateway tells 200,000 sessions again in one stream",
        "syncer",
        "full_resync",
        "r15_a_full_resync_in_one_stream_loses_nobody_but_who_is_not_told_again",
    ),
    (
        "leases",
        "five minutes in which the lanes to SFUs and peers have all the processors lose no lease",
        "pool",
        "leases",
        "r05_no_lease_is_lost_while_the_lanes_of_sfus_and_peers_are_in_a_storm",
    ),
];

/// One stage for each test.
pub(crate) fn all() -> Vec<Stage> {
    let stage = |(name, what, package, target, test): (&str, &str, &'static str, &'static str, &'static str)| Stage {
        name: name.to_owned(),
        what: what.to_owned(),
        work: Box::new(move || {
            let line = format!("test --release --locked -p {package} --test {target} -- --nocapture --exact");
            tests(cargo(&line).arg(test).env(VARIABLE, "1"))
        }),
    };
    TESTS.into_iter().map(stage).collect()
}
