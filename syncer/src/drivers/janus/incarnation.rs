//! Which incarnation of a Janus this is.
//!
//! Janus loses its rooms at a restart and gives no sign of it, and several syncers must come to the
//! same id without talking to one another. Two private, empty rooms do it:
//!
//! - `_boot`, the **claim**. Creating a room is atomic in Janus, so of all syncers that find none
//!   exactly one creates it, with a new id as its description. Everyone else reads that id.
//! - `_boot.<id>`, the **sentinel**. Whoever reads the claim creates it if it is missing, so a
//!   syncer that died between the two steps leaves nothing undone. Asking whether it `exists` is
//!   cheap, and the answer is no after a restart even when another syncer has claimed anew.
//!
//! A restart takes both away. Neither is ever ended by us. (Electing the lowest of several
//! sentinels instead needs no claim, but a syncer that listed just before a lower one appeared keeps
//! the higher: two ids for one incarnation, or a restart that never was.)

use serde_json::json;
use sfu_api::BootId;
use tokio::time::Instant;

use super::Janus;
use super::wire::Listed;
use crate::drivers::{DriverError, ErrorKind};

const CLAIM: &str = "_boot";
const SENTINEL: &str = "_boot.";

/// Whether a room is the claim or a sentinel.
pub(super) fn is_ours(room: &str) -> bool {
    room == CLAIM || room.starts_with(SENTINEL)
}

impl Janus {
    /// The server's incarnation now: one cheap request unless it has restarted or is new to us.
    pub(super) async fn incarnation(&self, deadline: Instant) -> Result<BootId, DriverError> {
        let known = self.seen.lock().boot_id.clone();
        if let Some(boot_id) = known
            && self.exists(&sentinel(&boot_id), deadline).await?
        {
            return Ok(boot_id);
        }
        let boot_id = self.agree(deadline).await?;
        let mut seen = self.seen.lock();
        if seen.boot_id.as_ref() != Some(&boot_id) {
            // What was seen of the former incarnation is not true of this one.
            seen.load = None;
            seen.boot_id = Some(boot_id.clone());
        }
        Ok(boot_id)
    }

    /// Reads the claim or makes it, then makes sure of the sentinel.
    async fn agree(&self, deadline: Instant) -> Result<BootId, DriverError> {
        let boot_id = match claimed(&self.rooms(deadline).await?)? {
            Some(boot_id) => boot_id,
            None => self.claim(deadline).await?,
        };
        self.mark(&sentinel(&boot_id), "sentinel", deadline).await?;
        Ok(boot_id)
    }

    async fn claim(&self, deadline: Instant) -> Result<BootId, DriverError> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        if self.mark(CLAIM, &id, deadline).await? {
            return BootId::new(id).map_err(|e| DriverError::new(ErrorKind::Local, e.to_string()));
        }
        // Another syncer was faster; the claim is there, unless the server restarted this instant.
        claimed(&self.rooms(deadline).await?)?
            .ok_or_else(|| DriverError::new(ErrorKind::Restarted, "while agreeing on its incarnation"))
    }

    /// Makes a private, empty room that nobody can join: its pin is known to nobody but us.
    async fn mark(&self, room: &str, description: &str, deadline: Instant) -> Result<bool, DriverError> {
        let request = json!({
            "request": "create",
            "admin_key": self.access.key.expose(),
            "room": room,
            "description": description,
            "secret": self.derived("secret", room),
            "pin": self.derived("pin", room),
            "is_private": true,
        });
        self.create(request, deadline).await
    }
}

fn sentinel(boot_id: &BootId) -> String {
    format!("{SENTINEL}{boot_id}")
}

fn claimed(rooms: &[Listed]) -> Result<Option<BootId>, DriverError> {
    let Some(claim) = rooms.iter().find(|room| room.room == CLAIM) else {
        return Ok(None);
    };
    let id = claim.description.as_deref().unwrap_or_default();
    let hex = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    let wrong = || DriverError::new(ErrorKind::Rejected, "its room _boot was not made by a syncer");
    if hex { BootId::new(id).map(Some).map_err(|_| wrong()) } else { Err(wrong()) }
}
