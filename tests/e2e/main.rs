//! The operator in a real cluster: its chart and image, a real application, PostgreSQL and S3, with injected faults.
//!
//! ```text
//! tests/e2e/deploy                                        the operator, as built, into the cluster
//! tests/cluster/cluster exec target/debug/deps/e2e-... --test-threads=4
//! ```
//! `make test` does both. Runs inside the cluster's namespaces: names of services resolve, processes of pods can be
//! killed. Anywhere else each test prints that it did not run: no other cluster is touched.
//!
//! Each test has a namespace (Pod Security `restricted`), a database, and a copy of the sample application of its own,
//! and removes them. `CREDIT_MIGRATION_E2E=keep` leaves those of failed tests. What a failed test leaves behind is
//! printed: status, runs, decisions, events, pods and their logs.
//!
//! A test awaits only states that last: steps, evidence, events, ended runs. It prolongs a transient state until it has
//! checked it: by a latch (`latch.rs`), a stage without end, or a decision that it has not made yet. A slow machine
//! only takes longer.

#![allow(clippy::unwrap_used)]

mod alone;
mod bad_input;
mod before_window;
mod checklist;
mod cluster;
mod database;
mod deletion;
mod exits;
mod forging;
mod forward;
mod harness;
mod latch;
mod migration;
mod nothing_waits;
mod park;
mod rollback;
mod triggers;
mod versions;
mod window_pods;
