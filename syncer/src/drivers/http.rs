//! One request, one bounded answer: what both drivers send and read through.
//!
//! Nothing here repeats anything. Failures of the pool become [`DriverError`]s that keep what the
//! pool knows: how far the request had come, whether the connection was fresh, whether the dial was
//! shared with others.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use pool::{Body, OriginHandle, ResponseBody, Sent, Stage};
use rate_limit::clamp_retry_after;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::error::{DriverError, ErrorKind};

/// Most bytes of an ordinary answer: ten times the largest that either protocol has (a digest's
/// differences excepted, see [`LIST_BYTES_MAX`]).
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Most bytes of a list: 1,000 native rooms (one page) or 6,500 rooms of Janus, at ~645 bytes each
/// with the longest names.
pub(super) const LIST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most characters of an SFU's own words that go into an error.
const DETAIL_CHARS_MAX: usize = 200;

/// Sends to one origin.
#[derive(Clone, Debug)]
pub(super) struct Http {
    handle: OriginHandle,
}

/// What to send.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Path and query, escaped.
    pub(super) path: String,
    /// JSON, or nothing.
    pub(super) body: Option<Vec<u8>>,
    /// Most bytes of the answer.
    pub(super) limit: usize,
    /// Whether to dial for it.
    pub(super) fresh: bool,
}

/// What came back, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    json: bool,
    body: Bytes,
}

// === impl Ask ===

impl Ask {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, limit: ANSWER_BYTES_MAX, fresh: false }
    }

    pub(super) fn json<T: serde::Serialize>(mut self, body: &T) -> Result<Self, DriverError> {
        let bytes = serde_json::to_vec(body).map_err(|e| DriverError::new(ErrorKind::Local, e.to_string()))?;
        self.body = Some(bytes);
        Ok(self)
    }

    pub(super) fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    pub(super) fn fresh(mut self, fresh: bool) -> Self {
        self.fresh = fresh;
        self
    }
}

// === impl Http ===

impl Http {
    pub(super) fn new(handle: OriginHandle) -> Self {
        Self { handle }
    }

    /// What it sends on.
    pub(super) fn handle(&self) -> &OriginHandle {
        &self.handle
    }

    /// Connections to the SFU that have ended.
    pub(super) fn ended(&self) -> u64 {
        self.handle.ended()
    }

    /// Sends once and reads the answer whole, at most `ask.limit` bytes of it.
    pub(super) async fn send(&self, ask: Ask, deadline: Instant) -> Result<Answer, DriverError> {
        let (limit, fresh) = (ask.limit, ask.fresh);
        let request = self.request(ask)?;
        // Boxed: the pool's future is large, and a driver's operation holds several of these in turn.
        let response = if fresh {
            Box::pin(self.handle.fresh(request, deadline)).await
        } else {
            Box::pin(self.handle.send(request, deadline)).await
        };
        let response = response.map_err(|error| of_pool(&error))?;
        read(response, limit, deadline).await
    }

    fn request(&self, ask: Ask) -> Result<Request<Body>, DriverError> {
        let origin = self.handle.origin();
        let uri = Uri::builder()
            .scheme(origin.scheme().as_str())
            .authority(origin.authority())
            .path_and_query(ask.path)
            .build()
            .map_err(|e| DriverError::new(ErrorKind::Local, e.to_string()))?;
        let body = ask.body.map_or_else(Body::empty, Body::from);
        let mut request = Request::new(body);
        *request.method_mut() = ask.method;
        *request.uri_mut() = uri;
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(ACCEPT, json.clone());
        request.headers_mut().insert(CONTENT_TYPE, json);
        Ok(request)
    }
}

