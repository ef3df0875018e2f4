//! The files a configuration names: read early, and named when they are wrong.

use std::path::{Path, PathBuf};
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

/// The files of TLS towards servers, each with the key that names it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientTls {
    ca: (&'static str, Option<PathBuf>),
    cert: (&'static str, Option<PathBuf>),
    key: (&'static str, Option<PathBuf>),
}

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
    /// Names the file that is unreadable, holds no certificate authority, or does not fit the other.
    pub fn sfu_tls(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        self.sfu_client().load()
    }

    /// The files of [`Self::sfu_tls`].
    pub(crate) fn sfu_client(&self) -> ClientTls {
        ClientTls {
            ca: ("sfu_ca_file", self.sfu_ca_file.clone()),
            cert: ("sfu_cert_file", self.sfu_cert_file.clone()),
            key: ("sfu_key_file", self.sfu_key_file.clone()),
        }
    }

    /// TLS towards the other syncers.
    ///
    /// # Errors
    ///
    /// Names the file that is unreadable or holds no certificate authority.
    pub fn peer_tls(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        self.peer_client().load()
    }

    /// The files of [`Self::peer_tls`]. Syncers believe each other by their secret, so they show no certificate.
    pub(crate) fn peer_client(&self) -> ClientTls {
        ClientTls { ca: ("peer_ca_file", self.peer_ca_file.clone()), ..ClientTls::default() }
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

fn private_key(path: &Path, key: &str) -> Result<PrivateKeyDer<'static>, ConfigError> {
    let text = read_text(path).map_err(|e| e.with_key(key))?;
    let bad = |e| ConfigError::file(path, None, format!("holds no private key: {e}")).with_key(key);
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(bad)
}

fn client_verifier(ca: &Path) -> Result<Arc<dyn ClientCertVerifier>, ConfigError> {
    let key = "auth.client_ca_file";
    let roots = authorities(Some(ca), key)?;
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| ConfigError::file(ca, None, format!("cannot be used: {e}")).with_key(key))
}

// === impl ClientTls ===

impl ClientTls {
    /// All that are configured.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        [&self.ca, &self.cert, &self.key].into_iter().filter_map(|(_, path)| path.clone()).collect()
    }

    /// TLS towards servers whose certificates these authorities signed, and for those that ask who we are.
    pub(crate) fn load(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        let roots = authorities(self.ca.1.as_deref(), self.ca.0)?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| ConfigError::new(super::Source::Whole, format!("tls: {e}")))?
            .with_root_certificates(roots);
        let mut config = match (&self.cert, &self.key) {
            ((_, None), (_, None)) => builder.with_no_client_auth(),
            ((cert_key, Some(cert)), (key_key, Some(key))) => {
                let chain = certificates(cert, cert_key)?;
                let misfit = |e| ConfigError::file(key, None, format!("does not fit {}: {e}", cert.display()));
                builder
                    .with_client_auth_cert(chain, private_key(key, key_key)?)
                    .map_err(|e| misfit(e).with_key(*key_key))?
            }
            ((given, Some(_)), (missing, None)) | ((missing, None), (given, Some(_))) => {
                let message = format!("needed with `{given}`: a certificate is shown with its key, or not at all");
                return Err(ConfigError::new(super::Source::Whole, message).with_key(*missing));
            }
        };
        config.alpn_protocols = ALPN.iter().map(|p| p.to_vec()).collect();
        config.resumption = rustls::client::Resumption::in_memory_sessions(SESSIONS_KEPT_MAX);
        Ok(Arc::new(config))
    }
}

// === impl TlsConfig ===

impl TlsConfig {
    /// Reads the certificate and its key, which must fit, and the authorities of callers: a client may
    /// then show a certificate, and one that they did not sign ends the handshake.
    pub(crate) fn load(&self, client_ca: Option<&Path>) -> Result<Arc<ServerConfig>, ConfigError> {
        let chain = certificates(&self.cert, "tls.cert")?;
        let key = private_key(&self.key, "tls.key")?;
        let bad_key = |m: String| ConfigError::file(&self.key, None, m).with_key("tls.key");
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
