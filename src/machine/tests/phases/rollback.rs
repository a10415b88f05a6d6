//! The rollback after the window, and what follows when it fails.

use crate::machine::tests::*;

const BACK: Task = Task::RollbackWindow;

fn case(name: &'static str, given: Given, when: When, step: Step, effects: &'static [&'static str], wake: i64) -> Case {
    Case { name, given, when, phase: Phase::RollingBack, step, reason: "RollingBack", effects, wake: Some(wake) }
}

#[test]
fn the_rollback_step_by_step() {
    use WindowState::{Blocked, Blocking, Ready, RolledBack};
    let standing_by: Given = || {
        let mut s = monitoring();
        s.wait(1).submit("ann", DecisionKind::Rollback).settle();
        s
    };
    assert_cases(&[
        case(
            "starts",
            monitoring,
            |s| apply(s.submit("ann", DecisionKind::Rollback)),
            Step::BlockWritesForRollback,
            &["remove m-monitor-1", "start m-rollback-1"],
            600,
        ),
        case("the pod is not ready", standing_by, no_event, Step::BlockWritesForRollback, &[], 600),
        case(
            "ready",
            standing_by,
            |s| apply(s.state(BACK, Ready)),
            Step::BlockWritesForRollback,
            &["order m-rollback-1 BlockWrites"],
            60,
        ),
        case(
            "opening",
            blocking_for_rollback,
            |s| apply(s.state(BACK, Blocking)),
            Step::BlockWritesForRollback,
            &[],
            60,
        ),
        case(
            "blocked",
            blocking_for_rollback,
            |s| apply(s.state(BACK, Blocked)),
            Step::SwitchBack,
            &["order m-rollback-1 Switch"],
            60,
        ),
        case("no flag before the acknowledgement", blocked_for_rollback, no_event, Step::SwitchBack, &[], 59),
        case(
            "acknowledged",
            blocked_for_rollback,
            |s| apply(s.acknowledge(BACK)),
            Step::SwitchBack,
            &["flag v1 uid-1.rollback"],
            2,
        ),
        case(
            "restart only after the flag",
            blocked_for_rollback,
            |s| {
                s.acknowledge(BACK);
                s.flag("v1", Some("uid-1.rollback"));
            },
            Step::SwitchBack,
            &["restart shop uid-1.rollback"],
            2,
        ),
        case(
            "a pod of the new version is left",
            blocked_for_rollback,
            |s| apply(s.acknowledge(BACK).settle().rollout(true, 1).probe(BACK, "v1")),
            Step::SwitchBack,
            &[],
            2,
        ),
        case(
            "the probe answers the new version",
            blocked_for_rollback,
            |s| apply(s.acknowledge(BACK).settle().rollout(true, 0).reconciled().probe(BACK, "v2")),
            Step::SwitchBack,
            &[],
            10,
        ),
        case(
            "the old version runs",
            blocked_for_rollback,
            |s| apply(s.acknowledge(BACK).settle().rollout(true, 0).reconciled().probe(BACK, "v1")),
            Step::RollbackSql,
            &["order m-rollback-1 Rollback"],
            59,
        ),
        case("the SQL is under way", running_down_sql, no_event, Step::RollbackSql, &[], 59),
        case(
            "the report of the end is not yet the end",
            running_down_sql,
            |s| apply(s.state(BACK, RolledBack)),
            Step::RollbackSql,
            &[],
            59,
        ),
        case(
            "deleted on the way: it is ended all the same",
            running_down_sql,
            |s| s.observed.deleting = true,
            Step::RollbackSql,
            &[],
            59,
        ),
        case(
            "Keep does not stop it",
            running_down_sql,
            |s| apply(s.submit("ann", DecisionKind::Keep)),
            Step::RollbackSql,
            &[],
            59,
        ),
        Case {
            name: "rolled back",
            given: running_down_sql,
            when: |s| apply(s.compared(BACK, 0).state(BACK, RolledBack).succeed(BACK)),
            phase: Phase::RolledBack,
            step: Step::UnblockWritesAfterRollback,
            reason: "RolledBack",
            effects: &["start m-cleanup-1"],
            wake: None,
        },
    ]);
}

#[test]
fn a_rollback_that_takes_too_long_is_reported() {
    for given in [blocking_for_rollback as Given, blocked_for_rollback, running_down_sql] {
        let mut s = given();
        s.wait(60);
        let d = s.reconcile();
        let (reason, message) = ready(&d.status);
        assert_eq!((d.status.phase, reason.as_str()), (Some(Phase::RollingBack), "WindowOverdue"));
        assert!(message.contains("should have ended by") && message.contains("next: "), "{message}");
        assert!(d.status.conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True"));
        assert_eq!(events(&d), ["WindowOverdue"]);
        assert_eq!(events(&s.reconcile()), Vec::<&str>::new(), "reported once");
    }
    // And it still ends.
    let mut s = running_down_sql();
    s.wait(60).settle();
    s.compared(BACK, 0).state(BACK, WindowState::RolledBack).succeed(BACK).settle();
    assert_eq!(s.status.phase, Some(Phase::RolledBack));
    assert!(s.status.conditions.iter().all(|c| c.type_ != "Stalled"));
}

#[test]
fn the_end_of_the_rollback_names_what_was_verified() {
    let mut s = running_down_sql();
    s.wait(4).progress(BACK, |w| w.users_written_since = Some(7));
    s.compared(BACK, 0).state(BACK, WindowState::RolledBack).succeed(BACK);
    let d = s.decide();
    let step =
        |n: Step| d.status.steps.iter().find(|step_status| step_status.name == n).unwrap().message.clone().unwrap();
    assert_eq!(step(Step::VerifyRollback), "2 balances compared, 0 unexplained (limit 0); total 3 credits");
    assert_eq!(step(Step::UnblockWritesAfterRollback), "writes were blocked for 4.0 s");
    assert_eq!(d.status.rollback.as_ref().unwrap().users_written_since, Some(7));
    assert_eq!(d.status.writes, Some(crate::api::Writes::Open));
    assert!(ready(&d.status).1.contains("Rollback by ann"), "{}", ready(&d.status).1);
}

#[test]
fn balances_that_the_rollback_left_unexplained_are_reported() {
    let mut s = running_down_sql();
    s.compared(BACK, 2).state(BACK, WindowState::RolledBack).succeed(BACK);
    let d = s.decide();
    let verified = d.status.steps.iter().find(|step_status| step_status.name == Step::VerifyRollback).unwrap();
    assert_eq!((verified.state, verified.reason.as_deref()), (StepState::Failed, Some("BalancesUnexplained")));
    let text = "2 balances compared, 2 unexplained (limit 0); next: SELECT * FROM \
        credit_migration.unexplained_balances, and kubectl creditmigration -n shop report m";
    assert_eq!(verified.message.as_deref(), Some(text));
    let (reason, message) = ready(&d.status);
    assert_eq!((d.status.phase, reason.as_str()), (Some(Phase::RolledBack), "RolledBack"));
    assert!(
        message.contains("2 of 2 balances are unexplained") && !message.contains("no credit was lost"),
        "{message}"
    );
    assert!(events(&d).contains(&"BalancesUnexplained"), "{:?}", events(&d));
}

#[test]
fn what_the_rollback_did_not_compare_does_not_succeed() {
    let mut s = running_down_sql();
    s.state(BACK, WindowState::RolledBack).succeed(BACK);
    let d = s.decide();
    assert!(d.status.steps.iter().all(|step_status| step_status.name != Step::VerifyRollback));
    assert!(ready(&d.status).1.contains("balances were not compared"), "{}", ready(&d.status).1);
    // In the first window, before the SQL: there was nothing to compare.
    let mut s = blocking();
    s.wait(60).state(Task::Window, WindowState::RolledBack).succeed(Task::Window);
    let d = s.decide();
    assert_eq!(d.status.phase, Some(Phase::RolledBack));
    assert!(ready(&d.status).1.contains("the old version runs again, nothing was changed"), "{}", ready(&d.status).1);
}

#[test]
fn the_flag_is_at_from_before_the_end() {
    // The runner rolled back by itself, but the flag is still at v2.
    let mut s = migrated();
    s.wait(60).flag("v2", None);
    s.state(Task::Window, WindowState::RolledBack).fail(Task::Window, Reason::DeadlinePassed);
    let d = s.reconcile();
    assert_eq!((d.status.phase, d.status.step), (Some(Phase::RollingBack), Some(Step::SwitchBack)));
    assert_eq!(actions(&d), ["flag v1 uid-1.rollback"]);
    s.settle();
    assert_eq!(s.status.phase, Some(Phase::RollingBack), "not before the rollout");
    s.rollout(true, 0).reconciled().probe(Task::Window, "v1").settle();
    assert_eq!(s.status.phase, Some(Phase::RolledBack));
}

#[test]
fn what_may_pass_is_tried_again() {
    for reason in [Reason::PodFailed, Reason::ConnectionLost, Reason::LockTimeout, Reason::HostUnreachable] {
        let mut s = running_down_sql();
        for attempt in 2..6 {
            s.fail(BACK, reason).settle();
            assert_eq!((s.status.phase, s.run(BACK).run.spec.attempt), (Some(Phase::RollingBack), attempt), "{reason}");
        }
        // Rarer from here on, but as long as writes are blocked.
        s.fail(BACK, reason).settle();
        assert_eq!((s.status.phase, s.run(BACK).run.spec.attempt), (Some(Phase::RollingBack), 5), "{reason}");
        s.wait(32).settle();
        assert_eq!(s.run(BACK).run.spec.attempt, 6, "{reason}");
    }
}

#[test]
fn writes_that_were_unblocked_on_the_new_schema_are_blocked_again() {
    let mut s = blocked_for_rollback();
    s.state(BACK, WindowState::Unblocked).fail(BACK, Reason::DeadlinePassed);
    let d = s.reconcile();
    assert_eq!((d.status.phase, d.status.step), (Some(Phase::RollingBack), Some(Step::BlockWritesForRollback)));
    assert!(events(&d).contains(&"BlockingWritesForRollback"));
    for (attempt, wait) in [(2, 2), (3, 4), (4, 8), (5, 16), (6, 32)] {
        // Writes are open: each try comes later than the one before.
        s.settle().wait(wait - 1).settle();
        assert_eq!(s.run(BACK).run.spec.attempt, attempt - 1);
        assert_eq!(ready(&s.status).0, "BlockingWritesForRollback");
        assert_eq!(s.status.writes, Some(crate::api::Writes::Open));
        let d = s.decide();
        assert_eq!((actions(&d), d.wake_at), (vec![], Some(s.now + seconds(1))));
        s.wait(1).settle();
        assert_eq!(s.run(BACK).run.spec.attempt, attempt);
        s.state(BACK, WindowState::Unblocked).fail(BACK, Reason::DeadlinePassed);
    }
    s.settle();
    let (reason, message) = ready(&s.status);
    assert_eq!((s.status.phase, reason.as_str()), (Some(Phase::RollbackFailed), "RollbackNotStarted"));
    assert!(message.contains("the new version runs and writes are open; fix the cause; next: kubectl"), "{message}");
    assert_eq!(s.status.writes, Some(crate::api::Writes::Open));
}

#[test]
fn unblocked_before_it_could_roll_back() {
    let mut s = unblocking();
    // The rollback was started from an older status; unblocking was quicker.
    s.status.window.as_mut().unwrap().unblocking = false;
    s.submit("ann", DecisionKind::Abort).settle();
    assert_eq!(s.status.phase, Some(Phase::RollingBack));
    s.state(Task::Window, WindowState::Unblocked).succeed(Task::Window);
    let d = s.reconcile();
    assert_eq!((d.status.phase, d.status.step), (Some(Phase::RollingBack), Some(Step::BlockWritesForRollback)));
    s.settle();
    assert!(s.observed.runs.iter().all(|r| r.run.spec.task != BACK), "not at once");
    s.wait(2).settle();
    assert_eq!(s.run(BACK).run.spec.attempt, 1);
}

#[test]
fn before_writes_are_blocked_a_lost_pod_is_replaced_with_a_backoff() {
    let standing_by = || {
        let mut s = monitoring();
        s.submit("ann", DecisionKind::Rollback).settle();
        s
    };
    let mut s = standing_by();
    for (attempt, wait) in [(2, 2), (3, 4), (4, 8), (5, 16)] {
        s.lose_job(BACK).settle();
        assert_eq!(s.run(BACK).run.spec.attempt, attempt - 1, "not at once");
        assert_eq!(ready(&s.status).0, "PodFailed");
        s.wait(wait).settle();
        assert_eq!(s.run(BACK).run.spec.attempt, attempt);
        // The time to get ready starts again.
        assert_eq!(s.decide().wake_at, Some(s.now + seconds(600)));
    }
    s.lose_job(BACK).settle();
    assert_eq!(s.status.phase, Some(Phase::RollbackFailed));
    assert!(ready(&s.status).1.contains("writes are open, manual intervention is required"), "{}", ready(&s.status).1);
    // A pod that is never ready counts as lost, and its run goes before the next one comes.
    let mut s = standing_by();
    s.wait(600).settle().wait(2);
    assert_eq!(actions(&s.reconcile()), ["remove m-rollback-1", "start m-rollback-2"]);
    // Once the order to block may be out nothing is waited for.
    let mut s = blocking_for_rollback();
    s.lose_job(BACK);
    assert_eq!(actions(&s.reconcile()), ["start m-rollback-2"]);
}

#[test]
fn a_window_left_closed_counts_from_its_beginning() {
    let mut s = rollback_failed();
    s.wait(600).submit("bob", DecisionKind::Rollback).settle();
    // The new pod never reports.
    let (reason, message) = ready(&s.status);
    assert_eq!((s.status.phase, reason.as_str()), (Some(Phase::RollingBack), "WindowOverdue"));
    assert!(message.contains("job/m-rollback-2"), "{message}");
}

#[test]
fn a_failed_rollback_waits_for_a_decision() {
    let s = rollback_failed();
    let (reason, message) = ready(&s.status);
    assert_eq!(reason, "SqlFailed");
    assert_eq!(
        message,
        "what was seen; writes stay blocked, manual intervention is required; \
         fix the cause (you can correct the down SQL in its ConfigMap); \
         next: kubectl creditmigration -n shop rollback m --confirm --reason WHY"
    );
    assert_eq!(s.status.writes, Some(crate::api::Writes::Blocked));
    assert_cases(&[
        Case {
            name: "nothing happens by itself",
            given: rollback_failed,
            when: |s| apply(s.wait(86_400)),
            phase: Phase::RollbackFailed,
            step: Step::RollbackSql,
            reason: "SqlFailed",
            effects: &[],
            wake: None,
        },
        Case {
            name: "the old Rollback does not count again; Approve is none",
            given: rollback_failed,
            when: |s| apply(s.wait(1).submit("bob", DecisionKind::Approve)),
            phase: Phase::RollbackFailed,
            step: Step::RollbackSql,
            reason: "SqlFailed",
            effects: &[],
            wake: None,
        },
        Case {
            name: "deletion does not let go: writes are blocked",
            given: rollback_failed,
            when: |s| s.observed.deleting = true,
            phase: Phase::RollbackFailed,
            step: Step::RollbackSql,
            reason: "SqlFailed",
            effects: &[],
            wake: None,
        },
    ]);
}

#[test]
fn a_new_rollback_decision_starts_the_rollback_again() {
    let mut s = rollback_failed();
    s.observed.down = ObservedSql::Present("sha256:fixed".into());
    s.wait(1).submit("bob", DecisionKind::Rollback);
    let d = s.reconcile();
    assert_eq!((d.status.phase, d.status.step), (Some(Phase::RollingBack), Some(Step::BlockWritesForRollback)));
    assert_eq!(d.status.rollback.as_ref().unwrap().message, "Rollback by bob");
    assert_eq!(d.status.plan.as_ref().unwrap().down_sha256, "sha256:fixed", "with the SQL as it is now");
    assert_eq!(d.status.writes, Some(crate::api::Writes::Blocked), "writes are still blocked");
    s.settle();
    assert_eq!(s.run(BACK).run.spec.inputs.down_sha256, "sha256:fixed");
    // The pod continues with writes blocked and never reports Ready.
    s.state(BACK, WindowState::Blocked).settle();
    assert_eq!(s.status.step, Some(Step::SwitchBack));
    assert!(s.status.window.as_ref().unwrap().deadline.is_some());
    s.acknowledge(BACK).rollout(true, 0).reconciled().probe(BACK, "v1").settle();
    assert_eq!(s.status.step, Some(Step::RollbackSql));
    s.compared(BACK, 0).state(BACK, WindowState::RolledBack).succeed(BACK).settle();
    assert_eq!(s.status.phase, Some(Phase::RolledBack));
}

#[test]
fn a_rollback_decision_counts_once_however_much_the_clocks_differ() {
    for ahead in [-60, 0, 60] {
        let mut s = running_down_sql();
        // Times of decisions are the API server's: the operator's clock is ahead by so many seconds.
        let submit = |s: &mut Scenario| {
            s.submit("ann", DecisionKind::Rollback);
            s.observed.decisions.last_mut().unwrap().at = s.now - seconds(ahead);
        };
        submit(&mut s);
        s.wait(1).stuck(Task::RollbackWindow).fail(Task::RollbackWindow, Reason::SqlFailed).settle();
        s.wait(1).settle();
        assert_eq!(s.status.phase, Some(Phase::RollbackFailed), "the operator is {ahead} s ahead");
        s.wait(1);
        submit(&mut s);
        s.settle();
        assert_eq!(s.status.phase, Some(Phase::RollingBack), "the operator is {ahead} s ahead");
    }
}

#[test]
fn a_rollback_decision_counts_if_another_api_server_dates_it_earlier() {
    let mut s = rollback_failed();
    s.submit("ann", DecisionKind::Rollback);
    s.observed.decisions.last_mut().unwrap().at = s.now - seconds(3600);
    s.settle();
    assert_eq!(s.status.phase, Some(Phase::RollingBack));
}
