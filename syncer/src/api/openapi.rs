//! The API as an OpenAPI document, from the handlers and types themselves.

use utoipa::openapi::{PathItem, RefOr};
use utoipa::{Modify, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(title = "Trunkline syncer", description = "Joins, leaves, endpoint news and operations of a voice control plane."),
    paths(
        super::participants::join,
        super::participants::leave,
        super::bulk::voice_states,
        super::watch::watch,
        super::gateways::heartbeat,
        super::gateways::heard,
        super::gateways::act,
        super::gateways::list,
        super::calls::report,
        super::calls::list,
        super::calls::get,
        super::calls::explain,
        super::sfus::list,
        super::sfus::get,
        super::sfus::act,
        super::audit::list,
        super::blocks::list,
        super::blocks::act,
        super::levers::list,
        super::levers::change,
        super::ops::status,
        super::recovery::recovery,
        super::ops::members,
        super::debug::pool,
        super::ops::jwks,
        super::ops::livez,
        super::ops::readyz,
        super::ops::metrics,
    ),
    components(schemas(crate::watch::Scope)),
    modifiers(&Security, &Descriptions),
)]
struct Api;

struct Security;

impl Modify for Security {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        api.components.get_or_insert_default().security_schemes.insert("bearer".to_owned(), scheme.into());
        api.security = Some(vec![SecurityRequirement::new("bearer", Vec::<String>::new())]);
    }
}

/// Says of every response what its status means, where the handler does not: OpenAPI requires it.
struct Descriptions;

impl Modify for Descriptions {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        for item in api.paths.paths.values_mut() {
            let PathItem { get, put, post, delete, patch, .. } = item;
            let operations = [get, put, post, delete, patch].into_iter().flatten();
            for (status, response) in operations.flat_map(|o| &mut o.responses.responses) {
                if let RefOr::T(response) = response
                    && response.description.is_empty()
                {
                    response.description = meaning(status).to_owned();
                }
            }
        }
    }
}

fn meaning(status: &str) -> &'static str {
    match status.as_bytes().first() {
        Some(b'2') => "Done.",
        Some(b'4') => "Not done; `error_code` says why. 429 carries `Retry-After`.",
        _ => "Not done now; 503 carries a `Retry-After` that spreads its callers.",
    }
}

/// The API of a syncer as an OpenAPI document.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}
