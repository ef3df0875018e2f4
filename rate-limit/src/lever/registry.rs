//! The registry of levers: checks, applies and remembers changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use super::{Change, Lever, LeverError, LeverSpec, LeverValue, LeverView};

/// Changes remembered: an incident's worth of turning knobs, and a page that still loads at once.
pub const AUDIT_CHANGES_MAX: usize = 256;

/// Longest name or reason remembered with a change, in characters: a sentence or two.
const NOTE_CHARS_MAX: usize = 512;

/// How alike two names must be for one to be suggested for the other (Jaro-Winkler; 1 = the same).
const NEAREST_LIKENESS_MIN: f64 = 0.8;

/// All levers of a process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Levers {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    registry: Mutex<Registry>,
    generation: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Registry {
    levers: BTreeMap<&'static str, Entry>,
    audit: VecDeque<Change>,
}

type Check = Box<dyn Fn(&Value) -> Result<u64, LeverError> + Send + Sync>;

/// A lever without its type: what the type knew is in `check` and `show`.
struct Entry {
    bits: Arc<AtomicU64>,
    check: Check,
    show: fn(u64) -> Value,
    view: LeverView,
}

// === impl Levers ===

impl Levers {
    /// No levers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a lever and returns the handle that reads it.
    ///
    /// # Panics
    ///
    /// When the name is taken or the default is not in its own range: mistakes of the program, found
    /// on its first start.
    pub fn register<T: LeverValue>(&self, spec: LeverSpec<T>) -> Lever<T> {
        let LeverSpec { name, default, min, max, .. } = spec;
        assert!(min <= default && default <= max, "the default of lever `{name}` is out of its range");
        let bits = Arc::new(AtomicU64::new(default.to_bits()));
        let view = LeverView {
            name,
            value: default.to_json(),
            default: default.to_json(),
            min: min.to_json(),
            max: max.to_json(),
            unit: spec.unit,
            doc: spec.doc,
            changed_by: None,
            changed_at: None,
        };
        let check = Box::new(move |value: &Value| check(&spec, value));
        let show = |bits| T::from_bits(bits).to_json();
        let entry = Entry { bits: Arc::clone(&bits), check, show, view };
        let taken = self.inner.registry.lock().levers.insert(name, entry).is_some();
        assert!(!taken, "two levers are called `{name}`");
        Lever::on(bits)
    }

    /// Changes one lever.
    ///
    /// # Errors
    ///
    /// When the name is unknown, or the value has the wrong type or is out of range.
    pub fn set(
        &self,
        name: &str,
        value: &Value,
        by: &str,
        reason: Option<&str>,
        at_unix_ms: u64,
    ) -> Result<Change, LeverError> {
        let mut changes = self.set_all([(name, value)], by, reason, at_unix_ms)?;
        Ok(changes.remove(0))
    }

