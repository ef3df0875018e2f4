//! Several syncers: forwarding, redirects, unreachable owners, static files.

use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Method, StatusCode};
use serde_json::json;
use sfu_api::SyncerId;
use syncer::registry::{Member, Registry as _};
use syncer::{Options, Syncer};
use tokio::time::{Instant, timeout};
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::{Fleet, PATIENCE, answer, config, install_provider, sfus, until};

#[tokio::test(flavor = "multi_thread")]
async fn any_syncer_takes_any_request_for_the_owner() {
    let fleet = Fleet::start(3, 2).await;
    let guild = fleet.guild_of(2);
    let body = fleet.join_until_placed(0, &guild, "c", "s").await;
    assert!(body["token"].is_string());
    assert_eq!(fleet.syncers[2].engine().status().participants, 1, "the owner has it");
    assert_eq!(fleet.syncers[0].engine().status().calls, 0, "the forwarder has nothing");
    let (status, call) = fleet.get(1, &format!("/v1/guilds/{guild}/calls/c")).await;
    assert_eq!((status, &call["participants"]), (StatusCode::OK, &json!(1)));
    let (status, body) = fleet.get(1, &format!("/v1/guilds/{guild}/calls/none")).await;
    assert_eq!((status, &body["error_code"]), (StatusCode::NOT_FOUND, &json!("not_found")), "the owner's errors");
    let path = format!("/v1/guilds/{guild}/calls/c/participants/s");
    assert_eq!(answer(fleet.request(1, Method::DELETE, &path)).await.0, StatusCode::NO_CONTENT);
    assert_eq!(fleet.syncers[2].engine().status().participants, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_prefers_it_is_redirected() {
    let fleet = Fleet::start(2, 1).await;
    let path = format!("/v1/guilds/{}/calls/c/participants/s?seq=1", fleet.guild_of(1));
    let client = Client::builder().redirect(Policy::none()).build().expect("a client");
    let request = client.delete(fleet.url(0, &path)).header("prefer", "respond-async, redirect");
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(response.headers()["location"], fleet.url(1, &path));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_request_goes_no_further_and_a_wrong_secret_nowhere() {
    let fleet = Fleet::start(2, 1).await;
    let path = format!("/v1/guilds/{}/calls/c/participants/s", fleet.guild_of(1));
    let with = |secret: &str| {
        let request = fleet.request(0, Method::PUT, &path).body("{}").header("trunkline-peer", secret);
        answer(request.header("trunkline-forwarded", "syncer-9").header("trunkline-gateway", "gw-7"))
    };
    let (status, body) = with("open").await;
    assert_eq!((status, &body["error_code"]), (StatusCode::MISDIRECTED_REQUEST, &json!("not_owner")));
    assert_eq!(with("wrong").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_owner_is_a_503_that_spreads_its_callers() {
    let fleet = Fleet::start(2, 1).await;
    let guild = fleet.guild_of(1);
    // The owner's record stays; its address leads nowhere.
    let member = Member::new(SyncerId::new("syncer-2").expect("an id"), "http://127.0.0.1:1", "z1");
    fleet.registry.announce(member, Instant::now()).await.expect("announced");
    until("the view follows", || async {
        let (status, _) = fleet.join(0, &guild, "c", "s").await;
        status == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    let path = format!("/v1/guilds/{guild}/calls/c/participants/s");
    let mut waits = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let response = fleet.request(0, Method::PUT, &path).body("{}").send().await.expect("an answer");
        waits.insert(response.headers()["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds"));
    }
    assert!(!waits.contains(&0), "{waits:?}");
    let bulk = json!({"op":"o","do":"join","guild":guild,"call":"c","session":"s"}).to_string() + "\n";
    let (_, result) = answer(fleet.request(0, Method::POST, "/v1/voice-states").body(bulk)).await;
    assert_eq!((&result["op"], &result["status"]), (&json!("o"), &json!(503)), "{result}");
    assert!(result["retry_after_ms"].as_u64().expect("a wait") >= 1000);
}

/// Who asked first waits on, by the limit of then, while others with a shorter one are given up.
#[tokio::test(flavor = "multi_thread")]
async fn r20_how_long_an_owner_may_take_is_a_lever() {
    let fleet = Fleet::start(2, 1).await;
    let owner = MockServer::start().await;
    let late = ResponseTemplate::new(200).set_delay(PATIENCE * 2);
    Mock::given(method("PUT")).respond_with(late).mount(&owner).await;
    let turn = |time: &str| {
        let levers = fleet.syncers[0].engine().levers();
        levers.set("peer.forward_timeout", &time.into(), "test", None, 0).expect("in range");
    };
    turn("30s");
    let guild = fleet.guild_of(1);
    let member = Member::new(SyncerId::new("syncer-2").expect("an id"), owner.uri(), "z1");
    fleet.registry.announce(member, Instant::now()).await.expect("announced");
    let joins =
        || async { owner.received_requests().await.expect("kept").iter().filter(|r| r.method == "PUT").count() };
    until("the view follows", || async {
        drop(timeout(Duration::from_millis(50), fleet.join(0, &guild, "c", "before")).await);
        joins().await > 0
    })
    .await;
    let before = joins().await;
    let mut patient = std::pin::pin!(fleet.join(0, &guild, "c", "patient"));
    tokio::select! {
        answer = &mut patient => panic!("{answer:?}"),
        () = until("it is forwarded", || async { joins().await > before }) => {}
    }
    turn("100ms");
    let (status, body) = tokio::select! {
        answer = &mut patient => panic!("{answer:?}"),
        answer = fleet.join(0, &guild, "c", "s") => answer,
    };
    assert_eq!((status, &body["error_code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("owner_unreachable")), "{body}");
}

/// Syncers in processes of their own: each with its own registry, listed for each other in a file.
#[tokio::test(flavor = "multi_thread")]
async fn static_members_with_registries_of_their_own_share_the_slots() {
    install_provider();
    let dir = tempfile::tempdir().expect("a directory");
    let sfus = sfus(2, dir.path()).await;
    // Ports are free when asked for; the second bind could only fail if another took it meanwhile.
    let ports: Vec<u16> = {
        let held: Vec<_> = (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        held.iter().map(|l| l.local_addr().expect("bound").port()).collect()
    };
    let members = dir.path().join("members.toml");
    let list: String = (0..2)
        .map(|n| format!("[[members]]\nid = \"syncer-{}\"\nurl = \"http://127.0.0.1:{}\"\n", n + 1, ports[n]))
        .collect();
    std::fs::write(&members, &list).expect("written");
    let mut syncers = Vec::new();
    for (n, port) in ports.iter().enumerate() {
        let mut config = config(&format!("syncer-{}", n + 1), dir.path());
        config.members_file = Some(members.clone());
        config.listen.set_port(*port);
        syncers.push(Syncer::start(config, Options::default()).await.expect("starts"));
    }
    for syncer in &syncers {
        until("ready", || async { syncer.is_ready() }).await;
    }
    let client = Client::new();
    for n in 0..40 {
        let path = format!("/v1/guilds/g-{n}/calls/c/participants/s");
        let (status, body) = answer(client.put(format!("{}{path}", syncers[n % 2].url())).body("{}")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }
    let counts: Vec<u64> = syncers.iter().map(|s| s.engine().status().calls).collect();
    assert_eq!(counts.iter().sum::<u64>(), 40);
    assert!(counts.iter().all(|c| *c > 5), "{counts:?}");
    for syncer in &syncers {
        until("all placed", || async { syncer.engine().status().awaiting == 0 }).await;
    }

    // A bad file keeps the last good one; a good one is taken over without a restart.
    let (_, view) = answer(client.get(format!("{}/v1/members", syncers[0].url()))).await;
    assert_eq!(view["members"].as_array().expect("members").len(), 2);
    std::fs::write(&members, "[[members]]\nid = 7\n").expect("written");
    let bad_files = || async {
        let metrics = client.get(format!("{}/metrics", syncers[0].url())).send().await.expect("an answer");
        metrics.text().await.expect("text").contains("trunkline_bad_files_total 1")
    };
    until("the bad file is counted", bad_files).await;
    let (_, view) = answer(client.get(format!("{}/v1/members", syncers[0].url()))).await;
    assert_eq!(view["members"].as_array().expect("members").len(), 2, "the last good one stays");
    let third = "[[members]]\nid = \"syncer-3\"\nurl = \"http://127.0.0.1:9\"\nzone = \"z2\"\n";
    std::fs::write(&members, format!("{list}{third}")).expect("written");
    syncers[0].reload();
    until("the new member is known", || async {
        let (_, view) = answer(client.get(format!("{}/v1/members", syncers[0].url()))).await;
        view["members"].as_array().expect("members").len() == 3
    })
    .await;
    drop(sfus);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_catalogue_is_taken_over_and_a_bad_one_is_not() {
    let fleet = Fleet::start(1, 2).await;
    let path = fleet.dir.path().join("sfus.toml");
    let all = std::fs::read_to_string(&path).expect("readable");
    let sfus = || async { fleet.get(0, "/v1/sfus").await.1["sfus"].as_array().expect("sfus").len() };
    assert_eq!(sfus().await, 2);
    std::fs::write(&path, "").expect("written");
    let one = all.split("[[sfus]]").nth(1).expect("an entry");
    std::fs::write(&path, format!("[[sfus]]{one}")).expect("written");
    fleet.syncers[0].reload();
    until("one is left", || async { sfus().await == 1 }).await;
    std::fs::write(&path, "[[sfus]]\nid = \"\"").expect("written");
    fleet.syncers[0].reload();
    until("the bad file is counted", || async {
        let text = fleet.client.get(fleet.url(0, "/metrics")).send().await.expect("an answer").text().await;
        !text.expect("text").contains("trunkline_bad_files_total 0")
    })
    .await;
    assert_eq!(sfus().await, 1);
}

/// Bad files so far, as the metrics count them.
async fn bad_files(url: &str) -> u64 {
    let metrics = Client::new().get(format!("{url}/metrics")).send().await.expect("an answer");
    let text = metrics.text().await.expect("text");
    let line = text.lines().find_map(|l| l.strip_prefix("trunkline_bad_files_total "));
    line.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("not counted in\n{text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_an_emptied_catalogue_is_refused_and_calls_stay() {
    let fleet = Fleet::start(1, 5).await;
    let path = fleet.dir.path().join("sfus.toml");
    let all = std::fs::read_to_string(&path).expect("readable");
    let first = format!("[[sfus]]{}", all.split("[[sfus]]").nth(1).expect("an entry"));
    let sfus = || async { fleet.get(0, "/v1/sfus").await.1["sfus"].as_array().expect("sfus").len() };
    let before = fleet.join_until_placed(0, "g", "c", "s").await;
    for (n, text) in ["", "sfus = []\n", "allow_shrink = true\n", &first].into_iter().enumerate() {
        std::fs::write(&path, text).expect("written");
        fleet.syncers[0].reload();
        let url = fleet.syncers[0].url();
        until("the refusal is counted", || async { bad_files(url).await > n as u64 }).await;
        assert_eq!(sfus().await, 5, "the last good list stays in force: {text:?}");
    }
    assert_eq!(fleet.join_until_placed(0, "g", "c", "s").await["epoch"], before["epoch"], "the call was left alone");
    fleet.join_until_placed(0, "g", "c2", "s").await;

    std::fs::write(&path, format!("allow_shrink = true\n{first}")).expect("written");
    until("confirmed, it is taken, without being asked", || async { sfus().await == 1 }).await;
    std::fs::write(&path, &all).expect("written");
    until("and all come back", || async { sfus().await == 5 }).await;
    assert_eq!(fleet.join_until_placed(0, "g", "c", "s").await["epoch"], before["epoch"], "all the while");
}

/// A member that is only listed is gone with its line, and its slots move: with them calls.
#[tokio::test(flavor = "multi_thread")]
async fn r06_a_truncated_list_of_members_moves_no_slot() {
    install_provider();
    let dir = tempfile::tempdir().expect("a directory");
    let sfus = sfus(1, dir.path()).await;
    let members = dir.path().join("members.toml");
    let list: String =
        (1..5).map(|n| format!("[[members]]\nid = \"syncer-{n}\"\nurl = \"http://127.0.0.1:{n}\"\n")).collect();
    std::fs::write(&members, &list).expect("written");
    let mut config = config("syncer-1", dir.path());
    config.members_file = Some(members.clone());
    let syncer = Syncer::start(config, Options::default()).await.expect("starts");
    until("ready", || async { syncer.is_ready() }).await;
    let view = || async { answer(Client::new().get(format!("{}/v1/members", syncer.url()))).await.1 };
    let before = view().await;
    for (n, text) in ["", "members = []\n", "[[members]]\nid = \"syncer-1\"\n"].into_iter().enumerate() {
        std::fs::write(&members, text).expect("written");
        syncer.reload();
        until("the refusal is counted", || async { bad_files(syncer.url()).await > n as u64 }).await;
        assert_eq!(view().await["members"], before["members"], "{text:?}");
    }
    drop(sfus);
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_a_removed_member_learns_it_and_stops_serving() {
    let fleet = Fleet::start(2, 1).await;
    let guild = fleet.guild_of(0);
    fleet.join_until_placed(0, &guild, "c", "s").await;
    fleet.registry.remove(&SyncerId::new("syncer-1").expect("an id")).await.expect("removed");
    // At its next renewal, or at once when it follows the registry.
    until("it serves no more", || async { fleet.syncers[0].engine().status().calls == 0 }).await;
    until("the other took the slots over", || async {
        let snapshot = Arc::clone(&fleet.registry.watch().borrow());
        snapshot.slots.iter().flatten().all(|r| r.owner.as_str() == "syncer-2")
    })
    .await;
    until("the other serves it", || async { fleet.join(1, &guild, "c", "s").await.0 == StatusCode::OK }).await;
    let body = fleet.join_until_placed(1, &guild, "c", "s").await;
    assert!(body["endpoint"].is_string());
}
