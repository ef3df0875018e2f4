//! The operator's verbs: thin clients of the API that every syncer serves.
//!
//! State that belongs to one syncer (its calls, its levers, its view of an SFU) is read and changed
//! there. `--all` does it on every member of the fleet, because a limit that holds on one of fifteen
//! is a surprise in waiting.

pub(crate) mod blocks;
pub(crate) mod calls;
mod client;
pub(crate) mod gateways;
pub(crate) mod limits;
pub(crate) mod members;
pub(crate) mod recovery;
pub(crate) mod sfus;
pub(crate) mod status;

pub(crate) use self::client::{Client, Connection};
use self::client::{pairs, query, segment};

#[cfg(test)]
mod tests;
