//! Bodies, honest and not.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{Either, Full};

use super::serve::Answer;
use crate::fault::Garbage;

/// Size of a huge body: far beyond what any answer of the contract needs.
const HUGE_BYTES: usize = 10 * 1000 * 1000;
/// How much more a lying `Content-Length` promises.
const LIE_BYTES: usize = 1000;

/// Body of every answer.
pub(super) type Body = Either<Full<Bytes>, Unannounced>;

/// A body that does not say how long it is, so that its headers can lie about it.
#[derive(Debug)]
pub(super) struct Unannounced(Option<Bytes>);

/// A body that is what it seems.
pub(super) fn whole(bytes: Bytes) -> Body {
    Either::Left(Full::new(bytes))
}

/// The answer, damaged.
pub(super) fn garble(answer: &Answer, what: Garbage) -> Response<Body> {
    let mut response = Response::new(match what {
        Garbage::Body => whole(Bytes::from_static(b"{\"endpoint\":}{\xff\x00 not json")),
        Garbage::ContentType => whole(Bytes::from_static(b"<html><body><h1>It works!</h1></body></html>")),
        Garbage::Huge => whole(huge()),
        Garbage::Length => Either::Right(Unannounced(Some(Bytes::from(answer.body.clone())))),
    });
    *response.status_mut() = answer.status;
    let kind = if what == Garbage::ContentType { "text/html" } else { "application/json" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if what == Garbage::Length {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(answer.body.len() + LIE_BYTES));
    }
    response
}

fn huge() -> Bytes {
    static HUGE: OnceLock<Bytes> = OnceLock::new();
    let make = || {
        let mut body = b"{\"padding\":\"".to_vec();
        body.resize(HUGE_BYTES - 2, b'x');
        body.extend_from_slice(b"\"}");
        Bytes::from(body)
    };
    HUGE.get_or_init(make).clone()
}

// === impl Unannounced ===

impl http_body::Body for Unannounced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}
