//! The compiler is the same wherever it is named.

use crate::root;

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
