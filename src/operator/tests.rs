//! The client against a scripted server: real sockets, answers byte for byte.

use clap::Parser;
use reqwest::{Method, Url};
use serde_json::json;
use syncer::config::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Client, Connection, blocks};
use crate::exit::{Exit, Failure};
use crate::output::{Format, Output};

/// `trunkline blocks` alone.
#[derive(Debug, clap::Parser)]
struct Blocks {
    #[command(flatten)]
    blocks: blocks::BlocksArgs,
}

/// Answers one connection after the other with these bodies, and returns what it was asked.
async fn server(answers: Vec<(u16, String)>) -> (Url, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = Url::parse(&format!("http://{}", listener.local_addr().expect("bound"))).expect("a URL");
    #[expect(clippy::disallowed_methods, reason = "the test joins it")]
    let serving = tokio::spawn(async move {
        let mut asked = Vec::new();
        for (status, body) in answers {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let mut request = vec![0; 4096];
            let n = socket.read(&mut request).await.expect("a request");
            asked.push(String::from_utf8_lossy(&request[..n]).into_owned());
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            socket.write_all(format!("{head}{body}").as_bytes()).await.expect("an answer");
        }
        asked
    });
    (url, serving)
}

fn connection(url: Url) -> Connection {
    Connection { url, token: Secret::new("secret"), ca: None, all: false }
}

async fn ask_one(status: u16, body: &str) -> Result<serde_json::Value, Failure> {
    let (url, serving) = server(vec![(status, body.to_owned())]).await;
    let answer = Client::new(connection(url)).await.expect("a client").get("/v1/status").await;
    let asked = serving.await.expect("served");
    assert!(asked[0].starts_with("GET /v1/status ") && asked[0].contains("Bearer secret"), "{asked:?}");
    answer
}

#[tokio::test]
async fn an_answer_is_handed_on_as_it_came() {
    assert_eq!(ask_one(200, r#"{"ready":true}"#).await.expect("fine"), json!({"ready": true}));
}

#[tokio::test]
async fn a_refusal_shows_code_and_message() {
    let body = r#"{"request_id":"1","error_code":"lever_out_of_range","message":"must be from 1 to 5"}"#;
    let failure = ask_one(422, body).await.expect_err("refused");
    assert_eq!(failure.exit(), Exit::Failed);
    assert_eq!(failure.to_string(), "lever_out_of_range: must be from 1 to 5");
}

#[tokio::test]
async fn whoever_is_no_syncer_is_a_missing_dependency() {
    for (status, body) in [(200, "<html>"), (502, "bad gateway"), (404, "{}")] {
        let failure = ask_one(status, body).await.expect_err("no syncer");
        assert_eq!(failure.exit(), Exit::Dependency, "{failure}");
        assert!(failure.to_string().contains("as a syncer does"), "{failure}");
    }
}

#[tokio::test]
async fn nobody_there_is_a_missing_dependency_and_says_where() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound");
    let url = Url::parse(&format!("http://{free}")).expect("a URL");
    let failure = Client::new(connection(url)).await.expect("a client").get("/v1/status").await.expect_err("nobody");
    assert_eq!(failure.exit(), Exit::Dependency);
    assert!(failure.to_string().contains(&free.to_string()), "{failure}");
}

#[tokio::test]
async fn all_asks_every_member_and_says_what_was_done_before_a_refusal() {
    let (second, serving_second) = server(vec![(422, r#"{"error_code":"x","message":"no"}"#.to_owned())]).await;
    let (first, serving_first) = server(vec![(200, String::new()), (200, "{}".to_owned())]).await;
    let members = json!({ "members": [{ "url": first.as_str() }, { "url": second.as_str() }] }).to_string();
    let (listing, serving_listing) = server(vec![(200, members)]).await;
    let client = Client::new(Connection { all: true, ..connection(listing) }).await.expect("members");
    assert_eq!(client.bases(), [first.clone(), second]);
    let body = json!({ "a": 1 });
    let failure = client.on_each(Method::PATCH, "/v1/levers", Some(&body)).await.expect_err("the second refuses");
    assert!(
        failure.to_string().contains("done already on") && failure.to_string().contains(first.as_str()),
        "{failure}"
    );
    assert!(serving_second.await.expect("served")[0].contains(r#"{"a":1}"#));
    serving_listing.await.expect("served");
    serving_first.abort(); // scripted for one more, which must not come
}

#[tokio::test]
async fn a_block_is_lifted_where_it_is_and_nobody_else_is_asked_to() {
    let blocked = json!({ "blocks": [{ "guild": "raid", "by": "ops", "reason": null, "at": 1 }] }).to_string();
    let none = || json!({ "blocks": [] }).to_string();
    let (with, serving_with) = server(vec![(200, blocked), (200, none()), (200, none())]).await;
    let (without, serving_without) = server(vec![(200, none()), (200, none())]).await;
    let members = json!({ "members": [{ "url": without.as_str() }, { "url": with.as_str() }] }).to_string();
    let (listing, _serving) = server(vec![(200, members)]).await;
    let arguments = Blocks::parse_from(["t", "--url", listing.as_str(), "--all", "remove", "raid"]);
    blocks::run(arguments.blocks, &Output::new(Format::Json)).await.expect("lifted");
    let asked = serving_with.await.expect("served");
    assert!(asked[1].starts_with("POST /v1/guilds/raid:unblock "), "{asked:?}");
    assert!(serving_without.await.expect("served").iter().all(|asked| asked.starts_with("GET /v1/blocks ")));
}

#[tokio::test]
async fn a_wrong_ca_is_named_and_a_configuration_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let wrong = dir.path().join("wrong.pem");
    std::fs::write(&wrong, "no certificate").expect("written");
    for file in [wrong, dir.path().join("absent.pem")] {
        let url = Url::parse("https://127.0.0.1:1").expect("a URL");
        let failure = Client::new(Connection { ca: Some(file.clone()), ..connection(url) }).await.expect_err("refused");
        assert_eq!(failure.exit(), Exit::Config);
        assert!(failure.to_string().contains(file.to_str().expect("utf-8")), "{failure}");
    }
    let ftp = Url::parse("ftp://127.0.0.1").expect("a URL");
    assert_eq!(Client::new(connection(ftp)).await.expect_err("refused").exit(), Exit::Usage);
}

#[tokio::test]
async fn an_operators_token_is_sent_and_not_shown() {
    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(flatten)]
        connection: Connection,
    }
    let arguments = Arguments::try_parse_from(["trunkline", "--token", "tok-5e11"]).expect("arguments");
    assert_eq!(arguments.connection.token.expose(), "tok-5e11");
    let shown = format!("{arguments:?}");
    let client = Client::new(arguments.connection).await.expect("a client");
    assert!(!shown.contains("tok-5e11") && !format!("{client:?}").contains("tok-5e11"), "{shown}");
}
