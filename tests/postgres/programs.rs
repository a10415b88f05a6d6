//! Programs of the PostgreSQL that a suite runs against, from `tests/postgres/servers`, which fetches what is missing.
//!
//! A module of `runner_window` and of `runner_data`.

use std::{path::PathBuf, process::Command, sync::LazyLock};

use credit_migration::runner::database::version::SUPPORTED;

/// Major version of the server: `POSTGRES_MAJOR`, by default the newest.
pub static MAJOR: LazyLock<u32> = LazyLock::new(|| match std::env::var("POSTGRES_MAJOR") {
    Ok(text) => text.parse().expect("POSTGRES_MAJOR is a major version"),
    Err(_) => *SUPPORTED.end(),
});

/// `initdb` and `postgres` of [`MAJOR`].
pub static SERVER: LazyLock<PathBuf> = LazyLock::new(|| folder(&MAJOR.to_string()));
/// `pg_dump`, `pg_restore` and `pg_basebackup`, of the version that the operator's image has.
pub static CLIENT: LazyLock<PathBuf> = LazyLock::new(|| folder("client"));

/// Programs of a major version, or the client's.
pub fn folder(name: &str) -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres/servers");
    let output = Command::new(script).args(["path", name]).output().unwrap();
    assert!(output.status.success(), "servers path {name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().into()
}
