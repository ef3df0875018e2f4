//! The files a configuration names: read early, and named when they are wrong.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::load::read_text;
use super::{Callers, Config, ConfigError, TlsConfig};

/// What both ends speak, in order of preference.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Client sessions kept for resumption: rustls' default of 32 servers forgets a fleet of SFUs.
/// 8 × 25,000 origins would be exact; a fleet of that size resumes what it used last.
const SESSIONS_KEPT_MAX: usize = 65_536;

// === impl Config ===

impl Config {
    pub(super) fn check_files(&self) -> Result<(), ConfigError> {
        self.server_tls()?;
        self.sfu_tls()?;
        self.peer_tls()?;
        if let Some(path) = &self.auth.callers_file {
            Callers::read(path)?;
        }
        for (key, path) in [
            ("members_file", &self.members_file),
            ("sfus_file", &self.sfus_file),
            ("token_key_file", &self.token_key_file),
        ] {
            if let Some(path) = path {
                read_text(path).map_err(|e| e.with_key(key))?;
            }
        }
        Ok(())
    }

    /// TLS of the API, when it has any.
    ///
    /// # Errors
    ///
    /// Names the file that is unreadable or does not fit.
    pub fn server_tls(&self) -> Result<Option<Arc<ServerConfig>>, ConfigError> {
        self.tls.as_ref().map(|tls| tls.load(self.auth.client_ca_file.as_deref())).transpose()
    }

    /// TLS towards the SFUs.
    ///
    /// # Errors
    ///
    /// Names the file that is unreadable or holds no certificate authority.
    pub fn sfu_tls(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        client(self.sfu_ca_file.as_deref(), "sfu_ca_file")
    }

    /// TLS towards the other syncers.
    ///
    /// # Errors
    ///
    /// Names the file that is unreadable or holds no certificate authority.
    pub fn peer_tls(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        client(self.peer_ca_file.as_deref(), "peer_ca_file")
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let text = read_text(path).map_err(|e| e.with_key(key))?;
    let bad = |m: String| ConfigError::file(path, None, m).with_key(key);
    let found: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| bad(format!("is not PEM: {e}")))?;
    if found.is_empty() {
        return Err(bad("holds no certificate (PEM, `-----BEGIN CERTIFICATE-----`)".to_owned()));
    }
    Ok(found)
}

fn authorities(ca: Option<&Path>, key: &str) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let bad = |m: String| ConfigError::file(path, None, m).with_key(key);
        for der in certificates(path, key)? {
            let (_, parsed) = X509Certificate::from_der(&der)
                .map_err(|e| bad(format!("holds a certificate that cannot be read: {e}")))?;
            if !parsed.is_ca() {
                let subject = parsed.subject().to_string();
                return Err(bad(format!(
                    "`{subject}` is no certificate authority; name the authority that signed the certificates, not one of them"
                )));
            }
            roots.add(der.clone()).map_err(|e| bad(format!("holds a certificate that cannot be trusted: {e}")))?;
        }
    }
    Ok(roots)
}

/// TLS towards servers whose certificates these authorities signed.
pub(crate) fn client(ca: Option<&Path>, key: &str) -> Result<Arc<ClientConfig>, ConfigError> {
    let roots = authorities(ca, key)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| ConfigError::new(super::Source::Whole, format!("tls: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = ALPN.iter().map(|p| p.to_vec()).collect();
    config.resumption = rustls::client::Resumption::in_memory_sessions(SESSIONS_KEPT_MAX);
    Ok(Arc::new(config))
}

fn client_verifier(ca: &Path) -> Result<Arc<dyn ClientCertVerifier>, ConfigError> {
    let key = "auth.client_ca_file";
    let roots = authorities(Some(ca), key)?;
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| ConfigError::file(ca, None, format!("cannot be used: {e}")).with_key(key))
}

// === impl TlsConfig ===

impl TlsConfig {
    /// Reads the certificate and its key, which must fit, and the authorities of callers: a client may
    /// then show a certificate, and one that they did not sign ends the handshake.
    pub(crate) fn load(&self, client_ca: Option<&Path>) -> Result<Arc<ServerConfig>, ConfigError> {
        let chain = certificates(&self.cert, "tls.cert")?;
        let text = read_text(&self.key).map_err(|e| e.with_key("tls.key"))?;
        let bad_key = |m: String| ConfigError::file(&self.key, None, m).with_key("tls.key");
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|e| bad_key(format!("holds no private key: {e}")))?;
        let verifier = client_ca.map(client_verifier).transpose()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| ConfigError::new(super::Source::Whole, format!("tls: {e}")))?
            .with_client_cert_verifier(verifier.unwrap_or_else(WebPkiClientVerifier::no_client_auth))
            .with_single_cert(chain, key)
            .map_err(|e| bad_key(format!("does not fit {}: {e}", self.cert.display())))?;
        config.alpn_protocols = ALPN.iter().map(|p| p.to_vec()).collect();
        Ok(Arc::new(config))
    }
}
