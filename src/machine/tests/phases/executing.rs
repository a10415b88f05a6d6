//! Executing: from the pod on standby to unblocked writes, and every way out of the window.

use crate::machine::tests::*;

const WINDOW: Task = Task::Window;

fn case(
    name: &'static str,
    given: Given,
    when: When,
    step: Step,
    effects: &'static [&'static str],
    wake: Option<i64>,
) -> Case {
    let reason = if step == Step::BlockWrites && wake == Some(599) { "PreparingWindow" } else { "WritesBlocked" };
    Case { name, given, when, phase: Phase::Executing, step, reason, effects, wake }
}

#[test]
fn the_window_goes_its_way() {
    use WindowState::{Blocked, Blocking, Migrated};
    assert_cases(&[
        case("the pod is not ready", approved, |s| apply(s.wait(1)), Step::BlockWrites, &[], Some(599)),
        case("opening", blocking, |s| apply(s.state(WINDOW, Blocking)), Step::BlockWrites, &[], Some(50)),
        case("blocked", blocking, |s| apply(s.state(WINDOW, Blocked)), Step::Migrate, &[], Some(50)),
        case(
            "committed",
            blocking,
            |s| apply(s.state(WINDOW, Migrated)),
            Step::SwitchApplication,
            &["order m-window-1 Switch"],
            Some(50),
        ),
        case("no flag before the acknowledgement", migrated, no_event, Step::SwitchApplication, &[], Some(50)),
        case(
            "acknowledged: the flag, and nothing before it",
            migrated,
            |s| apply(s.acknowledge(WINDOW)),
            Step::SwitchApplication,
            &["flag v2 uid-1.to"],
            Some(2),
        ),
        case(
            "the flag has the value, but from another hand",
            migrated,
            |s| {
                s.acknowledge(WINDOW);
                s.flag("v2", Some("uid-0.to"));
            },
            Step::SwitchApplication,
            &["flag v2 uid-1.to"],
            Some(2),
        ),
        case(
            "restart only after the flag",
            migrated,
            |s| {
                s.acknowledge(WINDOW);
                s.flag("v2", Some("uid-1.to"));
            },
            Step::SwitchApplication,
            &["restart shop uid-1.to"],
            Some(2),
        ),
        case("rollout under way", switching, no_event, Step::SwitchApplication, &[], Some(2)),
        case(
            "rolled out, an old pod is left",
            switching,
            |s| apply(s.rollout(true, 1).probe(WINDOW, "v2")),
            Step::SwitchApplication,
            &[],
            Some(2),
        ),
        case(
            "no old pod, not settled",
            switching,
            |s| apply(s.rollout(false, 0).probe(WINDOW, "v2")),
            Step::SwitchApplication,
            &[],
            Some(2),
        ),
        case(
            "rolled out, the probe answers the old version",
            switching,
            |s| apply(s.rollout(true, 0).reconciled().probe(WINDOW, "v1")),
            Step::SwitchApplication,
            &[],
            Some(10),
        ),
        case(
            "rolled out, the probe does not answer",
            switching,
            |s| apply(s.rollout(true, 0)),
            Step::SwitchApplication,
            &[],
            Some(50),
        ),
        case(
            "rolled out, no probe wanted",
            switching,
            |s| {
                s.rollout(true, 0);
                s.spec.application.version_probe = None;
            },
            Step::UnblockWrites,
            &[],
            Some(50),
        ),
        case(
            "it was restarted for something else",
            switching,
            |s| {
                s.rollout(true, 0).reconciled().probe(WINDOW, "v2").observed.workloads[0].restarted_for =
                    Some("other".into());
            },
            Step::SwitchApplication,
            &["restart shop uid-1.to"],
            Some(2),
        ),
        case(
            "the flag was reset",
            switching,
            |s| {
                s.rollout(true, 0).reconciled().probe(WINDOW, "v2").flag("v1", Some("uid-1.to"));
            },
            Step::SwitchApplication,
            &["flag v2 uid-1.to"],
            Some(2),
        ),
        case(
            "all run v2, balances not compared",
            switching,
            |s| apply(s.rollout(true, 0).reconciled().probe(WINDOW, "v2")),
            Step::UnblockWrites,
            &[],
            Some(50),
        ),
        case(
            "compared before the rollout ends",
            switching,
            |s| apply(s.compared(WINDOW, 0)),
            Step::SwitchApplication,
            &[],
            Some(2),
        ),
        case(
            "all run v2, all balances equal",
            switched,
            |s| apply(s.compared(WINDOW, 0)),
            Step::UnblockWrites,
            &["order m-window-1 UnblockWrites"],
            Some(50),
        ),
        case(
            "unblocking is on its way: no rollback in between",
            unblocking,
            |s| apply(s.wait(49).submit("ann", DecisionKind::Abort)),
            Step::UnblockWrites,
            &[],
            Some(1),
        ),
        Case {
            reason: "WindowOverdue",
            ..case(
                "unblocking is on its way, long since: that is reported, and not checked all the time",
                unblocking,
                |s| apply(s.wait(50).submit("ann", DecisionKind::Abort)),
                Step::UnblockWrites,
                &[],
                None,
            )
        },
        case(
            "the report of the end is not yet the end",
            unblocking,
            |s| apply(s.state(WINDOW, WindowState::Unblocked)),
            Step::UnblockWrites,
            &[],
            Some(50),
        ),
        case(
            "the Job is gone, the run is not",
            blocking,
            |s| s.run(WINDOW).job = Job::Absent,
            Step::BlockWrites,
            &["start m-window-1"],
            Some(50),
        ),
    ]);
}

