//! HTTP to syncers: TLS with the given authority, errors that say what to do.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, Url};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use syncer::config::Secret;

use crate::exit::{Exit, Failure};

/// A syncer that takes longer to accept is not there.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Operators' answers come from memory; longer means trouble.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Largest answer read: a page of a thousand calls is a few hundred kilobytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Most syncers asked by `--all`: beyond a hundred members something is wrong with the list.
const MEMBERS_MAX: usize = 256;

/// What stands above the options of every operator's command, after its own.
const CONNECTION: &str = "Connection";

/// Which syncer, and how to reach it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Connection {
    /// Base URL of a syncer
    #[arg(long, global = true, help_heading = CONNECTION, value_name = "URL", env = "TRUNKLINE_URL", default_value = "http://127.0.0.1:8441")]
    pub(crate) url: Url,
    /// Bearer token with the role operator
    #[arg(
        long,
        global = true,
        help_heading = CONNECTION,
        value_name = "TOKEN",
        env = "TRUNKLINE_TOKEN",
        hide_env_values = true,
        default_value = "operator",
        value_parser = secret
    )]
    pub(crate) token: Secret,
    /// Certificates to trust (PEM) [default: those of the system]
    #[arg(long, global = true, help_heading = CONNECTION, value_name = "FILE", env = "TRUNKLINE_CA")]
    pub(crate) ca: Option<PathBuf>,
    /// Ask every syncer of the fleet, as the one at --url lists them
    #[arg(long, global = true, help_heading = CONNECTION)]
    pub(crate) all: bool,
}

/// A client of one or more syncers.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    token: Secret,
    bases: Vec<Url>,
}

fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

// === impl Client ===

impl Client {
    /// Connects as asked; with `--all` this already asks for the members.
    pub(crate) async fn new(connection: Connection) -> Result<Self, Failure> {
        let Connection { url, token, ca, all } = connection;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(Failure::new(Exit::Usage, format!("`{url}` is not an http or https URL")));
        }
        let builder = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_MAX).timeout(ANSWER_MAX);
        let builder = match (&ca, url.scheme()) {
            (None, "https") => builder,
            (ca, _) => builder.tls_backend_preconfigured(tls(ca.as_ref())?),
        };
        let http = builder.build().map_err(|error| Failure::of(Exit::Config, error))?;
        let mut client = Self { http, token, bases: vec![url] };
        if all {
            client.bases = client.members().await?;
        }
        Ok(client)
    }

    /// The syncers that are asked.
    pub(crate) fn bases(&self) -> &[Url] {
        &self.bases
    }

    /// `GET path` of the first syncer.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(&self.bases[0], Method::GET, path, None).await
    }

    /// The same request to every syncer, one after the other. The first refusal ends it: what was
    /// done before is said in the error.
    pub(crate) async fn on_each(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Vec<Value>, Failure> {
        let mut answers = Vec::new();
        for base in &self.bases {
            match self.ask(base, method.clone(), path, body).await {
                Ok(answer) => answers.push(answer),
                Err(failure) if answers.is_empty() => return Err(failure),
                Err(failure) => {
                    let done = self.bases.iter().take(answers.len()).map(Url::as_str).collect::<Vec<_>>().join(", ");
                    return Err(Failure::new(Exit::Failed, format!("{failure} (done already on {done})")));
                }
            }
        }
        Ok(answers)
    }

    /// One request to one syncer.
    pub(crate) async fn ask(
        &self,
        base: &Url,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let url = base.join(path).map_err(|error| Failure::of(Exit::Usage, error))?;
        let mut request = self.http.request(method, url).bearer_auth(self.token.expose());
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| unreachable(base, &error))?;
        let status = answer.status();
        let bytes = bounded(answer).await.map_err(|error| unreachable(base, &error))?;
        let json = || serde_json::from_slice::<Value>(&bytes).ok();
        if status.is_success() {
            let strange = || Failure::new(Exit::Dependency, format!("{base} answers, but not as a syncer does"));
            return if bytes.is_empty() { Ok(Value::Null) } else { json().ok_or_else(strange) };
        }
        let error = json().unwrap_or_default();
        match (error["error_code"].as_str(), error["message"].as_str()) {
            (Some(code), Some(message)) => Err(Failure::new(Exit::Failed, format!("{code}: {message}"))),
            _ => Err(Failure::new(Exit::Dependency, format!("{base} answers {status}, not as a syncer does"))),
        }
    }

    async fn members(&self) -> Result<Vec<Url>, Failure> {
        let answer = self.get("/v1/members").await?;
        let members = crate::output::items(&answer, "members").iter().take(MEMBERS_MAX);
        let urls = members.filter_map(|member| member["url"].as_str()).map(|url| {
            Url::parse(url).map_err(|error| Failure::new(Exit::Dependency, format!("member `{url}`: {error}")))
        });
        let urls = urls.collect::<Result<Vec<_>, _>>()?;
        Ok(if urls.is_empty() { self.bases.clone() } else { urls })
    }
}

/// The body, unless it is larger than any honest answer.
async fn bounded(mut answer: reqwest::Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Ok(b"too large".to_vec()); // no JSON, so the caller says it is no syncer
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn unreachable(base: &Url, error: &reqwest::Error) -> Failure {
    let mut reason: &dyn std::error::Error = error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    let reason = reason.to_string();
    let hint = if reason.contains("certificate") { "does --ca name its authority?" } else { "is it running?" };
    Failure::new(Exit::Dependency, format!("no syncer answers at {base}: {reason}; {hint}"))
}

/// TLS that trusts exactly the certificates in `ca`; none without it.
fn tls(ca: Option<&PathBuf>) -> Result<rustls::ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let refuse = |why: String| Failure::new(Exit::Config, format!("--ca {}: {why}", path.display()));
        let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| refuse(format!("not PEM: {error}")))?;
            roots.add(certificate).map_err(|error| refuse(format!("not a usable certificate: {error}")))?;
        }
        if roots.is_empty() {
            return Err(refuse("there is no certificate in it".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::of(Exit::Bug, error))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A part of a path. Ids may hold any character that is not white space; some would end the path.
pub(super) fn segment(id: &str) -> Result<String, Failure> {
    let mut base = Url::parse("http://h/").map_err(|error| Failure::of(Exit::Bug, error))?;
    if let Ok(mut segments) = base.path_segments_mut() {
        segments.push(id);
    }
    Ok(base.path().trim_start_matches('/').to_owned())
}

/// The query of an act that is done for a reason.
pub(super) fn query(reason: Option<&str>) -> Result<String, Failure> {
    pairs(reason.map(|reason| ("reason", reason)))
}

/// A query of these names and values; none without any.
pub(super) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<String, Failure> {
    let mut base = Url::parse("http://h/").map_err(|error| Failure::of(Exit::Bug, error))?;
    base.query_pairs_mut().extend_pairs(pairs);
    Ok(base.query().filter(|query| !query.is_empty()).map_or_else(String::new, |query| format!("?{query}")))
}
