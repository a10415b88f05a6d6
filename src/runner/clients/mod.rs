//! What the runner talks to besides the database: the object store, PostgreSQL's programs, the archive that the first
//! keeps and the second read, git, web servers, the Kubernetes API; TLS for all of them.
//!
//! Called by `settings`, `context`, `database`, `report`, `checks` and `tasks`. Imports `failure` of the runner, `api`,
//! `shared` and `telemetry`.

pub mod archive;
pub mod git;
pub mod http_probe;
pub(in crate::runner) mod kubernetes;
pub mod manifest;
pub mod object_store;
pub mod pg_tools;
pub(in crate::runner) mod private_folder;
pub mod rate_limit;
pub(in crate::runner) mod tls;
