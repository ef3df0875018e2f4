//! How much of the work an SFU shall have, beside the others.

use serde::{Deserialize, Serialize};

/// How much of the work an SFU shall have, beside others of the same capacity: 0.5 is half as much as 1.
///
/// It skews the choice of SFUs and nothing else: an SFU is full at its capacity, whatever its weight. Up to a
/// factor of ten between the lightest and the heaviest of a region, shares are as the weights say; beyond it, less so.
///
/// [`Weight::MIN`] to [`Weight::MAX`]; 1 by default.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Weight(f64);

/// A number that is no weight.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "weight must be a number from {min} to {max}, got {0}; to place nothing new on an SFU, cordon it",
    min = Weight::MIN,
    max = Weight::MAX
)]
pub struct WeightError(f64);

// === impl Weight ===

impl Weight {
    /// The lowest: below a hundredth, the other SFUs do not notice the difference to a cordon.
    pub const MIN: f64 = 0.01;
    /// The highest: as far above 1 as the lowest is below.
    pub const MAX: f64 = 100.0;

    /// Checks and takes a number.
    ///
    /// # Errors
    ///
    /// When it is no number, or outside of [`Weight::MIN`] to [`Weight::MAX`].
    pub fn new(weight: f64) -> Result<Self, WeightError> {
        if (Self::MIN..=Self::MAX).contains(&weight) { Ok(Self(weight)) } else { Err(WeightError(weight)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

/// It is never NaN.
impl Eq for Weight {}

impl Default for Weight {
    fn default() -> Self {
        Self(1.0)
    }
}

impl TryFrom<f64> for Weight {
    type Error = WeightError;
    fn try_from(weight: f64) -> Result<Self, WeightError> {
        Self::new(weight)
    }
}

impl From<Weight> for f64 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_a_number_within_its_range() {
        for fine in [0.01, 0.5, 1.0, 100.0] {
            assert_eq!(Weight::new(fine).map(Weight::get), Ok(fine));
        }
        for wrong in [0.0, -1.0, 0.009, 100.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let error = Weight::new(wrong).expect_err("no weight").to_string();
            assert!(error.contains("from 0.01 to 100") && error.contains("cordon"), "{error}");
        }
    }
}
