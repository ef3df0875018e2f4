//! The types a lever can have, and how each looks in JSON.

use std::time::Duration;

use serde_json::Value;

/// A type a lever can have: `u64`, `f64`, `bool` or [`Duration`] (in JSON a string such as `250ms`).
pub trait LeverValue: Copy + PartialOrd + sealed::Sealed + Send + Sync + 'static {
    /// What a caller may write, for error messages.
    #[doc(hidden)]
    const EXPECTED: &'static str;
    #[doc(hidden)]
    fn to_bits(self) -> u64;
    #[doc(hidden)]
    fn from_bits(bits: u64) -> Self;
    #[doc(hidden)]
    fn to_json(self) -> Value;
    #[doc(hidden)]
    fn from_json(value: &Value) -> Option<Self>;
}

mod sealed {
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Sealed {}
    impl Sealed for u64 {}
    impl Sealed for f64 {}
    impl Sealed for bool {}
    impl Sealed for std::time::Duration {}
}

impl LeverValue for u64 {
    const EXPECTED: &'static str = "a whole number";

    fn to_bits(self) -> u64 {
        self
    }

    fn from_bits(bits: u64) -> Self {
        bits
    }

    fn to_json(self) -> Value {
        self.into()
    }

    fn from_json(value: &Value) -> Option<Self> {
        value.as_u64()
    }
}

impl LeverValue for f64 {
    const EXPECTED: &'static str = "a number";

    fn to_bits(self) -> u64 {
        Self::to_bits(self)
    }

    fn from_bits(bits: u64) -> Self {
        Self::from_bits(bits)
    }

    fn to_json(self) -> Value {
        self.into()
    }

    fn from_json(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

impl LeverValue for bool {
    const EXPECTED: &'static str = "true or false";

    fn to_bits(self) -> u64 {
        self.into()
    }

    fn from_bits(bits: u64) -> Self {
        bits != 0
    }

    fn to_json(self) -> Value {
        self.into()
    }

    fn from_json(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

/// Kept in nanoseconds: 584 years fit, and longer ones count as that.
impl LeverValue for Duration {
    const EXPECTED: &'static str = "a duration such as \"250ms\" or \"10m\"";

    fn to_bits(self) -> u64 {
        u64::try_from(self.as_nanos()).unwrap_or(u64::MAX)
    }

    fn from_bits(bits: u64) -> Self {
        Self::from_nanos(bits)
    }

    fn to_json(self) -> Value {
        humantime::format_duration(self).to_string().into()
    }

    fn from_json(value: &Value) -> Option<Self> {
        humantime::parse_duration(value.as_str()?).ok()
    }
}
