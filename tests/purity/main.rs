//! What must stay pure stays pure, imports go one way, files stay small, and generated files are those of the types.

#![allow(clippy::unwrap_used)]

mod debug;
mod dependencies;
mod imports;
mod logs;
#[allow(dead_code)]
#[path = "../habits/source.rs"]
mod source;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use imports::Crate;

/// Longest source file, in lines.
const LONGEST: usize = 600;

/// What each module may import: a top module of others, a folder inside of one of its siblings there.
const ARROWS: &[(&str, &[&str])] = &[
    ("shared", &[]),
    ("api", &["shared"]),
    ("machine", &["api", "shared"]),
    ("controller", &["machine", "api", "shared", "telemetry"]),
    ("runner", &["api", "shared", "telemetry"]),
    ("plugin", &["machine", "api", "shared", "telemetry"]),
    ("telemetry", &["shared"]),
    ("controller/build", &[]),
    ("runner/tasks", &["checks", "database", "clients", "report", "context", "settings", "failure"]),
    ("runner/tasks/backup", &[]),
    ("runner/tasks/cleanup", &[]),
    ("runner/tasks/code_backup", &[]),
    ("runner/tasks/export_key_users", &[]),
    ("runner/tasks/findings", &[]),
    ("runner/tasks/follow_up", &[]),
    ("runner/tasks/notify", &["findings"]),
    ("runner/tasks/preflight", &["code_backup", "findings", "notify"]),
    ("runner/tasks/rehearse", &[]),
    ("runner/tasks/validate", &[]),
    ("runner/tasks/verify_backup", &[]),
    ("runner/tasks/window", &["notify"]),
    ("runner/checks", &["database", "clients", "report", "context", "settings", "failure"]),
    ("runner/database", &["clients", "failure"]),
    ("runner/clients", &["failure"]),
    ("runner/report", &["clients", "failure"]),
    ("plugin/inspect", &["output", "error", "commands"]),
];

/// Folders without client, runtime, clock, randomness and I/O; and those inside of them that only tests have.
const PURE: &[&str] = &["shared", "api", "machine", "controller/build"];
const ONLY_TESTS: &[&str] = &["machine/tests", "machine/simulation", "controller/build/tests.rs"];

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

/// The folders below `src` that hold modules, however deep.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("src/bin") {
            all.extend(folders(&path));
            if files(&path).iter().any(|f| f.parent() == Some(&path)) {
                all.push(path);
            }
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

/// The crate's modules, read from `src`.
fn source_tree() -> Crate {
    let src = root().join("src");
    let mut all = Crate::default();
    for file in files(&src) {
        // The programs are crates of their own.
        let name = file.strip_prefix(&src).unwrap();
        if name != Path::new("main.rs") && !name.starts_with("bin") {
            all.add(name, &std::fs::read_to_string(&file).unwrap());
        }
    }
    all
}

#[test]
fn imports_go_one_way() {
    let all = source_tree();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(from, _)| *from).filter(|from| !from.contains('/')).collect();
    let there: BTreeSet<String> = all.top().into_iter().collect();
    assert_eq!(there.iter().map(String::as_str).collect::<BTreeSet<_>>(), known, "a module without a line in ARROWS");
    let found: Vec<String> = ARROWS.iter().flat_map(|(from, allowed)| all.forbidden(from, allowed)).collect();
    assert!(found.is_empty(), "imports against the arrows:\n{}", found.join("\n"));
}

