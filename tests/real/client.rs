//! Janus's client API, as much as a plain-RTP participant needs.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use syncer::drivers::JanusPlugin;
use tokio::time::Instant;

use crate::janus::API_SECRET;

/// Where to go, as a placement's endpoint says it:
/// `janus+https://host:port/janus?room=…&plugin=audiobridge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) url: String,
    pub(crate) room: String,
    pub(crate) plugin: JanusPlugin,
}

/// A session with one handle.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    http: reqwest::Client,
    session_url: String,
    handle_url: String,
}

/// Why a participant is not in the room.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

// === impl Endpoint ===

impl Endpoint {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (url, query) = text.strip_prefix("janus+")?.split_once('?')?;
        let value = |key: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
        };
        let plugin = match value("plugin")? {
            "audiobridge" => JanusPlugin::Audiobridge,
            "videoroom" => JanusPlugin::Videoroom,
            _ => return None,
        };
        Some(Self { url: url.to_owned(), room: value("room")?.to_owned(), plugin })
    }
}

// === impl Handle ===

impl Handle {
    /// Opens a session and attaches to the endpoint's plugin.
    pub(crate) async fn open(http: &reqwest::Client, endpoint: &Endpoint) -> Result<Self, Refused> {
        let created = post(http, &endpoint.url, json!({ "janus": "create" })).await?;
        let session_url = format!("{}/{}", endpoint.url, created["data"]["id"]);
        let attach = json!({ "janus": "attach", "plugin": endpoint.plugin.package() });
        let attached = post(http, &session_url, attach).await?;
        let handle_url = format!("{session_url}/{}", attached["data"]["id"]);
        Ok(Self { http: http.clone(), session_url, handle_url })
    }

    /// Joins an audio room with plain RTP at `local`; gives the address to send to.
    pub(crate) async fn join(
        &self,
        room: &str,
        pin: &str,
        name: &str,
        local: SocketAddr,
    ) -> Result<SocketAddr, Refused> {
        let rtp = json!({ "ip": local.ip().to_string(), "port": local.port(), "payload_type": 0 });
        let join = json!({ "request": "join", "room": room, "pin": pin, "id": name, "codec": "pcmu", "rtp": rtp });
        post(&self.http, &self.handle_url, json!({ "janus": "message", "body": join })).await?;
        let joined = self.event().await?;
        let rtp = &joined["rtp"];
        let port = rtp["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        let ip = rtp["ip"].as_str().and_then(|ip| ip.parse().ok());
        match (ip, port) {
            (Some(ip), Some(port)) => Ok(SocketAddr::new(ip, port)),
            _ => Err(Refused(joined.to_string())),
        }
    }

    /// Goes into a room of either plugin without any media.
    pub(crate) async fn enter(&self, endpoint: &Endpoint, pin: &str) -> Result<(), Refused> {
        let join = json!({ "request": "join", "ptype": "publisher", "room": endpoint.room, "pin": pin });
        post(&self.http, &self.handle_url, json!({ "janus": "message", "body": join })).await?;
        let joined = self.event().await?;
        let what = joined[endpoint.plugin.as_str()].as_str();
        if what == Some("joined") { Ok(()) } else { Err(Refused(joined.to_string())) }
    }

    /// The plugin's next event. Janus answers a long poll within 30 s.
    async fn event(&self) -> Result<Value, Refused> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            let url = format!("{}?maxev=1&apisecret={API_SECRET}", self.session_url);
            let mut event = read(self.http.get(url)).await?;
            if event["janus"] == "event" {
                return Ok(event["plugindata"]["data"].take());
            }
        }
        Err(Refused("no event".to_owned()))
    }

    /// Keeps the session from timing out.
    pub(crate) async fn keep_alive(&self) -> Result<(), Refused> {
        post(&self.http, &self.session_url, json!({ "janus": "keepalive" })).await.map(|_| ())
    }
}

async fn post(http: &reqwest::Client, url: &str, mut body: Value) -> Result<Value, Refused> {
    body["transaction"] = "t".into();
    body["apisecret"] = API_SECRET.into();
    read(http.post(url).body(body.to_string())).await
}

async fn read(request: reqwest::RequestBuilder) -> Result<Value, Refused> {
    let response = request.send().await.map_err(|e| Refused(e.to_string()))?;
    let bytes = response.bytes().await.map_err(|e| Refused(e.to_string()))?;
    let answer: Value = serde_json::from_slice(&bytes).map_err(|e| Refused(e.to_string()))?;
    if answer["janus"] == "error" { Err(Refused(answer["error"].to_string())) } else { Ok(answer) }
}

#[test]
fn endpoints_say_where_to_go() {
    let endpoint = Endpoint::parse("janus+https://127.0.0.1:18089/janus?room=tl~7~1.1.3~g~c&plugin=audiobridge");
    let expected = Endpoint {
        url: "https://127.0.0.1:18089/janus".to_owned(),
        room: "tl~7~1.1.3~g~c".to_owned(),
        plugin: JanusPlugin::Audiobridge,
    };
    assert_eq!(endpoint, Some(expected));
    assert_eq!(Endpoint::parse("https://127.0.0.1/media/x"), None);
}
