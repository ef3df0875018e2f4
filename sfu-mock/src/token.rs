//! What a client must show at the media door.
//!
//! Tokens bind a session to one room at one epoch on one SFU. Signatures are checked once the mock
//! was given keys; until then the claims alone decide, so that a test needs no keys.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, Serialize};
use sfu_api::{Epoch, RoomId, SessionId, SfuId};

use crate::Error;

/// Most keys in a set: one in use, one being rotated out, and room for several issuers.
const KEYS_MAX: usize = 64;
/// Longest token that is looked at; ours are ~600 bytes with the longest ids.
const TOKEN_BYTES_MAX: usize = 4096;
/// Difference of clocks that is forgiven.
const LEEWAY_S: u64 = 2;
/// Who issues tokens.
const ISSUER: &str = "trunkline";

/// Keys that tokens may be signed with.
#[derive(Default)]
pub(crate) struct Keys {
    keys: Vec<(String, DecodingKey)>,
}

/// What a token claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) sub: String,
    pub(crate) room: String,
    /// `generation.revision.n`.
    pub(crate) epoch: String,
    pub(crate) iss: String,
    pub(crate) aud: String,
    pub(crate) exp: u64,
    #[serde(default)]
    pub(crate) nbf: u64,
}

// === impl Keys ===

impl Keys {
    /// Reads a JWKS document. Keys of other kinds than Ed25519 are refused: tokens have one algorithm.
    pub(crate) fn from_jwks(document: &[u8]) -> Result<Self, Error> {
        let set: JwkSet =
            serde_json::from_slice(document).map_err(|e| Error::request(format!("not a JWKS document: {e}")))?;
        if set.keys.len() > KEYS_MAX {
            return Err(Error::request(format!("at most {KEYS_MAX} keys, got {}", set.keys.len())));
        }
        let key = |jwk: &jsonwebtoken::jwk::Jwk| {
            let kid = jwk.common.key_id.clone().ok_or_else(|| Error::request("every key needs a kid"))?;
            match &jwk.algorithm {
                AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {}
                _ => return Err(Error::request(format!("key {kid} is not Ed25519"))),
            }
            let key = DecodingKey::from_jwk(jwk).map_err(|e| Error::request(format!("key {kid}: {e}")))?;
            Ok((kid, key))
        };
        Ok(Self { keys: set.keys.iter().map(key).collect::<Result<_, _>>()? })
    }

    /// The claims of a token whose signature is good.
    pub(crate) fn verify(&self, token: &str) -> Result<Claims, &'static str> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err("the token is too long");
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| "not a token")?;
        if header.alg != Algorithm::EdDSA {
            return Err("the token's algorithm is not EdDSA");
        }
        let kid = header.kid.as_deref().ok_or("the token names no key")?;
        let (_, key) = self.keys.iter().find(|(of, _)| of == kid).ok_or("the token's key is unknown")?;
        // Claims are checked by `Claims::check`, the same way with and without keys.
        let mut only_signature = Validation::new(Algorithm::EdDSA);
        only_signature.required_spec_claims.clear();
        only_signature.validate_exp = false;
        only_signature.validate_aud = false;
        let token = jsonwebtoken::decode::<Claims>(token, key, &only_signature);
        Ok(token.map_err(|_| "the token's signature or claims are bad")?.claims)
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(kid, _)| kid)).finish()
    }
}

/// The claims of a token, whoever signed it.
pub(crate) fn unverified(token: &str) -> Result<Claims, &'static str> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err("the token is too long");
    }
    jsonwebtoken::dangerous::insecure_decode::<Claims>(token).map(|token| token.claims).map_err(|_| "not a token")
}

// === impl Claims ===

impl Claims {
    /// Whether these claims open this room on this SFU to this session, now.
    pub(crate) fn check(
        &self,
        sfu: &SfuId,
        room: &RoomId,
        session: &SessionId,
        now_s: u64,
    ) -> Result<(), &'static str> {
        if self.iss != ISSUER {
            return Err("the token is of another issuer");
        }
        if self.aud != sfu.as_str() {
            return Err("the token is for another SFU");
        }
        if self.room != room.as_str() {
            return Err("the token is for another room");
        }
        if self.sub != session.as_str() {
            return Err("the token is for another session");
        }
        if self.exp.saturating_add(LEEWAY_S) <= now_s {
            return Err("the token has expired");
        }
        if self.nbf > now_s.saturating_add(LEEWAY_S) {
            return Err("the token is not valid yet");
        }
        Ok(())
    }

    /// Whether the token is of this placement of the call.
    pub(crate) fn is_of(&self, epoch: Epoch) -> bool {
        self.epoch.parse() == Ok(epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        let text = |s: &str| s.to_owned();
        let (sub, room, epoch) = (text("s"), text("r"), text("1.2.3"));
        Claims { sub, room, epoch, iss: text("trunkline"), aud: text("sfu-1"), exp: 1000, nbf: 900 }
    }

    #[test]
    fn every_claim_binds() {
        let id = (SfuId::new("sfu-1"), RoomId::new("r"), SessionId::new("s"));
        let (Ok(sfu), Ok(room), Ok(session)) = id else { panic!("valid ids") };
        let check = |claims: Claims, now_s| claims.check(&sfu, &room, &session, now_s);
        let other = || "other".to_owned();
        assert_eq!(check(claims(), 950), Ok(()));
        for bad in [
            Claims { sub: other(), ..claims() },
            Claims { room: other(), ..claims() },
            Claims { iss: other(), ..claims() },
            Claims { aud: other(), ..claims() },
        ] {
            assert!(check(bad.clone(), 950).is_err(), "{bad:?}");
        }
        assert!(check(claims(), 1002).is_err());
        assert!(check(claims(), 897).is_err());
        assert!(claims().is_of("1.2.3".parse().expect("an epoch")));
        assert!(!claims().is_of("1.2.4".parse().expect("an epoch")));
        assert!(!Claims { epoch: other(), ..claims() }.is_of(Epoch::default()));
    }

    #[test]
    fn key_sets_are_checked() {
        for bad in [
            "",
            "{}",
            r#"{"keys":[{"kty":"oct","k":"AAAA","kid":"1"}]}"#,
            r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AAAA"}]}"#,
        ] {
            assert!(Keys::from_jwks(bad.as_bytes()).is_err_and(|e| e.is_bad_request()), "{bad}");
        }
        assert!(Keys::from_jwks(br#"{"keys":[]}"#).is_ok());
    }
}