#[test]
fn a_wrong_import_would_be_found() {
    for (file, text) in [
        ("api/mod.rs", "use crate::machine::decide;"),
        ("api/x.rs", "use crate::{\n    shared::{time, sql},\n    machine::{self, steps::FORWARD as ALL},\n};"),
        ("api/x/y.rs", "fn f() -> bool { super::super::super::machine::decide() }"),
        ("api/x.rs", "#[cfg(test)]\nmod tests {\n    use crate::machine::simulation;\n}"),
        ("api/x.rs", "mod inner { use super::super::super::machine; }"),
        ("api/x.rs", "// a \"\nconst C: char = '\\''; const R: &str = r#\"\"{\"#; use crate::machine::decide;"),
    ] {
        let mut all = Crate::default();
        all.add(Path::new("machine/mod.rs"), "pub fn decide() {}");
        all.add(Path::new("shared/mod.rs"), "");
        all.add(Path::new(file), text);
        assert!(!all.forbidden("api", &["shared"]).is_empty(), "{text}");
    }
    for text in
        ["// use crate::machine;", "const T: &str = \"crate::machine\";", "use crate::shared::time; use serde::de;"]
    {
        let mut all = Crate::default();
        all.add(Path::new("machine/mod.rs"), "");
        all.add(Path::new("shared/mod.rs"), "");
        all.add(Path::new("api/x.rs"), text);
        assert_eq!(all.forbidden("api", &["shared"]), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn modules_of_a_folder_form_no_circle() {
    let found = source_tree().circles();
    assert!(found.is_empty(), "circles:\n{}", found.join("\n"));
}

#[test]
fn a_circle_would_be_found() {
    let circles = |files: &[(&str, &str)]| {
        let mut all = Crate::default();
        for (file, text) in files {
            all.add(Path::new(file), text);
        }
        all.circles()
    };
    let a = ("x/a.rs", "use super::{b, Shared}; pub struct A;");
    let parent = ("x/mod.rs", "mod a; mod b; mod c; pub use a::*; pub struct Shared;");
    assert_eq!(circles(&[parent, a, ("x/b.rs", "use super::Shared;")]), Vec::<String>::new());
    assert_eq!(circles(&[parent, a, ("x/b.rs", "use crate::x::a::A;")]), ["x: a -> b -> a"]);
    // By an item that the parent passes on, by way of a third one, and from a folder.
    assert_eq!(circles(&[parent, a, ("x/b.rs", "use super::A;")]), ["x: a -> b -> a"]);
    let through = [parent, a, ("x/b.rs", "use super::c;"), ("x/c/d.rs", "use super::super::a::A;")];
    assert_eq!(circles(&through), ["x: a -> b -> c -> a"]);
    // What tests name makes none.
    assert_eq!(
        circles(&[parent, a, ("x/b.rs", "#[cfg(test)]\nmod tests { use super::super::A; }")]),
        Vec::<String>::new()
    );
    let only_tests = ("x/mod.rs", "mod a; #[cfg(test)]\nmod b;");
    assert_eq!(circles(&[only_tests, a, ("x/b.rs", "use super::a::A;")]), Vec::<String>::new());
}

#[test]
fn a_folder_has_one_head() {
    let src = root().join("src");
    let mut found = vec![];
    for folder in folders(&src) {
        let name = folder.strip_prefix(&src).unwrap().display().to_string();
        let head = std::fs::read_to_string(folder.join("mod.rs")).unwrap_or_default();
        if !head.starts_with("//! ") {
            found.push(format!("{name} has no mod.rs that says what lives there"));
        }
        if folder.with_extension("rs").exists() {
            found.push(format!("{name}.rs is next to {name}/: make it {name}/mod.rs"));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn what_is_pure_stays_pure() {
    let src = root().join("src");
    let mut pure: Vec<PathBuf> = PURE.iter().flat_map(|folder| files(&src.join(folder))).collect();
    pure.retain(|f| !ONLY_TESTS.iter().any(|t| f.starts_with(src.join(t))));
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

/// Functions that change what they answer about: `fn x(&mut self) -> bool`.
fn questions_that_act(text: &str) -> Vec<String> {
    let code: String = code(text).map(|(_, line)| format!("{line}\n")).collect();
    let signatures = code.split("fn ").skip(1).filter_map(|part| part.split('{').next());
    signatures
        .filter(|s| s.contains("&mut self") && s.trim_end().ends_with("-> bool"))
        .map(|s| s.split('(').next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn a_function_of_the_machine_asks_or_acts() {
    let src = root().join("src");
    let mut machine = files(&src.join("machine"));
    machine.retain(|f| !ONLY_TESTS.iter().any(|t| f.starts_with(src.join(t))));
    let found: Vec<String> = machine
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            questions_that_act(&text).into_iter().map(|name| format!("{}: {name}", file.display())).collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "give an enum that says what was done:\n{}", found.join("\n"));
    assert_eq!(
        questions_that_act("fn a(\n    &mut self,\n) -> bool {}\nfn b(&self) -> bool {}\nfn c(&mut self) {}"),
        ["a"]
    );
}

#[test]
fn impurity_would_be_found() {
    for line in [
        "use kube::Client;",
        "use kube::{Api, Client};",
        "let now = jiff::Timestamp::now();",
        "    let now = std::time::SystemTime::now();",
        "tokio::time::sleep(x).await;",
        "pub async fn read() {}",
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
    // From k8s.io/apiextensions-apiserver, pkg/apiserver/validation/formats.go, and the formats of numbers of OpenAPI
    // v3.
    let known = ["int32", "int64", "float", "double", "date-time", "date", "duration", "uri", "byte", "password"];
    let yaml = credit_migration::api::crds_yaml().unwrap();
    let unknown: Vec<&str> =
        yaml.lines().filter_map(|l| l.trim().strip_prefix("format: ")).filter(|f| !known.contains(f)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
