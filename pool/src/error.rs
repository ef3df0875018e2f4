//! One opaque error for the whole pool.
//!
//! A caller has three questions about a failed request, and each has its own predicate: *what does it
//! say about the host* (`is_refused`, `is_reset`, `is_tls`, `is_timeout`, and whether it is fresh
//! evidence at all: `is_fail_fast`), *may the server have acted* (`sent`, `is_retry_safe`), and *was it
//! us* (`is_saturated`, `is_draining`). The kind itself stays private, so that a new cause is not a
//! breaking change.

mod classify;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::classify::is_shortage;
use self::classify::{classify, classify_h2};
use crate::cell::Blame;

/// Any error as hyper, tower and bodies hand it around.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Where on its way a request was when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Waiting for a connection that others use.
    Queue,
    /// Waiting for permission to dial.
    DialSlot,
    /// Resolving the host name.
    Dns,
    /// Opening the TCP connection.
    Tcp,
    /// The TLS handshake.
    Tls,
    /// The HTTP handshake.
    Handshake,
    /// Handing the request to the connection.
    Send,
    /// Waiting for, or reading, the response.
    Response,
}

impl Stage {
    /// The name used in logs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::DialSlot => "dial_slot",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Handshake => "handshake",
            Self::Send => "send",
            Self::Response => "response",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether bytes of the request may have reached the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sent {
    /// Provably nothing of the request left this process.
    No,
    /// Some of it may have; the server may have acted on it.
    Maybe,
}

/// What went wrong with a request, a dial or a lane's configuration.
///
/// Cheap to clone: callers that share one failed dial share one allocation for its cause.
#[derive(Clone)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Clone)]
struct Inner {
    kind: Kind,
    stage: Stage,
    sent: Sent,
    reused: bool,
    fail_fast: bool,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Timeout,
    Refused,
    Reset,
    Tls,
    Dns,
    Io,
    Protocol,
    Incomplete,
    TooLarge,
    Saturated,
    WontMakeDeadline,
    Draining,
    Aborted,
    Local,
    NoAddress,
    Unreachable,
    NotProcessed,
    Body,
    Config,
}

// === impl Error ===

impl Error {
    pub(crate) fn new(kind: Kind, stage: Stage) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                stage,
                sent: Sent::No,
                reused: false,
                fail_fast: false,
                retry_after: None,
                source: None,
            }),
        }
    }

    pub(crate) fn config(reason: impl Into<BoxError>) -> Self {
        Self::new(Kind::Config, Stage::Queue).with_source(reason)
    }

    pub(crate) fn saturated(stage: Stage, retry_after: Duration) -> Self {
        let mut error = Self::new(Kind::Saturated, stage);
        error.inner.retry_after = Some(retry_after);
        error
    }

    /// Classifies an error of a dial stage by the first I/O or TLS error in its chain.
    pub(crate) fn dial(stage: Stage, source: impl Into<BoxError>) -> Self {
        let source = source.into();
        let fallback = match stage {
            Stage::Dns => Kind::Dns,
            Stage::Tls => Kind::Tls,
            _ => Kind::Io,
        };
        Self::new(classify(source.as_ref()).unwrap_or(fallback), stage).with_source(source)
    }

    /// Classifies an error that hyper reported for a request or a body.
    pub(crate) fn exchange(stage: Stage, sent: Sent, source: hyper::Error) -> Self {
        let h2 = source.source().and_then(|source| source.downcast_ref::<h2::Error>());
        if let Some(kind) = h2.and_then(classify_h2) {
            // A server that leaves (`GOAWAY`) may still finish what came before: hyper reports that in the same words.
            let refused = h2.is_some_and(|h2| h2.reason() == Some(h2::Reason::REFUSED_STREAM));
            let sent = if kind == Kind::NotProcessed && refused { Sent::No } else { sent };
            return Self::new(kind, stage).with_sent(sent).with_source(source);
        }
        let kind = if source.is_user() {
            Kind::Body
        } else if source.is_incomplete_message() {
            Kind::Incomplete
        } else if source.is_timeout() {
            Kind::Timeout
        } else if source.is_parse() {
            Kind::Protocol
        } else if source.is_canceled() || source.is_closed() {
            Kind::Aborted
        } else {
            classify(&source).unwrap_or(Kind::Protocol)
        };
        Self::new(kind, stage).with_sent(sent).with_source(source)
    }

    /// As [`Error::exchange`], after the head of the response: the server has acted.
    pub(crate) fn in_body(source: hyper::Error) -> Self {
        let mut error = Self::exchange(Stage::Response, Sent::Maybe, source).with_sent(Sent::Maybe);
        if error.inner.kind == Kind::NotProcessed {
            error.inner.kind = Kind::Reset;
        }
        error
    }

    /// The request was sent and its deadline came before the answer.
    pub(crate) fn late() -> Self {
        Self::new(Kind::Timeout, Stage::Response).with_sent(Sent::Maybe)
    }

    /// The deadline came before the request was sent: not a byte of it left.
    pub(crate) fn too_late_to_send() -> Self {
        Self::new(Kind::Timeout, Stage::Queue)
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.inner.source = Some(Arc::from(source.into()));
        self
    }

    pub(crate) fn with_sent(mut self, sent: Sent) -> Self {
        self.inner.sent = sent;
        self
    }

    pub(crate) fn with_reused(mut self, reused: bool) -> Self {
        self.inner.reused = reused;
        self
    }

    pub(crate) fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.inner.retry_after = Some(retry_after);
        self
    }

    /// The same failure as told to a caller for whom no dial was made.
    pub(crate) fn shared(&self) -> Self {
        let mut error = self.clone();
        error.inner.fail_fast = true;
        error
    }

    /// How far the request had come.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.inner.stage
    }

    /// Whether the server may have seen some of the request.
    #[must_use]
    pub fn sent(&self) -> Sent {
        self.inner.sent
    }

    /// Whether the request travelled on a connection that had served others before.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.inner.reused
    }

    /// A deadline or the dial time-out passed. With [`Sent::No`] the request never left.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.inner.kind == Kind::Timeout
    }

    /// The host answered the connection attempt with a refusal: nothing listens there.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.inner.kind == Kind::Refused
    }

    /// The peer cut the connection: a reset, or an end of stream in the middle of an exchange.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        matches!(self.inner.kind, Kind::Reset | Kind::Incomplete)
    }

    /// The TLS handshake failed: certificate, name, version or alert.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.inner.kind == Kind::Tls
    }

    /// The network says that there is no way to the host: it is off, or a route is missing.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.inner.kind == Kind::Unreachable
    }

    /// This machine has run out of file descriptors, memory, or ports towards the host, or has no address from which
    /// the host could be reached. It says nothing about the host.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.inner.kind, Kind::Local | Kind::NoAddress)
    }

    /// This machine has run out of something that every dial needs.
    pub(crate) fn is_shortage(&self) -> bool {
        self.inner.kind == Kind::Local
    }

    /// The peer said that it has not processed the request (HTTP/2 `REFUSED_STREAM`), or left while the request was
    /// on its way (`GOAWAY`): it is busy or leaving. In the second case it may have been processed all the same,
    /// see [`Error::sent`].
    #[must_use]
    pub fn is_not_processed(&self) -> bool {
        self.inner.kind == Kind::NotProcessed
    }

    /// Whom a failed dial speaks against.
    pub(crate) fn blame(&self) -> Blame {
        match self.inner.kind {
            Kind::Saturated => Blame::Haste,
            Kind::Local | Kind::Aborted | Kind::Config => Blame::Us,
            // Without an address or a port towards the host it is this origin that must back off, and no other one.
            _ => Blame::Host,
        }
    }

    /// The host name did not resolve.
    #[must_use]
    pub fn is_dns(&self) -> bool {
        self.inner.kind == Kind::Dns
    }

    /// The peer does not speak HTTP as agreed.
    #[must_use]
    pub fn is_protocol(&self) -> bool {
        self.inner.kind == Kind::Protocol
    }

    /// A bound of this pool was reached, or would be ([`Error::is_wont_make_deadline`]); the host was not
    /// asked. See [`Error::retry_after`].
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        matches!(self.inner.kind, Kind::Saturated | Kind::WontMakeDeadline)
    }

    /// The line was so long that the request could not have been sent before its deadline; it was refused
    /// at once instead of then. [`Error::retry_after`] is the time by which it would have been late.
    #[must_use]
    pub fn is_wont_make_deadline(&self) -> bool {
        self.inner.kind == Kind::WontMakeDeadline
    }

    /// The lane or the origin is being drained or was forgotten.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.inner.kind == Kind::Draining
    }

    /// The response body is longer than the caller allowed.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.inner.kind == Kind::TooLarge
    }

    /// A shared dial error: somebody else's dial failed, or the origin is in back-off.
    ///
    /// It is **not fresh evidence** against the host. Of all callers that one failed dial answers,
    /// exactly one gets the error without this mark.
    #[must_use]
    pub fn is_fail_fast(&self) -> bool {
        self.inner.fail_fast
    }

    /// Nothing was sent, so repeating the request cannot make the server act twice.
    #[must_use]
    pub fn is_retry_safe(&self) -> bool {
        self.inner.sent == Sent::No && !matches!(self.inner.kind, Kind::Config | Kind::Body)
    }

    /// When trying again makes sense, if the pool knows: the rest of a back-off, or a guess at the
    /// time a full queue needs.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.retry_after
    }

    /// The name of the cause in logs and metric labels.
    #[must_use]
    pub fn cause(&self) -> &'static str {
        self.inner.kind.as_str()
    }
}

