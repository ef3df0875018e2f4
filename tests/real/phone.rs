//! A participant that speaks plain RTP: it sends the tone and listens for the other's.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::client::{Endpoint, Handle, Refused};
use crate::tone::{FRAME_SAMPLES, Tone, is_tone};

/// One packet each.
const FRAME: Duration = Duration::from_millis(20);
/// A third of the servers' session time-out.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
const RTP_HEADER: usize = 12;

/// What a participant has heard, over all the rooms it was in.
#[derive(Clone, Debug)]
pub(crate) struct Ear {
    heard: Arc<watch::Sender<Heard>>,
}

#[derive(Debug, Default)]
struct Heard {
    tones: Vec<Instant>,
}

/// What was heard between two moments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hearing {
    pub(crate) tones: usize,
    /// The longest time without tone.
    pub(crate) gap_max: Duration,
}

/// A participant in one room. Leaves when dropped.
#[derive(Debug)]
pub(crate) struct Phone {
    _tasks: JoinSet<()>,
}

// === impl Ear ===

impl Ear {
    pub(crate) fn new() -> Self {
        Self { heard: Arc::new(watch::channel(Heard::default()).0) }
    }

    fn packet(&self, at: Instant, payload: &[u8]) {
        self.heard.send_modify(|heard| {
            if is_tone(payload) {
                heard.tones.push(at);
            }
        });
    }

    /// Frames with the tone so far.
    pub(crate) fn tones(&self) -> usize {
        self.heard.borrow().tones.len()
    }

    /// Waits for `more` frames with the tone.
    pub(crate) async fn listen(&self, more: usize) {
        let target = self.tones() + more;
        let mut heard = self.heard.subscribe();
        let all = heard.wait_for(|heard| heard.tones.len() >= target);
        let waited = tokio::time::timeout(Duration::from_secs(30), all).await;
        assert!(waited.is_ok(), "no tone: {:?}", self.hearing(Instant::now(), Instant::now()));
    }

    /// What was heard from `start` to `end`; silence at either end counts.
    pub(crate) fn hearing(&self, start: Instant, end: Instant) -> Hearing {
        let heard = self.heard.borrow();
        let within = heard.tones.iter().copied().filter(|at| (start..=end).contains(at));
        let (mut tones, mut gap_max, mut last) = (0, Duration::ZERO, start);
        for at in within.chain([end]) {
            gap_max = gap_max.max(at.saturating_duration_since(last));
            last = at;
            tones += 1;
        }
        Hearing { tones: tones - 1, gap_max }
    }
}

// === impl Phone ===

impl Phone {
    /// Joins the room and starts to speak and listen.
    pub(crate) async fn join(
        http: &reqwest::Client,
        endpoint: &Endpoint,
        pin: &str,
        name: &str,
        ear: Ear,
    ) -> Result<Self, Refused> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback");
        let local = socket.local_addr().expect("bound");
        let handle = Handle::open(http, endpoint).await?;
        let remote = handle.join(&endpoint.room, pin, name, local).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(talk(socket, remote, ear));
        tasks.spawn(async move {
            // A server that is gone ends the session; the watch will say where to go then.
            while handle.keep_alive().await.is_ok() {
                tokio::time::sleep(KEEP_ALIVE).await;
            }
        });
        Ok(Self { _tasks: tasks })
    }
}

async fn talk(socket: UdpSocket, remote: SocketAddr, ear: Ear) {
    let mut tone = Tone::default();
    let mut ticks = tokio::time::interval(FRAME);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut sequence, mut timestamp) = (0_u16, 0_u32);
    let mut packet = [0; 2048];
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let frame = rtp(sequence, timestamp, &tone.frame());
                sequence = sequence.wrapping_add(1);
                timestamp = timestamp.wrapping_add(u32::try_from(FRAME_SAMPLES).expect("160"));
                // A dead server answers with "port unreachable"; keep talking, as a real client does.
                let _sent = socket.send_to(&frame, remote).await;
            }
            received = socket.recv_from(&mut packet) => {
                let Ok((length, _)) = received else { continue };
                ear.packet(Instant::now(), packet.get(RTP_HEADER..length).unwrap_or_default());
            }
        }
    }
}

/// A packet of RFC 3550: version 2, payload type 0 (PCMU), no extras.
fn rtp(sequence: u16, timestamp: u32, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(RTP_HEADER + payload.len());
    packet.extend_from_slice(&[0x80, 0]);
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(&timestamp.to_be_bytes());
    packet.extend_from_slice(&0x7472_756e_u32.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}
