//! What keeps a recovery from becoming the next incident: how much may happen, how fast, and who may change that.
//!
//! Everything here decides and nothing waits: each function takes `now` (and the random numbers) from
//! its caller and answers at once, so that the same code runs under real time, paused time and a
//! simulator. Nothing knows of calls, SFUs or connections.
//!
//! | to limit | use | law |
//! |---|---|---|
//! | how often | [`Bucket`], [`Keyed`] | never more than `burst + rate × window` in any window |
//! | how many at once | [`Window`] | shrinks on overload, grows while it is used and all goes well |
//! | when to try again | [`Backoff`], [`clamp_retry_after`] | spread evenly, never in step, never for ever |
//!
//! A [`Lever`] is a limit that an operator reads and changes while the process runs; [`Levers`] is the
//! registry that validates, applies and remembers every change.
//!
//! ```
//! use rate_limit::{Bucket, Quota};
//! use tokio::time::Instant;
//!
//! let now = Instant::now();
//! let bucket = Bucket::new(Quota::new(10.0, 2).unwrap(), now);
//! assert!(bucket.try_take(2, now).is_ok());
//! let not_yet = bucket.try_take(1, now).unwrap_err();
//! assert!(bucket.try_take(1, not_yet.ready_at).is_ok());
//! ```

mod backoff;
mod bucket;
mod keyed;
mod lever;
mod window;

pub use self::backoff::{Backoff, RETRY_AFTER_MAX, RETRY_AFTER_MIN, clamp_retry_after};
pub use self::bucket::{Bucket, NotYet, Quota, QuotaError, RATE_PER_S_MAX, RECHECK_MAX};
pub use self::keyed::Keyed;
pub use self::lever::{AUDIT_CHANGES_MAX, Change, Lever, LeverError, LeverSpec, LeverValue, LeverView, Levers};
pub use self::window::{Outcome, Window, WindowLimits};