#[test]
fn the_deadline_is_persisted_before_the_order_is_given() {
    let mut s = approved();
    s.wait(1).state(WINDOW, WindowState::Ready);
    let first = s.decide();
    let deadline = first.status.window.as_ref().unwrap().deadline;
    assert_eq!(deadline, Some(s.now + seconds(60)));
    assert_eq!(ready(&first.status).0, "BlockingWrites");
    assert_eq!(first.wake_at, deadline);
    let order = |d: &Decision| {
        d.effects
            .iter()
            .find_map(|e| if let Effect::OrderWindow { order, .. } = e { Some(order.clone()) } else { None })
    };
    // The order carries what is persisted with it ...
    assert_eq!(order(&first).unwrap().deadline, deadline);
    // ... a crash before it was given repeats it, with the same deadline ...
    s.status = first.status.clone();
    s.wait(7);
    let second = s.decide();
    assert_eq!(order(&second), order(&first));
    assert_eq!(second.status.window.as_ref().unwrap().deadline, deadline);
    // ... and without it in the status nothing is ordered, whatever was decided in memory.
    s.status.window = None;
    s.progress(WINDOW, |w| w.state = WindowState::Starting);
    assert_eq!(order(&s.decide()), None);
}

#[test]
fn the_acknowledgement_is_persisted_before_the_flag_is_set() {
    let mut s = migrated();
    s.acknowledge(WINDOW);
    let d = s.decide();
    assert!(d.status.window.as_ref().unwrap().switched);
    // A late report without it takes nothing back.
    s.status = d.status;
    s.progress(WINDOW, |w| w.switch_acknowledged = false);
    assert_eq!(actions(&s.decide()), ["flag v2 uid-1.to"]);
}

