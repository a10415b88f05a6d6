//! What every task gets.

use tokio_util::sync::CancellationToken;

use super::{clients::pg_tools::Tools, database::control::ControlSpec, report::Progress, settings::Settings};
use crate::api::MigrationRunSpec;

/// One run's order, and the means to carry it out.
pub struct TaskContext<'a> {
    /// The order.
    pub spec: &'a MigrationRunSpec,
    /// Mounted Secrets and SQL.
    pub settings: Settings<'a>,
    /// `pg_dump` and `pg_restore`.
    pub tools: Tools,
    /// Where to note what was found.
    pub progress: Progress,
    /// Cancelled when the process receives SIGTERM.
    pub stop: CancellationToken,
}

impl TaskContext<'_> {
    /// The part of the order that the control schema needs.
    pub fn control_spec(&self) -> ControlSpec {
        ControlSpec::new(&self.spec.migration_uid, &self.spec.migration, &self.spec.plan)
    }
}
