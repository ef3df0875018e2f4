//! TLS settings for lanes.
//!
//! aws-lc-rs is the only provider, named explicitly so that nothing depends on which default a process
//! installed. The size of the session store matters more than it looks: rustls remembers 32 servers by
//! default, and with 33 hosts in rotation *no* handshake resumes. A lane therefore replaces the store by
//! its own, sized from [`LaneLimits::origins_max`](crate::LaneLimits::origins_max).

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustc_hash::FxBuildHasher;
use rustls::client::{
    ClientConfig, ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{NamedGroup, RootCertStore};

use crate::error::Error;

/// TLS 1.3 tickets that rustls keeps per server; its store counts tickets, not servers.
const TICKETS_PER_SERVER: usize = 8;

/// Parts of a session store: a lane has eight partitions, and two handshakes at once rarely meet in one of 16.
const SESSION_PARTS: usize = 16;

/// Servers a lane remembers at most: rustls makes room for all of them at once, about 200 bytes each. Four times the
/// largest fleet; beyond it a handshake that could have resumed is a full one.
const SERVERS_MAX: usize = 131_072;

/// Servers remembered by a configuration that no lane has sized yet.
const SERVERS_DEFAULT: usize = 4_096;

/// A client certificate with its key, for servers that ask for one (mTLS).
#[derive(Clone)]
pub struct ClientCert {
    /// The certificate and its intermediates, PEM.
    pub chain_pem: Vec<u8>,
    /// The private key, PEM. Never logged.
    pub key_pem: Vec<u8>,
}

/// Builds a configuration that trusts exactly the authorities in `ca_pem` and offers `h2` and
/// `http/1.1`.
///
/// # Errors
///
/// When `ca_pem` holds no certificate, or the client certificate or key cannot be read.
pub fn client_config(ca_pem: &[u8], client_cert: Option<&ClientCert>) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        roots.add(certificate.map_err(Error::config)?).map_err(Error::config)?;
    }
    if roots.is_empty() {
        return Err(Error::config("no certificate in the ca file"));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Error::config)?
        .with_root_certificates(roots);
    let mut config = match client_cert {
        None => builder.with_no_client_auth(),
        Some(cert) => {
            let chain: Vec<_> =
                CertificateDer::pem_slice_iter(&cert.chain_pem).collect::<Result<_, _>>().map_err(Error::config)?;
            let key = PrivateKeyDer::from_pem_slice(&cert.key_pem).map_err(Error::config)?;
            builder.with_client_auth_cert(chain, key).map_err(Error::config)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.resumption = sessions(SERVERS_DEFAULT);
    Ok(Arc::new(config))
}

/// The same settings with a session store of its own, large enough for `servers` servers.
fn with_own_sessions(config: &ClientConfig, servers: usize) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.resumption = sessions(servers);
    Arc::new(config)
}

fn sessions(servers: usize) -> Resumption {
    Resumption::store(Arc::new(Sessions::new(servers)))
}

/// The TLS settings of a lane, and a store of its own for its sessions.
#[derive(Debug)]
pub(crate) struct LaneTls {
    config: ArcSwapOption<ClientConfig>,
    /// Servers that the store has room for. Held while the settings change.
    servers: Mutex<usize>,
}

/// A session store in parts by server, each with a lock of its own: the partitions of a lane share the store
/// (what a certificate is good for does not depend on who dials), and should not wait for one another.
#[derive(Debug)]
struct Sessions {
    parts: [ClientSessionMemoryCache; SESSION_PARTS],
}

// === impl LaneTls ===

impl LaneTls {
    pub(crate) fn new(config: Option<&ClientConfig>, servers: usize) -> Self {
        let config = config.map(|config| with_own_sessions(config, servers));
        Self { config: ArcSwapOption::new(config), servers: Mutex::new(servers) }
    }

    pub(crate) fn config(&self) -> Option<Arc<ClientConfig>> {
        self.config.load_full()
    }

    /// Changes the settings, with an empty store.
    pub(crate) fn set(&self, config: &ClientConfig) {
        let before = {
            let servers = self.servers.lock();
            self.config.swap(Some(with_own_sessions(config, *servers)))
        };
        drop(before); // What is in it is other people's code.
    }

    /// Sees to it that the store has room for so many servers. A larger one begins empty: that costs one full handshake
    /// with each server.
    pub(crate) fn make_room(&self, servers: usize) {
        let before = {
            let mut room = self.servers.lock();
            if servers <= *room {
                return;
            }
            let grows = servers.min(SERVERS_MAX) > *room;
            *room = servers;
            let config = self.config.load_full().filter(|_| grows);
            config.and_then(|config| self.config.swap(Some(with_own_sessions(&config, servers))))
        };
        drop(before);
    }
}

// === impl Sessions ===

impl Sessions {
    fn new(servers: usize) -> Self {
        // Hashing is even only on average: half as much again keeps the whole reachable.
        let part = (servers.min(SERVERS_MAX) * 3).div_ceil(2 * SESSION_PARTS).max(TICKETS_PER_SERVER);
        Self { parts: std::array::from_fn(|_| ClientSessionMemoryCache::new(part * TICKETS_PER_SERVER)) }
    }

    fn part(&self, server: &ServerName<'_>) -> &ClientSessionMemoryCache {
        let hash = FxBuildHasher.hash_one(server);
        let at = usize::try_from(hash >> 32).unwrap_or(0) % SESSION_PARTS;
        &self.parts[at]
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.part(&server).set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.part(server).kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.part(&server).set_tls12_session(server, session);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.part(server).tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.part(server).remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.part(&server).insert_tls13_ticket(server, ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.part(server).take_tls13_ticket(server)
    }
}

// === impl ClientCert ===

impl fmt::Debug for ClientCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCert").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r05_the_store_of_a_lane_grows_and_is_kept_when_it_need_not() {
        let ca = rcgen::generate_simple_self_signed(vec!["sfu".to_owned()]).expect("certificate");
        let config = client_config(ca.cert.pem().as_bytes(), None).expect("tls");
        let tls = LaneTls::new(Some(&config), 100);
        let is_kept = |servers| {
            let before = tls.config().expect("settings");
            tls.make_room(servers);
            Arc::ptr_eq(&before, &tls.config().expect("settings"))
        };
        assert!(is_kept(50) && is_kept(100), "there is room");
        assert!(!is_kept(1_000) && is_kept(1_000), "it grows once");
        tls.set(&config);
        assert!(is_kept(1_000), "new settings have as much room");
        assert!(!is_kept(SERVERS_MAX) && is_kept(2 * SERVERS_MAX), "and no more than there is ever");
    }

    #[test]
    fn r05_a_store_remembers_every_server_it_is_sized_for() {
        for servers in [1, 33, 1_000] {
            let sessions = Sessions::new(servers);
            let name = |n: usize| ServerName::try_from(format!("127.{}.{}.1", n / 250, n % 250)).expect("address");
            (0..servers).for_each(|n| sessions.set_kx_hint(name(n), NamedGroup::X25519));
            let known = (0..servers).filter(|n| sessions.kx_hint(&name(*n)).is_some()).count();
            assert_eq!(known, servers);
        }
    }
}
