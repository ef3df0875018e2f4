//! Room names: stable, reversible, and safe wherever a name goes.
//!
//! A name ends up in a URL path, in a query string, in JSON and in Janus's own lists. Percent
//! encoding would be decoded by some of these and not by others, so names use only characters that
//! no URL ever escapes: letters, digits, `-`, `.` and, as separator, `~`. Every other byte of an id
//! becomes `_XX` (so does `_` itself).
//!
//! | SFU | name |
//! |---|---|
//! | fences | `guild~call` |
//! | cannot fence | `tl~slot~generation.revision.n~guild~call` |
//!
//! An id may be 128 bytes long, and so may a name. Where `guild~call` does not fit, `~` and a
//! SHA-256 (128 bits of it, base64url) stand in its place: still stable, still one name per call,
//! but not reversible.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sfu_api::{CallId, Epoch, GuildId, ID_BYTES_MAX, RoomId, Slot};

/// Prefix of the names of rooms on SFUs that cannot fence.
const TAGGED: &str = "tl~";

/// What a name tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) slot: Option<Slot>,
    pub(super) epoch: Option<Epoch>,
    pub(super) guild: Option<GuildId>,
    pub(super) call: Option<CallId>,
}

/// The room's name on an SFU that fences: the same for every epoch.
pub(super) fn plain(guild: &GuildId, call: &CallId) -> RoomId {
    fitted(String::new(), guild, call)
}

/// The room's name on an SFU that cannot fence: another one for every epoch.
pub(super) fn tagged(guild: &GuildId, call: &CallId, slot: Slot, epoch: Epoch) -> RoomId {
    fitted(format!("{TAGGED}{}~{epoch}~", slot.get()), guild, call)
}

fn fitted(mut name: String, guild: &GuildId, call: &CallId) -> RoomId {
    let prefix = name.len();
    escape(guild.as_str(), &mut name);
    name.push('~');
    escape(call.as_str(), &mut name);
    if name.len() > ID_BYTES_MAX {
        name.truncate(prefix);
        name.push('~');
        name.push_str(&hashed(guild, call));
    }
    RoomId::new(name).expect("at most 73 bytes of prefix and 23 of hash, without white space")
}

fn hashed(guild: &GuildId, call: &CallId) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(guild.as_str().as_bytes());
    hash.update(&[0]); // ids hold no control characters, so no two pairs give the same bytes
    hash.update(call.as_str().as_bytes());
    URL_SAFE_NO_PAD.encode(hash.finish().as_ref().get(..16).unwrap_or_default())
}

/// Reads a name made by [`plain`]; `None` for any other text.
pub(super) fn parse_plain(name: &str) -> Option<Parsed> {
    let (guild, call) = parse_ids(name)?;
    Some(Parsed { slot: None, epoch: None, guild, call })
}

/// Reads a name made by [`tagged`]; `None` for any other text.
pub(super) fn parse_tagged(name: &str) -> Option<Parsed> {
    let mut parts = name.strip_prefix(TAGGED)?.splitn(3, '~');
    let slot = Slot::new(canonical(parts.next()?)?)?;
    let text = parts.next()?;
    let epoch: Epoch = text.parse().ok()?;
    if epoch.to_string() != text {
        return None;
    }
    let (guild, call) = parse_ids(parts.next()?)?;
    Some(Parsed { slot: Some(slot), epoch: Some(epoch), guild, call })
}

fn parse_ids(text: &str) -> Option<(Option<GuildId>, Option<CallId>)> {
    if let Some(hash) = text.strip_prefix('~') {
        let known = URL_SAFE_NO_PAD.decode(hash).is_ok_and(|bytes| bytes.len() == 16);
        return known.then_some((None, None));
    }
    let (guild, call) = text.split_once('~')?;
    let guild = GuildId::new(unescape(guild)?).ok()?;
    let call = CallId::new(unescape(call)?).ok()?;
    Some((Some(guild), Some(call)))
}

