//! The contract as an OpenAPI document.
//!
//! The functions below carry the routes for the generator; nobody calls them. Keeping them beside
//! the types means that the document cannot drift from what is serialised.

#![expect(dead_code, reason = "the functions exist for their attributes")]

use utoipa::OpenApi;

use crate::{
    Batch, BatchAnswer, Digest, DigestAnswer, EndRoom, EnsureRoom, ErrorAnswer, Health, RoomEnded, RoomId, RoomPage,
    RoomReady, SyncerId,
};

/// The contract as OpenAPI, built from the types of this crate.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    Contract::openapi()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Trunkline SFU control contract",
        description = "What a syncer says to an SFU, and what the SFU answers. HTTPS, JSON, HTTP/2 preferred; request \
                       bodies up to 2 MiB. Every answer carries the SFU's incarnation and load. Unknown fields are \
                       ignored by both sides, except in terms and epochs, which have none.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    tags((name = "rooms", description = "Make, end, list and compare rooms"), (name = "sfu", description = "Health and drain")),
    paths(ensure_room, end_room, batch, list_rooms, digest, health, start_drain, stop_drain)
)]
struct Contract;

/// Make a room exist
///
/// Idempotent: the same `op_id` gets the same answer, and a room that is there is kept. A room has
/// the highest epoch it was ensured at.
#[utoipa::path(
    put, path = "/v1/rooms/{room}", tag = "rooms", operation_id = "ensureRoom",
    params(("room" = RoomId, Path, description = "The room")),
    request_body = EnsureRoom,
    responses(
        (status = 200, description = "The room exists", body = RoomReady),
        (status = 400, description = "`invalid`: do not send it again", body = ErrorAnswer),
        (status = 409, description = "`fenced` or `restarted`", body = ErrorAnswer),
        (status = 413, description = "`too_large`", body = ErrorAnswer),
        (status = 422, description = "`rejected`: do not retry", body = ErrorAnswer),
        (status = 429, description = "`overloaded`", body = ErrorAnswer,
            headers(("Retry-After" = u32, description = "Seconds to wait"))),
        (status = 500, description = "`internal`", body = ErrorAnswer),
        (status = 503, description = "`draining` or `overloaded`", body = ErrorAnswer,
            headers(("Retry-After" = u32, description = "Seconds to wait"))),
    )
)]
const fn ensure_room() {}

/// End a room
///
/// A room that is not there is a success. A room placed at a higher epoch is left alone, and one
/// with participants needs `force`.
#[utoipa::path(
    delete, path = "/v1/rooms/{room}", tag = "rooms", operation_id = "endRoom",
    params(("room" = RoomId, Path, description = "The room")),
    request_body = EndRoom,
    responses(
        (status = 200, description = "The room is gone", body = RoomEnded),
        (status = 400, description = "`invalid`: do not send it again", body = ErrorAnswer),
        (status = 409, description = "`fenced`, `restarted` or `occupied`", body = ErrorAnswer),
        (status = 413, description = "`too_large`", body = ErrorAnswer),
        (status = 422, description = "`rejected`: do not retry", body = ErrorAnswer),
        (status = 429, description = "`overloaded`", body = ErrorAnswer,
            headers(("Retry-After" = u32, description = "Seconds to wait"))),
        (status = 500, description = "`internal`", body = ErrorAnswer),
        (status = 503, description = "`overloaded`", body = ErrorAnswer,
            headers(("Retry-After" = u32, description = "Seconds to wait"))),
    )
)]
const fn end_room() {}

