//! The whole system: a syncer process places calls on three Janus servers that crash, hang and restart.

use std::time::Duration;

use syncer::drivers::JanusPlugin;
use tokio::time::Instant;

use crate::client::Endpoint;
use crate::common::{PATIENCE, eventually};
use crate::janus::{Janus, trusting};
use crate::phone::{Ear, Phone};
use crate::pki::Authority;
use crate::syncer::{Call, News, Syncer};

const PLUGIN: JanusPlugin = JanusPlugin::Audiobridge;

/// Calls of a test: several on each server, well below every bucket.
const CALLS: usize = 12;

struct Fleet {
    authority: Authority,
    janus: Vec<Janus>,
    syncer: Syncer,
}

impl Fleet {
    async fn start(settings: &[&str]) -> Self {
        let authority = Authority::new();
        let mut janus = Vec::new();
        for name in ["sfu-1", "sfu-2", "sfu-3"] {
            janus.push(Janus::start(name, &authority).await);
        }
        let syncer = Syncer::start(&authority, &janus, settings).await;
        Self { authority, janus, syncer }
    }

    /// Makes calls and waits until each is placed.
    async fn with_calls(settings: &[&str]) -> (Self, Vec<Call>) {
        let fleet = Self::start(settings).await;
        for n in 0..CALLS {
            fleet.syncer.join(&format!("c{n:02}"), "s").await;
        }
        let calls = fleet.syncer.placed(CALLS, |_| true).await;
        fleet.agrees(&calls).await;
        (fleet, calls)
    }

    fn at(&self, sfu: &str) -> usize {
        self.janus.iter().position(|janus| janus.name == sfu).expect("one of ours")
    }

    /// The server that holds most calls.
    fn busiest(&self, calls: &[Call]) -> String {
        let held = |janus: &&Janus| calls.iter().filter(|call| call.sfu == janus.name).count();
        self.janus.iter().max_by_key(held).expect("three").name.clone()
    }

    /// Every call's room is in the own list of the server it is placed on.
    async fn agrees(&self, calls: &[Call]) {
        for call in calls {
            let janus = &self.janus[self.at(&call.sfu)];
            let rooms = janus.rooms(PLUGIN).await;
            assert!(rooms.contains(&call.room), "{call:?} is not in {rooms:?}");
            let endpoint = Endpoint::parse(&call.endpoint).expect("an endpoint for clients");
            assert_eq!((endpoint.url, endpoint.room), (janus.client_url(), call.room.clone()));
        }
    }
}

fn on<'a>(calls: &'a [Call], sfu: &str) -> Vec<&'a Call> {
    calls.iter().filter(|call| call.sfu == sfu).collect()
}

#[tokio::test]
async fn r13_calls_of_a_killed_janus_move_to_the_others_and_no_other_call_moves() {
    let (mut fleet, before) = Fleet::with_calls(&[]).await;
    let victim = fleet.busiest(&before);
    let lost = on(&before, &victim).len();
    let index = fleet.at(&victim);
    let killed = Instant::now();
    fleet.janus[index].kill();
    let after = fleet.syncer.placed(CALLS, |calls| on(calls, &victim).is_empty()).await;
    println!("{lost} calls of {victim} placed again after {:?}", Instant::now().saturating_duration_since(killed));
    fleet.syncer.believes(&victim, "dead").await;
    fleet.agrees(&after).await;
    for (before, after) in before.iter().zip(&after).filter(|(before, _)| before.sfu != victim) {
        assert_eq!(before, after, "a call on a surviving server was touched");
    }
    assert_eq!(fleet.syncer.status("invariant_violations").await, 0);
}

#[tokio::test]
async fn r17_a_frozen_janus_keeps_its_calls_and_gets_no_new_ones() {
    let (fleet, before) = Fleet::with_calls(&[]).await;
    let victim = fleet.busiest(&before);
    let janus = &fleet.janus[fleet.at(&victim)];
    janus.freeze().await;
    fleet.syncer.believes(&victim, "suspect").await;
    for n in CALLS..2 * CALLS {
        fleet.syncer.join(&format!("c{n:02}"), "s").await;
    }
    let during = fleet.syncer.placed(2 * CALLS, |_| true).await;
    assert_eq!(on(&during, &victim).len(), on(&before, &victim).len(), "new calls avoid it");
    // Long enough for a dozen more probes to time out or be tried.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(fleet.syncer.calls().await, during, "a time-out alone moves nothing");
    janus.thaw();
    fleet.syncer.believes(&victim, "healthy").await;
    let after = fleet.syncer.calls().await;
    assert_eq!(after, during);
    fleet.agrees(&after).await;
    println!("{} calls stayed on {victim} while it was frozen", on(&before, &victim).len());
}

