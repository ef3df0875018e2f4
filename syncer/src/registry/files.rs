//! Static members and SFUs: TOML files, read again when they change.
//!
//! A file that cannot be used changes nothing: the last good one stays in force, and the error
//! names the line. One duplicated or empty entry spoils its file on purpose: dropping entries
//! silently would move their calls.
//!
//! A list that lost much of what the last good one had is taken for damage (R6): a writer that
//! truncates its file and then dies, or a generator that asked a sick source, must not empty the
//! fleet. `allow_shrink = true` at the top of the file says that it is meant. Even then an empty
//! list has to be written out (`sfus = []`), because a file with that key that is cut off after it
//! looks the same.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sfu_api::SyncerId;

use super::{MEMBERS_MAX, Member, WEIGHT_DEFAULT};
use crate::config::{ConfigError, Known, url_shown};
use crate::drivers::SfuSpec;

/// Most SFUs in a catalogue: twice the largest fleet on record.
const SFUS_MAX: usize = 50_000;
/// Lists shorter than this may lose any of their entries, but not all: of three syncers two may be
/// taken away on purpose.
const GUARDED_ENTRIES_MIN: usize = 4;
/// The part of a list that may go at once is one half: more than a zone of three, less than what a
/// file cut off early leaves.
const VANISH_DIVISOR: usize = 2;

/// A list as its file states it.
#[derive(Debug)]
pub(crate) struct Listed<T> {
    /// What is listed.
    pub(crate) entries: Vec<T>,
    /// Their ids.
    pub(crate) ids: BTreeSet<String>,
    /// What the entries are, for messages.
    what: &'static str,
    /// The list's key in the file.
    key: &'static str,
    /// The file has the list's key: with an empty list, it says so in so many words.
    stated: bool,
    /// The file says that it may be shorter than the last one.
    allow_shrink: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MembersFile {
    #[serde(default)]
    allow_shrink: bool,
    members: Option<Vec<ListedMember>>,
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
    allow_shrink: bool,
    sfus: Option<Vec<SfuSpec>>,
}

fn zone_default() -> String {
    "z1".to_owned()
}

const fn weight_default() -> u32 {
    WEIGHT_DEFAULT
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = crate::config::read_text(path)?;
    toml::from_str(&text).map_err(|e| crate::config::in_file(path, &text, &e, Known::Listed))
}

fn check_url(path: &Path, what: &str, id: &str, url: &str) -> Result<(), ConfigError> {
    let uri: Option<http::Uri> = url.parse().ok();
    let fine = uri.is_some_and(|u| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some());
    if fine {
        Ok(())
    } else {
        Err(ConfigError::file(path, None, format!("{what} `{id}`: `{}` is no http or https URL", url_shown(url)))
            .with_key("url"))
    }
}

/// Reads the static members.
pub(crate) fn read_members(path: &Path) -> Result<Listed<Member>, ConfigError> {
    let file: MembersFile = read(path)?;
    let (stated, members) = (file.members.is_some(), file.members.unwrap_or_default());
    let ids = unique(path, "member", members.iter().map(|m| m.id.as_str()))?;
    if members.len() > MEMBERS_MAX {
        return Err(ConfigError::file(path, None, format!("lists more than {MEMBERS_MAX} members")));
    }
    let entries = members
        .into_iter()
        .map(|m| {
            check_url(path, "member", m.id.as_str(), &m.url)?;
            Ok(Member { weight: m.weight, ..Member::new(m.id, Arc::from(m.url.trim_end_matches('/')), m.zone) })
        })
        .collect::<Result<_, _>>()?;
    Ok(Listed { entries, ids, what: "members", key: "members", stated, allow_shrink: file.allow_shrink })
}

/// Reads the SFU catalogue.
pub(crate) fn read_sfus(path: &Path) -> Result<Listed<SfuSpec>, ConfigError> {
    let file: SfusFile = read(path)?;
    let (stated, entries) = (file.sfus.is_some(), file.sfus.unwrap_or_default());
    let ids = unique(path, "SFU", entries.iter().map(|s| s.id.as_str()))?;
    if entries.len() > SFUS_MAX {
        return Err(ConfigError::file(path, None, format!("lists more than {SFUS_MAX} SFUs")));
    }
    for sfu in &entries {
        check_url(path, "SFU", sfu.id.as_str(), &sfu.url)?;
    }
    Ok(Listed { entries, ids, what: "SFUs", key: "sfus", stated, allow_shrink: file.allow_shrink })
}

fn unique<'a>(path: &Path, what: &str, ids: impl Iterator<Item = &'a str>) -> Result<BTreeSet<String>, ConfigError> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !seen.insert(id.to_owned()) {
            return Err(ConfigError::file(path, None, format!("{what} `{id}` is listed twice")).with_key("id"));
        }
    }
    Ok(seen)
}

// === impl Listed ===

impl<T> Listed<T> {
    /// Whether the list may take the place of one with the ids `before`.
    ///
    /// # Errors
    ///
    /// When it lost so much that damage is more likely than intent; says how to confirm it.
    pub(crate) fn check_after(&self, path: &Path, before: &BTreeSet<String>) -> Result<(), ConfigError> {
        let (what, key) = (self.what, self.key);
        let had = before.len();
        let error = |message: String| Err(ConfigError::file(path, None, message).with_key(key));
        if self.ids.is_empty() && had > 0 && !(self.stated && self.allow_shrink) {
            return error(format!(
                "lists no {what}, the last good one listed {had}: was it cut off? If it is meant, write \
                 `allow_shrink = true` and `{key} = []`"
            ));
        }
        let gone = before.difference(&self.ids).count();
        if had >= GUARDED_ENTRIES_MIN && gone * VANISH_DIVISOR > had && !self.allow_shrink {
            return error(format!(
                "{gone} of the {had} {what} of the last good one are gone: was it cut off? If it is meant, write \
                 `allow_shrink = true` at its top, and take that away afterwards"
            ));
        }
        Ok(())
    }
}
