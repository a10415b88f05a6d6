//! How the runner connects to the database, and what logical replication may publish of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::KeyRef;

/// How the runner connects to the database.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// The Secret that says where, and as whom. With `tls.crt` and `tls.key`, or `sslcert` and `sslkey`, the role
    /// authenticates itself by this certificate, too.
    pub secret_ref: ConnectionSecretRef,
    /// Secret key with the PEM certificates of the authorities to trust; the public ones when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<KeyRef>,
    /// Host of the server, `host:port`, several separated by commas; goes before that of the Secret, which may have
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub host: Option<String>,
    /// What the certificate of the server must be for; goes before that of the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssl_mode: Option<SslMode>,
}

/// A Secret with a connection.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionSecretRef {
    /// Name of the Secret in the migration's namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key with a URL `postgresql://role:password@host:port/database?sslmode=verify-full`. When absent, the first of
    /// these that the Secret has: `url`; `uri`; `username` and `password`, with `host`, `port` and `dbname` if they are
    /// there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
}

/// What the certificate of a server must be for.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// It is of a trusted authority, and for the host that is connected to: `verify-full`.
    VerifyFull,
    /// It is of the private authority in `caSecretRef`, for whatever host: `verify-ca`.
    VerifyCa,
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