// === impl Kind ===

impl Kind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Tls => "tls",
            Self::Dns => "dns",
            Self::Io => "io",
            Self::Protocol => "protocol",
            Self::Incomplete => "incomplete",
            Self::TooLarge => "too_large",
            Self::Saturated => "saturated",
            Self::WontMakeDeadline => "wont_make_deadline",
            Self::Draining => "draining",
            Self::Aborted => "aborted",
            Self::Local => "local",
            Self::NoAddress => "no_address",
            Self::Unreachable => "unreachable",
            Self::NotProcessed => "not_processed",
            Self::Body => "body",
            Self::Config => "config",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.inner.kind {
            Kind::Timeout => "timed out",
            Kind::Refused => "connection refused",
            Kind::Reset => "connection reset by the peer",
            Kind::Tls => "tls handshake failed",
            Kind::Dns => "name resolution failed",
            Kind::Io => "connection failed",
            Kind::Protocol => "the peer broke the http protocol",
            Kind::Incomplete => "the peer closed in the middle of an exchange",
            Kind::TooLarge => "response body is longer than allowed",
            Kind::Saturated => "too many waiting",
            Kind::WontMakeDeadline => "the line is too long for the deadline",
            Kind::Draining => "the pool is draining",
            Kind::Aborted => "the connection was given up",
            Kind::Local => "this machine has run out of descriptors or memory",
            Kind::NoAddress => "this machine has no address or port left to reach the host from",
            Kind::Unreachable => "no route to the host",
            Kind::NotProcessed => "the peer turned the request away unprocessed",
            Kind::Body => "the request body failed",
            Kind::Config => "invalid pool configuration",
        };
        write!(f, "{what} (stage {}", self.inner.stage)?;
        if self.inner.fail_fast {
            f.write_str(", shared")?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("stage", &self.inner.stage)
            .field("sent", &self.inner.sent)
            .field("reused", &self.inner.reused)
            .field("fail_fast", &self.inner.fail_fast)
            .field("source", &self.inner.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_ref().map(|source| {
            let source: &(dyn StdError + 'static) = source.as_ref();
            source
        })
    }
}

#[cfg(test)]
mod tests;
