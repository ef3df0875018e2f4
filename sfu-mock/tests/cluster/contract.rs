//! The native contract.

use reqwest::{Method, StatusCode, Version};
use serde_json::{Value, json};
use sfu_api::{Epoch, RoomId, room_set_hash, room_set_hash_text};
use sfu_mock::ClusterConfig;

use crate::{Bench, ensure, fenced};

#[tokio::test]
async fn both_http_versions_speak_the_contract_over_tls() {
    let bench = Bench::new(2).await;
    let url = bench.node(0).url;
    for (client, version) in [(&bench.h1, Version::HTTP_11), (&bench.h2, Version::HTTP_2)] {
        let answer = client.get(format!("{url}/v1/health")).send().await.expect("an answer");
        assert_eq!((answer.status(), answer.version()), (StatusCode::OK, version));
        let health: sfu_api::Health = answer.json().await.expect("health");
        assert!(health.accepting && !health.draining);
        assert_eq!(health.boot_id, bench.node(0).boot_id);
        let room = format!("{url}/v1/rooms/{}", if version == Version::HTTP_2 { "two" } else { "one" });
        let answer = client.put(&room).json(&ensure(&room, 1, 1)).send().await.expect("an answer");
        let ready: sfu_api::RoomReady = answer.json().await.expect("ready");
        assert!(ready.created && ready.endpoint.starts_with(&format!("{url}/media/")));
    }
    assert_eq!(bench.node(0).rooms, 2);
    assert_eq!(bench.node(1).rooms, 0);
    bench.cluster.shutdown().await;
}

#[tokio::test]
async fn nodes_have_addresses_and_certificates_of_their_own() {
    let bench = Bench::new(3).await;
    let urls: std::collections::HashSet<_> = bench.cluster.nodes().into_iter().map(|node| node.url).collect();
    assert_eq!(urls.len(), 3);
    let catalogue: toml::Value = toml::from_str(&bench.cluster.catalogue_toml()).expect("TOML");
    let listed = catalogue["sfus"].as_array().expect("a list");
    assert!(listed.iter().all(|sfu| urls.contains(sfu["url"].as_str().expect("text"))));
    assert_eq!(listed[2]["id"].as_str(), Some("sfu-3"));
    // A client that expects another SFU's name must fail, and the right name must pass.
    let address = urls.iter().find(|url| **url == bench.node(0).url).and_then(|url| url.strip_prefix("https://"));
    let address: std::net::SocketAddr = address.expect("https").parse().expect("an address");
    for (name, fits) in [("sfu-1", true), ("sfu-2", false)] {
        let ca = reqwest::Certificate::from_pem(bench.cluster.ca_pem().as_bytes()).expect("a certificate");
        let client = reqwest::Client::builder().tls_certs_only([ca]).no_proxy().resolve(name, address);
        let got = client.build().expect("a client").get(format!("https://{name}:{}/v1/health", address.port()));
        assert_eq!(got.send().await.is_ok(), fits, "{name}");
    }
}

#[tokio::test]
async fn i01_nothing_below_an_accepted_term_is_accepted() {
    let bench = Bench::new(1).await;
    assert_eq!(bench.ensure(0, "r", &ensure("o1", 5, 1)).await.0, StatusCode::OK);
    let (status, error) = bench.ensure(0, "other", &ensure("o2", 4, 9)).await;
    assert_eq!((status, &error["error_code"]), (StatusCode::CONFLICT, &json!("fenced")));
    assert_eq!(error["highest_term"], json!({"generation": 1, "revision": 5}));
    // A digest raises the term too, and is refused below it.
    let digest = |revision| {
        let term = json!({"generation": 1, "revision": revision});
        json!({"syncer": "syncer-2", "terms": [{"slot": 7, "term": term}], "rooms": 0, "hash": "0"})
    };
    assert_eq!(bench.send(Method::POST, 0, "/v1/digest", &digest(6)).await.0, StatusCode::OK);
    assert_eq!(bench.send(Method::POST, 0, "/v1/digest", &digest(5)).await.0, StatusCode::CONFLICT);
    assert_eq!(bench.ensure(0, "r", &ensure("o3", 5, 2)).await.0, StatusCode::CONFLICT);
    // Not even as a repetition of what once succeeded, and not to end the room.
    assert_eq!(bench.ensure(0, "r", &ensure("o1", 5, 1)).await.0, StatusCode::CONFLICT);
    let ended = bench.send(Method::DELETE, 0, "/v1/rooms/r", &fenced("o4", 5, 9)).await;
    assert_eq!(ended.0, StatusCode::CONFLICT);
    assert_eq!(bench.node(0).rooms, 1);
    assert_eq!(bench.cluster.stats().fenced, 5);
}

