//! Credentials as JSON Web Tokens, and the keys that sign them.
//!
//! A token admits one session to one room at one epoch on one SFU, for as long as `credentials.ttl` says. It
//! is signed with Ed25519: short, the same length always, ~20 µs each, and the SFU holds only the
//! public key, so a captured SFU cannot make tokens.
//!
//! **Rotation.** [`Signer::rotate`] takes a new key at once and keeps the former one *published*
//! (in [`Signer::jwks`]) until the next rotation. Rotating no more often than once per token
//! lifetime plus the verifiers' cache time therefore never invalidates a token that is still good. A token keeps the
//! lifetime that it was made with: what counts is the longest that `credentials.ttl` has been since the rotation before.
//!
//! The key is parsed once. (The crate `jsonwebtoken` parses it again for each token, which doubles
//! the cost when a dead SFU's thousands of participants all need new ones; it verifies in tests.)

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use rate_limit::Lever;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Serialize;
use sfu_api::{Epoch, RoomId, SessionId, SfuId};

use crate::context::lever_set;

const S: fn(u64) -> Duration = Duration::from_secs;

/// How long a token admits unless the lever says otherwise: long enough that a client which got its endpoint, lost its
/// network for minutes and came back still enters; short enough that a token from a log is soon worthless.
const TTL_DEFAULT: Duration = Duration::from_secs(600);

lever_set! {
    /// The limit of what is handed to clients.
    pub struct TokenLevers {
        // Below, clocks that differ decide; beyond a day, a key that leaked could hardly be done away with.
        /// How long a token admits that is made from now on; whoever is inside stays. Keys must not be rotated more often than once
        /// in this time and that for which SFUs keep the published keys.
        ttl: Duration = "credentials.ttl" ["duration"] TTL_DEFAULT, S(30) => S(86_400);
    }
}

/// How far an SFU's clock may be behind ours, in seconds: `nbf` lies this much in the past. No lever: it is a promise
/// to whoever writes an SFU, and clocks that differ by more are to be set.
pub const CLOCK_SKEW_S: u64 = 30;

/// `iss` of every token.
pub const ISSUER: &str = "trunkline";

/// Signs credentials and publishes the public keys.
pub struct Signer {
    ring: Arc<Ring>,
    ttl: Lever<Duration>,
}

struct Ring {
    keys: ArcSwap<Keys>,
    // Held while keys are exchanged, so that two rotations do not lose one another's key.
    rotating: Mutex<()>,
}

struct Keys {
    current: Arc<Key>,
    previous: Option<Arc<Key>>,
}

struct Key {
    pair: Ed25519KeyPair,
    kid: String,
    /// The encoded header with its dot: the same for every token of this key.
    header: String,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Claims {
    /// The session.
    pub sub: String,
    /// The room.
    pub room: String,
    /// The epoch, `generation.revision.n`.
    pub epoch: String,
    /// [`ISSUER`].
    pub iss: String,
    /// The SFU.
    pub aud: String,
    /// Good until, in Unix seconds.
    pub exp: u64,
    /// Good from, in Unix seconds.
    pub nbf: u64,
}

/// Public keys as a JWKS document (RFC 7517), newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Jwks {
    /// The keys.
    pub keys: Vec<Jwk>,
}

/// One public key (RFC 8037).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Jwk {
    /// Always `OKP`.
    pub kty: &'static str,
    /// Always `Ed25519`.
    pub crv: &'static str,
    /// Always `sig`.
    #[serde(rename = "use")]
    pub key_use: &'static str,
    /// Always `EdDSA`.
    pub alg: &'static str,
    /// Which key: the first 128 bits of its RFC 7638 thumbprint.
    pub kid: String,
    /// The public key, base64url.
    pub x: String,
}

/// A signing key could not be made or read. Never shows the key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(String);

// === impl Signer ===

