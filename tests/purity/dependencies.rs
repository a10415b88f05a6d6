//! Every dependency of a manifest is used.

use crate::{files, root};

/// The entries of a section of a manifest, as names of crates.
fn entries(manifest: &str, section: &str) -> Vec<String> {
    let part = manifest.split(&format!("\n[{section}]\n")).nth(1).unwrap_or_default();
    let part = part.split("\n[").next().unwrap_or_default();
    let lines = part.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_alphabetic()));
    lines.map(|line| line.split(['.', ' ', '=']).next().unwrap().to_owned()).collect()
}

/// Whether code has a path that starts with the crate.
fn is_used(code: &str, name: &str) -> bool {
    let start = format!("{}::", name.replace('-', "_"));
    let is_whole = |at: usize| !code[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    code.match_indices(&start).any(|(at, _)| is_whole(at))
}

#[test]
fn every_dependency_is_used() {
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    let (mut unused, mut wanted) = (vec![], vec![]);
    for (member, folders) in
        [(root().to_owned(), vec!["src", "tests"]), (root().join("examples/watermark-remover"), vec!["src"])]
    {
        let manifest = read(&member.join("Cargo.toml"));
        let code: String = folders.iter().flat_map(|folder| files(&member.join(folder))).map(|f| read(&f)).collect();
        for name in ["dependencies", "dev-dependencies"].iter().flat_map(|section| entries(&manifest, section)) {
            if !is_used(&code, &name) {
                unused.push(format!("{name} in {}", member.display()));
            }
            wanted.push(name);
        }
    }
    let all = entries(&read(&root().join("Cargo.toml")), "workspace.dependencies");
    assert!(all.len() > 30 && wanted.len() > all.len(), "the manifests have changed: {all:?}, {wanted:?}");
    unused.extend(all.into_iter().filter(|name| !wanted.contains(name)).map(|name| format!("{name} of the workspace")));
    assert!(unused.is_empty(), "not used: {unused:?}");
}

#[test]
fn an_unused_dependency_would_be_found() {
    assert!(is_used("use tokio_util::sync::CancellationToken;", "tokio-util"));
    assert!(!is_used("use other_tokio::x; // tokio", "tokio"));
    assert_eq!(entries("[a]\nb = 1\n\n[c]\nd.workspace = true\ne-f = { version = \"1\" }\n\n[g]\n", "c"), ["d", "e-f"]);
}
