//! What the runner talks to besides the database: the object store, PostgreSQL's programs, git, web servers; TLS for all of them.
//!
//! Called by `database`, `report`, `checks` and `tasks`. Imports `failure` and `settings` of the runner, and `api`.

pub mod git;
pub mod http_probe;
pub mod object_store;
pub mod pg_tools;
pub(in crate::runner) mod tls;
