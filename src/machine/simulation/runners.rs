//! Runner pods of the fake world, which may die between any two acts.
//!
//! Called by `simulation`. Imports `api`.

use fastrand::Rng;
use jiff::SignedDuration;

use super::world::{Defect, Schema, SimulatedWindow, World};
use crate::api::{
    CheckOutcome, CheckResult, Comparison, Delivery, DeliveryState, Direction, MigrationRun, MigrationRunStatus,
    Notice, Obstacle, ObstacleKind, Occasion, Reason, RunPhase, Task, WindowCommand, WindowProgress, WindowState,
    fixtures::{self, SECRET},
    window_rules::{EndCause, Ending, Move, WindowActivity, WindowView, next_move},
};

/// A runner pod at work on one run. All that it knows it reads from the database again: it may die at any time.
pub(super) struct Pod {
    pub(super) id: u32,
    pub(super) run: String,
    compared: bool,
    migrated: bool,
    skew: SignedDuration,
}

impl Pod {
    pub(super) fn new(id: u32, run: &str, skew: SignedDuration) -> Self {
        Self { id, run: run.into(), compared: false, migrated: false, skew }
    }

    /// One act. `false` when the pod has ended.
    pub(super) fn act(&mut self, w: &mut World, rng: &mut Rng) -> bool {
        let Some(run) = w.runs.get(&self.run).map(|r| r.value.run.clone()) else { return self.window_gone(w) };
        if run.has_ended() {
            return false;
        }
        match run.spec.task {
            Task::Window | Task::RollbackWindow => self.window(w, rng, &run),
            task => Self::plain(w, rng, &self.run, task),
        }
    }

    fn plain(w: &mut World, rng: &mut Rng, name: &str, task: Task) -> bool {
        let now = w.now;
        let raw = w.defect == Defect::RawErrors;
        let rehearsal = task == Task::RehearseRollback;
        let follows_up = rehearsal || matches!(task, Task::DayCheck | Task::WeekReview);
        let measures = follows_up || matches!(task, Task::Validate | Task::Monitor);
        let safeguards = measures.then(|| w.measure_safeguards());
        let unreachable = (follows_up || task == Task::Cleanup) && w.losses.unreachable;
        let failure = if !matches!(task, Task::Validate | Task::Monitor) && (unreachable || rng.u8(..) < 20) {
            let message = if raw { format!("connection to {SECRET} refused") } else { "connection refused".into() };
            Some((Reason::HostUnreachable, message))
        } else {
            (rehearsal && w.losses.down_sql_fails).then(|| (Reason::SqlFailed, "statement 3 failed".into()))
        };
        if let Some((reason, message)) = failure {
            let reported = w.report(name, |run| {
                run.status = Some(MigrationRunStatus {
                    phase: RunPhase::Failed,
                    reason: Some(reason),
                    message: Some(message),
                    safeguards,
                    ..Default::default()
                });
            });
            if reported {
                w.note_report(name);
            }
            return !reported;
        }
        let (verified, rehearsed) = (task == Task::VerifyBackup, task == Task::Rehearse);
        let breach = task == Task::Monitor && rng.u8(..) < 10;
        let reported = w.report(name, |run| {
            let s = run.status.get_or_insert_default();
            s.phase = RunPhase::Succeeded;
            s.safeguards = safeguards;
            match task {
                Task::Backup => (s.baseline, s.backup) = (Some(fixtures::baseline(now)), Some(fixtures::backup(now))),
                Task::VerifyBackup => s.verification = Some(fixtures::verification()),
                Task::ExportKeyUsers => s.key_users = Some(fixtures::key_users(now)),
                Task::DayCheck | Task::WeekReview => s.report = Some(fixtures::report(now)),
                Task::Rehearse => s.rehearsal = Some(fixtures::rehearsal(10.0)),
                Task::RehearseRollback => s.rollback_rehearsal = Some(fixtures::rollback_rehearsal(now)),
                Task::Notify => {
                    let state = DeliveryState::Delivered;
                    s.deliveries = vec![Delivery { channel: "chat".into(), state, message: "200".into(), at: now }];
                }
                Task::Validate | Task::Monitor => {
                    s.phase = RunPhase::Running;
                    s.checks = vec![CheckResult {
                        name: "errors".into(),
                        outcome: if breach { CheckOutcome::Fail } else { CheckOutcome::Pass },
                        failed: u32::from(breach),
                        recent: String::new(),
                        measured: 1,
                        breached: breach,
                        waiting_for: None,
                        message: "0.21 > 0.05".into(),
                        at: now,
                    }];
                }
                _ => {}
            }
        });
        let notice = w.runs.get(name).and_then(|r| r.value.run.spec.inputs.notice.clone());
        if reported {
            w.note_report(name);
            if let Some(Notice { occasion, starts_at: Some(starts_at), .. }) = notice {
                match occasion {
                    Occasion::MaintenanceStarts => w.announced.insert(starts_at),
                    Occasion::MaintenanceCancelled => w.cancelled_starts.insert(starts_at),
                    _ => false,
                };
            }
            w.verified |= verified;
            w.rehearsed |= rehearsed;
        }
        !reported || matches!(task, Task::Validate | Task::Monitor)
    }

