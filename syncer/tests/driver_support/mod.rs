//! What the driver tests share: a lane, drivers on it, and servers that misbehave on purpose.

// Each test binary uses another part of this.
#![allow(dead_code, unreachable_pub)]

pub mod fake_janus;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use pool::{Lane, LaneLimits};
use sfu_api::{BootId, CallId, CallKind, Epoch, GuildId, OpId, OwnerTerm, Slot, SyncerId};
use syncer::drivers::{EndSpec, JanusPlugin, RoomSpec, SfuDriver, SfuSpec, build};
use syncer::token::Signer;
use tokio::time::Instant;

/// The admin secret of every Janus in these tests.
pub const SECRET: &str = "hush-admin-secret";
/// The admin key of every Janus in these tests.
pub const KEY: &str = "hush-admin-key";

/// A lane for plain HTTP to this machine.
pub fn lane() -> Lane {
    Lane::builder("sfu").limits(LaneLimits::default()).build().expect("default limits are good")
}

/// A deadline that a healthy exchange on a slow machine meets.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// A deadline that a hanging server misses.
pub fn shortly() -> Instant {
    Instant::now() + Duration::from_millis(400)
}

/// A driver for the native contract at `url`.
pub fn native(lane: &Lane, url: &str) -> Arc<dyn SfuDriver> {
    let tokens = Arc::new(Signer::generate().expect("randomness"));
    built(lane, &tokens, &format!("id = \"a-1\"\nurl = \"{url}\"\nregion = \"a\"\ncapacity = 100"))
}

/// A driver for a Janus whose APIs are both at `url`.
pub fn janus(lane: &Lane, url: &str, plugin: JanusPlugin) -> Arc<dyn SfuDriver> {
    let tokens = Arc::new(Signer::generate().expect("randomness"));
    let plugin = plugin.as_str();
    built(
        lane,
        &tokens,
        &format!(
            "id = \"j-1\"\nurl = \"{url}/janus\"\nregion = \"a\"\ndriver = \"janus\"\ncapacity = 100\n[janus]\n\
             admin_url = \"{url}/admin\"\nadmin_secret = \"{SECRET}\"\nadmin_key = \"{KEY}\"\nplugin = \"{plugin}\"\n"
        ),
    )
}

/// A driver for a catalogue entry.
pub fn built(lane: &Lane, tokens: &Arc<Signer>, entry: &str) -> Arc<dyn SfuDriver> {
    let spec: SfuSpec = toml::from_str(entry).expect("a good entry");
    build(&spec, lane, tokens, &SyncerId::new("syncer-1").expect("valid id")).expect("a good entry")
}

/// The epoch `1.1.n`.
pub fn epoch(n: u64) -> Epoch {
    Epoch { term: OwnerTerm { generation: 1, revision: 1 }, n }
}

/// What to ensure for the call `call` of guild `g` at epoch `1.1.n`.
pub fn room(driver: &dyn SfuDriver, call: &str, n: u64, boot_id: Option<BootId>) -> RoomSpec {
    let guild = GuildId::new("g").expect("valid id");
    let call = CallId::new(call).expect("valid id");
    let slot = Slot::new(7).expect("valid slot");
    RoomSpec {
        room: driver.room_name(&guild, &call, slot, epoch(n)),
        op_id: OpId::new(format!("op-{call}-{n}")).expect("valid id"),
        guild,
        call,
        kind: CallKind::Voice,
        slot,
        owner_term: epoch(n).term,
        epoch: epoch(n),
        boot_id,
        capacity: 10,
    }
}

/// How to end the room of `spec`, as operation `op`.
pub fn end(spec: &RoomSpec, op: &str) -> EndSpec {
    EndSpec::of(spec, OpId::new(op).expect("valid id"))
}

/// Serves every connection alike: reads a request, writes `answer` and closes.
///
/// Runs until the process ends; the thread holds nothing but its socket.
pub fn raw_server(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = [0; 8192];
            let read = stream.read(&mut request).unwrap_or(0);
            if read > 0 {
                let _written = stream.write_all(&answer);
            }
        }
    });
    url
}

/// Accepts connections and never says a word.
pub fn silent_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        let held: Vec<_> = listener.incoming().collect();
        drop(held);
    });
    url
}

/// An address of this machine where nothing listens.
pub fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    format!("http://{}", listener.local_addr().expect("bound"))
}
