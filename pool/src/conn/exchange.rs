//! One request and its response on a leased connection.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::{Instant, timeout, timeout_at};

use super::Link;
use super::h1::Return;
use crate::body::{Body, Held};
use crate::cell::{ConnKey, Event, LATE_MIN, Taken, Verdict};
use crate::error::{Error, Kind, Sent, Stage};
use crate::origin::Origin;
use crate::partition::Cell;

/// Not allowed in HTTP/2 (RFC 9113, 8.2.2); `host` becomes `:authority`.
const H1_ONLY: [HeaderName; 6] = [
    HOST,
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Taken off a server's `Keep-Alive: timeout`, so that we close first and no request meets its FIN.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);

/// Longest `Keep-Alive: timeout` that is believed. What a peer says must not overflow a clock.
const KEEP_ALIVE_MAX: Duration = Duration::from_hours(1);

/// The longest that an answer gets after a deadline that we came to late: enough to read what has arrived.
const CATCH_UP_MAX: Duration = Duration::from_millis(100);

/// A request's hold on a connection. Dropping it at any moment leaves the cell correct.
#[derive(Debug)]
pub(crate) struct Lease {
    home: Home,
    key: ConnKey,
    link: Option<Link>,
    reused: bool,
    phase: Phase,
    keep_alive: Option<Duration>,
    /// The request body was sent whole, so that the connection is ready right after the response.
    prompt: bool,
    /// When it was taken, if the hold time is measured this time.
    since: Option<Instant>,
    /// When the head of the response came.
    headed: Option<Instant>,
}

/// What keeps a lease's cell: of an HTTP/1.1 connection, which nobody shares, the connection. All leases of an origin
/// would change the cell's own count, and it would go back and forth between processors.
#[derive(Debug, Clone)]
enum Home {
    Cell(Arc<Cell>),
    Conn(Arc<Return>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing was sent.
    Unused,
    /// Sent; no answer yet. An HTTP/1.1 connection dropped now cannot be used again.
    InFlight,
    /// As `InFlight`, and the connection failed or refused the request, or nobody looked after it.
    Broken,
    /// As `InFlight`, and the deadline came.
    TimedOut,
    /// The answer's head has come.
    Answered,
    /// Given back, or being so.
    Done,
}

/// A failed exchange, with the request if hyper handed it back unsent.
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) unsent: Option<Request<Body>>,
}

/// Sends `request` and waits for the head of the response.
///
/// # Cancel safety
///
/// Dropping the future resets the HTTP/2 stream or cuts the HTTP/1.1 connection.
pub(crate) async fn exchange(
    mut lease: Lease,
    mut request: Request<Body>,
    origin: &Origin,
    deadline: Instant,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let reused = lease.reused;
    let fail = |error: Error, unsent| Failure { error: error.with_reused(reused), unsent };
    let Some(link) = lease.link.as_mut() else {
        return Err(fail(Error::new(Kind::Aborted, Stage::Send), None));
    };
    if let Err(error) = fit(&mut request, link, origin) {
        return Err(fail(error, None));
    }
    lease.phase = Phase::InFlight;
    lease.prompt = request.body().is_whole();
    let answer = in_time(deadline, link.try_send(request)).await;
    match answer {
        Answer::Came(Ok(response)) => {
            lease.phase = Phase::Answered;
            lease.keep_alive = keep_alive(response.headers());
            Ok((response, lease))
        }
        Answer::Came(Err(refused)) => {
            lease.phase = Phase::Broken;
            let Failure { error, unsent } = Failure::refused(refused);
            Err(fail(error, unsent))
        }
        Answer::Late { punctual } => {
            // A connection that we did not look after has not failed us.
            lease.phase = if punctual { Phase::TimedOut } else { Phase::Broken };
            Err(fail(Error::late(), None))
        }
    }
}

/// What became of a request by its deadline.
enum Answer<T> {
    Came(T),
    /// Nothing, and whether we were there to see it when the deadline came.
    Late {
        punctual: bool,
    },
}

