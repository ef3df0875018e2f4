//! Gateways that send lines and read what comes back, and such that send single requests.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use benches::client;
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::population::{self, Calls, Lines, Write};

/// Gateways that send at the same time.
pub(crate) const GATEWAYS: u64 = 8;
/// Bytes handed over at a time.
const CHUNK_BYTES: usize = 16 * 1_024;
/// Chunks between the writer and the connection.
const CHUNKS_BUFFERED: usize = 2;
/// A stream that takes longer is broken.
const STREAM_MAX: Duration = Duration::from_secs(600);
/// A single request that takes longer has failed.
const PUT_MAX: Duration = Duration::from_secs(10);
/// Requests under way on each connection where joins by request are counted: enough that both cores have work.
const PUTS_IN_FLIGHT: usize = 16;
/// People who join the scenario's calls by request: nobody else has their numbers.
const NEWCOMERS: u64 = 50_000_000;
/// Single requests per second beside lines: some fiftieth of what joins by request alone come to.
const PUTS_PER_S: u64 = 1_000;

/// A gateway begins to tell everything again, and has told everything.
const SYNC: &[u8] = b"{\"do\":\"sync\"}\n";
const SYNCED: &[u8] = b"{\"do\":\"synced\"}\n";

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

/// Whom to send to.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Where.
    pub(crate) addr: SocketAddr,
    /// Whom to trust.
    pub(crate) tls: Arc<ClientConfig>,
}

/// What came of lines.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    /// Lines sent.
    pub(crate) lines: u64,
    /// Results that say 200.
    pub(crate) done: u64,
    /// From the first connection that was opened to the last result.
    pub(crate) took: Duration,
}

/// What came of single requests.
#[derive(Debug)]
pub(crate) struct Puts {
    /// Microseconds from the intended start to the answer.
    pub(crate) us: Histogram<u64>,
    /// Requests that were refused, broke or took too long.
    pub(crate) failed: u64,
}

// === impl Puts ===

impl Puts {
    /// None yet.
    ///
    /// # Errors
    ///
    /// Never, with as many digits as are kept.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { us: Histogram::new(3)?, failed: 0 })
    }
}

// === impl Target ===

