//! The same while gateways tell everything again, and while calls lose their place or are moved to another.

use std::collections::{BTreeMap, BTreeSet};

use sfu_api::{Epoch, SfuId};
use syncer::drivers::Credential;
use syncer::engine::{CallState, NewsCursor};
use syncer::state::Round;

use super::model::Model;
use super::*;
use crate::fake::sfu::Mode;

/// How long a session stays that its gateway did not tell again.
const WINDOW: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);
const SFUS: u8 = 3;
/// As many rounds of a gateway are kept open; of more, the first is forgotten.
const ROUNDS_MAX: usize = 8;
/// So few that writes of one batch are often about the same session.
const FEW: u8 = 3;

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    /// Writes come together.
    Writes(Vec<Line>),
    /// A gateway begins to tell everything again.
    Begin(u8),
    /// It has told everything since its last beginning, or since the one that is open for longest.
    End(u8, bool),
    /// So many milliseconds pass.
    Pass(u64),
    /// Something is done to an SFU.
    Sfu(u8, Act),
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// An operator says that it is dead.
    Dies,
    /// And that it is not.
    Returns,
    /// Its calls are moved away.
    Drains,
    /// The same, and it alone answers: whoever is on the way to another stays on the way.
    Flees,
    /// It is drained no longer.
    Stays,
    /// All answer.
    Answer,
}

/// One of two worlds to which the same happens.
struct Side {
    world: World,
    /// Rounds that each gateway has begun, in order.
    begun: BTreeMap<u8, Vec<Round>>,
    /// What gateways were told last of each call, by news and answers.
    told: BTreeMap<(u8, u8), (Epoch, u8)>,
    /// How much of the news of each call that is.
    heard: BTreeMap<(u8, u8), usize>,
    dead: BTreeSet<SfuId>,
}

/// What a call looks like from outside: its state, and whether clients have an endpoint.
type Look = Option<(CallState, bool)>;

fn step(calm: bool) -> impl Strategy<Value = Step> {
    let acts = vec![Act::Dies, Act::Returns, Act::Drains, Act::Stays, Act::Flees, Act::Flees, Act::Answer];
    let act = prop::sample::select(acts);
    prop_oneof![
        6 => prop::collection::vec(line(FEW), 0..40).prop_map(Step::Writes),
        2 => (0..GATEWAYS).prop_map(Step::Begin),
        2 => (0..GATEWAYS, any::<bool>()).prop_map(|(gateway, last)| Step::End(gateway, last)),
        4 => prop_oneof![2 => 1..200u64, 1 => 300..2_500u64].prop_map(Step::Pass),
        if calm { 0 } else { 4 } => (0..SFUS, act).prop_map(|(sfu, act)| Step::Sfu(sfu, act)),
    ]
}

fn calls() -> impl Iterator<Item = (u8, u8)> {
    (0..FEW).flat_map(|g| (0..CALLS).map(move |c| (g, c)))
}

fn sfu(n: u8) -> SfuId {
    SfuId::new(format!("sfu-{n}")).expect("valid")
}

// === impl Side ===

impl Side {
    fn new(world: World) -> Self {
        world.set("gateways.resume_window", &format!("{}ms", WINDOW.as_millis()).into());
        world.set("admission.queue_age_max", &"1h".into());
        world.set("moves.rate", &1_000.0.into());
        world.set("moves.burst", &1_000.into());
        let (told, heard) = (BTreeMap::new(), BTreeMap::new());
        Self { world, begun: BTreeMap::new(), told, heard, dead: BTreeSet::new() }
    }

    fn look(&self, (g, c): (u8, u8)) -> Look {
        let call = self.world.engine.call(&guild(g), &call(g, c))?;
        Some((call.state, call.endpoint.is_some()))
    }

    fn participants(&self, (g, c): (u8, u8)) -> u32 {
        self.world.engine.call(&guild(g), &call(g, c)).map_or(0, |call| call.participants)
    }

    fn act(&mut self, n: u8, act: Act) {
        let (engine, fleet, id) = (&self.world.engine, &self.world.fleet, sfu(n));
        match act {
            Act::Dies => {
                self.dead.insert(id.clone());
                engine.declare_dead(&id, Instant::now()).map(drop)
            }
            Act::Returns => {
                self.dead.remove(&id);
                engine.cordon(&id, false).map(drop)
            }
            Act::Drains => engine.drain_sfu(&id, PATIENCE * 60, Instant::now()).map(drop),
            Act::Stays => engine.undrain_sfu(&id).map(drop),
            Act::Flees => {
                fleet.each(|other, n| n.mode = if *other == id { Mode::Well } else { Mode::Hangs });
                engine.drain_sfu(&id, PATIENCE * 60, Instant::now()).map(drop)
            }
            Act::Answer => {
                fleet.each(|_, n| n.mode = Mode::Well);
                Some(())
            }
        }
        .expect("a known SFU");
    }

