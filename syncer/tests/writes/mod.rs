//! Writes that came together do what they would do one by one.

mod model;
mod storms;

use std::time::Duration;

use proptest::prelude::*;
use sfu_api::{CallId, CallKind, GatewayId, GuildId, OwnerTerm, SessionId, Slot};
use syncer::engine::{CallAnswer, Join, Leave, Refusal, What, Write};
use syncer::ownership::slot_of;
use tokio::time::Instant;

use self::model::Who;
use crate::fake::World;

const GUILDS: u8 = 12;
const CALLS: u8 = 3;
const SESSIONS: u8 = 4;
const GATEWAYS: u8 = 2;

fn guild(n: u8) -> GuildId {
    GuildId::new(format!("g{n}")).expect("valid")
}

fn call(g: u8, c: u8) -> CallId {
    CallId::new(format!("g{g}c{c}")).expect("valid")
}

fn session(n: u8) -> SessionId {
    SessionId::new(format!("s{n}")).expect("valid")
}

fn gateway(n: u8) -> GatewayId {
    GatewayId::new(format!("gw{n}")).expect("valid")
}

/// A write, before it is made.
#[derive(Clone, Copy, Debug)]
struct Line {
    who: Who,
    at: u8,
    seq: Option<u64>,
    joins: bool,
    credential: bool,
    kind: CallKind,
}

impl Line {
    fn write(&self) -> Write {
        let Self { who: (g, c, s), at, seq, credential, kind, .. } = *self;
        let (guild, call, session, gateway) = (guild(g), call(g, c), session(s), gateway(at));
        let slot = slot_of(&guild);
        let what = if self.joins {
            What::Join { join: Join { guild, call, session, gateway, seq, kind, region: None }, credential }
        } else {
            What::Leave(Leave { guild, call, session, gateway, seq })
        };
        Write::new(slot, what)
    }
}

/// Writes about so many guilds.
fn line(guilds: u8) -> impl Strategy<Value = Line> {
    let ids = (0..guilds, 0..CALLS, 0..SESSIONS, 0..GATEWAYS);
    (ids, prop::option::of(0..6u64), any::<[bool; 3]>()).prop_map(
        |((g, c, s, at), seq, [joins, credential, stream])| {
            let kind = if stream { CallKind::Stream } else { CallKind::Voice };
            Line { who: (g, c, s), at, seq, joins, credential, kind }
        },
    )
}

fn write() -> impl Strategy<Value = Write> {
    line(GUILDS).prop_map(|line| line.write())
}

/// What a caller sees, but for what two syncers may well have differently: epochs, and when to come back.
fn seen(answer: Result<CallAnswer, Refusal>, wants_token: bool) -> Result<(Option<u8>, bool, bool, bool), String> {
    let answer = answer.map_err(|refusal| refusal.to_string())?;
    assert!(wants_token || answer.token.is_none(), "nobody asked for a credential");
    Ok((answer.phase, answer.endpoint.is_some(), answer.token.is_some(), answer.ignored))
}

fn asks(write: &Write) -> bool {
    matches!(write.what(), What::Join { credential: true, .. })
}

fn one(world: &World, write: &Write, now: Instant) -> Result<CallAnswer, Refusal> {
    match write.what() {
        What::Join { join, credential } => {
            let answer = world.engine.join(join, now)?;
            Ok(if *credential { answer } else { CallAnswer { token: None, ..answer } })
        }
        What::Leave(leave) => world.engine.leave(leave, now).map(|_| CallAnswer::default()),
    }
}

/// A world that owns three slots of four, with small limits.
fn small() -> World {
    let world = World::new(4, 1);
    let term = OwnerTerm { generation: 1, revision: 2 };
    let some = (0..4_096).filter(|n| n % 4 > 0).filter_map(Slot::new).map(|slot| (slot, term));
    world.engine.set_owned(&some.collect::<Vec<_>>(), Instant::now());
    world.set("admission.calls_per_guild_max", &2.into());
    world.set("admission.participants_per_call_max", &3.into());
    world
}

