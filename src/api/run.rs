//! `MigrationRun`: one task that a Job carries out; the typed two-way channel between controller and runner.
//!
//! The controller writes `spec`, the runner writes `status`, through the API server alone.
//!
//! ```text
//!  forward (task Window)                                    rollback (task RollbackWindow)
//!  order          runner                                    order          runner
//!  Standby        connect, load SQL ............ Ready      Standby        connect, load SQL ......... Ready
//!  BlockWrites    block, verify, SQL, COMMIT . Migrated     BlockWrites    block, verify ........... Blocked
//!  Switch         no rollback of its own now .... (ack)     Switch         no unblocking of its own .. (ack)
//!                 <controller: flag, rollout>                              <controller: flag, rollout>
//!  UnblockWrites  unblock writes ............ Unblocked     Rollback       down SQL, verify, unblock  RolledBack
//!  Rollback       down SQL, verify, unblock  RolledBack
//! ```
//!
//! On the forward path `Rollback` is ordered only while the flag is at `from` and the old version runs.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    BackupEvidence, BaselineEvidence, CheckResult, CodeBackupEvidence, Comparison, CreditMigrationSpec, Delivery,
    Finding, KeyUsersEvidence, LostRight, NotShown, Notice, Obstacle, Reason, RecoveryPoints, RehearsalEvidence,
    Replication, ReportEvidence, RollbackRehearsalEvidence, SafeguardReport, SchemaInPlace, Task, Time,
    UnexplainedEvidence, VerificationEvidence, WindowState, WorkProgress, named::named,
};

/// One task of a migration, carried out by one Job.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "creditmigration.io",
    version = "v1alpha1",
    kind = "MigrationRun",
    plural = "migrationruns",
    shortname = "cmrun",
    category = "credit-migrations",
    namespaced,
    status = "MigrationRunStatus",
    derive = "PartialEq",
    doc = "One task of a CreditMigration, carried out by one Job. Written by the operator and its runner only.",
    printcolumn(name = "Migration", type_ = "string", json_path = ".spec.migration"),
    printcolumn(name = "Task", type_ = "string", json_path = ".spec.task"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".spec.attempt"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.migration == oldSelf.migration && self.migrationUID == oldSelf.migrationUID \
        && self.task == oldSelf.task && self.attempt == oldSelf.attempt && self.plan == oldSelf.plan \
        && self.inputs == oldSelf.inputs")
        .message("only spec.window of a MigrationRun may change"),
    validation = Rule::new("!has(oldSelf.window) || has(self.window)").message("spec.window cannot be taken back"),
    validation = Rule::new("!has(oldSelf.window) || !has(self.window) || \
        {'Standby': 0, 'BlockWrites': 1, 'Switch': 2, 'UnblockWrites': 3, 'Rollback': 4}[self.window.command] >= \
        {'Standby': 0, 'BlockWrites': 1, 'Switch': 2, 'UnblockWrites': 3, 'Rollback': 4}[oldSelf.window.command]")
        .message("spec.window.command only moves forward")
)]
#[serde(rename_all = "camelCase")]
pub struct MigrationRunSpec {
    /// Name of the `CreditMigration`.
    pub migration: String,
    /// Its UID: the key of everything that is recorded in the database.
    #[serde(rename = "migrationUID")]
    pub migration_uid: String,
    /// The task.
    pub task: Task,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// Snapshot of the migration's spec: an edit does not reach a task that is under way.
    pub plan: CreditMigrationSpec,
    /// Results of earlier tasks.
    pub inputs: RunInputs,
    /// The controller's order to a window task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowOrder>,
}

/// Results of earlier tasks.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct RunInputs {
    /// SHA-256 of the up SQL as the controller read it, `sha256:` and 64 hex digits.
    pub up_sha256: String,
    /// SHA-256 of the down SQL.
    pub down_sha256: String,
    /// Object made by the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_object: Option<String>,
    /// SHA-256 of that object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_sha256: Option<String>,
    /// SHA-256 of the schema that was rehearsed; for the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_sha256: Option<String>,
    /// Rights that the application's roles lost in the rehearsal; for the window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500))]
    pub rights_lost: Vec<LostRight>,
    /// Notice that task `Notify` sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<Notice>,
    /// When writes were unblocked on the new version; for the follow-ups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutover_at: Option<Time>,
}

/// The controller's order to a window task.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WindowOrder {
    /// How far the task may go.
    pub command: WindowCommand,
    /// When the window must have ended; set with `BlockWrites`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
}

/// How far a window task may go. Orders only move forward.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WindowCommand {
    /// Connect and load the SQL, change nothing.
    Standby,
    /// Block writes; on the forward path also run the up SQL.
    BlockWrites,
    /// Acknowledge that the controller is about to switch the flag.
    Switch,
    /// Forward path: unblock writes, the new version runs.
    UnblockWrites,
    /// Run the down SQL, verify, unblock writes.
    Rollback,
}

