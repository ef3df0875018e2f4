//! What every registry must do. Run against each implementation, so that a fake cannot drift.

use std::sync::Arc;

use sfu_api::{OwnerTerm, Slot, SyncerId};
use tokio::time::Instant;

use super::{CLAIM_SLOTS_MAX, Claim, LEASE_TTL, Member, Registry, RegistryError};

/// A check of the suite failed: which, and what was seen.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(String);

macro_rules! check {
    ($cond:expr, $($what:tt)+) => {
        if !$cond {
            return Err(Failure(format!($($what)+)));
        }
    };
}

fn id(s: &str) -> Result<SyncerId, Failure> {
    SyncerId::new(s).map_err(|e| Failure(e.to_string()))
}

fn slot(n: u16) -> Result<Slot, Failure> {
    Slot::new(n).ok_or_else(|| Failure(format!("no slot {n}")))
}

fn ok<T>(what: &str, result: Result<T, RegistryError>) -> Result<T, Failure> {
    result.map_err(|e| Failure(format!("{what}: {e}")))
}

/// Runs the whole suite against an empty registry.
///
/// # Errors
///
/// The first check that does not hold.
///
/// # Cancel safety
///
/// Dropped, members and claims of the suite stay in the registry: start again with an empty one.
pub async fn run(registry: Arc<dyn Registry>, now: Instant) -> Result<(), Failure> {
    let (a, b) = (id("conf-a")?, id("conf-b")?);
    membership(&*registry, &a, &b, now).await?;
    claims(&*registry, &a, &b).await?;
    terms(&*registry, &a).await?;
    removal(&*registry, &a, now).await
}

async fn membership(r: &dyn Registry, a: &SyncerId, b: &SyncerId, now: Instant) -> Result<(), Failure> {
    let stranger = r.claim(a, &[Claim { slot: slot(1)?, expected: None }]).await;
    check!(matches!(stranger, Err(RegistryError::NotAMember(_))), "a stranger claimed a slot");
    check!(r.renew(a, now).await.is_err(), "a stranger renewed a lease");

    let mut watch = r.watch();
    for member in [a, b] {
        ok("announce", r.announce(Member::new(member.clone(), "http://127.0.0.1:1", "z"), now).await)?;
    }
    ok("watch", watch.changed().await.map_err(|_| RegistryError::NotAMember(a.clone())))?;
    let seen = Arc::clone(&watch.borrow_and_update());
    check!(seen.roster.len() == 2 && seen.ready_members() == 2, "two announced, the roster has {}", seen.roster.len());

    // Only `a` renews: `b` keeps its place in the roster, but not its liveness.
    let later = now + LEASE_TTL;
    ok("renew", r.renew(a, later).await)?;
    let seen = Arc::clone(&watch.borrow_and_update());
    check!(seen.roster.get(b).is_some_and(|m| !m.live), "a lease that ran out still counts as live");
    check!(seen.ready_members() == 1, "a dead member counts as ready");
    ok("renew", r.renew(b, later).await)?;
    check!(watch.borrow_and_update().ready_members() == 2, "a renewed lease does not count");
    Ok(())
}

async fn claims(r: &dyn Registry, a: &SyncerId, b: &SyncerId) -> Result<(), Failure> {
    let (s1, s2) = (slot(1)?, slot(2)?);
    let free = |slot| Claim { slot, expected: None };
    let first = ok("claim", r.claim(a, &[free(s1)]).await)?;
    let taken = r.claim(b, &[free(s2), free(s1)]).await;
    check!(
        matches!(taken, Err(RegistryError::Conflict { slot, .. }) if slot == s1),
        "a taken slot was claimed as free"
    );
    let seen = Arc::clone(&r.watch().borrow());
    check!(seen.slot(s2).is_none(), "half a transaction was applied");
    check!(seen.slot(s1).is_some_and(|s| s.owner == *a && s.term == first), "the record is not the claim");

    let second = ok("claim over", r.claim(b, &[Claim { slot: s1, expected: Some(first) }, free(s2)]).await)?;
    check!(second > first, "the term did not grow: {second} after {first}");
    ok("stale release", r.release(a, &[(s1, first)]).await)?;
    check!(r.watch().borrow().slot(s1).is_some(), "a stale release deleted another's record");
    ok("release", r.release(b, &[(s1, second), (s2, second)]).await)?;
    check!(r.watch().borrow().slot(s1).is_none(), "a released record stayed");

    let many: Vec<_> = (0..=CLAIM_SLOTS_MAX).filter_map(|n| slot(u16::try_from(n).ok()?).ok()).map(free).collect();
    check!(r.claim(a, &many).await.is_err(), "a transaction of {} slots was taken", many.len());
    ok("largest claim", r.claim(a, &many[..CLAIM_SLOTS_MAX]).await)?;
    Ok(())
}

async fn terms(r: &dyn Registry, a: &SyncerId) -> Result<(), Failure> {
    let (s, far) = (slot(100)?, OwnerTerm { generation: 9, revision: 90_000 });
    ok("resume", r.resume_above(far).await)?;
    let term = ok("claim", r.claim(a, &[Claim { slot: s, expected: None }]).await)?;
    check!(term > far, "a claim after resuming above {far} has term {term}");
    ok("resume below", r.resume_above(OwnerTerm { generation: 1, revision: 1 }).await)?;
    let next = ok("claim", r.claim(a, &[Claim { slot: s, expected: Some(term) }]).await)?;
    check!(next > term, "a resume below the present lowered the terms");
    Ok(())
}

async fn removal(r: &dyn Registry, a: &SyncerId, now: Instant) -> Result<(), Failure> {
    let held = r.watch().borrow().slots.iter().flatten().filter(|s| s.owner == *a).count();
    check!(held > 0, "the test holds nothing");
    ok("remove", r.remove(a).await)?;
    check!(r.renew(a, now).await.is_err(), "a removed member renewed its lease");
    let after = Arc::clone(&r.watch().borrow());
    check!(!after.roster.contains_key(a), "a removed member is in the roster");
    let kept = after.slots.iter().flatten().filter(|s| s.owner == *a).count();
    check!(kept == held, "records went with the member: {kept} of {held}");
    Ok(())
}
