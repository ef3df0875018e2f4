//! Runs a command, shows its output as it comes, and counts what passed and failed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;

/// Longest a stage may take, builds from nothing on two cores included. A hung test must not hang CI for ever.
const STAGE_TIME_MAX: Duration = Duration::from_secs(45 * 60);

/// What a stage came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// What to read first when something failed.
    pub(crate) notes: Vec<String>,
}

// === impl Outcome ===

impl Outcome {
    /// A stage that is one item, and passed.
    pub(crate) fn pass() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    /// A stage that is one item, and failed.
    pub(crate) fn fail(notes: Vec<String>) -> Self {
        Self { failed: 1, notes, ..Self::default() }
    }

    /// Both together.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.notes.extend(other.notes);
        Self { passed: self.passed + other.passed, failed: self.failed + other.failed, notes: self.notes }
    }

    /// Says in its notes whose they are.
    pub(crate) fn of(self, what: &str) -> Self {
        Self { notes: self.notes.iter().map(|note| format!("{what}: {note}")).collect(), ..self }
    }
}

/// Runs a command that passes or fails as a whole.
pub(crate) fn check(command: &mut Command) -> anyhow::Result<Outcome> {
    check_within(command, STAGE_TIME_MAX)
}

/// The same, for a command that may take so long.
pub(crate) fn check_within(command: &mut Command, time_max: Duration) -> anyhow::Result<Outcome> {
    let mut child = start(command)?;
    let ended = watched(&mut child, time_max, |_| {})?;
    Ok(ended.map_or_else(|note| Outcome::fail(vec![note]), |()| Outcome::pass()))
}

/// Runs a command of the `cargo test` kind and adds up its tests.
///
/// An ignored test counts as failed: it proves nothing and looks as if it did. So does a run that dies
/// without a failed test (it did not compile, it was killed), or that holds no test at all.
pub(crate) fn tests(command: &mut Command) -> anyhow::Result<Outcome> {
    let mut child = start(command.stdout(Stdio::piped()))?;
    let mut outcome = Outcome::default();
    let ended = watched(&mut child, STAGE_TIME_MAX, |line| outcome.count(line))?;
    if let Err(note) = ended
        && outcome.failed == 0
    {
        outcome.failed += 1;
        outcome.notes.push(note);
    }
    if outcome.passed + outcome.failed == 0 {
        return Ok(Outcome::fail(vec!["no test ran".to_owned()]));
    }
    Ok(outcome)
}

impl Outcome {
    fn count(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            let of = |word: &str| number_before(counts, word);
            self.passed += of(" passed");
            self.failed += of(" failed") + of(" ignored");
        } else if line.starts_with("test ") && (line.ends_with("FAILED") || line.contains(" ... ignored")) {
            self.notes.push(line.to_owned());
        }
    }
}

fn number_before(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().filter(|before| before.len() < text.len());
    before.and_then(|before| before.rsplit(' ').next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn start(command: &mut Command) -> anyhow::Result<Child> {
    command.stdin(Stdio::null()).spawn().with_context(|| format!("starting {}", command.get_program().display()))
}

/// Waits for the child while its lines are shown and handed on. The inner error says how it failed.
fn watched(child: &mut Child, time_max: Duration, mut on_line: impl FnMut(&str)) -> anyhow::Result<Result<(), String>> {
    let (done, ended) = channel::<()>();
    let pid = child.id();
    let watchdog = thread::spawn(move || {
        let late = ended.recv_timeout(time_max) == Err(RecvTimeoutError::Timeout);
        if late {
            kill_tree(pid);
        }
        late
    });
    for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let line = line.context("reading the output of a stage")?;
        println!("{line}");
        on_line(&line);
    }
    let status = child.wait().context("waiting for a stage")?;
    drop(done);
    if watchdog.join().unwrap_or(false) {
        return Ok(Err(format!("took longer than {} s", time_max.as_secs())));
    }
    Ok(if status.success() { Ok(()) } else { Err(format!("ended with {status}")) })
}

/// Kills a process and all its descendants, so that no test keeps our pipe open.
fn kill_tree(pid: u32) {
    let mut doomed = vec![pid];
    let mut next = 0;
    while let Some(&parent) = doomed.get(next) {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        doomed.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        next += 1;
    }
    let result = Command::new("kill").arg("-KILL").args(doomed.iter().map(u32::to_string)).status();
    if let Err(error) = result {
        eprintln!("cannot stop the stage: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn adds_up_every_result_line() {
        let outcome = tests(&mut sh("echo 'test result: ok. 39 passed; 0 failed; 0 ignored; 0 measured'; \
             echo 'test a::b ... FAILED'; echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored'; exit 101"));
        let notes = vec!["test a::b ... FAILED".to_owned()];
        assert_eq!(outcome.expect("runs"), Outcome { passed: 41, failed: 1, notes });
    }

    #[test]
    fn an_ignored_test_is_a_failed_one() {
        let outcome =
            tests(&mut sh("echo 'test c ... ignored'; echo 'test result: ok. 3 passed; 0 failed; 1 ignored'"));
        assert_eq!(outcome.expect("runs").failed, 1);
    }

    #[test]
    fn what_does_not_compile_or_holds_no_test_fails() {
        assert_eq!(tests(&mut sh("exit 101")).expect("runs").failed, 1);
        assert_eq!(tests(&mut sh("true")).expect("runs").failed, 1);
        let half = tests(&mut sh("echo 'test result: ok. 3 passed; 0 failed; 0 ignored'; exit 101"));
        assert_eq!(half.map(|o| (o.passed, o.failed)).expect("runs"), (3, 1));
    }

    #[test]
    fn a_check_is_one_item() {
        assert_eq!(check(&mut sh("true")).expect("runs"), Outcome::pass());
        assert_eq!(check(&mut sh("exit 3")).map(|o| (o.passed, o.failed)).expect("runs"), (0, 1));
        assert!(check(&mut Command::new("no-such-program-anywhere")).is_err());
    }

    #[test]
    fn what_does_not_end_in_its_time_fails() {
        let slow = check_within(&mut sh("sleep 600"), Duration::from_millis(50)).expect("runs");
        assert_eq!((slow.passed, slow.failed), (0, 1));
    }

    #[test]
    fn items_add_up_and_say_whose_they_are() {
        let failed = Outcome::fail(vec!["ended with 3".to_owned()]).of("example get");
        let all = Outcome::pass().and(failed).and(Outcome::pass());
        assert_eq!(all, Outcome { passed: 2, failed: 1, notes: vec!["example get: ended with 3".to_owned()] });
    }

    #[test]
    fn a_whole_tree_is_killed() {
        let mut child = start(sh("sh -c 'sleep 600 & wait' & wait").stdout(Stdio::piped())).expect("starts");
        let family = || {
            let of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            of(of(&child.id().to_string()).trim())
        };
        while family().trim().is_empty() {
            thread::yield_now();
        }
        kill_tree(child.id());
        let mut pipe = BufReader::new(child.stdout.take().expect("piped"));
        assert_eq!(pipe.read_line(&mut String::new()).expect("reads"), 0, "the sleeper let go of the pipe");
        assert!(!child.wait().expect("waits").success());
    }
}
