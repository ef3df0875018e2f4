//! What a bench leaves behind: a table on the terminal, JSON, verdicts, a plot.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use comfy_table::{ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};

use crate::stats::{Figure, Summary};
use crate::{machine, plot};

/// Everything one run of a bench measured.
#[derive(Debug)]
pub struct Report {
    bench: String,
    load_before: String,
    versions: String,
    samples: BTreeMap<Key, Vec<f64>>,
    units: BTreeMap<String, &'static str>,
    /// Scenarios, contestants and metrics in the order of their first mention.
    seen: Vec<Key>,
    verdicts: Vec<Verdict>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    scenario: String,
    contestant: String,
    metric: String,
}

/// A bar, and whether it was met.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// The scenario.
    pub scenario: String,
    /// What is compared, and the most that the ratio may be.
    pub bar: String,
    /// Ours to theirs: see [`Figure::ratio`].
    pub ratio: f64,
    /// Whether the ratio is within the bar.
    pub met: bool,
}

/// The file's schema.
#[derive(Debug, Serialize, Deserialize)]
pub struct Document {
    /// Which bench.
    pub bench: String,
    /// The commit under test.
    pub commit: String,
    /// Where it ran.
    pub machine: String,
    /// The contestants' versions.
    pub versions: String,
    /// The figures.
    pub rows: Vec<Row>,
    /// The bars.
    pub bars: Vec<Verdict>,
}

/// One figure.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// The scenario.
    pub scenario: String,
    /// Who.
    pub contestant: String,
    /// What.
    pub metric: String,
    /// In which unit.
    pub unit: String,
    /// Over the rounds.
    pub median: f64,
    /// Over the rounds.
    pub min: f64,
    /// Over the rounds.
    pub max: f64,
    /// In the order of the rounds.
    #[serde(default)]
    pub rounds: Vec<f64>,
}

// === impl Report ===

impl Report {
    /// An empty report. `versions` names the contestants' versions.
    #[must_use]
    pub fn new(bench: &str, versions: &str) -> Self {
        Self {
            bench: bench.to_owned(),
            load_before: machine::load(),
            versions: versions.to_owned(),
            samples: BTreeMap::new(),
            units: BTreeMap::new(),
            seen: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    /// Adds what one round measured.
    pub fn add(&mut self, scenario: &str, contestant: &str, metric: &str, unit: &'static str, value: f64) {
        let key = Key { scenario: scenario.to_owned(), contestant: contestant.to_owned(), metric: metric.to_owned() };
        self.units.entry(metric.to_owned()).or_insert(unit);
        if !self.samples.contains_key(&key) {
            self.seen.push(key.clone());
        }
        self.samples.entry(key).or_default().push(value);
    }

    /// A figure over the rounds so far.
    #[must_use]
    pub fn summary(&self, scenario: &str, contestant: &str, metric: &str) -> Option<Summary> {
        Summary::of(self.values(scenario, contestant, metric)?)
    }

    /// The median of a figure, to be compared with what was not measured in the same rounds.
    #[must_use]
    pub fn median(&self, scenario: &str, contestant: &str, metric: &str) -> Option<f64> {
        self.summary(scenario, contestant, metric).map(|summary| summary.median)
    }

    /// A figure, round by round.
    #[must_use]
    pub fn figure(&self, scenario: &str, contestant: &str, metric: &str) -> Option<Figure> {
        Figure::of(self.values(scenario, contestant, metric)?)
    }

    /// The figure with the least median of a metric among some contestants.
    #[must_use]
    pub fn best(&self, scenario: &str, contestants: &[&str], metric: &str) -> Option<Figure> {
        let figures = contestants.iter().filter_map(|name| self.figure(scenario, name, metric));
        figures.min_by(|one, other| one.median().total_cmp(&other.median()))
    }

    fn values(&self, scenario: &str, contestant: &str, metric: &str) -> Option<&[f64]> {
        let key = Key { scenario: scenario.to_owned(), contestant: contestant.to_owned(), metric: metric.to_owned() };
        self.samples.get(&key).map(Vec::as_slice)
    }

    /// Judges the ratio of `ours` to `theirs` against the most it may be. Nothing is said when a side was not measured.
    pub fn judge(
        &mut self,
        scenario: &str,
        what: &str,
        ours: Option<impl Into<Figure>>,
        theirs: Option<impl Into<Figure>>,
        most: f64,
    ) {
        let (Some(ours), Some(theirs)) = (ours, theirs) else { return };
        let ratio = ours.into().ratio(&theirs.into());
        let bar = format!("{what} ≤ {}", short(most));
        self.verdicts.push(Verdict { scenario: scenario.to_owned(), bar, ratio, met: ratio <= most });
    }

    /// Prints the tables and verdicts, and writes them, JSON and plot next to each other.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub fn finish(&self, plotted: &str) -> Result<()> {
        let text = self.text();
        println!("\n{text}");
        self.write(&text, plotted)
    }

    /// The tables and verdicts as Markdown.
    fn text(&self) -> String {
        let mut text = format!(
            "# {}: commit {}\n\n{}; load before {}, after {}\n\nversions: {}\n",
            self.bench,
            machine::commit(),
            machine::describe(),
            self.load_before,
            machine::load(),
            self.versions
        );
        for scenario in self.scenarios() {
            text += &format!("\n## {scenario}\n\n{}\n", self.table(&scenario));
        }
        let met = self.verdicts.iter().filter(|verdict| verdict.met).count();
        text += &format!("\n## bars\n\n{met} of {} bars met.\n\n", self.verdicts.len());
        for verdict in &self.verdicts {
            let word = if verdict.met { "met" } else { "**not met**" };
            text += &format!("- {word}, {}: {} (ratio {:.3})\n", verdict.scenario, verdict.bar, verdict.ratio);
        }
        text
    }

    fn write(&self, text: &str, plotted: &str) -> Result<()> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
        let dir = target.join("bench");
        fs::create_dir_all(&dir).context("making the directory of results")?;
        fs::write(dir.join(format!("{}.md", self.bench)), text).context("writing the tables")?;
        let json = dir.join(format!("{}.json", self.bench));
        fs::write(&json, serde_json::to_vec_pretty(&self.document())?).context("writing results")?;
        let groups = self
            .scenarios()
            .into_iter()
            .map(|scenario| {
                let bars = self
                    .contestants(&scenario)
                    .into_iter()
                    .filter_map(|name| Some((name.clone(), self.summary(&scenario, &name, plotted)?)))
                    .collect();
                plot::Group { name: scenario, bars }
            })
            .filter(|group: &plot::Group| !group.bars.is_empty())
            .collect::<Vec<_>>();
        let unit = self.units.get(plotted).copied().unwrap_or_default();
        let svg = dir.join(format!("{}.svg", self.bench));
        plot::write(&svg, &format!("{}: {plotted}, {unit} (less is better)", self.bench), &groups)?;
        println!("written: {}, {} and the tables beside them", json.display(), svg.display());
        Ok(())
    }

