//! Tables over `decide`: given a migration in some state, when this is observed, then that is decided.
//!
//! What is given comes about by deciding, too: a [`Scenario`] obeys each decision, so that no test starts from a status
//! that the machine would never write.
//!
//! Called by `cargo test` alone. Imports `shared`, `api` and `machine`.

mod commands;
mod conditions;
mod cutover;
mod describe;
mod expected_window;
mod notices;
mod phases;
mod problems;
mod replaced_pods;
mod rights;
mod safeguards;
mod switch_trial;
mod work;

use describe::{actions, events, ready};

use super::{
    CheckJob, Decision, DryRun, Effect, Job, JobPod, Observed, ObservedDecision, ObservedFlag, ObservedRun,
    ObservedSql, PodReason, Workload, decide, emergency_page,
};
use crate::{
    api::{
        CheckOutcome, CheckResult, Comparison, CreditMigrationSpec, CreditMigrationStatus, DecisionKind, Delivery,
        DeliveryState, MigrationRun, MigrationRunStatus, Phase, Reason, RunPhase, Step, StepState, Task, Time,
        VerificationEvidence, WindowProgress, WindowState, WorkloadKind, WorkloadRef, fixtures,
    },
    shared::time::seconds,
};

/// A migration, what is observed of it, and the time.
struct Scenario {
    spec: CreditMigrationSpec,
    status: CreditMigrationStatus,
    observed: Observed,
    now: Time,
}

/// Makes what is given.
type Given = fn() -> Scenario;
/// What happens.
type When = fn(&mut Scenario);

/// One case: what is given, what happens, what must follow.
struct Case {
    name: &'static str,
    given: Given,
    when: When,
    phase: Phase,
    step: Step,
    /// Reason of the condition `Ready`.
    reason: &'static str,
    /// All effects but events, in order, as [`describe::describe_effect`] writes them.
    effects: &'static [&'static str],
    /// Seconds until the wake-up.
    wake: Option<i64>,
}

