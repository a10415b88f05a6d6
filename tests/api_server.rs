//! The three kinds on a real API server: schema, CEL rules, defaults, transitions, columns, and the rights of the
//! ServiceAccounts.
//!
//! ```text
//! tests/e2e/deploy          installs CRDs, roles and policies with the chart
//! tests/cluster/cluster exec target/debug/deps/api_server-...
//! ```
//! Anywhere else each test prints that it did not run: no other cluster is touched. Each test has a namespace of its
//! own.

#![allow(clippy::unwrap_used)]

#[path = "api_server/checklist.rs"]
mod checklist;
#[path = "api_server/cluster.rs"]
mod cluster;
#[path = "api_server/plugin.rs"]
mod plugin;
#[path = "api_server/roles.rs"]
mod roles;
#[path = "api_server/schema.rs"]
mod schema;
#[path = "api_server/transitions.rs"]
mod transitions;