/// Waits for an answer until the deadline. A process that stood still comes to the deadline before it has read
/// what arrived in the meantime, so being late by some time gives the answer as much more, within reason.
async fn in_time<T>(deadline: Instant, answer: impl Future<Output = T>) -> Answer<T> {
    let mut answer = pin!(answer);
    if let Ok(answer) = timeout_at(deadline, &mut answer).await {
        return Answer::Came(answer);
    }
    let late = Instant::now().saturating_duration_since(deadline);
    if late < LATE_MIN {
        return Answer::Late { punctual: true };
    }
    let answered = timeout(late.min(CATCH_UP_MAX), answer).await;
    answered.map_or(Answer::Late { punctual: false }, Answer::Came)
}

// === impl Failure ===

impl Failure {
    /// hyper gave up on a request; it may hand it back unsent.
    pub(crate) fn refused(mut refused: TrySendError<Request<Body>>) -> Self {
        let unsent = refused.take_message();
        let (stage, sent) = if unsent.is_some() { (Stage::Send, Sent::No) } else { (Stage::Response, Sent::Maybe) };
        Self { error: Error::exchange(stage, sent, refused.into_error()), unsent }
    }
}

// === impl Home ===

impl Home {
    fn cell(&self) -> &Arc<Cell> {
        match self {
            Self::Cell(cell) => cell,
            Self::Conn(back) => back.cell().expect("a leased connection has been told its cell"),
        }
    }
}

// === impl Lease ===

impl Lease {
    pub(crate) fn new(cell: &Arc<Cell>, taken: Taken<Link>) -> Self {
        let Taken { key, channel, reused, sampled } = taken;
        let home = match &channel {
            Link::H1 { back, .. } => {
                back.belongs_to(cell);
                Home::Conn(Arc::clone(back))
            }
            Link::H2 { .. } => Home::Cell(Arc::clone(cell)),
        };
        let since = sampled.then(Instant::now);
        Self {
            home,
            key,
            link: Some(channel),
            reused,
            phase: Phase::Unused,
            keep_alive: None,
            prompt: false,
            since,
            headed: None,
        }
    }

    /// The head of the response came at this moment.
    pub(crate) fn headed(&mut self, now: Instant) {
        self.headed = Some(now);
    }

    pub(crate) fn reused(&self) -> bool {
        self.reused
    }

    /// Whether an HTTP/1.1 connection can take the next request; `false` when it never will.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.link.as_mut().map_or(Poll::Ready(false), |link| link.poll_ready(cx))
    }

    /// The connection is ready for the next request.
    pub(super) fn give_back(mut self) {
        self.phase = Phase::Done;
        let link = self.link.take();
        self.home.cell().give_back(self.key, link, Verdict::Answered, self.keep_alive, self.since);
    }

    /// The connection is not to be used again.
    pub(super) fn discard(mut self) {
        self.phase = Phase::Done;
        drop(self.link.take());
        self.home.cell().give_back(self.key, None, Verdict::Answered, None, self.since);
    }

    /// The response body is over: read to its end or dropped.
    fn finish(&mut self) {
        self.phase = Phase::Done;
        self.headed.into_iter().for_each(|headed| self.home.cell().partition().metrics.read(headed));
        let Some(link) = self.link.take() else { return };
        match link {
            Link::H1 { sender, back } if !sender.is_ready() => {
                let parked = Self {
                    home: self.home.clone(),
                    key: self.key,
                    link: Some(Link::H1 { sender, back: Arc::clone(&back) }),
                    reused: self.reused,
                    phase: Phase::Done,
                    keep_alive: self.keep_alive,
                    prompt: self.prompt,
                    since: self.since,
                    headed: None,
                };
                if self.prompt {
                    self.home.cell().apply(Event::Returning(self.key));
                }
                back.park(parked);
            }
            Link::H1 { .. } => {
                self.home.cell().give_back(self.key, Some(link), Verdict::Answered, self.keep_alive, self.since);
            }
            Link::H2 { .. } => {
                drop(link);
                self.home.cell().give_back(self.key, None, Verdict::Answered, None, self.since);
            }
        }
    }

    /// The body did not come to its end. Without a head the phase says so already.
    fn body_ended(&mut self, phase: Phase) {
        if self.phase == Phase::Answered {
            self.phase = phase;
        }
    }

    fn abandon(&mut self, verdict: Verdict) {
        if let Some(link) = self.link.take() {
            link.cut();
        }
        self.home.cell().give_back(self.key, None, verdict, None, self.since);
    }
}

