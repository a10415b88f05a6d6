//! The runner's data tasks against a real PostgreSQL, a real S3 server, and real servers of mail and web: Preflight,
//! Backup, VerifyBackup, ExportKeyUsers, Rehearse, RehearseRollback, checks, follow-ups, Notify.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod alert;
mod backup;
mod balances;
mod checks;
mod corpus;
#[path = "../postgres/desk.rs"]
#[allow(dead_code)]
mod desk;
mod entry;
mod follow_up;
mod harness;
mod key_users;
mod ledger;
mod left_out;
mod load;
mod notify;
mod occasions;
mod pooler;
mod preflight;
#[path = "../postgres/programs.rs"]
mod programs;
mod rehearsal;
mod rollback_rehearsal;
mod secrets;
mod sequence;
mod store;
mod tls;
