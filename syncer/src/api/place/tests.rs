use http_body_util::{BodyExt as _, Empty};
use proptest::prelude::*;

use super::*;

type Nothing = Empty<Bytes>;

fn room(places: u64) -> (Arc<Places>, impl Fn() -> Place) {
    let all = Places::new(Lever::fixed(places));
    let enter = {
        let all = Arc::clone(&all);
        move || all.try_take().expect("a place")
    };
    (all, enter)
}

/// A body of two parts.
fn parts() -> axum::body::Body {
    let parts = ["a", "b"].map(|part| Ok::<_, std::io::Error>(Bytes::from(part)));
    axum::body::Body::from_stream(futures_util::stream::iter(parts))
}

fn waits(place: &Place) -> Option<Group> {
    place.seat.state.lock().waits.map(|(group, _)| group)
}

#[tokio::test]
async fn a_connection_works_from_a_whole_body_to_a_whole_answer() {
    let (places, enter) = room(2);
    let place = enter();
    assert_eq!(waits(&place), Some(Group::Silent));
    let (mut body, attended) = place.seat().request(parts());
    assert_eq!(waits(&place), Some(Group::Slow), "the body is not here");
    body.frame().await.expect("a part").expect("no error");
    assert_eq!(waits(&place), Some(Group::Slow), "half of it is");
    while body.frame().await.is_some() {}
    assert_eq!(waits(&place), None);
    let (_, another) = place.seat().request(Nothing::new());
    attended.answered(false);
    assert_eq!(waits(&place), None, "another request is at work");
    another.answered(false);
    assert_eq!(waits(&place), Some(Group::Slow), "whoever reads an answer is waited for");
    drop((attended, another));
    assert_eq!(waits(&place), Some(Group::Stranger));
    place.seat().know();
    drop(place.seat().request(Nothing::new()));
    assert_eq!(waits(&place), Some(Group::Known));
    drop(place);
    assert!(places.crowd_out().is_none() && places.taken.load(Ordering::Acquire) == 0, "nothing is left of it");
}

#[tokio::test]
async fn a_stream_keeps_its_place_if_its_caller_is_known() {
    let (_places, enter) = room(1);
    let place = enter();
    let (body, attended) = place.seat().request(parts());
    attended.answered(true);
    assert_eq!(waits(&place), Some(Group::Slow), "of nobody");
    place.seat().know();
    attended.answered(true);
    assert_eq!(waits(&place), Some(Group::Streaming), "though its body has no end");
    drop(body);
    assert_eq!(waits(&place), Some(Group::Streaming));
    let (_, at_work) = place.seat().request(Nothing::new());
    assert_eq!(waits(&place), None, "beside it something is done");
    drop(at_work);
    assert_eq!(waits(&place), Some(Group::Streaming));
    drop(attended);
    assert_eq!(waits(&place), Some(Group::Known));
}

#[test]
fn a_body_that_is_not_wanted_is_not_waited_for() {
    let (_places, enter) = room(1);
    let place = enter();
    let (body, _attended) = place.seat().request(parts());
    drop(body);
    assert_eq!(waits(&place), None);
}

#[test]
fn the_oldest_of_the_largest_group_makes_room() {
    let (places, enter) = room(6);
    let idle: Vec<Place> = (0..3).map(|_| enter()).collect();
    idle.iter().for_each(|place| drop(place.seat().request(Nothing::new())));
    let silent: Vec<Place> = (0..2).map(|_| enter()).collect();
    let working = enter();
    let _attended = working.seat().request(Nothing::new()).1;
    let left = |places: &[Place]| places.iter().map(|place| place.leave().is_cancelled()).collect::<Vec<_>>();
    assert_eq!(places.crowd_out(), Some(Group::Stranger));
    assert_eq!((left(&idle), left(&silent)), (vec![true, false, false], vec![false, false]));
    assert_eq!(places.crowd_out(), Some(Group::Silent), "of two as large, those who never asked");
    assert_eq!((left(&idle), left(&silent)), (vec![true, false, false], vec![true, false]));
    // Who asks again begins to wait anew, and who was told to leave does not come back.
    drop(idle[1].seat().request(Nothing::new()));
    drop(idle[0].seat().request(Nothing::new()));
    assert_eq!(places.crowd_out(), Some(Group::Stranger));
    assert_eq!(left(&idle), [true, false, true]);
    assert_eq!([places.crowd_out(), places.crowd_out()], [Some(Group::Silent), Some(Group::Stranger)]);
    assert_eq!(places.crowd_out(), None);
    assert!(!working.leave().is_cancelled());
}

#[tokio::test]
async fn where_all_work_the_first_to_wait_makes_room() {
    let places = Places::new(Lever::fixed(1));
    let metrics = HttpMetrics::default();
    let (_turn, mut turned) = watch::channel(0);
    let mut turned_too = turned.clone();
    let place = places.take(&mut turned, &metrics).await;
    let attended = place.seat().request(Nothing::new()).1;
    let leaves = place.leave().clone();
    let mut next = std::pin::pin!(places.take(&mut turned_too, &metrics));
    assert!(futures_util::poll!(next.as_mut()).is_pending() && !leaves.is_cancelled());
    drop(attended);
    assert!(futures_util::poll!(next.as_mut()).is_pending() && leaves.is_cancelled());
    assert_eq!(metrics.refusals("crowded_out_idle"), 1);
    drop(place);
    assert!(futures_util::poll!(next).is_ready());
}