    fn document(&self) -> Document {
        let rows = self.seen.iter().filter_map(|key| {
            let rounds = self.samples.get(key)?.clone();
            let Summary { median, min, max } = Summary::of(&rounds)?;
            let Key { scenario, contestant, metric } = key.clone();
            let unit = self.units.get(&metric).copied().unwrap_or_default().to_owned();
            Some(Row { scenario, contestant, metric, unit, median, min, max, rounds })
        });
        let machine = format!("{}; load before {}", machine::describe(), self.load_before);
        Document {
            bench: self.bench.clone(),
            commit: machine::commit(),
            machine,
            versions: self.versions.clone(),
            rows: rows.collect(),
            bars: self.verdicts.clone(),
        }
    }

    fn scenarios(&self) -> Vec<String> {
        unique(self.seen.iter().map(|key| &key.scenario))
    }

    fn contestants(&self, scenario: &str) -> Vec<String> {
        let mut names = unique(self.seen.iter().filter(|key| key.scenario == scenario).map(|key| &key.contestant));
        names.sort();
        names
    }

    fn table(&self, scenario: &str) -> String {
        let metrics = unique(self.seen.iter().filter(|key| key.scenario == scenario).map(|key| &key.metric));
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
        let heads =
            metrics.iter().map(|metric| format!("{metric} {}", self.units.get(metric).copied().unwrap_or_default()));
        table.set_header(std::iter::once("contestant".to_owned()).chain(heads));
        for name in self.contestants(scenario) {
            let cells = metrics.iter().map(|metric| match self.summary(scenario, &name, metric) {
                Some(Summary { median, min, max }) => format!("{} ({}–{})", short(median), short(min), short(max)),
                None => "–".to_owned(),
            });
            table.add_row(std::iter::once(name.clone()).chain(cells));
        }
        table.to_string()
    }
}

/// Three digits are what such a machine can tell.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for name in names {
        if !list.contains(name) {
            list.push(name.clone());
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_compares_round_by_round_with_the_best_by_its_median() {
        let mut report = Report::new("test", "");
        // The worse one is better in the round in which the machine was slow for the others.
        for (ours, theirs, worse) in [(1.0, 2.0, 4.0), (9.0, 12.0, 4.0), (1.5, 2.0, 4.0)] {
            report.add("s", "ours", "drain", "ms", ours);
            report.add("s", "theirs", "drain", "ms", theirs);
            report.add("s", "worse", "drain", "ms", worse);
        }
        let (ours, theirs) =
            (report.figure("s", "ours", "drain"), report.best("s", &["worse", "theirs", "absent"], "drain"));
        report.judge("s", "drain", ours.clone(), theirs, 0.8);
        report.judge("s", "drain", ours.clone(), None::<Figure>, 0.8);
        report.judge("s", "drain", ours, Some(1.0), 0.8);
        let verdicts: Vec<_> = report.verdicts.iter().map(|verdict| (verdict.ratio, verdict.met)).collect();
        assert_eq!(verdicts, [(0.75, true), (1.5, false)]);
        let rows = report.document().rows;
        assert_eq!((rows.len(), rows[0].median, rows[0].rounds.as_slice()), (3, 1.5, [1.0, 9.0, 1.5].as_slice()));
    }
}
