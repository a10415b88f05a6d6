//! The window against a real PostgreSQL: what the write block stops, what a migration may do, and how every window
//! ends.

#![allow(clippy::unwrap_used)]

mod change_tracking;
mod connections;
#[path = "../postgres/desk.rs"]
mod desk;
mod hang;
mod harness;
mod invariants;
mod languages;
mod locks;
mod logins;
mod migration;
mod partitions;
#[path = "../postgres/programs.rs"]
mod programs;
mod replication;
mod rights;
mod rollback;
mod safeguards;
mod sessions;
mod sigterm;
mod standby;
mod take_over;
mod window;
mod write_block;
