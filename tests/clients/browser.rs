//! A real browser without a window. What a page says is read from its title, which the browser's
//! debugging port lists for every tab.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::{self, PATIENCE, Process, eventually};

/// A browser with one tab. It ends with it.
pub(crate) struct Browser {
    port: u16,
    _process: Process,
}

impl Browser {
    pub(crate) async fn open(dir: &Path, url: &str) -> Self {
        let profile = dir.join("browser");
        std::fs::create_dir_all(&profile).expect("a directory");
        let mut command = Command::new("chromium");
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(url);
        let process = Process::start(dir, "chromium", &mut command);
        let active = common::file(&profile.join("DevToolsActivePort")).await;
        let port = active.lines().next().and_then(|line| line.parse().ok()).expect("the first line is the port");
        Self { port, _process: process }
    }

    /// Waits until the tab's title is as wanted, and returns it.
    pub(crate) async fn title(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let url = format!("http://127.0.0.1:{}/json/list", self.port);
        eventually(what, PATIENCE, || async {
            let tabs: Value = reqwest::get(&url).await.ok()?.json().await.ok()?;
            let page = tabs.as_array()?.iter().find(|tab| tab["type"] == "page")?;
            page["title"].as_str().filter(|title| wanted(title)).map(str::to_owned)
        })
        .await
    }
}
