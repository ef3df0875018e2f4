//! The static files: read at the start, and again when they change or on SIGHUP.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::StartError;
use crate::api::HttpMetrics;
use crate::config::{Config, ConfigError};
use crate::registry::{Registry, RegistryError, read_members, read_sfus};

/// How often a file is looked at: its directory entry is in memory, and an operator who waits a
/// second longer than that begins to doubt.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a file looked like when it was read.
type Look = Option<(SystemTime, u64)>;

/// The static files of one syncer.
#[derive(Debug)]
pub(super) struct Files {
    list: Vec<(What, PathBuf, Mutex<Look>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Members,
    Sfus,
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

// === impl Files ===

impl Files {
    pub(super) fn new(config: &Config) -> Self {
        let named = [(What::Members, &config.members_file), (What::Sfus, &config.sfus_file)];
        let list = named.into_iter().filter_map(|(what, path)| Some((what, path.clone()?, Mutex::new(None))));
        Self { list: list.collect() }
    }

    /// Reads all files; at the start each must be good.
    pub(super) async fn load_all(&self, registry: &dyn Registry) -> Result<(), StartError> {
        for (what, path, look) in &self.list {
            *look.lock() = look_at(path);
            load(*what, path, registry).await.map_err(|e| match e {
                LoadError::File(e) => StartError::from(e),
                LoadError::Registry(e) => StartError::from(e),
            })?;
        }
        Ok(())
    }

    /// Reads files again when they change. A bad one changes nothing: the last good one stays.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub(super) async fn follow(&self, registry: &dyn Registry, metrics: &HttpMetrics, reload: &Notify) {
        let mut hangup = Hangup::new();
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                _ = tick.tick() => false,
                () = reload.notified() => true,
                () = hangup.received() => true,
            };
            for (what, path, look) in &self.list {
                let now = look_at(path);
                if !asked && now == *look.lock() {
                    continue;
                }
                *look.lock() = now;
                match load(*what, path, registry).await {
                    Ok(()) => tracing::info!(file = %path.display(), "file read again"),
                    Err(error) => {
                        metrics.bad_files.inc();
                        tracing::error!(%error, "file cannot be used, the last good one stays in force");
                    }
                }
            }
        }
    }
}

async fn load(what: What, path: &Path, registry: &dyn Registry) -> Result<(), LoadError> {
    match what {
        What::Members => registry.list_members(read_members(path)?).await?,
        What::Sfus => registry.put_sfus(read_sfus(path)?).await?,
    }
    Ok(())
}

fn look_at(path: &Path) -> Look {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// SIGHUP, where there is such a thing.
struct Hangup(#[cfg(unix)] Option<tokio::signal::unix::Signal>);

// === impl Hangup ===

impl Hangup {
    #[cfg(unix)]
    fn new() -> Self {
        Self(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok())
    }

    #[cfg(not(unix))]
    fn new() -> Self {
        Self()
    }

    async fn received(&mut self) {
        #[cfg(unix)]
        if let Some(signal) = &mut self.0
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}