#[test]
fn gates_are_checked_once_more_before_the_window() {
    let back = |name, when| Case {
        name,
        given: approved,
        when,
        phase: Phase::AwaitingApproval,
        step: Step::Approve,
        reason: "",
        effects: &["remove m-window-1"],
        // Then those who are present are not any more.
        wake: Some(3599),
    };
    let cases = [
        Case { reason: "FlagNotAtFrom", ..back("flag", |s| s.flag("v2", None)) },
        Case { reason: "WorkloadMissing", ..back("workload", |s| s.observed.workloads[0].exists = false) },
        Case { reason: "DecisionPolicyMissing", ..back("policy", |s| s.observed.policy_problem = Some("gone".into())) },
        Case { reason: "Rejected", ..back("rejected", |s| apply(s.submit("eve", DecisionKind::Reject))) },
        Case {
            reason: "ApprovalPending",
            ..back("an approval was deleted", |s| {
                s.observed.decisions.pop();
            })
        },
        Case {
            phase: Phase::Preparing,
            step: Step::Preflight,
            reason: "Progressing",
            effects: &["remove m-preflight-1", "remove m-window-1", "start m-preflight-2"],
            wake: None,
            ..back("SQL", |s| s.observed.up = ObservedSql::Present("sha256:x".into()))
        },
        Case {
            phase: Phase::Preparing,
            step: Step::Preflight,
            reason: "Progressing",
            effects: &["remove m-preflight-1", "remove m-window-1", "start m-preflight-2"],
            wake: None,
            ..back("spec", |s| s.observed.generation = 2)
        },
        Case { reason: "PodFailed", wake: None, ..back("the pod was not ready in time", |s| apply(s.wait(600))) },
        Case {
            reason: "PodFailed",
            wake: None,
            ..back("the Job failed without a report", |s| apply(s.lose_job(WINDOW)))
        },
        Case {
            reason: "HostUnreachable",
            wake: None,
            ..back("the pod cannot reach the database", |s| apply(s.fail(WINDOW, Reason::HostUnreachable)))
        },
    ];
    assert_cases(&cases);
    for case in cases {
        // And also when the pod is ready in the same moment.
        let mut s = approved();
        (case.when)(&mut s);
        if case.reason != "PodFailed" && case.reason != "HostUnreachable" {
            s.state(WINDOW, WindowState::Ready);
        }
        let d = s.decide();
        assert_eq!(d.status.phase, Some(case.phase), "{}", case.name);
        assert!(!actions(&d).iter().any(|e| e.starts_with("order")), "{}: {:?}", case.name, actions(&d));
    }
}

#[test]
fn a_window_without_effect_needs_new_approvals() {
    for reason in [Reason::LockTimeout, Reason::WritesNotBlocked, Reason::ConnectionLost, Reason::DeadlinePassed] {
        let mut s = blocking();
        s.state(WINDOW, WindowState::RolledBack).fail(WINDOW, reason);
        let d = s.reconcile();
        assert_eq!((d.status.phase, d.status.step), (Some(Phase::AwaitingApproval), Some(Step::Approve)), "{reason}");
        assert_eq!(d.status.approvals_after, Some(s.now), "{reason}");
        let (found, message) = ready(&d.status);
        assert_eq!(found, reason.as_str());
        assert!(
            message.contains(
                "what was seen; nothing was changed; to retry, next: kubectl creditmigration -n shop approve m"
            ),
            "{message}"
        );
        s.settle();
        assert_eq!(
            (s.status.phase, s.status.approvals.as_deref()),
            (Some(Phase::AwaitingApproval), Some("0/2")),
            "{reason}"
        );
        s.wait(1).submit("ann", DecisionKind::Approve).settle();
        assert_eq!(s.status.approvals.as_deref(), Some("1/2"), "{reason}: one new decision, none of the old");
        s.submit("bob", DecisionKind::Approve).confirm_presence();
        let d = s.reconcile();
        assert_eq!(d.status.phase, Some(Phase::Executing));
        assert!(actions(&d).contains(&"start m-window-2".to_owned()), "{reason}: {:?}", actions(&d));
        assert_eq!(d.status.window, None, "{reason}: the new window has no deadline of the old one");
    }
}

