//! The present stage of the window, read from its status.

use crate::{
    api::{NotShown, Occasion, Phase, ReadyReason, Step, Task, Time, WindowProgress, WindowState, WindowStatus},
    machine::{
        Transition,
        faults::{Fault, fault},
        transition::Reported,
    },
    shared::time::{saturating_add, seconds, to_signed},
};

/// Stage of a window, in the order in which they follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WindowStage {
    /// No order to block writes is out.
    Standby,
    /// A rollback that failed left writes blocked, and the next run has no order yet.
    LeftBlocked {
        /// When writes were refused for the first time.
        since: Time,
    },
    /// The order to block writes was, or may have been, given.
    Blocking {
        /// When the window must have ended.
        deadline: Time,
    },
    /// The flag was, or may have been, set.
    Switching {
        /// When the window must have ended.
        deadline: Time,
    },
    /// The order to unblock writes was, or may have been, given.
    Unblocking {
        /// When the window must have ended.
        deadline: Time,
    },
    /// Writes are allowed again.
    Unblocked {
        /// Since when.
        at: Time,
    },
}

impl WindowStage {
    /// The stage that a status describes.
    pub(crate) fn of(window: &WindowStatus) -> Self {
        match (window.unblocked_at, window.deadline, window.blocked_at) {
            (Some(at), _, _) => WindowStage::Unblocked { at },
            (None, Some(deadline), _) if window.unblocking => WindowStage::Unblocking { deadline },
            (None, Some(deadline), _) if window.switched => WindowStage::Switching { deadline },
            (None, Some(deadline), _) => WindowStage::Blocking { deadline },
            (None, None, Some(since)) => WindowStage::LeftBlocked { since },
            (None, None, None) => WindowStage::Standby,
        }
    }

    /// Writes are, or may be, refused.
    pub(crate) fn may_be_blocked(self) -> bool {
        match self {
            WindowStage::Standby | WindowStage::Unblocked { .. } => false,
            WindowStage::LeftBlocked { .. }
            | WindowStage::Blocking { .. }
            | WindowStage::Switching { .. }
            | WindowStage::Unblocking { .. } => true,
        }
    }
}

