//! Who is in which call: the same people in every run.
//!
//! Ids look like those of the largest voice service: snowflakes for guilds and channels, 32 hexadecimal
//! digits for sessions. Two calls a guild, one to four people in a call, 2.6 on average, each on any of
//! the gateways.

use std::fmt::Write as _;
use std::ops::Range;

/// People in a call, by its number modulo five.
const SIZES: [u64; 5] = [1, 2, 3, 3, 4];
/// People in five calls.
const PER_FIVE: u64 = 13;
/// Where snowflakes of these years begin.
const SNOWFLAKE: u64 = 900_000_000_000_000_000;
/// Spreads numbers over ids, as real ones are.
const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// What the lines say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// People join.
    Join {
        /// Order of the session's writes.
        seq: u64,
    },
    /// They are told again, and nobody wants a token.
    Tell {
        /// Order of the session's writes.
        seq: u64,
    },
    /// People leave.
    Leave {
        /// Order of the session's writes.
        seq: u64,
    },
}

/// People in so many calls.
#[must_use]
pub(crate) fn people(calls: u64) -> u64 {
    let rest: u64 = SIZES.iter().take((calls % 5) as usize).sum();
    calls / 5 * PER_FIVE + rest
}

/// A guild's id.
#[must_use]
pub(crate) fn guild(call: u64) -> u64 {
    SNOWFLAKE + call / 2 * 4_099
}

/// A call's id.
#[must_use]
pub(crate) fn channel(call: u64) -> u64 {
    SNOWFLAKE + 1 + call * 2_053
}

/// A session's id.
#[must_use]
pub(crate) fn session(person: u64) -> String {
    format!("{:032x}", SPREAD.wrapping_mul(u128::from(person) + 1))
}

/// Where a person joins a call by a request.
pub(crate) fn path(call: u64, person: u64) -> String {
    format!("/v1/guilds/{}/calls/{}/participants/{}", guild(call), channel(call), session(person))
}

/// The lines of one gateway out of `gateways`, for the people of `calls`, handed out in chunks.
#[derive(Debug)]
pub(crate) struct Lines {
    calls: Range<u64>,
    person: u64,
    gateway: u64,
    gateways: u64,
    write: Write,
}

// === impl Lines ===

impl Lines {
    /// The lines of gateway number `gateway`.
    #[must_use]
    pub(crate) fn new(calls: Range<u64>, gateway: u64, gateways: u64, write: Write) -> Self {
        Self { person: people(calls.start), calls, gateway, gateways, write }
    }

    /// The next lines, at least `bytes` of them unless there are no more, and how many they are.
    pub(crate) fn chunk(&mut self, bytes: usize) -> (String, u64) {
        let mut text = String::with_capacity(bytes + 1_024);
        let mut lines = 0;
        while text.len() < bytes
            && let Some(call) = self.calls.next()
        {
            for _ in 0..SIZES[(call % 5) as usize] {
                let person = self.person;
                self.person += 1;
                if person.wrapping_mul(7) % self.gateways == self.gateway {
                    self.line(&mut text, call, person);
                    lines += 1;
                }
            }
        }
        (text, lines)
    }

    fn line(&self, text: &mut String, call: u64, person: u64) {
        let (what, seq, rest) = match self.write {
            Write::Join { seq } => ("join", seq, ""),
            Write::Tell { seq } => ("join", seq, ",\"token\":false"),
            Write::Leave { seq } => ("leave", seq, ""),
        };
        let (guild, channel, session) = (guild(call), channel(call), session(person));
        let written = writeln!(
            text,
            "{{\"op\":\"{person}\",\"do\":\"{what}\",\"guild\":\"{guild}\",\"call\":\"{channel}\",\
             \"session\":\"{session}\",\"seq\":{seq},\"region\":\"a\"{rest}}}"
        );
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
    }
}
