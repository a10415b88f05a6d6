//! The operator in a real cluster: its chart and image, a real application, PostgreSQL and S3, and faults.
//!
//! ```text
//! tests/e2e/deploy                                        the operator, as built, into the cluster
//! tests/cluster/cluster exec target/debug/deps/e2e-... --test-threads=4
//! ```
//! `make test` does both. Runs inside the cluster's namespaces: names of services resolve, processes of pods can be killed.
//! Anywhere else each test says that it did not run: no other cluster is touched.
//!
//! Each test has a namespace (Pod Security `restricted`), a database, and a copy of the sample application of its own, and
//! removes them. `CREDIT_MIGRATION_E2E=keep` leaves those of failed tests. What a failed test leaves behind is printed: status, runs,
//! decisions, events, pods and their logs.
//!
//! A test waits for states that stay: steps, evidence, events, runs that have ended. Where it needs one that would pass it holds it
//! until it has checked it (`latch.rs`, stages that last, decisions that are not made yet). So a slow machine only takes longer.

#![allow(clippy::unwrap_used)]

mod alone;
mod bad_input;
mod before_window;
mod checklist;
mod cluster;
mod database;
mod deletion;
mod forging;
mod forward;
mod harness;
mod latch;
mod migration;
mod rollback;
mod triggers;
mod window_pods;
