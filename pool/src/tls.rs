//! TLS settings for lanes.
//!
//! aws-lc-rs is the only provider, named explicitly so that nothing depends on which default a process
//! installed. The size of the session store matters more than it looks: rustls remembers 32 servers by
//! default, and with 33 hosts in rotation *no* handshake resumes. A lane therefore replaces the store by
//! its own, sized from [`LaneLimits::origins_max`](crate::LaneLimits::origins_max).

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::{ClientConfig, Resumption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::Error;

/// TLS 1.3 tickets that rustls keeps per server; its store counts tickets, not servers.
const TICKETS_PER_SERVER: usize = 8;

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
pub(crate) fn with_own_sessions(config: &ClientConfig, servers: usize) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.resumption = sessions(servers);
    Arc::new(config)
}

fn sessions(servers: usize) -> Resumption {
    Resumption::in_memory_sessions(servers.saturating_mul(TICKETS_PER_SERVER))
}

// === impl ClientCert ===

impl fmt::Debug for ClientCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCert").finish_non_exhaustive()
    }
}
