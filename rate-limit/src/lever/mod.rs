//! Limits that an operator reads and changes while the process runs.
//!
//! In an incident a limit that needs a deploy is no limit. But a live value that nobody checks is a
//! new way to fail, so every lever has a type, a unit and a range, a change is checked before
//! anything moves, several changes apply all or none, and who changed what, when and why is kept.
//!
//! Reading is one atomic load, so a lever may sit on the hottest path. Whoever waits for what a lever
//! holds back subscribes to [`Levers::changed`] and looks again.

mod registry;
mod value;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde_json::Value;

pub use self::registry::{AUDIT_CHANGES_MAX, Levers};
pub use self::value::LeverValue;

/// What a lever is, as its owner declares it.
#[derive(Clone, Debug)]
pub struct LeverSpec<T> {
    /// Dotted lower-case name, such as `placement.overall.rate`.
    pub name: &'static str,
    /// What it limits and what moving it does, in one or two sentences.
    pub doc: &'static str,
    /// Unit of the value, such as `per second`.
    pub unit: &'static str,
    /// Value until somebody changes it.
    pub default: T,
    /// Smallest allowed value.
    pub min: T,
    /// Largest allowed value.
    pub max: T,
}

/// A registered lever. Clones read the same value.
#[derive(Debug)]
pub struct Lever<T> {
    bits: Arc<AtomicU64>,
    of: std::marker::PhantomData<fn() -> T>,
}

/// A lever as operators see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeverView {
    /// Name.
    pub name: &'static str,
    /// Value in force.
    pub value: Value,
    /// Value it started with.
    pub default: Value,
    /// Smallest allowed value.
    pub min: Value,
    /// Largest allowed value.
    pub max: Value,
    /// Unit of the value.
    pub unit: &'static str,
    /// What it limits.
    pub doc: &'static str,
    /// Who changed it last.
    pub changed_by: Option<String>,
    /// When, in milliseconds since the Unix epoch.
    pub changed_at: Option<u64>,
}

/// One change of one lever.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Which lever.
    pub name: &'static str,
    /// Value before.
    pub from: Value,
    /// Value after.
    pub to: Value,
    /// Who changed it.
    pub by: String,
    /// Why, if they said.
    pub reason: Option<String>,
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
}

/// Why a change was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeverError {
    /// No lever has this name.
    #[error("no lever is called `{name}`{}", nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The most similar name, when one is close.
        nearest: Option<&'static str>,
    },
    /// The value has the right type and is out of range.
    #[error("`{name}` must be {allowed}, got {got}")]
    OutOfRange {
        /// Which lever.
        name: &'static str,
        /// The range, such as `from 1 to 500 per second`.
        allowed: String,
        /// The value that was asked for, as JSON.
        got: String,
    },
    /// The value has the wrong type.
    #[error("`{name}` takes {expected}, got {got}")]
    WrongType {
        /// Which lever.
        name: &'static str,
        /// What it takes, such as `a whole number`.
        expected: &'static str,
        /// The value that was asked for, as JSON.
        got: String,
    },
}

// === impl Lever ===

impl<T: LeverValue> Lever<T> {
    /// A value that no registry knows and nobody can change: for tests, and for parts used on their own.
    #[must_use]
    pub fn fixed(value: T) -> Self {
        Self::on(Arc::new(AtomicU64::new(value.to_bits())))
    }

    /// The value in force. One atomic load.
    #[must_use]
    pub fn get(&self) -> T {
        T::from_bits(self.bits.load(Ordering::Relaxed))
    }

    fn on(bits: Arc<AtomicU64>) -> Self {
        Self { bits, of: std::marker::PhantomData }
    }
}

impl<T> Clone for Lever<T> {
    fn clone(&self) -> Self {
        Self { bits: Arc::clone(&self.bits), of: std::marker::PhantomData }
    }
}

// === impl LeverError ===

impl LeverError {
    /// No lever has the name that was asked for.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

#[cfg(test)]
mod tests;
