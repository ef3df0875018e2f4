//! What is wrong with the configuration, where, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file, and the line when it is known.
    File {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: Option<usize>,
    },
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag,
    /// The settings taken together.
    Whole,
}

/// The configuration cannot be used. The command exits with 78.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    source: Source,
    key: Option<String>,
    message: String,
    nearest: Option<String>,
}

// === impl ConfigError ===

impl ConfigError {
    pub(crate) fn new(source: Source, message: impl Into<String>) -> Self {
        Self { source, key: None, message: message.into(), nearest: None }
    }

    pub(crate) fn file(path: &Path, line: Option<usize>, message: impl Into<String>) -> Self {
        Self::new(Source::File { path: path.to_owned(), line }, message)
    }

    pub(crate) fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    pub(crate) fn with_nearest(mut self, nearest: Option<String>) -> Self {
        self.nearest = nearest;
        self
    }

    /// Where the setting came from.
    #[must_use]
    pub fn origin(&self) -> &Source {
        &self.source
    }

    /// Line in the file, counted from 1.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        match self.source {
            Source::File { line, .. } => line,
            _ => None,
        }
    }

    /// The key at fault, dotted.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The known key that looks most like an unknown one.
    #[must_use]
    pub fn nearest(&self) -> Option<&str> {
        self.nearest.as_deref()
    }

    /// What is wrong, without the place.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::File { path, line: Some(line) } => write!(f, "{}:{line}: ", path.display())?,
            Source::File { path, line: None } => write!(f, "{}: ", path.display())?,
            Source::Environment(name) => write!(f, "environment variable {name}: ")?,
            Source::Flag => f.write_str("command line: ")?,
            Source::Whole => f.write_str("configuration: ")?,
        }
        if let Some(key) = &self.key {
            write!(f, "`{key}`: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean `{nearest}`?")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
