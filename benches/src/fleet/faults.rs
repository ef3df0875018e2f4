//! Sockets that listen, refuse, or swallow.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Connections that may wait to be accepted; a storm of 10,000 at one host loses no SYN.
const BACKLOG: i32 = 16_384;

/// Connections that fill a backlog of 0. The kernel lets one in; a few more make sure.
const FILLERS: usize = 3;

/// By then a SYN that is not swallowed was answered.
const FILL_WAIT: Duration = Duration::from_millis(30);

/// A listener that can stop to answer.
pub(super) struct Hole {
    /// The listener, while it is a hole.
    pub(super) listener: TcpListener,
    fillers: Vec<TcpStream>,
}

/// The address of a host: 127.10.0.1 and up, 250 to a network.
pub(super) fn ip(host: u32) -> Ipv4Addr {
    let byte = |n: u32| u8::try_from(n % 250).unwrap_or(0);
    Ipv4Addr::new(127, 10 + byte(host / 62_500), byte(host / 250), 1 + byte(host))
}

/// Binds without listening: whoever connects is refused.
pub(super) fn bind(host: u32, port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from(SocketAddrV4::new(ip(host), port)).into())?;
    Ok(socket)
}

/// Listens.
pub(super) fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

// === impl Hole ===

impl Hole {
    /// Turns a listener into a hole: its backlog is shrunk to nothing and filled, so that the kernel
    /// drops every further SYN, as a dead host's network would.
    pub(super) async fn dig(listener: TcpListener) -> io::Result<Self> {
        SockRef::from(&listener).listen(0)?;
        let addr = listener.local_addr()?;
        let mut fillers = Vec::new();
        for _ in 0..FILLERS {
            if let Ok(stream) = timeout(FILL_WAIT, TcpStream::connect(addr)).await {
                fillers.push(stream?);
            }
        }
        Ok(Self { listener, fillers })
    }

    /// The host is back.
    pub(super) fn heal(self) -> io::Result<TcpListener> {
        SockRef::from(&self.listener).listen(BACKLOG)?;
        drop(self.fillers);
        Ok(self.listener)
    }
}