/// Runs all cases and reports each that fails.
fn assert_cases(cases: &[Case]) {
    let mut wrong = vec![];
    for case in cases {
        let mut scenario = (case.given)();
        (case.when)(&mut scenario);
        let d = scenario.decide();
        let expected = (
            Some(case.phase),
            Some(case.step),
            case.reason.to_owned(),
            case.effects.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>(),
            case.wake,
        );
        let wake = d.wake_at.map(|t| t.duration_since(scenario.now).as_secs());
        let found = (d.status.phase, d.status.step, ready(&d.status).0, actions(&d), wake);
        if expected != found {
            wrong.push(format!("{}:\n  expected {expected:?}\n  found    {found:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn no_event(_: &mut Scenario) {}

/// Ends a chain of events.
fn apply(_: &mut Scenario) {}

fn time(s: i64) -> Time {
    Time::UNIX_EPOCH + seconds(1_000_000 + s)
}

fn shop() -> WorkloadRef {
    WorkloadRef { kind: WorkloadKind::Deployment, name: "shop".into() }
}

impl Scenario {
    /// A new migration in a world where all is as it should be.
    fn new() -> Self {
        let observed = Observed {
            namespace: "shop".into(),
            name: "m".into(),
            uid: "uid-1".into(),
            generation: 1,
            deleting: false,
            namespace_deleting: false,
            finalizer: true,
            runner_image: "image:1".into(),
            runs: vec![],
            decisions: vec![],
            policy_problem: None,
            server_clock: None,
            flag: ObservedFlag::Value { value: "v1".into(), immutable: false, set_for: None },
            flag_write: DryRun::Accepted,
            rollback_enabled: Some("true".into()),
            check_jobs: vec![],
            up: ObservedSql::Present("sha256:up".into()),
            down: ObservedSql::Present("sha256:down".into()),
            sql_authors: vec![],
            quota_shortages: Ok(vec![]),
            refused_effect: None,
            workloads: vec![Workload {
                exists: true,
                reads_flag: true,
                available: (2, 2),
                ..Workload::missing(shop())
            }],
        };
        Self { spec: fixtures::spec(), status: CreditMigrationStatus::default(), observed, now: time(0) }
    }

    /// What would be decided.
    fn decide(&self) -> Decision {
        let d = decide(&self.spec, &self.status, &self.observed, self.now);
        commands::assert_commands_can_be_copied(&d);
        emergency_page::assert_has(&d.status);
        d
    }

    /// Decides, persists and obeys.
    fn reconcile(&mut self) -> Decision {
        let d = self.decide();
        self.status = d.status.clone();
        for effect in &d.effects {
            self.apply_effect(effect);
        }
        d
    }

    fn apply_effect(&mut self, effect: &Effect) {
        match effect {
            Effect::AddFinalizer => self.observed.finalizer = true,
            Effect::RemoveFinalizer => self.observed.finalizer = false,
            Effect::StartRun(start) => self.observed.runs.push(ObservedRun {
                run: MigrationRun::new(&start.name, start.spec.clone()),
                job: Job::Active,
                pod: JobPod::Started,
                written_at: None,
            }),
            Effect::RemoveRun { name } => self.observed.runs.retain(|r| r.run.metadata.name.as_ref() != Some(name)),
            Effect::OrderWindow { name, order } => {
                let run = self.observed.runs.iter_mut().find(|r| r.run.metadata.name.as_ref() == Some(name)).unwrap();
                run.run.spec.window = Some(order.clone());
            }
            Effect::StartCheckJob(start) => {
                self.observed.check_jobs.push(CheckJob {
                    name: start.name.clone(),
                    job: Job::Active,
                    pod: JobPod::Started,
                });
            }
            Effect::SetFlag { value, marker } => self.flag(value, Some(marker)),
            Effect::Restart { marker, .. } => {
                self.observed.workloads[0].restarted_for = Some(marker.clone());
                self.rollout(false, 2);
            }
            Effect::KeepPods { template, marker, .. } => {
                let workload = &mut self.observed.workloads[0];
                (workload.restarted_for, workload.switched_for) = (template.clone(), Some(marker.clone()));
                let old = workload.pods.iter().filter(|pod| pod.restarted_for != *template).count();
                workload.old_pods = u32::try_from(old).unwrap();
            }
            Effect::Event(_) => {}
        }
    }

    /// Decides and obeys until nothing changes.
    fn settle(&mut self) -> &mut Self {
        for _ in 0..20 {
            let before = self.status.clone();
            if actions(&self.reconcile()).is_empty() && self.status == before {
                return self;
            }
        }
        panic!("does not settle: {:#?}", self.status);
    }

    fn wait(&mut self, s: i64) -> &mut Self {
        self.now += seconds(s);
        self
    }

    /// Run of a task with the highest attempt.
    fn run(&mut self, task: Task) -> &mut ObservedRun {
        let mut runs: Vec<_> = self.observed.runs.iter_mut().filter(|r| r.run.spec.task == task).collect();
        runs.sort_by_key(|r| r.run.spec.attempt);
        runs.pop().unwrap()
    }

    fn report(&mut self, task: Task, change: impl FnOnce(&mut MigrationRunStatus)) -> &mut Self {
        change(self.run(task).run.status.get_or_insert_default());
        self
    }

    fn succeed(&mut self, task: Task) -> &mut Self {
        self.report(task, |s| {
            s.phase = RunPhase::Succeeded;
            match task {
                Task::Backup => {
                    (s.baseline, s.backup) = (Some(fixtures::baseline(time(0))), Some(fixtures::backup(time(0))))
                }
                Task::VerifyBackup => s.verification = Some(fixtures::verification()),
                Task::ExportKeyUsers => s.key_users = Some(fixtures::key_users(time(0))),
                Task::DayCheck | Task::WeekReview => s.report = Some(fixtures::report(time(0))),
                Task::Rehearse => s.rehearsal = Some(fixtures::rehearsal(20.0)),
                _ => {}
            }
        })
    }

    fn fail(&mut self, task: Task, reason: Reason) -> &mut Self {
        self.report(task, |s| {
            s.phase = RunPhase::Failed;
            s.reason = Some(reason);
            s.message = Some("what was seen".into());
        })
    }

    /// The Job ends without a report of its pod.
    fn lose_job(&mut self, task: Task) -> &mut Self {
        self.run(task).job = Job::Failed { reason: "BackoffLimitExceeded".into() };
        self
    }

    fn progress(&mut self, task: Task, change: impl FnOnce(&mut WindowProgress)) -> &mut Self {
        self.report(task, |s| {
            if s.phase == RunPhase::Pending {
                s.phase = RunPhase::Running;
            }
            change(s.window.get_or_insert_default());
        })
    }

    fn state(&mut self, task: Task, state: WindowState) -> &mut Self {
        let now = self.now;
        self.progress(task, |w| {
            w.state = state;
            w.stuck = false;
            if state >= WindowState::Blocked {
                w.blocked_at.get_or_insert(now);
                w.verification = Some("UPDATE was refused (55000)".into());
            }
            if state == WindowState::Migrated {
                w.migrate_seconds = Some(1.5);
            }
            if matches!(state, WindowState::Unblocked | WindowState::RolledBack) {
                w.unblocked_at = Some(now);
            }
        })
    }

    /// Writes stay blocked; the state is that of the last report.
    fn stuck(&mut self, task: Task) -> &mut Self {
        let now = self.now;
        self.progress(task, |w| {
            w.stuck = true;
            w.blocked_at.get_or_insert(now);
            w.verification.get_or_insert_with(|| "UPDATE was refused (55000)".into());
        })
    }

    fn compared(&mut self, task: Task, unexplained: u64) -> &mut Self {
        self.progress(task, |w| {
            w.comparison = Some(Comparison { users: 2, unexplained, total_balance: "3".into() });
        })
    }

    fn acknowledge(&mut self, task: Task) -> &mut Self {
        self.progress(task, |w| w.switch_acknowledged = true)
    }

    /// One decision, obeyed.
    fn reconciled(&mut self) -> &mut Self {
        self.reconcile();
        self
    }

    fn probe(&mut self, task: Task, version: &str) -> &mut Self {
        // Asked a moment after whatever was seen last.
        let asked = self.now + jiff::SignedDuration::from_millis(1);
        self.progress(task, |w| (w.observed_version, w.observed_at) = (Some(version.into()), Some(asked)))
    }

    fn flag(&mut self, value: &str, set_for: Option<&str>) {
        self.observed.flag =
            ObservedFlag::Value { value: value.into(), immutable: false, set_for: set_for.map(Into::into) };
    }

    fn rollout(&mut self, settled: bool, old_pods: u32) -> &mut Self {
        let w = &mut self.observed.workloads[0];
        w.unsettled = (!settled).then(|| "of 2 wanted replicas 1 are updated".into());
        w.old_pods = old_pods;
        self
    }

    fn submit(&mut self, by: &str, kind: DecisionKind) -> &mut Self {
        let digest = matches!(kind, DecisionKind::Approve | DecisionKind::Ready | DecisionKind::Keep)
            .then(|| self.status.plan.as_ref().and_then(|p| p.digest.clone()))
            .flatten();
        self.submit_on(by, kind, digest.as_deref())
    }

    /// The notice that is being sent was taken by some channels, and not by others.
    fn deliver(&mut self, taken: &[&str], open: &[&str]) -> &mut Self {
        let at = self.now;
        let delivery = |state| move |c: &&str| Delivery { channel: (*c).into(), state, message: "answer".into(), at };
        let deliveries: Vec<_> = taken
            .iter()
            .map(delivery(DeliveryState::Delivered))
            .chain(open.iter().map(delivery(DeliveryState::Failed)))
            .collect();
        self.report(Task::Notify, |s| {
            s.phase = if open.is_empty() { RunPhase::Succeeded } else { RunPhase::Failed };
            s.reason = (!open.is_empty()).then_some(Reason::NoticeUndelivered);
            s.deliveries = deliveries;
        })
    }

    fn confirm_presence(&mut self) -> &mut Self {
        self.submit("dan", DecisionKind::Ready).submit("eve", DecisionKind::Ready)
    }

    fn submit_on(&mut self, by: &str, kind: DecisionKind, digest: Option<&str>) -> &mut Self {
        self.observed.decisions.push(ObservedDecision {
            name: format!("d-{}", self.observed.decisions.len()),
            by: by.into(),
            decision: kind,
            digest: digest.map(Into::into),
            reason: None,
            at: self.now,
        });
        self
    }

    fn measure(&mut self, task: Task, outcome: CheckOutcome, breached: bool) -> &mut Self {
        let at = self.now;
        self.report(task, |s| {
            s.phase = RunPhase::Running;
            s.safeguards = Some(safeguards::complete(at));
            s.checks = vec![CheckResult {
                name: "errors".into(),
                outcome,
                failed: u32::from(breached) * 3,
                recent: String::new(),
                measured: 3,
                breached,
                waiting_for: None,
                message: "0.21 > 0.05".into(),
                at,
            }];
        })
    }
}

/// Preparing: the step's run has been started.
fn at(step: Step) -> Scenario {
    let mut s = Scenario::new();
    s.settle();
    for (task, next) in [
        (Task::Preflight, Step::Baseline),
        (Task::Backup, Step::VerifyBackup),
        (Task::VerifyBackup, Step::ExportKeyUsers),
        (Task::ExportKeyUsers, Step::Rehearse),
        (Task::Rehearse, Step::Approve),
    ] {
        if s.status.step == Some(step) {
            return s;
        }
        if task == Task::Backup && step == Step::Backup {
            s.report(Task::Backup, |s| (s.phase, s.baseline) = (RunPhase::Running, Some(fixtures::baseline(time(0)))))
                .settle();
            return s;
        }
        s.wait(1).succeed(task).settle();
        assert_eq!(s.status.step, Some(next));
    }
    s
}

fn preflight() -> Scenario {
    at(Step::Preflight)
}
fn rehearsing() -> Scenario {
    at(Step::Rehearse)
}
/// AwaitingApproval: no one has approved; dan and eve are present.
fn awaiting() -> Scenario {
    let mut s = at(Step::Approve);
    s.confirm_presence().settle();
    s
}

/// Executing: approved, the window's pod is being started.
fn approved() -> Scenario {
    let mut s = awaiting();
    s.wait(1).submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    assert_eq!(s.status.phase, Some(Phase::Executing));
    s
}

/// Executing: the order to block writes was given 10 s ago, nothing was reported since.
fn blocking() -> Scenario {
    let mut s = approved();
    s.wait(1).state(Task::Window, WindowState::Ready).settle();
    s.wait(10);
    s
}

/// Executing: committed, order Switch given, not acknowledged.
fn migrated() -> Scenario {
    let mut s = blocking();
    s.state(Task::Window, WindowState::Migrated).settle();
    assert_eq!(s.status.step, Some(Step::SwitchApplication));
    s
}

/// Executing: flag set, restart ordered, rollout under way.
fn switching() -> Scenario {
    let mut s = migrated();
    s.acknowledge(Task::Window).settle();
    assert_eq!(s.observed.flag_value(), Some("v2"));
    s
}

/// Executing: rollout complete, balances not yet compared.
fn switched() -> Scenario {
    let mut s = switching();
    s.rollout(true, 0).reconciled().probe(Task::Window, "v2").settle();
    assert_eq!(s.status.step, Some(Step::UnblockWrites));
    s
}

/// Executing: unblocking is ordered, not yet reported.
fn unblocking() -> Scenario {
    let mut s = switched();
    s.compared(Task::Window, 0).settle();
    assert!(s.status.window.as_ref().unwrap().unblocking);
    s
}

fn validating() -> Scenario {
    let mut s = unblocking();
    s.wait(1).state(Task::Window, WindowState::Unblocked).succeed(Task::Window).settle();
    assert_eq!(s.status.phase, Some(Phase::Validating));
    s
}

/// Monitoring, with a first good measurement.
fn monitoring() -> Scenario {
    let mut s = validating();
    s.wait(20).settle();
    s.measure(Task::Monitor, CheckOutcome::Pass, false).settle();
    assert_eq!(s.status.phase, Some(Phase::Monitoring));
    s
}

/// Observing: the day check is not yet due.
fn observing() -> Scenario {
    let mut s = monitoring();
    s.wait(30).measure(Task::Monitor, CheckOutcome::Pass, false).settle();
    assert_eq!((s.status.phase, s.status.step), (Some(Phase::Observing), Some(Step::DayCheck)));
    s
}

/// Observing: both follow-ups have ended, a decision is due.
fn deciding() -> Scenario {
    let mut s = observing();
    for task in [Task::DayCheck, Task::WeekReview] {
        s.wait(10).settle();
        s.succeed(task).settle();
    }
    assert_eq!((s.status.phase, s.status.step), (Some(Phase::Observing), Some(Step::Decide)));
    s
}

/// Completed; the clean-up is under way.
fn completed() -> Scenario {
    let mut s = deciding();
    s.wait(1).submit("ann", DecisionKind::Keep).settle();
    assert_eq!(s.status.phase, Some(Phase::Completed));
    s
}

/// RollingBack after the window: the order to open it again was given.
fn blocking_for_rollback() -> Scenario {
    let mut s = monitoring();
    s.wait(1).submit("ann", DecisionKind::Rollback).settle();
    assert_eq!((s.status.phase, s.status.step), (Some(Phase::RollingBack), Some(Step::BlockWritesForRollback)));
    s.state(Task::RollbackWindow, WindowState::Ready).settle();
    s
}

/// RollingBack after the window: writes are blocked, the order Switch is given.
fn blocked_for_rollback() -> Scenario {
    let mut s = blocking_for_rollback();
    s.wait(1).state(Task::RollbackWindow, WindowState::Blocked).settle();
    assert_eq!(s.status.step, Some(Step::SwitchBack));
    s
}

/// RollingBack after the window: the old version runs, the down SQL is ordered.
fn running_down_sql() -> Scenario {
    let mut s = blocked_for_rollback();
    s.acknowledge(Task::RollbackWindow).settle();
    s.rollout(true, 0).reconciled().probe(Task::RollbackWindow, "v1").settle();
    assert_eq!(s.status.step, Some(Step::RollbackSql));
    s
}

/// RolledBack; the clean-up is under way.
fn rolled_back() -> Scenario {
    let mut s = running_down_sql();
    s.wait(1).compared(Task::RollbackWindow, 0).state(Task::RollbackWindow, WindowState::RolledBack);
    s.succeed(Task::RollbackWindow).settle();
    assert_eq!(s.status.phase, Some(Phase::RolledBack));
    s
}

/// RollbackFailed: the down SQL failed, writes stay blocked.
fn rollback_failed() -> Scenario {
    let mut s = running_down_sql();
    s.wait(1).stuck(Task::RollbackWindow).fail(Task::RollbackWindow, Reason::SqlFailed).settle();
    assert_eq!(s.status.phase, Some(Phase::RollbackFailed));
    s
}

/// Failed before the window, with triggers in the database; the clean-up is under way.
fn failed() -> Scenario {
    let mut s = rehearsing();
    s.fail(Task::Rehearse, Reason::SqlFailed).settle();
    assert_eq!(s.status.phase, Some(Phase::Failed));
    s
}

fn cancelled() -> Scenario {
    let mut s = awaiting();
    s.submit("ann", DecisionKind::Abort).settle();
    assert_eq!(s.status.phase, Some(Phase::Cancelled));
    s
}

/// Each phase once, as it comes about.
fn each_phase() -> Vec<Scenario> {
    vec![
        preflight(),
        awaiting(),
        blocking(),
        validating(),
        monitoring(),
        deciding(),
        completed(),
        running_down_sql(),
        rolled_back(),
        rollback_failed(),
        failed(),
        cancelled(),
    ]
}
