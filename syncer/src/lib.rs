//! The voice syncer: who is in which call, and where each live call is placed.
//!
//! Floors from top to ground; a module imports only from lower ones:
//! `server` and `api` (what the network sees), `watch`, `peer`, then `engine` (the shell around the
//! decisions), `observe` (signs of life, digests, expiry), `reconcile` (what is done next), `context` (what
//! those share), `admission` (who may come in), `select` (which SFU), `health` (what we believe of an SFU),
//! `presence` (which gateways are there), `ownership` (which guilds are ours), `registry` (what the fleet
//! agrees on), `drivers` (how to tell an SFU), and `state`
//! (calls; pure).

pub mod admission;
pub mod api;
pub mod config;
pub mod context;
pub mod drivers;
pub mod engine;
pub mod health;
pub mod observe;
pub mod ownership;
pub mod peer;
pub mod presence;
pub mod reconcile;
pub mod registry;
pub mod select;
pub mod server;
pub mod state;
pub mod token;
pub mod watch;

pub use self::config::{Config, ConfigError};
pub use self::server::{Options, Running, StartError, Syncer};
