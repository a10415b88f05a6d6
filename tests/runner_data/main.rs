//! The runner's data tasks against a real PostgreSQL and a real S3 server: Preflight, Backup, VerifyBackup, ExportKeyUsers,
//! Rehearse, checks and follow-ups.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod backup;
mod balances;
mod checks;
mod entry;
mod follow_up;
mod harness;
mod key_users;
mod load;
mod preflight;
mod rehearsal;
mod sequence;
