//! The rollback. Inside the window the `Window` run itself rolls back; after it a `RollbackWindow` run blocks writes
//! again.

use super::{
    Flow,
    approval::fmt_reason,
    executing::{WINDOW_ATTEMPTS, is_lost_pod},
};
use crate::{
    api::{
        Comparison, DecisionKind, Direction, Occasion, Phase, ReadyReason, Reason, Retry, RollbackStatus,
        SchemaInPlace, Step, StepState, Task, UNEXPLAINED_BALANCES, WindowProgress, WindowState, WindowStatus,
    },
    machine::{
        ObservedSql, RunOutcome, StatusReason, Transition,
        faults::{Fault, fault},
        gates::Violation,
        notices::notice_key,
        steps::PlannedRetry,
        window::{cutover::Rollout, given_up::SwitchMove},
    },
    shared::time::{seconds, to_signed},
};

/// How long a rollback that is given up may take to unblock writes before its window is overdue, which is notified, in
/// seconds.
const GIVEN_UP_GRACE_SECONDS: i64 = 10;

/// What is known of the balances at the end of a rollback.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verification {
    /// The up SQL was never committed: there was nothing to undo.
    NotMigrated,
    /// The down SQL is committed, and no comparison was reported.
    NotCompared,
    /// Every balance is explained.
    Equal(Comparison),
    /// Some balances are not explained.
    Unexplained(Comparison),
}

impl Verification {
    fn summary(&self) -> String {
        match self {
            Verification::NotMigrated => "nothing was changed".into(),
            Verification::NotCompared => "balances were not compared after the rollback".into(),
            Verification::Equal(_) => "no credit was lost".into(),
            Verification::Unexplained(c) => {
                format!("{}, see {UNEXPLAINED_BALANCES}", c.differences())
            }
        }
    }
}

