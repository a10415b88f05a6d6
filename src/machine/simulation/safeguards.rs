//! What a rollback needs, in the fake world: it is lost after the window and restored, pods of the stages report it,
//! and what is decided about a rollback is judged.
//!
//! Called by `simulation`. Imports `api`, `machine` and `shared`.

use std::collections::BTreeSet;

use fastrand::Rng;
use jiff::SignedDuration;

use super::world::{UID, World};
use crate::{
    api::{
        CreditMigrationStatus, MissingSafeguard, NoticeStatus, Occasion, Phase, SafeguardKind, SafeguardReport, Step,
        Task, Time, WindowState,
    },
    machine::{DryRun, Observed, ObservedFlag, ObservedSql, QuotaShortage},
    shared::time::seconds,
};

/// Decisions in a row that may rest on what was read before.
const STALE_DECISIONS: u32 = 20;
/// The same where people are to be notified: a round that replaces a run reports nothing.
const SILENT_ROUNDS: u32 = 5;
/// Seconds after which people know that a window is past its deadline, or why writes stay blocked before.
const NOTIFIED_SECONDS: i64 = 10;
/// Most seconds by which two clocks differ.
const SKEW_SECONDS: i64 = 20;

/// What was lost of what a rollback needs.
#[derive(Clone, Debug, Default)]
pub(super) struct Losses {
    /// In the database, without the stored down SQL.
    pub(super) database: BTreeSet<SafeguardKind>,
    /// The database does not store the down SQL any more. Nothing restores it.
    pub(super) stored_down_sql: bool,
    /// The database cannot be reached.
    pub(super) unreachable: bool,
    /// An admission policy is weak.
    pub(super) policy: bool,
    /// A quota has no room for new pods.
    pub(super) quota: bool,
    /// The down SQL fails on the rows of now.
    pub(super) down_sql_fails: bool,
}

/// What pods have reported last of what a rollback needs, and what was decided in spite of it.
#[derive(Clone, Debug, Default)]
pub(super) struct RollbackWatch {
    measured: Option<SafeguardReport>,
    rehearsed_at: Option<Time>,
    rehearsal_failed: bool,
    /// `RollbackReady` was `True` although what the same decision has read refuses a rollback.
    promised: bool,
    /// Decisions in a row with `RollbackReady=True`, although what was reported last says no.
    unfounded: u32,
    /// Decisions in a row of a rollback that waits, and has notified no one.
    silent: u32,
    /// Decisions in a row on a window past its deadline of which no one was notified.
    silent_overdue: u32,
    /// Since when decisions have read what keeps the application from being switched back.
    stuck_since: Option<Time>,
    /// How many of them in a row should have notified people, and have not.
    silent_switch: u32,
    /// Starts of rollbacks that waited, each with its causes, and the notices of that.
    waited: BTreeSet<(Time, String)>,
    waiting_notices: BTreeSet<String>,
}

fn is_after_window(phase: Option<Phase>) -> bool {
    matches!(phase, Some(Phase::Validating | Phase::Monitoring | Phase::Observing))
}

fn is_waiting_notice(n: &NoticeStatus) -> bool {
    n.notice.id.contains("rollback-waits")
}

/// The application cannot be switched, the database is in the way, or there is no down SQL, as far as that is known.
pub(super) fn is_obstructed(observed: &Observed, status: &CreditMigrationStatus) -> bool {
    let attempt = |task: Task| {
        let opener = if task == Task::Window { Step::BlockWrites } else { Step::BlockWritesForRollback };
        status.steps.iter().find(|s| s.name == opener).map_or(0, |s| s.attempt)
    };
    let current = observed.runs.iter().map(|r| &r.run).filter(|r| r.spec.attempt == attempt(r.spec.task));
    let mut standby = current.filter_map(|r| r.status.as_ref()?.window.as_ref());
    let missing = status.safeguards.iter().flat_map(|report| &report.missing);
    let stored = missing.filter(|found| found.kind == SafeguardKind::StoredDownSql).count() == 0;
    let approved = status.plan.as_ref().map(|plan| plan.down_sha256.as_str());
    let mounted = matches!(&observed.down, ObservedSql::Present(down) if Some(down.as_str()) == approved);
    !matches!(observed.flag, ObservedFlag::Value { immutable: false, .. })
        || observed.workloads.iter().any(|w| !w.exists || w.paused || !w.foreign_pods.is_empty())
        || observed.quota_shortages.as_ref().map_or(true, |short| !short.is_empty())
        || !(stored || mounted)
        || matches!(observed.flag_write, DryRun::Refused(_))
        || standby.any(|w| w.state == WindowState::Ready && !w.obstacles.is_empty())
}