async fn same(first: Vec<Write>, then: Vec<Write>) {
    let (together, alone) = (small(), small());
    for writes in [first, then] {
        let now = Instant::now();
        let answers = together.engine.write(&writes, now).collect::<Vec<_>>();
        assert_eq!(answers.len(), writes.len());
        for (write, answer) in writes.iter().zip(answers) {
            assert_eq!(seen(answer, asks(write)), seen(one(&alone, write, now), asks(write)), "{write:?}");
        }
        for world in [&together, &alone] {
            world.wait("placing", Duration::from_secs(30), |status| status.awaiting == 0).await;
        }
    }
    for (g, c) in (0..GUILDS).flat_map(|g| (0..CALLS).map(move |c| (g, c))) {
        let people =
            |world: &World| world.engine.call(&guild(g), &call(g, c)).map(|call| (call.kind, call.participants));
        assert_eq!(people(&together), people(&alone));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn writes_that_came_together_do_what_they_would_do_one_by_one(
        first in prop::collection::vec(write(), 0..60),
        then in prop::collection::vec(write(), 0..60),
    ) {
        let paused = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        paused.expect("a runtime").block_on(same(first, then));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_meet_put_each_other_off_and_lose_nothing() {
    const WRITERS: u64 = 4;
    const BATCHES: u64 = 40;
    const TOGETHER: u64 = 64;
    let world = World::new(4, 1);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let engine = world.engine.clone();
        writers.spawn_blocking(move || {
            for batch in 0..BATCHES {
                let ids = |n: u64| ((n % u64::from(GUILDS)) as u8, (n % u64::from(CALLS)) as u8);
                let joins = (0..TOGETHER).map(|n| {
                    let join = Join {
                        guild: guild(ids(n).0),
                        call: call(ids(n).0, ids(n).1),
                        session: SessionId::new(format!("{writer}-{batch}-{n}")).expect("valid"),
                        gateway: GatewayId::new(format!("gw{writer}")).expect("valid"),
                        seq: Some(1),
                        kind: CallKind::Voice,
                        region: None,
                    };
                    Write::new(slot_of(&join.guild), What::Join { join, credential: false })
                });
                let answers = engine.write(&joins.collect::<Vec<_>>(), Instant::now()).collect::<Vec<_>>();
                assert!(answers.iter().all(Result::is_ok), "{answers:?}");
            }
        });
    }
    writers.join_all().await;
    let status = world.engine.status();
    assert_eq!((status.participants, status.invariant_violations), (WRITERS * BATCHES * TOGETHER, 0));
}

/// A join that was sent before its session's leave and comes after it brings nobody back, for as many leaves as the lever
/// says; how many were forgotten too early is counted.
#[tokio::test(start_paused = true)]
async fn r15_r20_as_many_leaves_are_remembered_as_the_lever_says() {
    for (max, remembered) in [(48, true), (16, false)] {
        let world = World::new(1, 1);
        world.set("calls.left_remembered_max", &max.into());
        let now = Instant::now();
        let join = |n| Join {
            guild: guild(0),
            call: call(0, 0),
            session: session(n),
            gateway: GatewayId::new("w").expect("valid"),
            seq: Some(1),
            kind: CallKind::Voice,
            region: None,
        };
        for n in 0..3 {
            let Join { guild, call, session, gateway, .. } = join(n);
            world.engine.join(&join(n), now).expect("joins");
            world.engine.leave(&Leave { guild, call, session, gateway, seq: Some(2) }, now).expect("leaves");
        }
        let late = world.engine.join(&join(0), now).expect("answered");
        let status = world.engine.status();
        assert_eq!((late.ignored, status.participants == 0), (remembered, remembered));
        assert_eq!(status.leaves_forgotten_total, if remembered { 0 } else { 2 });
    }
}
