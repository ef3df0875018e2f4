//! The contract's rules, held against every sequence of requests the generator can think of.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use sfu_api::{
    Digest, EndRoom, EnsureRoom, Epoch, ErrorCode, Fence, GuildId, OpId, OwnerTerm, RoomId, RoomRef, SessionId, Slot,
    SlotTerm, SyncerId, room_set_hash, room_set_hash_text,
};
use tokio::time::Instant;

use super::{Now, Profile, Rooms, Tally};

const TTL: Duration = Duration::from_secs(120);

fn rooms() -> Rooms {
    let boot_id = sfu_api::BootId::new("boot").expect("valid id");
    Rooms::new(Profile { boot_id, media_url: "https://sfu/media/".into(), capacity: 1000, empty_room_ttl: TTL })
}

fn id(n: u8) -> RoomId {
    RoomId::new(format!("r{n}")).expect("valid id")
}

fn slot(n: u8) -> Slot {
    Slot::new(u16::from(n)).expect("small")
}

fn term(revision: u64) -> OwnerTerm {
    OwnerTerm { generation: 1, revision }
}

fn fence(of: u8, revision: u64, epoch_revision: u64, n: u64) -> Fence {
    let epoch = Epoch { term: term(epoch_revision), n };
    Fence { slot: slot(of), owner_term: term(revision), epoch, boot_id: None }
}

fn syncer(revision: u64) -> SyncerId {
    SyncerId::new(format!("s{revision}")).expect("valid id")
}

fn ensure(fence: Fence, op: usize) -> EnsureRoom {
    let op_id = OpId::new(format!("o{op}")).expect("valid id");
    let syncer = syncer(fence.owner_term.revision);
    let guild = GuildId::new("g").expect("valid id");
    EnsureRoom { fence, op_id, syncer, guild, kind: sfu_api::CallKind::Voice, capacity: 5 }
}

fn end(fence: Fence, op: usize, force: bool) -> EndRoom {
    let op_id = OpId::new(format!("o{op}")).expect("valid id");
    EndRoom { syncer: syncer(fence.owner_term.revision), fence, op_id, force }
}

fn digest(of: u8, revision: u64, named: Option<Vec<RoomRef>>) -> Digest {
    let hash = room_set_hash_text(room_set_hash(named.iter().flatten().map(|r| (&r.room, r.epoch))));
    let rooms = u32::try_from(named.iter().flatten().count()).expect("small");
    let terms = vec![SlotTerm { slot: slot(of), term: term(revision) }];
    Digest { syncer: syncer(revision), boot_id: None, terms, rooms, hash, named }
}

