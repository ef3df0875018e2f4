//! The global throttle: shut at once, opened in steps.
//!
//! Whoever opens the door after an outage meets everybody who waited outside. So an operator says how far it
//! shall be open in the end, and it gets there a step a second; every step can be seen and taken back.

use std::time::Duration;

use tokio::time::Instant;

/// How far a step opens it: ten from shut to open.
const STEP: f64 = 0.1;

/// Time between two steps: as long as the callers of the last one need to show.
const STEP_EVERY: Duration = Duration::from_secs(1);

/// How far the door is open, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttle {
    open: f64,
    stepped: Instant,
}

// === impl Throttle ===

impl Throttle {
    /// As far open as the lever says.
    #[must_use]
    pub const fn new(open: f64, now: Instant) -> Self {
        Self { open, stepped: now }
    }

    /// Follows the lever: down at once, up a step at a time. Returns how far it is open now.
    pub fn follow(&mut self, lever: f64, now: Instant) -> f64 {
        if lever <= self.open {
            self.open = lever;
            self.stepped = now;
        } else if now.saturating_duration_since(self.stepped) >= STEP_EVERY {
            self.open = (self.open + STEP).min(lever);
            self.stepped = now;
        }
        self.open
    }

    /// How far it is open.
    #[must_use]
    pub const fn open(&self) -> f64 {
        self.open
    }
}
