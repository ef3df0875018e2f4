//! What the command prints on stdout: tables for people, JSON for scripts.

use std::io::{IsTerminal, Write, stdout};

use clap::ValueEnum;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde_json::Value;

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For scripts: what the API answered.
    Json,
}

/// Prints answers in the format that was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
    color: bool,
}

/// Whether colours were not refused (<https://no-color.org>).
pub(crate) fn color_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

// === impl Output ===

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, color: stdout().is_terminal() && color_wanted() }
    }

    /// Whether the output may be redrawn and coloured.
    pub(crate) fn is_live(&self) -> bool {
        self.format == Format::Table && stdout().is_terminal()
    }

    /// Prints `answer` as JSON, or as the table that `table` makes of it.
    pub(crate) fn show(&self, answer: &Value, table: impl FnOnce(&Value) -> Table) {
        match self.format {
            Format::Json => print(&format!("{answer:#}\n")),
            Format::Table => print(&format!("{}\n", table(answer))),
        };
    }

    /// Prints a table that only repeats what the JSON holds already.
    pub(crate) fn show_table(&self, table: impl FnOnce() -> Table) {
        if self.format == Format::Table {
            print(&format!("{}\n", table()));
        }
    }

    /// Prints a line of prose, which scripts do not want.
    pub(crate) fn say(&self, line: &str) {
        if self.format == Format::Table {
            print(&format!("{line}\n"));
        }
    }

    /// Prints one of many: a line of JSON, or the text made of it. False when nobody reads any more.
    pub(crate) fn line(&self, item: &Value, text: impl FnOnce(&Value) -> String) -> bool {
        match self.format {
            Format::Json => print(&format!("{item}\n")),
            Format::Table => print(&format!("{}\n", text(item))),
        }
    }

    /// Prints text as it is.
    pub(crate) fn text(&self, text: &str) {
        print(text);
    }

    /// Prints a report: as JSON, or as the summary made of it.
    pub(crate) fn report(&self, json: &[u8], summary: &str) {
        match self.format {
            Format::Json => print(&format!("{}\n", String::from_utf8_lossy(json))),
            Format::Table => print(summary),
        };
    }

    /// Prints `text` over the `lines` lines printed before it.
    pub(crate) fn redraw(&self, text: &str, lines: usize) {
        if lines > 0 {
            print(&format!("\u{1b}[{lines}A\u{1b}[J")); // cursor up, clear to the end of the screen
        }
        self.say(text.trim_end());
    }

    /// A table with these headings.
    pub(crate) fn table(&self, headings: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        let bold = |text: &&str| {
            let cell = Cell::new(text);
            if self.color { cell.add_attribute(Attribute::Bold) } else { cell }
        };
        table.set_header(headings.iter().map(bold));
        table
    }

    /// A cell whose colour says whether the state is good.
    pub(crate) fn state(&self, text: &str) -> Cell {
        let color = match text {
            "healthy" | "ready" | "placed" | "up" | "yes" => Color::Green,
            "dead" | "killed" | "awaiting" | "no" => Color::Red,
            _ => Color::Yellow,
        };
        let cell = Cell::new(text);
        if self.color { cell.fg(color) } else { cell }
    }
}

/// Prints. When nobody reads any more (`trunkline sfus | head`), there is nothing left to say: false.
fn print(text: &str) -> bool {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => false,
        Err(error) => {
            tracing::error!(%error, "cannot write to stdout");
            false
        }
    }
}

/// A JSON value as a person reads it: strings without quotes, nothing for null.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| format!("{name} {}", plain(value));
            fields.iter().map(field).collect::<Vec<_>>().join(", ")
        }
        Value::Number(number) => number.to_string().trim_end_matches(".0").to_owned(),
    }
}

/// The items of a list in an answer; none when there is no such list.
pub(crate) fn items<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer[name].as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_read_as_people_write_them() {
        assert_eq!(plain(&json!("a")), "a");
        assert_eq!(plain(&json!(null)), "");
        assert_eq!(plain(&json!([1, true, "x", 20.0, 0.5])), "1, yes, x, 20, 0.5");
        assert_eq!(plain(&json!({"rooms": 2, "cpu": 0.5})), "cpu 0.5, rooms 2");
    }

    #[test]
    fn a_table_names_its_columns() {
        let output = Output { format: Format::Table, color: false };
        let mut table = output.table(&["id", "verdict"]);
        table.add_row([Cell::new("a-1"), output.state("dead")]);
        let text = table.to_string();
        assert!(text.contains("verdict") && text.contains("a-1") && !text.contains('\u{1b}'), "{text}");
        assert!(items(&json!({"sfus": 3}), "sfus").is_empty());
    }
}