    /// The run was deleted. What the real runner does about an open window then is tried in `tests/runner_window`.
    fn window_gone(&mut self, w: &mut World) -> bool {
        if !w.api_up {
            return true;
        }
        if w.db.worker == Some(self.id) {
            w.db.worker = None;
        }
        false
    }

    fn window(&mut self, w: &mut World, rng: &mut Rng, run: &MigrationRun) -> bool {
        // It has no connection yet.
        if w.losses.unreachable && w.db.blocked_at.is_none() {
            return true;
        }
        // The worker's lock: a second pod waits until the first one's session is gone.
        if *w.db.worker.get_or_insert(self.id) != self.id {
            return true;
        }
        let (task, attempt) = (run.spec.task, run.spec.attempt);
        let up = task == Task::Window;
        let order = if w.api_up { run.spec.window.clone() } else { None };
        let command = order.as_ref().map_or(WindowCommand::Standby, |o| o.command);
        if w.db.blocked_at.is_some()
            && w.db.windows.get(&task).is_none_or(|i| i.attempt != attempt || i.finished.is_some())
        {
            // Takes over a write block that another run left on; what it acknowledged binds this one too.
            let acknowledged = w.db.windows.values().any(|i| i.acknowledged && i.finished.is_none());
            let deadline =
                w.db.windows.values().filter(|i| i.finished.is_none()).map(|i| i.deadline).max().unwrap_or(w.now);
            w.db.windows
                .insert(task, SimulatedWindow { attempt, deadline, acknowledged, ..SimulatedWindow::default() });
        }
        let window = w.db.windows.get(&task).filter(|i| i.attempt == attempt).cloned();
        let uid = &run.spec.migration_uid;
        let (mut has_up, has_down) = (w.db.applied(uid, "up"), w.db.applied(uid, "down"));
        if w.defect == Defect::LedgerIgnored {
            has_up = self.migrated;
        }
        let direction = if up { Direction::Forward } else { Direction::Rollback };
        let deadline = order.and_then(|o| o.deadline);
        let Some(window) = window else {
            if has_down || (!up && !has_up) {
                return self.end(w, run, WindowState::RolledBack, None, false);
            }
            if up && has_up {
                return self.end(w, run, WindowState::Unblocked, None, false);
            }
            let (command, overdue) = match deadline {
                Some(deadline) => (command, w.now + self.skew >= deadline),
                // Without a deadline no order is valid.
                None => (WindowCommand::Standby, false),
            };
            let view = WindowView { overdue, ..WindowView::starting(direction, WindowActivity::Standby, command) };
            return match (next_move(&view), deadline) {
                // It checks once more, and nothing is blocked.
                (Move::BlockWrites, Some(_)) if w.db.obstructed => {
                    self.end(w, run, direction.schema_before().final_state(), Some(Reason::LockTimeout), false)
                }
                (Move::BlockWrites, Some(deadline)) => {
                    w.db.windows.insert(task, SimulatedWindow { attempt, deadline, ..SimulatedWindow::default() });
                    w.db.blocked_at = Some(w.now);
                    true
                }
                (Move::End(Ending::NothingBlocked(Some(schema), cause)), _) => {
                    self.end(w, run, schema.final_state(), reason_of(cause), cause == EndCause::Overdue)
                }
                _ => {
                    self.report(w, WindowState::Ready, false, false);
                    true
                }
            };
        };
        if let Some((state, reason)) = window.finished {
            return self.end(w, run, state, reason, window.passed);
        }
        if has_down {
            return self.finish(w, task, WindowState::RolledBack, None, false);
        }
        // Half of the acts are reports, so that what is known and what is reported differ often.
        if rng.bool() {
            let state = if has_up && up { WindowState::Migrated } else { WindowState::Blocked };
            self.report(w, state, window.acknowledged, window.stuck);
            return true;
        }
        let applying = up && !has_up;
        self.compared |= up && has_up;
        let activity = if applying { WindowActivity::ApplyingSql } else { WindowActivity::AwaitingCutover };
        let view = WindowView {
            overdue: w.now + self.skew >= deadline.unwrap_or(window.deadline) && w.defect != Defect::DeadlineIgnored,
            switch_acknowledged: window.acknowledged,
            stuck: window.stuck,
            unexplained_balances: self.compared.then_some(0),
            ..WindowView::starting(direction, activity, command)
        };
        match next_move(&view) {
            Move::Wait if applying => self.apply_sql(w, rng, run),
            Move::AcknowledgeSwitch => {
                self.change_record(w, task, |record| record.acknowledged = true);
                true
            }
            Move::BecomeStuck => {
                self.become_stuck(w, task);
                true
            }
            Move::End(Ending::Rollback(cause)) => self.undo(w, rng, run, reason_of(cause)),
            Move::End(Ending::Finish(schema, cause)) => {
                self.finish(w, task, schema.final_state(), reason_of(cause), cause == EndCause::Overdue)
            }
            _ => true,
        }
    }

