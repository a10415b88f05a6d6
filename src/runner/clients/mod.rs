//! What the runner talks to besides the database: the object store, PostgreSQL's programs, git, web servers, the
//! Kubernetes API; TLS for all of them.
//!
//! Called by `database`, `report`, `checks` and `tasks`. Imports `failure` of the runner, and `api`.

pub mod git;
pub mod http_probe;
pub(in crate::runner) mod kubernetes;
pub mod object_store;
pub mod pg_tools;
pub(in crate::runner) mod private_folder;
pub(in crate::runner) mod tls;
