//! Names and labels of what the operator makes. All are deterministic: a second creation meets the first.

use super::Task;

/// Finalizer which keeps a `CreditMigration` until its window is closed and its guards are removed.
pub const FINALIZER: &str = "creditmigration.io/window-closed";

/// Pod template annotation that restarts a workload for one switch; its value names migration and direction,
/// so that each pod tells which switch it was started after.
pub const RESTARTED_FOR: &str = "creditmigration.io/restarted-for";

/// Annotation on the flag's ConfigMap: migration and direction of the last switch. It is written with every switch, also
/// when the value needs no change, so that a late write of a former leader meets another resourceVersion.
pub const FLAG_SET_FOR: &str = "creditmigration.io/flag-set-for";

/// Label with the migration's name, on runs, Jobs and pods.
pub const MIGRATION_LABEL: &str = "creditmigration.io/migration";
/// Label with the migration's UID.
pub const UID_LABEL: &str = "creditmigration.io/migration-uid";
/// Label with the task.
pub const TASK_LABEL: &str = "creditmigration.io/task";
/// Label with the name of a `job` check, on its Jobs and their pods.
pub const CHECK_LABEL: &str = "creditmigration.io/check";

impl Task {
    /// Name part of a task. None holds a dash: otherwise run names of two migrations could be the same.
    pub fn slug(self) -> &'static str {
        match self {
            Task::Preflight => "preflight",
            Task::CodeBackup => "code",
            Task::Backup => "backup",
            Task::VerifyBackup => "verify",
            Task::ExportKeyUsers => "keyusers",
            Task::Rehearse => "rehearse",
            Task::Window => "window",
            Task::Validate => "validate",
            Task::Monitor => "monitor",
            Task::DayCheck => "day",
            Task::WeekReview => "week",
            Task::Notify => "notify",
            Task::RollbackWindow => "rollback",
            Task::Cleanup => "cleanup",
        }
    }

    /// Name of a migration's run and of its Job. Attempts never repeat.
    pub fn run_name(self, migration: &str, attempt: u32) -> String {
        format!("{migration}-{}-{attempt}", self.slug())
    }

    /// Name of the Job of a `job` check's measurement, short enough for the label that Kubernetes makes of it. `check` is its
    /// place in the stage; `measurement` counts from 1. The attempt of the stage's run is not part of it: otherwise each lost
    /// run would take the measurements under way with it.
    pub fn check_job_name(self, migration: &str, check: usize, measurement: u64) -> String {
        format!("{migration}-{}-c{check}n{measurement}", self.slug())
    }
}
