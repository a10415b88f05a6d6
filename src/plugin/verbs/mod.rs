//! One file for each verb of the command line.
//!
//! Called by the command line alone. Imports the other modules of the plugin, and `machine`, `api`, `shared` and
//! `telemetry`. A verb reads by the connection, and asks `inspect` and pure functions of its own.

pub mod completion;
pub(super) mod decide;
pub(super) mod lint;
pub(super) mod logs;
pub(super) mod plan;
pub(super) mod report;
pub(super) mod status;
pub(super) mod verify;
pub(super) mod watch;
