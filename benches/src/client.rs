//! A client of one connection: what the contestants without a pool of their own, and the raw loop, use.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use drill::legacy::Connection;
use http::{Request, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

/// Sessions remembered by every contestant: 8 tickets for each of 1,024 hosts. rustls' own default of 32
/// hosts would let nobody resume.
pub const SESSIONS: usize = 8 * 1_024;

/// An open connection.
#[derive(Debug)]
pub enum Sender {
    /// HTTP/1.1.
    H1(http1::SendRequest<Empty<Bytes>>),
    /// HTTP/2.
    H2(http2::SendRequest<Empty<Bytes>>),
}

/// TLS settings that trust `ca_pem` (several authorities, one after the other).
///
/// # Errors
///
/// When there is no certificate in it.
pub fn tls(ca_pem: &str) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(cert?)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

/// TCP and TLS.
///
/// # Errors
///
/// When either fails.
///
/// # Cancel safety
///
/// Dropping the future closes the connection.
pub async fn connect(addr: SocketAddr, tls: &Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::from(addr.ip());
    Ok(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?)
}

// === impl Sender ===

impl Sender {
    /// Connects within `connect_max`; the connection's driver runs on `tasks`.
    ///
    /// # Errors
    ///
    /// When TCP, TLS or HTTP fails or takes too long.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub async fn open(
        addr: SocketAddr,
        tls: &Arc<ClientConfig>,
        connect_max: Duration,
        tasks: &TaskTracker,
    ) -> Result<Self> {
        timeout(connect_max, Self::handshake(addr, tls, tasks)).await.context("connecting took too long")?
    }

    async fn handshake(addr: SocketAddr, tls: &Arc<ClientConfig>, tasks: &TaskTracker) -> Result<Self> {
        let stream = connect(addr, tls).await?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            let io = TokioIo::new(stream);
            let (sender, driver) =
                http2::Builder::new(TokioExecutor::new()).timer(TokioTimer::new()).handshake(io).await?;
            tasks.spawn(async move { drop(driver.await) });
            Ok(Self::H2(sender))
        } else {
            let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
            tasks.spawn(async move { drop(driver.await) });
            Ok(Self::H1(sender))
        }
    }

    /// Sends `GET path` and reads the answer.
    ///
    /// # Errors
    ///
    /// When the connection breaks.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the exchange up.
    pub async fn get(&mut self, authority: &str, path: &str) -> Result<StatusCode> {
        let mut request = Request::new(Empty::new());
        let response = match self {
            Self::H1(sender) => {
                *request.uri_mut() = path.parse()?;
                request.headers_mut().insert("host", authority.parse()?);
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::H2(sender) => {
                *request.uri_mut() =
                    Uri::builder().scheme("https").authority(authority).path_and_query(path).build()?;
                *request.version_mut() = Version::HTTP_2;
                sender.send_request(request).await?
            }
        };
        let status = response.status();
        response.into_body().collect().await?;
        Ok(status)
    }
}

impl Connection for Sender {
    fn is_open(&self) -> bool {
        match self {
            Self::H1(sender) => !sender.is_closed(),
            Self::H2(sender) => !sender.is_closed(),
        }
    }
}
