//! Static members and SFUs: TOML files, read again when they change.
//!
//! A file that cannot be used changes nothing: the last good one stays in force, and the error
//! names the line. One duplicated or empty entry spoils its file on purpose: dropping entries
//! silently would move their calls.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sfu_api::SyncerId;

use super::{MEMBERS_MAX, Member, WEIGHT_DEFAULT};
use crate::config::ConfigError;
use crate::drivers::SfuSpec;

/// Most SFUs in a catalogue: twice the largest fleet on record.
const SFUS_MAX: usize = 50_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MembersFile {
    #[serde(default)]
    members: Vec<ListedMember>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedMember {
    id: SyncerId,
    url: String,
    #[serde(default = "zone_default")]
    zone: String,
    #[serde(default = "weight_default")]
    weight: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SfusFile {
    #[serde(default)]
    sfus: Vec<SfuSpec>,
}

fn zone_default() -> String {
    "z1".to_owned()
}

const fn weight_default() -> u32 {
    WEIGHT_DEFAULT
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = crate::config::read_text(path)?;
    toml::from_str(&text).map_err(|e| crate::config::in_file(path, &text, &e))
}

fn check_url(path: &Path, what: &str, id: &str, url: &str) -> Result<(), ConfigError> {
    let uri: Option<http::Uri> = url.parse().ok();
    let fine = uri.is_some_and(|u| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some());
    if fine {
        Ok(())
    } else {
        Err(ConfigError::file(path, None, format!("{what} `{id}`: `{url}` is no http or https URL")).with_key("url"))
    }
}

fn unique<'a>(path: &Path, what: &str, ids: impl Iterator<Item = &'a str>) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(ConfigError::file(path, None, format!("{what} `{id}` is listed twice")).with_key("id"));
        }
    }
    Ok(())
}

/// Reads the static members.
pub(crate) fn read_members(path: &Path) -> Result<Vec<Member>, ConfigError> {
    let file: MembersFile = read(path)?;
    unique(path, "member", file.members.iter().map(|m| m.id.as_str()))?;
    if file.members.len() > MEMBERS_MAX {
        return Err(ConfigError::file(path, None, format!("lists more than {MEMBERS_MAX} members")));
    }
    file.members
        .into_iter()
        .map(|m| {
            check_url(path, "member", m.id.as_str(), &m.url)?;
            Ok(Member { weight: m.weight, ..Member::new(m.id, Arc::from(m.url.trim_end_matches('/')), m.zone) })
        })
        .collect()
}

/// Reads the SFU catalogue.
pub(crate) fn read_sfus(path: &Path) -> Result<Vec<SfuSpec>, ConfigError> {
    let file: SfusFile = read(path)?;
    unique(path, "SFU", file.sfus.iter().map(|s| s.id.as_str()))?;
    if file.sfus.len() > SFUS_MAX {
        return Err(ConfigError::file(path, None, format!("lists more than {SFUS_MAX} SFUs")));
    }
    for sfu in &file.sfus {
        check_url(path, "SFU", sfu.id.as_str(), &sfu.url)?;
    }
    Ok(file.sfus)
}
