//! What must stay pure stays pure, files stay small, and generated files are those of the types.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// Longest source file, in lines.
const LONGEST: usize = 600;

/// Mentions that make a module impure: a client, a runtime, a clock, randomness, I/O.
const IMPURE: &[&str] = &[
    "kube::Client",
    "client::Client",
    "kube::Api",
    "tokio",
    "Timestamp::now",
    "SystemTime",
    "Instant::now",
    "telemetry::now",
    "fastrand",
    "std::fs",
    "std::net",
    "std::env",
    "async fn",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push(path);
        }
    }
    all.sort();
    all
}

/// The code before the file's own test module, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().enumerate().map(|(n, line)| (n + 1, line.split("//").next().unwrap_or_default()))
}

/// Lines that name something impure: `line: text`.
fn impurities(text: &str) -> Vec<String> {
    code(text)
        .filter(|(_, line)| {
            IMPURE.iter().any(|word| line.contains(word))
                || (line.contains("kube::{") && (line.contains("Client") || line.contains("Api,")))
        })
        .map(|(n, line)| format!("{n}: {}", line.trim()))
        .collect()
}

#[test]
fn the_machine_is_pure() {
    let only_tests = [root().join("src/machine/tests"), root().join("src/machine/simulation")];
    let mut pure = files(&root().join("src/machine"));
    pure.retain(|f| !only_tests.iter().any(|t| f.starts_with(t)));
    pure.extend(files(&root().join("src/api")));
    pure.push(root().join("src/controller/jobs.rs"));
    pure.extend(files(&root().join("src/controller/jobs")));
    assert!(pure.len() > 15, "the modules have moved: {pure:?}");
    let found: Vec<String> = pure
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            impurities(&text).into_iter().map(|l| format!("{}:{l}", file.display())).collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "not pure:\n{}", found.join("\n"));
}

#[test]
fn impurity_would_be_found() {
    for line in [
        "use kube::Client;",
        "use kube::{Api, Client};",
        "let now = jiff::Timestamp::now();",
        "    let now = std::time::SystemTime::now();",
        "tokio::time::sleep(x).await;",
        "pub async fn look() {}",
    ] {
        assert_eq!(impurities(line).len(), 1, "{line}");
    }
    for line in
        ["// tokio is not used here", "use kube::{Resource, ResourceExt};", "#[cfg(test)]\nmod tests { use tokio; }"]
    {
        assert!(impurities(line).is_empty(), "{line}");
    }
}

#[test]
fn files_are_small() {
    let long: Vec<String> = files(&root().join("src"))
        .iter()
        .map(|file| (file, std::fs::read_to_string(file).unwrap().lines().count()))
        .filter(|(_, n)| *n >= LONGEST)
        .map(|(file, n)| format!("{}: {n} lines (limit {LONGEST})", file.display()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn crds_are_those_of_the_types() {
    let path = root().join("crds/creditmigration.io.yaml");
    let wanted = credit_migration::api::crds_yaml().unwrap();
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(
        found == wanted,
        "{} differs from the types; next: cargo run -q -- crd >crds/creditmigration.io.yaml && charts/generate",
        path.display()
    );
}

#[test]
fn crds_hold_no_format_that_the_api_server_does_not_know() {
    // From k8s.io/apiextensions-apiserver, pkg/apiserver/validation/formats.go, and the formats of numbers of OpenAPI v3.
    let known = ["int32", "int64", "float", "double", "date-time", "date", "duration", "uri", "byte", "password"];
    let yaml = credit_migration::api::crds_yaml().unwrap();
    let unknown: Vec<&str> =
        yaml.lines().filter_map(|l| l.trim().strip_prefix("format: ")).filter(|f| !known.contains(f)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
