//! The files that are followed: read at the start, and again when they change or on SIGHUP.
//!
//! A file is read again once it looked the same twice in a row, so that one which is being written
//! is not read half; SIGHUP reads at once. Whatever cannot be used changes nothing, is counted, and
//! is logged once with what to do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pool::Lane;
use rustls::ServerConfig;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::StartError;
use crate::api::{App, Auth, HttpMetrics};
use crate::config::{Callers, ClientTls, Config, ConfigError, TlsConfig};
use crate::registry::{Registry, RegistryError, read_members, read_sfus};
use crate::token::{KeyError, Signer};

/// How often a file is looked at: its directory entry is in memory, and an operator who waits a
/// few seconds longer than that begins to doubt.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What files looked like: when each was modified, and its length.
type Look = Vec<Option<(SystemTime, u64)>>;

/// The files that one syncer follows.
#[derive(Debug)]
pub(super) struct Files {
    list: Vec<Followed>,
}

#[derive(Debug)]
struct Followed {
    what: What,
    paths: Vec<PathBuf>,
    state: Mutex<Followup>,
}

#[derive(Debug)]
enum What {
    Members,
    Sfus,
    /// Certificate and key of the API, authorities of its callers, and where connections to come take
    /// them from.
    Tls(TlsConfig, Option<PathBuf>, Arc<ArcSwap<ServerConfig>>),
    /// Tokens and certificates of callers.
    Callers(Arc<Auth>),
    /// The key that signs session tokens; the former one stays published.
    TokenKey(Arc<Signer>),
    /// Whom a lane's connections to come trust, and what they show.
    Client(Lane, ClientTls),
}

#[derive(Debug, Default)]
struct Followup {
    /// How the files looked when they were read.
    read: Look,
    /// How they looked last.
    last: Look,
    /// Ids of the last good list.
    good: BTreeSet<String>,
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("token_key_file: {0}")]
    Key(#[from] KeyError),
}

// === impl Files ===

impl Files {
    /// Follows the files that `config` names; `tls` is what new connections use, and `signer` what signs
    /// with the key of the file, if one of its own does.
    pub(super) fn new(
        config: &Config,
        tls: Option<Arc<ArcSwap<ServerConfig>>>,
        app: &App,
        signer: Option<&Arc<Signer>>,
    ) -> Self {
        let mut list = Vec::new();
        let mut follow = |what, paths| list.push(Followed { what, paths, state: Mutex::default() });
        if let Some(path) = &config.members_file {
            follow(What::Members, vec![path.clone()]);
        }
        if let Some(path) = &config.sfus_file {
            follow(What::Sfus, vec![path.clone()]);
        }
        if let (Some(files), Some(current)) = (&config.tls, tls) {
            let ca = config.auth.client_ca_file.clone();
            let paths = [files.cert.clone(), files.key.clone()].into_iter().chain(ca.clone()).collect();
            follow(What::Tls(files.clone(), ca, current), paths);
        }
        if let Some(path) = &config.auth.callers_file {
            follow(What::Callers(Arc::clone(&app.auth)), vec![path.clone()]);
        }
        if let (Some(path), Some(signer)) = (&config.token_key_file, signer) {
            follow(What::TokenKey(Arc::clone(signer)), vec![path.clone()]);
        }
        for (files, lane) in
            [(config.sfu_client(), app.sfu_lane.clone()), (config.peer_client(), app.peers.lane().clone())]
        {
            let paths = files.paths();
            if !paths.is_empty() {
                follow(What::Client(lane, files), paths);
            }
        }
        Self { list }
    }

    /// Reads all files; at the start each must be good.
    pub(super) async fn load_all(&self, registry: &dyn Registry) -> Result<(), StartError> {
        for file in &self.list {
            let look = file.look();
            *file.state.lock() = Followup { read: look.clone(), last: look, good: BTreeSet::new() };
            file.load(registry).await.map_err(|e| match e {
                LoadError::File(e) => StartError::from(e),
                LoadError::Registry(e) => StartError::from(e),
                LoadError::Key(e) => StartError::from(e),
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
            for file in &self.list {
                let look = file.look();
                if !file.state.lock().is_due(look, asked) {
                    continue;
                }
                match file.load(registry).await {
                    Ok(()) => tracing::info!(file = %file.paths[0].display(), "file read again"),
                    Err(error) => {
                        metrics.bad_files.inc();
                        tracing::error!(%error, "file cannot be used, the last good one stays in force");
                    }
                }
            }
        }
    }
}

// === impl Followup ===

impl Followup {
    /// Whether files that look like this now are to be read now.
    fn is_due(&mut self, look: Look, asked: bool) -> bool {
        let settled = self.last == look;
        self.last = look;
        let due = asked || (settled && self.read != self.last);
        if due {
            self.read.clone_from(&self.last);
        }
        due
    }
}

// === impl Followed ===

impl Followed {
    fn look(&self) -> Look {
        self.paths.iter().map(|p| look_at(p)).collect()
    }

    async fn load(&self, registry: &dyn Registry) -> Result<(), LoadError> {
        let path = &self.paths[0];
        let good = match &self.what {
            What::Members => {
                let listed = read_members(path)?;
                listed.check_after(path, &self.state.lock().good)?;
                registry.list_members(listed.entries).await?;
                listed.ids
            }
            What::Sfus => {
                let listed = read_sfus(path)?;
                listed.check_after(path, &self.state.lock().good)?;
                registry.put_sfus(listed.entries).await?;
                listed.ids
            }
            What::Tls(files, ca, current) => {
                current.store(files.load(ca.as_deref())?);
                return Ok(());
            }
            What::Callers(auth) => {
                auth.load(&Callers::read(path)?);
                return Ok(());
            }
            What::Client(lane, files) => {
                lane.set_tls(&*files.load()?);
                return Ok(());
            }
            What::TokenKey(signer) => return Ok(signer.rotate_to_pem_file(path)?),
        };
        if good.is_empty() {
            tracing::warn!(file = %path.display(), "file lists nothing");
        }
        self.state.lock().good = good;
        Ok(())
    }
}

/// Whether a first reading of the lists that `config` names would succeed.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    if let Some(path) = &config.members_file {
        read_members(path)?;
    }
    if let Some(path) = &config.sfus_file {
        read_sfus(path)?;
    }
    Ok(())
}

fn look_at(path: &Path) -> Option<(SystemTime, u64)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r06_a_file_is_read_when_it_has_settled_or_when_asked() {
        let look = |n: u64| vec![Some((SystemTime::UNIX_EPOCH, n))];
        let mut file = Followup { read: look(9), last: look(9), ..Followup::default() };
        assert!(!file.is_due(look(9), false), "unchanged");
        assert!(!file.is_due(look(0), false), "truncated just now");
        assert!(!file.is_due(look(4), false), "half written");
        assert!(!file.is_due(look(8), false), "whole, for all we know");
        assert!(file.is_due(look(8), false), "settled");
        assert!(!file.is_due(look(8), false), "read once");
        assert!(file.is_due(look(8), true), "asked, unchanged or not");
        assert!(!file.is_due(vec![None], false), "gone just now");
        assert!(file.is_due(vec![None], false), "gone is a change too");
    }
}