#[derive(Clone, Debug)]
enum Step {
    Ensure { room: u8, revision: u64, epoch_revision: u64, n: u64 },
    End { room: u8, revision: u64, n: u64, force: bool },
    Digest { of: u8, revision: u64 },
    Attach { room: u8, session: u8 },
    Detach { room: u8, session: u8 },
    Wait { s: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (room, revision, n) = (0..4u8, 1..5u64, 1..5u64);
    let step = prop_oneof![
        4 => (room.clone(), revision.clone(), revision.clone(), n.clone()).prop_map(|(room, revision, epoch, n)| {
            Step::Ensure { room, revision, epoch_revision: epoch, n }
        }),
        2 => (room.clone(), revision.clone(), n, any::<bool>())
            .prop_map(|(room, revision, n, force)| Step::End { room, revision, n, force }),
        1 => (0..2u8, revision).prop_map(|(of, revision)| Step::Digest { of, revision }),
        2 => (room.clone(), 0..3u8).prop_map(|(room, session)| Step::Attach { room, session }),
        2 => (room, 0..3u8).prop_map(|(room, session)| Step::Detach { room, session }),
        1 => (0..100u64).prop_map(|s| Step::Wait { s }),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn i01_i03_accepted_terms_and_epochs_never_fall(steps in steps()) {
        let mut sfu = rooms();
        let mut now = Now { instant: Instant::now(), unix_ms: 0 };
        let mut tally = Tally::default();
        let mut terms: HashMap<u8, u64> = HashMap::new();
        let mut epochs: HashMap<u8, Epoch> = HashMap::new();
        for (op, step) in steps.into_iter().enumerate() {
            sfu.expire(now);
            let occupied = |sfu: &Rooms, room| sfu.rooms.get(&id(room)).is_some_and(|r| !r.sessions.is_empty());
            match step {
                Step::Ensure { room, revision, epoch_revision, n } => {
                    let of = room % 2;
                    let request = ensure(fence(of, revision, epoch_revision, n), op);
                    let highest = terms.entry(of).or_insert(0);
                    let done = sfu.ensure(&id(room), &request, now, &mut tally);
                    prop_assert_eq!(revision < *highest, matches!(&done, Err(e) if e.highest_term.is_some()));
                    if done.is_ok() {
                        *highest = revision;
                        let epoch = request.fence.epoch;
                        let before = epochs.insert(room, epoch);
                        prop_assert!(before.is_none_or(|e| e <= epoch), "an epoch fell");
                        prop_assert_eq!(sfu.epoch_of(&id(room)), Some(epoch));
                    } else if epoch_revision <= revision {
                        *highest = (*highest).max(revision);
                    }
                }
                Step::End { room, revision, n, force } => {
                    let of = room % 2;
                    let held = sfu.epoch_of(&id(room));
                    let had = occupied(&sfu, room);
                    let request = end(fence(of, revision, revision, n), op, force);
                    let done = sfu.end(&id(room), &request, now, &mut tally);
                    let highest = terms.entry(of).or_insert(0);
                    prop_assert_eq!(revision < *highest, matches!(&done, Err(e) if e.highest_term.is_some()));
                    *highest = (*highest).max(revision);
                    if done.is_ok() {
                        prop_assert!(held.is_none_or(|e| e <= request.fence.epoch), "ended a newer placement");
                        prop_assert!(!had || force, "ended a room with people in it");
                        prop_assert_eq!(sfu.epoch_of(&id(room)), None);
                    } else {
                        prop_assert_eq!(sfu.epoch_of(&id(room)), held);
                    }
                }
                Step::Digest { of, revision } => {
                    let done = sfu.digest(&digest(of, revision, None), now);
                    let highest = terms.entry(of).or_insert(0);
                    prop_assert_eq!(revision < *highest, done.is_err());
                    *highest = (*highest).max(revision);
                }
                Step::Attach { room, session } => {
                    let session = SessionId::new(format!("p{session}")).expect("valid id");
                    let there = sfu.epoch_of(&id(room)).is_some();
                    prop_assert_eq!(there, sfu.attach(&id(room), session, now).is_some());
                }
                Step::Detach { room, session } => {
                    let session = SessionId::new(format!("p{session}")).expect("valid id");
                    let there = sfu.epoch_of(&id(room)).is_some();
                    prop_assert_eq!(there, sfu.detach(&id(room), &session, now).is_some());
                }
                Step::Wait { s } => {
                    let before: Vec<_> = (0..4).filter(|&room| occupied(&sfu, room)).collect();
                    now.instant += Duration::from_secs(s);
                    sfu.expire(now);
                    prop_assert!(before.iter().all(|&room| occupied(&sfu, room)), "an occupied room expired");
                }
            }
            let inside: usize = sfu.rooms.values().map(|room| room.sessions.len()).sum();
            prop_assert_eq!(u32::try_from(inside), Ok(sfu.load(now).participants));
        }
    }

    #[test]
    fn i06_a_digest_tells_exactly_the_difference(
        held in prop::collection::btree_map(0..12u8, 1..4u64, 0..12),
        named in prop::collection::btree_map(0..12u8, 1..4u64, 0..12),
    ) {
        let mut sfu = rooms();
        let now = Now { instant: Instant::now(), unix_ms: 0 };
        for (op, (&room, &n)) in held.iter().enumerate() {
            let made = sfu.ensure(&id(room), &ensure(fence(0, 1, 1, n), op), now, &mut Tally::default());
            prop_assert!(made.is_ok());
        }
        let refs = named.iter().map(|(&room, &n)| RoomRef { room: id(room), epoch: Epoch { term: term(1), n } });
        let answer = sfu.digest(&digest(0, 1, Some(refs.collect())), now).expect("accepted");
        let differences = answer.differences.expect("named");
        prop_assert_eq!(answer.matches, held == named);
        let mut missing: Vec<_> = named.iter().filter(|(r, n)| held.get(*r) != Some(*n)).map(|(&r, _)| id(r)).collect();
        missing.sort_unstable();
        prop_assert_eq!(differences.missing, missing);
        let mut surplus: Vec<_> = held.keys().filter(|r| !named.contains_key(r)).map(|&r| id(r)).collect();
        surplus.sort_unstable();
        prop_assert_eq!(differences.surplus.into_iter().map(|s| s.room).collect::<Vec<_>>(), surplus);
    }
}

#[test]
fn an_empty_room_that_nobody_names_removes_itself() {
    let mut sfu = rooms();
    let start = Instant::now();
    let at = |s: u64| Now { instant: start + Duration::from_secs(s), unix_ms: 0 };
    for room in 0..4 {
        let made = sfu.ensure(&id(room), &ensure(fence(0, 1, 1, 1), usize::from(room)), at(0), &mut Tally::default());
        assert!(made.is_ok());
    }
    let session = SessionId::new("p").expect("valid id");
    assert!(sfu.attach(&id(0), session.clone(), at(1)).is_some());
    let epoch = Epoch { term: term(1), n: 1 };
    let named = Some(vec![RoomRef { room: id(1), epoch }]);
    assert!(sfu.digest(&digest(0, 1, named), at(60)).is_ok());
    assert!(sfu.ensure(&id(2), &ensure(fence(0, 1, 1, 1), 9), at(70), &mut Tally::default()).is_ok());
    let left = |sfu: &Rooms| (0..4).filter(|&room| sfu.epoch_of(&id(room)).is_some()).collect::<Vec<_>>();
    sfu.expire(at(119));
    assert_eq!(left(&sfu), [0, 1, 2, 3]);
    sfu.expire(at(120));
    assert_eq!(left(&sfu), [0, 1, 2], "3 was named by nobody");
    sfu.expire(at(180));
    assert_eq!(left(&sfu), [0, 2], "1 was last named at 60");
    sfu.expire(at(100_000));
    assert_eq!(left(&sfu), [0], "occupied rooms never expire");
    assert_eq!(sfu.detach(&id(0), &session, at(100_000)), Some(true));
    sfu.expire(at(100_119));
    assert_eq!(left(&sfu), [0], "the time counts from the last participant");
    sfu.expire(at(100_120));
    assert_eq!(left(&sfu), [0; 0]);
}

#[test]
fn a_matching_digest_names_all_rooms_of_its_syncer() {
    let mut sfu = rooms();
    let start = Instant::now();
    let at = |s: u64| Now { instant: start + Duration::from_secs(s), unix_ms: 0 };
    assert!(sfu.ensure(&id(0), &ensure(fence(0, 1, 1, 1), 0), at(0), &mut Tally::default()).is_ok());
    let refs = vec![RoomRef { room: id(0), epoch: Epoch { term: term(1), n: 1 } }];
    let short = Digest { named: None, ..digest(0, 1, Some(refs)) };
    assert!(sfu.digest(&short, at(100)).is_ok_and(|answer| answer.matches));
    sfu.expire(at(219));
    assert!(sfu.epoch_of(&id(0)).is_some());
    sfu.expire(at(220));
    assert!(sfu.epoch_of(&id(0)).is_none());
}

#[test]
fn i01_a_digest_with_one_stale_term_raises_none() {
    let mut sfu = rooms();
    let now = Now { instant: Instant::now(), unix_ms: 0 };
    assert!(sfu.digest(&digest(1, 5, None), now).is_ok());
    let mut mixed = digest(0, 4, None);
    mixed.terms.push(SlotTerm { slot: slot(1), term: term(4) });
    let refused = sfu.digest(&mixed, now).expect_err("refused");
    assert_eq!((refused.code, refused.highest_term), (ErrorCode::Fenced, Some(term(5))));
    assert_eq!(refused.fenced_slots, Some(vec![SlotTerm { slot: slot(1), term: term(5) }]));
    assert!(sfu.digest(&digest(0, 1, None), now).is_ok(), "slot 0 was not raised to 4");
}

#[test]
fn remembered_answers_are_bounded() {
    let mut sfu = rooms();
    let now = Now { instant: Instant::now(), unix_ms: 0 };
    let mut tally = Tally::default();
    for op in 0..5000 {
        let room = RoomId::new(format!("r{op}")).expect("valid id");
        assert!(sfu.ensure(&room, &ensure(fence(0, 1, 1, 1), op), now, &mut tally).is_ok());
        assert!(sfu.end(&room, &end(fence(0, 1, 1, 1), 10_000 + op, false), now, &mut tally).is_ok());
    }
    assert_eq!((tally.creates, tally.ends, sfu.load(now).calls), (5000, 5000, 0));
    let newest = RoomId::new("r4999").expect("valid id");
    let again = sfu.ensure(&newest, &ensure(fence(0, 1, 1, 1), 4999), now, &mut tally);
    assert!(again.is_ok_and(|ready| ready.created), "a recent answer is remembered");
    assert_eq!(tally.creates, 5000);
}
