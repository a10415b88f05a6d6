//! How the runs of a task follow each other, one row each: step, retention, timeout, image, retries. What its pod needs
//! is in [`crate::api::TaskSpec`].

use crate::api::{Phase, Step, Task};

/// How the runs of a task follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunPolicy {
    /// Step whose attempt numbers the runs; `None` for notices, which have numbers of their own.
    pub(crate) step: Option<Step>,
    /// How long a run is kept.
    pub(crate) retention: Retention,
    /// When its Job is ended.
    pub(crate) timeout: Timeout,
    /// Which image it has.
    pub(crate) image: Image,
    /// Longest wait between two attempts, in seconds; the waits are 2, 4, 8 ... s.
    pub(crate) longest_retry: i64,
}

/// How long a run is kept. Only the run of the step's present attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retention {
    /// While the migration is in the phase.
    During(Phase),
    /// While the migration is in the phase, and as a record when the run has ended. Of those that failed only the last:
    /// one that fails for days would leave a run and a pod each few minutes.
    Record(Phase),
    /// While the migration is in the phase. Any run that was ordered to block writes is never taken from under its pod.
    Window(Phase),
    /// In each phase.
    Always,
    /// While its notice is pending: what became of it is in the status.
    WhilePending,
}

/// When a run's Job is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timeout {
    /// Never: the task ends itself.
    None,
    /// After `spec.runner.stepTimeout`.
    Step,
    /// So many seconds after the measurements of the follow-up.
    AfterMeasurements(u64),
    /// After so many seconds.
    Seconds(u64),
}

/// Which image a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// The one that was approved: before the window and for the windows, also for the rollback a week later.
    Approved,
    /// The operator's own: what comes after needs the tasks that this operator knows.
    Operator,
}

const fn row(step: Step, retention: Retention, timeout: Timeout, image: Image, longest_retry: i64) -> RunPolicy {
    RunPolicy { step: Some(step), retention, timeout, image, longest_retry }
}

/// A quarter of an hour for what is not measured.
const FOLLOW_UP: Timeout = Timeout::AfterMeasurements(900);

/// The row of a task.
#[rustfmt::skip]
pub(crate) const fn run_policy(task: Task) -> RunPolicy {
    use Image::{Approved, Operator};
    use Retention::{Always, During, Record, WhilePending, Window};
    match task {
        // An operator is probably fixing what it named.
        Task::Preflight      => row(Step::Preflight,      Record(Phase::Preparing),  Timeout::Step, Approved, 30),
        Task::CodeBackup     => row(Step::CodeBackup,     Record(Phase::Preparing),  Timeout::Step, Approved, 300),
        // Baseline and Backup share a run, since they share a snapshot.
        Task::Backup         => row(Step::Baseline,       Record(Phase::Preparing),  Timeout::Step, Approved, 300),
        Task::VerifyBackup   => row(Step::VerifyBackup,   Record(Phase::Preparing),  Timeout::Step, Approved, 300),
        Task::ExportKeyUsers => row(Step::ExportKeyUsers, Record(Phase::Preparing),  Timeout::Step, Approved, 300),
        Task::Rehearse       => row(Step::Rehearse,       Record(Phase::Preparing),  Timeout::Step, Approved, 300),
        Task::Window         => row(Step::BlockWrites,    Window(Phase::Executing),  Timeout::None, Approved, 300),
        Task::RollbackWindow => {
            row(Step::BlockWritesForRollback, Window(Phase::RollingBack), Timeout::None, Approved, 300)
        }
        Task::Validate       => row(Step::Validate,       During(Phase::Validating), Timeout::None, Operator, 60),
        Task::Monitor        => row(Step::Monitor,        During(Phase::Monitoring), Timeout::None, Operator, 60),
        Task::DayCheck       => row(Step::DayCheck,       Record(Phase::Observing),  FOLLOW_UP,     Operator, 300),
        Task::WeekReview     => row(Step::WeekReview,     Record(Phase::Observing),  FOLLOW_UP,     Operator, 300),
        // A dump of the whole database: rarely, even if it fails.
        Task::RehearseRollback => {
            row(Step::RehearseRollback, Record(Phase::Observing), Timeout::Step, Operator, 3600)
        }
        Task::Cleanup        => row(Step::Cleanup, Always, Timeout::Seconds(600), Operator, 300),
        // No one waits for it, and what it waits for may last for days: another migration, or a view that is needed.
        Task::DropParked     => row(Step::DropParked, Always, Timeout::Seconds(600), Operator, 3600),
        Task::Notify         => RunPolicy {
            step: None,
            retention: WhilePending,
            timeout: Timeout::Seconds(120),
            image: Operator,
            longest_retry: 300,
        },
    }
}
