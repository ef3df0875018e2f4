//! What a crowd does, and to which server.

use std::time::Duration;

/// The wire: half of what a client would say.
const HALF_A_HEAD: &[u8] = b"GET /v1/status HTTP/1.1\r\nhost: x\r\nauthoriz";
const HALF_A_BODY: &[u8] =
    b"PUT /v1/guilds/g/calls/c/participants/s HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"seq\":";

/// A crowd of attackers.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// `http` or `https`.
    pub(crate) scheme: &'static str,
    /// What attackers say before they fall silent, one after the other.
    pub(crate) words: &'static [&'static [u8]],
    /// Whether they finish the TLS handshake before.
    pub(crate) handshakes: bool,
    /// Connections opened in a second.
    pub(crate) opened_per_s: u32,
    /// Whether one that was dropped comes back a second later.
    pub(crate) come_back: bool,
    /// The longest that the server allows any of them.
    pub(crate) allowed: Duration,
    /// Levers of the server that are not at their defaults.
    pub(crate) levers: &'static [(&'static str, &'static str)],
}

/// All crowds.
pub(crate) const SCENARIOS: [Scenario; 3] = [
    Scenario {
        name: "http_half_requests",
        scheme: "http",
        words: &[b"", HALF_A_HEAD, HALF_A_BODY],
        handshakes: false,
        opened_per_s: 5_000,
        come_back: true,
        allowed: Duration::from_secs(10), // silence and half a body
        levers: &[],
    },
    // They do not even begin a handshake: silence is all they need.
    Scenario {
        name: "https_silence",
        scheme: "https",
        words: &[b""],
        handshakes: false,
        opened_per_s: 5_000,
        come_back: true,
        allowed: Duration::from_secs(5), // the handshake
        levers: &[],
    },
    // Ten thousand handshakes within the default limits would be a flood of computing. So the server allows more, they
    // come one after the other, and stand through all that is measured.
    Scenario {
        name: "https_half_requests",
        scheme: "https",
        words: &[b"", HALF_A_HEAD, HALF_A_BODY],
        handshakes: true,
        opened_per_s: 600,
        come_back: false,
        allowed: Duration::from_secs(45),
        levers: &[
            ("http.first_request_timeout", "45s"),
            ("http.head_timeout", "45s"),
            ("http.body_idle_timeout", "45s"),
            ("http.body_timeout", "60s"),
            ("http.request_timeout", "75s"),
        ],
    },
];

// === impl Scenario ===

impl Scenario {
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }
}
