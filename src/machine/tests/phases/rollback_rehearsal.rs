//! The rollback, rehearsed again while the new version runs.

use crate::{
    api::{RollbackRehearsalMode, fixtures},
    machine::tests::*,
};

const TASK: Task = Task::RehearseRollback;
const DAY: i64 = 86_400;

/// The end of Monitoring, with rehearsals. The follow-ups are due after those.
fn rehearsed(mode: RollbackRehearsalMode) -> Scenario {
    let mut s = monitoring();
    s.spec.rollback.rehearsal.mode = mode;
    for follow_up in [&mut s.spec.follow_ups.day, &mut s.spec.follow_ups.week] {
        follow_up.after = Some(std::time::Duration::from_secs(100 * DAY.unsigned_abs()).into());
    }
    s.wait(30).measure(Task::Monitor, CheckOutcome::Pass, false).settle();
    assert_eq!(s.status.phase, Some(Phase::Observing));
    s
}

fn pass(s: &mut Scenario) -> &mut Scenario {
    let finished_at = s.now;
    s.report(TASK, |status| {
        status.phase = RunPhase::Succeeded;
        status.rollback_rehearsal = Some(fixtures::rollback_rehearsal(finished_at));
    });
    s.settle()
}

/// Status, reason and message of `RollbackReady`.
fn rollback_ready(s: &Scenario) -> (String, String, String) {
    let c = s.status.conditions.iter().find(|c| c.type_ == "RollbackReady").unwrap();
    (c.status.clone(), c.reason.clone(), c.message.clone())
}

fn attempts(s: &Scenario) -> u32 {
    s.observed.runs.iter().filter(|r| r.run.spec.task == TASK).map(|r| r.run.spec.attempt).max().unwrap_or(0)
}

#[test]
fn it_is_rehearsed_at_the_end_of_monitoring_and_each_day() {
    let mut s = rehearsed(RollbackRehearsalMode::Daily);
    assert_eq!(attempts(&s), 1);
    assert_eq!(s.status.step, Some(Step::DayCheck), "the observation goes on");
    let (status, reason, message) = rollback_ready(&s);
    assert_eq!((status.as_str(), reason.as_str()), ("True", "Switchable"));
    assert!(message.contains("; last rehearsed before the window, at "), "{message}");
    pass(&mut s);
    let (status, _, message) = rollback_ready(&s);
    assert_eq!(status, "True");
    for part in [
        "of 900 rows and 300 users in 2.0 s, compared in 1.5 s; 7 users and 120 credits written",
        "writes would be blocked for about ",
    ] {
        assert!(message.contains(part), "{message}");
    }
    // As measured last.
    assert_eq!((s.status.users_written, s.status.credits_written.as_deref()), (Some(7), Some("120")));
    assert_eq!(s.decide().wake_at, Some(s.now + seconds(DAY)));
    s.wait(DAY - 1).settle();
    assert_eq!(attempts(&s), 1);
    s.wait(1).settle();
    assert_eq!(attempts(&s), 2);
    assert_eq!(rollback_ready(&s).0, "True", "while the next one is under way");
}

/// A rollback keeps such balances: they are a finding, and no reason not to roll back.
#[test]
fn balances_that_nothing_explains_keep_a_rollback_ready() {
    let mut s = rehearsed(RollbackRehearsalMode::Daily);
    let mut evidence = fixtures::rollback_rehearsal(s.now);
    (evidence.unexplained, evidence.message) = (Some(3), "the balances of 3 users are not explained".into());
    s.report(TASK, |status| {
        status.phase = RunPhase::Succeeded;
        status.rollback_rehearsal = Some(evidence.clone());
    });
    s.settle();
    let (status, reason, message) = rollback_ready(&s);
    assert_eq!((status.as_str(), reason.as_str()), ("True", "Switchable"));
    assert!(message.contains("the balances of 3 users are not explained"), "{message}");
    assert!(message.contains("next: find out what wrote them: kubectl creditmigration -n shop report m"), "{message}");
    assert!(s.status.problems.is_empty(), "{:?}", s.status.problems);
}

