//! One picture per bench: bars on a logarithmic scale, with whiskers from the least to the greatest.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::stats::Summary;

/// The bars of one scenario.
#[derive(Debug)]
pub struct Group {
    /// The scenario.
    pub name: String,
    /// Who, and how much.
    pub bars: Vec<(String, Summary)>,
}

const WIDTH: i32 = 900;
const LABEL_WIDTH: i32 = 220;
const BAR_HEIGHT: i32 = 16;
const HEAD_HEIGHT: i32 = 26;
const MARGIN: i32 = 20;

/// Writes the picture.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write(path: &Path, title: &str, groups: &[Group]) -> Result<()> {
    let bars = groups.iter().map(|group| i32::try_from(group.bars.len()).unwrap_or(0) * BAR_HEIGHT + HEAD_HEIGHT);
    let height = HEAD_HEIGHT * 2 + MARGIN + bars.sum::<i32>();
    let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
    draw(path, size, title, groups).map_err(|error| anyhow!("drawing {}: {error}", path.display()))
}

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw(path: &Path, size: (u32, u32), title: &str, groups: &[Group]) -> Drawn {
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let text =
        |points: i32, at: HPos| TextStyle::from(("sans-serif", points)).color(&BLACK).pos(Pos::new(at, VPos::Center));
    root.draw(&Text::new(title.to_owned(), (MARGIN, MARGIN), text(16, HPos::Left)))?;
    let mut y = HEAD_HEIGHT * 2;
    for group in groups {
        root.draw(&Text::new(group.name.clone(), (MARGIN, y), text(13, HPos::Left)))?;
        y += HEAD_HEIGHT / 2 + 4;
        let scale = Scale::of(group);
        for (name, summary) in &group.bars {
            let color = if name.starts_with("ours") { RGBColor(31, 119, 180) } else { RGBColor(170, 170, 170) };
            let (top, bottom) = (y, y + BAR_HEIGHT - 4);
            let middle = top + (BAR_HEIGHT - 4) / 2;
            root.draw(&Text::new(name.clone(), (LABEL_WIDTH - 8, middle), text(11, HPos::Right)))?;
            let corners = [(LABEL_WIDTH, top), (scale.x(summary.median), bottom)];
            root.draw(&Rectangle::new(corners, color.filled()))?;
            let whisker = vec![(scale.x(summary.min), middle), (scale.x(summary.max), middle)];
            root.draw(&PathElement::new(whisker, RGBColor(60, 60, 60)))?;
            let label = (scale.x(summary.max) + 6, middle);
            root.draw(&Text::new(format!("{:.3}", summary.median), label, text(10, HPos::Left)))?;
            y += BAR_HEIGHT;
        }
        y += HEAD_HEIGHT / 2 - 4;
    }
    root.present()
}

/// From values to pixels, each decade as wide as the next.
struct Scale {
    low: f64,
    decades: f64,
}

/// Below this a value is drawn as this.
const LEAST: f64 = 1e-4;

// === impl Scale ===

impl Scale {
    fn of(group: &Group) -> Self {
        let values = || group.bars.iter().map(|(_, summary)| summary);
        let low = values().map(|summary| summary.min.max(LEAST)).fold(f64::INFINITY, f64::min);
        let high = values().map(|summary| summary.max.max(LEAST)).fold(LEAST, f64::max);
        let low = low.log10().floor();
        Self { low, decades: (high.log10() - low).max(1.0) }
    }

    #[allow(clippy::cast_possible_truncation)]
    fn x(&self, value: f64) -> i32 {
        let room = f64::from(WIDTH - LABEL_WIDTH - 90);
        LABEL_WIDTH + ((value.max(LEAST).log10() - self.low) / self.decades * room) as i32
    }
}
