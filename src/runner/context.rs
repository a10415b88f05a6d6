//! What every task gets.

use jiff::tz::TimeZone;
use tokio_util::sync::CancellationToken;

use super::{
    Failure,
    clients::{manifest::MANIFEST, pg_tools::Tools},
    database::control::{ControlSpec, Sql},
    report::Progress,
    settings::Settings,
};
use crate::{
    api::{MigrationRunSpec, Reason, Time},
    shared::sql,
};

/// Both SQL texts as they are mounted. Weeks after the up SQL was committed it may have changed or be gone, and so may
/// the down SQL, which the database keeps: why one cannot be used is an error only for a task that has to run it.
pub struct MountedSql {
    /// The change.
    pub up: Result<Sql, Failure>,
    /// The rollback.
    pub down: Result<Sql, Failure>,
}

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

    /// Tables that the migration changes or gives up, as spec and up SQL name them.
    pub(in crate::runner) fn changed_tables(&self) -> Vec<String> {
        let mut tables = self.control_spec().protected;
        let by_sql = self.settings.up_sql().map(|text| sql::tables_that_go(&text)).unwrap_or_default();
        tables.extend(by_sql.into_iter().filter(|name| !tables.contains(name)).collect::<Vec<_>>());
        tables
    }

    /// Object and digest of the backup, which the controller hands on.
    ///
    /// # Errors
    /// `Internal` if they are missing.
    pub fn backup_input(&self) -> Result<(&str, &str), Failure> {
        match (&self.spec.inputs.backup_object, &self.spec.inputs.backup_sha256) {
            (Some(object), Some(sha256)) => Ok((object, sha256)),
            _ => Err(Failure::new(Reason::Internal, "the run's inputs name no backup")),
        }
    }

    /// What the names of all objects of a backup start with.
    pub(in crate::runner) fn backup_base(object: &str) -> &str {
        let dump = object.strip_suffix(MANIFEST).and_then(|folder| folder.strip_suffix('/')).unwrap_or(object);
        dump.strip_suffix(".dump").unwrap_or(dump)
    }

    /// `<database>_<YYYYMMDD_HHMMSS>_pre_migration_<uid8>_<attempt>`, the checklist's name with what makes it unique.
    /// `taken_at` is the time of the snapshot.
    pub(in crate::runner) fn backup_name(&self, taken_at: Time) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let database: String = self.spec.plan.database.name.chars().map(plain).collect();
        let uid: String = self.spec.migration_uid.chars().take(8).map(plain).collect();
        let at = taken_at.to_zoned(TimeZone::UTC).strftime("%Y%m%d_%H%M%S").to_string();
        format!("{database}_{at}_pre_migration_{uid}_{}", self.spec.attempt)
    }

    /// Reads both SQL texts and splits them.
    pub fn mounted_sql(&self) -> MountedSql {
        MountedSql {
            up: self.settings.up_sql().and_then(|text| Sql::read("up SQL", text)),
            down: self.settings.down_sql().and_then(|text| Sql::read("down SQL", text)),
        }
    }
}
