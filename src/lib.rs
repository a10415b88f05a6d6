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
//!                             │ controller::apply    │─────────────┘ spec (orders)
//!                             └──────────────────────┘
//! ```
//!
//! Each module, and what it may import; `tests/purity` asserts these arrows:
//!
//! | Module | What it is | May import |
//! |---|---|---|
//! | [`shared`] | Helpers without a type of the domain. Pure | nothing |
//! | [`api`] | The three kinds: types, schemas, CEL rules, defaults. Pure | `shared` |
//! | [`machine`] | [`machine::decide`]: observed and status in, status and effects out. Pure | `api`, `shared` |
//! | [`controller`] | Observes, persists, applies; writes objects | `machine`, `api`, `shared`, `telemetry` |
//! | [`runner`] | The tasks in Jobs: the only one that reads Secrets and the database | `api`, `shared`, `telemetry` |
//! | [`plugin`] | `kubectl creditmigration` | `machine`, `api`, `shared`, `telemetry` |
//! | [`telemetry`] | Logging, and the only clock | `shared` |
//!
//! Pure means: no client, no runtime, no clock, no randomness. The controller talks only to the Kubernetes API. In the
//! cluster the runner can only read the `MigrationRun`s of its namespace, report on its own, and read pods' logs where
//! a check counts them.

pub mod api;
pub mod controller;
pub mod machine;
pub mod plugin;
pub mod runner;
pub mod shared;
pub mod telemetry;