impl Target {
    async fn open(&self, tasks: &TaskTracker) -> Result<SendRequest<Body>> {
        let stream = client::connect(self.addr, &self.tls).await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new());
        let (sender, driver) = builder.handshake(TokioIo::new(stream)).await?;
        tasks.spawn(async move { drop(driver.await) });
        Ok(sender)
    }

    fn request(&self, method: Method, path: &str, gateway: &str, body: Body) -> Result<Request<Body>> {
        Ok(Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.addr))
            .header("authorization", format!("Bearer {gateway}"))
            .header("content-type", "application/x-ndjson")
            .body(body)?)
    }

    /// One request with a JSON body, answered with JSON.
    ///
    /// # Errors
    ///
    /// When it fails.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the exchange up.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let tasks = TaskTracker::new();
        let body = if body.is_null() { Bytes::new() } else { serde_json::to_vec(body)?.into() };
        let request = self.request(method, path, "operator", Full::new(body).boxed())?;
        let response = self.open(&tasks).await?.send_request(request).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        if status != StatusCode::OK {
            bail!("{path} answered {status}: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Sends the lines of all gateways at once and waits for all results.
    ///
    /// # Errors
    ///
    /// When a stream breaks.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the streams.
    pub(crate) async fn lines(&self, calls: &Calls, write: Write, told: Told) -> Result<Sent> {
        let began = Instant::now();
        let mut streams = JoinSet::new();
        for gateway in 0..GATEWAYS {
            let (target, lines) = (self.clone(), Lines::new(Calls::clone(calls), gateway, GATEWAYS, write));
            streams.spawn(async move {
                let stream = target.stream(gateway, lines, write == Write::Resync, told);
                timeout(STREAM_MAX, stream).await.context("a stream took too long")?
            });
        }
        let mut all = Sent::default();
        for sent in streams.join_all().await {
            let sent = sent?;
            all.lines += sent.lines;
            all.done += sent.done;
        }
        all.took = Instant::now().saturating_duration_since(began);
        Ok(all)
    }

    /// One gateway's lines; in a round, `sync` is answered before the first of them, and `synced` follows the last.
    async fn stream(&self, gateway: u64, mut lines: Lines, round: bool, told: Told) -> Result<Sent> {
        let tasks = TaskTracker::new();
        let (to, mut from) = mpsc::channel::<Bytes>(CHUNKS_BUFFERED);
        let body = futures_util::stream::poll_fn(move |cx| from.poll_recv(cx).map(|b| b.map(|b| Ok(Frame::data(b)))));
        let mut request = self.request(
            Method::POST,
            "/v1/voice-states",
            &format!("gateway-{gateway}"),
            BodyExt::boxed(StreamBody::new(body)),
        )?;
        if told == Told::Together {
            request.headers_mut().insert("prefer", HeaderValue::from_static("return=minimal"));
        }
        let mut sender = self.open(&tasks).await?;
        let answered = Notify::new();
        let writing = async {
            let mut sent = 0;
            if round {
                to.send(Bytes::from_static(SYNC)).await?;
                answered.notified().await;
                sent += 1;
            }
            loop {
                let (text, count) = lines.chunk(CHUNK_BYTES);
                if count == 0 {
                    break;
                }
                sent += count;
                to.send(text.into()).await?;
            }
            if round {
                to.send(Bytes::from_static(SYNCED)).await?;
                sent += 1;
            }
            drop(to);
            anyhow::Ok(sent)
        };
        let reading = async {
            let mut body = sender.send_request(request).await?.into_body();
            let mut results = Results::new(told);
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    results.take(&data)?;
                    answered.notify_one();
                }
            }
            answered.notify_one();
            anyhow::Ok(results)
        };
        // What reading fails with says more than that there is nobody to write to.
        let (results, lines) = tokio::try_join!(biased; reading, writing)?;
        Ok(Sent { lines, done: results.done, took: Duration::ZERO })
    }

    /// People who are new to their calls join by a request each, as fast as it goes: each gateway has a connection, and
    /// some requests under way on it. Returns how many joined in a second.
    ///
    /// # Errors
    ///
    /// When there is no connection, or a join fails.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up what is under way.
    pub(crate) async fn joins_by_put(&self, calls: Range<u64>, lasting: Duration) -> Result<f64> {
        let (began, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let (tasks, mut workers) = (TaskTracker::new(), JoinSet::new());
        for gateway in 0..GATEWAYS {
            let sender = self.open(&tasks).await?;
            for _ in 0..PUTS_IN_FLIGHT {
                let (target, next, calls) = (self.clone(), Arc::clone(&next), calls.clone());
                let mut sender = sender.clone();
                workers.spawn(async move {
                    while Instant::now().saturating_duration_since(began) < lasting {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let path = population::path(calls.start + n % (calls.end - calls.start), NEWCOMERS + n);
                        let body = Full::default().boxed();
                        let request = target.request(Method::PUT, &path, &format!("gateway-{gateway}"), body)?;
                        let response = timeout(PUT_MAX, sender.send_request(request)).await.context("too slow")??;
                        let status = response.status();
                        response.into_body().collect().await?;
                        anyhow::ensure!(status == StatusCode::OK, "{path} answered {status}");
                    }
                    anyhow::Ok(())
                });
            }
        }
        for worker in workers.join_all().await {
            worker?;
        }
        let joined = next.load(Ordering::Relaxed) as f64;
        Ok(joined / Instant::now().saturating_duration_since(began).as_secs_f64())
    }

    /// Single joins of a call each, from `first_call` on behind those that were counted before, at an even pace until told
    /// to stop.
    ///
    /// # Errors
    ///
    /// When there is no connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up what is under way.
    pub(crate) async fn puts(&self, first_call: u64, stop: CancellationToken, puts: &mut Puts) -> Result<()> {
        let tasks = TaskTracker::new();
        let sender = self.open(&tasks).await?;
        let mut ticks = interval(Duration::from_micros(1_000_000 / PUTS_PER_S));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut running = JoinSet::new();
        let mut call = first_call + puts.us.len() + puts.failed;
        loop {
            // What was due before the end is sent, however late: it would be missing among the slowest.
            let intended = tokio::select! {
                biased;
                at = ticks.tick() => at,
                () = stop.cancelled() => break,
            };
            let path = population::path(call, call);
            call += 1;
            let request = self.request(Method::PUT, &path, "gateway-put", Full::default().boxed())?;
            let mut sender = sender.clone();
            running.spawn(async move {
                let exchange = async {
                    let response = sender.send_request(request).await?;
                    let status = response.status();
                    response.into_body().collect().await?;
                    anyhow::Ok(status)
                };
                let status = timeout(PUT_MAX, exchange).await;
                let took = Instant::now().saturating_duration_since(intended);
                matches!(status, Ok(Ok(StatusCode::OK))).then_some(took)
            });
        }
        for took in running.join_all().await {
            match took {
                Some(took) => puts.us.record(u64::try_from(took.as_micros())?)?,
                None => puts.failed += 1,
            }
        }
        Ok(())
    }
}

