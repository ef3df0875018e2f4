//! What operators, probes and browsers use.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use syncer::Config;

use crate::support::{Fleet, answer, nodes, until};

#[tokio::test(flavor = "multi_thread")]
async fn r20_levers_are_listed_changed_and_refused_with_the_range() {
    let fleet = Fleet::start_tls(1, nodes(1), |_| {}).await;
    let (_, before) = fleet.get(0, "/v1/levers").await;
    let levers = before["levers"].as_array().expect("levers");
    assert!(levers.len() > 10, "{before}");
    let value = |all: &Value, name: &str| {
        let found = all["levers"].as_array().expect("levers").iter().find(|l| l["name"] == name).cloned();
        found.unwrap_or_else(|| panic!("no lever {name}"))
    };
    let patch = |body: Value| answer(fleet.request(0, Method::PATCH, "/v1/levers").json(&body));
    let (status, after) = patch(json!({ "placement.sfu.rate": 7.5, "placement.paused": true })).await;
    assert_eq!(status, StatusCode::OK, "{after}");
    let rate = value(&after, "placement.sfu.rate");
    assert_eq!((&rate["value"], &rate["changed_by"]), (&json!(7.5), &json!("gw-1")));
    assert!(rate["changed_at"].as_u64().expect("a time") > 1_600_000_000_000);

    for (body, code) in [
        (json!({ "placement.sfu.rate": -1, "placement.sfu.burst": 3 }), "lever_out_of_range"),
        (json!({ "placement.sfu.rat": 1 }), "lever_unknown"),
        (json!({ "placement.paused": 3 }), "lever_wrong_type"),
    ] {
        let (status, error) = patch(body).await;
        assert_eq!((status, &error["error_code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(code)), "{error}");
    }
    let (_, error) = patch(json!({ "placement.sfu.rate": -1 })).await;
    assert!(error["message"].as_str().expect("text").contains("10000"), "names the range: {error}");
    let (_, error) = patch(json!({ "placement.sfu.rat": 1 })).await;
    assert!(error["message"].as_str().expect("text").contains("placement.sfu.rate"), "names the nearest: {error}");
    let (_, now) = fleet.get(0, "/v1/levers").await;
    assert_ne!(value(&now, "placement.sfu.burst")["value"], 3, "all or none");
    assert_eq!(patch(json!([1])).await.0, StatusCode::BAD_REQUEST);

    // Paused means paused: the call waits until the lever is turned back.
    fleet.join(0, "g", "c", "s").await;
    assert_eq!(fleet.get(0, "/v1/status").await.1["awaiting"], 1);
    patch(json!({ "placement.paused": false })).await;
    until("placed", || async { fleet.get(0, "/v1/status").await.1["placed"] == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordoned_sfu_takes_no_new_calls() {
    let fleet = Fleet::start(1, 2).await;
    let (status, sfu) = answer(fleet.request(0, Method::POST, "/v1/sfus/sfu-1:cordon")).await;
    assert_eq!((status, &sfu["cordoned"]), (StatusCode::OK, &json!(true)), "{sfu}");
    for n in 0..10 {
        fleet.join_until_placed(0, "g", &format!("c{n}"), "s").await;
    }
    let (_, page) = fleet.get(0, "/v1/calls?sfu=sfu-1").await;
    assert_eq!(page["total"], 0, "{page}");
    let (_, sfu) = answer(fleet.request(0, Method::POST, "/v1/sfus/sfu-1:uncordon")).await;
    assert_eq!(sfu["cordoned"], false);
    let (_, all) = fleet.get(0, "/v1/sfus").await;
    assert_eq!(all["sfus"].as_array().expect("sfus").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_a_drained_sfu_is_emptied_over_https_with_progress_and_an_audit() {
    let fleet = Fleet::start_tls(1, nodes(3), |_| {}).await;
    for n in 0..30 {
        fleet.join_until_placed(0, "g", &format!("c{n}"), "s").await;
    }
    let (_, before) = fleet.get(0, "/v1/calls?sfu=sfu-1").await;
    let calls = before["total"].as_u64().expect("a number");
    assert!(calls > 0, "{before}");
    let act = |action: &str, body: Value| {
        answer(fleet.request(0, Method::POST, &format!("/v1/sfus/sfu-1:{action}")).json(&body))
    };
    for (action, body) in [
        ("drain", json!({ "deadline": "2d" })),
        ("drain", json!({ "deadline": "soon" })),
        ("cordon", json!({ "deadline": "1m" })),
        ("undrain", json!({ "reason": "x".repeat(300) })),
        ("drain?deadline=30s", json!({})), // it would go unread
    ] {
        let (status, error) = act(action, body).await;
        assert_eq!((status, &error["error_code"]), (StatusCode::BAD_REQUEST, &json!("invalid")), "{error}");
    }
    let (status, sfu) = act("drain", json!({ "deadline": "5m", "reason": "new kernel" })).await;
    assert_eq!((status, &sfu["drain"]["at_start"]), (StatusCode::OK, &json!(calls)), "{sfu}");
    let show = || async { fleet.get(0, "/v1/sfus/sfu-1").await.1 };
    until("the drain", || async { show().await["drain"]["state"] == "done" }).await;
    let (_, sfu) = fleet.get(0, "/v1/sfus/sfu-1").await;
    assert_eq!((&sfu["drain"]["moved"], &sfu["calls"]), (&json!(calls), &json!(0)), "{sfu}");
    let told = |told: bool| fleet.sfus.nodes().iter().all(|n| n.draining == (told && n.id.as_str() == "sfu-1"));
    until("the SFU was told", || async { told(true) && show().await["drain"]["told"] == true }).await;
    assert_eq!(fleet.get(0, "/v1/status").await.1["notices_total"], 0);
    let (_, sfu) = act("undrain", json!({})).await;
    assert_eq!(sfu["drain"]["state"], "undone", "{sfu}");
    until("the SFU was told to serve", || async { told(false) }).await;
    assert_eq!(act("quarantine", json!({})).await.1["quarantined"], true);
    let (_, audit) = fleet.get(0, "/v1/audit").await;
    let acts = audit["acts"].as_array().expect("acts");
    let names: Vec<_> = acts.iter().map(|a| a["action"].as_str().expect("a name")).collect();
    assert_eq!(names, ["drain", "undrain", "quarantine"]);
    assert_eq!((&acts[0]["by"], &acts[0]["reason"]), (&json!("gw-1"), &json!("new kernel")));
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_status_metrics_and_the_landing_page_answer() {
    let fleet = Fleet::start_with(1, 1, |c| c.admin_listen = Some("127.0.0.1:0".parse().expect("an address"))).await;
    fleet.join_until_placed(0, "g", "c", "s").await;
    let text = async |url: String| {
        let response = fleet.client.get(url).send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        response.text().await.expect("text")
    };
    assert_eq!(text(fleet.url(0, "/livez")).await, "alive\n");
    assert_eq!(text(fleet.url(0, "/readyz")).await, "ready\n");
    assert!(text(fleet.url(0, "/")).await.contains("EventSource"));
    let admin = format!("http://{}", fleet.syncers[0].admin_addr().expect("listens"));
    for metrics in [text(fleet.url(0, "/metrics")).await, text(format!("{admin}/metrics")).await] {
        for name in ["trunkline_placements_total 1", "trunkline_http_requests_total{", "trunkline_watchers "] {
            assert!(metrics.contains(name), "{name} is not in\n{metrics}");
        }
        assert!(!metrics.contains("\"c\""), "no ids in labels");
    }
    let (status, levers) = answer(fleet.client.get(format!("{admin}/v1/levers"))).await;
    assert_eq!((status, levers["levers"].is_array()), (StatusCode::OK, true), "operators are served there");

    let (_, status) = fleet.get(0, "/v1/status").await;
    for (key, want) in
        [("syncer", json!("syncer-1")), ("ready", json!(true)), ("calls", json!(1)), ("placed", json!(1))]
    {
        assert_eq!(status[key], want, "{key} in {status}");
    }
    for key in [
        "sfus",
        "pool",
        "attempts_total",
        "first_attempts_total",
        "moves_total",
        "notices_total",
        "invariant_violations",
        "uptime_ms",
        "version",
        "ending",
        "participants",
        "placements_total",
    ] {
        assert!(!status[key].is_null(), "{key} in {status}");
    }
    assert_eq!(status["pool"]["permits_off"], 0);
    assert!(status["pool"]["waiters"].as_u64() <= status["pool"]["waiters_max"].as_u64(), "{status}");
    assert!(status["pool"]["waiters_max"].as_u64() > Some(0), "{status}");
    let beat = json!({ "incarnation": "i-1" });
    let (code, said) = answer(fleet.request(0, Method::PUT, "/v1/gateways/gw-1").json(&beat)).await;
    assert_eq!((code, &said["resync"]), (StatusCode::OK, &json!(true)), "nobody knew it");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_decide_who_may_do_what() {
    let strict = |config: &mut Config| {
        let auth = "mode = \"tokens\"\npeer_secret = \"hush\"\ntokens = [\n\
            { token = \"t-g\", id = \"gw-1\", role = \"gateway\" },\n\
            { token = \"t-o\", id = \"op\", role = \"operator\" },\n]\n";
        config.auth = toml::from_str(auth).expect("an auth table");
    };
    let fleet = Fleet::start_with(2, 1, strict).await;
    let with = |token: &str, method: Method, path: &str| {
        let mut request = fleet.client.request(method, fleet.url(0, path));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        answer(request)
    };
    // Served by the other syncer too: identity and role go along.
    for guild in [fleet.guild_of(0), fleet.guild_of(1)] {
        let path = format!("/v1/guilds/{guild}/calls/c/participants/s");
        assert_eq!(with("t-g", Method::PUT, &path).await.0, StatusCode::OK);
        let call = format!("/v1/guilds/{guild}/calls/c");
        assert_eq!(with("t-o", Method::GET, &call).await.0, StatusCode::OK);
        assert_eq!(with("t-g", Method::GET, &call).await.0, StatusCode::FORBIDDEN);
    }
    for (token, path, status) in [
        ("", "/v1/status", 401),
        ("gw-1", "/v1/status", 401),
        ("", "/v1/watch", 401),
        ("t-g", "/v1/status", 200),
        ("t-g", "/v1/levers", 403),
        ("t-g", "/v1/calls", 403),
        ("", "/debug/pool", 401),
        ("gw-1", "/debug/pool", 401),
        ("t-g", "/debug/pool", 403),
        ("t-o", "/debug/pool", 200),
        ("t-o", "/v1/calls", 200),
        ("", "/livez", 200),
        ("", "/metrics", 200),
    ] {
        assert_eq!(with(token, Method::GET, path).await.0.as_u16(), status, "{token:?} {path}");
    }
    let url = fleet.url(0, "/v1/gateways/gw-2");
    let beat = fleet.client.put(url).bearer_auth("t-g").json(&json!({ "incarnation": "i" }));
    assert_eq!(answer(beat).await.0, StatusCode::FORBIDDEN, "a gateway speaks only for itself");
}

#[test]
fn openapi_is_the_golden_file_and_holds_together() {
    let document = serde_json::to_value(syncer::api::openapi()).expect("JSON");
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let text = serde_json::to_string_pretty(&document).expect("JSON") + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &text).expect("written");
    }
    let kept = std::fs::read_to_string(&golden).expect("the golden file");
    assert!(
        kept == text,
        "openapi.json is not what the code says; run this test with UPDATE_GOLDEN=1 and read the diff"
    );
    assert!(document["openapi"].as_str().expect("a version").starts_with("3."));
    check_references(&document, &document);

    let mut ids = std::collections::BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let responses = operation["responses"].as_object().expect("responses");
            assert!(!responses.is_empty(), "{method} {path}");
            for (status, response) in responses {
                let described = response["description"].as_str().is_some_and(|d| !d.is_empty());
                assert!(described, "{method} {path} {status} has no description");
            }
            let declared: Vec<_> = operation["parameters"].as_array().into_iter().flatten().collect();
            for parameter in declared.iter().filter(|p| p["in"] == "path") {
                let place = format!("{{{}}}", parameter["name"].as_str().expect("a name"));
                assert!(path.contains(&place), "{method} {path}: {place} has no place in the path");
            }
            for name in path.split(['{', '}']).skip(1).step_by(2) {
                assert!(declared.iter().any(|p| p["name"] == name && p["in"] == "path"), "{method} {path}: {name}");
            }
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{id} twice");
        }
    }
}

fn check_references(root: &Value, at: &Value) {
    match at {
        Value::Object(map) => {
            if let Some(Value::String(to)) = map.get("$ref") {
                let pointer = to.strip_prefix('#').expect("a local reference");
                assert!(root.pointer(pointer).is_some(), "{to} leads nowhere");
            }
            map.values().for_each(|v| check_references(root, v));
        }
        Value::Array(list) => list.iter().for_each(|v| check_references(root, v)),
        _ => {}
    }
}

/// Every documented operation is served, and by the handler that documents it.
#[tokio::test(flavor = "multi_thread")]
async fn every_documented_route_exists() {
    let fleet = Fleet::start(1, 1).await;
    let (_, document) = fleet.get(0, "/openapi.json").await;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("operations").keys() {
            let method: Method = method.to_uppercase().parse().expect("a method");
            if path == "/v1/watch" {
                continue; // answers until it is closed; tested by itself
            }
            let concrete = path.replace("{action}", "cordon").replace(['{', '}'], "");
            let (status, body) = answer(fleet.request(0, method.clone(), &concrete)).await;
            assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            let text = body["message"].as_str().unwrap_or_default();
            assert!(!text.contains("route; see"), "{method} {path}: {body}");
        }
    }
}