#[tokio::test]
async fn r17_after_suspect_max_calls_move_and_empty_orphans_are_removed_when_it_thaws() {
    let settings = ["limits.health.suspect_max=1s", "limits.digest.interval=1s"];
    let (fleet, before) = Fleet::with_calls(&settings).await;
    let victim = fleet.busiest(&before);
    let janus = &fleet.janus[fleet.at(&victim)];
    let kept = on(&before, &victim)[0];
    // Somebody stays in one of the rooms, whatever the watch says.
    let answer = fleet.syncer.join(&kept.name, "stubborn").await;
    let endpoint = Endpoint::parse(answer["endpoint"].as_str().expect("placed")).expect("for clients");
    let pin = answer["token"].as_str().expect("placed");
    let http = trusting(fleet.authority.pem());
    let phone = Phone::join(&http, &endpoint, pin, "stubborn", Ear::new()).await.expect("joined");

    janus.freeze().await;
    let after = fleet.syncer.placed(CALLS, |calls| on(calls, &victim).is_empty()).await;
    fleet.agrees(&after).await;
    janus.thaw();
    let rooms_are = async |expected: &[String]| {
        let what = format!("{victim} holds {expected:?}");
        eventually(&what, PATIENCE, || async { (janus.rooms(PLUGIN).await == expected).then_some(()) }).await;
    };
    rooms_are(std::slice::from_ref(&kept.room)).await;
    drop(phone);
    rooms_are(&[]).await;
    assert_eq!(fleet.syncer.calls().await, after, "removing orphans touches no call");
}

#[tokio::test]
async fn a_draining_janus_keeps_its_calls_and_gets_no_new_ones() {
    let (fleet, before) = Fleet::with_calls(&[]).await;
    let victim = fleet.busiest(&before);
    let deadline = Instant::now() + PATIENCE;
    fleet.janus[fleet.at(&victim)].driver(PLUGIN).set_draining(true, deadline).await.expect("taken");
    fleet.syncer.sees_draining(&victim).await;
    for n in CALLS..2 * CALLS {
        fleet.syncer.join(&format!("c{n:02}"), "s").await;
    }
    let after = fleet.syncer.placed(2 * CALLS, |_| true).await;
    assert_eq!(on(&after, &victim), on(&before, &victim));
    fleet.agrees(&after).await;
}

#[tokio::test]
async fn r13_a_restarted_janus_has_its_rooms_again() {
    let (mut fleet, before) = Fleet::with_calls(&[]).await;
    let victim = fleet.busiest(&before);
    let index = fleet.at(&victim);
    fleet.janus[index].start_again().await;
    assert!(fleet.janus[index].rooms(PLUGIN).await.len() < on(&before, &victim).len(), "a restart forgets rooms");
    eventually("its rooms are there again", PATIENCE, || async {
        let rooms = fleet.janus[index].rooms(PLUGIN).await;
        let calls = fleet.syncer.calls().await;
        let there = on(&calls, &victim);
        let good = there.iter().all(|call| call.state == "placed" && rooms.contains(&call.room));
        (good && there.len() == on(&before, &victim).len()).then_some(())
    })
    .await;
    let after = fleet.syncer.placed(CALLS, |_| true).await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.sfu, after.sfu, "{}: a restart is repaired in place", before.name);
    }
    fleet.agrees(&after).await;
}

/// Puts both participants where the news say.
async fn follow(http: &reqwest::Client, news: &News, ears: &[Ear; 2]) -> [Phone; 2] {
    let endpoint = Endpoint::parse(news.endpoint.as_deref().expect("an endpoint")).expect("for clients");
    let join = async |session: &str, ear: &Ear| {
        let pin = news.credential(session).expect("a credential for each session");
        Phone::join(http, &endpoint, &pin, session, ear.clone()).await.expect("joined")
    };
    [join("a", &ears[0]).await, join("b", &ears[1]).await]
}

#[tokio::test]
async fn r16_participants_follow_the_watch_and_hear_the_tone_again() {
    let mut fleet = Fleet::start(&[]).await;
    let http = trusting(fleet.authority.pem());
    let mut watch = fleet.syncer.watch().await;
    for session in ["a", "b"] {
        fleet.syncer.join("m", session).await;
    }
    // The first news may have been told before the second session joined: take the latest.
    let (_, mut news) = watch.endpoint().await;
    while news.credential("a").is_none() || news.credential("b").is_none() {
        news = watch.endpoint().await.1;
    }
    let ears = [Ear::new(), Ear::new()];
    let phones = follow(&http, &news, &ears).await;
    tokio::join!(ears[0].listen(50), ears[1].listen(50));

    let start = Instant::now();
    tokio::join!(ears[0].listen(50), ears[1].listen(50));
    let call = fleet.syncer.placed(1, |_| true).await.remove(0);
    let index = fleet.at(&call.sfu);
    let killed = Instant::now();
    fleet.janus[index].kill();
    let (before, moved) = watch.endpoint().await;
    let told = Instant::now();
    assert!(before.iter().any(|news| news.endpoint.is_none() && news.phase == 2), "first comes: it went away");
    assert_ne!((&moved.endpoint, &moved.epoch), (&news.endpoint, &news.epoch));
    drop(phones);
    let _phones = follow(&http, &moved, &ears).await;
    tokio::join!(ears[0].listen(50), ears[1].listen(50));
    let end = Instant::now();

    println!("told after {:?} ({})", told.saturating_duration_since(killed), moved.cause);
    for (name, ear) in ["a", "b"].iter().zip(&ears) {
        let hearing = ear.hearing(start, end);
        println!("{name}: longest silence {:?}, {} frames of tone", hearing.gap_max, hearing.tones);
        // One gap: from the kill to the new room, and nothing else.
        let healed = end.saturating_duration_since(killed);
        assert!(hearing.gap_max < healed && hearing.tones >= 100, "{name}: {hearing:?}");
    }
}
