//! Who calls, and what they may do. Identity comes from the token or the certificate, never from a
//! parameter.
//!
//! A token decides when one is shown, else the certificate of the connection. Certificates name;
//! what the name may do is looked up for each request, so that a caller who is taken off the list is
//! refused at once, on connections that stand as well. Streams that are open ask again whenever the list
//! has been read again ([`Auth::stands_by`]), and end when it says something else of their caller. Tokens are
//! kept as digests: looking one up tells by its time nothing of others, and no dump of memory shows them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName};
use http::request::Parts;
use sfu_api::{GatewayId, GuildId};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::place::Seat;
use super::{ApiError, App};
use crate::config::{AuthMode, Callers, Config, Guilds, Role, Secret};
use crate::peer::{FORWARDED_HEADER, GATEWAY_HEADER, OnBehalf, ROLE_HEADER, SECRET_HEADER};
use crate::presence::Via;

/// Who a caller without a token is, where that is allowed.
const ANONYMOUS: &str = "anonymous";

/// How callers are told apart.
#[derive(Debug)]
pub(crate) struct Auth {
    mode: AuthMode,
    /// Of the configuration.
    fixed: Callers,
    /// Those and the ones of the callers' file.
    known: ArcSwap<Known>,
    /// How often they were read again.
    loads: AtomicU64,
    peer_secret: Option<Secret>,
}

/// SHA-256.
type Digest = [u8; 32];

#[derive(Debug, Default)]
struct Known {
    tokens: HashMap<Digest, Arc<Entry>>,
    certificates: HashMap<String, Arc<Entry>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    id: GatewayId,
    role: Role,
    guilds: Option<Arc<Guilds>>,
}

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct Connected {
    /// Whether operators are served on it.
    pub(crate) operators: bool,
    /// Names in the certificate that the client showed.
    pub(crate) names: Arc<[String]>,
    /// Its place, which is told of callers that are known.
    pub(super) seat: Arc<Seat>,
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
    /// The only guilds it may speak of. A forwarded caller was judged where it came in.
    guilds: Option<Arc<Guilds>>,
    /// What that rests on, if on a list that may be read again.
    listed: Option<Listed>,
}

/// How a caller was found.
#[derive(Clone, Debug)]
struct Listed {
    shown: Shown,
    entry: Arc<Entry>,
    /// [`Auth::loads`] when it was looked up last.
    loads: u64,
}

/// What a caller showed.
#[derive(Clone, Debug)]
enum Shown {
    Token(Digest),
    Certificate(Arc<[String]>),
}

// === impl Auth ===

impl Auth {
    pub(crate) fn new(config: &Config) -> Self {
        let fixed = Callers { tokens: config.auth.tokens.clone(), certificates: config.auth.certificates.clone() };
        let known = ArcSwap::from_pointee(Known::of([&fixed]));
        let peer_secret = config.peer_secret().map(Secret::new);
        Self { mode: config.auth.mode, fixed, known, loads: AtomicU64::new(0), peer_secret }
    }

    /// Takes the callers' file in force, instead of what it said before.
    pub(crate) fn load(&self, file: &Callers) {
        self.known.store(Arc::new(Known::of([file, &self.fixed])));
        self.loads.fetch_add(1, Ordering::Release); // who sees this sees the list
    }

    /// Whether what the list says of a caller is still what it said when the caller came. Costs a look at a number, unless
    /// the list has been read again since the last time.
    pub(crate) fn stands_by(&self, caller: &mut Caller) -> bool {
        let Some(listed) = &mut caller.listed else { return true };
        let loads = self.loads.load(Ordering::Acquire);
        if listed.loads == loads {
            return true;
        }
        let stands = self.known.load().find(&listed.shown).is_some_and(|entry| entry == listed.entry);
        if stands {
            listed.loads = loads;
        }
        stands
    }

    /// Who calls, from the headers, the connection's certificate and, for watches in a browser, the
    /// token of the query.
    pub(crate) fn caller(
        &self,
        connected: Option<&Connected>,
        headers: &HeaderMap,
        query_token: Option<&str>,
    ) -> Result<Caller, ApiError> {
        let caller = self.find(connected, headers, query_token)?;
        if let Some(connected) = connected {
            connected.seat.know();
        }
        Ok(caller)
    }