/// Do up to 256 operations in one request
///
/// In order, each on its own: one that is refused does not affect the others.
#[utoipa::path(
    post, path = "/v1/rooms:batch", tag = "rooms", operation_id = "batch",
    request_body = Batch,
    responses(
        (status = 200, description = "One result per operation, in the same order", body = BatchAnswer),
        (status = 400, description = "`invalid`: do not send it again", body = ErrorAnswer),
        (status = 413, description = "`too_large`", body = ErrorAnswer),
        (status = 429, description = "`overloaded`", body = ErrorAnswer,
            headers(("Retry-After" = u32, description = "Seconds to wait"))),
        (status = 500, description = "`internal`", body = ErrorAnswer),
        (status = 503, description = "`overloaded`", body = ErrorAnswer,
            headers(("Retry-After" = u32, description = "Seconds to wait"))),
    )
)]
const fn batch() {}

/// List rooms in order of id
#[utoipa::path(
    get, path = "/v1/rooms", tag = "rooms", operation_id = "listRooms",
    params(
        ("owner" = Option<SyncerId>, Query, description = "Only rooms in slots whose highest term this syncer showed"),
        ("cursor" = Option<RoomId>, Query, description = "`next` of the page before; only rooms after it"),
    ),
    responses(
        (status = 200, description = "At most 1,000 rooms", body = RoomPage),
        (status = 400, description = "`invalid`: do not send it again", body = ErrorAnswer),
        (status = 429, description = "`overloaded`", body = ErrorAnswer,
            headers(("Retry-After" = u32, description = "Seconds to wait"))),
        (status = 500, description = "`internal`", body = ErrorAnswer),
        (status = 503, description = "`overloaded`", body = ErrorAnswer,
            headers(("Retry-After" = u32, description = "Seconds to wait"))),
    )
)]
const fn list_rooms() {}

/// Compare what a syncer believes with what is there
///
/// Takes all its terms or, when one is below the highest seen, none. Rooms it names, and all rooms
/// of the syncer when count and hash match, are kept for another 120 s though they be empty.
///
/// The hash of a room is FNV-1a (64 bit) over the bytes of its id, a zero byte and the text of its
/// epoch (`generation.revision.n`), finished with MurmurHash3's 64-bit finaliser; that of a set is
/// the exclusive or of its rooms' hashes, 0 for none, written in hexadecimal.
#[utoipa::path(
    post, path = "/v1/digest", tag = "rooms", operation_id = "digest",
    request_body = Digest,
    responses(
        (status = 200, description = "Whether they agree and, with `named`, where not", body = DigestAnswer),
        (status = 400, description = "`invalid`: do not send it again", body = ErrorAnswer),
        (status = 409, description = "`fenced` or `restarted`", body = ErrorAnswer),
        (status = 413, description = "`too_large`", body = ErrorAnswer),
        (status = 429, description = "`overloaded`", body = ErrorAnswer,
            headers(("Retry-After" = u32, description = "Seconds to wait"))),
        (status = 500, description = "`internal`", body = ErrorAnswer),
        (status = 503, description = "`overloaded`", body = ErrorAnswer,
            headers(("Retry-After" = u32, description = "Seconds to wait"))),
    )
)]
const fn digest() {}

/// Health and load
#[utoipa::path(
    get, path = "/v1/health", tag = "sfu", operation_id = "health",
    responses(
        (status = 200, description = "The SFU is alive", body = Health),
        (status = 500, description = "`internal`", body = ErrorAnswer),
        (status = 503, description = "`overloaded`", body = ErrorAnswer,
            headers(("Retry-After" = u32, description = "Seconds to wait"))),
    )
)]
const fn health() {}

/// Take no new rooms
#[utoipa::path(
    post, path = "/v1/drain", tag = "sfu", operation_id = "startDrain",
    responses(
        (status = 200, description = "Draining", body = Health),
        (status = 500, description = "`internal`", body = ErrorAnswer),
    )
)]
const fn start_drain() {}

