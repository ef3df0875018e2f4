//! The way it was: one supervisor that owns every connection.
//!
//! This is the baseline the pool is measured against, never a building block. It behaves as the system
//! of the incident did: one task owns all connections to everybody, discovery included; one mailbox
//! without a bound; and starting a connection searches that mailbox, so that each start costs more the
//! more is queued ([`ScanCost`]). Nothing is limited, nothing is shed, and who gave up waiting is served
//! all the same, because nothing tells the supervisor.
//!
//! Connecting itself runs in a task per connection, as it did there: what diverges is the owner's work,
//! not the network's.

mod scan;
mod supervisor;

pub use self::scan::ScanCost;
pub use self::supervisor::{Checked, Connection, Supervisor};
