//! `MigrationRun`: one task carried out by a Job; the typed two-way channel between controller and runner.
//!
//! The controller writes `spec`, the runner writes `status`, through the API server alone.
//!
//! ```text
//!  window run, way there (task Window)              way back (task RollbackWindow)
//!  order     runner                                  order     runner
//!  Standby   connect, load SQL ......... Ready       Standby   connect, load SQL ....... Ready
//!  Open      block, prove, SQL, COMMIT . Migrated    Open      block, prove ............ Blocked
//!  Switch    from now on no self-revert  (ack)       Switch    no self-release any more  (ack)
//!            <controller: flag, rollout>                       <controller: flag, rollout>
//!  Release   gate opens ................ Released    Revert    down SQL, prove, open ... Reverted
//!  Revert    down SQL, prove, open ..... Reverted
//! ```
//!
//! In the way there `Revert` is given only while the flag is at `from` and the old version is running.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CheckResult, CodeBackupEvidence, CreditMigrationSpec, Delivery, Notice, Reason, ReportEvidence, Time};

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
    validation = Rule::new("self.migration == oldSelf.migration && self.migrationUID == oldSelf.migrationUID && self.task == oldSelf.task && self.attempt == oldSelf.attempt && self.plan == oldSelf.plan && self.inputs == oldSelf.inputs")
        .message("only spec.window of a MigrationRun may change"),
    validation = Rule::new("!has(oldSelf.window) || has(self.window)").message("spec.window cannot be taken back")
)]
#[serde(rename_all = "camelCase")]
pub struct MigrationRunSpec {
    /// Name of the `CreditMigration`.
    pub migration: String,
    /// Its UID; the key of everything recorded in the database.
    #[serde(rename = "migrationUID")]
    pub migration_uid: String,
    /// What is done.
    pub task: Task,
    /// 1 for the first try.
    pub attempt: u32,
    /// Snapshot of the migration's spec: an edit does not reach a task that is under way.
    pub plan: CreditMigrationSpec,
    /// What earlier tasks found.
    pub inputs: RunInputs,
    /// The controller's order to a window task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowOrder>,
}

/// What a Job does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Looks at everything, changes nothing.
    Preflight,
    /// Pushes tag and branch.
    CodeBackup,
    /// Puts up the guards; takes baseline and dump from one snapshot; uploads.
    Backup,
    /// Downloads the object and reads it to its end.
    VerifyBackup,
    /// Streams the rows of key users into the bucket.
    ExportKeyUsers,
    /// Restores the object, migrates, verifies, rolls back, compares.
    Rehearse,
    /// The window, way there.
    Window,
    /// Runs `validation.checks`.
    Validate,
    /// Runs `monitoring.checks`.
    Monitor,
    /// Runs `followUps.day.checks` for a while and writes a report.
    DayCheck,
    /// Runs `followUps.week.checks` for a while and writes a report.
    WeekReview,
    /// The window, way back.
    RollbackWindow,
    /// Tells people.
    Notify,
    /// Removes the guards and gives the database free for the next migration.
    Cleanup,
}

/// What earlier tasks found.
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
    /// What task `Notify` tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<Notice>,
    /// When writes were opened on the new version; for the follow-ups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_over_at: Option<Time>,
}

/// The controller's order to a window task.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WindowOrder {
    /// How far the task may go.
    pub command: WindowCommand,
    /// When the window must be over; set with `Open`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
}

/// How far a window task may go. Orders only move forward.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WindowCommand {
    /// Get ready, change nothing.
    Standby,
    /// Block writes; on the way there also run the SQL.
    Open,
    /// Acknowledge that the controller is about to flip the flag.
    Switch,
    /// Way there: open the gate, the new version is running.
    Release,
    /// Run the down SQL, verify, open the gate.
    Revert,
}

/// What the runner reports.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct MigrationRunStatus {
    /// Where the task stands.
    pub phase: RunPhase,
    /// Why it failed.
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
    /// The object as it was read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationEvidence>,
    /// The export of key users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_users: Option<KeyUsersEvidence>,
    /// The rehearsal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<RehearsalEvidence>,
    /// A window task's progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowProgress>,
    /// Checks of Validate, Monitor, DayCheck and WeekReview.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckResult>,
    /// Users whose balance was written on the new version since the cut-over (Validate, Monitor, DayCheck, WeekReview).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_written: Option<u64>,
    /// Report of DayCheck and WeekReview.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<ReportEvidence>,
    /// What became of the notice, by channel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deliveries: Vec<Delivery>,
}

/// Where a task stands.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RunPhase {
    /// Not started by the runner.
    #[default]
    Pending,
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// Ended without success; `reason` says why.
    Failed,
}

/// One line of Preflight.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// Absent when it is as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What was seen, and the command that mends it.
    pub message: String,
}

impl Finding {
    /// Name of the finding on the application's own word on its versions.
    pub const VERSION_PROBE: &str = "version probe";
    /// In its message if the application has said that it holds the old and the new version.
    pub const HOLDS_BOTH: &str = "holds both versions";
}