/// A number written without sign or leading zeros: one name per room, not several.
fn canonical(text: &str) -> Option<u16> {
    let n: u16 = text.parse().ok()?;
    (n.to_string() == text).then_some(n)
}

fn escape(id: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' {
            out.push(char::from(byte));
        } else {
            out.push('_');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        match byte {
            b'_' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'-' | b'.' => out.push(byte),
            _ if byte.is_ascii_alphanumeric() => out.push(byte),
            _ => return None,
        }
    }
    let id = String::from_utf8(out).ok()?;
    let mut again = String::with_capacity(text.len());
    escape(&id, &mut again);
    (again == text).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sfu_api::OwnerTerm;

    fn guild(s: &str) -> GuildId {
        GuildId::new(s).expect("valid id")
    }

    fn call(s: &str) -> CallId {
        CallId::new(s).expect("valid id")
    }

    fn slot(n: u16) -> Slot {
        Slot::new(n).expect("valid slot")
    }

    fn epoch(generation: u64, revision: u64, n: u64) -> Epoch {
        Epoch { term: OwnerTerm { generation, revision }, n }
    }

    #[test]
    fn ordinary_ids_read_as_they_are() {
        assert_eq!(plain(&guild("g-1"), &call("c.2")).as_str(), "g-1~c.2");
        assert_eq!(tagged(&guild("g"), &call("c"), slot(7), epoch(1, 2, 3)).as_str(), "tl~7~1.2.3~g~c");
    }

    #[test]
    fn long_ids_are_hashed_and_stay_apart() {
        let (a, b) = (call(&"x".repeat(127)), call(&format!("{}y", "x".repeat(126))));
        let e = epoch(u64::MAX, u64::MAX, u64::MAX);
        let name = tagged(&guild("g"), &a, slot(4095), e);
        assert_ne!(name, tagged(&guild("g"), &b, slot(4095), e));
        let parsed = parse_tagged(name.as_str()).expect("ours");
        assert_eq!((parsed.epoch, parsed.slot, parsed.call), (Some(e), Some(slot(4095)), None));
    }

    #[test]
    fn foreign_names_are_not_ours() {
        for name in [
            "demo",
            "1234",
            "_boot.0",
            "tl~",
            "tl~1~1.1.1",
            "tl~4096~1.1.1~g~c",
            "tl~01~1.1.1~g~c",
            "tl~1~01.1.1~g~c",
            "tl~1~1.1~g~c",
            "tl~1~1.1.1~~short",
            "tl~1~1.1.1~g~c~d",
            "tl~1~1.1.1~g~_zz",
            "tl~1~1.1.1~g~_41",
            "tl~1~1.1.1~~",
            "",
        ] {
            assert_eq!(parse_tagged(name), None, "{name}");
        }
        assert_eq!(parse_plain("demo"), None);
    }

    proptest! {
        #[test]
        fn names_round_trip_and_are_url_safe(
            g in "[^\\s\\p{Cc}]{1,30}", c in "[^\\s\\p{Cc}]{1,30}", s in 0u16..4096, r in any::<u64>(), n in any::<u64>(),
        ) {
            prop_assume!(GuildId::new(&g).is_ok() && CallId::new(&c).is_ok());
            let (g, c, e) = (guild(&g), call(&c), epoch(1, r, n));
            for name in [plain(&g, &c), tagged(&g, &c, slot(s), e)] {
                prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b)));
            }
            let parsed = parse_plain(plain(&g, &c).as_str()).expect("ours");
            prop_assert!(parsed.guild.is_none_or(|x| x == g) && parsed.call.is_none_or(|x| x == c));
            let parsed = parse_tagged(tagged(&g, &c, slot(s), e).as_str()).expect("ours");
            prop_assert_eq!((parsed.slot, parsed.epoch), (Some(slot(s)), Some(e)));
            prop_assert!(parsed.guild.is_none_or(|x| x == g) && parsed.call.is_none_or(|x| x == c));
        }
    }
}
