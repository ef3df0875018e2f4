//! The fleet, the calls on the one SFU, and the gateways that hear of them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sfu_api::SfuId;
use sfu_mock::{Budget, Budgets, Cluster, ClusterConfig, Fault, Target};
use syncer::registry::{Embedded, Member, Registry};
use syncer::token::Signer;
use syncer::{Options, Running, Syncer};

use super::support::{Events, answer, behind_tls, config, install_provider, until, verifying};

/// The gateway that is away while it happens.
const LAGGARD: usize = 3;
/// Gateways, the laggard among them. Sessions are dealt out in turn.
const GATEWAYS: usize = 4;
/// Lines in a request of the bulk road: well below its time limits in a debug build.
const LINES: usize = 10_000;
/// Tokens of the buckets that may go at once during the repair.
const BURST: u32 = 20;

/// How large it all is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) sfus: usize,
    /// Calls on the one that dies.
    pub(crate) calls: usize,
    /// Sessions in them.
    pub(crate) participants: usize,
    /// Repairs per second.
    pub(crate) pace: u32,
    /// Calls on the others.
    pub(crate) others: usize,
    /// How long the calm before and after is looked at.
    pub(crate) baseline: Duration,
    /// What p99 may differ by for reasons that are not ours: nothing else runs beside the full size; a debug build among
    /// other tests waits for a scheduler that has them to serve.
    pub(crate) noise_ms: f64,
    /// Part of a gateway's calls whose null may be coalesced with the endpoint: the first bursts are repaired before
    /// anybody has read.
    pub(crate) coalesced_max: f64,
}

pub(crate) struct Rig {
    pub(crate) scale: Scale,
    pub(crate) sfus: Cluster,
    syncer: Running,
    client: Client,
    victim: SfuId,
    _dir: tempfile::TempDir,
}

/// What a gateway heard of each call: phases in order.
type Heard = Arc<Mutex<HashMap<String, Vec<u64>>>>;

pub(crate) struct Gateways {
    /// Those that were connected all the time.
    heard: Vec<Heard>,
    /// Where the laggard left off.
    cursor: String,
}

// === impl Scale ===

impl Scale {
    pub(crate) fn from_environment() -> Self {
        if std::env::var_os("TRUNKLINE_FULL").is_some() {
            let baseline = Duration::from_secs(10);
            let (noise_ms, coalesced_max) = (0.0, 0.0);
            Self {
                sfus: 1_000,
                calls: 38_500,
                participants: 100_000,
                pace: 400,
                others: 1_000,
                baseline,
                noise_ms,
                coalesced_max,
            }
        } else {
            let baseline = Duration::from_secs(2);
            let (noise_ms, coalesced_max) = (10.0, 0.05);
            Self { sfus: 60, calls: 600, participants: 2_000, pace: 100, others: 60, baseline, noise_ms, coalesced_max }
        }
    }

    /// The p99 to compare with: the lower one at full size; in a debug build other tests come and go beside it.
    pub(crate) fn calm_ms(&self, before: f64, after: f64) -> f64 {
        if self.noise_ms > 0.0 { before.max(after) } else { before.min(after) }
    }

    /// How long the repair takes at its pace.
    pub(crate) fn repair(&self) -> Duration {
        Duration::from_secs_f64(self.calls as f64 / f64::from(self.pace))
    }
}

// === impl Rig ===

