//! How the command ends: one line on stderr, and an exit code that scripts can rely on.

use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

/// Exit codes; the numbers above 63 are those of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// A check failed, or a request was refused.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Something that is needed does not answer.
    Dependency = 69,
    /// A bug.
    Bug = 70,
    /// Stopped before the drain ended.
    Deadline = 75,
    /// The configuration cannot be used.
    Config = 78,
}

/// Why the command did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

/// Says with which code an error ends the command.
pub(crate) trait WithExit<T> {
    fn or_exit(self, exit: Exit, context: impl fmt::Display + Send + Sync + 'static) -> Result<T, Failure>;
}

/// Prints why, and returns the code.
pub(crate) fn report(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            #[expect(clippy::print_stderr, reason = "the last word of the command, log or no log")]
            {
                eprintln!("error: {failure}");
            }
            failure.exit.into()
        }
    }
}

// === impl Exit ===

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

// === impl Failure ===

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Self { exit, error: anyhow::Error::msg(message) }
    }

    pub(crate) fn of(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }

    #[cfg(test)]
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}

/// All levels, outermost first.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = String::new();
        for level in self.error.chain().map(|level| level.to_string()) {
            if !shown.contains(&level) {
                let colon = if shown.is_empty() { "" } else { ": " };
                shown = format!("{shown}{colon}{level}");
            }
        }
        f.write_str(&shown)
    }
}

impl<T, E: StdError + Send + Sync + 'static> WithExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit, context: impl fmt::Display + Send + Sync + 'static) -> Result<T, Failure> {
        self.map_err(|error| Failure { exit, error: anyhow::Error::new(error).context(context) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_shown_once() {
        let refused = std::io::Error::other("connection refused");
        let failure = Err::<(), _>(refused).or_exit(Exit::Dependency, "no syncer answers").expect_err("failed");
        assert_eq!(failure.to_string(), "no syncer answers: connection refused");
        assert_eq!(failure.exit(), Exit::Dependency);
        let twice = anyhow::anyhow!("x.toml:3: unknown key").context("x.toml:3: unknown key");
        assert_eq!(Failure::of(Exit::Config, twice).to_string(), "x.toml:3: unknown key");
    }
}
