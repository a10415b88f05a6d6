//! What goes to and comes from the run's own `MigrationRun`: its status, and a window's order where it survives the
//! container.
//!
//! Called by `runner`, `context`, `checks` and `tasks`. Imports `failure` and `clients` of the runner,
//! `api` and `telemetry`.

mod meter;
pub(in crate::runner) mod order_cache;
mod progress;
mod reporting;
mod status;

pub use self::{
    meter::Meter,
    progress::Progress,
    status::{Reporter, Unreported},
};
pub(in crate::runner) use self::{progress::window_fields, reporting::StatusReporting};
