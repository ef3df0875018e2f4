//! The embedded registry's memory across restarts: the counter that terms come from.
//!
//! Only an upper bound is written, a block of revisions at a time, so that a claim seldom waits for
//! a disk; after a restart counting goes on above the bound. Losing the file is survivable: SFUs
//! then show their higher terms and the registry resumes above them.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Revisions reserved by one write: a start claims 4,096 slots in 64 transactions, so a start and
/// many changes of the roster fit one block.
const BLOCK_REVISIONS: u64 = 1024;
/// The file within the state directory.
const FILE_NAME: &str = "registry.json";

/// The counter could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", .path.display())]
pub struct StoreError {
    path: PathBuf,
    what: String,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    generation: u64,
    /// Every revision given out so far is at most this.
    revision_bound: u64,
}

/// The counter of terms.
#[derive(Debug)]
pub(super) struct Store {
    path: Option<PathBuf>,
    pub(super) generation: u64,
    pub(super) revision: u64,
    bound: u64,
}

// === impl Store ===

impl Store {
    /// A counter that is forgotten with the process. It starts at the time of day in milliseconds, so
    /// that the terms of the next process are higher all the same; should the clock have been set
    /// back, SFUs refuse them and say what they have seen.
    pub(super) fn forgetful() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let revision = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX / 2);
        Self { path: None, generation: 1, revision, bound: u64::MAX }
    }

    /// Continues above what the directory remembers.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE_NAME);
        let error = |what: String| StoreError { path: path.clone(), what };
        std::fs::create_dir_all(dir).map_err(|e| error(e.to_string()))?;
        let stored = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                error(format!("is damaged ({e}); remove it to start over: SFUs will show the terms they have seen"))
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Stored { generation: 1, revision_bound: 0 },
            Err(e) => return Err(error(e.to_string())),
        };
        let bound = stored.revision_bound;
        if bound > u64::MAX / 2 {
            return Err(error(format!(
                "says that {bound} revisions were given out, more than can be; remove it to start over: \
                SFUs will show the terms they have seen"
            )));
        }
        let mut store = Self { path: Some(path), generation: stored.generation, revision: bound, bound };
        // Written at once: a directory that cannot be written is found now and not at a claim.
        store.reserve()?;
        Ok(store)
    }

    /// The next revision.
    pub(super) fn next(&mut self) -> Result<u64, StoreError> {
        if self.revision >= self.bound {
            self.reserve()?;
        }
        self.revision += 1;
        Ok(self.revision)
    }

    /// Continues above this term.
    pub(super) fn resume_above(&mut self, generation: u64, revision: u64) -> Result<(), StoreError> {
        if (generation, revision) < (self.generation, self.revision) {
            return Ok(());
        }
        (self.generation, self.revision) = (generation, revision);
        self.reserve()
    }

    fn reserve(&mut self) -> Result<(), StoreError> {
        let Some(path) = &self.path else { return Ok(()) };
        let stored =
            Stored { generation: self.generation, revision_bound: self.revision.saturating_add(BLOCK_REVISIONS) };
        write_whole(path, &stored).map_err(|e| StoreError { path: path.clone(), what: e.to_string() })?;
        self.bound = stored.revision_bound;
        Ok(())
    }
}

/// Writes beside and renames, so that a crash leaves the old file or the new one.
fn write_whole(path: &Path, stored: &Stored) -> std::io::Result<()> {
    let beside = path.with_extension("json.new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(stored)?)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_grow_across_restarts() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut last = (0, 0);
        for _ in 0..3 {
            let mut store = Store::open(dir.path()).expect("opens");
            for _ in 0..(BLOCK_REVISIONS + 10) {
                let next = (store.generation, store.next().expect("counts"));
                assert!(next > last, "{next:?} after {last:?}");
                last = next;
            }
        }
        let mut store = Store::open(dir.path()).expect("opens");
        store.resume_above(7, 3).expect("resumes");
        store.resume_above(1, 1).expect("nothing to do");
        drop(store);
        let mut store = Store::open(dir.path()).expect("opens");
        assert!((store.generation, store.next().expect("counts")) > (7, 3));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(FILE_NAME), "{").expect("written");
        let e = Store::open(dir.path()).expect_err("damaged");
        assert!(e.to_string().contains(FILE_NAME), "{e}");
    }
}
