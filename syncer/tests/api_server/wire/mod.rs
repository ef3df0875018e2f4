//! Raw sockets over real TLS: what no client library would send, and the exact end of each.

mod crowd;
mod h1;
mod h2;
mod slow;
mod turned;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Fleet, certificates, soon};

/// One syncer behind TLS, and how to reach it with bytes.
struct Target {
    fleet: Fleet,
    addr: SocketAddr,
    connector: TlsConnector,
}

// === impl Target ===

impl Target {
    /// Clients offer this protocol.
    async fn start(alpn: &str) -> Self {
        let fleet = Fleet::start_with(1, 1, |config| {
            let dir = config.sfus_file.as_deref().and_then(Path::parent).expect("a directory").to_owned();
            certificates(&dir);
            config.tls = Some(syncer::config::TlsConfig { cert: dir.join("api.pem"), key: dir.join("api-key.pem") });
        })
        .await;
        let ca = std::fs::read(fleet.dir.path().join("api-ca.pem")).expect("written");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&ca).expect("a certificate")).expect("an authority");
        let mut tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let addr = fleet.syncers[0].addr();
        Self { fleet, addr, connector: TlsConnector::from(Arc::new(tls)) }
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.expect("connects")
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let name = ServerName::from(self.addr.ip());
        soon("a handshake", self.connector.connect(name, self.tcp().await)).await.expect("a trusted certificate")
    }

    /// Somebody else, who does nothing wrong.
    async fn serves_others(&self, after: &str) {
        let ca = std::fs::read(self.fleet.dir.path().join("api-ca.pem")).expect("written");
        let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
        let client = reqwest::Client::builder().tls_certs_only([ca]).build().expect("a client");
        let sent = client.get(self.fleet.url(0, "/livez")).send();
        let response = soon("others are served", sent).await.unwrap_or_else(|e| panic!("after {after}: {e}"));
        assert_eq!(response.status(), 200, "after {after}");
    }

    /// How often connections were closed for this cause.
    async fn refused(&self, why: &str) -> u64 {
        self.metric(&format!("trunkline_http_connections_refused_total{{why=\"{why}\"}}")).await
    }

    /// A metric of the syncer; 0 when it has not told it yet.
    async fn metric(&self, name: &str) -> u64 {
        let ca = std::fs::read(self.fleet.dir.path().join("api-ca.pem")).expect("written");
        let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
        let client = reqwest::Client::builder().tls_certs_only([ca]).build().expect("a client");
        let text =
            client.get(self.fleet.url(0, "/metrics")).send().await.expect("an answer").text().await.expect("text");
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0)
    }
}

/// Reads until the peer closes, however it does that.
async fn read_out(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut answer = Vec::new();
    soon("the connection closes", async { while stream.read_buf(&mut answer).await.is_ok_and(|n| n > 0) {} }).await;
    answer
}

/// Writes what the peer takes: it may close before it has read everything.
async fn write_some(stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) {
    if stream.write_all(bytes).await.is_ok() {
        stream.flush().await.ok();
    }
}
