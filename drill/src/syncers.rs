//! The operators' side of the syncers: status before and after, levers.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::Targets;
use crate::error::{Error, chain};
use crate::plan::{Budget, Budgets};
use crate::wire::SyncerStatus;

/// An operator's question is answered within this time, or not.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// The fleet may still be starting; after this long without any answer there is none.
const START_MAX: Duration = Duration::from_secs(15);
/// Between two attempts to find a syncer at the start.
const START_RETRY: Duration = Duration::from_millis(250);

/// The syncers, as an operator sees them.
#[derive(Debug)]
pub(crate) struct Syncers {
    urls: Vec<String>,
    token: String,
    client: reqwest::Client,
    first: Mutex<BTreeMap<String, SyncerStatus>>,
    last: Mutex<BTreeMap<String, SyncerStatus>>,
    /// Levers as they were before the drill changed them, by syncer.
    levers: Mutex<BTreeMap<String, serde_json::Map<String, Value>>>,
}

// === impl Syncers ===

impl Syncers {
    pub(crate) fn new(targets: &Targets, client: reqwest::Client) -> Self {
        Self {
            urls: targets.syncers.clone(),
            token: targets.operator_token.clone().unwrap_or_else(|| "drill-operator".to_owned()),
            client,
            first: Mutex::default(),
            last: Mutex::default(),
            levers: Mutex::default(),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, String> {
        let response = request.bearer_auth(&self.token).timeout(ANSWER_MAX).send().await.map_err(|e| chain(&e))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|e| chain(&e))?;
        if !status.is_success() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
        }
        serde_json::from_slice(&body).map_err(|e| format!("unexpected answer: {e}"))
    }

    /// Waits until some syncer answers and keeps the counters to compare with at the end.
    pub(crate) async fn find(&self) -> Result<(), Error> {
        let started = tokio::time::Instant::now();
        loop {
            let Err(error) = self.poll().await else { return Ok(()) };
            let text = error.to_string();
            if text.contains("invalid peer certificate") {
                return Err(Error::ca(format!("it did not sign the certificate: {text}")));
            }
            if tokio::time::Instant::now().saturating_duration_since(started) >= START_MAX {
                return Err(error);
            }
            tokio::time::sleep(START_RETRY).await;
        }
    }

    /// Reads every syncer's status; an error only when none answers.
    pub(crate) async fn poll(&self) -> Result<(), Error> {
        let asked = self.urls.iter().map(|url| async move {
            (url, self.ask::<SyncerStatus>(self.client.get(format!("{url}/v1/status"))).await)
        });
        let mut failure = None;
        let mut found = false;
        for (url, answer) in join_all(asked).await {
            match answer {
                Ok(status) => {
                    found = true;
                    self.first.lock().entry(url.clone()).or_insert_with(|| status.clone());
                    self.last.lock().insert(url.clone(), status);
                }
                Err(reason) => failure = Some(Error::unreachable(url, reason)),
            }
        }
        match failure {
            Some(error) if !found => Err(error),
            _ => Ok(()),
        }
    }

    /// What each syncer said last.
    pub(crate) fn statuses(&self) -> Vec<SyncerStatus> {
        self.last.lock().values().cloned().collect()
    }

    /// Sum over the syncers of what was added since the start.
    pub(crate) fn added(&self, of: impl Fn(&SyncerStatus) -> u64) -> u64 {
        let first = self.first.lock();
        let last = self.last.lock();
        let added = |(url, now): (&String, &SyncerStatus)| {
            let before = first.get(url).map_or(0, &of);
            // A restarted syncer counts from zero again.
            of(now).checked_sub(before).unwrap_or_else(|| of(now))
        };
        last.iter().map(added).sum()
    }

    /// Placement attempts since the start, and first attempts among them.
    pub(crate) fn attempts(&self) -> (u64, u64) {
        (self.added(|status| status.attempts_total), self.added(|status| status.first_attempts_total))
    }