impl Transition<'_> {
    pub(crate) fn window_mut(&mut self) -> &mut WindowStatus {
        self.status.window.get_or_insert_default()
    }

    /// The present stage of the window.
    fn window_stage(&self) -> WindowStage {
        self.status.window.as_ref().map_or(WindowStage::Standby, WindowStage::of)
    }

    /// Deadline of the present window; `None` while no order to block writes is out.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.status.window.as_ref()?.deadline
    }

    /// The flag was, or may have been, set by the present window.
    pub(crate) fn is_switched(&self) -> bool {
        self.status.window.as_ref().is_some_and(|w| w.switched)
    }

    /// The order to unblock writes was, or may have been, given.
    pub(crate) fn is_unblocking(&self) -> bool {
        self.status.window.as_ref().is_some_and(|w| w.unblocking)
    }

    /// The forward window has ended on the new schema: every pod was of the new version then.
    pub(crate) fn forward_window_succeeded(&self) -> bool {
        self.succeeded(Step::UnblockWrites)
    }

    /// A rollback waits, with writes open, for its window.
    pub(crate) fn awaits_rollback_window(&self) -> bool {
        self.phase() == Phase::RollingBack && self.window_stage() == WindowStage::Standby
    }

    /// Task that carries the present window.
    pub(crate) fn window_task(&self) -> Option<Task> {
        self.status.window.as_ref()?.task
    }

    /// The order to block writes may be out, and that writes are unblocked is not known.
    pub(crate) fn may_be_blocked(&self) -> bool {
        self.window_stage().may_be_blocked()
    }

    /// When the present window must end, or should have ended. If a failed rollback left writes blocked the time counts
    /// from when they were blocked.
    fn window_due(&self) -> Option<Time> {
        match self.window_stage() {
            WindowStage::LeftBlocked { since } => Some(saturating_add(since, to_signed(self.spec.window.max_duration))),
            _ => self.deadline(),
        }
    }

    /// Sets `Ready` for a window under way. Past its deadline the window is reported as overdue.
    pub(crate) fn report_window(&mut self, reason: ReadyReason, message: String) {
        match self.window_due() {
            Some(due) if self.now >= due => {
                let (task, attempt) = self.rollback_run();
                let next = match self.status.step {
                    Some(Step::SwitchBack) => {
                        let workload = self.spec.application.workloads.first().map_or("", |w| w.name.as_str());
                        let command = self.observed.kubectl(&format!("rollout status deployment/{workload}"));
                        format!(
                            "{command}; pods of the old version must become ready on the new schema, and the flag must \
                             not be set again"
                        )
                    }
                    _ => {
                        let command = self.observed.describe_job(&self.observed.run_name(task, attempt));
                        format!("{command}; see that its pod runs")
                    }
                };
                let text = format!("{message}; its window should have ended by {due:.0}; next: {next}");
                let reported = self.report_lasting(ReadyReason::WindowOverdue, text.clone());
                if reported == Reported::Now && !fault(Fault::SilentOverdue) {
                    self.notify(Occasion::ManualInterventionRequired, &format!("overdue.{}", due.as_second()), &text);
                }
            }
            due => {
                if let Some(due) = due {
                    self.wake_at(due);
                }
                self.set_ready(reason, message);
            }
        }
    }

    /// The forward window has not ended: its own run rolls back.
    pub(crate) fn in_forward_window(&self) -> bool {
        let ordered = matches!(
            self.window_stage(),
            WindowStage::Blocking { .. } | WindowStage::Switching { .. } | WindowStage::Unblocking { .. }
        );
        ordered && self.window_task() == Some(Task::Window)
    }

    /// Copies what matters of a window run's progress into the status.
    pub(crate) fn record_window_progress(&mut self, task: Task, progress: &WindowProgress) {
        if progress.state < WindowState::Blocking && !progress.stuck {
            return;
        }
        let window = self.window_mut();
        window.task = Some(task);
        window.blocked_at = progress.blocked_at;
        window.unblocked_at = progress.unblocked_at;
        window.recovery.clone_from(&progress.recovery);
        // Its bytes change with each report until the switch.
        if progress.switch_acknowledged && progress.replication.is_some() {
            window.replication.clone_from(&progress.replication);
        }
        if progress.comparison.is_some() {
            window.comparison.clone_from(&progress.comparison);
        }
        let known = std::mem::replace(&mut window.not_shown, progress.not_shown.clone());
        let new = |found: &&NotShown| known.iter().all(|known| known.kind != found.kind);
        for NotShown { kind, message } in progress.not_shown.iter().filter(new) {
            self.event(true, ReadyReason::NotShown, format!("{}: {message}", kind.text()));
        }
    }

    /// Seconds for which writes were, or have been, blocked.
    pub(crate) fn blocked_seconds(&self) -> f64 {
        let Some(w) = &self.status.window else { return 0.0 };
        let Some(from) = w.blocked_at else { return 0.0 };
        w.unblocked_at.unwrap_or(self.now).duration_since(from).as_secs_f64().max(0.0)
    }

    /// Time of the first refused write, or `(soon)`. Not a duration: a status that changes each second would be written
    /// each second.
    pub(crate) fn blocked_since(&self) -> String {
        self.status.window.as_ref().and_then(|w| w.blocked_at).map_or_else(|| "(soon)".into(), |t| format!("{t:.0}"))
    }

    /// The backoff after which an unready window pod is given up, from the start of its step.
    pub(crate) fn ready_by(&self, started: Time) -> Time {
        started + to_signed(self.spec.runner.step_timeout).min(seconds(600))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_is_read_from_the_status() {
        let time = |n: i64| Time::UNIX_EPOCH + seconds(n);
        let (blocked, deadline, end) = (time(1), time(60), time(9));
        let ordered = WindowStatus { deadline: Some(deadline), ..Default::default() };
        let switched = WindowStatus { switched: true, blocked_at: Some(blocked), ..ordered.clone() };
        let unblocking = WindowStatus { unblocking: true, ..switched.clone() };
        let cases = [
            ("nothing was ordered", WindowStatus::default(), WindowStage::Standby, false),
            (
                "the run is being replaced",
                WindowStatus { blocked_at: Some(blocked), ..Default::default() },
                WindowStage::LeftBlocked { since: blocked },
                true,
            ),
            ("the order is out", ordered, WindowStage::Blocking { deadline }, true),
            ("the flag may be set", switched, WindowStage::Switching { deadline }, true),
            ("unblocking is ordered", unblocking.clone(), WindowStage::Unblocking { deadline }, true),
            (
                "unblocking is known",
                WindowStatus { unblocked_at: Some(end), ..unblocking },
                WindowStage::Unblocked { at: end },
                false,
            ),
        ];
        for (name, window, stage, blocked) in cases {
            assert_eq!(WindowStage::of(&window), stage, "{name}");
            assert_eq!(stage.may_be_blocked(), blocked, "{name}");
        }
    }
}
