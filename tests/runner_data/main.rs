//! The runner's data tasks against a real PostgreSQL, a real S3 server, and real servers of mail and web:
//! Preflight, Backup, VerifyBackup, Rehearse, Notify.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod backup;
mod checks;
mod entry;
mod harness;
mod notify;
mod preflight;
mod rehearsal;
