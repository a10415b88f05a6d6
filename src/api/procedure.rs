//! The procedure's vocabulary: phases, steps, and the tasks that Jobs carry out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::named::named;

/// Phase of a migration.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Checks, backs up and rehearses. The application is not changed.
    Preparing,
    /// Waits for approvals, the start time and presence.
    AwaitingApproval,
    /// The window: from the order to block writes until they are unblocked.
    Executing,
    /// The new version runs; the checks of the first half hour are measured.
    Validating,
    /// The new version runs and is monitored for breaches.
    Monitoring,
    /// The new version runs. It is checked after a day and after a week, then an approver decides whether it stays.
    Observing,
    /// The new version stays.
    Completed,
    /// The rollback is under way.
    RollingBack,
    /// The old version runs again; nothing was lost.
    RolledBack,
    /// The rollback failed, manual intervention is required. `status.writes` says whether writes are blocked.
    RollbackFailed,
    /// Preparation failed: nothing was changed.
    Failed,
    /// Cancelled before the window: nothing was changed.
    Cancelled,
}

named! {
    Phase: Preparing, AwaitingApproval, Executing, Validating, Monitoring, Observing, Completed, RollingBack,
    RolledBack, RollbackFailed, Failed, Cancelled
}

/// A step of the procedure.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Everything that the spec names exists and fits.
    Preflight,
    /// The team is notified of the plan.
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
    /// The plan is approved.
    Approve,
    /// The start time has come, presence is confirmed, the maintenance notice is sent.
    Schedule,
    /// Writes blocked, verified by a refused write.
    BlockWrites,
    /// SQL committed.
    Migrate,
    /// Tables and balances checked.
    VerifyMigration,
    /// Flag and rollout.
    SwitchApplication,
    /// Writes unblocked.
    UnblockWrites,
    /// Checks of the validation stage.
    Validate,
    /// Checks of the monitoring stage.
    Monitor,
    /// Checks after a day, with a report.
    DayCheck,
    /// Checks after a week, with a report.
    WeekReview,
    /// An approver decides whether to keep the new version or roll back.
    Decide,
    /// Rollback: writes blocked, verified by a refused write.
    BlockWritesForRollback,
    /// Rollback: flag and rollout.
    SwitchBack,
    /// Rollback: SQL committed.
    RollbackSql,
    /// Rollback: tables and balances checked.
    VerifyRollback,
    /// Rollback: writes unblocked.
    UnblockWritesAfterRollback,
    /// The rollback is rehearsed again on a copy of the live database. It follows the observation, and blocks nothing.
    RehearseRollback,
    /// Triggers removed from the database.
    Cleanup,
    /// Parked tables dropped, a given time after the decision to keep. It follows Cleanup, and blocks nothing.
    DropParked,
}

named! {
    Step: Preflight, NotifyTeam, CodeBackup, Baseline, Backup, VerifyBackup, ExportKeyUsers, Rehearse, Approve,
    Schedule, BlockWrites, Migrate, VerifyMigration, SwitchApplication, UnblockWrites, Validate, Monitor, DayCheck,
    WeekReview, Decide, BlockWritesForRollback, SwitchBack, RollbackSql, VerifyRollback,
    UnblockWritesAfterRollback, RehearseRollback, Cleanup, DropParked
}

/// What a Job does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Checks everything, changes nothing that stays.
    Preflight,
    /// Pushes tag and branch.
    CodeBackup,
    /// Installs the triggers, takes baseline and dump from one snapshot, uploads the dump.
    Backup,
    /// Downloads the object and reads it to its end.
    VerifyBackup,
    /// Streams the rows of key users into the bucket.
    ExportKeyUsers,
    /// Restores the object, migrates, verifies, rolls back, compares.
    Rehearse,
    /// The window on the forward path.
    Window,
    /// Runs `validation.checks`.
    Validate,
    /// Runs `monitoring.checks`.
    Monitor,
    /// Runs `followUps.day.checks` for a while and writes a report.
    DayCheck,
    /// Runs `followUps.week.checks` for a while and writes a report.
    WeekReview,
    /// The window of a rollback.
    RollbackWindow,
    /// Copies the live database, rolls the copy back, compares balances.
    RehearseRollback,
    /// Sends a notice to its channels.
    Notify,
    /// Removes the triggers and releases the database for the next migration.
    Cleanup,
    /// Drops the tables that were parked.
    DropParked,
}

named! {
    Task: Preflight, CodeBackup, Backup, VerifyBackup, ExportKeyUsers, Rehearse, Window, Validate, Monitor,
    DayCheck, WeekReview, RollbackWindow, RehearseRollback, Notify, Cleanup, DropParked
}

impl Task {
    /// Whether it carries out a window, forward or for a rollback.
    pub const fn is_window(self) -> bool {
        matches!(self, Self::Window | Self::RollbackWindow)
    }
}