    fn apply_sql(&mut self, w: &mut World, rng: &mut Rng, run: &MigrationRun) -> bool {
        let task = run.spec.task;
        match rng.u8(..) {
            0..6 => self.finish(w, task, WindowState::RolledBack, Some(Reason::SqlFailed), false),
            6..20 => self.finish(w, task, WindowState::RolledBack, Some(Reason::LockTimeout), false),
            _ => {
                Self::migrate(w, &run.spec.migration_uid);
                self.migrated = true;
                true
            }
        }
    }

    /// The up transaction. With the ledger ignored a second pod runs it again.
    fn migrate(w: &mut World, uid: &str) {
        if w.db.ledger.insert((uid.to_owned(), "up")) || w.defect == Defect::LedgerIgnored {
            w.db.ups += 1;
            w.db.schema = Schema::New;
        }
    }

    /// Writes stay blocked until an order comes. The alert goes out by the channels, which need no API server.
    fn become_stuck(&self, w: &mut World, task: Task) {
        let alerted = w.defect != Defect::SilentHold;
        self.change_record(w, task, |record| {
            record.stuck = true;
            record.alerted |= alerted;
        });
    }

    fn change_record(&self, w: &mut World, task: Task, change: impl FnOnce(&mut SimulatedWindow)) {
        if let Some(record) = w.db.windows.get_mut(&task) {
            change(record);
        }
    }

