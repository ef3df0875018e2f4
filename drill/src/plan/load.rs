//! Reading plans: the ones compiled in, and files. A mistake is reported with file, line and column.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use super::Plan;

/// A plan that is compiled in.
#[derive(Clone, Copy, Debug)]
pub struct BuiltIn {
    /// The name it is called by.
    pub name: &'static str,
    /// Its TOML text.
    pub text: &'static str,
}

/// The compiled-in plans.
pub const BUILT_IN: &[BuiltIn] = &[
    BuiltIn { name: "steady", text: include_str!("../../plans/steady.toml") },
    BuiltIn { name: "sfu-kill", text: include_str!("../../plans/sfu-kill.toml") },
    BuiltIn { name: "sfu-hang", text: include_str!("../../plans/sfu-hang.toml") },
    BuiltIn { name: "sfu-restart", text: include_str!("../../plans/sfu-restart.toml") },
];

/// Most bytes of a plan file; the largest built-in one has about 2 KiB.
const PLAN_BYTES_MAX: u64 = 1 << 20;

/// Why a plan cannot be used: what, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanError {
    file: String,
    /// Line and column, both from 1.
    place: Option<(usize, usize)>,
    message: String,
}

/// The compiled-in plan of this name.
#[must_use]
pub fn built_in(name: &str) -> Option<&'static BuiltIn> {
    BUILT_IN.iter().find(|plan| plan.name == name)
}

// === impl PlanError ===

impl PlanError {
    pub(crate) fn new(file: &str, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), place: None, message: message.into() }
    }

    fn at(file: &str, text: &str, span: Option<Range<usize>>, message: String) -> Self {
        Self { file: file.to_owned(), place: span.map(|span| line_and_column(text, span.start)), message }
    }

    /// Line of the mistake, from 1, when it has one.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.place.map(|(line, _)| line)
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "{}:{line}:{column}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for PlanError {}

// === impl Plan ===

impl Plan {
    /// Reads and checks a plan; `file` names it in errors.
    ///
    /// # Errors
    ///
    /// When the text is not a plan, or a value is out of its limits.
    pub fn parse(text: &str, file: &str) -> Result<Self, PlanError> {
        let plan: Self =
            toml::from_str(text).map_err(|e| PlanError::at(file, text, e.span(), with_nearest(e.message())))?;
        plan.validate().map_err(|(needle, message)| PlanError::at(file, text, find(text, needle), message))?;
        Ok(plan)
    }

    /// The compiled-in plan of this name, or else the plan in the file of this name.
    ///
    /// # Errors
    ///
    /// When there is neither, or the file is not a valid plan.
    pub fn load(name_or_file: &str) -> Result<Self, PlanError> {
        if let Some(plan) = built_in(name_or_file) {
            return Self::parse(plan.text, plan.name);
        }
        let path = Path::new(name_or_file);
        if !path.exists() {
            let names = BUILT_IN.iter().map(|plan| plan.name);
            let nearest = names.min_by_key(|name| strsim::damerau_levenshtein(name, name_or_file)).unwrap_or("");
            let message = format!("no such plan and no such file; did you mean `{nearest}`? (`--list` shows all)");
            return Err(PlanError::new(name_or_file, message));
        }
        let meta = std::fs::metadata(path).map_err(|e| PlanError::new(name_or_file, e.to_string()))?;
        if meta.len() > PLAN_BYTES_MAX {
            return Err(PlanError::new(name_or_file, format!("more than {PLAN_BYTES_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| PlanError::new(name_or_file, e.to_string()))?;
        Self::parse(&text, name_or_file)
    }
}

/// Line and column, both from 1, of a byte offset.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
    let start = before.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    (line, before.len() - start + 1)
}

/// Adds the nearest known key to serde's "unknown field `x`, expected one of `a`, `b`".
fn with_nearest(message: &str) -> String {
    let message = message.trim();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (true, Some(unknown)) = (message.starts_with("unknown "), quoted.next()) else {
        return message.to_owned();
    };
    match quoted.min_by_key(|known| strsim::damerau_levenshtein(known, unknown)) {
        Some(nearest) => format!("unknown key `{unknown}`, did you mean `{nearest}`?"),
        None => message.to_owned(),
    }
}

/// Where `needle` (a key of the plan) stands, for limits that are checked after parsing.
fn find(text: &str, needle: &str) -> Option<Range<usize>> {
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        if !trimmed.starts_with('#') && trimmed.contains(needle) {
            let start = offset + line.find(needle).unwrap_or(0);
            return Some(start..start + needle.len());
        }
        offset += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"t\"\n[population]\nguilds = 1\ncalls = 2\nparticipants = 3\n";

    #[test]
    fn built_in_plans_are_valid_and_named_after_themselves() {
        for plan in BUILT_IN {
            let parsed = Plan::parse(plan.text, plan.name).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(parsed.name, plan.name);
            assert!(!parsed.about.is_empty() && !parsed.checks.is_empty(), "{}", plan.name);
        }
    }

    #[test]
    fn an_unknown_key_names_file_line_and_nearest() {
        let error = Plan::parse(&format!("{GOOD}media_shar = 0.1\n"), "p.toml").expect_err("refused");
        assert_eq!(error.line(), Some(6));
        assert_eq!(error.to_string(), "p.toml:6:1: unknown key `media_shar`, did you mean `media_share`?");
    }

    #[test]
    fn a_wrong_expectation_names_its_line() {
        let error = Plan::parse(&format!("{GOOD}[[checks]]\nexpect = \"movd == 0\"\n"), "p.toml").expect_err("refused");
        assert_eq!(error.line(), Some(7));
        assert!(error.to_string().contains("did you mean"), "{error}");
    }

    #[test]
    fn a_value_out_of_its_limits_names_its_line() {
        let text = GOOD.replace("calls = 2", "calls = 2000000");
        let error = Plan::parse(&text, "p.toml").expect_err("refused");
        assert_eq!(error.line(), Some(4), "{error}");
    }

    #[test]
    fn an_unknown_plan_names_the_nearest() {
        let error = Plan::load("sfu-kil").expect_err("refused").to_string();
        assert!(error.contains("did you mean `sfu-kill`"), "{error}");
    }

    #[test]
    fn a_plan_file_is_read_and_named_in_errors() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("mine.toml");
        std::fs::write(&path, GOOD).expect("written");
        let name = path.to_str().expect("utf-8");
        assert_eq!(Plan::load(name).expect("valid").population.calls, 2);
        std::fs::write(&path, "name = 3\n").expect("written");
        let error = Plan::load(name).expect_err("refused").to_string();
        assert!(error.starts_with(&format!("{name}:1:8: ")), "{error}");
    }
}
