//! Against real servers: Janus, as Debian ships it.
//!
//! Needs the program `janus` (`apt-get install -y --no-install-recommends janus`); without it these
//! tests fail and say so. Every test starts servers of its own on loopback, on free ports, with
//! certificates of a throw-away authority, and ends them.
//!
//! | file | holds |
//! |---|---|
//! | `conformance.rs` | the driver against one Janus: rooms, restarts, hangs, draining, wrong secrets |
//! | `suite.rs` | the suite that every driver passes (`docs/drivers.md`) |
//! | `fleet.rs` | the whole system: a real syncer and three Janus, killed, frozen and restarted |
//! | `audio.rs` | two participants hear one another through a room the driver made |
//! | `janus.rs`, `pki.rs` | starting, killing, freezing and restarting Janus processes |
//! | `syncer.rs` | a syncer process and its API, as a gateway sees them |
//! | `client.rs`, `phone.rs`, `tone.rs` | a participant that speaks plain RTP, and what it hears |

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "measured figures belong in the test's output")]

mod audio;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod conformance;
mod fleet;
mod janus;
mod phone;
mod pki;
mod suite;
mod syncer;
mod tone;
