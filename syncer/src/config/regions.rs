//! Regions that stand in for each other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sfu_api::RegionId;

/// Groups of regions, by name. Where a call's own region has no SFU left, it goes to its group before it goes anywhere.
///
/// A region is in one group at most, so that there is one answer to where its calls go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, Vec<RegionId>>", into = "BTreeMap<String, Vec<RegionId>>")]
pub struct RegionGroups(BTreeMap<String, Vec<RegionId>>);

/// Why groups cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RegionGroupsError(String);

// === impl RegionGroups ===

impl RegionGroups {
    /// Checks and takes groups.
    ///
    /// # Errors
    ///
    /// When a group has no region, or a region is in two groups or in one group twice; says what to do.
    pub fn new(groups: BTreeMap<String, Vec<RegionId>>) -> Result<Self, RegionGroupsError> {
        let mut group_of = BTreeMap::<&RegionId, &str>::new();
        for (name, regions) in &groups {
            if regions.is_empty() {
                let message = format!("group `{name}` has no region; list its regions, or take it away");
                return Err(RegionGroupsError(message));
            }
            for region in regions {
                let Some(other) = group_of.insert(region, name) else { continue };
                return Err(RegionGroupsError(if other == name {
                    format!("region `{region}` is in group `{name}` twice; list it once")
                } else {
                    format!(
                        "region `{region}` is in groups `{other}` and `{name}`, and may be in one only; take it out of \
                         one of them"
                    )
                }));
            }
        }
        Ok(Self(groups))
    }

    /// The groups with their regions, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[RegionId])> {
        self.0.iter().map(|(name, regions)| (name.as_str(), regions.as_slice()))
    }

    /// The regions of the group that `region` is in, itself included; none: it is in no group.
    #[must_use]
    pub fn of(&self, region: &RegionId) -> &[RegionId] {
        self.0.values().find(|regions| regions.contains(region)).map_or(&[], Vec::as_slice)
    }
}

impl TryFrom<BTreeMap<String, Vec<RegionId>>> for RegionGroups {
    type Error = RegionGroupsError;
    fn try_from(groups: BTreeMap<String, Vec<RegionId>>) -> Result<Self, RegionGroupsError> {
        Self::new(groups)
    }
}

impl From<RegionGroups> for BTreeMap<String, Vec<RegionId>> {
    fn from(groups: RegionGroups) -> Self {
        groups.0
    }
}
