//! A small HTTPS server for the examples, with an authority of its own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pool::BoxError;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

/// Signs the servers' certificates.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one, known to nobody.
    pub(crate) fn new() -> Result<Self, BoxError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// What clients are to trust.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Starts a server at `ip` that says hello after `handler`, over HTTP/2.
    pub(crate) async fn serve(&self, ip: &str, handler: Duration, tasks: &TaskTracker) -> Result<SocketAddr, BoxError> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let addr = listener.local_addr()?;
        let key = KeyPair::generate()?;
        let cert = CertificateParams::new([ip.to_owned()])?.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (acceptor, connections) = (TlsAcceptor::from(Arc::new(config)), tasks.clone());
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(connection(stream, acceptor.clone(), handler));
            }
        });
        Ok(addr)
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, handler: Duration) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let hello = service_fn(move |_: Request<Incoming>| async move {
        tokio::time::sleep(handler).await;
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
    });
    let mut http = http2::Builder::new(TokioExecutor::new());
    // A client that leaves is no error of ours.
    let _left = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), hello).await;
}