    fn find(
        &self,
        connected: Option<&Connected>,
        headers: &HeaderMap,
        query_token: Option<&str>,
    ) -> Result<Caller, ApiError> {
        if let Some(shown) = text(headers, &SECRET_HEADER)? {
            let known = self.peer_secret.as_ref().is_some_and(|s| same(s.expose(), shown));
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
        let mut caller = match self.mode {
            AuthMode::Open => {
                let id = GatewayId::new(token.unwrap_or(ANONYMOUS))
                    .map_err(|e| ApiError::invalid(format!("the token is the gateway's id here: it {e}")))?;
                Caller { id, operator: true, forwarded: false, guilds: None, listed: None }
            }
            AuthMode::Tokens => {
                let listed = self.look_up(connected, token)?;
                let Entry { id, role, guilds } = &*listed.entry;
                if *role == Role::Peer {
                    return Ok(Caller { listed: Some(listed), ..from_peer(headers)? });
                }
                let (id, operator, guilds) = (id.clone(), *role == Role::Operator, guilds.clone());
                Caller { id, operator, forwarded: false, guilds, listed: Some(listed) }
            }
        };
        // An operator is one where operators are served.
        caller.operator &= connected.is_none_or(|c| c.operators);
        Ok(caller)
    }

    fn look_up(&self, connected: Option<&Connected>, token: Option<&str>) -> Result<Listed, ApiError> {
        let shown = match (token, connected) {
            (Some(token), _) => Shown::Token(sha256(token)),
            (None, Some(connected)) => Shown::Certificate(Arc::clone(&connected.names)),
            (None, None) => return Err(ApiError::unauthenticated()),
        };
        let loads = self.loads.load(Ordering::Acquire); // before the list: it is looked up again if in doubt
        let entry = self.known.load().find(&shown).ok_or_else(ApiError::unauthenticated)?;
        Ok(Listed { shown, entry, loads })
    }
}

// === impl Known ===

impl Known {
    /// Of several lists; what a later one says of the same token or name counts.
    fn of<const N: usize>(lists: [&Callers; N]) -> Self {
        let mut known = Self::default();
        for list in lists {
            for t in &list.tokens {
                let entry = Entry { id: t.id.clone(), role: t.role, guilds: t.guilds.clone().map(Arc::new) };
                known.tokens.insert(sha256(t.token.expose()), Arc::new(entry));
            }
            for c in &list.certificates {
                let entry = Entry { id: c.id.clone(), role: c.role, guilds: c.guilds.clone().map(Arc::new) };
                known.certificates.insert(c.name.clone(), Arc::new(entry));
            }
        }
        known
    }

    fn find(&self, shown: &Shown) -> Option<Arc<Entry>> {
        match shown {
            Shown::Token(digest) => self.tokens.get(digest).cloned(),
            Shown::Certificate(names) => names.iter().find_map(|name| self.certificates.get(name)).cloned(),
        }
    }
}

fn sha256(token: &str) -> Digest {
    let mut out = Digest::default();
    out.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    out
}

/// The names in a certificate: its subject alternative names or, without any, its common names.
pub(super) fn names(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Vec::new() };
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => Some((*name).to_owned()),
        _ => None,
    });
    let alternative: Vec<_> = alternative.collect();
    if !alternative.is_empty() {
        return alternative;
    }
    certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok().map(str::to_owned)).collect()
}