#[tokio::test]
async fn i03_epochs_of_a_room_only_grow() {
    let bench = Bench::new(1).await;
    assert_eq!(bench.ensure(0, "r", &ensure("o1", 5, 3)).await.0, StatusCode::OK);
    let (status, error) = bench.ensure(0, "r", &ensure("o2", 5, 2)).await;
    assert_eq!((status, &error["error_code"]), (StatusCode::CONFLICT, &json!("fenced")));
    assert_eq!(error["highest_epoch"]["n"], 3);
    let late = bench.send(Method::DELETE, 0, "/v1/rooms/r", &fenced("o3", 5, 2)).await;
    assert_eq!(late.0, StatusCode::CONFLICT);
    let (status, again) = bench.ensure(0, "r", &ensure("o4", 5, 4)).await;
    assert_eq!((status, &again["created"]), (StatusCode::OK, &json!(false)));
    // An ensure that its end overtook does not bring the room back.
    assert_eq!(bench.send(Method::DELETE, 0, "/v1/rooms/r", &fenced("o5", 5, 4)).await.0, StatusCode::OK);
    assert_eq!(bench.ensure(0, "r", &ensure("o6", 5, 3)).await.0, StatusCode::CONFLICT);
    assert_eq!(bench.ensure(0, "r", &ensure("o7", 5, 5)).await.1["created"], true);
}

#[tokio::test]
async fn the_same_operation_gets_the_same_answer_and_counts_once() {
    let bench = Bench::new(1).await;
    let first = bench.ensure(0, "r", &ensure("o1", 1, 1)).await;
    assert_eq!(first, bench.ensure(0, "r", &ensure("o1", 1, 1)).await);
    assert_eq!(first.1["created"], true);
    let ended = bench.send(Method::DELETE, 0, "/v1/rooms/r", &fenced("o2", 1, 1)).await;
    assert_eq!(ended.1["ended"], "destroyed");
    assert_eq!(ended, bench.send(Method::DELETE, 0, "/v1/rooms/r", &fenced("o2", 1, 1)).await);
    // The repetition of an old ensure does not undo the end.
    assert_eq!(first, bench.ensure(0, "r", &ensure("o1", 1, 1)).await);
    assert_eq!(bench.node(0).rooms, 0);
    let absent = bench.send(Method::DELETE, 0, "/v1/rooms/r", &fenced("o3", 1, 1)).await;
    assert_eq!((absent.0, &absent.1["ended"]), (StatusCode::OK, &json!("was_absent")));
    assert_eq!(bench.ensure(0, "another", &ensure("o1", 1, 1)).await.0, StatusCode::BAD_REQUEST);
    let stats = bench.cluster.stats();
    assert_eq!((stats.creates, stats.ends), (1, 1));
}

#[tokio::test]
async fn a_mutation_for_another_incarnation_is_refused() {
    let bench = Bench::new(1).await;
    let mut body = ensure("o1", 1, 1);
    body["boot_id"] = json!(bench.node(0).boot_id);
    assert_eq!(bench.ensure(0, "r", &body).await.0, StatusCode::OK);
    body["boot_id"] = json!("another");
    body["op_id"] = json!("o2");
    let (status, error) = bench.ensure(0, "r", &body).await;
    assert_eq!((status, &error["error_code"]), (StatusCode::CONFLICT, &json!("restarted")));
    assert_eq!(error["boot_id"], json!(bench.node(0).boot_id));
}

#[tokio::test]
async fn a_batch_answers_each_operation_in_order() {
    let bench = Bench::new(1).await;
    let operation = |kind: &str, room: &str, mut body: Value| {
        body["do"] = json!(kind);
        body["room"] = json!(room);
        body
    };
    let batch = json!({"operations": [
        operation("ensure", "a", ensure("o1", 2, 1)),
        operation("ensure", "b", ensure("o2", 1, 1)),
        operation("end", "a", fenced("o3", 2, 1)),
        operation("end", "never", fenced("o4", 2, 1)),
    ]});
    let (status, answer) = bench.send(Method::POST, 0, "/v1/rooms:batch", &batch).await;
    assert_eq!(status, StatusCode::OK);
    let results = answer["results"].as_array().expect("a list");
    let kinds: Vec<_> = results.iter().map(|r| r["result"].as_str().expect("text")).collect();
    assert_eq!(kinds, ["ready", "error", "ended", "ended"]);
    assert_eq!(results[1]["error_code"], "fenced");
    assert_eq!((&results[2]["ended"], &results[3]["ended"]), (&json!("destroyed"), &json!("was_absent")));
    let parsed: sfu_api::BatchAnswer = serde_json::from_value(answer).expect("the contract's type");
    assert_eq!(parsed.results.len(), 4);
    let many: Vec<_> = (0..257).map(|i| operation("end", "x", fenced(&format!("m{i}"), 2, 1))).collect();
    let (status, error) = bench.send(Method::POST, 0, "/v1/rooms:batch", &json!({"operations": many})).await;
    assert_eq!((status, &error["error_code"]), (StatusCode::BAD_REQUEST, &json!("invalid")));
}