/// Statistics of the credit system, from one snapshot. Amounts are decimal texts in credits.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BaselineEvidence {
    /// Distinct users.
    pub users: u64,
    /// Sum of balances.
    pub total_balance: String,
    /// Sum of purchased credits.
    pub total_purchased: String,
    /// Average balance.
    pub average_balance: String,
    /// Largest balance.
    pub max_balance: String,
    /// Transactions by type.
    pub transactions: Vec<TransactionStatistics>,
    /// Time of the snapshot.
    pub taken_at: Time,
}

/// Transactions of one type.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TransactionStatistics {
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
    /// How many.
    pub count: u64,
    /// Sum of absolute amounts in credits, a decimal text.
    pub total_amount: String,
}

/// The uploaded dump.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BackupEvidence {
    /// `s3://bucket/key` of the dump.
    pub object: String,
    /// `s3://bucket/key` of the statistics of the same snapshot, as JSON.
    pub statistics_object: String,
    /// Size in bytes.
    pub bytes: u64,
    /// `sha256:` and 64 hex digits, taken while streaming.
    pub sha256: String,
    /// Version of pg_dump.
    pub pg_dump_version: String,
    /// End of the upload.
    pub finished_at: Time,
}

/// The object as it was read back.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VerificationEvidence {
    /// Size in bytes as downloaded.
    pub bytes: u64,
    /// SHA-256 as downloaded.
    pub sha256: String,
    /// Entries in the archive's table of contents.
    pub entries: u64,
}

/// The rows of key users in the bucket. Never a row of them anywhere else.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KeyUsersEvidence {
    /// `s3://bucket/key` of the CSV, with a header.
    pub object: String,
    /// Users in it.
    pub users: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// `sha256:` and 64 hex digits, taken while streaming.
    pub sha256: String,
    /// Time of the snapshot.
    pub taken_at: Time,
}

/// What the rehearsal showed.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RehearsalEvidence {
    /// Users restored.
    pub users: u64,
    /// Seconds to restore.
    pub restore_seconds: f64,
    /// Seconds for the up SQL with its verification.
    pub migrate_seconds: f64,
    /// Seconds for the down SQL with its verification.
    pub rollback_seconds: f64,
    /// Tables that were equal after the way back; all of them, else the rehearsal fails.
    pub tables_equal: u32,
    /// `sql` and `balances` checks that were measured on the migrated copy, before the way back.
    #[serde(default)]
    pub checks_measured: u32,
    /// Those among them that did not pass there, with observed value and limit. The copy has no traffic: people judge it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks_not_passing: Vec<String>,
    /// Expected length of the window in seconds: twice the SQL's and the comparison's time, plus 10 s for the rollout.
    pub expected_window_seconds: f64,
}

impl RehearsalEvidence {
    /// All of it in one line.
    pub fn in_words(&self) -> String {
        format!(
            "restored {} users in {:.1} s, migrated in {:.1} s, rolled back in {:.1} s, {} of {4} tables equal; {}; expected window {:.1} s",
            self.users,
            self.restore_seconds,
            self.migrate_seconds,
            self.rollback_seconds,
            self.tables_equal,
            self.checks_in_words(),
            self.expected_window_seconds,
        )
    }

    /// What the checks showed on the migrated copy.
    pub fn checks_in_words(&self) -> String {
        let measured = format!("{} checks measured on the migrated copy", self.checks_measured);
        match self.checks_not_passing.as_slice() {
            [] => measured,
            not => format!("{measured}, {} did not pass there: {}", not.len(), not.join("; ")),
        }
    }
}

/// Progress of a window task.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct WindowProgress {
    /// How far it is.
    pub state: WindowState,
    /// When writes were first refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_at: Option<Time>,
    /// What proved it: the refused write and its SQLSTATE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
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
    /// Users whose balance was written on the new version since the cut-over (way back).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_written_since: Option<u64>,
    /// The runner took note of `Switch`.
    pub switch_acknowledged: bool,
    /// Version that the probe answered, several times in a row; `v1, v2` if the answers differ, for each is one pod's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_version: Option<String>,
    /// When the first of these answers was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
    /// When writes were allowed again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Time>,
    /// The runner ended the window itself because the deadline had passed.
    pub deadline_passed: bool,
}

/// The full comparison of every user's balance with the baseline.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Users compared.
    pub users: u64,
    /// Users whose balance nothing explains. Must be 0.
    pub unexplained: u64,
    /// Sum of balances, a decimal text in credits.
    pub total_balance: String,
}

/// How far a window task is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord, Hash)]
pub enum WindowState {
    /// Not ready.
    #[default]
    Starting,
    /// Connected, SQL loaded, digest checked. Writes are open.
    Ready,
    /// Intent recorded, gate being closed.
    Opening,
    /// Writes are refused, with proof.
    Blocked,
    /// The up SQL is committed and verified. Writes are refused.
    Migrated,
    /// The gate is open again, the schema is the new one. End.
    Released,
    /// The gate is open again, the schema is the old one. End.
    Reverted,
    /// The deadline passed after the switch was acknowledged, or the way back failed: writes stay refused, a person is needed.
    Held,
}