#[test]
fn sql_that_fails_in_the_window_fails_the_migration() {
    for reason in [
        Reason::SqlFailed,
        Reason::TablesNotGone,
        Reason::RightsLost,
        Reason::BalancesUnexplained,
        Reason::VerifyUpFailed,
        Reason::InvariantBroken,
    ] {
        let mut s = blocking();
        s.state(WINDOW, WindowState::Blocked).settle();
        s.state(WINDOW, WindowState::RolledBack).fail(WINDOW, reason);
        let d = s.decide();
        assert_eq!((d.status.phase, d.status.step), (Some(Phase::Failed), Some(Step::Migrate)), "{reason}");
        let (found, message) = ready(&d.status);
        assert_eq!(found, reason.as_str());
        assert!(message.contains("rolled back, nothing was changed, writes are open"), "{message}");
        assert_eq!(d.status.writes, Some(crate::api::Writes::Open));
        assert_eq!(s.observed.flag_value(), Some("v1"));
    }
}

/// Given, when, cause, step and effects of the rollback.
type RollbackCase = (&'static str, Given, When, &'static str, Step, &'static [&'static str]);

#[test]
fn inside_the_window_it_rolls_back() {
    let rollback: &[&str] = &["order m-window-1 Rollback"];
    let flag: &[&str] = &["flag v1 uid-1.rollback"];
    let cases: &[RollbackCase] = &[
        ("deadline before the commit", blocking, |s| apply(s.wait(50)), "DeadlinePassed", Step::RollbackSql, rollback),
        ("deadline after the commit", migrated, |s| apply(s.wait(50)), "DeadlinePassed", Step::RollbackSql, rollback),
        ("deadline in the rollout", switching, |s| apply(s.wait(50)), "DeadlinePassed", Step::SwitchBack, flag),
        ("deadline before the comparison", switched, |s| apply(s.wait(50)), "DeadlinePassed", Step::SwitchBack, flag),
        ("Abort", blocking, |s| apply(s.submit("ann", DecisionKind::Abort)), "Stopped", Step::RollbackSql, rollback),
        (
            "Rollback",
            migrated,
            |s| apply(s.submit("ann", DecisionKind::Rollback)),
            "Stopped",
            Step::RollbackSql,
            rollback,
        ),
        (
            "by the author",
            switching,
            |s| apply(s.submit("author", DecisionKind::Abort)),
            "Stopped",
            Step::SwitchBack,
            flag,
        ),
        ("balances", migrated, |s| apply(s.compared(WINDOW, 1)), "BalancesUnexplained", Step::RollbackSql, rollback),
        (
            "balances, switched",
            switched,
            |s| apply(s.compared(WINDOW, 1)),
            "BalancesUnexplained",
            Step::SwitchBack,
            flag,
        ),
        ("deleted", blocking, |s| s.observed.deleting = true, "Deleted", Step::RollbackSql, rollback),
        ("deleted, switched", switched, |s| s.observed.deleting = true, "Deleted", Step::SwitchBack, flag),
    ];
    for (name, given, when, cause, step, effects) in cases {
        let mut s = given();
        when(&mut s);
        let d = s.decide();
        let rollback = d.status.rollback.clone().unwrap_or_else(|| panic!("{name}: stays"));
        assert_eq!((d.status.phase, d.status.step), (Some(Phase::RollingBack), Some(*step)), "{name}");
        assert_eq!((rollback.cause.as_str(), rollback.started_at), (*cause, s.now), "{name}");
        assert_eq!(actions(&d), *effects, "{name}");
        assert!(events(&d).contains(cause), "{name}: {:?}", events(&d));
        assert_eq!(d.status.window.as_ref().unwrap().unblocked_at, None, "{name}: writes stay blocked meanwhile");
    }
    let stays: &[(&str, Given, When)] = &[
        ("a second before the deadline", blocking, |s| apply(s.wait(49))),
        ("Reject is too late", blocking, |s| apply(s.submit("ann", DecisionKind::Reject))),
        ("SQL edited inside", migrated, |s| s.observed.up = ObservedSql::Missing),
        ("spec edited inside", migrated, |s| s.observed.generation = 2),
        ("deleted while writes are being unblocked", unblocking, |s| s.observed.deleting = true),
        ("deadline while writes are being unblocked", unblocking, |s| apply(s.wait(500))),
    ];
    for (name, given, when) in stays {
        let mut s = given();
        let step = s.status.step;
        when(&mut s);
        let d = s.decide();
        assert_eq!((d.status.phase, d.status.step), (Some(Phase::Executing), step), "{name}");
        assert_eq!(d.status.rollback, None, "{name}");
    }
}