/// What ends the rehearsal ends no window.
#[test]
fn a_rehearsal_that_shows_nothing_of_a_rollback_makes_it_unknown() {
    for reason in [Reason::SqlOutsideDatabase, Reason::ServerTooNew, Reason::ServerTooOld] {
        let mut s = rehearsed(RollbackRehearsalMode::Daily);
        s.fail(TASK, reason).settle();
        let (status, found, message) = rollback_ready(&s);
        assert_eq!((status.as_str(), found.as_str()), ("Unknown", "RollbackRehearsalFailed"));
        assert!(message.contains("does not show whether a rollback now would work"), "{message}");
    }
}

#[test]
fn once_is_once_and_never_is_never() {
    for (mode, runs) in [(RollbackRehearsalMode::Once, 1), (RollbackRehearsalMode::Never, 0)] {
        let mut s = rehearsed(mode);
        assert_eq!(attempts(&s), runs, "{mode}");
        if runs > 0 {
            pass(&mut s);
        }
        s.wait(5 * DAY).settle();
        let (status, _, message) = rollback_ready(&s);
        assert_eq!((attempts(&s), status.as_str()), (runs, "True"), "{mode}");
        // How old it is can be read.
        assert!(message.contains(if runs > 0 { "; rehearsed at " } else { "; last rehearsed before" }), "{message}");
    }
}

#[test]
fn a_rollback_that_would_fail_notifies_once_and_blocks_nothing() {
    let mut s = rehearsed(RollbackRehearsalMode::Daily);
    s.fail(TASK, Reason::SqlFailed);
    let d = s.reconcile();
    assert_eq!(events(&d).iter().filter(|e| **e == "RollbackRehearsalFailed").count(), 1, "{:?}", events(&d));
    s.settle();
    let (status, reason, message) = rollback_ready(&s);
    assert_eq!((status.as_str(), reason.as_str()), ("False", "RollbackRehearsalFailed"));
    assert!(
        message.contains("SqlFailed") && message.contains("next: kubectl -n shop logs job/m-dryrun-1"),
        "{message}"
    );
    assert_eq!(ready(&s.status).0, "Observing");
    let notices = |s: &Scenario| {
        s.status.notices.iter().filter(|n| n.notice.id.contains("rollback-ready.RollbackRehearsalFailed")).count()
    };
    let notified = notices(&s);
    // The next day it fails again: the same problem, reported already.
    s.wait(DAY).settle();
    assert_eq!((attempts(&s), rollback_ready(&s).0.as_str()), (2, "False"));
    s.fail(TASK, Reason::SqlFailed);
    let d = s.reconcile();
    assert!(!events(&d).contains(&"RollbackRehearsalFailed"), "{:?}", events(&d));
    s.settle();
    assert_eq!(notices(&s), notified);
    // A rollback is not refused for it, and ends the rehearsal.
    s.wait(DAY).settle();
    s.submit("ann", DecisionKind::Rollback).settle();
    assert_eq!(s.status.phase, Some(Phase::RollingBack));
    assert!(s.observed.run(TASK, 3).is_none(), "no pod of it is left");
    let step = s.status.steps.iter().find(|step| step.name == Step::RehearseRollback).unwrap();
    assert_eq!((step.state, step.retry_at), (StepState::Skipped, None));
}

#[test]
fn without_a_recent_rehearsal_it_is_unknown() {
    let mut s = rehearsed(RollbackRehearsalMode::Daily);
    let due = s.now;
    // What could not be carried out says nothing, and is retried an hour later: it dumps the whole database.
    s.fail(TASK, Reason::HostUnreachable).settle();
    assert_eq!((ready(&s.status).0.as_str(), rollback_ready(&s).0.as_str()), ("Observing", "True"));
    s.wait(3_599).settle();
    assert_eq!(attempts(&s), 1);
    s.wait(1).settle();
    assert_eq!(attempts(&s), 2);
    s.wait(2 * DAY - 3_601).settle();
    assert_eq!(rollback_ready(&s).0, "True");
    assert_eq!(s.decide().wake_at, Some(due + seconds(2 * DAY)));
    s.wait(1);
    let d = s.reconcile();
    assert!(events(&d).contains(&"RollbackRehearsalTooOld"), "{:?}", events(&d));
    let (status, reason, message) = rollback_ready(&s);
    assert_eq!((status.as_str(), reason.as_str()), ("Unknown", "RollbackRehearsalTooOld"));
    assert!(message.contains("more than 48 h ago (limit 48 h)"), "{message}");
    s.settle();
    pass(&mut s);
    assert_eq!(rollback_ready(&s).0, "True");
    assert!(s.status.problems.is_empty(), "{:?}", s.status.problems);
}