/// Writes are blocked, both versions may serve, and it is known what keeps the application from being switched back.
fn is_switch_stuck(observed: &Observed, status: &CreditMigrationStatus) -> bool {
    let window = status.window.clone().unwrap_or_default();
    let switches = (status.phase, status.step) == (Some(Phase::RollingBack), Some(Step::SwitchBack))
        && window.blocked_at.is_some()
        && window.unblocked_at.is_none()
        && !window.unblocking
        && (window.switched || window.task == Some(Task::RollbackWindow));
    let marker = format!("{UID}.rollback");
    let is_set = matches!(&observed.flag, ObservedFlag::Value { value, set_for, .. }
        if value == "v1" && set_for.as_ref() == Some(&marker));
    let fixed = !matches!(observed.flag, ObservedFlag::Value { immutable: false, .. });
    let flag =
        !is_set && (fixed || observed.refused_effect.is_some() || matches!(observed.flag_write, DryRun::Refused(_)));
    let workload = observed.workloads.iter().any(|w| {
        let failed = w.failure.is_some() && w.restarted_for.as_ref() == Some(&marker);
        let paused = w.paused && w.old_pods > 0 && window.task == Some(Task::RollbackWindow);
        !w.exists || failed || paused
    });
    switches && (flag || (window.switched && workload))
}

impl World {
    /// After the window something that a rollback needs is lost. `true` if it was.
    pub(super) fn lose_safeguard(&mut self, rng: &mut Rng) -> bool {
        if !is_after_window(self.phase()) || self.db.blocked_at.is_some() {
            return false;
        }
        match rng.u8(..6) {
            0 => {
                self.losses.stored_down_sql = true;
                if rng.bool() {
                    self.sql.1 = "sha256:edited".into();
                }
            }
            1 => self.losses.unreachable = true,
            2 => self.losses.policy = true,
            3 => self.losses.down_sql_fails = true,
            _ => {
                let kinds = SafeguardKind::ALL.iter().filter(|kind| **kind != SafeguardKind::StoredDownSql);
                let kinds: Vec<_> = kinds.collect();
                self.losses.database.insert(*kinds[rng.usize(..kinds.len())]);
            }
        }
        true
    }

    /// Operators restore what was lost, as far as they can: the down SQL in its ConfigMap.
    pub(super) fn restore_safeguards(&mut self) {
        self.losses = Losses { stored_down_sql: self.losses.stored_down_sql, ..Losses::default() };
        let plan = self.migration.as_ref().and_then(|m| m.value.status.plan.as_ref());
        if let Some(approved) = plan.map(|plan| plan.down_sha256.clone()).filter(|_| self.sql.1 == "sha256:edited") {
            self.sql.1 = approved;
        }
    }

    /// Something is lost that operators can restore.
    pub(super) fn has_losses(&self) -> bool {
        let Losses { database, stored_down_sql: _, unreachable, policy, quota, down_sql_fails } = &self.losses;
        !database.is_empty() || *unreachable || *policy || *quota || *down_sql_fails || self.sql.1 == "sha256:edited"
    }

    /// Quotas, as they are observed.
    pub(super) fn quota_shortages(&self) -> Vec<QuotaShortage> {
        let full = || QuotaShortage {
            quota: "compute".into(),
            resource: "pods".into(),
            used: "10".into(),
            hard: "10".into(),
            needed: "1".into(),
        };
        self.losses.quota.then(full).into_iter().collect()
    }

    /// What a pod of a stage measures now.
    pub(super) fn measure_safeguards(&self) -> SafeguardReport {
        let stored = self.losses.stored_down_sql.then_some(SafeguardKind::StoredDownSql);
        let kinds = self.losses.database.iter().copied().chain(stored).filter(|_| !self.losses.unreachable);
        SafeguardReport {
            at: self.now,
            reachable: !self.losses.unreachable,
            missing: kinds.map(MissingSafeguard::new).collect(),
        }
    }

    /// A run that has just reported says something of a rollback.
    pub(super) fn note_report(&mut self, name: &str) {
        let Some(status) = self.runs.get(name).and_then(|r| r.value.run.status.as_ref()) else { return };
        if let Some(report) = &status.safeguards {
            self.watch.measured = Some(report.clone());
        }
        match &status.rollback_rehearsal {
            Some(evidence) => {
                self.watch.rehearsed_at = Some(evidence.finished_at);
                self.watch.rehearsal_failed = false;
            }
            None if status.reason == Some(crate::api::Reason::SqlFailed) => self.watch.rehearsal_failed = true,
            None => {}
        }
    }