/// Take new rooms again
#[utoipa::path(
    delete, path = "/v1/drain", tag = "sfu", operation_id = "stopDrain",
    responses(
        (status = 200, description = "Not draining", body = Health),
        (status = 500, description = "`internal`", body = ErrorAnswer),
    )
)]
const fn stop_drain() {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn document() -> Value {
        serde_json::to_value(openapi()).expect("JSON")
    }

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(to) = map.get("$ref").and_then(Value::as_str) {
                    found.insert(to.to_owned());
                }
                map.values().for_each(|inner| references(inner, found));
            }
            Value::Array(list) => list.iter().for_each(|inner| references(inner, found)),
            _ => {}
        }
    }

    /// Set `UPDATE_GOLDEN=1` and run this test to write `openapi.json` anew; review the difference:
    /// every SFU that implements the contract is affected by it.
    #[test]
    fn the_document_is_the_one_that_was_reviewed() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let text = serde_json::to_string_pretty(&openapi()).expect("JSON") + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &text).expect("written");
        }
        let golden = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            golden == text,
            "sfu-api/openapi.json is out of date: run `UPDATE_GOLDEN=1 cargo test -p sfu-api openapi` and review"
        );
    }

    #[test]
    fn the_document_is_openapi_3_1_and_complete() {
        let document = document();
        assert!(document["openapi"].as_str().is_some_and(|v| v.starts_with("3.1")));
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for to in found {
            let pointer = to.strip_prefix('#').expect("local");
            assert!(document.pointer(pointer).is_some(), "{to} leads nowhere");
        }
        let mut operations = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                let id = operation["operationId"].as_str().expect("an id");
                assert!(operations.insert(id.to_owned()), "{method} {path}: {id} is not unique");
                let params = operation["parameters"].as_array().cloned().unwrap_or_default();
                let declared = params.iter().filter(|p| p["in"] == "path").count();
                assert_eq!(declared, path.matches('{').count(), "{method} {path}");
                for (status, answer) in operation["responses"].as_object().expect("responses") {
                    let schema = &answer["content"]["application/json"]["schema"]["$ref"];
                    let failed = schema == "#/components/schemas/ErrorAnswer";
                    assert_eq!(failed, status != "200", "{method} {path} {status}: {schema}");
                }
            }
        }
        assert_eq!(operations.len(), 8);
    }

    /// Resolves `$ref` and `allOf` into the names of all properties and of the required ones.
    fn fields(document: &Value, schema: &Value) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut all, mut required) = (BTreeSet::new(), BTreeSet::new());
        if let Some(to) = schema["$ref"].as_str() {
            let target = document.pointer(to.trim_start_matches('#')).expect("resolves");
            return fields(document, target);
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            let (more, needed) = fields(document, part);
            all.extend(more);
            required.extend(needed);
        }
        let names = schema["properties"].as_object().into_iter().flat_map(|map| map.keys().cloned());
        all.extend(names);
        let names = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        required.extend(names.map(str::to_owned));
        (all, required)
    }

    #[test]
    fn flattened_and_tagged_types_are_described_as_they_are_serialised() {
        let document = document();
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let schemas = &document["components"]["schemas"];
        let fence = ["slot", "owner_term", "epoch", "boot_id"];
        let ensure = [&fence[..], &["op_id", "syncer", "guild", "kind", "capacity"]].concat();
        let (all, required) = fields(&document, &schemas["EnsureRoom"]);
        assert_eq!(all, names(&ensure));
        assert!(!required.contains("boot_id") && required.contains("slot") && required.contains("capacity"));
        let tagged = |schema: &Value, tag: &str| -> Vec<BTreeSet<String>> {
            let variants = schema["oneOf"].as_array().expect("variants");
            let all = variants.iter().map(|variant| fields(&document, variant).0);
            all.inspect(|fields| assert!(fields.contains(tag), "{fields:?}")).collect()
        };
        let operations = tagged(&schemas["BatchOperation"], "do");
        assert_eq!(operations[0], names(&[&ensure[..], &["do", "room"]].concat()));
        let results = tagged(&schemas["BatchResult"], "result");
        assert_eq!(results[0], names(&["result", "endpoint", "created", "boot_id", "load"]));
        assert!(results[2].contains("error_code"));
    }
}
