//! Certificates for loopback hosts, signed by an authority made for the run.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ProducesTickets;

use super::Protocol;

/// Signs hosts' certificates. All hosts share one key: making keys is not what is measured.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    host_key: KeyPair,
    ticketer: Option<Arc<dyn ProducesTickets>>,
}

// === impl Authority ===

impl Authority {
    pub(super) fn new(tickets: bool, name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let ticketer = if tickets { Some(rustls::crypto::aws_lc_rs::Ticketer::new()?) } else { None };
        Ok(Self { issuer, host_key: KeyPair::generate()?, ticketer })
    }

    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The TLS settings of one host. Tickets are stateless, so a server forgets nobody.
    pub(super) fn host(&self, ip: Ipv4Addr, protocol: Protocol) -> Result<Arc<ServerConfig>> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(ip.into())];
        let cert = params.signed_by(&self.host_key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.host_key.serialize_der()));
        let chain = vec![CertificateDer::from(cert.der().to_vec())];
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = match protocol {
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 | Protocol::Mixed => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        match &self.ticketer {
            Some(ticketer) => config.ticketer = Arc::clone(ticketer),
            None => config.send_tls13_tickets = 0,
        }
        Ok(Arc::new(config))
    }
}
