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

/// Longest file of code or tests, in lines.
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

/// The documentation at the head of a file, as one line.
fn head(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

/// What the head of a folder has to say and does not.
fn missing_in_head(head: &str) -> impl Iterator<Item = &'static str> {
    let wanted = [("Called by", "who calls it: \"Called by ...\""), ("mport", "what it imports: \"Imports ...\"")];
    wanted.into_iter().filter(|(words, _)| !head.contains(words)).map(|(_, what)| what)
}

#[test]
fn a_head_without_callers_or_imports_would_be_found() {
    for (text, count) in [
        ("//! What it is.\n", 2),
        ("//! What it is. Called\n//! by `x`.\n", 1),
        ("//! What it is.\n//!\n//! Called by `x`. May import `y`.\n", 0),
        ("//! What it is.\n\n// Called by x, imports y.\n", 2),
    ] {
        assert_eq!(missing_in_head(&head(text)).count(), count, "{text}");
    }
}

#[test]
fn a_folder_has_one_head() {
    let src = root().join("src");
    let mut found = vec![];
    for folder in folders(&src) {
        let name = folder.strip_prefix(&src).unwrap().display().to_string();
        let head = head(&std::fs::read_to_string(folder.join("mod.rs")).unwrap_or_default());
        if head.is_empty() {
            found.push(format!("{name} has no mod.rs that says what lives there"));
        } else if !ONLY_TESTS.iter().any(|t| folder.starts_with(src.join(t))) {
            found.extend(missing_in_head(&head).map(|what| format!("{name}/mod.rs does not say {what}")));
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

/// Names of the enums that a file declares.
fn enums(text: &str) -> Vec<String> {
    let code: String = code(text).map(|(_, line)| format!("{line}\n")).collect();
    let name = |part: &str| part.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned();
    code.split("enum ").skip(1).map(name).collect()
}

/// What a signature gives, from its name on: empty for nothing.
fn given(signature: &str) -> &str {
    let mut depth = 0;
    let end = signature.find(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ')' && depth == 0
    });
    let after = end.map_or("", |end| &signature[end + 1..]);
    after.split(" where ").next().unwrap_or_default().trim().trim_start_matches("->").trim()
}

/// Methods that change something and also answer: with `&mut self`, and a result that is neither one of `enums` nor
/// access to what they change (`&mut T`, `T<'_>`).
fn questions_that_act(text: &str, enums: &BTreeSet<String>) -> Vec<String> {
    let code: String = code(text).map(|(_, line)| format!("{line}\n")).collect();
    let signatures = code.split("fn ").skip(1).filter_map(|part| part.split('{').next());
    signatures
        .filter(|s| s.contains("&mut self"))
        .filter(|s| {
            let given = given(s);
            !(given.is_empty() || given.starts_with("&mut ") || given.ends_with("<'_>") || enums.contains(given))
        })
        .map(|s| s.split('(').next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn a_method_of_the_machine_asks_or_acts() {
    let src = root().join("src");
    let mut machine = files(&src.join("machine"));
    machine.retain(|f| !ONLY_TESTS.iter().any(|t| f.starts_with(src.join(t))));
    let read = |file: &PathBuf| std::fs::read_to_string(file).unwrap();
    let named: BTreeSet<String> = machine.iter().flat_map(|file| enums(&read(file))).collect();
    let found: Vec<String> = machine
        .iter()
        .flat_map(|file| {
            let names = questions_that_act(&read(file), &named);
            names.into_iter().map(|name| format!("{}: {name}", file.display())).collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "give an enum that says what was done:\n{}", found.join("\n"));
}

#[test]
fn a_question_that_acts_would_be_found() {
    let named: BTreeSet<String> = enums("pub(crate) enum Flow {\n    On,\n}\nenum Other<T> {}").into_iter().collect();
    assert_eq!(named, BTreeSet::from(["Flow".to_owned(), "Other".to_owned()]));
    for text in [
        "fn a(\n    &mut self,\n) -> bool {}",
        "fn a(&mut self, key: &str) -> Option<String> {}",
        "fn a(&mut self) -> Result<String, (Reason, String)> {}",
        "fn a(&mut self) -> (u32, Flow) {}",
    ] {
        assert_eq!(questions_that_act(text, &named), ["a"], "{text}");
    }
    for text in [
        "fn a(&self) -> bool {}",
        "fn a(&mut self) {}",
        "fn a(&mut self, ask: impl Fn(u32) -> bool) {}",
        "fn a(&mut self) -> Flow {}",
        "fn a(&mut self) -> &mut Step {}",
        "fn a(&mut self) -> Queue<'_> {}",
    ] {
        assert_eq!(questions_that_act(text, &named), Vec::<String>::new(), "{text}");
    }
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
    let long: Vec<String> = ["src", "tests"]
        .iter()
        .flat_map(|folder| files(&root().join(folder)))
        .map(|file| (std::fs::read_to_string(&file).unwrap().lines().count(), file))
        .filter(|(n, _)| *n >= LONGEST)
        .map(|(n, file)| format!("{}: {n} lines (limit {LONGEST})", file.display()))
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
