//! Ids of the path and parameters of the query, refused in the one shape.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query};
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::ApiError;

/// Ids of the path, percent-decoded and checked.
#[derive(Debug)]
pub(crate) struct Ids<T>(pub(crate) T);

/// Parameters of the query; unknown ones are refused by their types.
#[derive(Debug)]
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Ids<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(ids) = Path::from_request_parts(parts, state)
            .await
            .map_err(|e: PathRejection| ApiError::invalid(format!("bad path: {}", e.body_text())))?;
        Ok(Self(ids))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(params) = Query::from_request_parts(parts, state)
            .await
            .map_err(|e: QueryRejection| ApiError::invalid(format!("bad query: {}", e.body_text())))?;
        Ok(Self(params))
    }
}

/// Splits `name:verb` when the verb is one of `verbs`. Ids may hold colons of their own.
pub(crate) fn split_verb<'a>(text: &'a str, verbs: &[&str]) -> (&'a str, Option<&'a str>) {
    match text.rsplit_once(':') {
        Some((name, verb)) if verbs.contains(&verb) => (name, Some(verb)),
        _ => (text, None),
    }
}

/// Checks an id that was cut from a longer piece of the path.
pub(crate) fn id<T: std::str::FromStr<Err = sfu_api::IdError>>(text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|e| ApiError::invalid(format!("bad path: id {e}")))
}
