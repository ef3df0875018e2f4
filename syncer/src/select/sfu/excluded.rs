//! What stands against an SFU.

use std::fmt;

use crate::health::Verdict;

/// Why an SFU cannot be chosen now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Excluded {
    /// The verdict forbids new calls.
    Verdict(Verdict),
    /// An operator took it out.
    Cordoned,
    /// It falls and gets up again and again.
    Flapping,
    /// Many of its zone fail.
    ZoneFailing,
    /// It is kept for debugging.
    Quarantined,
    /// It is being drained.
    Draining,
    /// It takes no new rooms.
    NotAccepting,
    /// It asked for patience (`Retry-After`), or served nothing of late.
    Held,
    /// It served nothing of late, and the one attempt that finds out is under way.
    OnTrial,
    /// It has served nothing for so many steps that it is not worth waiting for, whatever its probes say.
    Silent,
    /// It carries all that it can.
    Full,
    /// Its window is full.
    Window,
    /// Its bucket is empty until then.
    SfuBucket,
    /// Its region's bucket is empty until then.
    RegionBucket,
}

// === impl Excluded ===

impl Excluded {
    /// Whether it stands only against rooms that are not there yet.
    #[must_use]
    pub const fn is_of_new_rooms(self) -> bool {
        matches!(self, Self::Full | Self::Cordoned | Self::NotAccepting | Self::Flapping | Self::Verdict(Verdict::Slow))
    }

    /// Whether it is a limit that holds it back, which lets more through as time passes or work is done.
    #[must_use]
    pub const fn is_busy(self) -> bool {
        matches!(self, Self::Window | Self::SfuBucket | Self::RegionBucket)
    }

    /// Whether waiting a moment is all it takes: a limit holds it back, and it is in order.
    #[must_use]
    pub const fn is_passing(self) -> bool {
        self.is_busy() || matches!(self, Self::Held | Self::OnTrial)
    }
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(v) => write!(f, "it is {}", v.name()),
            Self::Cordoned => f.write_str("it is cordoned"),
            Self::Flapping => f.write_str("it fell too often lately"),
            Self::ZoneFailing => f.write_str("its zone is failing"),
            Self::Quarantined => f.write_str("it is in quarantine"),
            Self::Draining => f.write_str("it is being drained"),
            Self::NotAccepting => f.write_str("it takes no new rooms"),
            Self::Held => f.write_str("it asked to be left alone for now, or served nothing of late"),
            Self::OnTrial => f.write_str("it served nothing of late, and one attempt is finding out"),
            Self::Silent => f.write_str("it answers, and has served nothing for a while"),
            Self::Full => f.write_str("it is full"),
            Self::Window => f.write_str("its window of operations in flight is full"),
            Self::SfuBucket => f.write_str("its bucket of creations is empty"),
            Self::RegionBucket => f.write_str("its region's bucket of creations is empty"),
        }
    }
}
