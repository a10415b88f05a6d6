//! What a task's pod needs and how it ends, one row for each task. Read by all who make a Job, run it, or name it.
//!
//! How the runs of a task follow each other (step, retention, timeout, image, retries) is a matter of the machine
//! alone: `machine/steps/tasks.rs`.

use super::Task;

/// A task, as its Job and its runner need to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSpec {
    /// Its part of names. None has a dash: otherwise runs of two migrations could have the same name.
    pub slug: &'static str,
    /// Whether its pod may be moved to another node.
    pub placement: Placement,
    /// Seconds from SIGTERM to SIGKILL.
    pub grace_seconds: i64,
    /// What SIGTERM means to it.
    pub on_sigterm: OnSigterm,
    /// The Secrets that its pod mounts, besides those of database and store. No task gets the Secrets of another.
    pub secrets: &'static [TaskSecrets],
}

/// Whether a pod may be moved to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The cluster autoscaler may move it.
    Movable,
    /// The cluster autoscaler must not move it: it is a window's, or counts failures of checks.
    Pinned,
}

/// What SIGTERM means to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSigterm {
    /// It is cut off: it leaves nothing behind, or its next process goes on where it was.
    CutOff,
    /// The task handles it, and ends within its grace.
    Handled,
    /// The same, and that is how the task ends: checks run until SIGTERM.
    Ends,
}

/// Secrets that some tasks need and others do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSecrets {
    /// Of the code repository.
    Code,
    /// Of the channels, with the templates of notices. A window sends its own notice when it is stuck without a
    /// controller.
    Channels,
    /// Of the connection to the server of the copy.
    Copy,
    /// Of the checks that these tasks measure.
    ChecksOf(&'static [Task]),
}

/// Grace of most pods.
const SHORT: i64 = 10;
/// Grace of a pod that uploads: the parts of an upload that is not aborted stay, and cost money, until they are removed
/// by hand.
const UPLOAD: i64 = 60;
/// Grace of a window's pod: without a successor, as in a namespace that is being deleted, it runs the down SQL in this
/// time.
const WINDOW: i64 = 120;

const fn row(
    slug: &'static str,
    placement: Placement,
    grace_seconds: i64,
    on_sigterm: OnSigterm,
    secrets: &'static [TaskSecrets],
) -> TaskSpec {
    TaskSpec { slug, placement, grace_seconds, on_sigterm, secrets }
}

impl Task {
    /// Its row.
    #[rustfmt::skip]
    pub const fn spec(self) -> TaskSpec {
        use OnSigterm::{CutOff, Ends, Handled};
        use Placement::{Movable, Pinned};
        use TaskSecrets::{Channels, ChecksOf, Code, Copy};
        match self {
            // It checks whether all that the others mount is there.
            Task::Preflight      => row("preflight", Movable, SHORT,  CutOff,  &[
                Code, Channels, Copy, ChecksOf(&[Task::Validate, Task::Monitor, Task::DayCheck, Task::WeekReview]),
            ]),
            Task::CodeBackup     => row("code",      Movable, SHORT,  Handled, &[Code]),
            Task::Backup         => row("backup",    Movable, UPLOAD, Handled, &[]),
            Task::VerifyBackup   => row("verify",    Movable, SHORT,  Handled, &[]),
            Task::ExportKeyUsers => row("keyusers",  Movable, UPLOAD, Handled, &[]),
            Task::Rehearse       => row("rehearse",  Movable, SHORT,  Handled, &[Copy]),
            Task::Window         => row("window",    Pinned,  WINDOW, Handled, &[Channels]),
            Task::Validate       => row("validate",  Pinned,  SHORT,  Ends,    &[ChecksOf(&[Task::Validate])]),
            Task::Monitor        => row("monitor",   Pinned,  SHORT,  Ends,    &[ChecksOf(&[Task::Monitor])]),
            Task::DayCheck       => row("day",       Movable, SHORT,  Handled, &[ChecksOf(&[Task::DayCheck])]),
            Task::WeekReview     => row("week",      Movable, SHORT,  Handled, &[ChecksOf(&[Task::WeekReview])]),
            Task::RollbackWindow => row("rollback",  Pinned,  WINDOW, Handled, &[Channels]),
            Task::RehearseRollback => row("dryrun", Movable, SHORT, Handled, &[Copy]),
            Task::Notify         => row("notify",    Movable, SHORT,  CutOff,  &[Channels]),
            Task::Cleanup        => row("cleanup",   Movable, SHORT,  CutOff,  &[Copy]),
            Task::DropParked     => row("drop",      Movable, SHORT,  CutOff,  &[]),
        }
    }

    /// Its part of names: see [`TaskSpec::slug`].
    pub const fn slug(self) -> &'static str {
        self.spec().slug
    }

    /// Whether it sends notices, or checks whether they could be sent.
    pub fn sends_notices(self) -> bool {
        self.spec().secrets.contains(&TaskSecrets::Channels)
    }

    /// Name of a migration's run and of its Job. It is deterministic, so that a second creation finds the first one;
    /// attempts never repeat.
    pub fn run_name(self, migration: &str, attempt: u32) -> String {
        format!("{migration}-{}-{attempt}", self.slug())
    }

    /// Name of the Job of a `job` check's measurement. It is deterministic, and short enough for the label that
    /// Kubernetes derives from it. `check` is its index in the stage; `measurement` counts from 1. The attempt of the
    /// stage's run is not part of it: otherwise a lost run would end the measurements that are under way.
    pub fn check_job_name(self, migration: &str, check: usize, measurement: u64) -> String {
        format!("{migration}-{}-c{check}n{measurement}", self.slug())
    }
}
