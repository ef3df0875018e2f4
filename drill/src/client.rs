//! HTTP clients and targets: TLS with the given CA, HTTP/2 where the server speaks it.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::error::{Error, chain};

/// A dial that takes longer counts as an unreachable syncer.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// HTTP/2 pings find a dead connection under an idle watch.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_MAX: Duration = Duration::from_secs(5);

/// What a drill talks to.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    /// Base URLs of the syncers; gateways spread over them.
    pub syncers: Vec<String>,
    /// Certificates (PEM, any number) that syncers and SFUs are trusted by.
    pub ca_pem: Option<String>,
    /// Base URLs of the mock SFUs' control ports; without, nothing can be broken or counted there.
    pub controls: Vec<String>,
    /// `id:token` of the gateways, in order; a gateway without one uses its own name for both.
    pub gateway_tokens: Vec<String>,
    /// Bearer token for levers and status.
    pub operator_token: Option<String>,
}

// === impl Targets ===

impl Targets {
    pub(crate) fn validated(mut self) -> Result<Self, Error> {
        if self.syncers.is_empty() {
            return Err(Error::target("no syncer was given (--syncer URL)"));
        }
        for url in self.syncers.iter_mut().chain(&mut self.controls) {
            let parsed = reqwest::Url::parse(url).map_err(|e| Error::target(format!("`{url}` is not a URL: {e}")))?;
            if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
                return Err(Error::target(format!("`{url}` is not an http or https URL")));
            }
            url.truncate(url.trim_end_matches('/').len());
        }
        if self.ca_pem.is_none() && self.syncers.iter().any(|url| url.starts_with("https")) {
            return Err(Error::ca("https syncers need a CA to trust (--ca FILE)"));
        }
        Ok(self)
    }

    /// Id and bearer token of gateway `ix`, which would call itself `name`.
    pub(crate) fn gateway(&self, ix: usize, name: String) -> (String, String) {
        match self.gateway_tokens.get(ix).map(|pair| pair.split_once(':').unwrap_or((pair, pair))) {
            Some((id, token)) => (id.to_owned(), token.to_owned()),
            None => (name.clone(), name),
        }
    }
}

/// TLS that trusts exactly the given certificates.
pub(crate) fn tls(ca_pem: Option<&str>) -> Result<rustls::ClientConfig, Error> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(pem) = ca_pem {
        for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let cert = cert.map_err(|e| Error::ca(format!("not PEM: {e}")))?;
            roots.add(cert).map_err(|e| Error::ca(format!("not a usable certificate: {e}")))?;
        }
        if roots.is_empty() {
            return Err(Error::ca("no certificate in it"));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::ca(chain(&e)))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A client of its own connections, as each gateway is a process of its own.
pub(crate) fn client(tls: &rustls::ClientConfig) -> Result<reqwest::Client, Error> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .no_proxy()
        .connect_timeout(CONNECT_MAX)
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_MAX)
        .http2_keep_alive_while_idle(true)
        .user_agent(concat!("trunkline-drill/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| Error::target(chain(&e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(url: &str) -> Targets {
        Targets { syncers: vec![url.to_owned()], ..Targets::default() }
    }

    #[test]
    fn wrong_targets_are_named() {
        assert!(targets("ftp://x").validated().expect_err("refused").to_string().contains("`ftp://x`"));
        assert!(targets("https://x").validated().expect_err("refused").to_string().contains("CA"));
        assert!(Targets::default().validated().expect_err("refused").is_config());
        assert_eq!(targets("http://x:1/").validated().expect("fine").syncers, ["http://x:1"]);
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let error = tls(Some("hello")).expect_err("refused");
        assert!(error.is_config() && error.to_string().contains("no certificate"), "{error}");
    }
}
