//! Everything that `decide` may consider, as one plain value.

use std::fmt;

use super::faults::{Fault, fault};
use crate::{
    api::{
        ClockOffset, DecisionKind, DecisionRef, ExpectedRollout, MigrationRun, Reason, RunPhase, Task, Time,
        WindowProgress, WorkloadRef, sha256,
    },
    shared::message::Message,
};

/// The world as the controller saw it. May be stale; no effect may be harmful because of that.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// Namespace of the `CreditMigration`, and of all that it names.
    pub namespace: String,
    /// Name of the `CreditMigration`.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// Its namespace has a deletion timestamp: the API server refuses new objects there. Read only of a migration that
    /// is being deleted.
    pub namespace_deleting: bool,
    /// It carries the operator's finalizer.
    pub finalizer: bool,
    /// Image for new migrations' runners.
    pub runner_image: String,
    /// Runs that belong to this UID, with their Jobs.
    pub runs: Vec<ObservedRun>,
    /// Decisions on this UID, oldest first.
    pub decisions: Vec<ObservedDecision>,
    /// Why names and reports cannot be trusted: an admission policy or its binding is missing or weak. `None` when all
    /// are in force.
    pub policy_problem: Option<String>,
    /// The API server's clock against the controller's; `None` if it is not known.
    pub server_clock: Option<ClockOffset>,
    /// The flag.
    pub flag: ObservedFlag,
    /// Whether the API server accepts the flag's next write: see [`super::switch_trial`].
    pub flag_write: DryRun,
    /// Value of `spec.application.flag.rollbackKey` in the flag's ConfigMap; `None` if it is not there.
    pub rollback_enabled: Option<String>,
    /// Jobs of `job` checks, of this UID.
    pub check_jobs: Vec<CheckJob>,
    /// The up SQL.
    pub up: ObservedSql,
    /// The down SQL.
    pub down: ObservedSql,
    /// Who wrote the ConfigMaps with the SQL, each once.
    pub sql_authors: Vec<SqlAuthor>,
    /// Quotas that have no room for the pods that a rollout of the workloads creates first, or why the API server
    /// refuses to show the quotas.
    pub quota_shortages: Result<Vec<QuotaShortage>, String>,
    /// What the API server refused when the effects of the last decision were applied.
    pub refused_effect: Option<String>,
    /// Workloads of `spec.application.workloads`, then those that only checks name.
    pub workloads: Vec<Workload>,
}

/// A quota with less left than is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaShortage {
    /// Name of the ResourceQuota.
    pub quota: String,
    /// The resource, as the quota names it.
    pub resource: String,
    /// What is used, as a quantity.
    pub used: String,
    /// The limit, as a quantity.
    pub hard: String,
    /// What is needed in addition, as a quantity.
    pub needed: String,
}

/// A run and its Job.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedRun {
    /// The run.
    pub run: MigrationRun,
    /// Its Job.
    pub job: Job,
    /// The newest pod of its Job. Read while the Job is active, or has failed without a report.
    pub pod: JobPod,
    /// When the run was last written, by the API server's clock.
    pub written_at: Option<Time>,
}

/// State of a Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Not there.
    Absent,
    /// Not ended.
    Active,
    /// Condition `Complete` is `True`.
    Complete,
    /// Condition `Failed` is `True`.
    Failed {
        /// Its reason: `BackoffLimitExceeded`, `DeadlineExceeded`, ...
        reason: String,
    },
}

/// A Job of a `job` check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckJob {
    /// Its name: see [`Observed::check_job_name`].
    pub name: String,
    /// Its state.
    pub job: Job,
    /// Its newest pod.
    pub pod: JobPod,
}

/// Reason of a Job, or a pod, that was ended by its time-out.
pub const DEADLINE: &str = "DeadlineExceeded";

/// The pod of a Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobPod {
    /// Not there: not made yet, or removed.
    Absent,
    /// Its container was never started, and why (`ImagePullBackOff`, `Unschedulable`, or `FailedCreate` if the API
    /// server refused the pod); `None` while it is starting.
    Waiting(Option<PodReason>),
    /// Its container runs, or has run.
    Started,
    /// Its container was ended, not by its own program: `OOMKilled`, `Evicted`, `DeletionByTaintManager`, ...
    Stopped(PodReason),
}

/// What Kubernetes says of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodReason {
    /// CamelCase, in Kubernetes' words.
    pub reason: String,
    /// Details, in one line; may be empty.
    pub message: String,
}

impl JobPod {
    /// What Kubernetes says of it, to be added to a message; empty if it says nothing.
    pub fn note(&self) -> String {
        match self {
            JobPod::Waiting(Some(why)) | JobPod::Stopped(why) => format!("; its pod: {why}"),
            JobPod::Absent | JobPod::Waiting(None) | JobPod::Started => String::new(),
        }
    }
}

