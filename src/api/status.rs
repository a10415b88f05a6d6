//! Status of a `CreditMigration`: the checklist, checked off by evidence.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    BackupEvidence, BaselineEvidence, CheckResult, CodeBackupEvidence, Comparison, ExpectedWindow, KeyUsersEvidence,
    NotShown, NoticeStatus, Phase, Reason, RecoveryPoints, RehearsalEvidence, Replication, ReportEvidence,
    RollbackRehearsalEvidence, SafeguardReport, Step, TableUsers, Task, Time, UnexplainedEvidence,
    VerificationEvidence, WorkProgress, named::named,
};
use crate::shared::message::Message;

/// State of a migration.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct CreditMigrationStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Current or last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// Position and name of the step: `9/20 Approve`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// How far the long part of a task that is under way is, every 10 s while it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<WorkProgress>,
    /// Approvals, of those required: `1/2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals: Option<String>,
    /// Whether the application can write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes: Option<Writes>,
    /// What the approvals are for, and its digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Image of the runner, pinned at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner_image: Option<String>,
    /// Each step that was started, in order.
    pub steps: Vec<StepStatus>,
    /// Approvers whose approval counts.
    pub approved_by: Vec<String>,
    /// Approvals before this time no longer count: a window was started on them and ended without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals_after: Option<Time>,
    /// Decisions `Keep` and `Rollback` that were there before one was last asked for: they do not answer it.
    /// Not a time, because the clocks of the operator and of several API servers differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub earlier_decisions: Vec<DecisionRef>,
    /// What else uses the tables, as Preflight found it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_users: Option<TableUsers>,
    /// Tag and branch for the application's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_backup: Option<CodeBackupEvidence>,
    /// Statistics before the migration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<BaselineEvidence>,
    /// The backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupEvidence>,
    /// The backup, read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationEvidence>,
    /// The export of key users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_users: Option<KeyUsersEvidence>,
    /// The rehearsal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<RehearsalEvidence>,
    /// When the window starts, and who is present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleStatus>,
    /// The last window, in either direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowStatus>,
    /// Checks of the current or last stage.
    pub checks: Vec<CheckResult>,
    /// List of the balances that nothing explains, once a check of balances failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<UnexplainedEvidence>,
    /// Users whose balance was written on the new version since the cutover, as last counted. A rollback affects them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_written: Option<u64>,
    /// Credits by which the balances of those users differ from those at the cutover, as last measured: the sum of
    /// absolute differences, a decimal text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credits_written: Option<String>,
    /// Whether the database has what a rollback needs, as last measured after the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safeguards: Option<SafeguardReport>,
    /// The report after a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day_report: Option<ReportEvidence>,
    /// The report after a week.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub week_report: Option<ReportEvidence>,
    /// The rollback, rehearsed again on what was written since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_rehearsal: Option<RollbackRehearsalStatus>,
    /// When approvers were last asked whether to keep the new version or roll back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reminded_at: Option<Time>,
    /// Why and by whom the rollback was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackStatus>,
    /// The latest notices and their deliveries.
    pub notices: Vec<NoticeStatus>,
    /// Number of runs of task Notify so far. Their numbers never repeat.
    #[serde(skip_serializing_if = "is_zero")]
    pub notice_runs: u32,
    /// What is wrong at present. Each is reported by one Event, when it has lasted for long enough.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// Ready, BackupVerified, RehearsalPassed, ChecklistCovered, WritesBlocked; RollbackReady from the end of the
    /// window until `Keep`, while writes are open; Reconciling and Stalled while true.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Something that is wrong for as long as it lasts.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Its reason, as in its Event, CamelCase.
    pub reason: String,
    /// Name of the run, where several may have the same problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// When it was first observed.
    pub since: Time,
    /// An Event reported it. Until then it may pass by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reported: bool,
    /// Observed value, limit and next command.
    pub message: String,
}

/// Whether the application can write to the protected tables.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Writes are allowed.
    Open,
    /// Writes are refused.
    Blocked,
}

named! {
    Writes: Open, Blocked
}

/// What the approvals are for.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// SHA-256 of spec, SQL, image, backup and rehearsal. Approvals name it. Absent until the rehearsal has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Generation of the spec.
    pub generation: i64,
    /// SHA-256 of the up SQL.
    pub up_sha256: String,
    /// SHA-256 of the down SQL.
    pub down_sha256: String,
    /// The pod templates of the workloads, in the order of the spec. Part of the digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_templates: Vec<PodTemplateDigest>,
    /// Workloads whose pod template has changed since approvals were first asked for: those given before are void.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed_workloads: Vec<String>,
    /// How long the window is expected to take. Not part of the digest: it follows the number of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_window: Option<ExpectedWindow>,
}

/// The pod template of a workload, as it was approved.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct PodTemplateDigest {
    /// Name of the workload.
    pub workload: String,
    /// SHA-256 of its pod template, without the annotations of restarts.
    pub sha256: String,
}