async fn read(response: Response<ResponseBody>, limit: usize, deadline: Instant) -> Result<Answer, DriverError> {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let json = is_json(response.headers());
    let body = match tokio::time::timeout_at(deadline, response.into_body().bytes(limit)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) if error.is_timeout() => return Err(cut_short()),
        Ok(Err(error)) if error.is_too_large() => {
            return Err(DriverError::new(ErrorKind::Protocol, format!("more than {limit} bytes")));
        }
        // The head arrived, so this says nothing of whether the host is reachable.
        Ok(Err(error)) => return Err(DriverError::new(ErrorKind::Protocol, format!("body cut short: {error}"))),
        Err(_) => return Err(cut_short()),
    };
    Ok(Answer { status, retry_after, json, body })
}

fn cut_short() -> DriverError {
    DriverError::new(ErrorKind::TimedOutAfterSend, "while reading the body")
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    clamp_retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

fn of_pool(error: &pool::Error) -> DriverError {
    let sent = error.sent() == Sent::Maybe;
    // Waiting on our side is not a sign of the SFU, however it ends: dead SFUs that use up the
    // dials must not make the living look dead. Nor is a name that does not resolve.
    let ours = matches!(error.stage(), Stage::Queue | Stage::DialSlot | Stage::Dns);
    let kind = if error.is_fail_fast() {
        ErrorKind::FailFast
    } else if error.is_timeout() && error.stage() == Stage::Queue {
        ErrorKind::Queued
    } else if error.is_saturated() || (error.is_timeout() && ours) {
        ErrorKind::Saturated
    } else if error.is_timeout() {
        if sent { ErrorKind::TimedOutAfterSend } else { ErrorKind::TimedOutBeforeSend }
    } else if error.is_refused() {
        ErrorKind::Refused
    } else if error.is_reset() {
        ErrorKind::Reset
    } else if error.is_unreachable() {
        ErrorKind::TimedOutBeforeSend // no way there: as silent as one that does not answer
    } else if error.is_not_processed() {
        ErrorKind::Overloaded
    } else if error.is_tls() {
        ErrorKind::Tls
    } else if error.is_protocol() {
        ErrorKind::Protocol
    } else {
        ErrorKind::Local
    };
    let fresh = !error.reused() && !ours;
    DriverError::new(kind, error.to_string()).with_fresh(fresh).with_sent(sent).with_retry_after(error.retry_after())
}

// === impl Answer ===

impl Answer {
    /// The body as JSON of the expected shape.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, DriverError> {
        if !self.json {
            return Err(DriverError::new(ErrorKind::Protocol, format!("status {}, not JSON", self.status.as_u16())));
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            // Only where it went wrong: the error's own text may quote the body.
            let (line, column) = (error.line(), error.column());
            let detail = format!("status {}, unexpected JSON at {line}:{column}", self.status.as_u16());
            DriverError::new(ErrorKind::Protocol, detail)
        })
    }

    /// The failure that the status alone tells; for answers whose body does not say more.
    pub(super) fn failure(&self) -> DriverError {
        let status = self.status.as_u16();
        let kind = match status {
            429 | 503 => ErrorKind::Overloaded,
            500..=599 => ErrorKind::Internal,
            401 | 403 => ErrorKind::Rejected,
            _ => ErrorKind::Protocol,
        };
        DriverError::new(kind, format!("status {status}")).with_retry_after(self.retry_after)
    }
}

/// An SFU's own words, made safe to log: bounded, on one line.
pub(super) fn words(text: &str) -> String {
    text.chars().take(DETAIL_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A path segment or query value with everything escaped that is not always safe.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _written = write!(out, "%{byte:02X}");
        }
    }
    // A segment of dots alone would be taken for "here" or "up".
    if out.bytes().all(|b| b == b'.') { out.replace('.', "%2E") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_escaped() {
        assert_eq!(escape("g-1~c_.2"), "g-1~c_.2");
        assert_eq!(escape("a/b?c=ä%"), "a%2Fb%3Fc%3D%C3%A4%25");
        assert_eq!(escape(".."), "%2E%2E");
    }

    #[test]
    fn words_are_one_short_line() {
        assert_eq!(words("a\nb\u{1b}[31m"), "a b [31m");
        assert_eq!(words(&"x".repeat(1000)).len(), DETAIL_CHARS_MAX);
    }
}
