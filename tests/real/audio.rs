//! Two participants hear one another through a room that the driver made on a real Janus.

use std::time::Duration;

use sfu_api::SessionId;
use syncer::drivers::{CredentialRequest, Ended, JanusPlugin};
use tokio::time::Instant;

use crate::client::Endpoint;
use crate::conformance::{end_of, room};
use crate::janus::{Janus, soon, trusting};
use crate::phone::{Ear, Phone};
use crate::pki::Authority;

/// Frames of tone to hear: 3 s of it.
const FRAMES: usize = 150;

/// A gap that a listener takes for a break. A healthy room on an idle machine stays below 60 ms;
/// this machine may be busy.
const BREAK: Duration = Duration::from_secs(1);

#[tokio::test]
async fn two_participants_hear_each_other_without_a_break() {
    let authority = Authority::new();
    let janus = Janus::start("sfu-1", &authority).await;
    let http = trusting(authority.pem());
    let driver = janus.driver(JanusPlugin::Audiobridge);
    let spec = room(&*driver, "m", 1, None);
    let ready = driver.ensure_room(spec.clone(), soon()).await.expect("made");
    let endpoint = Endpoint::parse(&ready.endpoint).expect("an endpoint for clients");
    let pin = |session: &str| {
        let session = SessionId::new(session).expect("valid id");
        let request = CredentialRequest { session: &session, room: &spec.room, epoch: spec.epoch };
        driver.credential(&request).expect("derived").into_token()
    };

    let stranger = Phone::join(&http, &endpoint, "not the pin", "x", Ear::new()).await;
    assert!(stranger.expect_err("needs the pin").0.contains("pin"), "the credential is what admits");

    let ears = [Ear::new(), Ear::new()];
    let _one = Phone::join(&http, &endpoint, &pin("a"), "a", ears[0].clone()).await.expect("joined");
    let _two = Phone::join(&http, &endpoint, &pin("b"), "b", ears[1].clone()).await.expect("joined");
    assert_eq!(driver.participants(spec.room.clone(), soon()).await.expect("asked"), Some(2));
    assert_eq!(driver.list_rooms(soon()).await.expect("listed").load.map(|load| load.participants), Some(2));

    // The first frames fill Janus's own buffers.
    tokio::join!(ears[0].listen(5), ears[1].listen(5));
    let start = Instant::now();
    tokio::join!(ears[0].listen(FRAMES), ears[1].listen(FRAMES));
    let end = Instant::now();
    for (name, ear) in ["a", "b"].iter().zip(&ears) {
        let hearing = ear.hearing(start, end);
        println!("{name} heard {hearing:?} in {:?}", end.saturating_duration_since(start));
        assert!(hearing.gap_max < BREAK, "{name}: {hearing:?}");
    }

    let end = end_of(&spec);
    assert_eq!(driver.end_room(end.clone(), false, soon()).await.expect("asked"), Ended::Occupied);
    assert_eq!(janus.rooms(JanusPlugin::Audiobridge).await.len(), 1, "media outlives the control plane's wishes");
    assert_eq!(driver.end_room(end, true, soon()).await.expect("asked"), Ended::Destroyed);
}
