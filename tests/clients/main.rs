//! What clients expect of HTTP, asked by real ones: curl, reqwest, a browser, promtool.

#[path = "../common/mod.rs"]
mod common;

mod browser;
mod fleet;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{PATIENCE, Process, eventually};
use crate::fleet::Fleet;

fn curl(fleet: &Fleet, args: &[&str]) -> Output {
    let ca = fleet.api_ca();
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "30", "--cacert"]).arg(&ca).args(args);
    command.stdin(Stdio::null()).output().expect("curl can be run")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Joins with curl and returns the answer, once the call has an endpoint.
async fn join_by_curl(fleet: &Fleet, version: &str, call: &str) -> Value {
    let url = format!("{}/v1/guilds/g/calls/{call}/participants/s1", fleet.secure_url());
    eventually("an endpoint", PATIENCE, || async {
        let put = ["-X", "PUT", "-H", "content-type: application/json", "-H", "authorization: Bearer gw-curl"];
        let asked: Vec<&str> = [version, "-w", "\n%{http_version} %{http_code}", "-d", "{}", &url].into();
        let answer = text(&curl(fleet, &[put.as_slice(), &asked].concat()));
        let (body, status) = answer.rsplit_once('\n').expect("curl writes a last line");
        let expected = if version == "--http2" { "2 200" } else { "1.1 200" };
        assert_eq!(status, expected, "{body}");
        let body: Value = serde_json::from_str(body).expect("JSON");
        body["endpoint"].is_string().then_some(body)
    })
    .await
}

#[tokio::test]
async fn curl_joins_over_http_1_and_http_2_and_follows_the_watch() {
    let fleet = Fleet::start().await;
    let watch = format!("{}/v1/watch", fleet.secure_url());
    let mut args = vec!["--no-buffer", "--silent", "-H", "authorization: Bearer gw-curl", "--cacert"];
    let ca = fleet.api_ca();
    args.extend([ca.to_str().expect("a plain path"), &watch]);
    let watching = Process::start(fleet.dir(), "curl-watch", Command::new("curl").args(&args));

    let one = join_by_curl(&fleet, "--http1.1", "one").await;
    let two = join_by_curl(&fleet, "--http2", "two").await;
    assert!(one["token"].is_string() && one["epoch"]["n"].is_u64(), "{one}");
    assert_ne!(one["endpoint"], two["endpoint"], "two calls, two rooms");
    eventually("both calls on the watch", PATIENCE, || async {
        let heard = watching.output();
        let both = ["\"call\":\"one\"", "\"call\":\"two\""].iter().all(|call| heard.contains(call));
        (both && heard.contains("event: endpoint") && heard.contains("id: ")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn reqwest_joins_over_http_1_and_http_2() {
    let fleet = Fleet::start().await;
    let ca = std::fs::read(fleet.api_ca()).expect("the CA was written");
    let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
    let builder = || reqwest::Client::builder().tls_certs_only([ca.clone()]).timeout(PATIENCE);
    let clients = [
        (builder().http1_only().build().expect("a client"), reqwest::Version::HTTP_11),
        (builder().build().expect("a client"), reqwest::Version::HTTP_2),
    ];
    for (client, version) in clients {
        let url = format!("{}/v1/guilds/g/calls/c/participants/s", fleet.secure_url());
        let answer = client.put(url).bearer_auth("gw").json(&json!({"kind": "voice"})).send().await.expect("answers");
        assert_eq!((answer.version(), answer.status().as_u16()), (version, 200));
        let body: Value = answer.json().await.expect("JSON");
        assert!(body.get("endpoint").is_some(), "{body}");
    }
}

#[tokio::test]
async fn an_untrusted_certificate_is_refused_by_clients() {
    let fleet = Fleet::start().await;
    let url = format!("{}/livez", fleet.secure_url());
    let refused = Command::new("curl").args(["--silent", "--show-error", &url]).output().expect("curl can be run");
    assert_eq!(refused.status.code(), Some(60), "curl's code for a certificate it cannot verify");
}

#[tokio::test]
async fn r16_a_browser_hears_an_endpoint_its_loss_and_the_next_one() {
    let fleet = Fleet::start().await;
    let browser = browser::Browser::open(fleet.dir(), &format!("{}/?access_token=gw-tab", fleet.plain_url())).await;
    browser.title("watching", |title| title == "watching").await;
    fleet.join("gw-tab", "in-a-tab").await;
    let first = browser.title("an endpoint", |title| title.contains("in-a-tab placed")).await;
    let sfu = fleet.sfu_of("in-a-tab").await;
    fleet.fault(&json!({"nodes": [sfu], "fault": {"kind": "kill"}})).await;
    let news = browser.title("the next endpoint", |title| title.contains("in-a-tab placed") && *title != first).await;
    assert_ne!(fleet.sfu_of("in-a-tab").await, sfu, "{news}");
    assert_eq!(fleet.status().await["invariant_violations"], 0);
}

#[tokio::test]
async fn promtool_accepts_the_metrics() {
    let fleet = Fleet::start().await;
    fleet.join("gw", "c").await;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().expect("a client");
    let url = format!("{}/metrics", fleet.plain_url());
    let metrics = client.get(url).send().await.expect("answers").text().await.expect("text");
    for name in ["trunkline_placements_total", "trunkline_awaiting_endpoint_seconds_bucket", "trunkline_attempts_total"]
    {
        assert!(metrics.contains(name), "{name} is missing:\n{metrics}");
    }
    // Of OpenMetrics, promtool takes all but the end mark.
    let text = metrics.replace("# EOF\n", "");
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().expect("promtool can be run");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("promtool reads");
    let verdict = child.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&verdict.stderr);
    // Code 3 is lint alone: names that promtool would choose otherwise. Syntax errors are 1.
    assert!(matches!(verdict.status.code(), Some(0 | 3)) && !said.contains("error while linting"), "{said}\n{metrics}");
}