/// Most characters of what Kubernetes says: an Event and a condition have room for it.
const LONGEST_MESSAGE: usize = 400;

impl PodReason {
    /// A reason with its details, which are made one line of a limited length.
    pub fn new(reason: impl Into<String>, message: &str) -> Self {
        Self { reason: reason.into(), message: one_line(message) }
    }
}

/// What Kubernetes says, as one line of a limited length.
pub fn one_line(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST_MESSAGE) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}

impl fmt::Display for PodReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.as_str() {
            "" => f.write_str(&self.reason),
            message => write!(f, "{}: {message}", self.reason),
        }
    }
}

/// A decision on this migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedDecision {
    /// Name of the object.
    pub name: String,
    /// Name of the approver.
    pub by: String,
    /// What was decided.
    pub decision: DecisionKind,
    /// Digest of the plan that it is on.
    pub digest: Option<String>,
    /// What the approver gave as the reason.
    pub reason: Option<String>,
    /// Time of the decision, by the API server's clock.
    pub at: Time,
}

impl ObservedDecision {
    /// The object.
    pub(crate) fn reference(&self) -> DecisionRef {
        DecisionRef { name: self.name.clone(), at: self.at }
    }
}

/// The flag's ConfigMap key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObservedFlag {
    /// No such ConfigMap.
    ConfigMapMissing,
    /// The ConfigMap has no such key.
    KeyMissing,
    /// The key's value.
    Value {
        /// The value.
        value: String,
        /// `immutable: true`.
        immutable: bool,
        /// Value of the annotation [`crate::api::FLAG_SET_FOR`].
        set_for: Option<String>,
    },
}

/// What the API server answers to a write that it carries out without effect (`dryRun=All`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DryRun {
    /// Not tried, or the answer says nothing of the write: a conflict, a time-out.
    #[default]
    Untried,
    /// The write itself would be accepted.
    Accepted,
    /// Refused by a policy, a webhook, or for want of a right: in the API server's words.
    Refused(String),
    /// Not carried out, because a webhook does not support it: in the API server's words.
    Unsupported(String),
}

/// A ConfigMap key with SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObservedSql {
    /// ConfigMap or key missing.
    Missing,
    /// The key is not UTF-8: `kubectl` stores it as `binaryData`.
    NotText,
    /// SHA-256 of the text, `sha256:` and 64 hex digits.
    Present(String),
}

impl ObservedSql {
    /// A key with its text, or with what is not text.
    pub fn of(text: Option<&str>, binary: bool) -> Self {
        match text {
            Some(text) => Self::Present(sha256(text.as_bytes())),
            None if binary => Self::NotText,
            None => Self::Missing,
        }
    }
}

/// Who wrote a ConfigMap with SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlAuthor {
    /// Name of the ConfigMap.
    pub config_map: String,
    /// The user; `None` if it has no label [`crate::api::SQL_LABEL`], without which no one verifies the name.
    pub author: Option<String>,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its kind and name.
    pub reference: WorkloadRef,
    /// It exists.
    pub exists: bool,
    /// Its pods read the flag's key from the environment.
    pub reads_flag: bool,
    /// Value of the pod template's annotation [`crate::api::RESTARTED_FOR`].
    pub restarted_for: Option<String>,
    /// Whether the API server accepts its next restart: see [`super::switch_trial`].
    pub write: DryRun,
    /// `spec.paused`: a restart replaces no pod.
    pub paused: bool,
    /// What keeps it from being settled: the spec is not observed, or a replica is not updated, not available or
    /// surplus. `None` when it is settled.
    pub unsettled: Option<String>,
    /// Value of the Deployment's own annotation [`crate::api::RESTARTED_FOR`]: the last switch that wrote it.
    pub switched_for: Option<String>,
    /// Its own pods, terminating ones included, that were not made from the present template's annotation. Its own are
    /// those of its ReplicaSets.
    pub old_pods: u32,
    /// Its own pods, terminating ones included.
    pub pods: Vec<WorkloadPod>,
    /// What keeps the pods of the present template from becoming ready.
    pub failure: Option<RolloutFailure>,
    /// Names of the pods that its selector matches and that are not its own, in order.
    pub foreign_pods: Vec<String>,
    /// Available and wanted replicas.
    pub available: (i32, i32),
    /// What a restart is expected to take.
    pub rollout: Option<ExpectedRollout>,
    /// SHA-256 of its pod template, without the annotations of restarts.
    pub template_sha256: Option<String>,
}

