//! Who is in which call: the same people in every run.
//!
//! Ids look like those of the largest voice service: snowflakes for guilds and channels, 32 hexadecimal
//! digits for sessions. Two calls a guild, one to four people in a call, 2.6 on average, each on any of
//! the gateways.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

/// People in a call, by its number modulo five.
const SIZES: [u64; 5] = [1, 2, 3, 3, 4];
/// People in five calls.
const PER_FIVE: u64 = 13;
/// Where snowflakes of these years begin.
const SNOWFLAKE: u64 = 900_000_000_000_000_000;
/// Spreads numbers over ids, as real ones are.
const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// A call, and how far its people's writes are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// Its number.
    pub(crate) nth: u64,
    /// Order of its people's last writes: all of them write together.
    pub(crate) seq: u64,
}

/// Calls in the order of their lines, for all gateways.
pub(crate) type Calls = Arc<[Call]>;

/// What the lines say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// People join.
    Join,
    /// They are told again, and nobody wants a token.
    Tell,
    /// The same, in a round: what a gateway does that tells everything again.
    Resync,
    /// People leave.
    Leave,
}

/// Calls that nobody has written to yet: their people's first writes come now.
#[must_use]
pub(crate) fn calls(numbers: Range<u64>) -> Vec<Call> {
    numbers.map(|nth| Call { nth, seq: 1 }).collect()
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
    calls: Calls,
    /// How many of them are done.
    done: usize,
    gateway: u64,
    gateways: u64,
    write: Write,
}

// === impl Lines ===

impl Lines {
    /// The lines of gateway number `gateway`.
    #[must_use]
    pub(crate) const fn new(calls: Calls, gateway: u64, gateways: u64, write: Write) -> Self {
        Self { calls, done: 0, gateway, gateways, write }
    }

    /// The next lines, at least `bytes` of them unless there are no more, and how many they are.
    pub(crate) fn chunk(&mut self, bytes: usize) -> (String, u64) {
        let mut text = String::with_capacity(bytes + 1_024);
        let mut lines = 0;
        while text.len() < bytes
            && let Some(call) = self.calls.get(self.done)
        {
            self.done += 1;
            for person in people(call.nth)..people(call.nth + 1) {
                if person.wrapping_mul(7) % self.gateways == self.gateway {
                    self.line(&mut text, call, person);
                    lines += 1;
                }
            }
        }
        (text, lines)
    }

    fn line(&self, text: &mut String, call: &Call, person: u64) {
        let (what, rest) = match self.write {
            Write::Join => ("join", ""),
            Write::Tell | Write::Resync => ("join", ",\"token\":false"),
            Write::Leave => ("leave", ""),
        };
        let (guild, channel, session, seq) = (guild(call.nth), channel(call.nth), session(person), call.seq);
        let written = writeln!(
            text,
            "{{\"op\":\"{person}\",\"do\":\"{what}\",\"guild\":\"{guild}\",\"call\":\"{channel}\",\
             \"session\":\"{session}\",\"seq\":{seq},\"region\":\"a\"{rest}}}"
        );
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
    }
}
