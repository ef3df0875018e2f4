//! Call state: pure, on the ground floor.
//!
//! Nothing here does I/O, reads a clock or draws a random number: every function takes `now` and
//! returns what is to be done. Pending work is a *set* of dirty calls, never a queue of events:
//! whatever happens edits a call and marks it dirty, and marking twice costs nothing. Memory is
//! therefore O(calls), whatever the storm.
//!
//! - [`Call`] is one call: its participants, its placement, its place in the dirty set.
//! - [`Shard`] holds the calls of some slots, the index of calls by SFU, and the [`Dirty`] set.
//! - [`invariants`] says what must hold between any two operations.

mod call;
mod call_set;
mod calls;
mod dirty;
mod gateways;
mod gone;
mod guilds;
pub mod invariants;
mod line;
mod members;
mod placement;
mod seat;
mod shard;
#[cfg(test)]
mod tests;
mod turns;

pub use self::call::{Call, SeqCheck};
pub use self::dirty::{Blocker, Class, Dirty, Place, smallness};
pub use self::gateways::{GatewayIdx, Round};
pub use self::gone::{Gone, REMEMBERED_FOR};
pub use self::line::Tick;
pub use self::members::Members;
pub use self::placement::{Cause, Last, Move, Placement, Reserved, SfuIdx};
pub use self::seat::Seat;
pub use self::shard::{
    About, Absent, Adds, CallKey, Care, Committed, Decision, Demand, Draw, Expired, How, Join, Joined, Leave, Left,
    Limits, Loss, Moved, Named, News, NewsPage, Next, PlaceWork, Placer, Release, Revision, RoomOn, Row, Rung, Seed,
    Shard, ShardCounts, Terms, Walk, Why,
};
pub use self::turns::Turns;