named! {
    WindowCommand: Standby, BlockWrites, Switch, UnblockWrites, Rollback
}

/// Report of the runner.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct MigrationRunStatus {
    /// State of the task.
    pub phase: RunPhase,
    /// Class of its failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Observed value, limit and next command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Start of the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// End of the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Pod that reported last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// How far the long part of the task is, every 10 s while it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<WorkProgress>,
    /// Findings of Preflight.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Tag and branch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_backup: Option<CodeBackupEvidence>,
    /// Statistics of the Backup's snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<BaselineEvidence>,
    /// The uploaded object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupEvidence>,
    /// The dump, read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationEvidence>,
    /// The export of key users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_users: Option<KeyUsersEvidence>,
    /// The rehearsal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<RehearsalEvidence>,
    /// The rehearsal of the rollback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_rehearsal: Option<RollbackRehearsalEvidence>,
    /// A window task's progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowProgress>,
    /// Checks of Validate, Monitor, DayCheck and WeekReview.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckResult>,
    /// List of the balances that nothing explains, once a check of balances failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<UnexplainedEvidence>,
    /// Users whose balance was written on the new version since the cutover (Validate, Monitor, DayCheck, WeekReview).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_written: Option<u64>,
    /// Credits by which the balances of those users differ from those at the cutover: the sum of absolute differences,
    /// a decimal text (Validate, Monitor, DayCheck, WeekReview).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credits_written: Option<String>,
    /// Whether the database has what a rollback needs (Validate, Monitor, DayCheck, WeekReview).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safeguards: Option<SafeguardReport>,
    /// Report of DayCheck and WeekReview.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<ReportEvidence>,
    /// Deliveries of the notice, by channel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deliveries: Vec<Delivery>,
}

/// State of a task.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RunPhase {
    /// Not started by the runner.
    #[default]
    Pending,
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// Ended without success; `reason` has the class.
    Failed,
}

impl RunPhase {
    /// Whether the end of the task was reported.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl MigrationRun {
    /// Whether the end of its task was reported.
    pub fn has_ended(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.phase.has_ended())
    }
}

named! {
    RunPhase: Pending, Running, Succeeded, Failed
}

/// Progress of a window task.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct WindowProgress {
    /// Its state.
    pub state: WindowState,
    /// Writes stay blocked until an order or manual intervention unblocks them.
    pub stuck: bool,
    /// What keeps it from blocking writes, as last found on standby.
    #[schemars(length(max = 8))]
    pub obstacles: Vec<Obstacle>,
    /// When writes were first refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_at: Option<Time>,
    /// Evidence that writes are blocked: the refused write and its SQLSTATE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<String>,
    /// Sessions of the application that were ended.
    pub terminated_sessions: u32,
    /// Seconds of the transaction with the up SQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migrate_seconds: Option<f64>,
    /// Users whose balance was brought up to date inside the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconciled_users: Option<u64>,
    /// The full comparison of balances after the commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// Users whose balance was written on the new version since the cutover (rollback).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_written_since: Option<u64>,
    /// The runner has acknowledged `Switch`.
    pub switch_acknowledged: bool,
    /// Version that the probe returned several times in a row; `v1, v2` if the answers differ, since each is one pod's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_version: Option<String>,
    /// When the first of these answers was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
    /// When writes were unblocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unblocked_at: Option<Time>,
    /// The runner ended the window itself because the deadline had passed.
    pub deadline_passed: bool,
    /// Where a point-in-time recovery can stop.
    #[serde(skip_serializing_if = "RecoveryPoints::is_empty")]
    pub recovery: RecoveryPoints,
    /// The standbys, when they were last waited for: before the switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<Replication>,
    /// What it could not show, and went on without; one of each kind.
    #[schemars(length(max = 8))]
    pub not_shown: Vec<NotShown>,
}

impl WindowProgress {
    /// The schema on which writes were unblocked; `None` as long as the window has not ended so.
    pub fn schema_in_place(&self) -> Option<SchemaInPlace> {
        match self.state {
            _ if self.stuck => None,
            WindowState::Unblocked => Some(SchemaInPlace::New),
            WindowState::RolledBack => Some(SchemaInPlace::Old),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    /// An order that the rule does not list has the index -1: it would be lower than all others.
    #[test]
    fn the_rule_on_orders_lists_them_in_their_order() {
        let crd = serde_json::to_string(&MigrationRun::crd()).unwrap();
        let orders: Vec<String> =
            WindowCommand::ALL.iter().enumerate().map(|(i, order)| format!("'{order}': {i}")).collect();
        let list = format!("{{{}}}[", orders.join(", "));
        assert_eq!(crd.matches(&list).count(), 2, "{list} is not in the rule of MigrationRun");
    }
}
