//! Guilds that operators turn away.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use sfu_api::GuildId;

use super::extract::{Ids, Params, id, split_verb};
use super::{ApiError, App, Caller, unix_ms};
use crate::admission::{BLOCKS_MAX, Block};

/// Query of an act on a guild or a gateway.
#[derive(Clone, Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ActParams {
    /// Why, for whoever reads the audit.
    pub(super) reason: Option<String>,
}

/// The guilds that operators blocked at this syncer.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct BlockList {
    /// In order of their ids.
    blocks: Vec<Block>,
}

/// The guilds that operators blocked at this syncer.
#[utoipa::path(get, path = "/v1/blocks", operation_id = "list_blocks", tag = "operators",
    responses((status = 200, body = BlockList), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<BlockList>, ApiError> {
    caller.must_be_operator()?;
    Ok(Json(BlockList { blocks: app.engine.blocks() }))
}

/// Turn away new sessions, calls and streams of a guild at this syncer, or let them in again.
///
/// What is live stays, and leaves are taken. A block belongs to the syncer that was asked, as its levers do:
/// ask all of them, so that it holds when the guild's slot moves. `{action}` is `block` or `unblock`.
#[utoipa::path(post, path = "/v1/guilds/{guild}:{action}", operation_id = "act_on_guild", tag = "operators",
    params(("guild" = String, Path), ("action" = String, Path, description = "`block` or `unblock`"), ActParams),
    responses((status = 200, body = BlockList), (status = "4XX", body = super::error::ErrorBody)))]
pub(crate) async fn act(
    State(app): State<Arc<App>>,
    caller: Caller,
    Ids(name): Ids<String>,
    Params(ActParams { reason }): Params<ActParams>,
) -> Result<Json<BlockList>, ApiError> {
    caller.must_be_operator()?;
    let (name, verb) = split_verb(&name, &["block", "unblock"]);
    let guild: GuildId = id("guild", name)?;
    match verb {
        Some("block") => {
            let block = Block { guild, by: caller.id.to_string(), reason, at: unix_ms() };
            if !app.engine.block(block) {
                return Err(ApiError::invalid(format!("{BLOCKS_MAX} guilds are blocked; the throttle stops them all")));
            }
        }
        Some(_) => {
            if !app.engine.unblock(&guild, caller.id.as_str(), reason.as_deref(), unix_ms()) {
                return Err(ApiError::not_found("blocked guild"));
            }
        }
        None => return Err(ApiError::not_found("action; there are `:block` and `:unblock`")),
    }
    Ok(Json(BlockList { blocks: app.engine.blocks() }))
}