    /// Reads the news: it grows, also from what answers have told.
    fn hear(&mut self) {
        for at in calls() {
            let news = self.world.ear.of(&call(at.0, at.1));
            let heard = self.heard.insert(at, news.len()).unwrap_or(0);
            for (epoch, phase, _) in &news[heard..] {
                let before = self.told.insert(at, (*epoch, *phase));
                assert!(before < Some((*epoch, *phase)), "I7: {epoch:?} {phase} was told after {before:?}");
            }
        }
    }

    /// An answer of this moment tells where the call is, and nothing that is gone or older than what was told before.
    fn judge(&mut self, line: &Line, answer: &Result<CallAnswer, Refusal>) {
        let (Ok(answer), true) = (answer, line.joins) else { return };
        let (g, c, s) = line.who;
        let call = self.world.engine.call(&guild(g), &call(g, c));
        let (room, endpoint) = call.map(|call| (call.room, call.endpoint)).unwrap_or_default();
        assert_eq!(answer.endpoint, endpoint, "{line:?}");
        assert_eq!(answer.endpoint.is_some(), answer.phase == Some(1), "{answer:?}");
        let token = room.filter(|_| line.credential && endpoint.is_some()).map(|room| format!("{}@{room}", session(s)));
        assert_eq!(answer.token, token.map(Credential::new), "{line:?}");
        if let Some(now) = answer.epoch.zip(answer.phase) {
            let before = self.told.insert((g, c), now);
            assert!(before <= Some(now), "I7: {now:?} was answered after {before:?}");
        }
        if self.world.engine.recovery(Instant::now()).untold == 0 {
            let on = |id: &SfuId| endpoint.as_ref().is_some_and(|at| at.starts_with(&format!("https://{id}/")));
            assert!(!self.dead.iter().any(on), "{endpoint:?} is gone, and the gateways were told so");
        }
    }

    /// Every session of a call that was placed once, with its gateway.
    fn people(&self) -> Vec<(u8, Who)> {
        let mut people = Vec::new();
        for at in 0..GATEWAYS {
            let mut cursor = Some(NewsCursor::default());
            while let Some(from) = cursor {
                let (page, next) = self.world.engine.announcements_for(&gateway(at), from);
                for news in page {
                    let (g, c) = calls().find(|(g, c)| call(*g, *c) == news.call).expect("one of ours");
                    let sessions = news.sessions.iter().filter(|(id, _)| *id == gateway(at)).flat_map(|(_, s)| s);
                    let number = |id: &SessionId| (0..SESSIONS).find(|s| session(*s) == *id).expect("one of ours");
                    people.extend(sessions.map(|id| (at, (g, c, number(id)))));
                }
                cursor = next;
            }
        }
        people.sort_by_key(|(_, who)| *who);
        people
    }
}

/// Two worlds, and what is expected of them.
struct Trial {
    /// Takes the writes of a batch at once.
    together: Side,
    /// Takes them one by one.
    alone: Side,
    /// Only without limits.
    model: Option<Model>,
    /// Rounds of the model, as in [`Side::begun`].
    begun: BTreeMap<u8, Vec<u64>>,
}

// === impl Trial ===

impl Trial {
    /// With small limits, or without.
    fn new(limited: bool) -> Self {
        let world = || Side::new(if limited { small() } else { World::new(usize::from(SFUS), 1) });
        let model = (!limited).then(Model::default);
        Self { together: world(), alone: world(), model, begun: BTreeMap::new() }
    }

    fn sides(&mut self) -> [&mut Side; 2] {
        [&mut self.together, &mut self.alone]
    }

