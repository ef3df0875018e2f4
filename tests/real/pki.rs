//! A certificate authority for one test.

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// An authority that lives as long as its test.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A server certificate with its key.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) chain_pem: String,
    pub(crate) key_pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Trunkline test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("randomness");
        let pem = params.self_signed(&key).expect("a valid certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// The certificate to trust.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for 127.0.0.1.
    pub(crate) fn issue(&self) -> Identity {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a valid name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("randomness");
        let certificate = params.signed_by(&key, &self.issuer).expect("a valid certificate");
        Identity { chain_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}
