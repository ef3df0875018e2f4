//! A gateway that opens more watches than it may have.

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::gateways::{Gateway, all_done, join, quick};
use crate::support::{Events, Fleet, answer, until};

/// So many watches of one gateway, at every syncer.
async fn allow(fleet: &Fleet, watches: usize) {
    for n in 0..fleet.syncers.len() {
        let levers = fleet.client.patch(fleet.url(n, "/v1/levers")).json(&json!({ "gateways.watches_max": watches }));
        let (status, body) = answer(levers).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }
}

/// A number from `/metrics`.
async fn count(gateway: &Gateway, name: &str) -> u64 {
    let text = gateway.request(Method::GET, "/metrics").send().await.expect("an answer").text().await.expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("trunkline_{name} ")));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

async fn watch(gateway: &Gateway) -> Events {
    Events::open(gateway.request(Method::GET, "/v1/watch")).await
}

/// A session joins a call of its own, and every one of `watches` hears where it is.
async fn all_hear(gateway: &Gateway, guild: &str, call: usize, watches: &mut [&mut Events]) {
    all_done(&gateway.say(&[join(guild, call, call, 1)]).await);
    for events in watches {
        events.of_call(guild, &format!("c{call}")).await;
    }
}

fn is_over(event: &crate::support::Event) -> bool {
    event.name == "end" && event.data == json!({ "reason": "too_many_watches" })
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_a_gateway_that_opens_one_watch_too_many_loses_its_oldest_and_hears_why() {
    let fleet = quick(1, &[]).await;
    let admin = Gateway::over_tls(&fleet, "operator", true);
    let levers = admin.request(Method::PATCH, "/v1/levers").json(&json!({ "gateways.watches_max": 3 }));
    assert_eq!(answer(levers).await.0, StatusCode::OK);
    for (h2, name, other, replaced) in [(false, "gw-1", "gw-2", 0), (true, "gw-3", "gw-4", 2)] {
        let (gateway, other) = (Gateway::over_tls(&fleet, name, h2), Gateway::over_tls(&fleet, other, h2));
        let [mut first, mut second, mut third] = [watch(&gateway).await, watch(&gateway).await, watch(&gateway).await];
        let mut others = [watch(&other).await, watch(&other).await, watch(&other).await];
        all_hear(&gateway, name, 0, &mut [&mut first, &mut second, &mut third]).await;
        assert_eq!(count(&gateway, "watch_replaced_total").await, replaced, "as many as it may have");

        let mut fourth = watch(&gateway).await;
        let last = first.next().await;
        assert!(is_over(&last), "{last:?}");
        let cursor = first.last_id.clone().expect("an id");
        first.end().await;
        all_hear(&gateway, name, 1, &mut [&mut second, &mut third, &mut fourth]).await;
        // It is not locked out: where it was, it goes on, and the next in line ends.
        let resumed = gateway.request(Method::GET, "/v1/watch").header("last-event-id", cursor);
        let mut first = Events::open(resumed).await;
        assert_eq!(first.next().await.data["call"], "c1", "what it missed meanwhile");
        let last = second.next().await;
        assert!(is_over(&last), "{last:?}");
        // One that goes away by itself makes room without anybody's end.
        drop(third);
        until("the third is gone", || async { count(&gateway, "watchers").await == 2 + 3 }).await;
        let mut fifth = watch(&gateway).await;
        all_hear(&gateway, name, 2, &mut [&mut fourth, &mut first, &mut fifth]).await;
        assert_eq!(count(&gateway, "watch_replaced_total").await, replaced + 2);
        // Nobody else has noticed.
        let [one, two, three] = &mut others;
        all_hear(&other, &format!("{name}-other"), 0, &mut [one, two, three]).await;
        drop((others, first, fourth, fifth));
        until("all are gone", || async { count(&gateway, "watchers").await == 0 }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_i09_a_watch_that_nobody_reads_ends_at_once_when_the_gateway_comes_back() {
    const CALLS: usize = 100;
    const PEOPLE: usize = 64;
    let fleet = quick(1, &[]).await;
    let gateway = Gateway::over_tls(&fleet, "gw-1", true);
    let levers = gateway.request(Method::PATCH, "/v1/levers").json(&json!({ "gateways.watches_max": 1 }));
    assert_eq!(answer(levers).await.0, StatusCode::OK);
    let lines: Vec<Value> = (0..CALLS * PEOPLE).map(|n| join("g", n / PEOPLE, n, 1)).collect();
    all_done(&gateway.say(&lines).await);
    until("placements", || async { answer(gateway.request(Method::GET, "/v1/status")).await.1["placed"] == CALLS })
        .await;

    // ~2.5 MB of news, and a window of 64 KiB: it stands still with a write that nobody takes.
    let ca = std::fs::read(fleet.dir.path().join("api-ca.pem")).expect("written");
    let narrow = Client::builder().tls_certs_only([reqwest::Certificate::from_pem(&ca).expect("a certificate")]);
    let narrow = narrow.http2_initial_stream_window_size(64 * 1024).http2_initial_connection_window_size(64 * 1024);
    let narrow = narrow.build().expect("a client");
    let mut stalled = Events::open(narrow.get(fleet.url(0, "/v1/watch")).bearer_auth("gw-1")).await;
    let sent = std::cell::Cell::new(0);
    until("it stands still", || async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let before = sent.replace(count(&gateway, "watch_events_sent_total").await);
        before > 0 && before == sent.get()
    })
    .await;

    let mut events = watch(&gateway).await;
    until("the old one is gone", || async { count(&gateway, "watchers").await == 1 }).await;
    let mut credentials = 0;
    while credentials < CALLS * PEOPLE {
        credentials += events.next().await.data["credentials"].as_array().expect("a list").len();
    }
    // Should somebody read it after all, it ends with the reason, after what was on its way.
    let mut read = 0;
    let last = loop {
        let event = stalled.next().await;
        if event.name != "endpoint" {
            break event;
        }
        read += 1;
    };
    assert!(is_over(&last) && read < CALLS / 2, "{last:?} after {read} events");
    stalled.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_peers_open_for_a_gateway_are_not_counted() {
    let fleet = Fleet::start(3, 2).await;
    allow(&fleet, 1).await;
    let guilds: Vec<String> = (0..3).map(|n| fleet.guild_of(n)).collect();
    let mut watches = Vec::new();
    for n in 0..3 {
        watches.push(Events::open(fleet.request(n, Method::GET, "/v1/watch")).await);
    }
    for call in ["c1", "c2"] {
        for guild in &guilds {
            fleet.join(0, guild, call, "s").await;
            for events in &mut watches {
                events.of_call(guild, call).await;
            }
        }
    }
    for n in 0..3 {
        let text = fleet.client.get(fleet.url(n, "/metrics")).send().await.expect("an answer").text().await;
        let text = text.expect("text");
        assert!(text.lines().any(|line| line == "trunkline_watch_replaced_total 0"), "{text}");
        assert!(text.lines().any(|line| line == "trunkline_watchers 3"), "one here, and one for each peer: {text}");
    }
}
