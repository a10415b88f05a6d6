//! Width: source and prose have at most 120 columns.

use crate::{File, assert_none, source, tree};

/// Most columns of a line, in characters.
const WIDTH: usize = 120;

/// Lines that are too wide: `path:line: columns`.
fn too_wide(file: &File) -> Vec<String> {
    let prose = source::prose_of_markdown(&file.text);
    let text = if file.extension() == "md" { &prose } else { &file.text };
    text.lines()
        .enumerate()
        .filter(|(_, line)| line.chars().count() > WIDTH)
        .filter(|(_, line)| file.extension() != "md" || !cannot_be_broken(line))
        .map(|(n, line)| format!("{}:{}: {} columns", file.path, n + 1, line.chars().count()))
        .collect()
}

/// A row of a table, the definition of a link, or a line of one long word; `code` is one word.
fn cannot_be_broken(line: &str) -> bool {
    let line = source::without_code_spans(line.trim_start());
    line.starts_with('|')
        || (line.starts_with('[') && line.contains("]: "))
        || line.split(' ').any(|word| word.chars().count() > WIDTH / 2)
}

#[test]
fn lines_fit_into_120_columns() {
    let found: Vec<String> =
        tree().iter().filter(|f| matches!(f.extension(), "rs" | "md")).flat_map(too_wide).collect();
    assert_none("lines are too wide", &found);
}

#[test]
fn a_line_that_is_too_wide_would_be_found() {
    let wide = "word ".repeat(30);
    for (path, text, count) in [
        ("a.rs", format!("// {wide}"), 1),
        ("a.rs", format!("let x = \"{wide}\";"), 1),
        ("a.rs", "\u{e9}".repeat(WIDTH), 0),
        ("a.md", wide.clone(), 1),
        ("a.md", format!("| {wide} |"), 0),
        ("a.md", format!("```\n{wide}\n```"), 0),
        ("a.md", format!("[x]: https://example.com/{}", "x".repeat(WIDTH)), 0),
        ("a.md", format!("See https://example.com/{}", "x".repeat(WIDTH)), 0),
    ] {
        let file = File { path: path.to_owned(), text };
        assert_eq!(too_wide(&file).len(), count, "{}", file.text);
    }
}
