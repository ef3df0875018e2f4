//! The one hash that several programs must agree on.

/// FNV-1a (64 bit) over the bytes, finished with MurmurHash3's 64-bit finaliser. Fixed for ever: slots
/// and room digests are made of it.
///
/// FNV alone has weak high bits on short, similar ids such as snowflakes; the finaliser spreads them.
#[must_use]
pub fn stable_hash(bytes: impl Iterator<Item = u8>) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut h = bytes.fold(OFFSET, |h, b| (h ^ u64::from(b)).wrapping_mul(PRIME));
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_vectors() {
        // Computed by another implementation, in another language.
        let of = |s: &str| stable_hash(s.bytes());
        assert_eq!(of(""), 0xefd0_1f60_ba99_2926);
        assert_eq!(of("g1"), 0x1399_5116_3587_8eb1);
        assert_eq!(of("80351110224678912"), 0xe93c_f5d2_36af_7b87);
    }
}