    /// Sets levers on every syncer, and remembers what they were.
    pub(crate) async fn set_levers(&self, levers: &serde_json::Map<String, Value>) -> Result<(), Error> {
        for url in &self.urls {
            let before = self.ask::<Value>(self.client.get(format!("{url}/v1/levers"))).await.unwrap_or_default();
            self.set_levers_of(url, levers).await?;
            let mut kept = self.levers.lock();
            let kept = kept.entry(url.clone()).or_default();
            for (name, value) in levers.keys().filter_map(|name| Some((name, lever_value(&before, name)?))) {
                kept.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        Ok(())
    }

    /// Sets the levers back to what they were before the drill.
    pub(crate) async fn restore_levers(&self) -> Result<(), Error> {
        let kept = std::mem::take(&mut *self.levers.lock());
        for (url, levers) in &kept {
            self.set_levers_of(url, levers).await?;
        }
        Ok(())
    }

    async fn set_levers_of(&self, url: &str, levers: &serde_json::Map<String, Value>) -> Result<(), Error> {
        let request = self.client.patch(format!("{url}/v1/levers")).json(levers);
        self.ask::<Value>(request).await.map(drop).map_err(|reason| Error::levers(url, reason))
    }

    /// The placement budgets that the levers show, under the values that the plan gives itself.
    pub(crate) async fn budgets(&self, plan: &Budgets) -> Result<Budgets, Error> {
        if !plan.from_levers {
            return Ok(*plan);
        }
        let mut failure = Error::unreachable("", "no syncer");
        for url in &self.urls {
            match self.ask::<Value>(self.client.get(format!("{url}/v1/levers"))).await {
                Ok(answer) => return Ok(budgets_of(&answer, plan)),
                Err(reason) => failure = Error::unreachable(url, reason),
            }
        }
        Err(failure)
    }

    /// The keys that every syncer signs session tokens with, in one document.
    pub(crate) async fn jwks(&self) -> Result<Value, Error> {
        let mut keys = Vec::new();
        for url in &self.urls {
            let request = self.client.get(format!("{url}/.well-known/jwks.json"));
            let answer = self.ask::<Value>(request).await.map_err(|reason| Error::unreachable(url, reason))?;
            for key in answer["keys"].as_array().into_iter().flatten() {
                if !keys.contains(key) {
                    keys.push(key.clone());
                }
            }
        }
        Ok(serde_json::json!({ "keys": keys }))
    }

    /// Regions of the SFUs in the catalogue.
    pub(crate) async fn regions(&self) -> Vec<String> {
        for url in &self.urls {
            if let Ok(answer) = self.ask::<Value>(self.client.get(format!("{url}/v1/sfus"))).await {
                let sfus = answer["sfus"].as_array().cloned().unwrap_or_default();
                return sfus.iter().filter_map(|sfu| sfu["region"].as_str().map(str::to_owned)).collect();
            }
        }
        Vec::new()
    }

    /// What the syncers say of one call: for naming what went wrong.
    pub(crate) async fn call(&self, guild: &str, call: &str) -> String {
        for url in &self.urls {
            let request = self.client.get(format!("{url}/v1/guilds/{guild}/calls/{call}"));
            if let Ok(answer) = self.ask::<Value>(request).await {
                return answer.to_string();
            }
        }
        "no syncer knows it".to_owned()
    }
}

/// The value of one lever in an answer of `GET /v1/levers`.
fn lever_value<'a>(answer: &'a Value, name: &str) -> Option<&'a Value> {
    answer["levers"].as_array()?.iter().find(|lever| lever["name"] == name).map(|lever| &lever["value"])
}

fn budgets_of(levers: &Value, plan: &Budgets) -> Budgets {
    let value = |name: String| lever_value(levers, &name)?.as_f64();
    let budget = |level: &str| {
        let rate = value(format!("placement.{level}.rate"))?;
        let burst = value(format!("placement.{level}.burst"))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a burst is a small count")]
        (rate > 0.0).then_some(Budget { rate, burst: burst.max(0.0) as u32 })
    };
    Budgets {
        sfu: plan.sfu.or_else(|| budget("sfu")),
        region: plan.region.or_else(|| budget("region")),
        overall: plan.overall.or_else(|| budget("overall")),
        ..*plan
    }
}

/// A ratio of counts.
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of a drill are far below 2^53")]
    let ratio = part as f64 / whole as f64;
    ratio
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn budgets_come_from_the_levers_unless_the_plan_says_otherwise() {
        let levers = json!({"levers": [
            {"name": "placement.sfu.rate", "value": 20.0}, {"name": "placement.sfu.burst", "value": 15},
            {"name": "placement.overall.rate", "value": 400.0}, {"name": "placement.overall.burst", "value": 100},
        ]});
        let own = Budget { rate: 1.0, burst: 2 };
        let plan = Budgets { from_levers: true, sfu: None, region: None, overall: Some(own), slack_ms: 5 };
        let budgets = budgets_of(&levers, &plan);
        assert_eq!(budgets.sfu, Some(Budget { rate: 20.0, burst: 15 }));
        assert_eq!((budgets.region, budgets.overall, budgets.slack_ms), (None, Some(own), 5));
    }
}
