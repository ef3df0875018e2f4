//! Ids of the path and parameters of the query, refused in the one shape.

use std::str::FromStr;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, RawPathParams};
use http::request::Parts;
use serde::de::DeserializeOwned;
use sfu_api::{IdError, SfuId};

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
        match Path::from_request_parts(parts, state).await {
            Ok(Path(ids)) => Ok(Self(ids)),
            Err(rejection) => {
                let raw = RawPathParams::from_request_parts(parts, state).await.ok();
                Err(bad_path(&rejection, raw.as_ref()))
            }
        }
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

/// Names the id at fault: the rejection of several ids at once does not.
fn bad_path(rejection: &PathRejection, ids: Option<&RawPathParams>) -> ApiError {
    // All ids obey the same rules.
    let wrong = ids.into_iter().flatten().find_map(|(name, value)| Some((name, value.parse::<SfuId>().err()?)));
    match wrong {
        Some((name, error)) => bad_id(name, error),
        None => ApiError::invalid(format!("bad path: {}", rejection.body_text())),
    }
}

fn bad_id(name: &str, error: IdError) -> ApiError {
    ApiError::invalid(format!("`{name}` {error}"))
}

/// Splits `name:verb` when the verb is one of `verbs`. Ids may hold colons of their own.
pub(crate) fn split_verb<'a>(text: &'a str, verbs: &[&str]) -> (&'a str, Option<&'a str>) {
    match text.rsplit_once(':') {
        Some((name, verb)) if verbs.contains(&verb) => (name, Some(verb)),
        _ => (text, None),
    }
}

/// Checks an id that was cut from a longer piece of the path.
pub(crate) fn id<T: FromStr<Err = IdError>>(name: &str, text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|error| bad_id(name, error))
}
