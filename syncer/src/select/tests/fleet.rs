//! SFUs of a catalogue that nobody asks anything.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use sfu_api::{CallId, Epoch, GuildId, RoomId, Slot};

use super::*;
use crate::drivers::*;

/// The SFUs of a catalogue.
pub(super) struct Fleet {
    pub(super) catalogue: Catalogue,
    pub(super) budget: Budget,
}

// === impl Fleet ===

impl Fleet {
    pub(super) fn new(entries: &[SfuSpec], quotas: Quotas, now: Instant) -> Self {
        let fleet = Self { catalogue: Catalogue::default(), budget: Budget::new(quotas, now) };
        fleet.list(entries, now);
        fleet
    }

    /// Takes over other entries.
    pub(super) fn list(&self, entries: &[SfuSpec], now: Instant) {
        let driver = |_: &SfuSpec| Ok::<_, Infallible>(Arc::new(Mute) as Arc<dyn SfuDriver>);
        let replaced = self.catalogue.replace(entries.to_vec(), &self.budget, now, driver);
        assert!(replaced.refused.is_empty(), "{replaced:?}");
    }
}

/// The entry of `sfu-i` in a region, with its other lines.
pub(super) fn entry(i: usize, region: &str, lines: &str) -> SfuSpec {
    let text = format!("id = \"sfu-{i}\"\nurl = \"https://127.0.0.1:1\"\nregion = \"{region}\"\n{lines}");
    toml::from_str(&text).expect("an entry")
}

/// Selection asks no SFU anything.
#[derive(Debug)]
struct Mute;

macro_rules! mute {
    ($($name:ident($($arg:ident: $of:ty),*) -> $ok:ty;)*) => {
        $(fn $name(&self, $($arg: $of),*) -> BoxFuture<'_, Result<$ok, DriverError>> {
            unreachable!("{:?}", ($($arg,)*))
        })*
    };
}

impl SfuDriver for Mute {
    fn capabilities(&self) -> Capabilities {
        unreachable!("selection asks no SFU")
    }
    fn room_name(&self, _: &GuildId, _: &CallId, _: Slot, _: Epoch) -> RoomId {
        unreachable!("selection asks no SFU")
    }
    fn credential(&self, _: &CredentialRequest<'_>) -> Result<Credential, DriverError> {
        unreachable!("selection asks no SFU")
    }
    mute! {
        probe(fresh: bool, by: Instant) -> Probe;
        ensure_room(spec: RoomSpec, by: Instant) -> RoomReady;
        end_room(end: EndSpec, force: bool, by: Instant) -> Ended;
        list_rooms(by: Instant) -> RoomList;
        digest(digest: DigestSpec, by: Instant) -> DigestOutcome;
        participants(room: RoomId, by: Instant) -> Option<u32>;
        set_draining(draining: bool, by: Instant) -> ();
    }
}
