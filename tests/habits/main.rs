//! The project's habits: width of lines, words, and what CONTRIBUTING.md says is where. Reads files; needs no server.

#![allow(clippy::unwrap_used)]

mod compiler;
mod contributing;
mod lines;
mod links;
mod source;
mod versions;
mod words;

use std::path::{Path, PathBuf};

/// Folders that hold nothing written by hand.
const SKIPPED: &[&str] =
    &[".git", "target", "dist", "crds", "manifests", "charts/credit-migration-operator/files/crds"];

/// A file of the project.
struct File {
    /// Relative to the project's root, with slashes.
    path: String,
    text: String,
}

impl File {
    fn extension(&self) -> &str {
        Path::new(&self.path).extension().and_then(|e| e.to_str()).unwrap_or_default()
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file of the project, but for what is generated or built.
fn tree() -> Vec<File> {
    let mut found = vec![];
    walk(&root(), &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 200, "only {} files: where is the project?", found.len());
    found
}

fn walk(folder: &Path, found: &mut Vec<File>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let full = entry.unwrap().path();
        let path = full.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        if full.is_dir() {
            if !SKIPPED.contains(&path.as_str()) && !path.ends_with("/target") {
                walk(&full, found);
            }
        } else if let Ok(text) = std::fs::read_to_string(&full) {
            found.push(File { path, text });
        }
    }
}

/// Fails with all that was found, one per line.
fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{} {what}:\n{}", found.len(), found.join("\n"));
}
