//! What must hold of a request's head before anybody looks at what it asks for.
//!
//! hyper refuses what is no HTTP at all. What is left are heads that two servers in a row may read
//! differently ("request smuggling"): there the strict reading is taken, and the connection is not
//! used again, so that bytes which somebody hid behind the request never become one.

use axum::extract::Request;
use http::header::{HOST, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};

use super::ApiError;

/// Most header fields of a request; a gateway behind two proxies sends ~20.
pub(crate) const HEADERS_MAX: usize = 64;
/// Header list of a request in bytes, names and values: tokens have at most 4 KiB, and what proxies
/// add is less.
pub(crate) const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// What HTTP/2 counts for each field besides its name and value (RFC 9113, 10.5.1).
const FIELD_BYTES: usize = 32;

/// Of a request with chunks: it had a length as well, which hyper has removed. See [`super::framing`].
#[derive(Clone, Copy, Debug)]
pub(super) struct TwoLengths;

/// Whether the head may be believed.
pub(super) fn check(request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    let too_large = |code, message| ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, code, message);
    if headers.len() > HEADERS_MAX {
        return Err(too_large("too_many_headers", format!("at most {HEADERS_MAX} header fields are taken")));
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum();
    if bytes > HEADER_BYTES_MAX as usize {
        return Err(too_large("header_too_large", format!("at most {HEADER_BYTES_MAX} bytes of header are taken")));
    }
    if request.version() >= Version::HTTP_2 {
        // RFC 9113, 8.3.1; h2 sees to it only where there is an authority.
        let has_path = !request.uri().path().is_empty() || request.method() == Method::CONNECT;
        return if has_path { Ok(()) } else { Err(ApiError::invalid("a request needs a `:path`")) };
    }
    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Err(ApiError::invalid("exactly one `host` is needed"));
    }
    if request.extensions().get::<TwoLengths>().is_some() && headers.contains_key(TRANSFER_ENCODING) {
        return Err(ApiError::invalid("a body has a length or comes in chunks, not both"));
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let plain = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_some_and(|first| !plain(first)) || codings.next().is_some() {
        return Err(ApiError::invalid("the only transfer coding taken is `chunked`, once"));
    }
    Ok(())
}

/// Whether the connection must end with this request: chunks are where servers in a row disagree, and whoever sends
/// them has a stream, after which a new connection costs little.
pub(super) fn is_last(request: &Request) -> bool {
    request.version() < Version::HTTP_2 && request.headers().contains_key(TRANSFER_ENCODING)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn status(version: Version, fields: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        check(&request.body(Body::empty()).expect("a request")).map_or_else(|e| e.status.as_u16(), |()| 200)
    }

    #[test]
    fn heads_that_can_be_read_in_two_ways_are_refused() {
        let h1 = |fields: &[(&str, &str)]| status(Version::HTTP_11, fields);
        assert_eq!(h1(&[("host", "x"), ("transfer-encoding", "Chunked")]), 200);
        assert_eq!(h1(&[]), 400, "no host");
        assert_eq!(h1(&[("host", "x"), ("host", "x")]), 400, "two hosts");
        for coding in ["identity", "gzip, chunked", "chunked, chunked", " chunked;x", "xchunked", ""] {
            assert_eq!(h1(&[("host", "x"), ("transfer-encoding", coding)]), 400, "{coding:?}");
        }
        let twice = [("host", "x"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(h1(&twice), 400, "two codings");
        let two_lengths = |fields: &[(&str, &str)]| {
            let mut request = Request::builder().extension(TwoLengths).header("host", "x");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            check(&request.body(Body::empty()).expect("a request")).is_err()
        };
        assert!(two_lengths(&[("transfer-encoding", "chunked")]), "a length was beside it");
        assert!(!two_lengths(&[]), "it came before the one that had them");
        assert_eq!(status(Version::HTTP_10, &[]), 200, "HTTP/1.0 knew no host");
        assert_eq!(status(Version::HTTP_2, &[]), 200, "HTTP/2 has `:authority`");
    }

    #[test]
    fn heads_have_at_most_64_fields_and_16_kib() {
        let fields = vec![("a", "b"); HEADERS_MAX];
        assert_eq!(status(Version::HTTP_2, &fields), 200);
        assert_eq!(status(Version::HTTP_2, &vec![("a", "b"); HEADERS_MAX + 1]), 431);
        let long = "y".repeat(HEADER_BYTES_MAX as usize);
        assert_eq!(status(Version::HTTP_2, &[("a", &long)]), 431);
    }
}
