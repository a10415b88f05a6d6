//! The whole procedure on one screen: its steps in order, with phase and task. Next to it how the runs of a task follow
//! each other (`tasks`), and start, success, failure and retry of a step (`progress`).
//!
//! Called by `phases`, `effects` and `conditions`; the plugin reads [`FORWARD`]. Imports `shared`, `api` and `machine`.

mod progress;
mod tasks;

pub(crate) use progress::PlannedRetry;
pub(crate) use tasks::{Image, Retention, Timeout, run_policy};

use crate::api::{Phase, Step, Task};

/// One step: its place in the procedure and the task that carries it out.
#[derive(Debug)]
pub struct Row {
    /// The step.
    pub step: Step,
    /// Phase in which it runs.
    pub phase: Phase,
    /// Task of the runner; `None` for what the controller does itself.
    pub task: Option<Task>,
}

const fn row(phase: Phase, step: Step, task: Option<Task>) -> Row {
    Row { step, phase, task }
}

/// The forward path, in order.
#[rustfmt::skip]
pub const FORWARD: &[Row] = &[
    row(Phase::Preparing,        Step::Preflight,         Some(Task::Preflight)),
    row(Phase::Preparing,        Step::NotifyTeam,        None),
    row(Phase::Preparing,        Step::CodeBackup,        Some(Task::CodeBackup)),
    row(Phase::Preparing,        Step::Baseline,          Some(Task::Backup)),
    row(Phase::Preparing,        Step::Backup,            Some(Task::Backup)),
    row(Phase::Preparing,        Step::VerifyBackup,      Some(Task::VerifyBackup)),
    row(Phase::Preparing,        Step::ExportKeyUsers,    Some(Task::ExportKeyUsers)),
    row(Phase::Preparing,        Step::Rehearse,          Some(Task::Rehearse)),
    row(Phase::AwaitingApproval, Step::Approve,           None),
    row(Phase::AwaitingApproval, Step::Schedule,          None),
    row(Phase::Executing,        Step::BlockWrites,       Some(Task::Window)),
    row(Phase::Executing,        Step::Migrate,           Some(Task::Window)),
    row(Phase::Executing,        Step::VerifyMigration,   Some(Task::Window)),
    row(Phase::Executing,        Step::SwitchApplication, Some(Task::Window)),
    row(Phase::Executing,        Step::UnblockWrites,     Some(Task::Window)),
    row(Phase::Validating,       Step::Validate,          Some(Task::Validate)),
    row(Phase::Monitoring,       Step::Monitor,           Some(Task::Monitor)),
    row(Phase::Observing,        Step::DayCheck,          Some(Task::DayCheck)),
    row(Phase::Observing,        Step::WeekReview,        Some(Task::WeekReview)),
    row(Phase::Observing,        Step::Decide,            None),
];

/// The rollback, in order. Inside the window the run is `Window` itself, and BlockWritesForRollback is left out.
#[rustfmt::skip]
pub const ROLLBACK: &[Row] = &[
    row(Phase::RollingBack, Step::BlockWritesForRollback,     Some(Task::RollbackWindow)),
    row(Phase::RollingBack, Step::SwitchBack,                 Some(Task::RollbackWindow)),
    row(Phase::RollingBack, Step::RollbackSql,                Some(Task::RollbackWindow)),
    row(Phase::RollingBack, Step::VerifyRollback,             Some(Task::RollbackWindow)),
    row(Phase::RollingBack, Step::UnblockWritesAfterRollback, Some(Task::RollbackWindow)),
];

/// The step after this one on the forward path.
pub fn next(step: Step) -> Option<Step> {
    let i = FORWARD.iter().position(|r| r.step == step)?;
    FORWARD.get(i + 1).map(|r| r.step)
}

/// Position in its path and name: `9/20 Approve`.
pub fn progress(step: Step) -> String {
    for path in [FORWARD, ROLLBACK] {
        if let Some(i) = path.iter().position(|r| r.step == step) {
            return format!("{}/{} {step}", i + 1, path.len());
        }
    }
    step.to_string()
}

/// The task that carries out a step of a phase of the forward path; `None` for what the controller does itself, and for
/// steps of other phases.
pub fn task_in(phase: Phase, step: Step) -> Option<Task> {
    FORWARD.iter().find(|r| r.step == step && r.phase == phase)?.task
}

/// Longest wait between two attempts of a step, in seconds: see [`tasks::RunPolicy`].
fn longest_retry(step: Step) -> i64 {
    let in_path = FORWARD.iter().chain(ROLLBACK).filter(|r| r.step == step).find_map(|r| r.task);
    // RehearseRollback, Cleanup and DropParked are in neither path.
    let task = in_path.or_else(|| Task::ALL.iter().copied().find(|task| run_policy(*task).step == Some(step)));
    run_policy(task.unwrap_or(Task::Cleanup)).longest_retry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_of_a_task_is_carried_out_by_it() {
        for row in FORWARD.iter().chain(ROLLBACK) {
            let Some(task) = row.task else { continue };
            let step = run_policy(task).step.unwrap();
            let carries = FORWARD.iter().chain(ROLLBACK).find(|r| r.step == step).unwrap();
            assert_eq!((carries.task, carries.phase), (Some(task), row.phase), "{:?}", row.step);
        }
    }

    /// In an emergency the page has the step that the status names.
    #[test]
    fn the_emergency_page_lists_each_step_in_which_writes_can_stay_blocked() {
        let page = include_str!("../../../docs/emergency.md");
        let (_, section) = page.split_once("## Where writes can stay blocked\n").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let in_window = |row: &&Row| matches!(row.phase, Phase::Executing | Phase::RollingBack);
        let steps = FORWARD.iter().chain(ROLLBACK).filter(in_window).map(|row| row.step.to_string());
        assert_eq!(rows.collect::<Vec<_>>(), steps.collect::<Vec<_>>());
    }

    #[test]
    fn waits_between_attempts_have_their_limits() {
        for (step, seconds) in [
            (Step::Preflight, 30),
            (Step::Baseline, 300),
            (Step::BlockWrites, 300),
            (Step::BlockWritesForRollback, 300),
            (Step::Monitor, 60),
            (Step::WeekReview, 300),
            (Step::RehearseRollback, 3600),
            (Step::Cleanup, 300),
            (Step::DropParked, 3600),
        ] {
            assert_eq!(longest_retry(step), seconds, "{step}");
        }
    }
}
