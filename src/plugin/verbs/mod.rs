//! One file for each verb of the command line.
//!
//! A verb reads by the connection, and asks `inspect` and pure functions of its own.
//!
//! Called by the dispatch of [`plugin`](crate::plugin); `completion` also by the program. Imports all other modules of
//! the plugin, `machine`, `api`, `shared` and `telemetry`.

pub mod completion;
pub(super) mod decide;
pub(super) mod lint;
pub(super) mod logs;
pub(super) mod plan;
mod preview;
pub(super) mod report;
pub(super) mod status;
pub(super) mod verify;
pub(super) mod watch;
