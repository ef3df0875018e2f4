//! Bytes of a call's few sessions.

use std::ops::{Deref, DerefMut};

/// Bytes that are kept in the call itself: a line of the cache, but for the one that tells where they are. So most calls
/// have no second allocation, and who waits for the call waits for no other memory: three sessions of 32 hexadecimal
/// digits take 52 with their count, which leaves 11 for their gateways and `seq`. Those are 1 byte each below 128; a `seq`
/// that is a time in milliseconds has 6, and then two sessions are kept here.
const HERE: usize = 63;
/// Room elsewhere is added in steps of one or two sessions.
const STEP: usize = 32;

/// Bytes, zeros where nothing was written.
#[derive(Clone, Debug)]
pub(super) enum Space {
    Here([u8; HERE]),
    Boxed(Box<[u8]>),
}

// === impl Space ===

impl Space {
    /// Makes room for so many bytes and some more, if there is too little.
    pub(super) fn grow(&mut self, bytes: usize) {
        if bytes > self.len() {
            self.resize(bytes.next_multiple_of(STEP));
        }
    }

    /// Gives back what is more than so many bytes and some more, once they fill no more than half of it: less than what they
    /// came with, so that a call on the edge does not flap.
    pub(super) fn shrink(&mut self, bytes: usize) {
        if self.is_boxed() && 2 * bytes <= self.len() {
            self.resize(if bytes <= HERE { HERE } else { bytes.next_multiple_of(STEP) });
        }
    }

    fn resize(&mut self, len: usize) {
        let mut resized = if len <= HERE { Self::default() } else { Self::Boxed(vec![0; len].into()) };
        let kept = resized.len().min(self.len());
        resized[..kept].copy_from_slice(&self[..kept]);
        *self = resized;
    }

    /// Whether they are elsewhere.
    pub(super) const fn is_boxed(&self) -> bool {
        matches!(self, Self::Boxed(_))
    }
}

impl Default for Space {
    fn default() -> Self {
        Self::Here([0; HERE])
    }
}

impl Deref for Space {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Here(bytes) => bytes,
            Self::Boxed(bytes) => bytes,
        }
    }
}

impl DerefMut for Space {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Here(bytes) => bytes,
            Self::Boxed(bytes) => bytes,
        }
    }
}
