//! Cargo.toml: what it names is used, and the compiler is the same everywhere.

use crate::{File, assert_none, root, tree};

/// Packages of the workspace: their folders.
const PACKAGES: &[&str] = &["", "examples/watermark-remover/"];

/// Names in a section of a manifest.
fn dependencies(manifest: &str, section: &str) -> Vec<String> {
    let start = format!("[{section}]\n");
    let Some((_, part)) = manifest.split_once(&start) else { return vec![] };
    let part = part.split("\n[").next().unwrap();
    let names = part.lines().filter_map(|l| l.split(['.', ' ', '=']).next());
    names.filter(|n| !n.is_empty() && !n.starts_with('#')).map(str::to_owned).collect()
}

/// Whether a file of these folders names the crate.
fn is_used(files: &[File], folders: &[String], dependency: &str) -> bool {
    let name = dependency.replace('-', "_");
    let here = |f: &&File| f.extension() == "rs" && folders.iter().any(|folder| f.path.starts_with(folder));
    let named = |f: &File| {
        [format!("{name}::"), format!("use {name}"), format!("{name}!"), format!("derive({name}")]
            .iter()
            .any(|n| f.text.contains(n.as_str()))
    };
    files.iter().filter(here).any(named)
}

#[test]
#[ignore = "until the metrics use prometheus-client"]
fn every_dependency_is_used() {
    let files = tree();
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let mut unused = vec![];
    let mut wanted = vec![];
    for package in PACKAGES {
        let manifest = read(&format!("{package}Cargo.toml"));
        let src = vec![format!("{package}src/")];
        let all = vec![format!("{package}src/"), format!("{package}tests/")];
        for (section, folders) in [("dependencies", &src), ("dev-dependencies", &all)] {
            for name in dependencies(&manifest, section) {
                if !is_used(&files, folders, &name) {
                    unused.push(format!("{package}Cargo.toml, {section}: {name}"));
                }
                wanted.push(name);
            }
        }
    }
    assert!(wanted.len() > 30, "{wanted:?}");
    let shared = dependencies(&read("Cargo.toml"), "workspace.dependencies");
    unused.extend(shared.into_iter().filter(|n| !wanted.contains(n)).map(|n| format!("workspace.dependencies: {n}")));
    assert_none("dependencies are not used", &unused);
}

/// The compiler is named in four places.
#[test]
fn the_compiler_is_the_same_everywhere() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let manifest = read("Cargo.toml");
    let line = manifest.lines().find_map(|l| l.strip_prefix("rust-version = ")).unwrap();
    let version = line.trim_matches('"');
    for (path, named) in [
        ("rust-toolchain.toml", format!("channel = \"{version}.")),
        ("Dockerfile", format!("BUILD_IMAGE=rust:{version}-")),
        ("README.md", format!("Rust {version}")),
    ] {
        assert!(read(path).contains(&named), "{path} does not say {named}");
    }
}