impl Signer {
    /// Makes a signer with a new key that lives in memory only.
    ///
    /// Tokens of one process are then refused by SFUs that know only another's keys; processes that
    /// serve the same fleet share a key file.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self::with_key(Key::generate()?))
    }

    /// Makes a signer with the key in a PEM file (`PRIVATE KEY`, PKCS#8, Ed25519).
    ///
    /// # Errors
    ///
    /// When the file cannot be read or holds no such key.
    pub fn from_pem_file(path: &Path) -> Result<Self, KeyError> {
        Ok(Self::with_key(Key::from_pem_file(path)?))
    }

    fn with_key(key: Key) -> Self {
        let keys = ArcSwap::from_pointee(Keys { current: Arc::new(key), previous: None });
        Self { ring: Arc::new(Ring { keys, rotating: Mutex::new(()) }), ttl: Lever::fixed(TTL_DEFAULT) }
    }

    /// Another with the same keys, whose tokens admit for as long as the lever says when they are made.
    #[must_use]
    pub fn with_ttl(&self, ttl: Lever<Duration>) -> Self {
        Self { ring: Arc::clone(&self.ring), ttl }
    }

    /// Signs with a new key from now on; the former stays published until the next rotation.
    ///
    /// # Errors
    ///
    /// When the system has no randomness; the key is then the former one.
    pub fn rotate(&self) -> Result<(), KeyError> {
        self.rotate_to(Key::generate()?);
        Ok(())
    }

    /// As [`rotate`](Self::rotate), to the key in a PEM file. Reading the same key again changes nothing.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or holds no such key; the key is then the former one.
    pub fn rotate_to_pem_file(&self, path: &Path) -> Result<(), KeyError> {
        self.rotate_to(Key::from_pem_file(path)?);
        Ok(())
    }

    fn rotate_to(&self, key: Key) {
        let _rotating = self.ring.rotating.lock();
        let former = self.ring.keys.load_full();
        if former.current.kid != key.kid {
            let previous = Some(Arc::clone(&former.current));
            self.ring.keys.store(Arc::new(Keys { current: Arc::new(key), previous }));
        }
    }

    /// The public keys that verify tokens still good: the current one, then the former.
    #[must_use]
    pub fn jwks(&self) -> Jwks {
        let keys = self.ring.keys.load();
        Jwks { keys: std::iter::once(&keys.current).chain(&keys.previous).map(|key| key.public()).collect() }
    }

    /// Makes a token that admits the session to the room at this epoch on this SFU.
    #[must_use]
    pub fn sign(&self, session: &SessionId, room: &RoomId, epoch: Epoch, sfu: &SfuId) -> String {
        self.sign_at(session, room, epoch, sfu, unix_s())
    }

    fn sign_at(&self, session: &SessionId, room: &RoomId, epoch: Epoch, sfu: &SfuId, now_s: u64) -> String {
        let claims = Claims {
            sub: session.as_str().to_owned(),
            room: room.as_str().to_owned(),
            epoch: epoch.to_string(),
            iss: ISSUER.to_owned(),
            aud: sfu.as_str().to_owned(),
            exp: now_s.saturating_add(self.ttl.get().as_secs()),
            nbf: now_s.saturating_sub(CLOCK_SKEW_S),
        };
        let json = serde_json::to_vec(&claims).expect("strings and numbers only");
        self.ring.keys.load().current.sign(&json)
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("kid", &self.ring.keys.load().current.kid).finish_non_exhaustive()
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

// === impl Key ===

impl Key {
    fn generate() -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError("cannot generate a signing key".into()))?;
        Ok(Self::new(pair))
    }

    fn from_pem_file(path: &Path) -> Result<Self, KeyError> {
        let shown = path.display();
        let der = PrivatePkcs8KeyDer::from_pem_file(path)
            .map_err(|e| KeyError(format!("cannot read a PKCS#8 private key from {shown}: {e}")))?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der())
            .map_err(|e| KeyError(format!("the private key in {shown} is not an Ed25519 key: {e}")))?;
        Ok(Self::new(pair))
    }

    fn new(pair: Ed25519KeyPair) -> Self {
        let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
        let thumbprint = digest::digest(&digest::SHA256, canonical.as_bytes());
        let kid = URL_SAFE_NO_PAD.encode(thumbprint.as_ref().get(..16).unwrap_or_default());
        let mut header = URL_SAFE_NO_PAD.encode(format!(r#"{{"typ":"JWT","alg":"EdDSA","kid":"{kid}"}}"#));
        header.push('.');
        Self { pair, kid, header }
    }

    fn public(&self) -> Jwk {
        Jwk {
            kty: "OKP",
            crv: "Ed25519",
            key_use: "sig",
            alg: "EdDSA",
            kid: self.kid.clone(),
            x: URL_SAFE_NO_PAD.encode(self.pair.public_key().as_ref()),
        }
    }

    fn sign(&self, claims: &[u8]) -> String {
        let mut token = self.header.clone();
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
    use rate_limit::LeverValue as _;
    use sfu_api::OwnerTerm;

    use crate::context::each_lever_changes_what_it_names;

    fn ids() -> (SessionId, RoomId, Epoch, SfuId) {
        let epoch = Epoch { term: OwnerTerm { generation: 1, revision: 7 }, n: 3 };
        let id = "valid id";
        (SessionId::new("s-1").expect(id), RoomId::new("g~c").expect(id), epoch, SfuId::new("a-1").expect(id))
    }

    /// Verifies as an SFU would: by the published document alone.
    fn verify(jwks: &Jwks, token: &str, sfu: &str) -> Result<Claims, String> {
        let kid = decode_header(token).map_err(|e| e.to_string())?.kid.ok_or("no kid")?;
        let jwk = jwks.keys.iter().find(|key| key.kid == kid).ok_or("unknown kid")?;
        let key = DecodingKey::from_ed_components(&jwk.x).map_err(|e| e.to_string())?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[sfu]);
        validation.set_issuer(&[ISSUER]);
        validation.validate_nbf = true;
        decode::<Claims>(token, &key, &validation).map(|data| data.claims).map_err(|e| e.to_string())
    }

    #[test]
    fn a_token_verifies_by_the_published_keys_and_for_its_sfu_only() {
        let signer = Signer::generate().expect("key");
        let (session, room, epoch, sfu) = ids();
        let token = signer.sign(&session, &room, epoch, &sfu);
        let claims = verify(&signer.jwks(), &token, "a-1").expect("good token");
        assert_eq!((claims.sub.as_str(), claims.room.as_str(), claims.epoch.as_str()), ("s-1", "g~c", "1.7.3"));
        assert!(verify(&signer.jwks(), &token, "a-2").is_err(), "another SFU must refuse it");
        let stranger = Signer::generate().expect("key");
        assert!(verify(&stranger.jwks(), &token, "a-1").is_err());
    }

    #[test]
    fn a_token_runs_out() {
        let signer = Signer::generate().expect("key");
        let (session, room, epoch, sfu) = ids();
        let old = signer.sign_at(&session, &room, epoch, &sfu, unix_s() - TTL_DEFAULT.as_secs() - 120);
        assert!(verify(&signer.jwks(), &old, "a-1").expect_err("too old").contains("Expired"));
        let early = signer.sign_at(&session, &room, epoch, &sfu, unix_s() + 600);
        assert!(verify(&signer.jwks(), &early, "a-1").is_err());
    }

    #[test]
    fn r20_how_long_a_token_admits_is_a_lever_of_each_syncer() {
        let registry = rate_limit::Levers::new();
        let levers = TokenLevers::register(&registry);
        let shared = Signer::generate().expect("key");
        let signer = shared.with_ttl(levers.ttl);
        let (session, room, epoch, sfu) = ids();
        let lasts = |signer: &Signer| {
            let made = unix_s() - 20;
            let token = signer.sign_at(&session, &room, epoch, &sfu, made);
            verify(&shared.jwks(), &token, "a-1").expect("good token").exp - made
        };
        assert_eq!((lasts(&signer), lasts(&shared)), (600, 600));
        registry.set("credentials.ttl", &"90s".into(), "test", None, 0).expect("in range");
        assert_eq!((lasts(&signer), lasts(&shared)), (90, 600), "another syncer of this process has its own lever");
        shared.rotate().expect("key");
        assert_eq!((lasts(&signer), signer.jwks().keys.len()), (90, 2), "the keys are the same");
    }

    #[test]
    fn r20_the_lever_of_tokens_changes_what_it_names() {
        let settings = |levers: &TokenLevers| vec![("credentials.ttl", levers.ttl.get().to_json())];
        each_lever_changes_what_it_names(TokenLevers::register, |_| 2.0, settings);
    }

    #[test]
    fn rotation_overlaps_by_one_key() {
        let signer = Signer::generate().expect("key");
        let (session, room, epoch, sfu) = ids();
        let first = signer.sign(&session, &room, epoch, &sfu);
        signer.rotate().expect("key");
        let second = signer.sign(&session, &room, epoch, &sfu);
        assert_eq!(signer.jwks().keys.len(), 2);
        assert!(verify(&signer.jwks(), &first, "a-1").is_ok());
        assert!(verify(&signer.jwks(), &second, "a-1").is_ok());
        signer.rotate().expect("key");
        assert_eq!(signer.jwks().keys.len(), 2);
        assert_eq!(verify(&signer.jwks(), &first, "a-1"), Err("unknown kid".to_owned()));
        assert!(verify(&signer.jwks(), &second, "a-1").is_ok());
    }

    #[test]
    fn keys_are_read_from_pem_and_reread_without_effect() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("signing.pem");
        std::fs::write(&path, pair.serialize_pem()).expect("written");
        let signer = Signer::from_pem_file(&path).expect("reads");
        let again = Signer::from_pem_file(&path).expect("reads");
        assert_eq!(signer.jwks(), again.jwks());
        signer.rotate_to_pem_file(&path).expect("reads");
        assert_eq!(signer.jwks().keys.len(), 1);
    }

    #[test]
    fn wrong_key_files_are_named() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("wrong.pem");
        assert!(Signer::from_pem_file(&path).expect_err("absent").to_string().contains("wrong.pem"));
        std::fs::write(&path, "garbage").expect("written");
        assert!(Signer::from_pem_file(&path).is_err());
        std::fs::write(&path, rcgen::KeyPair::generate().expect("key").serialize_pem()).expect("written");
        let error = Signer::from_pem_file(&path).expect_err("an ECDSA key").to_string();
        assert!(error.contains("not an Ed25519 key"), "{error}");
    }

    #[test]
    fn debug_shows_no_key() {
        let signer = Signer::generate().expect("key");
        let shown = format!("{signer:?}");
        assert!(shown.contains("kid") && shown.len() < 80, "{shown}");
    }
}