    async fn take(&mut self, step: Step) {
        let now = Instant::now();
        match step {
            Step::Writes(lines) => self.write(&lines),
            Step::Begin(at) if self.begun.get(&at).is_some_and(|begun| begun.len() == ROUNDS_MAX) => {}
            Step::Begin(at) => {
                for side in self.sides() {
                    let round = side.world.engine.begin_round(&gateway(at), None, now).expect("few gateways");
                    side.begun.entry(at).or_default().push(round);
                }
                let round = self.model.as_mut().map(|model| model.begin(at));
                self.begun.entry(at).or_default().push(round.unwrap_or_default());
            }
            Step::End(at, last) => {
                let begun = self.begun.entry(at).or_default();
                let Some(n) = (if last { begun.len().checked_sub(1) } else { begun.first().map(|_| 0) }) else {
                    return;
                };
                // Whatever began before has ended with it.
                let round = begun.drain(..=n).next_back().expect("it was begun");
                for side in self.sides() {
                    let round = side.begun.entry(at).or_default().drain(..=n).next_back().expect("as many");
                    side.world.engine.synced(&gateway(at), None, round, now).expect("it was begun");
                }
                if let Some(model) = &mut self.model {
                    model.end(at, round, now);
                }
            }
            Step::Pass(ms) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                self.settle().await;
            }
            Step::Sfu(n, act) => self.sides().into_iter().for_each(|side| side.act(n, act)),
        }
        self.sides().into_iter().for_each(Side::hear);
    }

    fn write(&mut self, lines: &[Line]) {
        let now = Instant::now();
        self.sides().into_iter().for_each(Side::hear);
        let writes: Vec<Write> = lines.iter().map(Line::write).collect();
        let looks: Vec<[Look; 2]> = lines
            .iter()
            .map(|line| (line.who.0, line.who.1))
            .map(|at| [self.together.look(at), self.alone.look(at)])
            .collect();
        let answers: Vec<_> = self.together.world.engine.write(&writes, now).collect();
        assert_eq!(answers.len(), writes.len());
        for (n, answer) in answers.into_iter().enumerate() {
            let (line, write) = (&lines[n], &writes[n]);
            let other = one(&self.alone.world, write, now);
            self.together.judge(line, &answer);
            self.alone.judge(line, &other);
            let (mine, others) = (seen(answer, asks(write)), seen(other, asks(write)));
            if let (Ok((.., ignored)), Some(model)) = (&mine, &mut self.model) {
                assert_eq!(*ignored, model.take(line), "{line:?}");
            }
            // How far a repair has come may differ by a moment; what it has come to may not.
            let placed = |look: &Look| look.is_none_or(|(_, endpoint)| endpoint);
            if looks[n][0] == looks[n][1] && placed(&looks[n][0]) {
                assert_eq!(mine, others, "{line:?}");
            } else {
                assert_eq!(mine.map(|(.., ignored)| ignored), others.map(|(.., ignored)| ignored), "{line:?}");
            }
        }
        for at in calls() {
            assert_eq!(self.together.participants(at), self.alone.participants(at), "in {at:?}, at once");
        }
    }

    /// Waits until whatever is due by now has expired, and nothing else has.
    async fn settle(&mut self) {
        let start = Instant::now();
        loop {
            let now = Instant::now();
            self.model.iter_mut().for_each(|model| model.expire(WINDOW, now));
            let both = |at| [self.together.participants(at), self.alone.participants(at)];
            let model = |at: (u8, u8), of: [u32; 2]| self.model.as_ref().is_none_or(|m| of == [m.count(at.0, at.1); 2]);
            let wrong = calls().map(|at| (at, both(at))).find(|(at, of)| of[0] != of[1] || !model(*at, *of));
            let Some((at, of)) = wrong else { return };
            let expected = self.model.as_ref().map(|model| model.count(at.0, at.1));
            assert!(now - start < PATIENCE, "{of:?} sessions in {at:?}, and not {expected:?}");
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
    }

    /// Everything is well again, and every window over.
    async fn end(mut self) {
        for side in self.sides() {
            for n in 0..SFUS {
                [Act::Answer, Act::Returns, Act::Stays].into_iter().for_each(|act| side.act(n, act));
            }
        }
        tokio::time::sleep(WINDOW).await;
        for side in self.sides() {
            side.world.wait("placing everything", PATIENCE, |s| s.awaiting == 0 && s.attempts_in_flight == 0).await;
        }
        self.settle().await;
        self.sides().into_iter().for_each(Side::hear);
        let people = self.together.people();
        assert_eq!(people, self.alone.people());
        if let Some(model) = &self.model {
            assert_eq!(people, model.people());
        }
    }
}