impl Rig {
    pub(crate) async fn start(scale: Scale) -> Self {
        install_provider();
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = ClusterConfig {
            nodes: scale.sfus,
            dir: Some(dir.path().to_owned()),
            capacity: 100_000,
            empty_room_ttl: Duration::from_secs(3_600),
            ..ClusterConfig::default()
        };
        let sfus = Cluster::start(cluster).await.expect("mock SFUs");
        let registry = Embedded::in_memory();
        let me = Member::new(sfu_api::SyncerId::new("syncer-1").expect("an id"), "http://127.0.0.1:1", "z1");
        registry.list_members(vec![me]).await.expect("listed");
        let options = Options {
            registry: Some(registry as Arc<dyn Registry>),
            signer: Some(Arc::new(Signer::generate().expect("keys"))),
            ..Options::default()
        };
        let mut config = config("syncer-1", dir.path());
        behind_tls(&mut config);
        let syncer = Syncer::start(config, options).await.expect("starts");
        until("ready", || async { syncer.is_ready() }).await;
        let client = verifying(dir.path(), Duration::from_secs(120));
        let victim = sfus.nodes()[0].id.clone();
        let rig = Self { scale, sfus, syncer, client, victim, _dir: dir };
        rig.fill().await;
        rig
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.syncer.url())
    }

    pub(crate) fn request(&self, method: Method, path: &str, gateway: usize) -> reqwest::RequestBuilder {
        self.client.request(method, self.url(path)).bearer_auth(format!("gw-{gateway}"))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = answer(self.request(Method::GET, path, 0)).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    async fn levers(&self, rate: f64, burst: u32, overall: (f64, u32)) {
        let mut levers = json!({ "placement.overall.rate": overall.0, "placement.overall.burst": overall.1 });
        for level in ["placement.region", "placement.sfu"] {
            levers[format!("{level}.rate")] = json!(rate);
            levers[format!("{level}.burst")] = json!(burst);
        }
        let (status, body) = answer(self.request(Method::PATCH, "/v1/levers", 0).json(&levers)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }

    /// New calls that are admitted per second, and at once.
    async fn door(&self, rate: u32, burst: u32) {
        let levers = json!({ "admission.new_calls.rate": rate, "admission.new_calls.burst": burst });
        let (status, body) = answer(self.request(Method::PATCH, "/v1/levers", 0).json(&levers)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        until("the door follows", || async {
            self.get("/v1/status").await["admission"]["new_calls_per_s"] == f64::from(rate)
        })
        .await;
    }

    async fn cordon(&self, verb: &str) {
        for node in self.sfus.nodes().iter().filter(|node| node.id != self.victim) {
            let (status, body) = answer(self.request(Method::POST, &format!("/v1/sfus/{}:{verb}", node.id), 0)).await;
            assert_eq!(status, StatusCode::OK, "{body}");
        }
    }

    /// All calls on the victim, some others elsewhere, and then the pace of the repair.
    async fn fill(&self) {
        let Scale { calls, participants, pace, others, .. } = self.scale;
        self.levers(10_000.0, 10_000, (10_000.0, 10_000)).await;
        // Filling is no crowd that somebody has to be kept from: all come in at once.
        self.door(1_000_000, 1_000_000).await;
        self.cordon("cordon").await;
        self.join((0..participants).map(|n| (format!("c{}", n % calls), n)).collect()).await;
        self.placed(calls).await;
        self.cordon("uncordon").await;
        let (status, body) = answer(self.request(Method::POST, &format!("/v1/sfus/{}:cordon", self.victim), 0)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        self.join((0..others).map(|n| (format!("other{n}"), n)).collect()).await;
        self.placed(calls + others).await;
        self.door(5_000, 10_000).await;
        let rate = f64::from(pace);
        self.levers(rate / 4.0, BURST / 2, (rate, BURST)).await;
        // Its region is the only one, so its bucket is as wide as that over all.
        let region = json!({ "placement.region.rate": rate * 2.0, "placement.region.burst": BURST * 2 });
        answer(self.request(Method::PATCH, "/v1/levers", 0).json(&region)).await;
        tokio::time::sleep(Duration::from_secs(1)).await; // levers are read at least four times a second
        let budget = |rate: f64, burst: u32| Some(Budget { rate, burst });
        self.sfus
            .set_budgets(Budgets {
                sfu: budget(rate / 4.0, BURST / 2),
                region: budget(rate * 2.0, BURST * 2),
                overall: budget(rate, BURST),
                // What was sent in time may be read late on a busy machine.
                slack_ms: 250,
            })
            .expect("valid");
    }

    /// Joins sessions by the bulk road, each on the gateway whose turn it is.
    async fn join(&self, sessions: Vec<(String, usize)>) {
        for gateway in 0..GATEWAYS {
            let mine: Vec<_> = sessions.iter().filter(|(_, n)| n % GATEWAYS == gateway).collect();
            for chunk in mine.chunks(LINES) {
                let mut body = String::new();
                for (call, n) in chunk {
                    let line = json!({ "op": "o", "do": "join", "guild": guild(call), "call": call,
                        "session": format!("s{n}"), "token": false });
                    writeln!(body, "{line}").expect("a string takes all");
                }
                let sent = self.request(Method::POST, "/v1/voice-states", gateway).body(body).send();
                let text = sent.await.expect("an answer").text().await.expect("results");
                let refused = text.lines().find(|line| !line.contains("\"status\":200"));
                assert_eq!(refused, None);
            }
        }
    }

    async fn placed(&self, calls: usize) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
        loop {
            let status = self.get("/v1/status").await;
            if status["placed"] == calls {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{calls} calls are not placed: {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills the one SFU without a word.
    pub(crate) async fn kill(&self) {
        self.sfus.fault(&Target::node(self.victim.clone()), &Fault::Kill).await.expect("killed");
    }

    /// A call that waits says what holds it back and for how long.
    pub(crate) async fn explains_one_that_waits(&self) {
        let page = self.get("/v1/calls?state=awaiting&limit=50").await;
        let calls = page["calls"].as_array().expect("calls");
        for call in calls {
            let name = call["call"].as_str().expect("a name");
            let path = format!("/v1/guilds/{}/calls/{name}:explain", guild(name));
            let (status, why) = answer(self.request(Method::GET, &path, 0)).await;
            let Some(waiting_for) = why["waiting_for"].as_str().filter(|_| status == StatusCode::OK) else { continue };
            if why["call"]["state"] != "awaiting" || !waiting_for.contains("its turn") {
                continue; // its turn has come meanwhile
            }
            assert!(waiting_for.contains("placement.overall.rate"), "{why}");
            assert!(why["eta_s"].as_f64().is_some_and(|eta| eta > 0.0), "{why}");
            assert!(why["would_go"].as_str().is_some_and(|to| !to.starts_with(&format!("{} ", self.victim))), "{why}");
            return;
        }
        panic!("none of {} calls waits for its turn half-way", calls.len());
    }

    /// Every call is on another SFU, after about one attempt each.
    pub(crate) async fn checks_calls(&self) {
        let status = self.get("/v1/status").await;
        assert_eq!(status["moves_total"], self.scale.calls, "{status}");
        assert_eq!(status["invariant_violations"], 0, "{status}");
        let count = |name: &str| status[name].as_f64().expect("a count");
        assert!(count("attempts_total") <= 1.1 * count("first_attempts_total"), "R14: {status}");
        assert_eq!(self.get(&format!("/v1/calls?sfu={}&limit=1", self.victim)).await["total"], 0);
    }

    /// Connects the gateways: three stay, one reads what there is and goes away.
    pub(crate) async fn gateways(&self) -> Gateways {
        let mut heard = Vec::new();
        let mut cursor = None;
        for gateway in 0..GATEWAYS {
            let mut events =
                Events::open(self.request(Method::GET, "/v1/watch", gateway).timeout(Duration::from_secs(900))).await;
            let mut left = self.calls_of(gateway);
            while left > 0 {
                left -= usize::from(events.next().await.name == "endpoint");
            }
            if gateway == LAGGARD {
                cursor = events.last_id;
                continue;
            }
            let mine = Heard::default();
            heard.push(Arc::clone(&mine));
            #[expect(clippy::disallowed_methods, reason = "ends with the test")]
            tokio::spawn(async move {
                while let Ok(event) = tokio::time::timeout(Duration::from_secs(300), events.next()).await {
                    if event.name == "endpoint" {
                        let phase = event.data["phase"].as_u64().expect("a phase");
                        let call = event.data["call"].as_str().expect("a call").to_owned();
                        mine.lock().entry(call).or_default().push(phase);
                    }
                }
            });
        }
        Gateways { heard, cursor: cursor.expect("the laggard has read something") }
    }

    /// Calls in which a gateway has sessions, on the victim and elsewhere.
    fn calls_of(&self, gateway: usize) -> usize {
        let Scale { calls, participants, others, .. } = self.scale;
        let mine = |n: &usize| n % GATEWAYS == gateway;
        let on_victim: std::collections::HashSet<_> = (0..participants).filter(mine).map(|n| n % calls).collect();
        on_victim.len() + (0..others).filter(mine).count()
    }
}

pub(crate) fn guild(call: &str) -> String {
    format!("g-{call}")
}

// === impl Gateways ===

impl Gateways {
    /// One null and one endpoint for each call and connected gateway; the last state for the laggard. Returns how many
    /// nulls were coalesced with the endpoint.
    pub(crate) async fn check(&mut self, rig: &Rig) -> usize {
        let mut all_coalesced = 0;
        let Scale { calls, participants, coalesced_max, .. } = rig.scale;
        for (gateway, heard) in self.heard.iter().enumerate() {
            let expected: std::collections::HashSet<String> =
                (0..participants).filter(|n| n % GATEWAYS == gateway).map(|n| format!("c{}", n % calls)).collect();
            until("the last news", || async {
                let heard = heard.lock();
                expected.iter().all(|call| heard.get(call).is_some_and(|phases| phases.last() == Some(&1)))
            })
            .await;
            let heard = heard.lock();
            let coalesced = expected.iter().filter(|call| heard[*call] == [1]).count();
            let other = expected.iter().find(|call| heard[*call] != [2, 1] && heard[*call] != [1]);
            assert_eq!(other.map(|call| (call, &heard[call])), None, "R16: not one null and one endpoint");
            let part = coalesced as f64 / expected.len() as f64;
            all_coalesced += coalesced;
            assert!(part <= coalesced_max, "{coalesced} of {} nulls were not seen", expected.len());
            let moved = heard.keys().find(|call| call.starts_with("other"));
            assert_eq!(moved, None, "I10: news of a call on a healthy SFU");
        }
        let resume = rig.request(Method::GET, "/v1/watch", LAGGARD).header("last-event-id", &self.cursor);
        let mut events = Events::open(resume.timeout(Duration::from_secs(300))).await;
        let expected: std::collections::HashSet<String> =
            (0..participants).filter(|n| n % GATEWAYS == LAGGARD).map(|n| format!("c{}", n % calls)).collect();
        let mut seen = std::collections::HashSet::new();
        while seen.len() < expected.len() {
            let event = events.next().await;
            assert_eq!(event.name, "endpoint", "it was away for less than the resume window");
            let call = event.data["call"].as_str().expect("a call").to_owned();
            if expected.contains(&call) {
                assert_eq!(event.data["phase"], 1, "only the last state: {}", event.data);
                assert!(seen.insert(call), "once");
            }
        }
        all_coalesced
    }
}
