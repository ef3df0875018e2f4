//! Who has a place, and who makes room when there is none left.
//!
//! A connection keeps its place for good only while it does something for somebody: while a request is under way whose
//! body has arrived and whose answer has not been made yet, or while an answer is a stream for a caller we know (a
//! watch, the bulk road). Any other connection *waits for its client*, in one of four groups:
//!
//! | group | it waits for |
//! |---|---|
//! | known | the next request, after one whose caller was known |
//! | stranger | the next request, after others |
//! | slow | the rest of a body, or the client to read an answer |
//! | silent | the first request, or the handshake before it |
//!
//! At the cap each connection that comes takes the place of the one that waits longest **in the largest group**, of which
//! *known* counts a quarter: a crowd
//! displaces itself, whatever it does not do. So nobody is displaced before as many have come to wait after it, in the
//! same way, as are a quarter of all who wait. That is what a strict order of groups would not give: behind
//! ten thousand who idle, a newcomer would have to ask before the next one connects. And gateways between two requests go
//! only where they are the crowd. To close an idle connection is any server's right (RFC 9112, 9.8; over HTTP/2 a GOAWAY
//! is sent); who is cut in half a body or an answer has not been told that anything was done.
//!
//! Where nobody waits, the stream that has stood longest makes room: its caller opens it anew and goes on where it was, and
//! whoever turned the cap down too far can still turn it up. Where there is none either, all work, and who comes next waits
//! for the first to end, or to wait.
//!
//! Moves between groups are a lock and two steps in ordered maps of at most `http.connections_max` entries.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use rate_limit::Lever;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::HttpMetrics;

/// The places of a listener.
#[derive(Debug)]
pub(super) struct Places {
    /// Read whenever somebody comes. Those beyond one that shrank make room for the next who comes.
    max: Lever<u64>,
    taken: AtomicU64,
    waiting: Mutex<Waiting>,
    /// Somebody came to wait.
    came: Notify,
    /// A place was given back.
    freed: Notify,
}

/// Who waits for its client, and who streams, each group in the order in which they came to it.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    groups: [BTreeMap<u64, CancellationToken>; Group::ALL.len()],
}

/// What a connection waits for; of groups of one size the last makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// Nothing: it streams, and makes room when nobody waits.
    Streaming,
    Known,
    Stranger,
    Slow,
    Silent,
}

/// A connection's place, given back when it ends.
#[derive(Debug)]
pub(super) struct Place {
    seat: Arc<Seat>,
}

/// What is known of who has a place.
#[derive(Debug)]
pub(super) struct Seat {
    places: Arc<Places>,
    leave: CancellationToken,
    known: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    asked: bool,
    under_way: usize,
    /// Of those, the ones that something is done for,
    at_work: usize,
    /// and those whose answer is a stream for somebody known.
    streaming: usize,
    /// Where it stands among those who wait.
    waits: Option<(Group, u64)>,
    /// It was told to leave, or has ended.
    gone: bool,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its body arrives.
    Sending,
    /// It is done.
    AtWork,
    /// Its answer is whole, and is written.
    Reading,
    /// Its answer is a stream for somebody known.
    Streaming,
    Over,
}

/// A request under way, seen from where its body is read.
#[derive(Debug)]
struct Visit {
    seat: Arc<Seat>,
    stage: Mutex<Stage>,
}

/// A request under way, until its answer has been written.
#[derive(Debug)]
pub(super) struct Attended(Arc<Visit>);

/// A request's body; notes when it is whole, or not wanted any more.
#[derive(Debug)]
pub(super) struct Arriving<B> {
    body: B,
    visit: Option<Arc<Visit>>,
}

// === impl Places ===

impl Places {
    pub(super) fn new(max: Lever<u64>) -> Arc<Self> {
        Arc::new(Self {
            max,
            taken: AtomicU64::new(0),
            waiting: Mutex::default(),
            came: Notify::new(),
            freed: Notify::new(),
        })
    }

    /// A place, once there is one; somebody who waits makes room. Looks again when levers have `turned`.
    ///
    /// # Cancel safety
    ///
    /// Safe; a place that was made and not taken is free.
    pub(super) async fn take(self: &Arc<Self>, turned: &mut watch::Receiver<u64>, metrics: &HttpMetrics) -> Place {
        turned.mark_unchanged(); // the limit is read below
        loop {
            let freed = self.freed.notified(); // hears of what is given back from here on
            if let Some(place) = self.try_take() {
                return place;
            }
            if let Some(group) = self.crowd_out() {
                metrics.refused(group.why());
                freed.await;
                continue;
            }
            tokio::select! {
                () = freed => {}
                () = self.came.notified() => {}
                Ok(()) = turned.changed() => {}
            }
        }
    }

    /// A place, if one is free.
    fn try_take(self: &Arc<Self>) -> Option<Place> {
        let max = self.max.get();
        let one_more = |taken| (taken < max).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        let seat = Seat {
            places: Arc::clone(self),
            leave: CancellationToken::new(),
            known: AtomicBool::new(false),
            state: Mutex::default(),
        };
        seat.change(|_| {});
        Some(Place { seat: Arc::new(seat) })
    }