impl Transition<'_> {
    /// Records the cause and enters the phase. Runs of the forward path continue only as far as the rollback needs
    /// them.
    pub(crate) fn enter_rolling_back(&mut self, cause: impl Into<StatusReason>, message: String) {
        let cause: StatusReason = cause.into();
        let now = self.now;
        self.status.rollback = Some(RollbackStatus {
            cause: cause.clone().into(),
            message: message.clone(),
            started_at: now,
            users_written_since: None,
        });
        self.ask_for(DecisionKind::Rollback);
        if let Some(step) = self.status.step
            && self.step(step).is_some_and(|step_status| step_status.state == StepState::Running)
        {
            self.fail_step(step, cause.clone(), message.clone());
        }
        self.enter(Phase::RollingBack);
        self.event(true, cause.clone(), format!("{message}; rolling back"));
        let text = format!("{cause}: {message}; the old version is being brought back");
        self.notify(Occasion::TriggerFired, &notice_key("rollback", now), &text);
    }

    pub(crate) fn start_rollback(&mut self, cause: impl Into<StatusReason>, message: String) -> Flow {
        self.enter_rolling_back(cause, message);
        if self.in_forward_window() {
            self.start_step(Step::SwitchBack);
        } else {
            self.status.window = None;
            self.start_step(Step::BlockWritesForRollback);
        }
        Flow::Continue
    }

    /// Task and attempt of the run that rolls back.
    pub(crate) fn rollback_run(&self) -> (Task, u32) {
        let task = if self.window_task() == Some(Task::Window) { Task::Window } else { Task::RollbackWindow };
        (task, self.attempt(self.opener()))
    }

    /// The step that counts the attempts of the run that rolls back.
    fn opener(&self) -> Step {
        if self.window_task() == Some(Task::Window) { Step::BlockWrites } else { Step::BlockWritesForRollback }
    }

    /// What the run that rolls back has reported.
    pub(crate) fn rollback_progress(&self) -> WindowProgress {
        let (task, attempt) = self.rollback_run();
        self.observed.progress(task, attempt).cloned().unwrap_or_default()
    }

    pub(crate) fn advance_rolling_back(&mut self) -> Flow {
        // Starts a planned attempt, whose run is another one.
        if self.may_be_blocked() {
            self.start_due_run(self.opener());
        } else if self.status.step == Some(Step::BlockWritesForRollback)
            && self.start_due_retry(Step::BlockWritesForRollback) == PlannedRetry::NotYet
        {
            return Flow::Settled;
        }
        let (task, attempt) = self.rollback_run();
        let progress = self.rollback_progress();
        if let RunOutcome::Failed(reason, message) = self.observed.outcome(task, attempt) {
            return self.handle_failed_rollback_run(task, reason, &message.to_string(), &progress);
        }
        // A run that has yet to start says nothing of the window that the last one left.
        self.record_window_progress(task, &progress);
        if let (Some(r), Some(n)) = (&mut self.status.rollback, progress.users_written_since) {
            r.users_written_since = Some(n);
        }
        let ended = matches!(self.observed.outcome(task, attempt), RunOutcome::Succeeded(_));
        match progress.schema_in_place() {
            Some(SchemaInPlace::Old) if ended => return self.finish_rollback(&progress),
            // The forward window unblocked writes before it could roll back.
            Some(SchemaInPlace::New) if ended && self.is_given_up() => {
                self.give_up_rollback();
                return Flow::Settled;
            }
            Some(SchemaInPlace::New) if ended => {
                self.restart_rollback_window("writes were unblocked before the rollback had started");
                return Flow::Settled;
            }
            _ => {}
        }
        if task == Task::RollbackWindow && self.status.step == Some(Step::BlockWritesForRollback) {
            return self.await_rollback_window(&progress);
        }
        if self.status.step == Some(Step::SwitchBack) {
            self.switch_application_back(task, &progress);
        }
        self.report_rollback();
        Flow::Settled
    }

    fn report_rollback(&mut self) {
        let unblocked_by = self.deadline().map(|deadline| deadline + seconds(GIVEN_UP_GRACE_SECONDS));
        match unblocked_by {
            Some(by) if self.is_given_up() && self.now < by => {
                self.wake_at(by);
                self.report_lasting(ReadyReason::RollbackNotStarted, self.rollback_message());
            }
            _ => self.report_window(ReadyReason::RollingBack, self.rollback_message()),
        }
    }

    /// With writes open, what would keep the rollback from blocking them, or from switching the application back.
    pub(crate) fn violation_before_rollback_window(&self) -> Option<Violation> {
        if !self.awaits_rollback_window() {
            return None;
        }
        self.rollback_violation().or_else(|| self.standby_violation(&self.rollback_progress()))
    }

    /// The rollback waits with writes open. People are notified of each cause, once for each rollback.
    fn report_violation_before_rollback_window(&mut self, violation: &Violation) {
        let to = &self.spec.application.flag.to;
        let text = format!("the rollback waits, writes are open and the version {to} runs: {}", violation.message);
        let started = self.status.rollback.as_ref().map_or(self.now, |r| r.started_at);
        let key = notice_key(&format!("rollback-waits.{}", violation.reason.as_str()), started);
        if !fault(Fault::SilentWait) {
            self.notify(Occasion::ManualInterventionRequired, &key, &text);
        }
        self.report_lasting(violation.reason, text);
    }

    fn await_rollback_window(&mut self, progress: &WindowProgress) -> Flow {
        let violation = self.violation_before_rollback_window();
        let ready = progress.state == WindowState::Ready && !progress.stuck;
        if ready && self.deadline().is_none() && violation.is_none() {
            let deadline = self.now + to_signed(self.spec.window.max_duration);
            let window = self.window_mut();
            window.task = Some(Task::RollbackWindow);
            window.deadline = Some(deadline);
        }
        if !progress.stuck
            && violation.is_none()
            && !matches!(progress.state, WindowState::Ready | WindowState::Blocking | WindowState::Blocked)
            && let Some(started) = self.started_at(Step::BlockWritesForRollback)
        {
            let ready_by = self.ready_by(started);
            if self.now >= ready_by {
                let name = self.observed.run_name(Task::RollbackWindow, self.attempt(Step::BlockWritesForRollback));
                let message = format!(
                    "the pod of the rollback was not ready by {ready_by:.0}{}; next: {}",
                    self.pod_note(Task::RollbackWindow),
                    self.observed.describe_job(&name)
                );
                return self.handle_failed_rollback_run(Task::RollbackWindow, Reason::PodFailed, &message, progress);
            }
            self.wake_at(ready_by);
        }
        if progress.stuck || progress.state == WindowState::Blocked {
            if self.deadline().is_none() {
                // A pod that continues with writes blocked never reports Ready.
                self.window_mut().deadline = Some(self.now + to_signed(self.spec.window.max_duration));
            }
            let n = progress.users_written_since.unwrap_or_default();
            let evidence = progress.verification.clone().unwrap_or_default();
            self.succeed_step(
                Step::BlockWritesForRollback,
                format!("{evidence}; {n} users were written on the new version, their balances are kept"),
            );
            self.start_step(Step::SwitchBack);
        }
        match violation.filter(|_| self.awaits_rollback_window()) {
            Some(violation) => self.report_violation_before_rollback_window(&violation),
            None => self.report_rollback(),
        }
        Flow::Settled
    }

    fn switch_application_back(&mut self, task: Task, progress: &WindowProgress) {
        let needed = match task {
            // In the forward window the flag may not have been set: then there is nothing to switch back.
            Task::Window => self.is_switched(),
            _ => {
                if progress.switch_acknowledged {
                    self.window_mut().switched = true;
                }
                true
            }
        };
        let from = self.spec.application.flag.from.clone();
        if !needed {
            self.succeed_step(Step::SwitchBack, format!("flag never left {from}"));
            return self.start_step(Step::RollbackSql);
        }
        if task == Task::RollbackWindow && self.is_switched() {
            match self.switch_move(progress) {
                SwitchMove::SwitchBack => self.window_mut().unblocking = false,
                SwitchMove::GiveUp => {
                    self.window_mut().unblocking = true;
                    return;
                }
                SwitchMove::ConfirmFlag | SwitchMove::UnblockWrites | SwitchMove::Wait => return,
            }
        }
        if !self.is_switched() {
            return self.report_switch(Direction::Rollback);
        }
        match self.follow_rollout(Direction::Rollback, progress) {
            Rollout::Complete => {
                self.succeed_step(
                    Step::SwitchBack,
                    format!("flag is {from}, rollout complete, no pod of the new version left"),
                );
                self.start_step(Step::RollbackSql);
            }
            Rollout::UnderWay => self.report_switch(Direction::Rollback),
        }
    }

    fn finish_rollback(&mut self, progress: &WindowProgress) -> Flow {
        // The runner may have rolled back by itself; the flag must be at `from` in each case.
        let from = self.spec.application.flag.from.clone();
        if self.observed.flag_value() != Some(from.as_str())
            || (self.status.step == Some(Step::SwitchBack) && self.is_switched())
        {
            if self.status.step != Some(Step::SwitchBack) {
                self.start_step(Step::SwitchBack);
            }
            self.window_mut().switched = true;
            // The run has ended: the probe is not asked any more, and writes are unblocked.
            if !self.is_rolled_out(Direction::Rollback) {
                self.report_switch(Direction::Rollback);
                self.report_rollback();
                return Flow::Settled;
            }
            self.succeed_step(Step::SwitchBack, format!("flag is {from}, rollout complete"));
        }
        let verification = self.verification(progress);
        self.record_verification(&verification);
        let verified = verification.summary();
        let next = match verification {
            Verification::NotMigrated | Verification::Equal(_) => String::new(),
            Verification::NotCompared | Verification::Unexplained(_) => {
                format!("; next: {}", self.observed.plugin("report", ""))
            }
        };
        let blocked = self.blocked_seconds();
        self.succeed_step(Step::UnblockWritesAfterRollback, format!("writes were blocked for {blocked:.1} s"));
        let cause = self.status.rollback.as_ref().map(|r| format!("{}: {}", r.cause, r.message)).unwrap_or_default();
        self.enter(Phase::RolledBack);
        self.status.step = Some(Step::UnblockWritesAfterRollback);
        self.set_ready(ReadyReason::RolledBack, format!("the old version runs again, {verified} ({cause}){next}"));
        self.event(
            true,
            ReadyReason::RolledBack,
            format!("writes were blocked for {blocked:.1} s; {verified}; {cause}{next}"),
        );
        let began = self.status.rollback.as_ref().map_or(self.now, |r| r.started_at);
        let text = format!("the old version runs again, {verified}; {cause}{next}");
        self.notify(Occasion::RolledBack, &notice_key("rolled-back", began), &text);
        Flow::Continue
    }

    /// What the rollback's own run has measured.
    fn verification(&self, progress: &WindowProgress) -> Verification {
        // The run drops the comparison of the forward path before it runs the down SQL.
        match progress.comparison.clone() {
            Some(comparison) if comparison.unexplained == 0 => Verification::Equal(comparison),
            Some(comparison) => Verification::Unexplained(comparison),
            None => {
                let first = self.window_task() == Some(Task::Window);
                let migrated = self.succeeded(Step::Migrate) || progress.migrate_seconds.is_some();
                if first && !migrated { Verification::NotMigrated } else { Verification::NotCompared }
            }
        }
    }

    /// Records the steps RollbackSql and VerifyRollback.
    fn record_verification(&mut self, verification: &Verification) {
        if *verification != Verification::NotMigrated {
            self.succeed_step(Step::RollbackSql, "the rollback is committed");
        }
        match verification {
            Verification::NotMigrated | Verification::NotCompared => {}
            Verification::Equal(c) => {
                let text = format!(
                    "{} balances compared, {} unexplained (limit 0); total {} credits",
                    c.users, c.unexplained, c.total_balance
                );
                self.succeed_step(Step::VerifyRollback, text);
            }
            Verification::Unexplained(c) => {
                let text = format!(
                    "{} balances compared, {} unexplained (limit 0); next: {UNEXPLAINED_BALANCES}, and {}",
                    c.users,
                    c.unexplained,
                    self.observed.plugin("report", "")
                );
                self.fail_step(Step::VerifyRollback, Reason::BalancesUnexplained, text.clone());
                self.notify(Occasion::ManualInterventionRequired, &notice_key("unexplained", self.now), &text);
            }
        }
    }

    fn handle_failed_rollback_run(
        &mut self,
        task: Task,
        reason: Reason,
        message: &str,
        progress: &WindowProgress,
    ) -> Flow {
        self.record_window_progress(task, progress);
        match progress.schema_in_place() {
            // Undone, or never migrated, and writes are unblocked: that is the rollback, whatever the run's failure
            // was.
            Some(SchemaInPlace::Old) => return self.finish_rollback(progress),
            Some(SchemaInPlace::New) if self.is_given_up() => self.give_up_rollback(),
            Some(SchemaInPlace::New) => self.restart_rollback_window(message),
            None => self.retry_rollback_run(reason, message, progress.stuck),
        }
        Flow::Settled
    }

    fn retry_rollback_run(&mut self, reason: Reason, message: &str, stuck: bool) {
        let (opener, blocked) = (self.opener(), self.may_be_blocked());
        let failures = self.failures(opener) + 1;
        // A lost pod says nothing against the next one, and with writes blocked only a pod can unblock them.
        let ends = failures >= WINDOW_ATTEMPTS && ((stuck && !is_lost_pod(reason)) || !blocked);
        if reason.retry() == Retry::Never || ends {
            self.ensure_step(opener).failures = failures;
            self.fail_rollback(reason, message);
        } else if self.status.step == Some(opener) && !blocked {
            self.retry_later(opener, reason, message);
        } else {
            self.replace_window_pod(opener, message);
        }
    }

    /// Writes are unblocked on the new schema: the rollback needs another window.
    fn restart_rollback_window(&mut self, why: &str) {
        let failures = self.failures(Step::BlockWritesForRollback) + 1;
        self.status.window = None;
        if failures > WINDOW_ATTEMPTS {
            let text = format!(
                "{why}; tried {failures} times; the new version runs and writes are open; fix the cause; next: {}",
                self.observed.rollback_command()
            );
            return self.end_in_rollback_failed(Step::BlockWritesForRollback, ReadyReason::RollbackNotStarted, text);
        }
        self.status.step = Some(Step::BlockWritesForRollback);
        let text = format!("{why}; a new window is started for the rollback, writes are open meanwhile");
        self.retry_later(Step::BlockWritesForRollback, ReadyReason::BlockingWritesForRollback, &text);
    }

    /// Writes are unblocked on the new schema, because the application could not be switched back.
    fn give_up_rollback(&mut self) {
        let flag = &self.spec.application.flag;
        let cause = match self.rollback_violation() {
            Some(violation) => violation.message.text,
            None => "the Events say what was refused".to_owned(),
        };
        let text = format!(
            "the application could not be switched back to {} within {}: {cause}; the flag is still {} and every pod \
             is of that version, so writes are open again after {:.0} s; fix the cause; next: {}",
            flag.from,
            self.spec.window.max_duration,
            flag.to,
            self.blocked_seconds(),
            self.observed.rollback_command()
        );
        self.end_in_rollback_failed(Step::SwitchBack, ReadyReason::RollbackNotStarted, text);
    }

    pub(crate) fn fail_rollback(&mut self, reason: Reason, message: &str) {
        let (writes, fix) = match reason {
            // The window has ended: no order of the operator refuses these writes.
            Reason::WritesStillBlocked => (
                "the write block is off, and the application's writes are refused all the same",
                "fix the cause, then writes are open; to roll back",
            ),
            _ if self.may_be_blocked() => {
                ("writes stay blocked", "fix the cause (you can correct the down SQL in its ConfigMap)")
            }
            _ => ("writes are open", "fix the cause (you can correct the down SQL in its ConfigMap)"),
        };
        let text = format!(
            "{message}; {writes}, manual intervention is required; {fix}; next: {}",
            self.observed.rollback_command()
        );
        self.end_in_rollback_failed(self.status.step.unwrap_or(Step::RollbackSql), reason, text);
    }

    /// Manual intervention is required, and a new decision.
    fn end_in_rollback_failed(&mut self, step: Step, reason: impl Into<StatusReason>, text: String) {
        let reason: StatusReason = reason.into();
        self.ask_for(DecisionKind::Rollback);
        self.fail_step(step, reason.clone(), text.clone());
        self.enter(Phase::RollbackFailed);
        self.notify(Occasion::ManualInterventionRequired, &notice_key("person", self.now), &text);
        self.set_ready(reason, text);
    }

    /// A new `Rollback` decision starts the rollback again, with the down SQL as it is now.
    pub(crate) fn advance_rollback_failed(&mut self) -> Flow {
        let Some(d) = self.answers(DecisionKind::Rollback).next().cloned() else { return Flow::Settled };
        if let (ObservedSql::Present(down), Some(plan)) = (&self.observed.down, &mut self.status.plan) {
            plan.down_sha256.clone_from(down);
        }
        self.enter_rolling_back(ReadyReason::Rollback, format!("Rollback by {}{}", d.by, fmt_reason(&d.reason)));
        // A new run reads the database and continues from there. That writes are blocked stays known.
        self.status.window = self.status.window.take().filter(|w| w.unblocked_at.is_none()).map(|w| WindowStatus {
            task: Some(Task::RollbackWindow),
            blocked_at: w.blocked_at,
            restarts: w.restarts,
            ..Default::default()
        });
        self.ensure_step(Step::BlockWritesForRollback).failures = 0;
        self.start_step(Step::BlockWritesForRollback);
        Flow::Settled
    }

    fn rollback_message(&self) -> String {
        let step = self.status.step.map(|s| s.to_string()).unwrap_or_default();
        let progress = self.rollback_progress();
        let waits = match self.status.step {
            Some(Step::SwitchBack) if !self.is_switched() => self.acknowledgement_message(),
            Some(Step::SwitchBack) if self.is_given_up() => format!(
                "given up, since nothing was switched; waiting for writes to be unblocked on the new schema; {}",
                self.rollout_message(&progress)
            ),
            Some(Step::SwitchBack) => {
                let stuck = self.switch_violation(Direction::Rollback);
                let stuck = stuck.map(|violation| format!("{}; ", violation.message)).unwrap_or_default();
                format!("{stuck}{}", self.rollout_message(&progress))
            }
            Some(Step::RollbackSql) => "waiting for the down SQL to commit".to_owned(),
            _ => "under way".to_owned(),
        };
        let cause = self.status.rollback.as_ref().map(|r| format!("{}: {}", r.cause, r.message)).unwrap_or_default();
        let pod = self.next_pod(self.opener());
        format!("{step}: {waits}{pod} ({cause}); writes blocked since {}", self.blocked_since())
    }
}
