//! The operator that takes a team through the migration of a live credit system on PostgreSQL.
//!
//! ```text
//!   kubectl / Argo CD                  watch                       Job (one per step)
//!  CreditMigration ───────┐   ┌──────────────────────┐   ┌────────────────────────────────┐
//!  MigrationDecision ─────┼──>│ controller::observe  │   │ runner::*                      │
//!  ConfigMap, Deployment ─┘   │        │             │   │ pg_dump, SQL, S3, HTTP probes  │
//!                             │ machine::decide      │   └───────────────┬────────────────┘
//!                             │        │ pure        │                   │ status
//!                             │ persist status       │   MigrationRun <──┘
//!                             │        │             │<──watch──┘  ^
//!                             │ controller::execute  │─────────────┘ spec (orders)
//!                             └──────────────────────┘
//! ```
//!
//! The controller talks to the Kubernetes API and to nothing else; the runner holds the secrets and can do no more in
//! the cluster than read the `MigrationRun`s of its namespace and report on its own; where a check counts lines of logs, also read
//! pods' logs.
//! [`api`], [`machine`] and [`controller::jobs`] are pure: no client, no runtime, no clock.

pub mod api;
pub mod controller;
pub mod machine;
pub mod plugin;
pub mod runner;
pub mod shared;
pub mod telemetry;
