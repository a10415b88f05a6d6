//! The procedure's vocabulary: phases, steps, and the tasks that Jobs carry out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::variants::variant_names;

/// Phase of a migration.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Looks, saves, rehearses. Nothing of the application is changed.
    Preparing,
    /// Waits for people.
    AwaitingApproval,
    /// The window is being opened, is open, or is being closed.
    Executing,
    /// The new version runs; the checks of the first half hour.
    Validating,
    /// The new version runs; watched for breaches.
    Monitoring,
    /// The new version runs; looked at after a day and after a week, then a person decides whether it stays.
    Observing,
    /// The new version stays.
    Completed,
    /// On the way back.
    RollingBack,
    /// The old version runs again; nothing was lost.
    RolledBack,
    /// The way back failed, a person is needed; `status.writes` says whether writes are blocked.
    RollbackFailed,
    /// Preparation failed: nothing was changed.
    Failed,
    /// Called off before the window: nothing was changed.
    Cancelled,
}

variant_names! {
    Phase:
    Preparing AwaitingApproval Executing Validating Monitoring Observing Completed RollingBack RolledBack
    RollbackFailed Failed Cancelled
}

/// A step of the procedure.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Everything that is referred to is there and fits.
    Preflight,
    /// The team knows what is planned.
    NotifyTeam,
    /// Tag and branch pushed.
    CodeBackup,
    /// Statistics and every user's balance.
    Baseline,
    /// Dump in the bucket.
    Backup,
    /// Dump read back to its end.
    VerifyBackup,
    /// Rows of key users in the bucket.
    ExportKeyUsers,
    /// Whole procedure on a copy.
    Rehearse,
    /// People agree.
    Approve,
    /// The time has come, people are there, the maintenance notice is out.
    Schedule,
    /// Writes blocked, with proof.
    BlockWrites,
    /// SQL committed.
    Migrate,
    /// Tables and balances checked.
    VerifyMigration,
    /// Flag and rollout.
    SwitchApplication,
    /// Writes open.
    UnblockWrites,
    /// Checks of the validation stage.
    Validate,
    /// Checks of the monitoring stage.
    Monitor,
    /// Checks after a day, with a report.
    DayCheck,
    /// Checks after a week, with a report.
    WeekReview,
    /// A person decides to keep the new version or roll back.
    Decide,
    /// Way back: writes blocked, with proof.
    BlockWritesForRollback,
    /// Way back: flag and rollout.
    SwitchBack,
    /// Way back: SQL committed.
    RollbackSql,
    /// Way back: proven equal.
    VerifyRollback,
    /// Way back: writes open.
    UnblockWritesAfterRollback,
    /// Guards removed from the database.
    Cleanup,
}

variant_names! {
    Step:
    Preflight NotifyTeam CodeBackup Baseline Backup VerifyBackup ExportKeyUsers Rehearse Approve Schedule
    BlockWrites Migrate VerifyMigration SwitchApplication UnblockWrites Validate Monitor DayCheck WeekReview Decide
    BlockWritesForRollback SwitchBack RollbackSql VerifyRollback UnblockWritesAfterRollback Cleanup
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

variant_names! {
    Task:
    Preflight CodeBackup Backup VerifyBackup ExportKeyUsers Rehearse Window Validate Monitor DayCheck WeekReview
    RollbackWindow Notify Cleanup
}

impl Task {
    /// Name part of a task. None holds a dash: otherwise run names of two migrations could be the same.
    pub fn slug(self) -> &'static str {
        match self {
            Task::Preflight => "preflight",
            Task::CodeBackup => "code",
            Task::Backup => "backup",
            Task::VerifyBackup => "verify",
            Task::ExportKeyUsers => "keyusers",
            Task::Rehearse => "rehearse",
            Task::Window => "window",
            Task::Validate => "validate",
            Task::Monitor => "monitor",
            Task::DayCheck => "day",
            Task::WeekReview => "week",
            Task::Notify => "notify",
            Task::RollbackWindow => "rollback",
            Task::Cleanup => "cleanup",
        }
    }

    /// Name of a migration's run and of its Job. Attempts never repeat.
    pub fn run_name(self, migration: &str, attempt: u32) -> String {
        format!("{migration}-{}-{attempt}", self.slug())
    }

    /// Name of the Job of a `job` check's measurement, short enough for the label that Kubernetes makes of it. `check` is its
    /// place in the stage; `measurement` counts from 1. The attempt of the stage's run is not part of it: otherwise each lost
    /// run would take the measurements under way with it.
    pub fn check_job_name(self, migration: &str, check: usize, measurement: u64) -> String {
        format!("{migration}-{}-c{check}n{measurement}", self.slug())
    }
}