#[tokio::test]
async fn a_digest_finds_what_is_missing_and_what_is_surplus() {
    let bench = Bench::new(1).await;
    for (room, op) in [("a", "o1"), ("b", "o2"), ("c", "o3")] {
        assert_eq!(bench.ensure(0, room, &ensure(op, 1, 1)).await.0, StatusCode::OK);
    }
    let epoch: Epoch = "1.1.1".parse().expect("an epoch");
    let rooms = |names: &[&str]| names.iter().map(|n| RoomId::new(n).expect("valid id")).collect::<Vec<_>>();
    let digest = |names: &[&str], named: bool, syncer: &str, revision: u64| {
        let rooms = rooms(names);
        let hash = room_set_hash_text(room_set_hash(rooms.iter().map(|room| (room, epoch))));
        let terms = json!([{"slot": 7, "term": {"generation": 1, "revision": revision}}]);
        let mut body = json!({"syncer": syncer, "terms": terms, "rooms": rooms.len(), "hash": hash});
        if named {
            body["named"] = rooms.iter().map(|room| json!({"room": room, "epoch": epoch})).collect();
        }
        body
    };
    let ask = async |body: Value| {
        let (status, answer) = bench.send(Method::POST, 0, "/v1/digest", &body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    };
    let same = ask(digest(&["c", "a", "b"], false, "syncer-1", 1)).await;
    assert_eq!((&same["matches"], same.get("differences")), (&json!(true), None));
    let other = ask(digest(&["a", "b", "d"], true, "syncer-1", 1)).await;
    assert_eq!(other["matches"], false);
    assert_eq!(other["differences"]["missing"], json!(["d"]));
    assert_eq!(other["differences"]["surplus"][0]["room"], "c");
    assert_eq!(other["differences"]["surplus"].as_array().map(Vec::len), Some(1));
    // A successor that raised the term sees the rooms as its own.
    let taken = ask(digest(&["a", "b", "c"], false, "syncer-2", 2)).await;
    assert_eq!(taken["matches"], true);
    let owned = bench.get(0, "/v1/rooms?owner=syncer-2").await.1;
    assert_eq!(owned["rooms"].as_array().map(Vec::len), Some(3));
    assert_eq!(bench.get(0, "/v1/rooms?owner=syncer-1").await.1["rooms"], json!([]));
}

#[tokio::test]
async fn room_lists_come_in_pages_in_order() {
    let config = ClusterConfig { nodes: 1, capacity: 3000, ..ClusterConfig::default() };
    let bench = Bench::with(config).await;
    for chunk in 0..9 {
        let operations: Vec<_> = (0..250)
            .map(|i| {
                let mut body = ensure(&format!("o{chunk}-{i}"), 1, 1);
                body["do"] = json!("ensure");
                body["room"] = json!(format!("r{:04}", chunk * 250 + i));
                body
            })
            .collect();
        let answer = bench.send(Method::POST, 0, "/v1/rooms:batch", &json!({"operations": operations})).await;
        assert_eq!(answer.0, StatusCode::OK);
    }
    let (mut names, mut path, mut pages) = (vec![], "/v1/rooms".to_owned(), 0);
    loop {
        let page: sfu_api::RoomPage = serde_json::from_value(bench.get(0, &path).await.1).expect("a page");
        names.extend(page.rooms.iter().map(|state| state.room.to_string()));
        pages += 1;
        let Some(next) = page.next else { break };
        path = format!("/v1/rooms?cursor={next}");
    }
    assert_eq!(pages, 3);
    assert_eq!(names, (0..2250).map(|i| format!("r{i:04}")).collect::<Vec<_>>());
    assert_eq!(bench.cluster.stats().creates, 2250);
}

#[tokio::test]
async fn draining_refuses_new_rooms_only_and_is_reversible() {
    let bench = Bench::new(1).await;
    assert_eq!(bench.ensure(0, "old", &ensure("o1", 1, 1)).await.0, StatusCode::OK);
    let health = bench.send(Method::POST, 0, "/v1/drain", &json!({})).await.1;
    assert_eq!((&health["draining"], &health["accepting"]), (&json!(true), &json!(false)));
    let refused = bench.request(Method::PUT, 0, "/v1/rooms/new").json(&ensure("o2", 1, 1)).send().await;
    let refused = refused.expect("an answer");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<Value>().await.expect("JSON")["error_code"], "draining");
    assert_eq!(bench.ensure(0, "old", &ensure("o3", 1, 2)).await.0, StatusCode::OK);
    assert_eq!(bench.send(Method::DELETE, 0, "/v1/drain", &json!({})).await.1["accepting"], true);
    assert_eq!(bench.ensure(0, "new", &ensure("o2", 1, 1)).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_full_sfu_says_so_and_every_answer_carries_the_load() {
    let config = ClusterConfig { nodes: 1, capacity: 2, ..ClusterConfig::default() };
    let bench = Bench::with(config).await;
    assert_eq!(bench.ensure(0, "a", &ensure("o1", 1, 1)).await.1["load"]["calls"], 1);
    assert_eq!(bench.ensure(0, "b", &ensure("o2", 1, 1)).await.1["load"]["calls"], 2);
    let full = bench.request(Method::PUT, 0, "/v1/rooms/c").json(&ensure("o3", 1, 1)).send().await.expect("an answer");
    assert_eq!(full.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(full.headers()["retry-after"], "1");
    let error: sfu_api::ErrorAnswer = full.json().await.expect("an error");
    assert_eq!((error.load.calls, error.load.capacity), (2, 2));
    assert!(error.load.sampled_at > 0);
}