/// The first of them, and only where nobody waits.
#[tokio::test]
async fn a_stream_makes_room_where_nobody_waits() {
    let (places, enter) = room(3);
    let all: Vec<(Place, Attended)> = (0..2)
        .map(|_| {
            let place = enter();
            place.seat().know();
            let attended = place.seat().request(Nothing::new()).1;
            attended.answered(true);
            (place, attended)
        })
        .collect();
    let silent = enter();
    let left = || [all[0].0.leave(), all[1].0.leave(), silent.leave()].map(CancellationToken::is_cancelled);
    assert_eq!((places.crowd_out(), left()), (Some(Group::Silent), [false, false, true]));
    assert_eq!((places.crowd_out(), left()), (Some(Group::Streaming), [true, false, true]));
    assert_eq!((places.crowd_out(), left()), (Some(Group::Streaming), [true, true, true]));
    assert_eq!(places.crowd_out(), None);
}

/// A limit that is raised lets in who waits, and a lever that turns meanwhile has nobody else leave for the same one.
#[tokio::test]
async fn r20_levers_turn_while_somebody_waits_for_a_place() {
    let levers = rate_limit::Levers::new();
    let limits = crate::api::limits::HttpLevers::register(&levers);
    let set = |max: u64| levers.set("http.connections_max", &max.into(), "test", None, 0).expect("in range");
    set(2);
    let places = Places::new(limits.connections_max.clone());
    let (metrics, mut turned) = (HttpMetrics::default(), levers.changed());
    let idle = [places.take(&mut turned.clone(), &metrics).await, places.take(&mut turned.clone(), &metrics).await];
    let mut next = std::pin::pin!(places.take(&mut turned, &metrics));
    assert!(futures_util::poll!(next.as_mut()).is_pending());
    levers.set("http.age", &"1h".into(), "test", None, 0).expect("in range");
    assert!(futures_util::poll!(next.as_mut()).is_pending());
    assert_eq!(idle.each_ref().map(|place| place.leave().is_cancelled()), [true, false], "one for one");
    let [first, second] = idle;
    drop(first);
    let third = next.await;
    let working = [second, third].map(|place| {
        let attended = place.seat().request(Nothing::new()).1;
        (place, attended)
    });
    let mut turned = levers.changed();
    let mut next = std::pin::pin!(places.take(&mut turned, &metrics));
    assert!(futures_util::poll!(next.as_mut()).is_pending(), "both work");
    set(3);
    assert!(futures_util::poll!(next.as_mut()).is_ready());
    drop(working);
}

/// A request under way, and its body while that is on its way.
type Request = (Option<Arriving<axum::body::Body>>, Attended);

#[derive(Clone, Copy, Debug)]
enum Event {
    Come,
    Ask(usize),
    Half(usize),
    End(usize),
    Leave(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Come),
        2 => (0..8usize).prop_map(Event::Ask),
        2 => (0..8usize).prop_map(Event::Half),
        3 => (0..8usize).prop_map(Event::End),
        1 => (0..8usize).prop_map(Event::Leave),
    ]
}

proptest! {
    /// Whatever comes, exactly those who do nothing wait, nobody else makes room, and a place is there for whoever comes
    /// unless all work.
    #[test]
    fn r19_only_who_waits_makes_room(events in prop::collection::vec(event(), 1..200)) {
        let (places, enter) = room(4);
        let mut here: Vec<(Place, Vec<Request>)> = Vec::new();
        for event in events {
            let count = here.len().max(1);
            match event {
                Event::Come if here.len() < 4 => here.push((enter(), Vec::new())),
                Event::Come => {
                    let left = places.crowd_out();
                    let told = here.iter().position(|(place, _)| place.leave().is_cancelled());
                    prop_assert_eq!(left.is_some(), told.is_some());
                    match told {
                        Some(at) => {
                            let works = here[at].1.iter().any(|(sending, _)| sending.is_none());
                            prop_assert!(!works, "it was at work");
                            drop(here.remove(at));
                        }
                        None => prop_assert!(here.iter().all(|(_, visits)| visits.iter().any(|(s, _)| s.is_none()))),
                    }
                }
                Event::Ask(at) => if let Some((place, visits)) = here.get_mut(at % count) {
                    visits.push((None, place.seat().request(axum::body::Body::empty()).1));
                },
                Event::Half(at) => if let Some((place, visits)) = here.get_mut(at % count) {
                    let (body, attended) = place.seat().request(parts());
                    visits.push((Some(body), attended));
                },
                Event::End(at) => if let Some((_, visits)) = here.get_mut(at % count) {
                    visits.pop();
                },
                Event::Leave(at) => if at < here.len() {
                    drop(here.remove(at));
                },
            }
            let waiting: usize = places.waiting.lock().groups.iter().map(BTreeMap::len).sum();
            let idle = here.iter().filter(|(_, visits)| visits.iter().all(|(sending, _)| sending.is_some())).count();
            prop_assert_eq!(waiting, idle);
        }
    }
}