#[test]
fn a_rollback_inside_the_window_ends_it() {
    // Not switched: the down SQL at once. Switched: first flag and rollout, then the SQL.
    let mut s = migrated();
    s.wait(50).settle();
    s.wait(1).state(WINDOW, WindowState::RolledBack).succeed(WINDOW);
    assert_eq!(s.reconcile().status.phase, Some(Phase::RolledBack));

    let mut s = switching();
    s.wait(50).settle();
    assert_eq!(s.observed.flag_value(), Some("v1"));
    assert_eq!(s.observed.workloads[0].restarted_for.as_deref(), Some("uid-1.rollback"));
    assert_eq!(actions(&s.decide()), Vec::<String>::new(), "no down SQL before the old version runs");
    s.rollout(true, 1).probe(WINDOW, "v1");
    assert_eq!(actions(&s.decide()), Vec::<String>::new(), "no down SQL while a new pod is left");
    s.rollout(true, 0).reconciled().wait(1).probe(WINDOW, "v2");
    assert_eq!(actions(&s.decide()), Vec::<String>::new(), "no down SQL while the probe answers the new version");
    s.probe(WINDOW, "v1");
    assert_eq!(actions(&s.reconcile()), ["order m-window-1 Rollback"]);
    s.state(WINDOW, WindowState::RolledBack).succeed(WINDOW);
    let d = s.reconcile();
    assert_eq!((d.status.phase, ready(&d.status).0.as_str()), (Some(Phase::RolledBack), "RolledBack"));
}

#[test]
fn the_runner_ended_the_window_by_itself() {
    // Committed, then undone at the deadline, controller away: nothing is left but to say so.
    let mut s = blocking();
    s.wait(60).state(WINDOW, WindowState::RolledBack).fail(WINDOW, Reason::DeadlinePassed);
    s.progress(WINDOW, |w| (w.migrate_seconds, w.deadline_passed) = (Some(1.0), true));
    let d = s.decide();
    assert_eq!(d.status.phase, Some(Phase::RolledBack));
    assert_eq!(d.status.rollback.as_ref().unwrap().cause, "DeadlinePassed");
    // Unblocked while no controller ran: the steps in between count as done.
    let mut s = blocking();
    s.state(WINDOW, WindowState::Unblocked).succeed(WINDOW);
    let d = s.decide();
    assert_eq!((d.status.phase, d.status.step), (Some(Phase::Validating), Some(Step::Validate)));
    for step in [Step::Migrate, Step::VerifyMigration, Step::SwitchApplication, Step::UnblockWrites] {
        let step_status = d.status.steps.iter().find(|step_status| step_status.name == step).unwrap();
        assert_eq!(step_status.state, crate::api::StepState::Succeeded, "{step:?}");
    }
}

/// The run's pod has never reported: its image is gone, or it is killed as soon as it starts.
fn silent(s: &mut Scenario) -> &mut Scenario {
    s.run(WINDOW).run.status = None;
    s
}

