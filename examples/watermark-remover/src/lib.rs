//! Sample application: a service with a credit system in two versions, built to live through a migration of its
//! database.
//!
//! ```text
//! http (routes, metrics) -> database (sessions that survive a window; runs work again when one is lost)
//!                             -> work -> credit_service (v1) or credit_service_simplified (v2) -> ledger (SQL of both)
//! ```
//! Both versions are in every binary; `CREDIT_SYSTEM_VERSION` chooses. During a rollout one version meets the other's
//! schema: each then shows and moves credits with the columns that both schemas have.

pub mod config;
pub mod credit_service;
pub mod credit_service_simplified;
pub mod database;
pub mod failure;
pub mod http;
pub mod ledger;
pub mod metrics;
pub mod outage;
pub mod work;
