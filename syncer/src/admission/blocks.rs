//! Guilds that an operator blocked: they get no new sessions, calls or streams. What is live stays.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use sfu_api::GuildId;

/// Guilds blocked at once: more is an outage, for which there is the throttle. ~2 MiB.
pub const BLOCKS_MAX: usize = 10_000;

/// A blocked guild, for operators.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Block {
    /// The guild.
    pub guild: GuildId,
    /// Who blocked it.
    pub by: String,
    /// Why, if they said.
    pub reason: Option<String>,
    /// When, in milliseconds since the Unix epoch.
    pub at: u64,
}

/// The blocked guilds.
#[derive(Debug, Default)]
pub struct Blocks {
    by_guild: Mutex<BTreeMap<GuildId, Block>>,
    /// Whether there is any: all that a join looks at while there is none.
    any: AtomicBool,
}

// === impl Blocks ===

impl Blocks {
    /// Blocks a guild. `false`: there are too many.
    #[must_use]
    pub fn add(&self, block: Block) -> bool {
        let mut blocks = self.by_guild.lock();
        if blocks.len() >= BLOCKS_MAX && !blocks.contains_key(&block.guild) {
            return false;
        }
        blocks.insert(block.guild.clone(), block);
        self.any.store(true, Ordering::Release);
        true
    }

    /// Lifts a block. `false`: there was none.
    pub fn remove(&self, guild: &GuildId) -> bool {
        let mut blocks = self.by_guild.lock();
        let removed = blocks.remove(guild).is_some();
        self.any.store(!blocks.is_empty(), Ordering::Release);
        removed
    }

    /// Whether any guild is blocked.
    #[must_use]
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Whether this guild is blocked.
    #[must_use]
    pub fn holds(&self, guild: &GuildId) -> bool {
        self.any() && self.by_guild.lock().contains_key(guild)
    }

    /// The blocked guilds, in order.
    #[must_use]
    pub fn list(&self) -> Vec<Block> {
        self.by_guild.lock().values().cloned().collect()
    }
}
