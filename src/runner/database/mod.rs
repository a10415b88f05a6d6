//! The migrated database: connections, the control schema, fingerprints, statistics, the scratch database of a
//! rehearsal, what that goes without, who else uses the tables, versions of the server.
//!
//! Called by `settings`, `context`, `checks` and `tasks`. Imports `failure` and `clients` of the runner, `api` and
//! `shared`.

pub mod connect_error;
pub mod connection;
pub(super) mod connection_secret;
pub mod control;
pub mod copy_place;
pub mod fingerprint;
mod hosts;
pub mod left_out;
pub mod scratch;
pub(super) mod server_error;
pub(super) mod server_tls;
pub mod snapshot;
pub mod statistics;
pub mod table_users;
mod target;
pub mod version;
