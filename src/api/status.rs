//! Status of a `CreditMigration`: the checklist, ticked off with evidence.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    BackupEvidence, BaselineEvidence, CheckResult, CodeBackupEvidence, Comparison, KeyUsersEvidence, NoticeStatus,
    Phase, RehearsalEvidence, ReportEvidence, Step, Task, Time, VerificationEvidence,
};

/// Where a migration stands.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct CreditMigrationStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Step that is under way, or was last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// Position and name of the step: `9/20 Approve`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// People who approved, of those needed: `1/2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals: Option<String>,
    /// Whether the application can write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes: Option<Writes>,
    /// What would be run, and its digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Image of the runner, pinned at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner_image: Option<String>,
    /// Each step that was begun, in order.
    pub steps: Vec<StepStatus>,
    /// Names of those whose approval counts.
    pub approved_by: Vec<String>,
    /// Approvals given before this time no longer count: a window was opened on them and ended without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals_after: Option<Time>,
    /// Tag and branch for the application's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_backup: Option<CodeBackupEvidence>,
    /// Statistics before the migration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<BaselineEvidence>,
    /// The backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupEvidence>,
    /// The backup as it was read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationEvidence>,
    /// The export of key users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_users: Option<KeyUsersEvidence>,
    /// The rehearsal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<RehearsalEvidence>,
    /// When the window is opened, and who is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleStatus>,
    /// The window, there and back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowStatus>,
    /// Checks of the current or last stage.
    pub checks: Vec<CheckResult>,
    /// Users whose balance was written on the new version since the cut-over, as last counted: what is at stake in a way back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_written: Option<u64>,
    /// The report after a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day_report: Option<ReportEvidence>,
    /// The report after a week.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub week_report: Option<ReportEvidence>,
    /// When it was last asked whether to keep the new version or roll back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reminded_at: Option<Time>,
    /// Why and by whom the way back was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackStatus>,
    /// The latest notices, and what became of them.
    pub notices: Vec<NoticeStatus>,
    /// Runs of task Notify so far; their numbers never repeat.
    #[serde(skip_serializing_if = "is_zero")]
    pub notice_runs: u32,
    /// Ready, BackupVerified, RehearsalPassed, ChecklistCovered, WritesBlocked; Reconciling and Stalled while true.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Whether the application can write to the protected tables.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// It can.
    Open,
    /// It cannot.
    Blocked,
}

/// What would be run.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// SHA-256 over spec, SQL, image, backup and rehearsal. What people approve. Empty until the rehearsal passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Generation of the spec.
    pub generation: i64,
    /// SHA-256 of the up SQL.
    pub up_sha256: String,
    /// SHA-256 of the down SQL.
    pub down_sha256: String,
}

/// A step that was begun.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Which.
    pub name: Step,
    /// How it stands.
    pub state: StepState,
    /// Try, from 1; names the run and never repeats.
    pub attempt: u32,
    /// Tries that failed since the plan was last changed.
    #[serde(default)]
    pub failures: u32,
    /// Begin of the first try.
    pub started_at: Time,
    /// End.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    /// Its evidence is void because the plan changed; it is run again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub superseded: bool,
    /// Checks whose breach was reported by an Event; each is reported once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reported_breaches: Vec<String>,
    /// CamelCase reason of a failure or a wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Evidence, or what is wrong and the next command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How a step stands.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    /// Under way.
    Running,
    /// Done, with evidence.
    Succeeded,
    /// Ended without success.
    Failed,
    /// Not configured: nothing was done, and nothing is claimed.
    Skipped,
}

/// The window, there and back.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct WindowStatus {
    /// Task that carries it, `Window` or `RollbackWindow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// When writes were refused for the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_at: Option<Time>,
    /// When it must be over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// When writes were allowed again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Time>,
    /// Writes may be opened with the new schema: the order was, or may have been, given.
    pub releasing: bool,
    /// The flag was, or may have been, set: to `to` on the way there, to `from` on the way back.
    pub switched: bool,
    /// How often the workloads were restarted once more because the version probe answered another version.
    #[serde(skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// When flag and rollout were first seen as wanted since the last restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<Time>,
    /// `observedAt` of the probe's answer that was known then, by the runner's clock: only a later one tells of now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probed_before: Option<Time>,
    /// It was reported that the window is past its deadline.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub overdue_reported: bool,
    /// The full comparison after the commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Why and by whom the way back was begun.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RollbackStatus {
    /// `TriggerFired`, `Rollback`, `Stopped`, `BalancesUnexplained`, `DeadlinePassed`, `RolledBack`, `Deleted`, or the runner's reason.
    pub cause: String,
    /// Details: the check and its value, or the person and the reason.
    pub message: String,
    /// When.
    pub started_at: Time,
    /// Users whose balance was written on the new version before the way back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users_written_since: Option<u64>,
    /// The newest decision that was known when the way back failed: only a later `Rollback` begins it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_decisions_until: Option<Time>,
}

/// The start as it is planned.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ScheduleStatus {
    /// First time at which the window may be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<Time>,
    /// Last time of these hours; none when they have no end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Time>,
    /// Id of the maintenance notice for this start, once it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// People who are present, by their `Ready`.
    pub present: Vec<String>,
    /// People present, of those needed: `1/2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence: Option<String>,
}
