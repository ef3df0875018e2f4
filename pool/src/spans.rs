//! Spans: the way of a request and of a dial, for whoever collects traces.
//!
//! A request and a dial are two spans and not one inside the other, because a dial outlives the caller that caused
//! it and serves another. Stages are their children. All are of level debug, under the target `pool`. Where nobody
//! listens a span costs a look at its callsite, and a connection that is had at once makes none for the queue.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tracing::field::Empty;
use tracing::{Span, debug_span};

use crate::body::{Held, Hold};
use crate::error::Stage;
use crate::origin::Origin;

/// A request, from the first look for a connection to the end of the response's body. A word of memory when nobody
/// listens: in a storm it waits in every caller's future.
#[derive(Debug)]
pub(crate) struct RequestSpan(Option<Box<Span>>);

/// A wait for a connection, whose span begins when there is something to wait for.
pub(crate) struct Queue<'a, F> {
    wait: F,
    request: &'a RequestSpan,
    span: Option<Box<Span>>,
}

/// What a body holds, with the span of the stage that ends with it.
#[derive(Debug)]
struct Traced {
    hold: Hold,
    _span: Span,
}

/// A dial, from its slot to the connection.
pub(crate) fn dial(lane: &str, origin: &Origin) -> Span {
    debug_span!(target: "pool", parent: None, "pool.dial", lane, %origin, outcome = Empty)
}

/// A stage of the dial in whose span we are.
pub(crate) fn stage(stage: Stage) -> Span {
    debug_span!(target: "pool", "pool.stage", stage = stage.as_str())
}

// === impl RequestSpan ===

impl RequestSpan {
    pub(crate) fn new(lane: &str, origin: &Origin) -> Self {
        let span = debug_span!(target: "pool", "pool.request", lane, %origin, outcome = Empty);
        Self((!span.is_disabled()).then(|| Box::new(span)))
    }

    pub(crate) fn queue<F: Future + Unpin>(&self, wait: F) -> Queue<'_, F> {
        Queue { wait, request: self, span: None }
    }

    /// The stage in which the request is sent, until the head of its response.
    pub(crate) fn send(&self, reused: bool) -> Span {
        let Some(request) = self.0.as_deref() else { return Span::none() };
        debug_span!(target: "pool", parent: request, "pool.stage", stage = Stage::Send.as_str(), reused)
    }

    /// The stage that ends with the body.
    pub(crate) fn response(&self, hold: Hold) -> Hold {
        self.ended("answered");
        let Some(request) = self.0.as_deref() else { return hold };
        let stage = Stage::Response.as_str();
        Box::new(Traced { hold, _span: debug_span!(target: "pool", parent: request, "pool.stage", stage) })
    }

    /// How it ended; a caller who left is not told of.
    pub(crate) fn ended(&self, outcome: &'static str) {
        if let Some(span) = &self.0 {
            span.record("outcome", outcome);
        }
    }
}

// === impl Queue ===

impl<F: Future + Unpin> Future for Queue<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polled = Pin::new(&mut self.wait).poll(cx);
        if polled.is_pending()
            && self.span.is_none()
            && let Some(request) = self.request.0.as_deref()
        {
            let stage = Stage::Queue.as_str();
            self.span = Some(Box::new(debug_span!(target: "pool", parent: request, "pool.stage", stage)));
        }
        polled
    }
}

// === impl Traced ===

impl Held for Traced {
    fn late(&mut self) {
        self.hold.late();
    }

    fn broken(&mut self) {
        self.hold.broken();
    }

    fn left(&mut self) {
        self.hold.left();
    }

    fn untimed(&mut self) {
        self.hold.untimed();
    }
}
