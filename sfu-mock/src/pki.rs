//! A certificate authority for the fleet, and a certificate for each node.
//!
//! The CA's subject is fixed, so whoever holds its key can issue: clusters in several processes
//! share a CA by sharing a directory, and it does not matter which of them came first. A node's
//! certificate is made at its first handshake: a thousand nodes then start without a thousand keys.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sfu_api::SfuId;

use crate::Error;

const CA_NAME: &str = "Trunkline mock SFU CA";
const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca-key.pem";

/// The fleet's certificate authority.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// Makes a node's certificate when it is first asked for.
struct NodeCertificate {
    authority: Arc<Authority>,
    id: SfuId,
    ip: IpAddr,
    made: OnceLock<Option<Arc<CertifiedKey>>>,
}

// === impl Authority ===

impl Authority {
    /// A new CA that lives in memory only.
    pub(crate) fn new() -> Result<Self, Error> {
        Self::with_key(new_key()?)
    }

    /// The CA kept in `dir`, made there if there is none. Safe when several processes start at once.
    pub(crate) fn in_dir(dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(|e| Error::file(dir, e))?;
        let path = dir.join(CA_KEY_FILE);
        let pem = match fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(e) if e.kind() == io::ErrorKind::NotFound => keep_first(&path, &new_key()?.serialize_pem())?,
            Err(e) => return Err(Error::file(&path, e)),
        };
        let key = KeyPair::from_pem(&pem)
            .map_err(|e| Error::file(&path, io::Error::new(io::ErrorKind::InvalidData, e.to_string())))?;
        let authority = Self::with_key(key)?;
        let certificate = dir.join(CA_FILE);
        if !certificate.exists() {
            replace_file(&certificate, &authority.pem, false)?;
        }
        Ok(authority)
    }

    fn with_key(key: KeyPair) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, CA_NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params);
        let pem = params.self_signed(&key).map_err(Error::certificate)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// The CA's certificate, for clients to trust.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    fn issue(&self, id: &SfuId, ip: IpAddr) -> Result<CertifiedKey, Error> {
        let mut params = CertificateParams::new(vec![id.as_str().to_owned()]).map_err(Error::certificate)?;
        let uri = Ia5String::try_from(format!("trunkline:sfu:{id}")).map_err(Error::certificate)?;
        params.subject_alt_names.extend([SanType::IpAddress(ip), SanType::URI(uri)]);
        params.distinguished_name.push(DnType::CommonName, id.as_str());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        set_validity(&mut params);
        let key = new_key()?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(Error::certificate)?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = provider.key_provider.load_private_key(der).map_err(Error::certificate)?;
        Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
    }
}

/// What all nodes have in common; [`for_node`] adds the certificate.
pub(crate) fn base_config() -> Result<rustls::ServerConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::certificate)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets instead of a session cache: resumption without memory per node.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(Error::certificate)?;
    Ok(config)
}

/// The TLS configuration of one node.
pub(crate) fn for_node(
    base: &rustls::ServerConfig,
    authority: &Arc<Authority>,
    id: &SfuId,
    ip: IpAddr,
) -> Arc<rustls::ServerConfig> {
    let mut config = base.clone();
    let authority = Arc::clone(authority);
    config.cert_resolver = Arc::new(NodeCertificate { authority, id: id.clone(), ip, made: OnceLock::new() });
    Arc::new(config)
}

fn new_key() -> Result<KeyPair, Error> {
    // P-256 rather than Ed25519: browsers and older command-line tools accept it.
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::certificate)
}

fn set_validity(params: &mut CertificateParams) {
    // Fixed dates, so that certificates do not depend on the clock; tests may simulate one.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2070, 1, 1);
}

/// Writes `content` unless the file exists, and returns what it holds then: the first one wins.
fn keep_first(path: &Path, content: &str) -> Result<String, Error> {
    let mine = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4().simple()));
    write_new(&mine, content, true)?;
    let linked = fs::hard_link(&mine, path);
    fs::remove_file(&mine).map_err(|e| Error::file(&mine, e))?;
    match linked {
        Ok(()) => Ok(content.to_owned()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::read_to_string(path).map_err(|e| Error::file(path, e))
        }
        Err(e) => Err(Error::file(path, e)),
    }
}

/// Replaces a file in one step, so that a reader never sees half of it.
pub(crate) fn replace_file(path: &Path, content: &str, secret: bool) -> Result<(), Error> {
    let new = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4().simple()));
    write_new(&new, content, secret)?;
    fs::rename(&new, path).map_err(|e| Error::file(path, e))
}

fn write_new(path: &Path, content: &str, secret: bool) -> Result<(), Error> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if secret { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = secret;
    let mut file = options.open(path).map_err(|e| Error::file(path, e))?;
    file.write_all(content.as_bytes()).map_err(|e| Error::file(path, e))
}

// === impl NodeCertificate ===

impl ResolvesServerCert for NodeCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let make = || match self.authority.issue(&self.id, self.ip) {
            Ok(key) => Some(Arc::new(key)),
            Err(error) => {
                tracing::error!(sfu = %self.id, %error, "cannot issue a certificate");
                None
            }
        };
        self.made.get_or_init(make).clone()
    }
}

impl fmt::Debug for NodeCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCertificate").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Stands in the shared configuration, which is never served from.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_that_share_a_directory_share_the_ca() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let one = Authority::in_dir(dir.path()).expect("made");
        let two = Authority::in_dir(dir.path()).expect("loaded");
        assert_eq!(one.issuer.key().serialize_pem(), two.issuer.key().serialize_pem());
        let written = fs::read_to_string(dir.path().join(CA_FILE)).expect("written");
        assert_eq!(written, one.pem());
    }

    #[test]
    fn clusters_that_start_at_once_agree_on_the_first_key() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let start = std::sync::Barrier::new(8);
        let key = || {
            start.wait();
            Authority::in_dir(dir.path()).expect("made or loaded").issuer.key().serialize_pem()
        };
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(key)).collect();
            threads.into_iter().map(|thread| thread.join().expect("ran")).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        let files = fs::read_dir(dir.path()).expect("a directory").count();
        assert_eq!(files, 2, "only the key and the certificate are left");
    }

    #[cfg(unix)]
    #[test]
    fn the_ca_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        Authority::in_dir(dir.path()).expect("made");
        let mode = fs::metadata(dir.path().join(CA_KEY_FILE)).expect("written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_broken_ca_key_is_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join(CA_KEY_FILE), "not a key").expect("written");
        let error = Authority::in_dir(dir.path()).expect_err("refused");
        assert!(error.to_string().contains(CA_KEY_FILE), "{error}");
    }
}
