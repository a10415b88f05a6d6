//! Names and labels of what the operator makes. All are deterministic: a second creation meets the first.

/// Finalizer which keeps a `CreditMigration` until its window is closed and its guards are removed.
pub const FINALIZER: &str = "creditmigration.io/writes-unblocked";

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
