//! From a catalogue entry to a driver.

use std::net::IpAddr;
use std::sync::Arc;

use ::http::Uri;
use pool::{Lane, Origin, Scheme};
use sfu_api::SyncerId;

use super::http::Http;
use super::janus::{Access, Janus};
use super::native::Native;
use super::{DriverKind, SfuDriver, SfuSpec, SpecError};
use crate::config::url_shown;
use crate::token::Signer;

/// Most calls a Janus may be said to carry: what fits into one list of it, see
/// `LIST_BYTES_MAX`. Beyond, its load could no longer be read.
const JANUS_CAPACITY_MAX: u32 = 6_500;

/// Makes the driver of a catalogue entry. No I/O but reading the secrets' files.
///
/// # Errors
///
/// When the entry is not complete, a URL is wrong, a secret cannot be read, or plain `http` would
/// leave this machine.
pub fn build(
    spec: &SfuSpec,
    lane: &Lane,
    tokens: &Arc<Signer>,
    syncer: &SyncerId,
) -> Result<Arc<dyn SfuDriver>, SpecError> {
    match (spec.driver, &spec.janus) {
        (DriverKind::Native, None) => {
            let origin = Origin::parse(&spec.url)
                .map_err(|_| spec.error(format!("url {:?} is no origin", url_shown(&spec.url))))?;
            let http = Http::new(lane.origin(&guarded(spec, origin)?));
            Ok(Arc::new(Native::new(spec.id.clone(), syncer.clone(), http, Arc::clone(tokens))))
        }
        (DriverKind::Janus, Some(janus)) => {
            if spec.capacity > JANUS_CAPACITY_MAX {
                let why = format!("capacity {} is above {JANUS_CAPACITY_MAX}, the most for a janus", spec.capacity);
                return Err(spec.error(why));
            }
            let (origin, path) = url(spec, "janus.admin_url", &janus.admin_url)?;
            let (_, _) = url(spec, "url", &spec.url)?;
            let access = Access {
                path,
                secret: janus.admin_secret().map_err(|why| spec.error(why))?,
                key: janus.admin_key().map_err(|why| spec.error(why))?,
                plugin: janus.plugin,
                client_url: spec.url.trim_end_matches('/').to_owned(),
                capacity: spec.capacity,
            };
            Ok(Arc::new(Janus::new(Http::new(lane.origin(&origin)), access)))
        }
        (DriverKind::Native, Some(_)) => Err(spec.error("has a table janus, but driver = \"native\"")),
        (DriverKind::Janus, None) => Err(spec.error("driver = \"janus\" needs a table janus")),
    }
}

/// A URL with a path and nothing more.
fn url(spec: &SfuSpec, name: &str, text: &str) -> Result<(Origin, String), SpecError> {
    let wrong = || spec.error(format!("{name} {:?} is no https URL with a path", url_shown(text)));
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let origin = Origin::of(&uri).map_err(|_| wrong())?;
    if uri.query().is_some() {
        return Err(wrong());
    }
    Ok((guarded(spec, origin)?, uri.path().to_owned()))
}

/// Secrets and tokens travel in clear over plain `http`, so it is for this machine only.
fn guarded(spec: &SfuSpec, origin: Origin) -> Result<Origin, SpecError> {
    let loopback = origin.host().parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if origin.scheme() == Scheme::Http && !loopback {
        return Err(spec.error(format!("{origin} is plain http; only a loopback address may be")));
    }
    Ok(origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passwords_in_urls_are_not_shown() {
        let lane = Lane::builder("sfu").build().expect("default limits are good");
        let tokens = Arc::new(Signer::generate().expect("randomness"));
        let syncer = SyncerId::new("syncer-1").expect("valid id");
        let error = |entry: &str| {
            let spec: SfuSpec = toml::from_str(entry).expect("an entry");
            build(&spec, &lane, &tokens, &syncer).expect_err("a wrong URL").to_string()
        };
        let native = |url: &str| error(&format!("id = \"n\"\nurl = \"{url}\"\nregion = \"a\"\ncapacity = 1"));
        let janus = |url: &str| {
            error(&format!(
                "id = \"j\"\nurl = \"https://sfu/janus\"\nregion = \"a\"\ncapacity = 1\ndriver = \"janus\"\n[janus]\n\
                 admin_url = \"{url}\"\nadmin_secret = \"s\"\nadmin_key = \"k\"\n"
            ))
        };
        for url in ["https://me:s3cret@sfu", "https://sfu/?key=s3cret", "me:s3cret@sfu"] {
            for told in [native(url), janus(url)] {
                assert!(!told.contains("s3cret"), "{told}");
            }
        }
        assert!(native("https://sfu/path").contains("https://sfu/path"), "what is no secret helps");
    }
}
