//! The runner's data tasks against a real PostgreSQL and a real S3 server: Preflight, Backup, VerifyBackup, ExportKeyUsers,
//! Rehearse.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod backup;
mod checks;
mod entry;
mod harness;
mod key_users;
mod preflight;
mod rehearsal;
