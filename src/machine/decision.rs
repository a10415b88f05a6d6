//! What the controller is asked to do, as data.

use crate::api::{JobCheck, MigrationRunSpec, Time, WindowOrder, WorkloadRef};

/// One thing to do. Each is safe to repeat: names are deterministic and targets are levels, not edges.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Put the finalizer on the migration.
    AddFinalizer,
    /// Let the migration go. Irreversible.
    RemoveFinalizer,
    /// See that ServiceAccount, RoleBinding, `MigrationRun` and Job are there; adopt what is ours, refuse what is not.
    StartRun(Box<StartRun>),
    /// See that the Job of a `job` check's measurement is there.
    StartCheckJob(Box<CheckJobStart>),
    /// Delete the Job and the `MigrationRun`. A window run is deleted only while its order is `Standby`. Irreversible.
    RemoveRun {
        /// Name of both.
        name: String,
    },
    /// Raise the order of a window run. Irreversible.
    OrderWindow {
        /// Name of the run.
        name: String,
        /// The order.
        order: WindowOrder,
    },
    /// Set the flag and its marker. Irreversible.
    SetFlag {
        /// Value.
        value: String,
        /// Value of the annotation [`crate::api::FLAG_SET_FOR`].
        marker: String,
    },
    /// Restart a workload by its pod template's annotation [`crate::api::RESTARTED_FOR`]. Irreversible.
    Restart {
        /// The workload.
        workload: WorkloadRef,
        /// Value of the annotation.
        marker: String,
    },
    /// Give a workload's pod template its earlier annotation back, and write the marker to the workload itself: pods of
    /// that template are kept. Irreversible.
    KeepPods {
        /// The workload.
        workload: WorkloadRef,
        /// Value of the template's annotation [`crate::api::RESTARTED_FOR`]; `None` removes it.
        template: Option<String>,
        /// Value of the workload's own annotation of that name.
        marker: String,
    },
    /// Publish an Event.
    Event(Event),
}

impl Effect {
    /// What is fenced: the object that the effect changes or removes for good, which no decision on a stale cache may
    /// cause. It is read first, then the migration is read again and compared with what was decided on, and the write
    /// carries the version of the object as read. `None` for effects that a later decision makes up for.
    pub fn target(&self) -> Option<FenceTarget<'_>> {
        match self {
            Effect::RemoveFinalizer => Some(FenceTarget::Migration),
            Effect::RemoveRun { name } | Effect::OrderWindow { name, .. } => Some(FenceTarget::Run(name)),
            Effect::SetFlag { .. } => Some(FenceTarget::Flag),
            Effect::Restart { workload, .. } | Effect::KeepPods { workload, .. } => {
                Some(FenceTarget::Workload(workload))
            }
            Effect::AddFinalizer | Effect::StartRun(_) | Effect::StartCheckJob(_) | Effect::Event(_) => None,
        }
    }

    /// Whether it is fenced.
    pub fn irreversible(&self) -> bool {
        self.target().is_some()
    }
}

/// The object that an irreversible effect changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FenceTarget<'a> {
    /// The migration itself.
    Migration,
    /// The `MigrationRun` of this name.
    Run(&'a str),
    /// The ConfigMap of the flag.
    Flag,
    /// A workload.
    Workload(&'a WorkloadRef),
}

/// A run to be started.
#[derive(Clone, Debug, PartialEq)]
pub struct StartRun {
    /// Name of `MigrationRun` and Job.
    pub name: String,
    /// Spec of the run.
    pub spec: MigrationRunSpec,
    /// Image of its pod.
    pub image: String,
    /// Seconds after which the Job is ended; `None` for tasks that end themselves.
    pub timeout_seconds: Option<u64>,
}

/// One measurement of a `job` check.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckJobStart {
    /// Name of the Job.
    pub name: String,
    /// Name of the check.
    pub check: String,
    /// What it runs.
    pub job: JobCheck,
}

/// A Kubernetes Event on the migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: String,
    /// Observed value, limit, next command.
    pub note: String,
}

/// Result of one call of [`super::decide`]: the next status, what to do once it is persisted, when to call again.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// To be persisted first.
    pub status: crate::api::CreditMigrationStatus,
    /// To be done after that, in order.
    pub effects: Vec<Effect>,
    /// When to call again although nothing happens.
    pub wake_at: Option<Time>,
}
