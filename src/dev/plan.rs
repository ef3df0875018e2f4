//! The drill that `dev` holds: the embedded plan, with the numbers that were asked for.

use super::DevArgs;
use crate::exit::{Exit, Failure};

const PLAN: &str = include_str!("plan.toml");

/// Fewer guilds than calls, so that guilds have several, but enough that every syncer owns some.
const CALLS_PER_GUILD: u32 = 10;

/// The plan for these arguments.
pub(super) fn plan(arguments: &DevArgs) -> Result<drill::Plan, Failure> {
    let mut plan = drill::Plan::parse(PLAN, "dev/plan.toml").map_err(|error| Failure::of(Exit::Bug, error))?;
    if arguments.participants < arguments.calls {
        let why = format!("{} calls need at least as many --participants", arguments.calls);
        return Err(Failure::new(Exit::Usage, why));
    }
    plan.seed = arguments.seed;
    plan.duration = arguments.duration;
    plan.population.calls = arguments.calls;
    plan.population.participants = arguments.participants;
    plan.population.guilds = (arguments.calls / CALLS_PER_GUILD).max(1);
    // A run that ends before the kill is a run without one, not a failed one.
    let kills = arguments.kill > 0.0 && arguments.duration.is_none_or(|duration| duration > arguments.kill_after);
    if !kills {
        plan.phases.clear();
    }
    for phase in &mut plan.phases {
        if phase.at.is_some() {
            phase.at = Some(arguments.kill_after);
        }
        if let Some(fault) = &mut phase.fault {
            fault.share = Some(arguments.kill);
        }
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Dev {
        #[command(flatten)]
        arguments: DevArgs,
    }

    fn dev(arguments: &[&str]) -> DevArgs {
        Dev::try_parse_from(["dev"].iter().chain(arguments)).expect("parses").arguments
    }

    #[test]
    fn the_defaults_are_the_documented_fleet() {
        let plan = plan(&dev(&[])).expect("valid");
        assert_eq!((plan.population.calls, plan.population.participants, plan.duration), (2_000, 6_000, None));
        let kill = plan.phases[1].fault.as_ref().expect("a kill");
        assert_eq!((kill.share, plan.phases[0].at), (Some(0.2), Some(Duration::from_secs(10))));
    }

    #[test]
    fn flags_reach_the_plan() {
        let plan = plan(&dev(&["--for", "40s", "--kill", "0.5", "--kill-after", "3s", "--seed", "9"])).expect("valid");
        assert_eq!((plan.duration, plan.seed), (Some(Duration::from_secs(40)), 9));
        assert_eq!(plan.phases[0].at, Some(Duration::from_secs(3)));
        assert_eq!(plan.phases[1].fault.as_ref().and_then(|fault| fault.share), Some(0.5));
    }

    #[test]
    fn a_run_without_time_for_the_kill_has_none() {
        assert!(plan(&dev(&["--for", "5s"])).expect("valid").phases.is_empty());
        assert!(plan(&dev(&["--kill", "0"])).expect("valid").phases.is_empty());
    }

    #[test]
    fn impossible_numbers_are_usage_errors() {
        let failure = plan(&dev(&["--calls", "10", "--participants", "9"])).expect_err("refused");
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(Dev::try_parse_from(["dev", "--kill", "1.5"]).is_err());
        assert!(Dev::try_parse_from(["dev", "--syncers", "0"]).is_err());
    }
}
