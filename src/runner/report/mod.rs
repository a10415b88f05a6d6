//! What goes to and comes from the run's own `MigrationRun`: its status, and a window's order where it survives the container.
//!
//! Called by `runner` and `tasks`. Imports `failure` of the runner, and `api`.

pub(in crate::runner) mod order_cache;
mod status;

pub(in crate::runner) use self::status::client;
pub use self::status::{Progress, Reporter, Unreported};
