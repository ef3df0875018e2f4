//! The contract as an OpenAPI document.

use utoipa::OpenApi;

/// The contract as OpenAPI, built from the types of this crate.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    Contract::openapi()
}

#[derive(OpenApi)]
#[openapi()]
struct Contract;
