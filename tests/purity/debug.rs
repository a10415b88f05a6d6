//! Users and logs see texts that are written for them, not how a type is derived: nothing is shown by `Debug`.

use crate::{ONLY_TESTS, files, root};

/// Macros whose texts only developers see.
const FOR_DEVELOPERS: &[&str] = &["assert", "debug_assert", "panic", "unreachable"];

/// Numbers of the lines that show a value by `Debug`: in a text, or as a field of a log call.
fn shown_by_debug(text: &str) -> Vec<usize> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    // What the texts of the lines belong to: the last macro that was started.
    let mut macro_name = "";
    let mut found = vec![];
    for (n, line) in text[..end].lines().enumerate() {
        let line = if line.trim_start().starts_with("//") { "" } else { line };
        let mut rest = line;
        loop {
            let next_macro = rest.find("!(").into_iter().chain(rest.find("#[error(")).min();
            let (before, after) = rest.split_at(next_macro.unwrap_or(rest.len()));
            let for_developers = FOR_DEVELOPERS.iter().any(|name| macro_name.starts_with(name));
            let is_field = |part: &str| part.trim().trim_start_matches('%').starts_with('?');
            let log_field = ["trace", "debug", "info", "warn", "error"].contains(&macro_name)
                && before.split('"').next().unwrap_or_default().split(['(', ',', '=']).any(is_field);
            if !for_developers && (before.contains(":?}") || before.contains(":#?}") || log_field) {
                found.push(n + 1);
            }
            if next_macro.is_none() {
                break;
            }
            macro_name = before.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            rest = after.split_once('(').map_or("", |(_, inside)| inside);
        }
    }
    found
}

#[test]
fn nothing_is_shown_by_debug() {
    let src = root().join("src");
    let of_tests = |file: &std::path::Path| {
        file.ends_with("tests.rs") || ONLY_TESTS.iter().any(|folder| file.starts_with(src.join(folder)))
    };
    let found: Vec<String> = files(&src)
        .iter()
        .filter(|file| !of_tests(file))
        .flat_map(|file| {
            let lines = shown_by_debug(&std::fs::read_to_string(file).unwrap());
            lines.into_iter().map(|line| format!("{}:{line}", file.display())).collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "show it by Display, a text in quotes by `Quoted`:\n{}", found.join("\n"));
}

#[test]
fn a_text_by_debug_would_be_found() {
    for (text, lines) in [
        ("format!(\"{a:?}\")", vec![1]),
        ("assert!(a);\nlet x = format!(\n    \"is {:?}\", a);", vec![3]),
        ("#[error(\"after {0:?}\")]\nTimeout(Duration),", vec![1]),
        ("write!(f, \"{a:#?}\")", vec![1]),
        ("tracing::info!(?phase, \"ended\");", vec![1]),
        ("warn!(\n    pid,\n    state = ?state, \"ended\");", vec![3]),
        ("info!(state = %state, \"ended?\");\nlet a = b?;", vec![]),
        ("debug_assert!(a, \"{a:?}\"); assert_eq!(a, b, \"{a:?}\")", vec![]),
        ("// {a:?}\n#[cfg(test)]\nmod tests {\n    format!(\"{a:?}\") }", vec![]),
    ] {
        assert_eq!(shown_by_debug(text), lines, "{text}");
    }
}
