//! The command line all benches share.

use clap::Parser;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Rounds of a full run: the least odd number whose median survives three disturbed rounds.
const ROUNDS_FULL: usize = 7;

/// Rounds of a quick run: the least that has a median.
const ROUNDS_QUICK: usize = 3;

/// What every bench understands.
#[derive(Debug, Clone, Parser)]
pub struct Args {
    /// A minute instead of several: fewer rounds and only the main scenarios.
    #[arg(long)]
    pub quick: bool,
    /// Runs only scenarios whose name contains this.
    #[arg(long)]
    pub only: Option<String>,
    /// Runs only contestants whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    pub contestants: Vec<String>,
    /// Rounds, instead of the usual number.
    #[arg(long)]
    pub rounds: Option<usize>,
    /// Seed of the contestants' order.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Of no use to people: the process is a helper of another one.
    #[arg(long, hide = true)]
    pub role: Option<String>,
}

// === impl Args ===

impl Args {
    /// How many rounds to run.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { ROUNDS_QUICK } else { ROUNDS_FULL }).max(1)
    }

    /// Whether a scenario was asked for.
    #[must_use]
    pub fn wants(&self, scenario: &str) -> bool {
        self.only.as_ref().is_none_or(|only| scenario.contains(only.as_str()))
    }

    /// Whether a contestant was asked for.
    #[must_use]
    pub fn wants_contestant(&self, contestant: &str) -> bool {
        self.contestants.is_empty() || self.contestants.iter().any(|name| contestant.contains(name.as_str()))
    }

    /// The contestants' order of every round, each at random.
    pub fn orders<T: Clone>(&self, contestants: &[T]) -> Vec<Vec<T>> {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let shuffled = || {
            let mut order = contestants.to_vec();
            order.shuffle(&mut rng);
            order
        };
        std::iter::repeat_with(shuffled).take(self.rounds()).collect()
    }
}