    /// Changes several levers, all or none. Setting a lever to the value it has is a change too: somebody decided it.
    ///
    /// # Errors
    ///
    /// The first one that is unknown, has the wrong type or is out of range; then nothing changes.
    pub fn set_all<'a>(
        &self,
        values: impl IntoIterator<Item = (&'a str, &'a Value)>,
        by: &str,
        reason: Option<&str>,
        at_unix_ms: u64,
    ) -> Result<Vec<Change>, LeverError> {
        let registry = &mut *self.inner.registry.lock();
        let checked = registry.check_all(values)?;
        let (by, reason) = (clip(by), reason.map(clip));
        let changes = checked
            .into_iter()
            .filter_map(|(name, bits)| {
                Some(registry.levers.get_mut(name)?.apply(bits, &by, reason.as_ref(), at_unix_ms))
            })
            .collect::<Vec<_>>();
        for change in &changes {
            tracing::info!(lever = change.name, from = %change.from, to = %change.to, by = change.by, reason = change.reason, "lever changed");
            registry.remember(change.clone());
        }
        self.inner.generation.send_modify(|generation| *generation += 1);
        Ok(changes)
    }

    /// Whether [`Self::set_all`] would take these values. Nothing changes.
    ///
    /// # Errors
    ///
    /// As [`Self::set_all`].
    pub fn check_all<'a>(&self, values: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Result<(), LeverError> {
        self.inner.registry.lock().check_all(values).map(|_| ())
    }

    /// Remembers an operator's act that is no lever, such as the block of one guild, beside those that are.
    pub fn note(&self, name: &'static str, to: Value, by: &str, reason: Option<&str>, at_unix_ms: u64) {
        let (by, reason) = (clip(by), reason.map(clip));
        tracing::info!(act = name, %to, by, reason, "operator acted");
        let change = Change { name, from: Value::Null, to, by, reason, at_unix_ms };
        self.inner.registry.lock().remember(change);
    }

    /// Every lever, by name.
    #[must_use]
    pub fn list(&self) -> Vec<LeverView> {
        self.inner.registry.lock().levers.values().map(|entry| entry.view.clone()).collect()
    }

    /// Every lever, by name, and the last changes, oldest first, of one moment: the values are those that the changes
    /// led to.
    #[must_use]
    pub fn list_and_audit(&self) -> (Vec<LeverView>, Vec<Change>) {
        let registry = self.inner.registry.lock();
        let levers = registry.levers.values().map(|entry| entry.view.clone()).collect();
        (levers, registry.audit.iter().cloned().collect())
    }

    /// The last [`AUDIT_CHANGES_MAX`] changes, oldest first.
    #[must_use]
    pub fn audit(&self) -> Vec<Change> {
        self.inner.registry.lock().audit.iter().cloned().collect()
    }

    /// Changes whenever a lever does; the value counts the changes.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.generation.subscribe()
    }
}

// === impl Registry ===

impl Registry {
    fn check_all<'a>(
        &self,
        values: impl IntoIterator<Item = (&'a str, &'a Value)>,
    ) -> Result<Vec<(&'static str, u64)>, LeverError> {
        let checked = |(name, value)| self.entry(name).and_then(|e| Ok((e.view.name, (e.check)(value)?)));
        values.into_iter().map(checked).collect()
    }

    fn remember(&mut self, change: Change) {
        self.audit.push_back(change);
        let excess = self.audit.len().saturating_sub(AUDIT_CHANGES_MAX);
        self.audit.drain(..excess);
    }

    fn entry(&self, name: &str) -> Result<&Entry, LeverError> {
        self.levers.get(name).ok_or_else(|| {
            let likeness = |known: &&'static str| strsim::jaro_winkler(name, known);
            let nearest = self.levers.keys().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
            let nearest = nearest.filter(|known| likeness(known) >= NEAREST_LIKENESS_MIN);
            LeverError::Unknown { name: clip(name), nearest }
        })
    }
}

// === impl Entry ===

impl Entry {
    fn apply(&mut self, bits: u64, by: &str, reason: Option<&String>, at_unix_ms: u64) -> Change {
        self.bits.store(bits, Ordering::Relaxed);
        let to = (self.show)(bits);
        let from = std::mem::replace(&mut self.view.value, to.clone());
        self.view.changed_by = Some(by.to_owned());
        self.view.changed_at = Some(at_unix_ms);
        Change { name: self.view.name, from, to, by: by.to_owned(), reason: reason.cloned(), at_unix_ms }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.view.fmt(f)
    }
}

fn check<T: LeverValue>(spec: &LeverSpec<T>, value: &Value) -> Result<u64, LeverError> {
    let got = || clip(&value.to_string());
    let typed = T::from_json(value).ok_or_else(|| LeverError::WrongType {
        name: spec.name,
        expected: T::EXPECTED,
        got: got(),
    })?;
    if spec.min <= typed && typed <= spec.max {
        return Ok(typed.to_bits());
    }
    let plain = |v: T| v.to_json().to_string().trim_matches('"').trim_end_matches(".0").to_owned();
    let allowed = format!("from {} to {} {}", plain(spec.min), plain(spec.max), spec.unit);
    Err(LeverError::OutOfRange { name: spec.name, allowed: allowed.trim_end().to_owned(), got: got() })
}

fn clip(text: &str) -> String {
    text.chars().take(NOTE_CHARS_MAX).collect()
}