impl Held for Lease {
    fn late(&mut self) {
        self.body_ended(Phase::TimedOut);
    }

    fn broken(&mut self) {
        self.body_ended(Phase::Broken);
    }

    fn left(&mut self) {
        if self.phase == Phase::Answered {
            self.home.cell().partition().metrics.left.inc();
        }
    }

    fn untimed(&mut self) {
        self.since = None;
        self.headed = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self.phase {
            Phase::Unused => {
                let link = self.link.take().filter(|link| !link.is_shared());
                self.home.cell().give_back(self.key, link, Verdict::Unused, None, None);
            }
            Phase::InFlight => {
                self.home.cell().partition().metrics.abandoned.inc();
                self.abandon(Verdict::Abandoned);
            }
            Phase::Broken => self.abandon(Verdict::Abandoned),
            Phase::TimedOut => self.abandon(Verdict::TimedOut),
            Phase::Answered => self.finish(),
            Phase::Done => {
                // A parked lease that was dropped with its driver.
                if let Some(link) = self.link.take() {
                    drop(link);
                    self.home.cell().give_back(self.key, None, Verdict::Abandoned, None, None);
                }
            }
        }
    }
}

/// Makes the request fit the connection's protocol. Can be repeated for another protocol.
pub(crate) fn fit(request: &mut Request<Body>, link: &Link, origin: &Origin) -> Result<(), Error> {
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if link.is_shared() {
        let uri = Uri::builder().scheme(origin.scheme().as_str()).authority(origin.authority()).path_and_query(path);
        *request.uri_mut() = uri.build().map_err(Error::config)?;
        *request.version_mut() = Version::HTTP_2;
        for name in &H1_ONLY {
            request.headers_mut().remove(name);
        }
    } else {
        *request.uri_mut() = path.into();
        *request.version_mut() = Version::HTTP_11;
        let host = HeaderValue::try_from(origin.authority()).map_err(Error::config)?;
        request.headers_mut().insert(HOST, host);
    }
    Ok(())
}

/// How long the server keeps an idle connection, if it says.
fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    let told = Duration::from_secs(seconds.trim().parse().ok()?);
    Some(told.min(KEEP_ALIVE_MAX).saturating_sub(KEEP_ALIVE_MARGIN).max(KEEP_ALIVE_MARGIN / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn r13_a_process_that_stood_still_reads_the_answers_before_it_blames_a_connection() {
        let (told, answer) = tokio::sync::oneshot::channel();
        let second = Duration::from_secs(1);
        let deadline = Instant::now() + second;
        let mut waiting = tokio::task::JoinSet::new();
        waiting.spawn(in_time(deadline, answer));
        tokio::task::yield_now().await;
        // The deadline has long passed when the loop goes on, and it comes to the timer first.
        tokio::time::advance(second * 60).await;
        tokio::task::yield_now().await;
        told.send(7).expect("somebody waits");
        let came = waiting.join_next().await.expect("one task").expect("no panic");
        assert!(matches!(came, Answer::Came(Ok(7))), "the answer was there as soon as anybody looked");

        let silent = in_time(Instant::now() + second, std::future::pending::<()>()).await;
        assert!(matches!(silent, Answer::Late { punctual: true }), "a silent host has no excuse");
    }

    #[test]
    fn a_server_s_keep_alive_is_honoured_with_a_margin() {
        let told = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("keep-alive", HeaderValue::from_static(text));
            keep_alive(&headers)
        };
        assert_eq!(told("timeout=5, max=100"), Some(Duration::from_secs(4)));
        assert_eq!(told("max=100,timeout=0"), Some(Duration::from_millis(500)));
        assert_eq!(told("max=100"), None);
        assert_eq!(told("timeout=-1"), None);
        let longest = told("timeout=10000000000000000000").expect("a number");
        assert!(longest <= KEEP_ALIVE_MAX, "what a peer says must not overflow a clock");
    }
}