#[test]
fn a_pod_that_never_answers_does_not_hide_the_deadline() {
    let rollback: &[&str] = &["order m-window-1 Rollback"];
    type Expected = (&'static str, Given, Phase, Step, &'static [&'static str], &'static str);
    let cases: &[Expected] = &[
        ("opened", blocking, Phase::RollingBack, Step::RollbackSql, rollback, "job/m-window-1"),
        ("committed", migrated, Phase::RollingBack, Step::RollbackSql, rollback, "job/m-window-1"),
        (
            "switching",
            switching,
            Phase::RollingBack,
            Step::SwitchBack,
            &["flag v1 uid-1.rollback"],
            "on the new schema",
        ),
        ("being unblocked", unblocking, Phase::Executing, Step::UnblockWrites, &[], "job/m-window-1"),
    ];
    for (name, given, phase, step, effects, next) in cases {
        let mut s = given();
        silent(&mut s).settle().wait(49);
        assert_eq!(s.decide().status.phase, Some(Phase::Executing), "{name}");
        assert_eq!(s.decide().wake_at, Some(s.now + seconds(1)), "{name}");
        s.wait(1);
        let d = s.reconcile();
        assert_eq!((d.status.phase, d.status.step), (Some(*phase), Some(*step)), "{name}");
        assert_eq!(actions(&d), *effects, "{name}");
        for _ in 0..2 {
            let (reason, message) = ready(&s.status);
            assert_eq!(reason, "WindowOverdue", "{name}");
            assert!(message.contains("should have ended by") && message.contains(next), "{name}: {message}");
            assert!(s.status.conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True"), "{name}");
            assert_eq!(s.status.writes, Some(crate::api::Writes::Blocked), "{name}");
            // And an hour later it is the same.
            s.settle().wait(3600);
            assert!(!events(&s.reconcile()).contains(&"WindowOverdue"), "{name}: reported once");
        }
    }
    // An answer at last ends it.
    let mut s = blocking();
    silent(&mut s).wait(50).settle();
    s.state(WINDOW, WindowState::RolledBack).succeed(WINDOW).settle();
    assert_eq!(s.status.phase, Some(Phase::RolledBack));
    assert!(s.status.conditions.iter().all(|c| c.type_ != "Stalled"));
}

#[test]
fn only_writes_known_to_be_unblocked_count_as_nothing_changed() {
    for reason in [Reason::ConnectionLost, Reason::SqlFailed, Reason::Internal] {
        for state in [WindowState::Blocking, WindowState::Blocked, WindowState::Migrated] {
            let mut s = blocking();
            s.state(WINDOW, state).fail(WINDOW, reason);
            let d = s.reconcile();
            assert_eq!(
                d.status.phase,
                Some(Phase::Executing),
                "{reason} in {state:?}: the next pod reads the database"
            );
            s.settle();
            assert_eq!(s.run(WINDOW).run.spec.attempt, 2, "{reason} in {state:?}");
        }
    }
    // Unblocked on the new schema, and something else failed: the new version runs.
    let mut s = unblocking();
    s.state(WINDOW, WindowState::Unblocked).fail(WINDOW, Reason::ConnectionLost);
    let d = s.decide();
    assert_eq!(d.status.phase, Some(Phase::Validating));
    assert!(events(&d).contains(&"ConnectionLost"), "{:?}", events(&d));
}

#[test]
fn a_stuck_window_needs_manual_intervention() {
    for given in [migrated as Given, switching, switched] {
        let mut s = given();
        s.stuck(WINDOW).fail(WINDOW, Reason::SqlFailed);
        let d = s.decide();
        assert_eq!((d.status.phase, ready(&d.status).0.as_str()), (Some(Phase::RollbackFailed), "SqlFailed"));
        assert_eq!(d.status.writes, Some(crate::api::Writes::Blocked));
        assert_eq!(actions(&d), Vec::<String>::new());
    }
}

#[test]
fn lost_pods_of_an_earlier_window_do_not_count() {
    let mut s = blocking();
    for _ in 0..4 {
        s.lose_job(WINDOW).settle();
    }
    s.state(WINDOW, WindowState::RolledBack).fail(WINDOW, Reason::LockTimeout).settle();
    assert_eq!(s.status.phase, Some(Phase::AwaitingApproval));
    s.wait(2).submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).confirm_presence().settle();
    s.wait(1).state(WINDOW, WindowState::Ready).settle();
    s.lose_job(WINDOW).settle();
    assert_eq!(s.status.phase, Some(Phase::Executing));
}
