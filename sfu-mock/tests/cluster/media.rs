//! The media door: who gets in.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{Bench, ensure, fenced};

/// A key pair and what is published of it.
struct Signer {
    kid: &'static str,
    key: EncodingKey,
    x: String,
}

// === impl Signer ===

impl Signer {
    fn new(kid: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let x = BASE64.encode(pair.public_key_raw());
        Self { kid, key: EncodingKey::from_ed_der(&pair.serialize_der()), x }
    }

    fn jwks(&self) -> Value {
        let key = json!({"kty": "OKP", "crv": "Ed25519", "x": self.x, "kid": self.kid, "alg": "EdDSA", "use": "sig"});
        json!({"keys": [key]})
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &self.key).expect("a token")
    }
}

fn claims(session: &str, epoch: &str) -> Value {
    let now = jsonwebtoken::get_current_timestamp();
    json!({"sub": session, "room": "r", "epoch": epoch, "iss": "trunkline", "aud": "sfu-1", "exp": now + 600, "nbf": now - 1})
}

async fn attach(bench: &Bench, method: Method, session: &str, token: &str) -> StatusCode {
    let request = bench.request(method, 0, &format!("/media/r/{session}")).bearer_auth(token);
    request.send().await.expect("an answer").status()
}

#[tokio::test]
async fn only_the_right_token_opens_the_door() {
    let bench = Bench::new(2).await;
    let (good, stranger) = (Signer::new("k1"), Signer::new("k1"));
    assert_eq!(bench.control(Method::PUT, "/control/jwks", Some(good.jwks())).await.0, StatusCode::NO_CONTENT);
    let put = async |session: &str, token: String| attach(&bench, Method::PUT, session, &token).await;
    assert_eq!(put("s", good.sign(&claims("s", "1.1.1"))).await, StatusCode::NOT_FOUND);
    assert_eq!(bench.ensure(0, "r", &ensure("o1", 1, 1)).await.0, StatusCode::OK);
    assert_eq!(put("s", good.sign(&claims("s", "1.1.1"))).await, StatusCode::NO_CONTENT);
    assert_eq!(put("s", good.sign(&claims("s", "1.1.1"))).await, StatusCode::NO_CONTENT);
    assert_eq!((bench.node(0).participants, bench.cluster.stats().attaches), (1, 1));
    let with = |key: &str, value: Value| {
        let mut claims = claims("s", "1.1.1");
        claims[key] = value;
        claims
    };
    let past = jsonwebtoken::get_current_timestamp() - 10;
    let mut other_key = Signer::new("k2");
    other_key.kid = "k2";
    for (why, token) in [
        ("another session", good.sign(&with("sub", json!("t")))),
        ("another room", good.sign(&with("room", json!("q")))),
        ("another SFU", good.sign(&with("aud", json!("sfu-2")))),
        ("another issuer", good.sign(&with("iss", json!("someone")))),
        ("an earlier epoch", good.sign(&with("epoch", json!("1.1.0")))),
        ("expired", good.sign(&with("exp", json!(past)))),
        ("not yet", good.sign(&with("nbf", json!(past + 1000)))),
        ("a forged signature", stranger.sign(&claims("s", "1.1.1"))),
        ("an unknown key", other_key.sign(&claims("s", "1.1.1"))),
        ("no token", "x".to_owned()),
        ("empty", String::new()),
    ] {
        assert_eq!(put("s", token).await, StatusCode::UNAUTHORIZED, "{why}");
    }
    let bare = bench.request(Method::PUT, 0, "/media/r/s").send().await.expect("an answer");
    assert_eq!(bare.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_unsigned_token_passes_only_before_keys_are_known() {
    let bench = Bench::new(1).await;
    assert_eq!(bench.ensure(0, "r", &ensure("o1", 1, 1)).await.0, StatusCode::OK);
    let none = BASE64.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let anyone = Signer::new("any").sign(&claims("s", "1.1.1"));
    assert_eq!(attach(&bench, Method::PUT, "s", &anyone).await, StatusCode::NO_CONTENT);
    bench.cluster.set_jwks(Signer::new("k1").jwks().to_string().as_bytes()).expect("keys");
    assert_eq!(attach(&bench, Method::PUT, "s", &anyone).await, StatusCode::UNAUTHORIZED);
    let unsigned = format!("{none}.{}.", BASE64.encode(claims("s", "1.1.1").to_string()));
    assert_eq!(attach(&bench, Method::PUT, "s", &unsigned).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_room_with_participants_is_not_ended_without_force() {
    let bench = Bench::new(1).await;
    let signer = Signer::new("k1");
    assert_eq!(bench.ensure(0, "r", &ensure("o1", 1, 1)).await.0, StatusCode::OK);
    let token = signer.sign(&claims("s", "1.1.1"));
    assert_eq!(attach(&bench, Method::PUT, "s", &token).await, StatusCode::NO_CONTENT);
    let (status, error) = bench.send(Method::DELETE, 0, "/v1/rooms/r", &fenced("o2", 1, 1)).await;
    assert_eq!((status, &error["error_code"]), (StatusCode::CONFLICT, &json!("occupied")));
    assert_eq!(attach(&bench, Method::DELETE, "s", &token).await, StatusCode::NO_CONTENT);
    assert_eq!(attach(&bench, Method::DELETE, "s", &token).await, StatusCode::NO_CONTENT);
    assert_eq!(bench.node(0).participants, 0);
    assert_eq!(attach(&bench, Method::PUT, "s", &token).await, StatusCode::NO_CONTENT);
    let mut force = fenced("o3", 1, 1);
    force["force"] = json!(true);
    assert_eq!(bench.send(Method::DELETE, 0, "/v1/rooms/r", &force).await.1["ended"], "destroyed");
    assert_eq!((bench.node(0).rooms, bench.node(0).participants), (0, 0));
}
