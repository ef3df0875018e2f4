//! Sessions that really connect: the proof that endpoint and token work.
//!
//! A share of the sessions attaches to the endpoint it is given, leaves it when it goes away, and
//! attaches to the next. Level-triggered too: each session has a wanted place and one task at most,
//! which works until what is is what is wanted.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use sfu_api::Epoch;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pace::full_jitter;
use crate::population::{CallIx, Population, SessionIx};
use crate::stats::Count;

/// Sessions that attach; of a larger share only the first ones do.
const SESSIONS_MAX: usize = 20_000;
/// Attach and detach requests at once.
const REQUESTS_MAX: usize = 64;
/// An attach that takes longer has failed.
const ATTACH_MAX: Duration = Duration::from_secs(5);
/// A farewell is a courtesy.
const DETACH_MAX: Duration = Duration::from_secs(1);
/// Attempts at one endpoint before the session waits for another.
const ATTEMPTS_MAX: u32 = 8;

#[derive(Clone, Debug, PartialEq)]
struct Place {
    epoch: Epoch,
    url: String,
    token: String,
}

#[derive(Debug, Default)]
struct Seat {
    wanted: Option<Place>,
    is: Option<Place>,
    busy: bool,
}

/// The sessions that attach.
#[derive(Debug)]
pub(crate) struct Media {
    client: reqwest::Client,
    seats: Mutex<FxHashMap<SessionIx, Seat>>,
    by_call: FxHashMap<(u16, CallIx), Vec<SessionIx>>,
    names: FxHashMap<SessionIx, String>,
    permits: Semaphore,
    tracker: TaskTracker,
    cancel: CancellationToken,
    pub(crate) attaches: Count,
    pub(crate) rejected: Count,
    pub(crate) failed: Count,
}

// === impl Media ===

impl Media {
    pub(crate) fn new(
        population: &Population,
        client: reqwest::Client,
        tracker: TaskTracker,
        cancel: CancellationToken,
    ) -> Self {
        let mut by_call: FxHashMap<_, Vec<_>> = FxHashMap::default();
        let mut names = FxHashMap::default();
        let attaching = (0..).zip(population.sessions()).filter(|(_, s)| s.media).take(SESSIONS_MAX);
        for (ix, session) in attaching {
            by_call.entry((session.gateway, session.call)).or_default().push(ix);
            names.insert(ix, population.session_name(ix));
        }
        Self {
            client,
            seats: Mutex::new(names.keys().map(|ix| (*ix, Seat::default())).collect()),
            by_call,
            names,
            permits: Semaphore::new(REQUESTS_MAX),
            tracker,
            cancel,
            attaches: Count::default(),
            rejected: Count::default(),
            failed: Count::default(),
        }
    }

    /// Whether any session connects.
    pub(crate) fn is_on(&self) -> bool {
        !self.names.is_empty()
    }

    /// The session may connect there.
    pub(crate) fn offer(self: &Arc<Self>, session: SessionIx, epoch: Epoch, endpoint: &str, token: &str) {
        if !self.names.contains_key(&session) {
            return;
        }
        let place = Place { epoch, url: endpoint.to_owned(), token: token.to_owned() };
        self.want(session, epoch, Some(place));
    }

    /// The endpoint of this epoch went away for the gateway's sessions in the call.
    pub(crate) fn lost(self: &Arc<Self>, gateway: u16, call: CallIx, epoch: Epoch) {
        for session in self.by_call.get(&(gateway, call)).into_iter().flatten() {
            self.want(*session, epoch, None);
        }
    }

    /// Everyone disconnects.
    pub(crate) fn stop(self: &Arc<Self>) {
        let attached: Vec<SessionIx> = {
            let mut seats = self.seats.lock();
            seats.values_mut().for_each(|seat| seat.wanted = None);
            let idle = seats.iter_mut().filter(|(_, seat)| seat.is.is_some() && !seat.busy);
            idle.map(|(session, seat)| (*session, seat.busy = true).0).collect()
        };
        for session in attached {
            self.start(session);
        }
    }

    fn start(self: &Arc<Self>, session: SessionIx) {
        let media = Arc::clone(self);
        let cancel = self.cancel.clone();
        self.tracker.spawn(cancel.run_until_cancelled_owned(async move { media.work(session).await }));
    }

    fn want(self: &Arc<Self>, session: SessionIx, epoch: Epoch, place: Option<Place>) {
        {
            let mut seats = self.seats.lock();
            let Some(seat) = seats.get_mut(&session) else { return };
            if seat.wanted.as_ref().is_some_and(|wanted| wanted.epoch > epoch) {
                return;
            }
            let same = match (&seat.wanted, &place) {
                // A fresh token for the same place is no reason to connect again.
                (Some(old), Some(new)) => old.epoch == new.epoch && old.url == new.url,
                (None, None) => true,
                _ => false,
            };
            if same {
                return;
            }
            seat.wanted = place;
            if std::mem::replace(&mut seat.busy, true) {
                return;
            }
        }
        self.start(session);
    }

    /// Works until the session is where it is wanted, or its endpoint has failed too often.
    async fn work(&self, session: SessionIx) {
        let mut attempts = 0;
        loop {
            let (is, wanted) = {
                let mut seats = self.seats.lock();
                let Some(seat) = seats.get_mut(&session) else { return };
                if seat.is == seat.wanted || attempts >= ATTEMPTS_MAX {
                    seat.busy = false;
                    return;
                }
                (seat.is.take(), seat.wanted.clone())
            };
            if let Some(place) = is {
                self.request(session, &place, false).await;
            }
            let Some(place) = wanted else { continue };
            if self.request(session, &place, true).await {
                self.attaches.add(1);
                attempts = 0;
                self.set_is(session, place);
            } else {
                attempts += 1;
                if self.is_wanted(session, &place) {
                    let wait = full_jitter(attempts, &mut rand::rng());
                    tokio::time::sleep(wait).await;
                } else {
                    attempts = 0;
                }
            }
        }
    }

    fn set_is(&self, session: SessionIx, place: Place) {
        if let Some(seat) = self.seats.lock().get_mut(&session) {
            seat.is = Some(place);
        }
    }

    fn is_wanted(&self, session: SessionIx, place: &Place) -> bool {
        self.seats.lock().get(&session).is_some_and(|seat| seat.wanted.as_ref() == Some(place))
    }

    async fn request(&self, session: SessionIx, place: &Place, attach: bool) -> bool {
        let Ok(_permit) = self.permits.acquire().await else { return false };
        let url = format!("{}/{}", place.url.trim_end_matches('/'), self.names[&session]);
        let request = if attach { self.client.put(url) } else { self.client.delete(url) };
        let timeout = if attach { ATTACH_MAX } else { DETACH_MAX };
        match request.bearer_auth(&place.token).timeout(timeout).send().await {
            Ok(response) if response.status().is_success() => true,
            Ok(response) if attach => {
                self.rejected.add(1);
                tracing::debug!(status = %response.status(), endpoint = place.url, "attach rejected");
                false
            }
            Err(error) if attach => {
                self.failed.add(1);
                tracing::debug!(%error, endpoint = place.url, "attach failed");
                false
            }
            _ => false,
        }
    }

    /// Sessions that are connected, and sessions that have an endpoint they are not connected to.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let seats = self.seats.lock();
        let attached = seats.values().filter(|seat| seat.is.is_some()).count();
        let missing = seats.values().filter(|seat| seat.wanted.is_some() && seat.is != seat.wanted).count();
        (u64::try_from(attached).unwrap_or(u64::MAX), u64::try_from(missing).unwrap_or(u64::MAX))
    }
}
