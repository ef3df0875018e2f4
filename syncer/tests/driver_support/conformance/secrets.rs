//! What must never be shown: credentials, and whatever opens the SFU or its rooms.

use std::error::Error;
use std::fmt::{Debug, Write as _};
use std::time::Duration;

use sfu_api::{BootId, OpId, RoomId, SessionId};
use syncer::drivers::{CredentialRequest, DigestSpec, DriverError, RoomSpec, SfuDriver};
use tokio::time::Instant;

use super::{Stand, boot, end, enter, soon, spec};

pub(crate) async fn credentials_are_secret(stand: &mut impl Stand) {
    let driver = stand.driver();
    let spec = spec(&*driver, "c", 1, None);
    let made = ["a", "b"].map(|session| {
        let session = SessionId::new(session).expect("valid id");
        let request = CredentialRequest { session: &session, room: &spec.room, epoch: spec.epoch };
        let credential = driver.credential(&request).expect("made");
        let shown = format!("{credential:?}");
        let token = credential.into_token();
        assert!(!token.is_empty() && !shown.contains(&token), "{shown}");
        token
    });
    assert_eq!(made[0] != made[1], driver.capabilities().credential_per_session);
}

/// Every kind of error that costs little to provoke, and every driver it was provoked on.
pub(crate) async fn secrets_are_in_no_error_and_no_debug(stand: &mut impl Stand) {
    let mut seen = Seen::default();
    healthy(stand, &mut seen).await;
    for n in 0.. {
        let Some(driver) = stand.lying(n).await else { break };
        let errors = everything(&*driver, soon, &mut seen).await;
        assert!(errors > 0, "lie {n} is believed");
    }
    let driver = stand.hung().await;
    assert!(everything(&*driver, in_a_moment, &mut seen).await > 0, "it hangs");
    let driver = stand.dead().await;
    assert!(everything(&*driver, soon, &mut seen).await > 0, "it is dead");

    seen.secrets.extend(stand.secrets());
    assert!(seen.secrets.iter().all(|secret| secret.len() >= 8), "what is as short as this shows by chance");
    for secret in &seen.secrets {
        let told: Vec<_> = seen.shown.iter().filter(|shown| shown.contains(secret)).collect();
        assert!(told.is_empty(), "{secret} is secret, and shown in {told:?}");
    }
}

/// For a server that never answers, over and over: nothing is to be met in time.
fn in_a_moment() -> Instant {
    Instant::now() + Duration::from_millis(100)
}

/// What was shown, and what should not have been.
#[derive(Default)]
struct Seen {
    shown: Vec<String>,
    secrets: Vec<String>,
}

impl Seen {
    fn show(&mut self, what: &impl Debug) {
        self.shown.push(format!("{what:?} {what:#?}"));
    }

    /// Shows an error in all the ways that there are; says how many were seen.
    fn error<T>(&mut self, result: Result<T, DriverError>) -> usize {
        let Err(error) = result else { return 0 };
        self.show(&error);
        let mut shown = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            write!(shown, ": {cause} {cause:?}").expect("a string takes everything");
            source = cause.source();
        }
        self.shown.push(shown);
        1
    }

    /// Shows the credential for a room, which is secret from now on.
    fn credential(&mut self, driver: &dyn SfuDriver, spec: &RoomSpec) {
        let session = SessionId::new("somebody").expect("valid id");
        let request = CredentialRequest { session: &session, room: &spec.room, epoch: spec.epoch };
        let credential = driver.credential(&request).expect("made");
        self.show(&credential);
        self.secrets.push(credential.into_token());
    }
}

/// What a server says that is well: no such room, not empty, restarted, draining, fenced.
async fn healthy(stand: &mut impl Stand, seen: &mut Seen) {
    let driver = stand.driver();
    let first = boot(&*driver).await;
    stand.restart().await;
    let stale = spec(&*driver, "c", 1, Some(first.clone()));
    assert_eq!(seen.error(driver.ensure_room(stale, soon()).await), 1, "it was for the one before");

    let new = spec(&*driver, "c", 5, Some(boot(&*driver).await));
    seen.credential(&*driver, &new);
    let endpoint = driver.ensure_room(new.clone(), soon()).await.expect("made").endpoint;
    seen.show(&endpoint);
    assert!(enter(stand, &*driver, &new, &endpoint, "somebody").await);
    let old = spec(&*driver, "c", 3, new.boot_id.clone());
    if driver.capabilities().fences {
        assert_eq!(seen.error(driver.ensure_room(old.clone(), soon()).await), 1, "it is older");
        assert_eq!(seen.error(driver.end_room(end(&old, "e"), true, soon()).await), 1, "it is older");
    }
    driver.set_draining(true, soon()).await.expect("drains");
    let late = spec(&*driver, "late", 1, None);
    seen.credential(&*driver, &late);
    assert_eq!(seen.error(driver.ensure_room(late, soon()).await), 1, "it drains");
    driver.set_draining(false, soon()).await.expect("serves");
    let errors = everything(&*driver, soon, seen).await;
    assert_eq!(errors, 0, "a server that is well does as it is told");
}

/// Asks for everything once, and says how much of it failed. `by` gives the deadline of each request.
async fn everything(driver: &dyn SfuDriver, by: fn() -> Instant, seen: &mut Seen) -> usize {
    let one = |call: &str, boot_id: Option<BootId>| spec(driver, call, 9, boot_id);
    let (a, b) = (one("a", None), one("b", None));
    for spec in [&a, &b] {
        seen.credential(driver, spec);
    }
    let mut errors = 0;
    for fresh in [false, true] {
        errors += seen.error(driver.probe(fresh, by()).await);
    }
    errors += seen.error(driver.ensure_room(a.clone(), by()).await);
    match driver.ensure_rooms(vec![a.clone(), b.clone()], by()).await {
        Ok(made) => errors += made.into_iter().map(|made| seen.error(made)).sum::<usize>(),
        error => errors += seen.error(error),
    }
    errors += seen.error(driver.participants(a.room.clone(), by()).await);
    let unknown = RoomId::new("nobody-made-this").expect("valid id");
    errors += seen.error(driver.participants(unknown, by()).await);
    let digest = DigestSpec { boot_id: None, terms: Vec::new(), rooms: 0, hash: 0, named: None };
    errors += seen.error(driver.digest(digest, by()).await);
    errors += seen.error(driver.list_rooms(by()).await);
    for (force, op) in [(false, "end"), (true, "force")] {
        errors += seen.error(driver.end_room(end(&a, op), force, by()).await);
    }
    let again = RoomSpec { op_id: OpId::new("again").expect("valid id"), ..a.clone() };
    errors += seen.error(driver.ensure_room(again, by()).await);
    errors += seen.error(driver.end_room(end(&a, "last"), true, by()).await);
    match driver.end_rooms(vec![end(&b, "others")], by()).await {
        Ok(ended) => errors += ended.into_iter().map(|ended| seen.error(ended)).sum::<usize>(),
        error => errors += seen.error(error),
    }
    for draining in [true, false] {
        errors += seen.error(driver.set_draining(draining, by()).await);
    }
    seen.shown.push(format!("{driver:?}")); // with all of its lane: not twice
    errors
}
