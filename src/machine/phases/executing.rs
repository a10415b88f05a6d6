//! Executing: one `Window` run, whose progress is mapped to five steps. Orders to it are raised only after the status
//! that wants them is persisted.

use super::{Flow, approval::fmt_reason};
use crate::{
    api::{
        DecisionKind, Direction, Occasion, Phase, ReadyReason, Reason, Retry, SchemaInPlace, Step, Task, Time,
        UNEXPLAINED_BALANCES, WindowProgress, WindowState,
    },
    machine::{
        RunOutcome, StatusReason, Transition,
        faults::{Fault, fault},
        gates::Violation,
        notices::notice_key,
        window::cutover::Rollout,
    },
    shared::time::{seconds, to_signed},
};

/// Attempts of a window run whose pods end without a report, after which manual intervention is required. While writes
/// are blocked it is retried all the same.
pub(crate) const WINDOW_ATTEMPTS: u32 = 5;

/// The run ended without a word: what it reported before says nothing of what the next pod can do.
pub(crate) fn is_lost_pod(reason: Reason) -> bool {
    matches!(reason, Reason::PodFailed | Reason::StepTimeout)
}

impl Transition<'_> {
    pub(crate) fn advance_executing(&mut self) -> Flow {
        self.start_due_run(Step::BlockWrites);
        let attempt = self.attempt(Step::BlockWrites);
        let progress = self.observed.progress(Task::Window, attempt).cloned().unwrap_or_default();
        match self.observed.outcome(Task::Window, attempt) {
            // Committed, and undone by the runner itself: the ledger lets this SQL never run again under this UID.
            RunOutcome::Failed(..)
                if progress.schema_in_place() == Some(SchemaInPlace::Old) && progress.migrate_seconds.is_some() =>
            {
                return self.accept_runner_rollback(&progress);
            }
            // Writes are unblocked on the new schema, and something else failed.
            RunOutcome::Failed(reason, message) if progress.schema_in_place() == Some(SchemaInPlace::New) => {
                self.record_window_progress(Task::Window, &progress);
                self.event(true, reason, format!("{message}; writes were unblocked all the same"));
                return self.finish_window();
            }
            RunOutcome::Failed(reason, message) => {
                return self.handle_failed_window_run(reason, &message.to_string(), &progress);
            }
            RunOutcome::Succeeded(_) if progress.schema_in_place() == Some(SchemaInPlace::Old) => {
                return self.accept_runner_rollback(&progress);
            }
            RunOutcome::Succeeded(_) if progress.schema_in_place() == Some(SchemaInPlace::New) => {
                self.record_window_progress(Task::Window, &progress);
                return self.finish_window();
            }
            RunOutcome::Pending | RunOutcome::Succeeded(_) => {}
        }
        self.record_window_progress(Task::Window, &progress);
        if self.deadline().is_none() {
            return self.await_window_pod(&progress);
        }
        if self.status.step == Some(Step::SwitchApplication) {
            self.report_switch_refusal(Direction::Forward);
            if self.is_switched() {
                self.report_switch(Direction::Forward);
            }
        }
        let failure = self.switch_failure();
        if let Some((cause, message)) = self.rollback_cause(&progress).or(failure) {
            return self.start_rollback(cause, message);
        }
        self.advance_window(&progress);
        Flow::Settled
    }

    /// The pod is being started; nothing was changed. All gates are checked once more at the last moment.
    fn await_window_pod(&mut self, progress: &WindowProgress) -> Flow {
        if let Some(request) = self.cancel_request() {
            return self.cancel(&request);
        }
        let digest = self.status.plan.as_ref().and_then(|p| p.digest.clone()).unwrap_or_default();
        if let Some(why) = self.lost_precondition(&digest) {
            let text = format!("{why}; the window was not started, nothing was changed");
            self.event(true, ReadyReason::WindowNotStarted, text.clone());
            self.cancel_maintenance(&text);
            self.enter(Phase::AwaitingApproval);
            self.start_step(Step::Approve);
            return Flow::Continue;
        }
        if let Some(violation) = self.window_obstacle(progress) {
            self.await_obstacles(&violation, &digest);
            return Flow::Settled;
        }
        if progress.state == WindowState::Ready && !progress.stuck {
            let deadline = self.now + to_signed(self.spec.window.max_duration);
            let window = self.window_mut();
            window.task = Some(Task::Window);
            window.deadline = Some(deadline);
            self.wake_at(deadline);
            self.set_ready(
                ReadyReason::BlockingWrites,
                format!("writes are being blocked, until {deadline:.0} at the latest"),
            );
            return Flow::Settled;
        }
        let Some(started) = self.started_at(Step::BlockWrites) else { return Flow::Settled };
        let ready_by = self.ready_by(started);
        if self.now >= ready_by {
            let name = self.observed.run_name(Task::Window, self.attempt(Step::BlockWrites));
            let next = self.observed.describe_job(&name);
            return self.handle_failed_window_run(
                Reason::PodFailed,
                &format!(
                    "the window's pod was not ready by {ready_by:.0}{}; next: {next}",
                    self.pod_note(Task::Window)
                ),
                progress,
            );
        }
        self.wake_at(ready_by);
        self.set_ready(ReadyReason::PreparingWindow, "the window's pod is being started; writes are open");
        Flow::Settled
    }

    /// What the start rests on and does not hold any more: without it the window does not start on these approvals.
    fn lost_precondition(&self, digest: &str) -> Option<String> {
        let (approvers, reject) = self.approvals(digest);
        let needed = self.spec.approval.required.max(2) as usize;
        if let Some(reject) = reject {
            return Some(format!("{} rejected the plan{}", reject.by, fmt_reason(&reject.reason)));
        }
        if approvers.len() < needed {
            return Some(format!("{} of {needed} people approve {digest}", approvers.len()));
        }
        if self.inputs_changed() {
            return Some("spec or SQL changed".to_owned());
        }
        if self.application_changed() {
            return Some("the pod template of a workload is not the one that was approved".to_owned());
        }
        // Hours, people and backup too: the operator may have been away for hours while the pod waited.
        self.plan_violation().map(|violation| violation.message.to_string()).or_else(|| self.not_scheduled(digest))
    }

    /// The window waits, with writes open, until what is in its way is gone, or what allowed its start does not apply
    /// any more.
    fn await_obstacles(&mut self, violation: &Violation, digest: &str) {
        let ends_at = self.status.schedule.as_ref().and_then(|schedule| schedule.ends_at);
        for limit in [ends_at, self.presence(digest).1].into_iter().flatten() {
            self.wake_at(limit);
        }
        self.report_waiting_window(violation);
    }

    fn advance_window(&mut self, progress: &WindowProgress) {
        if progress.verification.is_some() && !self.succeeded(Step::BlockWrites) {
            let evidence = progress.verification.clone().unwrap_or_default();
            self.succeed_step(
                Step::BlockWrites,
                format!("{} sessions ended; {evidence}", progress.terminated_sessions),
            );
            self.start_step(Step::Migrate);
        }
        // By the transaction's own time: a later state does not imply a commit.
        if progress.migrate_seconds.is_some() && !self.succeeded(Step::Migrate) {
            self.succeed_step(
                Step::Migrate,
                format!("committed after {:.2} s", progress.migrate_seconds.unwrap_or_default()),
            );
            let gone = self.spec.migration.tables_gone.len();
            let held = match self.spec.migration.invariants.len() {
                0 => String::new(),
                invariants => format!("; {invariants} of {invariants} invariants held"),
            };
            let changed = progress.reconciled_users.unwrap_or_default();
            self.start_step(Step::VerifyMigration);
            self.succeed_step(
                Step::VerifyMigration,
                format!("{gone} of {gone} tables gone{held}; {changed} changed balances compared, 0 unexplained"),
            );
            self.start_step(Step::SwitchApplication);
        }
        if self.status.step == Some(Step::SwitchApplication) {
            // The acknowledgement must be persisted before the flag is set: from then on the runner does not roll back
            // by itself.
            let acknowledged = progress.switch_acknowledged || fault(Fault::UnacknowledgedSwitch);
            if acknowledged && !self.is_switched() {
                let run = self.observed.run(Task::Window, self.attempt(Step::BlockWrites));
                let unswitched_until = run.and_then(|run| run.written_at);
                let window = self.window_mut();
                (window.switched, window.unswitched_until) = (true, unswitched_until);
            }
            let to = self.spec.application.flag.to.clone();
            if self.is_switched() && self.follow_rollout(Direction::Forward, progress) == Rollout::Complete {
                self.succeed_step(Step::SwitchApplication, format!("flag is {to}, rollout complete, no old pod left"));
                self.start_step(Step::UnblockWrites);
            }
        }
        if self.status.step == Some(Step::UnblockWrites) && !self.is_unblocking() {
            // Checked once more: flag or workload may have been reset while balances were compared.
            if self.follow_rollout(Direction::Forward, progress) != Rollout::Complete {
                self.start_step(Step::SwitchApplication);
            } else if progress.comparison.as_ref().is_some_and(|c| c.unexplained == 0) {
                self.window_mut().unblocking = true;
            }
        }
        // Past the deadline only if unblocking is ordered, and its execution is not reported.
        self.report_window(ReadyReason::WritesBlocked, self.window_message(progress));
    }

    fn rollback_cause(&self, progress: &WindowProgress) -> Option<(StatusReason, String)> {
        if self.is_unblocking() {
            // The order to unblock writes is out: everything else is handled afterwards, by a rollback.
            return None;
        }
        if let Some(c) = progress.comparison.as_ref().filter(|c| c.unexplained > 0) {
            return Some((
                Reason::BalancesUnexplained.into(),
                format!("{}, see {UNEXPLAINED_BALANCES}", c.differences()),
            ));
        }
        if self.observed.deleting {
            return Some((ReadyReason::Deleted.into(), "the CreditMigration was deleted inside its window".into()));
        }
        if let Some(d) = self.stop_request(&[DecisionKind::Abort, DecisionKind::Rollback]) {
            return Some((ReadyReason::Stopped.into(), format!("{} by {}{}", d.decision, d.by, fmt_reason(&d.reason))));
        }
        let deadline = self.deadline()?;
        if self.now >= deadline {
            let step = self.status.step.map(|s| s.to_string()).unwrap_or_default();
            return Some((
                Reason::DeadlinePassed.into(),
                format!("{step} was not done by {deadline:.0} (limit {})", self.spec.window.max_duration),
            ));
        }
        None
    }

    /// The switch cannot start, or cannot settle: that the flag's write is refused, or that the new version's pods do
    /// not become ready, was reported.
    fn switch_failure(&self) -> Option<(StatusReason, String)> {
        if let Some(Violation { reason, message }) = self.reported_switch_refusal() {
            return Some((reason.into(), message.text));
        }
        let failure = self.reported_rollout_failure(Direction::Forward)?;
        if fault(Fault::FailedRolloutAwaited) {
            return None;
        }
        Some((ReadyReason::RolloutFailed.into(), format!("the new version does not start: {failure}")))
    }

    fn finish_window(&mut self) -> Flow {
        let blocked = self.blocked_seconds();
        for step in [Step::Migrate, Step::VerifyMigration, Step::SwitchApplication] {
            // A leader that comes back late sees the end of the window without its steps in between.
            if !self.succeeded(step) {
                self.succeed_step(step, "done");
            }
        }
        self.succeed_step(
            Step::UnblockWrites,
            format!("writes were blocked for {blocked:.1} s (limit {})", self.spec.window.max_duration),
        );
        let text = format!("the new version runs; writes were blocked for {blocked:.0} s");
        self.notify(Occasion::Finished, &format!("finished.{}", self.attempt(Step::BlockWrites)), &text);
        self.enter(Phase::Validating);
        self.start_step(Step::Validate);
        Flow::Continue
    }

    fn accept_runner_rollback(&mut self, progress: &WindowProgress) -> Flow {
        self.record_window_progress(Task::Window, progress);
        let cause: StatusReason =
            if progress.deadline_passed { Reason::DeadlinePassed.into() } else { ReadyReason::RolledBack.into() };
        self.enter_rolling_back(cause, "the window's runner undid the change by itself".into());
        Flow::Continue
    }

    fn handle_failed_window_run(&mut self, reason: Reason, message: &str, progress: &WindowProgress) -> Flow {
        let ordered = self.deadline().is_some();
        if progress.stuck && !is_lost_pod(reason) {
            self.enter_rolling_back(reason, message.into());
            self.fail_rollback(reason, message);
        } else if ordered && progress.schema_in_place() != Some(SchemaInPlace::Old) {
            // Only writes that are known to be unblocked again count as "nothing was changed".
            let hopeless = reason.retry() == Retry::Never && self.failures(Step::BlockWrites) + 1 >= WINDOW_ATTEMPTS;
            if hopeless {
                self.enter_rolling_back(reason, message.into());
                self.fail_rollback(reason, message);
            } else {
                self.replace_window_pod(Step::BlockWrites, message);
            }
        } else {
            return self.end_window_without_effect(reason, message, progress);
        }
        Flow::Settled
    }

    /// Writes may be blocked with no pod at work: the next pod reads the database and continues from there. The first
    /// ones follow at once. Then people are notified, and the next ones follow after a backoff: only a pod can unblock
    /// writes, and it may be a node or a registry that comes back.
    pub(crate) fn replace_window_pod(&mut self, opener: Step, message: &str) {
        let failures = self.failures(opener) + 1;
        if failures < WINDOW_ATTEMPTS {
            self.retry_now(opener);
            let text = format!("{message}; another pod goes on, try {failures} of {WINDOW_ATTEMPTS}");
            return self.event(true, ReadyReason::WindowPodLost, text);
        }
        self.retry_run_later(opener);
        // An equal Event is counted.
        let text = format!("{message}; writes may be blocked, and other pods follow until one works");
        self.event(true, ReadyReason::WindowPodLost, text);
        if failures == WINDOW_ATTEMPTS {
            let text = format!("{message}; writes may be blocked, and {failures} pods were lost; others follow");
            self.notify(Occasion::ManualInterventionRequired, &notice_key("pods-lost", self.now), &text);
        }
    }

    /// When the next pod follows; empty unless it waits for its backoff.
    pub(crate) fn next_pod(&self, opener: Step) -> String {
        let at = self.step(opener).and_then(|step_status| step_status.retry_at);
        at.map_or_else(String::new, |at| format!("; the last pod was lost, the next one starts at {at:.0}"))
    }

    /// The runner has unblocked writes again: nothing was changed.
    fn end_window_without_effect(&mut self, reason: Reason, message: &str, progress: &WindowProgress) -> Flow {
        let step = self.status.step.unwrap_or(Step::BlockWrites);
        self.record_window_progress(Task::Window, progress);
        let unchanged = format!("{message}; nothing was changed, writes are open");
        if progress.blocked_at.is_none() && !progress.obstacles.is_empty() {
            // It found the obstacle itself, at the last moment. The next pod waits for its end.
            self.fail_step(step, reason, unchanged);
            self.status.window = None;
            self.start_step(Step::BlockWrites);
            self.set_ready(ReadyReason::PreparingWindow, format!("{message}; another pod waits for its end"));
            return Flow::Settled;
        }
        if let Some(at) = self.next_window_start(reason) {
            self.retry_window(step, reason, message, at);
            return Flow::Continue;
        }
        self.cancel_maintenance(&unchanged);
        match reason.retry() {
            Retry::Never => {
                self.enter(Phase::Failed);
                self.fail_step(
                    step,
                    reason,
                    format!("{message}; the transaction was rolled back, nothing was changed, writes are open"),
                );
                return Flow::Settled;
            }
            Retry::Prepare => {
                self.fail_step(step, reason, unchanged);
                self.restart(message);
                return Flow::Settled;
            }
            Retry::May => {}
        }
        self.fail_step(step, reason, unchanged);
        // No decision up to now counts for the next window, even if its time is later because the API server's clock is
        // ahead of this one.
        let newest = self.observed.decisions.iter().map(|d| d.at).max();
        self.status.approvals_after = newest.max(Some(self.now));
        self.enter(Phase::AwaitingApproval);
        self.start_step(Step::Approve);
        self.set_ready(
            reason,
            format!("{message}; nothing was changed; to retry, next: {}", self.observed.plugin("approve", "")),
        );
        Flow::Settled
    }

    /// When the next attempt of the window starts on the same approvals, within the same hours; `None` without attempts
    /// left.
    fn next_window_start(&self, reason: Reason) -> Option<Time> {
        let schedule = self.status.schedule.as_ref()?;
        if !reason.is_contention() || schedule.failed_windows + 1 >= self.spec.window.attempts {
            return None;
        }
        let pause = match schedule.failed_windows {
            0 => 60,
            1 => 300,
            _ => 600,
        };
        let at = self.now + seconds(pause);
        schedule.ends_at.is_none_or(|end| at < end).then_some(at)
    }

    /// The approvals stay, and so does what was announced: nothing was changed.
    fn retry_window(&mut self, step: Step, reason: Reason, message: &str, at: Time) {
        let schedule = self.status.schedule.get_or_insert_default();
        schedule.failed_windows += 1;
        schedule.retry_at = Some(at);
        let (number, attempts) = (schedule.failed_windows, self.spec.window.attempts);
        let text = format!(
            "{message}; attempt {number} of {attempts} changed nothing, writes are open; the next one starts at {at:.0}"
        );
        self.fail_step(step, reason, text);
        self.enter(Phase::AwaitingApproval);
        self.start_step(Step::Schedule);
    }

    fn window_message(&self, progress: &WindowProgress) -> String {
        let step = self.status.step.map(|s| s.to_string()).unwrap_or_default();
        let waits = match self.status.step {
            Some(Step::BlockWrites) => "waiting for the runner to block writes".to_owned(),
            Some(Step::Migrate) => "waiting for the SQL to commit".to_owned(),
            Some(Step::SwitchApplication) if !progress.switch_acknowledged => self.acknowledgement_message(),
            Some(Step::SwitchApplication) => self.rollout_message(progress),
            Some(Step::UnblockWrites) if progress.comparison.is_none() => {
                "waiting for the full comparison of balances".to_owned()
            }
            _ => "waiting for the runner to unblock writes".to_owned(),
        };
        let pod = self.next_pod(Step::BlockWrites);
        format!(
            "{step}: {waits}{pod}; writes blocked since {} (limit {}); to stop: {}",
            self.blocked_since(),
            self.spec.window.max_duration,
            self.observed.plugin("abort", "")
        )
    }
}
