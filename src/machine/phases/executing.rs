//! Executing: one `Window` run, whose progress is mapped to five steps. Orders to it are raised only after the status
//! that wants them is persisted.

use super::approval::because;
use crate::{
    api::{DecisionKind, Occasion, Phase, Reason, Retry, Step, Task, WindowProgress, WindowState},
    machine::{
        Machine, Outcome,
        faults::{Fault, fault},
        window::cutover::Direction,
    },
    shared::time::to_signed,
};

/// Tries of a window run whose pods end without a report, before a person is called.
pub(crate) const WINDOW_ATTEMPTS: u32 = 5;

impl Machine<'_> {
    pub(crate) fn advance_executing(&mut self) {
        let attempt = self.attempt(Step::OpenWindow);
        let progress = self.o.progress(Task::Window, attempt).cloned().unwrap_or_default();
        match self.o.outcome(Task::Window, attempt) {
            // Committed, and undone by the runner itself: the ledger lets this SQL never run again under this UID.
            Outcome::Failed(..) if progress.state == WindowState::Reverted && progress.migrate_seconds.is_some() => {
                return self.reverted_by_itself(&progress);
            }
            // The gate is open on the new schema, and something beside it went wrong.
            Outcome::Failed(reason, message) if progress.state == WindowState::Released => {
                self.note_window(Task::Window, &progress);
                self.event(true, reason.as_str(), format!("{message}; the window was released all the same"));
                return self.window_released();
            }
            Outcome::Failed(reason, message) => return self.window_failed(reason, &message, &progress),
            Outcome::Succeeded(_) if progress.state == WindowState::Reverted => {
                return self.reverted_by_itself(&progress);
            }
            Outcome::Succeeded(_) if progress.state == WindowState::Released => {
                self.note_window(Task::Window, &progress);
                return self.window_released();
            }
            Outcome::Pending | Outcome::Succeeded(_) => {}
        }
        self.note_window(Task::Window, &progress);
        if self.s.window.as_ref().is_none_or(|w| w.deadline.is_none()) {
            return self.before_opening(&progress);
        }
        if let Some((cause, message)) = self.reason_to_go_back(&progress) {
            return self.go_back(cause, message);
        }
        self.inside_window(&progress);
    }

    /// The pod is being started; nothing was changed. All gates are looked at once more at the last moment.
    fn before_opening(&mut self, progress: &WindowProgress) {
        if self.called_off() {
            return;
        }
        let digest = self.s.plan.as_ref().and_then(|p| p.digest.clone()).unwrap_or_default();
        let (people, reject) = self.approvals(&digest);
        let needed = self.spec.approval.required.max(2) as usize;
        // People, hours and backup too: the operator may have been away for hours, with the pod standing by.
        let still = people.len() >= needed && reject.is_none() && self.still_scheduled(&digest);
        if !still || self.inputs_changed() || self.cluster_violation().is_some() {
            self.event(
                true,
                "WindowNotOpened",
                "approvals, presence, backup, hours, SQL, flag or workloads are not what they were when the window was prepared; nothing was changed",
            );
            self.enter(Phase::AwaitingApproval);
            self.start_step(Step::Approve);
            return self.advance_awaiting_approval();
        }
        if progress.state == WindowState::Ready {
            let deadline = self.now + to_signed(self.spec.window.max_duration);
            let window = self.window();
            window.task = Some(Task::Window);
            window.deadline = Some(deadline);
            self.wake_at(deadline);
            self.explain("OpeningWindow", format!("writes are being blocked, until {deadline:.0} at the latest"));
            return;
        }
        let Some(started) = self.step(Step::OpenWindow).map(|x| x.started_at) else { return };
        let ready_by = self.ready_by(started);
        if self.now >= ready_by {
            let name = self.o.run_name(Task::Window, self.attempt(Step::OpenWindow));
            let next = self.o.kubectl(&format!("describe job/{name}"));
            return self.window_failed(
                Reason::PodFailed,
                &format!("the window's pod was not ready by {ready_by:.0}; next: {next}"),
                progress,
            );
        }
        self.wake_at(ready_by);
        self.explain("PreparingWindow", "the window's pod is being started; writes are open");
    }

    fn inside_window(&mut self, progress: &WindowProgress) {
        if progress.proof.is_some() && !self.succeeded(Step::OpenWindow) {
            let proof = progress.proof.clone().unwrap_or_default();
            self.succeed_step(Step::OpenWindow, format!("{} sessions ended; {proof}", progress.terminated_sessions));
            self.start_step(Step::Migrate);
        }
        // By the transaction's own time: `Held` also stands above `Migrated`, and says nothing of a commit.
        if progress.migrate_seconds.is_some() && !self.succeeded(Step::Migrate) {
            self.succeed_step(
                Step::Migrate,
                format!("committed after {:.2} s", progress.migrate_seconds.unwrap_or_default()),
            );
            let gone = self.spec.migration.tables_gone.len();
            let changed = progress.reconciled_users.unwrap_or_default();
            self.start_step(Step::VerifyMigration);
            self.succeed_step(
                Step::VerifyMigration,
                format!("{gone} of {gone} tables gone; {changed} changed balances compared, 0 unexplained"),
            );
            self.start_step(Step::SwitchApplication);
        }
        if self.s.step == Some(Step::SwitchApplication) {
            // The acknowledgement must be persisted before the flag is touched: from it on the runner does not go back by itself.
            if progress.switch_acknowledged || fault(Fault::UnacknowledgedSwitch) {
                self.window().switched = true;
            }
            let to = self.spec.application.flag.to.clone();
            if self.s.window.as_ref().is_some_and(|w| w.switched) && self.running(&to, Direction::There, progress) {
                self.succeed_step(Step::SwitchApplication, format!("flag is {to}, rollout complete, no old pod left"));
                self.start_step(Step::CloseWindow);
            }
        }
        let releasing = self.s.window.as_ref().is_some_and(|w| w.releasing);
        if self.s.step == Some(Step::CloseWindow) && !releasing {
            // Looked at once more: somebody may have set the flag or the workload back while balances were compared.
            let to = self.spec.application.flag.to.clone();
            if !self.running(&to, Direction::There, progress) {
                self.start_step(Step::SwitchApplication);
            } else if progress.comparison.as_ref().is_some_and(|c| c.unexplained == 0) {
                self.window().releasing = true;
            }
        }
        // Past the deadline only if the release is ordered, and nobody says that it was carried out.
        self.explain_window("WindowOpen", self.window_message(progress));
    }

    fn reason_to_go_back(&mut self, progress: &WindowProgress) -> Option<(&'static str, String)> {
        if self.s.window.as_ref().is_some_and(|w| w.releasing) {
            // The order to open the gate is out: whatever comes is handled after the release, on the way back proper.
            return None;
        }
        if let Some(c) = progress.comparison.as_ref().filter(|c| c.unexplained > 0) {
            return Some((
                "BalancesUnexplained",
                format!("{} of {} balances are unexplained (limit 0)", c.unexplained, c.users),
            ));
        }
        if self.o.deleting {
            return Some(("Deleted", "the CreditMigration was deleted inside its window".into()));
        }
        if let Some(d) = self.stop_word(&[DecisionKind::Abort, DecisionKind::Revert], None) {
            return Some(("Stopped", format!("{:?} by {}{}", d.decision, d.by, because(&d.reason))));
        }
        let deadline = self.s.window.as_ref()?.deadline?;
        if self.now >= deadline {
            let step = self.s.step.map(|s| format!("{s:?}")).unwrap_or_default();
            return Some((
                "DeadlinePassed",
                format!("{step} was not done by {deadline:.0} (limit {})", self.spec.window.max_duration),
            ));
        }
        None
    }

    fn window_released(&mut self) {
        let blocked = self.blocked_seconds();
        for step in [Step::Migrate, Step::VerifyMigration, Step::SwitchApplication] {
            // A leader that comes back late sees the end of the window without its steps in between.
            if !self.succeeded(step) {
                self.succeed_step(step, "done");
            }
        }
        self.succeed_step(
            Step::CloseWindow,
            format!("writes were blocked for {blocked:.1} s (limit {})", self.spec.window.max_duration),
        );
        let text = format!("the new version runs; writes were blocked for {blocked:.0} s");
        self.tell(Occasion::Finished, &format!("finished.{}", self.attempt(Step::OpenWindow)), &text);
        self.enter(Phase::Validating);
        self.start_step(Step::Validate);
        self.advance_stage();
    }

    fn reverted_by_itself(&mut self, progress: &WindowProgress) {
        self.note_window(Task::Window, progress);
        let cause = if progress.deadline_passed { "DeadlinePassed" } else { "Reverted" };
        self.begin_way_back(cause, "the window's runner undid the change by itself".into());
        self.advance_rolling_back();
    }

    fn window_failed(&mut self, reason: Reason, message: &str, progress: &WindowProgress) {
        let ordered = self.s.window.as_ref().is_some_and(|w| w.deadline.is_some());
        if progress.state == WindowState::Held {
            self.begin_way_back(reason.as_str(), message.into());
            return self.rollback_failed(reason.as_str(), message);
        }
        // Only a gate that is known to be open again counts as "nothing was changed".
        if ordered && progress.state != WindowState::Reverted {
            // The gate may be closed with nobody at it: the next pod reads the database and goes on from there.
            self.retry_now(Step::OpenWindow);
            let attempts = self.step(Step::OpenWindow).map_or(0, |x| x.failures);
            if attempts < WINDOW_ATTEMPTS {
                return self.event(
                    true,
                    "WindowPodLost",
                    format!("{message}; another pod goes on, try {attempts} of {WINDOW_ATTEMPTS}"),
                );
            }
            self.begin_way_back(reason.as_str(), message.into());
            return self.rollback_failed(reason.as_str(), message);
        }
        // The runner has opened the gate again: nothing was changed.
        let step = self.s.step.unwrap_or(Step::OpenWindow);
        self.note_window(Task::Window, progress);
        if reason.retry() == Retry::Never {
            self.enter(Phase::Failed);
            return self.fail_step(
                step,
                reason.as_str(),
                format!("{message}; the transaction was rolled back, nothing was changed, writes are open"),
            );
        }
        self.fail_step(step, reason.as_str(), format!("{message}; nothing was changed, writes are open"));
        // Whatever was said so far, also by a clock that runs before this one.
        let said = self.o.decisions.iter().map(|d| d.at).max();
        self.s.approvals_after = said.max(Some(self.now));
        self.enter(Phase::AwaitingApproval);
        self.start_step(Step::Approve);
        self.explain(
            reason.as_str(),
            format!("{message}; nothing was changed; to try again, next: {}", self.o.plugin("approve", "")),
        );
    }

    fn window_message(&self, progress: &WindowProgress) -> String {
        let step = self.s.step.map(|s| format!("{s:?}")).unwrap_or_default();
        let waits = match self.s.step {
            Some(Step::OpenWindow) => "waiting for the runner to block writes".to_owned(),
            Some(Step::Migrate) => "waiting for the SQL to commit".to_owned(),
            Some(Step::SwitchApplication) if !progress.switch_acknowledged => {
                "waiting for the runner's acknowledgement".to_owned()
            }
            Some(Step::SwitchApplication) => self.rollout_message(progress),
            Some(Step::CloseWindow) if progress.comparison.is_none() => {
                "waiting for the full comparison of balances".to_owned()
            }
            _ => "waiting for the gate to open".to_owned(),
        };
        format!(
            "{step}: {waits}; writes blocked since {} (limit {}); to stop: {}",
            self.blocked_since(),
            self.spec.window.max_duration,
            self.o.plugin("abort", "")
        )
    }
}