/// A step that was started.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// The step.
    pub name: Step,
    /// Its state.
    pub state: StepState,
    /// Attempt, from 1. It is part of the run's name and never repeats.
    pub attempt: u32,
    /// Attempts that failed since the plan last changed.
    #[serde(default)]
    pub failures: u32,
    /// Start of the current attempt.
    pub started_at: Time,
    /// End of the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Time of the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    /// Its evidence is void because the plan changed; it is run again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub superseded: bool,
    /// Checks whose breach was reported by an Event; each is reported once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reported_breaches: Vec<String>,
    /// Reason of a failure or a wait, CamelCase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Evidence, or the problem and the next command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// State of a step.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    /// Under way.
    Running,
    /// Done, with evidence.
    Succeeded,
    /// Ended without success.
    Failed,
    /// Not configured: nothing was done.
    Skipped,
}

named! {
    StepState: Running, Succeeded, Failed, Skipped
}

/// The last window, in either direction.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct WindowStatus {
    /// Its task, `Window` or `RollbackWindow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// When writes were first refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_at: Option<Time>,
    /// When it must have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// When writes were unblocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unblocked_at: Option<Time>,
    /// Writes may be unblocked on the new schema: the order was, or may have been, given. In a rollback: it is given
    /// up, because nothing was switched.
    pub unblocking: bool,
    /// The flag was, or may have been, set: to `to` on the forward path, to `from` in a rollback.
    pub switched: bool,
    /// The flag was not at `to` until then, by the API server's clock. In a rollback inside the forward window pods
    /// that were started before are kept; absent: none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unswitched_until: Option<Time>,
    /// How often the workloads were restarted again because the version probe returned another version.
    #[serde(skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// When flag and rollout were first observed as wanted since the last restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<Time>,
    /// `observedAt` of the probe's answer known at that time, by the runner's clock. Only a later answer is current.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probed_before: Option<Time>,
    /// The full comparison after the commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// Where a point-in-time recovery can stop.
    #[serde(skip_serializing_if = "RecoveryPoints::is_empty")]
    pub recovery: RecoveryPoints,
    /// The standbys before the switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<Replication>,
    /// What the window could not show, and went on without; one of each kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub not_shown: Vec<NotShown>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Why and by whom the rollback was started.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RollbackStatus {
    /// `TriggerFired`, `Rollback`, `Stopped`, `BalancesUnexplained`, `DeadlinePassed`, `RolledBack`, `Deleted`, or the
    /// runner's reason.
    pub cause: String,
    /// Details: the check and its value, or who decided and why.
    pub message: String,
    /// When.
    pub started_at: Time,
    /// Users whose balance was written on the new version before the rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users_written_since: Option<u64>,
}

/// One `MigrationDecision`. One that is deleted and made again under the same name has another time.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DecisionRef {
    /// Name of the object.
    pub name: String,
    /// When it was created, by the API server's clock.
    pub at: Time,
}

/// Rehearsals of the rollback while the new version runs.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct RollbackRehearsalStatus {
    /// The last one that passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed: Option<RollbackRehearsalEvidence>,
    /// Seconds for which a rollback would block writes, by the last one that passed: rollout, SQL, comparison.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_window_seconds: Option<u64>,
    /// Why the last one did not pass; absent if it did. That it could not be carried out is no failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<RollbackRehearsalFailure>,
}

impl RollbackRehearsalStatus {
    /// The last one in one line. `None` before the first.
    pub fn summary(&self) -> Option<String> {
        if let Some(RollbackRehearsalFailure { reason, message, at }) = &self.failed {
            return Some(format!("failed at {at:.0}: {reason}: {}", Message::parse(message).text));
        }
        let passed = self.passed.as_ref()?;
        let window = self.expected_window_seconds;
        let window = window.map(|seconds| format!("; writes would be blocked for about {seconds} s"));
        Some(format!("at {:.0}: {}{}", passed.finished_at, passed.summary(), window.unwrap_or_default()))
    }
}

/// A rollback that would fail.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RollbackRehearsalFailure {
    /// The runner's reason.
    pub reason: Reason,
    /// Observed value and limit.
    pub message: String,
    /// When it was known.
    pub at: Time,
}

/// The planned start.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ScheduleStatus {
    /// Earliest time at which the window may start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<Time>,
    /// End of these hours; absent when they have no end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Time>,
    /// Windows of this start that ended without effect because of a lock or a lack of resources.
    #[serde(skip_serializing_if = "is_zero")]
    pub failed_windows: u32,
    /// When the next window of this start is due, after such an end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    /// Id of the maintenance notice for this start, once it exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// Who is present, by a `Ready` decision.
    pub present: Vec<String>,
    /// People present, of those required: `1/2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence: Option<String>,
}
