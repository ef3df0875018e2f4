//! Ours: real HTTP/1.1 connections over pipes that nobody reads.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Result;
use pool::{Alpn, Connected, HeldConnection, Lane, LaneLimits, Origin, OriginHandle};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::time::Instant;

use crate::contestants::Contestant;

#[derive(Clone)]
pub(crate) struct Ours {
    handle: OriginHandle,
    deadline: Instant,
}

impl Ours {
    pub(crate) async fn new(conns: usize, partitions: usize) -> Result<Self> {
        let limits = LaneLimits {
            partitions,
            connections_per_origin_max: conns,
            connections_max: conns.max(1_250) * partitions,
            dials_max: 4_096,
            waiters_per_origin_max: 65_536,
            waiters_max: 65_536 * partitions,
            ..LaneLimits::default()
        };
        let connector = tower::service_fn(|_: Origin| async {
            let (near, far) = duplex(1_024);
            Ok::<_, Infallible>(Connected::ready(Kept { near, _far: far }, Alpn::Http1))
        });
        let lane = Lane::builder("bench").limits(limits).connector(connector).build()?;
        let handle = lane.origin(&Origin::parse("http://127.0.0.1:7443")?);
        let deadline = Instant::now() + Duration::from_mins(10);
        // Open all of them: as many at once as there shall be.
        let all = (0..conns).map(|_| handle.hold(deadline));
        let held = futures_util::future::try_join_all(all).await?;
        drop(held);
        Ok(Self { handle, deadline })
    }
}

impl Contestant for Ours {
    type Held = HeldConnection;

    async fn checkout(&self) -> HeldConnection {
        match self.handle.hold(self.deadline).await {
            Ok(held) => held,
            Err(error) => panic!("no connection: {error}"),
        }
    }
}

/// One end of a pipe that keeps the other.
struct Kept {
    near: DuplexStream,
    _far: DuplexStream,
}

impl AsyncRead for Kept {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_read(cx, buf)
    }
}

impl AsyncWrite for Kept {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.near).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_shutdown(cx)
    }
}