async fn trial(steps: Vec<Step>, limited: bool) {
    let mut trial = Trial::new(limited);
    for step in steps {
        trial.take(step).await;
        if limited {
            // Limits count calls, and how fast an empty one goes is not what is compared.
            for side in trial.sides() {
                side.world.wait("placing", PATIENCE, |s| s.awaiting == 0 && s.attempts_in_flight == 0).await;
            }
            trial.settle().await;
        }
    }
    trial.end().await;
}

fn paused(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn r15_r16_batches_in_rounds_and_while_calls_move_do_what_their_writes_would_do_one_by_one(
        steps in prop::collection::vec(step(false), 1..24),
    ) {
        paused(trial(steps, false));
    }

    #[test]
    fn r15_batches_in_rounds_under_limits_do_what_their_writes_would_do_one_by_one(
        steps in prop::collection::vec(step(true), 1..14),
    ) {
        paused(trial(steps, true));
    }
}

fn told(session: u8, joins: bool, seq: u64) -> Line {
    Line { who: (0, 0, session), at: 0, seq: Some(seq), joins, credential: false, kind: CallKind::Voice }
}

#[tokio::test(start_paused = true)]
async fn r15_of_one_batch_in_a_round_who_was_told_again_stays_and_who_was_not_goes_after_the_window() {
    let mut trial = Trial::new(false);
    trial.take(Step::Writes((0..SESSIONS).map(|s| told(s, true, 5)).collect())).await;
    trial.take(Step::Pass(100)).await;
    trial.take(Step::Begin(0)).await;
    // The first leaves and comes back, and is told twice; the second is told as it was; the third comes anew and
    // leaves; of the fourth there is only an older write, which does not count.
    let batch = [
        (0, false, 6),
        (0, true, 7),
        (0, true, 7),
        (1, true, 5),
        (2, true, 6),
        (2, true, 6),
        (2, false, 7),
        (3, true, 4),
    ];
    trial.take(Step::Writes(batch.map(|(s, joins, seq)| told(s, joins, seq)).to_vec())).await;
    trial.take(Step::End(0, true)).await;
    let at = |trial: &mut Trial| trial.sides().map(|side| side.people());
    trial.take(Step::Pass(WINDOW.as_millis() as u64 - 200)).await;
    assert_eq!(at(&mut trial), [[0, 1, 3]; 2].map(|all| all.map(|s| (0, (0, 0, s))).to_vec()), "the window is open");
    trial.take(Step::Pass(400)).await;
    assert_eq!(at(&mut trial), [[0, 1]; 2].map(|all| all.map(|s| (0, (0, 0, s))).to_vec()));
    trial.end().await;
}

#[tokio::test(start_paused = true)]
async fn r16_writes_about_a_call_that_moves_and_then_loses_the_place_it_leaves_lose_nobody() {
    let mut trial = Trial::new(false);
    let writes = |seq: u64| {
        let lines = [
            (0, true, seq),
            (1, true, seq),
            (1, false, seq + 1),
            (1, true, seq + 2),
            (1, true, seq + 2),
            (2, false, seq),
        ];
        Step::Writes(lines.map(|(s, joins, seq)| Line { credential: true, ..told(s, joins, seq) }).to_vec())
    };
    trial.take(writes(1)).await;
    trial.take(Step::Pass(1_000)).await;
    let mut on = Vec::new();
    for side in trial.sides() {
        let its = side.world.engine.call(&guild(0), &call(0, 0)).and_then(|call| call.sfu).expect("placed");
        let its = (0..SFUS).find(|n| sfu(*n) == its).expect("one of ours");
        side.act(its, Act::Flees);
        on.push(its);
    }
    trial.take(Step::Pass(200)).await;
    for side in trial.sides() {
        let view = side.world.engine.call(&guild(0), &call(0, 0)).expect("it is there");
        assert!(view.moving_to.is_some(), "{view:?}");
    }
    trial.take(writes(11)).await;
    for (side, its) in trial.sides().into_iter().zip(on) {
        side.act(its, Act::Dies);
    }
    trial.take(writes(21)).await; // nobody has been told yet
    trial.take(Step::Pass(100)).await;
    for side in trial.sides() {
        assert_eq!(side.look((0, 0)), Some((CallState::Awaiting, false)));
        let told = side.world.ear.of(&call(0, 0)).last().map(|(_, phase, _)| *phase);
        assert_eq!(told, Some(2), "the gateways know that the endpoint is gone");
    }
    trial.take(writes(31)).await;
    trial.end().await;
}