    fn undo(&mut self, w: &mut World, rng: &mut Rng, run: &MigrationRun, cause: Option<Reason>) -> bool {
        if rng.u8(..) < 12 || (w.losses.down_sql_fails && run.spec.task == Task::RollbackWindow) {
            let progress = WindowProgress { stuck: true, switch_acknowledged: true, ..Default::default() };
            // Writes stay blocked whichever pod takes over, and the run's end reports it.
            self.change_record(w, run.spec.task, |record| record.acknowledged = true);
            self.become_stuck(w, run.spec.task);
            let reported = w.report(&self.run, |r| {
                r.status = Some(MigrationRunStatus {
                    phase: RunPhase::Failed,
                    reason: Some(Reason::SqlFailed),
                    message: Some("statement 3 failed".into()),
                    window: Some(progress),
                    ..Default::default()
                });
            });
            if reported {
                w.db.worker = None;
            }
            return !reported;
        }
        if w.db.ledger.insert((run.spec.migration_uid.clone(), "down")) || w.defect == Defect::LedgerIgnored {
            w.db.downs += 1;
            w.db.schema = Schema::Old;
        }
        // A crash may come between the commit and unblocking writes.
        if rng.bool() {
            return true;
        }
        self.finish(w, run.spec.task, WindowState::RolledBack, cause, cause.is_some())
    }

    fn finish(&mut self, w: &mut World, task: Task, state: WindowState, reason: Option<Reason>, passed: bool) -> bool {
        w.db.blocked_at = None;
        for (of, i) in &mut w.db.windows {
            if i.finished.is_none() {
                i.finished = Some((state, if *of == task { reason } else { None }));
                i.passed = passed;
            }
        }
        true
    }

    fn end(
        &mut self,
        w: &mut World,
        run: &MigrationRun,
        state: WindowState,
        reason: Option<Reason>,
        passed: bool,
    ) -> bool {
        let window = self.progress(w, run.spec.task, state, true, passed);
        let reported = w.report(&self.run, |r| {
            r.status = Some(MigrationRunStatus {
                phase: if reason.is_some() { RunPhase::Failed } else { RunPhase::Succeeded },
                reason,
                message: reason.map(|r| r.to_string()),
                window: Some(window),
                ..Default::default()
            });
        });
        if reported && w.db.worker == Some(self.id) {
            w.db.worker = None;
        }
        !reported
    }

    fn report(&self, w: &mut World, state: WindowState, acknowledged: bool, stuck: bool) {
        let Some(task) = w.runs.get(&self.run).map(|r| r.value.run.spec.task) else { return };
        let mut window = WindowProgress { stuck, ..self.progress(w, task, state, acknowledged, stuck) };
        if !self.compared {
            window.comparison = None;
        }
        w.report(&self.run, |r| {
            let s = r.status.get_or_insert_default();
            s.phase = RunPhase::Running;
            s.window = Some(window);
        });
    }

    fn progress(&self, w: &World, task: Task, state: WindowState, acknowledged: bool, passed: bool) -> WindowProgress {
        let ended = matches!(state, WindowState::Unblocked | WindowState::RolledBack);
        let migrated = w.db.ledger.iter().any(|(_, direction)| *direction == "up");
        WindowProgress {
            state,
            blocked_at: w.db.blocked_at.or((w.db.windows.contains_key(&task) && ended).then_some(w.now)),
            verification: Some("refused".into()),
            migrate_seconds: migrated.then_some(1.0),
            comparison: migrated.then(|| Comparison { users: 2, unexplained: 0, total_balance: "3".into() }),
            switch_acknowledged: acknowledged,
            // As if every pod had been asked.
            observed_version: Some(w.versions_run()),
            observed_at: Some(w.now + self.skew),
            unblocked_at: (ended && w.db.blocked_at.is_none()).then_some(w.now),
            obstacles: match w.db.obstructed && !w.db.windows.contains_key(&task) {
                true => vec![Obstacle::new(ObstacleKind::PreparedTransaction)],
                false => vec![],
            },
            deadline_passed: passed,
            ..Default::default()
        }
    }
}

/// Why a run whose window ended for a cause has failed, if it has.
fn reason_of(cause: EndCause) -> Option<Reason> {
    match cause {
        EndCause::Ordered => None,
        EndCause::Overdue => Some(Reason::DeadlinePassed),
        EndCause::Failed => Some(Reason::SqlFailed),
    }
}
