//! Labels, annotations and the finalizer that the operator sets, and the name of the runner's account.

/// Finalizer that keeps a `CreditMigration` until writes are unblocked and its triggers are removed.
pub const FINALIZER: &str = "creditmigration.io/writes-unblocked";

/// Pod template annotation that restarts a workload for one switch. Its value names migration and direction, so that
/// each pod shows after which switch it was started. On a workload itself: the switch that has kept its pods.
pub const RESTARTED_FOR: &str = "creditmigration.io/restarted-for";

/// Annotation on the flag's ConfigMap: migration and direction of the last switch. Every switch writes it, also when
/// the value needs no change, so that a late write of a former leader fails on the resourceVersion.
pub const FLAG_SET_FOR: &str = "creditmigration.io/flag-set-for";

/// Label with the migration's name, on runs, Jobs and pods.
pub const MIGRATION_LABEL: &str = "creditmigration.io/migration";
/// Label with the migration's UID.
pub const UID_LABEL: &str = "creditmigration.io/migration-uid";
/// Label with the task.
pub const TASK_LABEL: &str = "creditmigration.io/task";
/// Label with the name of a `job` check, on its Jobs and their pods.
pub const CHECK_LABEL: &str = "creditmigration.io/check";

/// Name of the ServiceAccount and the RoleBinding of a migration's pods.
pub fn runner_name(migration: &str) -> String {
    format!("{migration}-runner")
}
