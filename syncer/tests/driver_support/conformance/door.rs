//! A door in front of a server: it counts who comes through, and changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Passes connections on to a server. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Door {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    _passing: JoinSet<()>,
}

impl Door {
    /// Opens a door to the server at `address`, on the same host: the server's certificate is good for it too.
    pub(crate) async fn to(address: SocketAddr) -> Self {
        let listener = TcpListener::bind((address.ip(), 0)).await.expect("an address of this machine");
        let accepted = Arc::new(AtomicUsize::new(0));
        let mut passing = JoinSet::new();
        let door = listener.local_addr().expect("bound");
        passing.spawn(pass(listener, address, Arc::clone(&accepted)));
        Self { address: door, accepted, _passing: passing }
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections have come through so far.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn pass(listener: TcpListener, server: SocketAddr, accepted: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        // Counted before a byte is passed on: whoever has an answer has been counted.
        accepted.fetch_add(1, Ordering::SeqCst);
        connections.spawn(async move {
            let mut server = TcpStream::connect(server).await.expect("the server listens");
            // How a connection ends is not the door's business.
            let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}