    /// What was reported last says that a rollback would fail, or nothing of now.
    fn is_refuted(&self, phase: Option<Phase>) -> bool {
        let stage = matches!(phase, Some(Phase::Validating | Phase::Monitoring));
        let outdated = |at: Time, limit: SignedDuration| self.now > at + limit + seconds(SKEW_SECONDS);
        let measured = self.watch.measured.as_ref().is_none_or(|report| {
            !report.reachable || !report.missing.is_empty() || (stage && outdated(report.at, seconds(90)))
        });
        let stale = self.watch.rehearsed_at.is_some_and(|at| outdated(at, SignedDuration::from_hours(48)));
        measured || (phase == Some(Phase::Observing) && (self.watch.rehearsal_failed || stale))
    }

    /// Judges a persisted decision of a leader whose clock shows `now`.
    pub(super) fn judge_rollback(&mut self, observed: &Observed, status: &CreditMigrationStatus, now: Time) {
        let count = |before: u32, wrong: bool| if wrong { before + 1 } else { 0 };
        let condition = status.conditions.iter().find(|c| c.type_ == "RollbackReady");
        let ready = condition.is_some_and(|c| c.status == "True");
        let after = is_after_window(status.phase);
        let obstructed = is_obstructed(observed, status);
        let forged = after && observed.policy_problem.is_some();
        let unfounded = ready && after && self.is_refuted(status.phase);
        let window = status.window.clone().unwrap_or_default();
        let opener = status.steps.iter().find(|s| s.name == Step::BlockWritesForRollback);
        let waits = (status.phase, status.step) == (Some(Phase::RollingBack), Some(Step::BlockWritesForRollback))
            && window.deadline.is_none()
            && window.blocked_at.is_none();
        // An attempt that is planned for later has checked nothing yet.
        let due = waits && opener.is_none_or(|s| s.retry_at.is_none());
        let started = status.rollback.as_ref().map(|r| r.started_at);
        let notices =
            || status.notices.iter().filter(|n| started.is_none_or(|s| n.notice.at >= s - seconds(SKEW_SECONDS)));
        let notified = notices().any(is_waiting_notice);
        // A failed rollback notifies people, and so does a window past its deadline.
        let blocked = matches!(status.phase, Some(Phase::Executing | Phase::RollingBack | Phase::RollbackFailed))
            && window.unblocked_at.is_none();
        let overdue = blocked && window.deadline.is_some_and(|deadline| now >= deadline + seconds(NOTIFIED_SECONDS));
        let alerted =
            notices().any(|n| n.notice.occasion == Occasion::ManualInterventionRequired && !is_waiting_notice(n));
        let stuck = is_switch_stuck(observed, status);
        let notified_of_switch = notices().any(|n| n.notice.id.contains(".switch-back."));
        let true_now = self.now;

        let watch = &mut self.watch;
        watch.promised |= ready && (obstructed || forged);
        watch.unfounded = count(watch.unfounded, unfounded);
        watch.silent = count(watch.silent, due && obstructed && !notified);
        watch.silent_overdue = count(watch.silent_overdue, overdue && !alerted);
        watch.stuck_since = watch.stuck_since.or(Some(true_now)).filter(|_| stuck);
        let known = |since: Time| true_now > since + seconds(NOTIFIED_SECONDS + SKEW_SECONDS);
        watch.silent_switch = count(watch.silent_switch, watch.stuck_since.is_some_and(known) && !notified_of_switch);
        let cause = status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.reason.clone()).unwrap_or_default();
        watch.waited.extend(started.filter(|_| waits).map(|started| (started, cause)));
        watch.waiting_notices.extend(notices().filter(|n| is_waiting_notice(n)).map(|n| n.notice.id.clone()));
    }

    /// What was decided about a rollback follows from what is known.
    pub(super) fn check_rollback(&self) -> Result<(), String> {
        let RollbackWatch {
            promised, unfounded, silent, silent_overdue, silent_switch, waited, waiting_notices, ..
        } = &self.watch;
        if *promised {
            return Err("7: RollbackReady is True although a rollback would be refused".into());
        }
        if *unfounded > STALE_DECISIONS {
            return Err(format!(
                "7: RollbackReady is True in {unfounded} decisions although what was reported says no"
            ));
        }
        if *silent > STALE_DECISIONS {
            return Err(format!("7: a rollback waits, and {silent} decisions notified no one"));
        }
        if waiting_notices.len() > waited.len() {
            return Err(format!(
                "7: rollbacks waited for {} causes, people were notified of {waiting_notices:?}",
                waited.len()
            ));
        }
        if *silent_overdue > SILENT_ROUNDS {
            return Err(format!("7: a window is past its deadline, and {silent_overdue} decisions notified no one"));
        }
        if *silent_switch > SILENT_ROUNDS {
            return Err(format!(
                "7: the application cannot be switched back, and {silent_switch} decisions notified no one"
            ));
        }
        Ok(())
    }
}
