//! Documents lead to what is there: links, headings, files and tests.

use regex::Regex;

use crate::{
    File, assert_none, root,
    source::{pieces_of_rust, prose_of_markdown},
    tree,
};

/// Anchor of a heading, as forges make it.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn anchors(text: &str) -> Vec<String> {
    prose_of_markdown(text)
        .lines()
        .filter(|l| l.starts_with('#'))
        .map(|l| anchor(l.trim_start_matches('#').trim()))
        .collect()
}

/// Links of a document that lead nowhere.
fn dead_links(file: &File) -> Vec<String> {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let folder = root().join(&file.path).parent().unwrap().to_owned();
    let prose = prose_of_markdown(&file.text);
    let targets = link.captures_iter(&prose).map(|c| c[1].to_owned());
    targets
        .filter(|t| !t.contains("://"))
        .filter(|target| {
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let text = match path {
                "" => Some(file.text.clone()),
                _ if folder.join(path).is_dir() => Some(String::new()),
                _ => std::fs::read_to_string(folder.join(path)).ok(),
            };
            !text.is_some_and(|t| heading.is_empty() || anchors(&t).iter().any(|a| a == heading))
        })
        .map(|target| format!("{}: {target}", file.path))
        .collect()
}

/// What is named between backticks and looks like a file of this project: `machine/notices.rs`, `tests/run`.
fn named_files(text: &str) -> Vec<String> {
    let path =
        Regex::new(r"`((?:src|tests|docs|charts|examples|crds|manifests|\.ci)/[A-Za-z0-9_./-]*|[a-z0-9_/-]+\.rs)`");
    path.unwrap().captures_iter(text).map(|c| c[1].to_owned()).collect()
}

fn is_there(name: &str, files: &[File]) -> bool {
    let wanted = format!("/{}", name.trim_end_matches('/'));
    root().join(name).exists()
        || files.iter().any(|f| {
            let path = format!("/{}", f.path);
            path.ends_with(&wanted) || (!name.ends_with(".rs") && path.contains(&format!("{wanted}/")))
        })
}

fn comments_of(file: &File) -> String {
    match file.extension() {
        "md" => prose_of_markdown(&file.text),
        _ => pieces_of_rust(&file.text).iter().filter(|p| !p.is_code).map(|p| format!("{}\n", p.text)).collect(),
    }
}

#[test]
fn links_lead_somewhere() {
    let dead: Vec<String> = tree().iter().filter(|f| f.extension() == "md").flat_map(dead_links).collect();
    assert_none("links are dead", &dead);
}

#[test]
fn files_that_are_named_are_there() {
    let files = tree();
    let mut gone = vec![];
    for file in files.iter().filter(|f| matches!(f.extension(), "md" | "rs") && !f.path.starts_with("tests/habits/")) {
        let names = named_files(&comments_of(file)).into_iter().filter(|n| !is_there(n, &files));
        gone.extend(names.map(|n| format!("{}: {n}", file.path)));
    }
    assert_none("files are named that are not there", &gone);
}

/// docs/architecture.md and docs/checklist.md say for each guarantee, and for each line, which tests show it.
#[test]
fn tests_that_documents_name_are_there() {
    let files = tree();
    let name = Regex::new("`([a-z0-9]+(?:_[a-z0-9]+){3,})`").unwrap();
    let is_test = |n: &str| files.iter().any(|f| f.extension() == "rs" && f.text.contains(&format!("fn {n}(")));
    for document in ["docs/architecture.md", "docs/checklist.md"] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        let mut named: Vec<String> = name.captures_iter(&text).map(|c| c[1].to_owned()).collect();
        named.retain(|n| !n.starts_with("pg_") && !n.starts_with("credit_migration_"));
        assert!(named.len() > 20, "{document}: {named:?}");
        let gone: Vec<String> = named.into_iter().filter(|n| !is_test(n)).map(|n| format!("{document}: {n}")).collect();
        assert_none("tests are named that are not there", &gone);
    }
}
