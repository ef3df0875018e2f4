//! Certificates and keys of a fleet that lives as long as one run.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, SanType,
};

use crate::exit::{Exit, Failure, WithExit};

/// Files of the syncers' side.
pub(super) struct Pki {
    /// Who signed the syncers' certificate (PEM text).
    pub(super) ca_pem: String,
    /// The same, as a file.
    pub(super) ca: PathBuf,
    /// Certificate of every syncer: they differ by port only.
    pub(super) certificate: PathBuf,
    /// Its key.
    pub(super) key: PathBuf,
    /// Key that signs session tokens, shared by the syncers.
    pub(super) token_key: PathBuf,
}

// === impl Pki ===

impl Pki {
    /// Makes an authority, one certificate for loopback and a token key, and writes them to `dir`.
    pub(super) fn in_dir(dir: &Path) -> Result<Self, Failure> {
        let bug = "making a certificate";
        let ca_key = KeyPair::generate().or_exit(Exit::Bug, bug)?;
        let ca_params = authority();
        let ca_pem = ca_params.self_signed(&ca_key).or_exit(Exit::Bug, bug)?.pem();
        let issuer = Issuer::new(ca_params, ca_key);
        let key = KeyPair::generate().or_exit(Exit::Bug, bug)?;
        let certificate = leaf()?.signed_by(&key, &issuer).or_exit(Exit::Bug, bug)?.pem();
        let token_key = KeyPair::generate_for(&PKCS_ED25519).or_exit(Exit::Bug, bug)?;
        Ok(Self {
            ca: write(dir, "syncer-ca.pem", &ca_pem)?,
            ca_pem,
            certificate: write(dir, "syncer.pem", &certificate)?,
            key: write(dir, "syncer-key.pem", &key.serialize_pem())?,
            token_key: write(dir, "token-key.pem", &token_key.serialize_pem())?,
        })
    }
}

/// Writes a file that nobody else on the machine can read: some hold keys.
pub(super) fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf, Failure> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join(name);
    let shown = path.display().to_string();
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.or_exit(Exit::Failed, format!("writing {shown}"))?;
    Ok(path)
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Trunkline dev CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf() -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).or_exit(Exit::Bug, "naming a certificate")?;
    params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    params.distinguished_name.push(DnType::CommonName, "Trunkline dev syncer");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}
