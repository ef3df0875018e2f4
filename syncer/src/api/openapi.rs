//! The API as an OpenAPI document, from the handlers and types themselves.

use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(title = "Trunkline syncer", description = "Joins, leaves, endpoint news and operations of a voice control plane."),
    paths(
        super::participants::join,
        super::participants::leave,
        super::bulk::voice_states,
        super::watch::watch,
        super::ops::heartbeat,
        super::calls::report,
        super::calls::list,
        super::calls::get,
        super::calls::explain,
        super::sfus::list,
        super::sfus::act,
        super::levers::list,
        super::levers::change,
        super::ops::status,
        super::ops::members,
        super::ops::jwks,
        super::ops::livez,
        super::ops::readyz,
        super::ops::metrics,
    ),
    components(schemas(crate::watch::Scope)),
    modifiers(&Security),
)]
struct Api;

struct Security;

impl utoipa::Modify for Security {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        api.components.get_or_insert_default().security_schemes.insert("bearer".to_owned(), scheme.into());
        api.security = Some(vec![SecurityRequirement::new("bearer", Vec::<String>::new())]);
    }
}

/// The API of a syncer as an OpenAPI document.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}
