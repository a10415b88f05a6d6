//! The lists of CONTRIBUTING.md, "What a change touches", are those of the tree.
//!
//! A list names an example that is there already: "Follow `Name` (`other name`)." Every file that mentions the name is
//! in the list, every file of the list mentions one of both, and what the list says is in a file is there. Where a file
//! of the list bears the example's name, the `mod.rs` that declares it is in the list, too.

use regex::Regex;

use crate::{File, assert_none, root, tree};

/// Where code, charts and documents are; files elsewhere belong to no change of behaviour.
const PARTS: &[&str] = &["src/", "tests/", "charts/", "docs/", "examples/"];

/// One kind of change.
struct Change {
    title: String,
    /// Examples, as whole words: `Task::Cleanup`.
    follow: Vec<String>,
    /// What they are called elsewhere.
    also: Vec<String>,
    rows: Vec<Row>,
}

/// Where one part of it is done.
struct Row {
    /// A file, or a folder with a slash at its end.
    path: String,
    /// What is in it.
    names: Vec<String>,
}

impl Row {
    fn covers(&self, path: &str) -> bool {
        path == self.path || (self.path.ends_with('/') && path.starts_with(&self.path))
    }
}

/// What is between backticks.
fn code_spans(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What a cell says is in the file: code, but for other files.
fn names(cell: &str) -> Vec<String> {
    code_spans(cell).into_iter().filter(|n| !root().join(n).exists()).collect()
}

fn changes(text: &str) -> Vec<Change> {
    let part = text.split("\n## ").find(|p| p.starts_with("What a change touches")).unwrap();
    part.split("\n### ").skip(1).map(change).collect()
}

fn change(section: &str) -> Change {
    let mut lines = section.lines();
    let title = lines.next().unwrap().to_owned();
    let (mut follow, mut also, mut rows) = (vec![], vec![], vec![]);
    for line in lines {
        if let Some(examples) = line.strip_prefix("Follow ") {
            let examples = examples.split(". ").next().unwrap();
            let (names, others) = examples.split_once('(').unwrap_or((examples, ""));
            (follow, also) = (code_spans(names), code_spans(others));
        } else if let Some(cells) = line.strip_prefix("| `") {
            let (first, second) = cells.split_once(" | ").unwrap();
            rows.push(Row { path: first.trim_end_matches('`').to_owned(), names: names(second) });
        }
    }
    Change { title, follow, also, rows }
}

/// All changes with their lists, and the tree in which they are done.
fn read() -> (Vec<Change>, Vec<File>) {
    let text = std::fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let mut files = tree();
    files.retain(|f| PARTS.iter().any(|p| f.path.starts_with(p)) && !f.path.starts_with("tests/habits/"));
    (changes(&text), files)
}

/// Text without case and joints: `WeekReview`, `week_review` and `week-review` are one word.
fn joined(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).flat_map(char::to_lowercase).collect()
}

/// The example without its type, joined: `Task::Cleanup` is `cleanup`.
fn stem(example: &str) -> String {
    joined(example.rsplit("::").next().unwrap_or(example))
}

#[test]
fn every_change_has_an_example_and_its_files() {
    let (changes, _) = read();
    assert!(changes.len() >= 10, "{} changes", changes.len());
    for Change { title, follow, rows, .. } in changes {
        assert!(!follow.is_empty() && rows.len() > 2, "{title}: {follow:?}, {} rows", rows.len());
    }
}

#[test]
fn what_a_list_names_is_there() {
    let (changes, files) = read();
    let mut missing = vec![];
    for Change { title, rows, .. } in &changes {
        for row in rows {
            let texts: Vec<&str> = files.iter().filter(|f| row.covers(&f.path)).map(|f| f.text.as_str()).collect();
            if texts.is_empty() {
                missing.push(format!("{title}: {}", row.path));
            }
            let absent = row.names.iter().filter(|n| !texts.iter().any(|t| t.contains(n.as_str())));
            missing.extend(absent.map(|n| format!("{title}: `{n}` in {}", row.path)));
        }
    }
    assert_none("things of CONTRIBUTING.md are not there", &missing);
}

#[test]
fn a_list_has_every_file_of_its_example() {
    let (changes, files) = read();
    let mut missing = vec![];
    for Change { title, follow, rows, .. } in &changes {
        let examples: Vec<Regex> =
            follow.iter().map(|e| Regex::new(&format!(r"\b{}\b", regex::escape(e))).unwrap()).collect();
        let mentions = files.iter().filter(|f| examples.iter().any(|e| e.is_match(&f.text)));
        let unlisted = mentions.filter(|f| !rows.iter().any(|r| r.covers(&f.path)));
        missing.extend(unlisted.map(|f| format!("{title}: {} mentions {follow:?} and is not listed", f.path)));
    }
    assert_none("files are not in their list", &missing);
}

/// The file that declares a module, and the module's name: `a/b.rs` and `a/b/mod.rs` are declared by `a/mod.rs` as `b`.
fn declared_by(path: &str) -> Option<(String, String)> {
    let module = path.strip_suffix("/mod.rs").or_else(|| path.strip_suffix(".rs"))?;
    let (folder, name) = module.rsplit_once('/')?;
    Some((format!("{folder}/mod.rs"), name.to_owned()))
}

/// Files that declare a module of the example, and are not in the list.
fn undeclared(change: &Change) -> Vec<String> {
    let stems: Vec<String> = change.follow.iter().chain(&change.also).map(|e| stem(e)).collect();
    let modules = change.rows.iter().filter_map(|row| declared_by(&row.path));
    modules
        .filter(|(_, name)| stems.iter().any(|stem| joined(name).contains(stem)))
        .filter(|(by, _)| root().join(by).exists() && !change.rows.iter().any(|row| row.covers(by)))
        .map(|(by, name)| format!("{}: {by} declares {name} and is not listed", change.title))
        .collect()
}

#[test]
fn a_list_has_the_file_that_declares_its_module() {
    let (changes, _) = read();
    assert_none("files are not in their list", &changes.iter().flat_map(undeclared).collect::<Vec<_>>());
    let mut task = changes.into_iter().find(|c| c.title == "A task").unwrap();
    task.rows.retain(|row| row.path != "src/runner/tasks/mod.rs");
    assert_eq!(undeclared(&task), ["A task: src/runner/tasks/mod.rs declares cleanup and is not listed"]);
}

#[test]
fn every_file_of_a_list_has_its_example() {
    let (changes, files) = read();
    let mut without = vec![];
    for Change { title, follow, also, rows } in &changes {
        let stems: Vec<String> = follow.iter().chain(also).map(|e| stem(e)).collect();
        for row in rows {
            let mut covered = files.iter().filter(|f| row.covers(&f.path)).map(|f| joined(&f.text));
            if !covered.any(|text| stems.iter().any(|s| text.contains(s))) {
                without.push(format!("{title}: {} does not mention {follow:?}", row.path));
            }
        }
    }
    assert_none("files are in a list whose example they do not have", &without);
}
