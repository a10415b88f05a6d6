//! How the runner connects to the database, and what logical replication may publish of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::KeyRef;

/// How the runner connects to the database.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Secret key with a URL `postgresql://role:password@host:port/database?sslmode=verify-full`.
    pub secret_ref: KeyRef,
    /// Secret key with the PEM certificates of the authorities to trust; the public ones when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<KeyRef>,
}

/// Whether the database may have a publication `FOR ALL TABLES`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AllTablesPublications {
    /// Preflight refuses it.
    #[default]
    Refused,
    /// Its subscribers have the tables of schema `credit_migration`, or leave them out.
    Allowed,
}
