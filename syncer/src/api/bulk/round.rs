//! `sync` and `synced`: a gateway tells everything again, and says when that was all.
//!
//! What it tells between the two is of a new round, on whatever stream or road; what it did not tell again
//! by `synced` expires after the resume window. Every syncer of the fleet has to know of both, since the
//! gateway's sessions are with all of them: the stream that begins a round tells the others, and keeps
//! what each of them calls it. A syncer that cannot be reached fails the line: the gateway says `synced`
//! again, or begins anew. A process that was replaced and says which one it is is refused wherever that is known:
//! what its successor has told would be out of date by its rounds.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use sfu_api::SyncerId;
use tokio::time::Instant;

use super::NDJSON;
use super::result::OperationResult;
use super::road::{Gone, Road};
use crate::api::ApiError;
use crate::api::error::RETRY_BASE;
use crate::api::gateways::checked;
use crate::engine::CallAnswer;
use crate::ownership::Owner;
use crate::presence::Refused;
use crate::state::Round;

/// What a marker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mark {
    /// What follows is everything that the gateway has. Wait for the result before listing it.
    Sync,
    /// That was everything.
    Synced,
}

/// A line that is about the gateway and not about one session.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Marker {
    /// Comes back with the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) op: Option<String>,
    /// What to do.
    #[serde(rename = "do")]
    pub(crate) what: Mark,
    /// With `synced`, the round that ends, as the result of its `sync` named it. Absent: the one that this
    /// stream began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) round: Option<u64>,
    /// The process that says so, as in its heartbeat: 409 `superseded` once a newer one goes by this name. Absent: not
    /// compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) incarnation: Option<String>,
}

/// The round that a stream began: its number here and at the other syncers.
#[derive(Debug)]
pub(super) struct Begun {
    here: Round,
    there: BTreeMap<SyncerId, u64>,
}

/// What matters of another syncer's answer.
#[derive(Debug, Deserialize)]
struct Answer {
    status: u16,
    #[serde(default)]
    round: Option<u64>,
    #[serde(default)]
    error_code: Option<String>,
}

// === impl Road ===

impl Road {
    /// Does what a marker says, everywhere.
    pub(super) async fn mark(&mut self, marker: Marker) -> Result<(), Gone> {
        let Marker { op, what, round, incarnation } = marker;
        let incarnation = incarnation.as_deref();
        self.flush().await?; // what came before it is done before it, and need not wait for others
        let done = match (incarnation.map_or(Ok(()), checked), what) {
            (Err(e), _) => Err(e),
            (Ok(()), Mark::Sync) => self.sync(incarnation).await,
            (Ok(()), Mark::Synced) => {
                // Also where other syncers do it.
                self.settle().await?;
                self.synced(round.map(Round), incarnation).await
            }
        };
        let result = match done {
            Ok(round) => OperationResult { round: Some(round.0), ..OperationResult::done(op, CallAnswer::default()) },
            Err(e) => OperationResult::failed(op, e, self.app.engine.retry_span_min()),
        };
        self.result(&result);
        Ok(())
    }

    async fn sync(&mut self, incarnation: Option<&str>) -> Result<Round, ApiError> {
        self.begun = None;
        let here = self.app.engine.begin_round(&self.caller.id, incarnation, Instant::now())?;
        let asked = self.others().into_iter().map(|owner| (owner, None)).collect();
        let there = self.everywhere(Mark::Sync, incarnation, asked).await?;
        self.begun = Some(Begun { here, there });
        Ok(here)
    }

    async fn synced(&self, named: Option<Round>, incarnation: Option<&str>) -> Result<Round, ApiError> {
        self.app.engine.admits(&self.caller.id, incarnation)?; // others may not know yet
        let begun = self.begun.as_ref().filter(|begun| named.is_none_or(|named| named == begun.here));
        let Some(round) = named.or(begun.map(|begun| begun.here)) else {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "not_begun",
                "this stream began no round: say `sync` first",
            ));
        };
        let asked = begun.map_or_else(Vec::new, |begun| {
            let numbered = |owner: Arc<Owner>| Some((begun.there.get(&owner.id).copied()?, owner));
            self.others().into_iter().filter_map(numbered).map(|(number, owner)| (owner, Some(number))).collect()
        });
        // The others first: where it is said again, nothing has been missed here either.
        self.everywhere(Mark::Synced, incarnation, asked).await?;
        self.app.engine.synced(&self.caller.id, incarnation, round, Instant::now())?;
        Ok(round)
    }

    /// The syncers that this stream speaks for, besides ours.
    fn others(&self) -> Vec<Arc<Owner>> {
        if self.caller.forwarded || self.redirect {
            return Vec::new();
        }
        self.app.ownership.view().peers().cloned().collect()
    }

    /// Asks the other syncers, each by its number of the round; says how they number it.
    async fn everywhere(
        &self,
        what: Mark,
        incarnation: Option<&str>,
        asked: Vec<(Arc<Owner>, Option<u64>)>,
    ) -> Result<BTreeMap<SyncerId, u64>, ApiError> {
        let asked = asked.into_iter().map(|(owner, round)| {
            let marker = Marker { op: None, what, round, incarnation: incarnation.map(str::to_owned) };
            self.ask(owner, marker)
        });
        join_all(asked).await.into_iter().collect()
    }

    async fn ask(&self, owner: Arc<Owner>, marker: Marker) -> Result<(SyncerId, u64), ApiError> {
        let line = serde_json::to_vec(&marker).unwrap_or_default();
        let (path, who, kind) = ("/v1/voice-states", self.caller.on_behalf(), NDJSON);
        let sent = self.app.peers.forward(&owner.url, Method::POST, path, &who, Some(&kind), Bytes::from(line));
        let answer = match sent.await {
            Ok((head, body)) if head.status == StatusCode::OK => serde_json::from_slice(body.trim_ascii()).ok(),
            Ok((head, _)) => Some(Answer { status: head.status.as_u16(), round: None, error_code: None }),
            Err(error) => {
                tracing::debug!(owner = %owner.id, %error, "owner not reached");
                None
            }
        };
        match answer {
            Some(Answer { status: 200, round: Some(round), .. }) => Ok((owner.id.clone(), round)),
            Some(Answer { status: 409, error_code: Some(code), .. }) if code == "superseded" => {
                Err(Refused::Superseded.into())
            }
            Some(Answer { status: 409, .. }) => {
                let message = format!("syncer {} knows nothing of this round: say `sync` again", owner.id);
                Err(ApiError::new(StatusCode::CONFLICT, "not_begun", message))
            }
            _ => {
                let message = format!("syncer {} holds sessions too and gave no answer: say it again", owner.id);
                Err(ApiError::unavailable("owner_unreachable", message, RETRY_BASE))
            }
        }
    }
}