    /// Asks the one that waits longest in the largest group to leave.
    fn crowd_out(&self) -> Option<Group> {
        let mut waiting = self.waiting.lock();
        let len = |group: &Group| waiting.groups[*group as usize].len();
        let some = Group::ALL.into_iter().filter(|group| len(group) > 0);
        let group = some.max_by_key(|group| len(group) * group.weight())?;
        let (_, leave) = waiting.groups[group as usize].pop_first()?;
        drop(waiting);
        leave.cancel(); // outside of the lock: this wakes its task
        Some(group)
    }

    /// From one group to another, or to none; false for one that was told to leave.
    fn stand(&self, waits: &mut Option<(Group, u64)>, to: Option<Group>, leave: &CancellationToken) -> bool {
        let mut waiting = self.waiting.lock();
        if let Some((group, since)) = waits.take()
            && waiting.groups[group as usize].remove(&since).is_none()
        {
            return false;
        }
        *waits = to.map(|group| {
            let since = waiting.next;
            waiting.next += 1;
            waiting.groups[group as usize].insert(since, leave.clone());
            (group, since)
        });
        drop(waiting);
        if to.is_some() {
            self.came.notify_one();
        }
        true
    }
}

// === impl Group ===

impl Group {
    const ALL: [Self; 5] = [Self::Streaming, Self::Known, Self::Stranger, Self::Slow, Self::Silent];

    /// What each in it counts for when groups are compared. Those who were known have shown who they are, which no crowd
    /// can: while they are less than four times any other group, they stay.
    const fn weight(self) -> usize {
        match self {
            Self::Streaming => 0,
            Self::Known => 1,
            Self::Stranger | Self::Slow | Self::Silent => 4,
        }
    }

    /// How those who made room are counted.
    const fn why(self) -> &'static str {
        match self {
            Self::Streaming => "crowded_out_stream",
            Self::Known | Self::Stranger => "crowded_out_idle",
            Self::Slow => "crowded_out_slow",
            Self::Silent => "crowded_out",
        }
    }
}

// === impl Place ===

impl Place {
    /// Cancelled when another takes the place.
    pub(super) fn leave(&self) -> &CancellationToken {
        &self.seat.leave
    }

    pub(super) fn seat(&self) -> Arc<Seat> {
        Arc::clone(&self.seat)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.seat.change(|state| state.gone = true);
        self.seat.places.taken.fetch_sub(1, Ordering::AcqRel);
        self.seat.places.freed.notify_waiters();
    }
}

// === impl Seat ===

impl Seat {
    /// The caller of a request is one we know.
    pub(super) fn know(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// A head is complete: a request is under way until the guard is dropped.
    pub(super) fn request<B: Body>(self: &Arc<Self>, body: B) -> (Arriving<B>, Attended) {
        let sending = !body.is_end_stream();
        let stage = if sending { Stage::Sending } else { Stage::AtWork };
        self.change(|state| {
            state.asked = true;
            state.under_way += 1;
            state.at_work += usize::from(stage == Stage::AtWork);
        });
        let visit = Arc::new(Visit { seat: Arc::clone(self), stage: Mutex::new(stage) });
        (Arriving { body, visit: sending.then(|| Arc::clone(&visit)) }, Attended(visit))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        let group = self.group(&state);
        if state.waits.map(|(group, _)| group) == group || (state.gone && state.waits.is_none()) {
            return;
        }
        if !self.places.stand(&mut state.waits, group, &self.leave) {
            state.gone = true;
        }
    }

    fn group(&self, state: &State) -> Option<Group> {
        if state.gone || state.at_work > 0 {
            None
        } else if state.streaming > 0 {
            Some(Group::Streaming)
        } else if state.under_way > 0 {
            Some(Group::Slow)
        } else if !state.asked {
            Some(Group::Silent)
        } else if self.known.load(Ordering::Relaxed) {
            Some(Group::Known)
        } else {
            Some(Group::Stranger)
        }
    }
}

// === impl Visit ===

impl Visit {
    fn turn(&self, next: impl FnOnce(Stage) -> Stage) {
        let mut stage = self.stage.lock();
        let before = *stage;
        *stage = next(before);
        if before == *stage {
            return;
        }
        self.seat.change(|state| {
            state.at_work -= usize::from(before == Stage::AtWork);
            state.at_work += usize::from(*stage == Stage::AtWork);
            state.streaming -= usize::from(before == Stage::Streaming);
            state.streaming += usize::from(*stage == Stage::Streaming);
            state.under_way -= usize::from(*stage == Stage::Over);
        });
    }

    fn arrived(&self) {
        self.turn(|stage| if stage == Stage::Sending { Stage::AtWork } else { stage });
    }
}

// === impl Attended ===

impl Attended {
    /// The answer has been made; it may be a stream.
    pub(super) fn answered(&self, streams: bool) {
        let streams = streams && self.0.seat.known.load(Ordering::Relaxed);
        self.0.turn(|_| if streams { Stage::Streaming } else { Stage::Reading });
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.0.turn(|_| Stage::Over);
    }
}

// === impl Arriving ===

impl<B: Body<Data = Bytes> + Unpin> Body for Arriving<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if (!matches!(frame, Some(Ok(_))) || this.body.is_end_stream())
            && let Some(visit) = this.visit.take()
        {
            visit.arrived();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Arriving<B> {
    fn drop(&mut self) {
        if let Some(visit) = self.visit.take() {
            visit.arrived();
        }
    }
}

#[cfg(test)]
impl Place {
    /// A place for a test.
    pub(super) fn alone() -> Self {
        Places::new(Lever::fixed(1)).try_take().expect("one")
    }
}

#[cfg(test)]
mod tests;
