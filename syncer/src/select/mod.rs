//! Which SFU a call goes to.
//!
//! Load reports are old by the time they are read, and everyone reads the same ones: whoever picks
//! the least loaded SFU stampedes it. Three things prevent that (R7). The score counts the
//! reservations made *since* the report; only two SFUs drawn at random are compared, so that
//! nobody is everybody's favourite; and a token bucket per SFU, per region and over all bounds
//! what any of them can be sent. There is no global lock and no sort: a snapshot of the
//! catalogue, and per SFU atomics and locks that are held for an addition (its bucket, its window, its last report).

mod budget;
mod catalogue;
mod choose;
mod drain;
mod ladder;
mod replay;
mod sfu;
#[cfg(test)]
mod tests;
mod zone;

pub use self::budget::{Budget, Quotas};
pub use self::catalogue::{Catalogue, Group, Replaced, Snapshot};
pub use self::choose::{Choice, Fate, choose, choose_by};
pub use self::drain::{Drain, DrainState, Orders};
pub use self::ladder::{Descent, Footing, Ladder, Step, descend};
pub use self::replay::{Look, Replay, replay};
pub(crate) use self::sfu::SFU_WINDOW;
pub use self::sfu::{Entry, Excluded, Reservation, Sfu};
pub use self::zone::{Course, Zone, ZoneChange};
pub use crate::state::Care;
