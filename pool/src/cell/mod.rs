//! One origin's state.

use tokio::time::Instant;

/// Whether an origin takes ordinary requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// The last dial worked, or none was made yet.
    Closed,
    /// The last dial failed; requests get its error at once until `until`.
    Open {
        /// End of the back-off.
        until: Instant,
    },
    /// The back-off is over: the next request makes one dial that decides.
    HalfOpen,
}
