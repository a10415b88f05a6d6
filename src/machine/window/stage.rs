//! The present stage of the window, read from its status.

use crate::{
    api::{Occasion, Step, Task, Time, WindowProgress, WindowState, WindowStatus},
    machine::Transition,
    shared::time::{saturating_add, seconds, to_signed},
};

/// Reason of a window that should have been over.
pub(crate) const WINDOW_OVERDUE: &str = "WindowOverdue";

impl Transition<'_> {
    pub(crate) fn window_mut(&mut self) -> &mut WindowStatus {
        self.status.window.get_or_insert_default()
    }

    /// The order to block writes may be out, and the release is not known.
    pub(crate) fn may_be_blocked(&self) -> bool {
        let window = self.status.window.as_ref();
        window.is_some_and(|w| (w.deadline.is_some() || w.blocked_at.is_some()) && w.released_at.is_none())
    }

    /// When the present window should be, or should have been, over. One that a failed way back left closed counts from
    /// its beginning.
    pub(crate) fn window_due(&self) -> Option<Time> {
        let w = self.status.window.as_ref()?;
        let closed_since = w.blocked_at.filter(|_| w.released_at.is_none());
        w.deadline.or_else(|| Some(saturating_add(closed_since?, to_signed(self.spec.window.max_duration))))
    }

    /// Explains an open window. Past its time that is told as stalled: nobody may have to find out by a clock.
    pub(crate) fn report_window(&mut self, reason: &str, message: String) {
        match self.window_due() {
            Some(due) if self.now >= due => {
                let (task, attempt) = self.rollback_run();
                let next = match self.status.step {
                    Some(Step::SwitchBack) => {
                        let workload = self.spec.application.workloads.first().map_or("", |w| w.name.as_str());
                        let command = self.observed.kubectl(&format!("rollout status deployment/{workload}"));
                        format!(
                            "{command}; pods of the old version must become ready on the new schema, and nobody may set the flag again"
                        )
                    }
                    _ => {
                        let command =
                            self.observed.kubectl(&format!("describe job/{}", self.observed.run_name(task, attempt)));
                        format!("{command}; see that its pod runs")
                    }
                };
                let text = format!("{message}; its window should have been over by {due:.0}; next: {next}");
                if self.reason.as_deref() != Some(WINDOW_OVERDUE) {
                    self.event(true, WINDOW_OVERDUE, text.clone());
                    self.notify(Occasion::ManualInterventionRequired, &format!("overdue.{}", due.as_second()), &text);
                }
                self.set_ready(WINDOW_OVERDUE, text);
            }
            due => {
                if let Some(due) = due {
                    self.wake_at(due);
                }
                self.set_ready(reason, message);
            }
        }
    }

    /// The window of the way there is not over: its own run goes back.
    pub(crate) fn in_forward_window(&self) -> bool {
        self.status
            .window
            .as_ref()
            .is_some_and(|w| w.task == Some(Task::Window) && w.deadline.is_some() && w.released_at.is_none())
    }

    /// Copies what matters of a window run's progress into the status.
    pub(crate) fn record_window_progress(&mut self, task: Task, progress: &WindowProgress) {
        if progress.state < WindowState::Blocking {
            return;
        }
        let window = self.window_mut();
        window.task = Some(task);
        window.blocked_at = progress.blocked_at;
        window.released_at = progress.released_at;
        if progress.comparison.is_some() {
            window.comparison.clone_from(&progress.comparison);
        }
    }

    /// Seconds for which writes were, or have been, blocked.
    pub(crate) fn blocked_seconds(&self) -> f64 {
        let Some(w) = &self.status.window else { return 0.0 };
        let Some(from) = w.blocked_at else { return 0.0 };
        w.released_at.unwrap_or(self.now).duration_since(from).as_secs_f64().max(0.0)
    }

    /// Time of the first refused write, or `(soon)`. Not a duration: a status that grows each second would be written each second.
    pub(crate) fn blocked_since(&self) -> String {
        self.status.window.as_ref().and_then(|w| w.blocked_at).map_or_else(|| "(soon)".into(), |t| format!("{t:.0}"))
    }

    /// The backoff after which an unready window pod is given up, from the start of its step.
    pub(crate) fn ready_by(&self, started: Time) -> Time {
        started + to_signed(self.spec.runner.step_timeout).min(seconds(600))
    }
}
