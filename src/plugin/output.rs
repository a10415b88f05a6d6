//! Output of a verb: text, exit code, tables. Pure.

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use kube::core::Duration;
use serde::Serialize;

use super::{Exit, PluginError};

/// Text and exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Text for standard output, without the last line feed. If empty, nothing is printed.
    pub text: String,
    /// Exit code.
    pub exit: Exit,
}

impl Output {
    /// Without problems.
    pub(super) fn success(text: impl Into<String>) -> Self {
        Self { text: text.into(), exit: Exit::Success }
    }
}

/// Output format.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Format {
    /// Tables, for people.
    #[default]
    Text,
    /// JSON, for programs.
    Json,
    /// YAML, for programs and people.
    Yaml,
}

impl Format {
    /// `value` as JSON or YAML, or the text.
    pub(super) fn write(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<String, PluginError> {
        match self {
            Format::Text => Ok(text()),
            Format::Json => serde_json::to_string_pretty(value).map_err(|e| PluginError::Output(e.to_string())),
            Format::Yaml => serde_yaml_ng::to_string(value)
                .map(|t| t.trim_end().to_owned())
                .map_err(|e| PluginError::Output(e.to_string())),
        }
    }
}

/// State of one checked item.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Without problem.
    Ok,
    /// Does not exist.
    Missing,
    /// Exists, with a problem.
    Wrong,
    /// Not due yet.
    NotYet,
    /// Could not be checked.
    NotChecked,
    /// Not configured by the spec.
    NotCovered,
    /// No problem, but worth a review.
    Note,
}

impl State {
    /// Whether it has to be fixed.
    pub(super) fn is_problem(self) -> bool {
        matches!(self, State::Missing | State::Wrong)
    }

    /// As it is printed.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Missing => "missing",
            State::Wrong => "wrong",
            State::NotYet => "not yet",
            State::NotChecked => "not checked",
            State::NotCovered => "not covered",
            State::Note => "note",
        }
    }
}

/// One item that was checked.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub(super) struct CheckedItem {
    /// What was checked.
    pub(super) what: String,
    /// Its state.
    pub(super) state: State,
    /// Observed value, and the next command where there is one.
    pub(super) message: String,
}

/// A checked item.
pub(super) fn item(what: impl Into<String>, state: State, message: impl Into<String>) -> CheckedItem {
    CheckedItem { what: what.into(), state, message: message.into() }
}

/// Exit code of checked items: whether one is a problem.
pub(super) fn exit_of(items: &[CheckedItem]) -> Exit {
    if items.iter().any(|f| f.state.is_problem()) { Exit::ProblemsFound } else { Exit::Success }
}

/// Checked items as a table.
pub(super) fn items_table(items: &[CheckedItem]) -> String {
    table(
        &["STATE", "WHAT", "MESSAGE"],
        items.iter().map(|f| vec![f.state.as_str().to_owned(), f.what.clone(), f.message.clone()]),
    )
}

/// A table in the style of kubectl: no lines, two spaces between columns, no wrapping.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table.add_rows(rows.into_iter().map(|row| row.into_iter().map(one_line).collect::<Vec<_>>()));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A text in one line: several would break the row of a table.
pub(super) fn one_line(text: String) -> String {
    if text.contains('\n') { text.split_whitespace().collect::<Vec<_>>().join(" ") } else { text }
}

/// `1h30m`, `5m`, `2.5s`: as in a spec.
pub(super) fn duration(d: Duration) -> String {
    let sign = if d.is_negative() { "-" } else { "" };
    format!("{sign}{}", seconds(std::time::Duration::from(d).as_secs_f64()))
}

/// Seconds as `1h30m`, `5m`, `2.5s`. Below a minute with one decimal, unless it is 0.
pub(super) fn seconds(n: f64) -> String {
    if n < 60.0 {
        let text = format!("{n:.1}");
        return format!("{}s", text.strip_suffix(".0").unwrap_or(&text));
    }
    let mut rest = n.round() as u64;
    let mut text = String::new();
    for (unit, size) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        // A spec has no days: they are used from two of them on.
        if unit == "d" && rest < 2 * size {
            continue;
        }
        if rest >= size {
            text.push_str(&format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(0.0, "0s")]
    #[case(2.54, "2.5s")]
    #[case(59.94, "59.9s")]
    #[case(60.0, "1m")]
    #[case(5400.0, "1h30m")]
    #[case(86_400.0, "24h")]
    #[case(7.0 * 86_400.0, "7d")]
    #[case(3661.0, "1h1m1s")]
    fn spans(#[case] n: f64, #[case] text: &str) {
        assert_eq!(seconds(n), text);
    }

    #[test]
    fn a_table_is_kubectls() {
        let text = table(&["A", "B"], [vec!["x y".into(), "1\n 2".into()], vec!["z".into(), String::new()]]);
        assert_eq!(text.lines().map(str::trim_end).collect::<Vec<_>>(), ["A    B", "x y  1 2", "z"]);
    }

    #[test]
    fn only_what_has_to_be_fixed_is_a_problem() {
        let exit = |state| exit_of(&[item("a", State::Ok, ""), item("b", state, "")]);
        for fine in [State::Ok, State::NotYet, State::NotChecked, State::NotCovered, State::Note] {
            assert_eq!(exit(fine), Exit::Success, "{fine:?}");
        }
        for bad in [State::Missing, State::Wrong] {
            assert_eq!(exit(bad), Exit::ProblemsFound, "{bad:?}");
        }
    }
}
