//! Supported versions of PostgreSQL: one list, which documents, image and tests repeat.

use std::process::Command;

use credit_migration::runner::database::version::SUPPORTED;

use crate::{assert_none, root, tree};

#[test]
fn the_same_versions_of_postgresql_are_named_everywhere() {
    let (oldest, newest) = SUPPORTED.into_inner();
    let client = format!("postgresql-client-{newest}");
    let wanted = [
        ("README.md", format!("PostgreSQL {oldest} to {newest},")),
        ("README.md", format!("client programs of PostgreSQL {newest},")),
        ("README.md", format!("`pg_dump` {newest},")),
        ("README.md", format!("| PostgreSQL | {oldest}, 15, {newest};")),
        ("docs/compatibility.md", format!("| {newest} | All server tests, a whole migration")),
        ("docs/compatibility.md", format!("| {oldest} | All server tests, a whole migration")),
        ("docs/compatibility.md", format!("| {} and older, {} and newer | Refused", oldest - 1, newest + 1)),
        ("docs/reasons.md", format!("supported versions ({oldest} to {newest})")),
        ("docs/reasons.md", format!("The server is older than {oldest}")),
        ("Dockerfile", format!("grep -q ' {newest}\\.'")),
        ("Dockerfile", format!("openssh-client {client} ")),
        ("Dockerfile", format!("Package: {client} libpq5")),
        ("tests/cluster/containers/base/rootfs", format!("openssh-client,{client} ")),
        ("tests/cluster/containers/base/rootfs", format!("Package: {client} libpq5")),
    ];
    let files = tree();
    let text = |path: &str| &files.iter().find(|file| file.path == path).unwrap().text;
    let missing: Vec<String> = wanted
        .iter()
        .filter(|(path, words)| !text(path).contains(words.as_str()))
        .map(|(path, words)| format!("{path}: {words}"))
        .collect();
    assert_none("places name other versions than SUPPORTED", &missing);
    let servers = Command::new(root().join("tests/postgres/servers")).arg("majors").output().unwrap();
    let majors: Vec<u32> =
        String::from_utf8(servers.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(majors, SUPPORTED.collect::<Vec<_>>(), "tests/postgres/servers");
}