/// How results are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Each line has its own.
    Each,
    /// Lines that were done and say nothing else share one.
    Together,
}

/// Counts results that say 200.
#[derive(Debug)]
struct Results {
    told: Told,
    done: u64,
    /// The end of what came last, in which the next result may begin.
    rest: Vec<u8>,
}

/// What is looked for where each line has a result.
const DONE: &[u8] = b"\"status\":200";

/// What matters of a result where lines share them.
#[derive(Debug, Deserialize)]
struct Shared {
    status: u16,
    /// How many lines have it, if not one.
    lines: Option<u64>,
}

// === impl Results ===

impl Results {
    const fn new(told: Told) -> Self {
        Self { told, done: 0, rest: Vec::new() }
    }

    fn take(&mut self, data: &[u8]) -> Result<()> {
        match self.told {
            Told::Each => self.look(data),
            Told::Together => self.read(data)?,
        }
        Ok(())
    }

    /// Counts without parsing: that would cost more than what is measured.
    fn look(&mut self, data: &[u8]) {
        let over = DONE.len() - 1;
        self.rest.extend_from_slice(&data[..data.len().min(over)]);
        self.done += self.rest.windows(DONE.len()).filter(|w| *w == DONE).count() as u64;
        self.done += memchr::memmem::find_iter(data, DONE).count() as u64;
        if data.len() >= over {
            self.rest.clear();
            self.rest.extend_from_slice(&data[data.len() - over..]);
        } else {
            self.rest.drain(..self.rest.len().saturating_sub(over));
        }
    }

    fn read(&mut self, data: &[u8]) -> Result<()> {
        self.rest.extend_from_slice(data);
        let whole = memchr::memrchr(b'\n', &self.rest).map_or(0, |at| at + 1);
        for line in self.rest.drain(..whole).as_slice().split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let result: Shared = serde_json::from_slice(line)?;
            if result.status == 200 {
                self.done += result.lines.unwrap_or(1);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_however_they_are_cut() {
        let each = b"{\"op\":\"1\",\"status\":200}\n{\"op\":\"2\",\"status\":429}\n{\"status\":200,\"x\":1}\n";
        let together =
            b"{\"op\":\"1\",\"status\":200,\"through\":\"7\",\"lines\":7}\n{\"status\":429}\n{\"status\":200}\n";
        for (told, text, done) in [(Told::Each, &each[..], 2), (Told::Together, &together[..], 8)] {
            for size in 1..=text.len() {
                let mut results = Results::new(told);
                text.chunks(size).for_each(|chunk| results.take(chunk).expect("results"));
                assert_eq!(results.done, done, "cut every {size} bytes");
            }
        }
    }
}