/// A peer speaks on behalf of the gateway it names.
fn from_peer(headers: &HeaderMap) -> Result<Caller, ApiError> {
    let name = text(headers, &GATEWAY_HEADER)?.unwrap_or(ANONYMOUS);
    let id = GatewayId::new(name).map_err(|e| ApiError::invalid(format!("{GATEWAY_HEADER} {e}")))?;
    let operator = text(headers, &ROLE_HEADER)? == Some("operator");
    Ok(Caller { id, operator, forwarded: headers.contains_key(FORWARDED_HEADER), guilds: None, listed: None })
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
        if self.operator {
            Ok(())
        } else {
            Err(ApiError::forbidden("only operators may do this, and only where they are served (`admin_listen`)"))
        }
    }

    /// Whether it may speak of this guild.
    pub(crate) fn must_be_allowed(&self, guild: &GuildId) -> Result<(), ApiError> {
        if self.guilds.as_ref().is_none_or(|guilds| guilds.hold(guild)) {
            Ok(())
        } else {
            Err(ApiError::forbidden("this caller may not speak of this guild"))
        }
    }

    /// By which way it speaks to us.
    pub(crate) const fn via(&self) -> Via {
        if self.forwarded { Via::Peer } else { Via::Own }
    }

    pub(crate) fn on_behalf(&self) -> OnBehalf {
        OnBehalf { gateway: self.id.clone(), operator: self.operator }
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let connected = parts.extensions.get::<Arc<Connected>>();
        app.auth.caller(connected.map(|c| &**c), &parts.headers, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AuthConfig;

    const AUTH: &str = r#"
        mode = "tokens"
        peer_secret = "hush"
        tokens = [
            { token = "t-g", id = "gw", role = "gateway" },
            { token = "t-o", id = "op", role = "operator" },
            { token = "t-l", id = "gw-l", role = "gateway", guilds = ["one", "acme-*"] },
        ]
        certificates = [
            { name = "gw-2.internal", id = "gw-2", role = "gateway" },
            { name = "spiffe://x/op", id = "op-2", role = "operator" },
        ]"#;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(k, v)| (HeaderName::from_static(k), v.parse().expect("a value"))).collect()
    }

    fn strict() -> Auth {
        let auth: AuthConfig = toml::from_str(AUTH).expect("an auth table");
        Auth::new(&Config { auth, ..Config::default() })
    }

    fn bearer(auth: &Auth, token: &str) -> Result<Caller, ApiError> {
        auth.caller(None, &headers(&[("authorization", &format!("Bearer {token}"))]), None)
    }

    fn shows(operators: bool, names: &[&str]) -> Connected {
        let seat = crate::api::place::Place::alone().seat();
        Connected { operators, names: names.iter().map(|n| (*n).to_owned()).collect(), seat }
    }

    #[test]
    fn open_mode_takes_the_token_as_the_id() {
        let auth = Auth::new(&Config::default());
        let caller = bearer(&auth, "gw-7").expect("known");
        assert_eq!((caller.id.as_str(), caller.operator), ("gw-7", true));
        assert_eq!(auth.caller(None, &HeaderMap::new(), None).expect("known").id.as_str(), ANONYMOUS);
        assert_eq!(auth.caller(None, &HeaderMap::new(), Some("q")).expect("known").id.as_str(), "q");
        assert!(auth.caller(None, &headers(&[("authorization", "Basic eDp5")]), None).is_err());
    }

    #[test]
    fn tokens_mode_takes_only_its_tokens_and_their_roles() {
        let auth = strict();
        assert!(!bearer(&auth, "t-g").expect("known").operator);
        assert!(bearer(&auth, "t-o").expect("known").operator);
        assert!(bearer(&auth, "gw").is_err() && auth.caller(None, &HeaderMap::new(), None).is_err());
    }

    #[test]
    fn a_certificate_is_an_identity_unless_a_token_is_shown() {
        let auth = strict();
        let with = |connected: &Connected, list| auth.caller(Some(connected), &headers(list), None);
        let gateway = with(&shows(true, &["other", "gw-2.internal"]), &[]).expect("known");
        assert_eq!((gateway.id.as_str(), gateway.operator), ("gw-2", false));
        let operator = with(&shows(true, &["spiffe://x/op"]), &[]).expect("known");
        assert!(operator.operator);
        assert!(with(&shows(true, &["stranger"]), &[]).is_err());
        let both = with(&shows(true, &["spiffe://x/op"]), &[("authorization", "Bearer t-g")]).expect("known");
        assert_eq!((both.id.as_str(), both.operator), ("gw", false), "the token decides");
        assert!(with(&shows(true, &["spiffe://x/op"]), &[("authorization", "Bearer wrong")]).is_err());
    }

    #[test]
    fn operators_are_operators_where_they_are_served() {
        let auth = strict();
        let there = auth.caller(Some(&shows(false, &["spiffe://x/op"])), &HeaderMap::new(), None).expect("known");
        assert!(there.must_be_operator().is_err());
        let list = [("trunkline-peer", "hush"), ("trunkline-role", "operator")];
        let forwarded = auth.caller(Some(&shows(false, &[])), &headers(&list), None).expect("a peer");
        assert!(forwarded.must_be_operator().is_ok(), "judged where it came in");
    }

    #[test]
    fn a_limited_token_speaks_of_its_guilds_only() {
        let caller = bearer(&strict(), "t-l").expect("known");
        let may = |guild: &str| caller.must_be_allowed(&GuildId::new(guild).expect("an id")).is_ok();
        assert!(may("one") && may("acme-7") && !may("two"));
        let free = bearer(&strict(), "t-g").expect("known");
        assert!(free.must_be_allowed(&GuildId::new("two").expect("an id")).is_ok());
    }

    #[test]
    fn the_callers_file_adds_and_withdraws_and_the_configuration_stays() {
        let auth = strict();
        let file = "tokens = [{ token = \"t-new\", id = \"n\", role = \"gateway\" }]";
        auth.load(&toml::from_str(file).expect("callers"));
        assert!(bearer(&auth, "t-new").is_ok() && bearer(&auth, "t-g").is_ok());
        auth.load(&Callers::default());
        assert!(bearer(&auth, "t-new").is_err() && bearer(&auth, "t-g").is_ok());
    }

    #[test]
    fn r16_a_caller_is_stood_by_until_the_list_says_something_else_of_it() {
        let file = |role: &str, guilds: &str| {
            let entry = |shown: &str| format!("{{ {shown}, id = \"n\", role = \"{role}\", guilds = [{guilds}] }}");
            let (token, name) = (entry("token = \"t-new\""), entry("name = \"new.test\""));
            toml::from_str::<Callers>(&format!("tokens = [{token}]\ncertificates = [{name}]")).expect("callers")
        };
        let auth = strict();
        for changed in [Callers::default(), file("operator", "\"one\""), file("gateway", "\"one\", \"two\"")] {
            auth.load(&file("gateway", "\"one\""));
            let certificate = shows(true, &["other", "new.test"]);
            let mut listed = [bearer(&auth, "t-new"), auth.caller(Some(&certificate), &HeaderMap::new(), None)]
                .map(|caller| caller.expect("known"));
            let list = [("trunkline-peer", "hush"), ("trunkline-gateway", "n")];
            let mut others =
                [bearer(&auth, "t-g"), auth.caller(None, &headers(&list), None)].map(|c| c.expect("known"));
            auth.load(&file("gateway", "\"one\"")); // says the same
            assert!(listed.iter_mut().chain(&mut others).all(|caller| auth.stands_by(caller)));
            auth.load(&changed);
            assert!(!listed.iter_mut().any(|caller| auth.stands_by(caller)), "{changed:?}");
            assert!(!listed.iter_mut().any(|caller| auth.stands_by(caller)), "asked again: {changed:?}");
            assert!(others.iter_mut().all(|caller| auth.stands_by(caller)), "{changed:?}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", strict());
        assert!(["t-g", "t-o", "hush"].iter().all(|secret| !shown.contains(&format!("\"{secret}\""))), "{shown}");
    }

    #[test]
    fn a_certificate_is_named_by_its_alternative_names_or_else_its_common_name() {
        let certificate = |names: Vec<String>| {
            let mut params = rcgen::CertificateParams::new(names).expect("names");
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, "common");
            let key = rcgen::KeyPair::generate().expect("a key");
            params.self_signed(&key).expect("a certificate")
        };
        assert_eq!(names(certificate(vec!["a.b".into(), "c.d".into()]).der()), ["a.b", "c.d"]);
        assert_eq!(names(certificate(vec![]).der()), ["common"]);
        assert!(names(b"no certificate").is_empty());
    }

    #[test]
    fn a_forwarded_identity_needs_the_secret() {
        let auth = strict();
        let with = |secret: &str| {
            auth.caller(
                None,
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
        let plain = auth.caller(None, &headers(&[("authorization", "Bearer t-g"), ("trunkline-gateway", "x")]), None);
        assert_eq!(plain.expect("known").id.as_str(), "gw", "without the secret the header means nothing");
    }
}
