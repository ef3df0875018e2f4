//! The control port: break, heal, count, from outside the process.
//!
//! Plain HTTP on loopback, JSON both ways, for tests and for a human with curl:
//!
//! | route | meaning |
//! |---|---|
//! | `GET /control/nodes` | all nodes with state and faults |
//! | `GET /control/nodes/{id}/rooms` | the rooms a node holds |
//! | `POST /control/faults` | break: `{"nodes": […]}` or `{"share": 0.2, "region": "a", "zone": "x", "seed": 7}`, and `"fault"` |
//! | `DELETE /control/faults`, `/control/faults/{id}` | heal all, or one |
//! | `GET /control/stats` | what was counted |
//! | `GET`, `PUT /control/budgets` | check creations from now on |
//! | `PUT /control/jwks` | verify tokens from now on |

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sfu_api::{RegionId, SfuId, ZoneId};

use crate::cluster::Fleet;
use crate::node::serve_plain;
use crate::{Budgets, Error, Fault, Target};

/// Largest body: a fault that names every node of the largest cluster.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Pause after `accept` failed: descriptors do not come back faster.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Body of `POST /control/faults`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultRequest {
    nodes: Option<Vec<SfuId>>,
    share: Option<f64>,
    region: Option<RegionId>,
    zone: Option<ZoneId>,
    seed: Option<u64>,
    fault: Fault,
}

struct Refused(Error);

/// Serves the control port until the fleet stops.
pub(crate) fn spawn(fleet: &Arc<Fleet>, listener: TcpListener) -> Result<(), Error> {
    let address = listener.local_addr().map_err(|e| Error::bind(([127, 0, 0, 1], 0).into(), e))?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| Error::bind(address, e))?;
    let world = Arc::clone(fleet.world());
    let service = TowerToHyperService::new(routes(Arc::clone(fleet)));
    let (tasks, stop) = (world.tasks.clone(), world.stop.clone());
    let accept = async move {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, _)) => {
                    tasks.spawn(serve_plain(tcp, service.clone(), tasks.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control port");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(ACCEPT_RETRY) => {}
                    }
                }
            }
        }
    };
    world.tasks.spawn(accept);
    Ok(())
}

fn routes(fleet: Arc<Fleet>) -> Router {
    Router::new()
        .route("/control/nodes", get(nodes))
        .route("/control/nodes/{id}/rooms", get(rooms))
        .route("/control/faults", post(fault).delete(heal_all))
        .route("/control/faults/{id}", delete(heal))
        .route("/control/stats", get(stats))
        .route("/control/budgets", get(budgets).put(set_budgets))
        .route("/control/jwks", put(set_jwks))
        .fallback(|| async { error(StatusCode::NOT_FOUND, "not_found", "no such path") })
        .method_not_allowed_fallback(|| async {
            error(StatusCode::METHOD_NOT_ALLOWED, "invalid", "this path does not take this method")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(fleet)
}

async fn nodes(State(fleet): State<Arc<Fleet>>) -> Response {
    ok(&json!({ "nodes": fleet.nodes() }))
}

async fn rooms(State(fleet): State<Arc<Fleet>>, Path(id): Path<String>) -> Result<Response, Refused> {
    Ok(ok(&json!({ "rooms": fleet.rooms(&node_id(&id)?)? })))
}

async fn fault(State(fleet): State<Arc<Fleet>>, body: Bytes) -> Result<Response, Refused> {
    let FaultRequest { nodes, share, region, zone, seed, fault } = parse(&body)?;
    let within = region.is_some() || zone.is_some();
    let target = match (nodes, share) {
        (Some(nodes), None) if !within => Target::Nodes(nodes),
        (None, Some(share)) => Target::Share { share, region, zone, seed: seed.unwrap_or(0) },
        (None, None) if within => Target::Share { share: 1.0, region, zone, seed: 0 },
        _ => return Err(Error::request("give either nodes, or any of share, region and zone").into()),
    };
    Ok(ok(&json!({ "nodes": fleet.fault(&target, &fault).await? })))
}

async fn heal_all(State(fleet): State<Arc<Fleet>>) -> Result<Response, Refused> {
    Ok(ok(&json!({ "nodes": fleet.heal_all().await? })))
}

async fn heal(State(fleet): State<Arc<Fleet>>, Path(id): Path<String>) -> Result<Response, Refused> {
    let id = node_id(&id)?;
    fleet.heal(&id).await?;
    Ok(ok(&json!({ "nodes": [id] })))
}

async fn stats(State(fleet): State<Arc<Fleet>>) -> Response {
    ok(&fleet.stats())
}

async fn budgets(State(fleet): State<Arc<Fleet>>) -> Response {
    ok(&fleet.budgets())
}

async fn set_budgets(State(fleet): State<Arc<Fleet>>, body: Bytes) -> Result<Response, Refused> {
    fleet.set_budgets(parse::<Budgets>(&body)?)?;
    Ok(ok(&fleet.budgets()))
}

async fn set_jwks(State(fleet): State<Arc<Fleet>>, body: Bytes) -> Result<Response, Refused> {
    fleet.set_jwks(&body)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn node_id(text: &str) -> Result<SfuId, Error> {
    SfuId::new(text).map_err(|e| Error::request(format!("node id {e}")))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|e| Error::request(e.to_string()))
}

fn ok<T: Serialize>(body: &T) -> Response {
    let text = serde_json::to_string(body).expect("control answers have text keys only");
    ([(CONTENT_TYPE, "application/json")], text + "\n").into_response()
}

fn error(status: StatusCode, error_code: &str, message: &str) -> Response {
    (status, ok(&json!({ "error_code": error_code, "message": message }))).into_response()
}

// === impl Refused ===

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let message = self.0.to_string();
        if self.0.is_unknown_node() {
            error(StatusCode::NOT_FOUND, "not_found", &message)
        } else if self.0.is_bad_request() {
            error(StatusCode::BAD_REQUEST, "invalid", &message)
        } else {
            tracing::error!(error = %message, "control request failed");
            error(StatusCode::INTERNAL_SERVER_ERROR, "internal", &message)
        }
    }
}
