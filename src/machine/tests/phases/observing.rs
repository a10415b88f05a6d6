//! The follow-ups, and the decision to keep the new version or roll back.

use crate::machine::tests::*;

#[test]
fn after_a_day_and_after_a_week() {
    let mut s = observing();
    let end = s.status.window.as_ref().unwrap().unblocked_at.unwrap();
    assert_eq!(s.decide().wake_at, Some(end + seconds(60)));
    assert!(actions(&s.decide()).is_empty(), "not before its time");
    s.wait(10).settle();
    let run = s.run(Task::DayCheck).run.spec.clone();
    assert_eq!((run.attempt, run.inputs.cutover_at), (1, Some(end)));
    // A follow-up that fails is retried, and is not left out.
    s.fail(Task::DayCheck, Reason::StoreUnreachable).settle();
    assert_eq!(ready(&s.status).0, "StoreUnreachable");
    s.wait(2).settle();
    s.succeed(Task::DayCheck).settle();
    assert_eq!(s.status.step, Some(Step::WeekReview));
    assert!(s.status.day_report.is_some() && s.status.week_report.is_none());
    s.wait(10).settle();
    s.succeed(Task::WeekReview).settle();
    let (reason, message) = ready(&s.status);
    assert_eq!((s.status.step, reason.as_str()), (Some(Step::Decide), "DecisionDue"));
    assert!(
        message.contains("s3://b/o.report.json")
            && message.contains("next: kubectl creditmigration -n shop keep m; or, to roll back: "),
        "{message}"
    );
}

#[test]
fn a_follow_up_that_fails_for_days_leaves_one_run() {
    for (given, task) in [
        (observing as Given, Task::DayCheck),
        (
            || {
                let mut s = observing();
                s.wait(10).settle();
                s.succeed(Task::DayCheck).settle();
                s
            },
            Task::WeekReview,
        ),
    ] {
        let mut s = given();
        s.wait(10).settle();
        for attempt in 1..20 {
            let runs: Vec<_> = s.observed.runs.iter().filter(|r| r.run.spec.task == task).collect();
            assert_eq!(runs.len(), 1, "{task:?}");
            assert_eq!(runs[0].run.spec.attempt, attempt);
            s.fail(task, Reason::StoreUnreachable).settle();
            s.wait(300).settle();
        }
        // The last one stays as a record.
        s.succeed(task).settle();
        s.submit("ann", DecisionKind::Rollback).settle();
        assert_eq!(s.observed.runs.iter().filter(|r| r.run.spec.task == task).count(), 1);
    }
}

#[test]
fn a_breach_is_reported_and_starts_no_rollback() {
    let mut s = observing();
    s.wait(10).settle();
    s.measure(Task::DayCheck, CheckOutcome::Fail, true).succeed(Task::DayCheck);
    let d = s.reconcile();
    assert_eq!(d.status.phase, Some(Phase::Observing));
    assert!(events(&d).contains(&"CheckBreached"), "{:?}", events(&d));
}

#[test]
fn a_keep_counts_only_if_it_was_said_after_the_review_whatever_its_time() {
    let mut s = observing();
    s.submit("ann", DecisionKind::Keep);
    s.observed.decisions.last_mut().unwrap().at = s.now + seconds(14 * 86_400);
    s.wait(10).settle();
    s.succeed(Task::DayCheck).settle();
    s.wait(7 * 86_400).settle();
    s.succeed(Task::WeekReview).settle();
    assert_eq!((s.status.phase, s.status.step), (Some(Phase::Observing), Some(Step::Decide)));
    s.submit("ann", DecisionKind::Keep);
    s.observed.decisions.last_mut().unwrap().at = s.now - seconds(60);
    assert_eq!(s.settle().status.phase, Some(Phase::Completed));
}

#[test]
fn who_decides() {
    let keeps = |name, when: When, phase| (name, when, phase);
    let cases: &[(&str, When, Phase)] = &[
        keeps("no decision", no_event, Phase::Observing),
        keeps("the author", |s| apply(s.submit("author", DecisionKind::Keep)), Phase::Observing),
        keeps("another plan", |s| apply(s.submit_on("ann", DecisionKind::Keep, Some("sha256:x"))), Phase::Observing),
        keeps("no plan", |s| apply(s.submit_on("ann", DecisionKind::Keep, None)), Phase::Observing),
        keeps("one person", |s| apply(s.submit("ann", DecisionKind::Keep)), Phase::Completed),
        keeps("Rollback", |s| apply(s.submit("ann", DecisionKind::Rollback)), Phase::RollingBack),
        keeps(
            "both: the rollback wins",
            |s| apply(s.submit("ann", DecisionKind::Keep).submit("bob", DecisionKind::Rollback)),
            Phase::RollingBack,
        ),
        keeps(
            "keep, while the flag has drifted",
            |s| {
                s.submit("ann", DecisionKind::Keep);
                s.flag("v1", None);
            },
            Phase::Observing,
        ),
    ];
    for (name, when, phase) in cases {
        let mut s = deciding();
        when(&mut s);
        assert_eq!(s.settle().status.phase, Some(*phase), "{name}");
    }
}

#[test]
fn without_a_decision_it_stays_and_reminds() {
    let mut s = deciding();
    for _ in 0..3 {
        assert!(!events(&s.decide()).contains(&"DecisionDue"), "asked a moment ago");
        s.wait(600);
        let d = s.reconcile();
        assert!(events(&d).contains(&"DecisionDue"));
        assert_eq!(d.status.phase, Some(Phase::Observing));
        s.settle();
    }
}

#[test]
fn a_rollback_works_at_every_moment_of_observing() {
    for given in [observing as Given, deciding] {
        let mut s = given();
        s.submit("ann", DecisionKind::Rollback).settle();
        assert_eq!((s.status.phase, s.status.step), (Some(Phase::RollingBack), Some(Step::BlockWritesForRollback)));
        assert_eq!(s.status.rollback.as_ref().unwrap().message, "Rollback by ann");
        assert!(s.observed.runs.iter().any(|r| r.run.spec.task == Task::RollbackWindow));
    }
}
