//! Who calls, and what they may do. Identity comes from the token, never from a parameter.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName};
use http::request::Parts;
use sfu_api::GatewayId;

use super::{ApiError, App};
use crate::config::{AuthMode, Config, Role};
use crate::peer::{FORWARDED_HEADER, GATEWAY_HEADER, OnBehalf, ROLE_HEADER, SECRET_HEADER};

/// Who a caller without a token is, where that is allowed.
const ANONYMOUS: &str = "anonymous";

/// How callers are told apart.
#[derive(Debug)]
pub(crate) struct Auth {
    mode: AuthMode,
    tokens: HashMap<String, (GatewayId, Role)>,
    peer_secret: Option<String>,
}

/// Who calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Identity of the gateway (or operator).
    pub(crate) id: GatewayId,
    /// May see everything and turn levers.
    pub(crate) operator: bool,
    /// Another syncer forwarded this: it goes no further.
    pub(crate) forwarded: bool,
}

// === impl Auth ===

impl Auth {
    pub(crate) fn new(config: &Config) -> Self {
        let tokens = config.auth.tokens.iter().map(|t| (t.token.expose().to_owned(), (t.id.clone(), t.role)));
        Self { mode: config.auth.mode, tokens: tokens.collect(), peer_secret: config.peer_secret().map(str::to_owned) }
    }

    /// Who calls, from the headers and, for watches in a browser, the token of the query.
    pub(crate) fn caller(&self, headers: &HeaderMap, query_token: Option<&str>) -> Result<Caller, ApiError> {
        let secret = text(headers, &SECRET_HEADER)?;
        if let Some(shown) = secret {
            let known = self.peer_secret.as_deref().is_some_and(|s| same(s, shown));
            return if known { from_peer(headers) } else { Err(ApiError::unauthenticated()) };
        }
        let token = match text(headers, &AUTHORIZATION)? {
            Some(value) => Some(
                value
                    .split_once(' ')
                    .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
                    .map(|(_, token)| token.trim())
                    .ok_or_else(ApiError::unauthenticated)?,
            ),
            None => query_token,
        };
        match self.mode {
            AuthMode::Open => {
                let id = GatewayId::new(token.unwrap_or(ANONYMOUS))
                    .map_err(|e| ApiError::invalid(format!("the token is the gateway's id here: it {e}")))?;
                Ok(Caller { id, operator: true, forwarded: false })
            }
            AuthMode::Tokens => {
                let (id, role) = token.and_then(|t| self.tokens.get(t)).ok_or_else(ApiError::unauthenticated)?;
                match role {
                    Role::Peer => from_peer(headers),
                    Role::Gateway => Ok(Caller { id: id.clone(), operator: false, forwarded: false }),
                    Role::Operator => Ok(Caller { id: id.clone(), operator: true, forwarded: false }),
                }
            }
        }
    }
}

/// A peer speaks on behalf of the gateway it names.
fn from_peer(headers: &HeaderMap) -> Result<Caller, ApiError> {
    let name = text(headers, &GATEWAY_HEADER)?.unwrap_or(ANONYMOUS);
    let id = GatewayId::new(name).map_err(|e| ApiError::invalid(format!("{GATEWAY_HEADER} {e}")))?;
    let operator = text(headers, &ROLE_HEADER)? == Some("operator");
    Ok(Caller { id, operator, forwarded: headers.contains_key(FORWARDED_HEADER) })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ApiError> {
    match headers.get(name) {
        None => Ok(None),
        Some(value) => match std::str::from_utf8(value.as_bytes()) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(ApiError::invalid(format!("{name} must be UTF-8"))),
        },
    }
}

/// Compares without telling by its time how much was right.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

// === impl Caller ===

impl Caller {
    pub(crate) fn must_be_operator(&self) -> Result<(), ApiError> {
        if self.operator { Ok(()) } else { Err(ApiError::forbidden("only operators may do this")) }
    }

    pub(crate) fn on_behalf(&self) -> OnBehalf {
        OnBehalf { gateway: self.id.clone(), operator: self.operator }
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        app.auth.caller(&parts.headers, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthConfig, Secret, TokenConfig};

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(k, v)| (HeaderName::from_static(k), v.parse().expect("a value"))).collect()
    }

    fn strict() -> Auth {
        let token = |token: &str, id: &str, role| TokenConfig {
            token: Secret::new(token),
            id: GatewayId::new(id).expect("an id"),
            role,
        };
        let tokens = vec![token("t-g", "gw", Role::Gateway), token("t-o", "op", Role::Operator)];
        let auth = AuthConfig { mode: AuthMode::Tokens, tokens, peer_secret: Some(Secret::new("hush")) };
        Auth::new(&Config { auth, ..Config::default() })
    }

    #[test]
    fn open_mode_takes_the_token_as_the_id() {
        let auth = Auth::new(&Config::default());
        let caller = auth.caller(&headers(&[("authorization", "Bearer gw-7")]), None).expect("known");
        assert_eq!((caller.id.as_str(), caller.operator), ("gw-7", true));
        assert_eq!(auth.caller(&HeaderMap::new(), None).expect("known").id.as_str(), ANONYMOUS);
        assert_eq!(auth.caller(&HeaderMap::new(), Some("q")).expect("known").id.as_str(), "q");
        assert!(auth.caller(&headers(&[("authorization", "Basic eDp5")]), None).is_err());
    }

    #[test]
    fn tokens_mode_takes_only_its_tokens_and_their_roles() {
        let auth = strict();
        let with = |t: &str| auth.caller(&headers(&[("authorization", &format!("Bearer {t}"))]), None);
        assert!(!with("t-g").expect("known").operator);
        assert!(with("t-o").expect("known").operator);
        assert!(with("gw").is_err() && auth.caller(&HeaderMap::new(), None).is_err());
    }

    #[test]
    fn a_forwarded_identity_needs_the_secret() {
        let auth = strict();
        let with = |secret: &str| {
            auth.caller(
                &headers(&[
                    ("trunkline-peer", secret),
                    ("trunkline-forwarded", "s-1"),
                    ("trunkline-gateway", "gw-9"),
                    ("trunkline-role", "gateway"),
                ]),
                None,
            )
        };
        let caller = with("hush").expect("a peer");
        assert_eq!((caller.id.as_str(), caller.operator, caller.forwarded), ("gw-9", false, true));
        assert!(with("hush!").is_err() && with("").is_err());
        let plain = auth.caller(&headers(&[("authorization", "Bearer t-g"), ("trunkline-gateway", "x")]), None);
        assert_eq!(plain.expect("known").id.as_str(), "gw", "without the secret the header means nothing");
    }
}
