//! SFUs that ask who is calling.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use syncer::{Options, Syncer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::support::{Authority, certificates, config, install_provider, leaf, until};

/// What a server saw.
#[derive(Debug, Default)]
struct Seen {
    /// The certificate of each connection.
    shown: Vec<CertificateDer<'static>>,
    /// Connections that have ended.
    ended: usize,
}

/// Starts a server that lets only those in whom the authority of `dir` signed, and has nothing for them.
async fn strict(dir: &Path, seen: Arc<Mutex<Seen>>) -> SocketAddr {
    let read = |name: &str| std::fs::read(dir.join(name)).expect("readable");
    let certificate = |name: &str| CertificateDer::from_pem_slice(&read(name)).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate("api-ca.pem")).expect("an authority");
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
    let key = PrivateKeyDer::from_pem_slice(&read("api-key.pem")).expect("a key");
    let tls = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate("api.pem")], key)
        .expect("they fit");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (at, acceptor) = (listener.local_addr().expect("bound"), TlsAcceptor::from(Arc::new(tls)));
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tasks.spawn(connection(stream, acceptor.clone(), Arc::clone(&seen)));
        }
    });
    at
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, seen: Arc<Mutex<Seen>>) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let shown = stream.get_ref().1.peer_certificates().expect("it is asked for")[0].clone().into_owned();
    seen.lock().shown.push(shown);
    let nothing = service_fn(|_: Request<Incoming>| async {
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::NOT_FOUND;
        Ok::<_, Infallible>(response)
    });
    http1::Builder::new().serve_connection(TokioIo::new(stream), nothing).await.ok();
    seen.lock().ended += 1;
}

/// A new certificate of the syncer, in the files that its configuration names.
fn identity(dir: &Path, authority: &Authority) -> CertificateDer<'static> {
    let (certificate, key) = leaf(authority);
    std::fs::write(dir.join("client.pem"), certificate.pem()).expect("written");
    std::fs::write(dir.join("client-key.pem"), key).expect("written");
    certificate.der().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn r05_sfus_that_ask_are_shown_a_certificate_and_another_one_drops_no_connection() {
    install_provider();
    let dir = tempfile::tempdir().expect("a directory");
    let (authority, seen) = (certificates(dir.path()), Arc::new(Mutex::new(Seen::default())));
    let at = strict(dir.path(), Arc::clone(&seen)).await;
    let list = format!("[[sfus]]\nid = \"strict\"\nurl = \"https://{at}\"\nregion = \"a\"\ncapacity = 10\n");
    std::fs::write(dir.path().join("sfus.toml"), list).expect("written");
    let first = identity(dir.path(), &authority);
    std::fs::copy(dir.path().join("api-ca.pem"), dir.path().join("ca.pem")).expect("copied");
    let mut config = config("syncer-1", dir.path());
    config.sfu_cert_file = Some(dir.path().join("client.pem"));
    config.sfu_key_file = Some(dir.path().join("client-key.pem"));
    // A probe that is given up takes its connection along.
    config.limits.insert("health.probe_timeout".to_owned(), "30s".into());
    let syncer = Syncer::start(config, Options::default()).await.expect("starts");
    until("a connection", || async { !seen.lock().shown.is_empty() }).await;
    assert!(seen.lock().shown.iter().all(|shown| *shown == first));

    // An SFU that answers nonsense is probed by connections of their own.
    let second = identity(dir.path(), &authority);
    syncer.reload();
    until("the other certificate", || async { seen.lock().shown.contains(&second) }).await;
    assert_eq!(seen.lock().ended, 0, "what was open stays open");
}
