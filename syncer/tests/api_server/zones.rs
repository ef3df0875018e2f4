//! A zone is lost, over HTTPS from end to end.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sfu_api::ZoneId;
use sfu_mock::{ClusterConfig, Fault, Target};

use crate::support::{Fleet, until};

async fn status(fleet: &Fleet) -> Value {
    fleet.get(0, "/v1/status").await.1
}

/// Whether a zone fails, as metrics tell it.
async fn metric(fleet: &Fleet) -> String {
    let answer = fleet.client.get(fleet.url(0, "/metrics")).bearer_auth("gw-1").send().await.expect("an answer");
    let text = answer.text().await.expect("text");
    text.lines().find_map(|line| line.strip_prefix("trunkline_zones_failing ")).expect("the metric").to_owned()
}

/// SFUs and what they say of themselves, by id.
async fn sfus(fleet: &Fleet) -> BTreeMap<String, Value> {
    let (_, list) = fleet.get(0, "/v1/sfus").await;
    let sfus = list["sfus"].as_array().expect("a list").iter();
    sfus.map(|sfu| (sfu["id"].as_str().expect("an id").to_owned(), sfu.clone())).collect()
}

/// The SFU of each call.
async fn placements(fleet: &Fleet) -> BTreeMap<String, String> {
    let (_, page) = fleet.get(0, "/v1/calls?limit=1000").await;
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    page["calls"].as_array().expect("a list").iter().map(|call| (text(&call["call"]), text(&call["sfu"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn r07_r13_the_calls_of_a_lost_zone_and_new_ones_go_elsewhere_until_it_is_well() {
    let zones = ["x", "y"].map(|zone| ZoneId::new(zone).expect("an id"));
    let cluster = ClusterConfig { nodes: 8, zones: zones.into(), weights: vec![1.0, 2.0], ..ClusterConfig::default() };
    let fleet = Fleet::start_tls(1, cluster, |_| {}).await;
    let known = sfus(&fleet).await;
    let zone_of = |sfu: &str| known[sfu]["zone"].as_str().expect("a zone").to_owned();
    let heavy: Vec<_> = known.values().filter(|sfu| sfu["weight"] == 2.0).map(|sfu| &sfu["zone"]).collect();
    assert_eq!(heavy, ["x", "y", "x", "y"].map(|zone| json!(zone)).each_ref(), "each zone has every weight");
    for call in 0..40 {
        fleet.join_until_placed(0, "g", &format!("c{call}"), "s").await;
    }
    let before = placements(&fleet).await;
    assert_eq!(before.values().map(|sfu| zone_of(sfu)).collect::<BTreeSet<_>>().len(), 2, "in both zones");
    assert_eq!((&status(&fleet).await["zones_failing"], metric(&fleet).await.as_str()), (&json!([]), "0"));

    let [lost, _] = ["x", "y"].map(|zone| Some(ZoneId::new(zone).expect("an id")));
    let lost = Target::Share { share: 1.0, region: None, zone: lost, seed: 0 };
    assert_eq!(fleet.sfus.fault(&lost, &Fault::Kill).await.expect("killed").len(), 4);
    until("the zone is found dead, and its calls placed", || async {
        let status = status(&fleet).await;
        status["sfus"]["dead"] == 4 && status["awaiting"] == 0
    })
    .await;
    let failing = json!([{ "region": "a", "zone": "x" }]);
    assert_eq!((&status(&fleet).await["zones_failing"], metric(&fleet).await.as_str()), (&failing, "1"));
    for (id, sfu) in sfus(&fleet).await {
        assert_eq!(sfu["zone_failing"], zone_of(&id) == "x", "{sfu}");
    }
    for (call, sfu) in placements(&fleet).await {
        assert_eq!(zone_of(&sfu), "y", "{call}");
        assert!(sfu == before[&call] || zone_of(&before[&call]) == "x", "I10: {call} was on an SFU that is well");
    }

    // It answers again, and is left alone for a while.
    fleet.sfus.heal_all().await.expect("healed");
    until("its SFUs are back", || async { status(&fleet).await["sfus"]["healthy"] == 8 }).await;
    for call in 0..10 {
        fleet.join_until_placed(0, "g", &format!("new{call}"), "s").await;
        let placed = placements(&fleet).await;
        if status(&fleet).await["zones_failing"] != failing {
            break; // ten seconds are over: what was placed is not known to be from before
        }
        assert!(placed.values().all(|sfu| zone_of(sfu) == "y"), "{placed:?}");
    }
    until("the zone is well", || async { status(&fleet).await["zones_failing"] == json!([]) }).await;
    assert_eq!(metric(&fleet).await, "0");
}