impl Workload {
    /// One that is not there.
    pub fn missing(reference: WorkloadRef) -> Self {
        Self {
            reference,
            exists: false,
            reads_flag: false,
            restarted_for: None,
            write: DryRun::Untried,
            paused: false,
            unsettled: None,
            switched_for: None,
            old_pods: 0,
            pods: vec![],
            failure: None,
            foreign_pods: vec![],
            available: (0, 0),
            rollout: None,
            template_sha256: None,
        }
    }
}

/// A pod of a workload's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPod {
    /// Value of its annotation [`crate::api::RESTARTED_FOR`].
    pub restarted_for: Option<String>,
    /// Latest start of a container of it, by its node's clock: a container reads the flag as it starts, also when it
    /// is restarted in place. `None` unless every container runs and the pod is ready.
    pub started_at: Option<Time>,
}

/// What keeps new pods from becoming ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutFailure {
    /// What it is.
    pub kind: RolloutFailureKind,
    /// Name of the pod; `None` if there is none.
    pub pod: Option<String>,
    /// What Kubernetes says of it.
    pub why: PodReason,
}

/// Kinds of what keeps new pods from becoming ready, by how likely they pass by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RolloutFailureKind {
    /// The rollout has made no progress for the Deployment's `progressDeadlineSeconds`.
    NoProgress,
    /// The image's name is invalid, or it may not be pulled.
    ImageInvalid,
    /// The image could not be pulled.
    ImageNotPulled,
    /// A container could not be created: a Secret, a ConfigMap or a key is missing.
    ContainerNotCreated,
    /// A container has ended twice or more, and the pod is not ready.
    CrashLoop,
    /// The API server refuses the pods: a quota or a policy.
    PodsRefused,
}

/// Result of a run, from its Job and its report.
#[derive(Clone, Debug, PartialEq)]
pub enum RunOutcome<'a> {
    /// Not ended, or not started.
    Pending,
    /// Ended well.
    Succeeded(&'a MigrationRun),
    /// Ended without success: why, and what to do.
    Failed(Reason, Message),
}

impl Observed {
    /// The run of a task and attempt, if it is there.
    pub fn run(&self, task: Task, attempt: u32) -> Option<&ObservedRun> {
        self.runs.iter().find(|r| r.run.spec.task == task && r.run.spec.attempt == attempt)
    }

    /// Result of the run of a task and attempt.
    pub fn outcome(&self, task: Task, attempt: u32) -> RunOutcome<'_> {
        let Some(ObservedRun { run, job, pod, .. }) = self.run(task, attempt) else { return RunOutcome::Pending };
        let status = run.status.as_ref();
        match status.map(|s| s.phase).unwrap_or_default() {
            RunPhase::Succeeded => RunOutcome::Succeeded(run),
            RunPhase::Failed => RunOutcome::Failed(
                status.and_then(|s| s.reason).unwrap_or(Reason::Internal),
                status
                    .and_then(|s| s.message.as_deref())
                    .map_or_else(|| Message::new("no message was reported"), Message::parse),
            ),
            // A Job may end without a report: both conditions count, or a failed Job would hang the step.
            RunPhase::Pending | RunPhase::Running => match job {
                Job::Absent | Job::Active => RunOutcome::Pending,
                Job::Failed { .. } if fault(Fault::LostJobAwaited) => RunOutcome::Pending,
                Job::Complete => RunOutcome::Failed(
                    Reason::PodFailed,
                    Message::new(format!("Job {} completed without a report", self.run_name(task, attempt)))
                        .next(self.kubectl(&format!("logs job/{}", self.run_name(task, attempt)))),
                ),
                Job::Failed { reason } => RunOutcome::Failed(
                    if reason == DEADLINE { Reason::StepTimeout } else { Reason::PodFailed },
                    Message::new(format!(
                        "Job {} failed ({reason}{}) without a report",
                        self.run_name(task, attempt),
                        pod.note()
                    ))
                    .next(self.describe_job(&self.run_name(task, attempt))),
                ),
            },
        }
    }

    /// Name of a run of this migration and of its Job: see [`Task::run_name`].
    pub fn run_name(&self, task: Task, attempt: u32) -> String {
        task.run_name(&self.name, attempt)
    }

    /// Name of the Job of a `job` check's measurement: see [`Task::check_job_name`].
    pub fn check_job_name(&self, task: Task, check: usize, measurement: u64) -> String {
        task.check_job_name(&self.name, check, measurement)
    }

    /// Progress of a window task.
    pub fn progress(&self, task: Task, attempt: u32) -> Option<&WindowProgress> {
        self.run(task, attempt)?.run.status.as_ref()?.window.as_ref()
    }

    /// Value of the flag, if it can be read.
    pub fn flag_value(&self) -> Option<&str> {
        match &self.flag {
            ObservedFlag::Value { value, .. } => Some(value),
            ObservedFlag::ConfigMapMissing | ObservedFlag::KeyMissing => None,
        }
    }
}
