//! Clean-up, and deletion in each phase.

use crate::machine::tests::*;

fn ended(name: &'static str, given: Given, when: When, effects: &'static [&'static str], wake: Option<i64>) -> Case {
    Case { name, given, when, phase: Phase::Completed, step: Step::Decide, reason: "Completed", effects, wake }
}

#[test]
fn triggers_are_removed_at_the_end() {
    assert_cases(&[
        ended("under way", completed, no_event, &[], None),
        ended("done", completed, |s| apply(s.succeed(Task::Cleanup)), &[], None),
        ended("failed: retried", completed, |s| apply(s.fail(Task::Cleanup, Reason::HostUnreachable)), &[], None),
        ended(
            "... not yet",
            completed,
            |s| apply(s.fail(Task::Cleanup, Reason::HostUnreachable).settle().wait(1)),
            &[],
            Some(1),
        ),
        ended(
            "... now: first the old run goes",
            completed,
            |s| apply(s.fail(Task::Cleanup, Reason::HostUnreachable).settle().wait(2)),
            &["remove m-cleanup-1"],
            None,
        ),
        ended("a Rollback comes too late", completed, |s| apply(s.submit("ann", DecisionKind::Rollback)), &[], None),
    ]);
    for given in [completed as Given, rolled_back, failed, cancelled] {
        let mut s = given();
        assert!(s.observed.runs.iter().any(|r| r.run.spec.task == Task::Cleanup), "{:?}", s.status.phase);
        let before = ready(&s.status);
        s.succeed(Task::Cleanup).settle();
        assert_eq!(ready(&s.status), before, "tidying is not the news");
        assert_eq!(actions(&s.decide()), Vec::<String>::new());
    }
    // Failed before any trigger was installed: nothing to remove.
    let mut s = preflight();
    s.fail(Task::Preflight, Reason::SqlSyntaxError).settle();
    assert!(s.observed.runs.iter().all(|r| r.run.spec.task != Task::Cleanup));
}

#[test]
fn a_failed_preparation_starts_again_when_its_inputs_change() {
    let mut s = failed();
    s.observed.up = ObservedSql::Present("sha256:fixed".into());
    assert_eq!(s.decide().status.phase, Some(Phase::Failed), "not while triggers are being removed");
    s.succeed(Task::Cleanup);
    let d = s.reconcile();
    assert_eq!((d.status.phase, d.status.step), (Some(Phase::Preparing), Some(Step::Preflight)));
    assert!(actions(&d).contains(&"start m-preflight-2".to_owned()), "{:?}", actions(&d));
    // Without triggers at once.
    let mut s = preflight();
    s.fail(Task::Preflight, Reason::SqlSyntaxError).settle();
    s.observed.generation = 2;
    assert_eq!(s.decide().status.phase, Some(Phase::Preparing));
    // And unchanged inputs are not retried.
    let mut s = failed();
    s.succeed(Task::Cleanup).settle().wait(86_400);
    assert_eq!(s.decide().status.phase, Some(Phase::Failed));
    assert_eq!(s.decide().status.phase, Some(Phase::Failed));
}

/// Not considered at once, it would cancel the corrected plan later.
#[rstest::rstest]
fn a_stop_said_in_failed_cancels(
    #[values(DecisionKind::Abort, DecisionKind::Rollback)] stop: DecisionKind,
    #[values(false, true)] corrected: bool,
) {
    let mut s = failed();
    s.succeed(Task::Cleanup).settle().submit("ann", stop);
    if corrected {
        s.observed.up = ObservedSql::Present("sha256:fixed".into());
    }
    assert_eq!(s.decide().status.phase, Some(Phase::Cancelled));
}

#[test]
fn deleted_in_each_phase() {
    // Phase before, phase after, and whether the finalizer goes at once.
    let cases: &[(&str, Given, Phase, bool)] = &[
        ("Preparing, nothing installed", preflight, Phase::Cancelled, true),
        ("Preparing, triggers are installed", rehearsing, Phase::Cancelled, false),
        ("AwaitingApproval", awaiting, Phase::Cancelled, false),
        ("Executing, not opened", approved, Phase::Cancelled, false),
        ("Executing, opened", blocking, Phase::RollingBack, false),
        ("Executing, committed", migrated, Phase::RollingBack, false),
        ("Executing, being unblocked", unblocking, Phase::Executing, false),
        ("Validating", validating, Phase::Completed, false),
        ("Monitoring", monitoring, Phase::Completed, false),
        ("Completed, not cleaned up", completed, Phase::Completed, false),
        ("RollingBack", running_down_sql, Phase::RollingBack, false),
        ("RolledBack, not cleaned up", rolled_back, Phase::RolledBack, false),
        ("RollbackFailed", rollback_failed, Phase::RollbackFailed, false),
        ("Failed, not cleaned up", failed, Phase::Failed, false),
        ("Cancelled, not cleaned up", cancelled, Phase::Cancelled, false),
    ];
    for (name, given, phase, goes) in cases {
        let mut s = given();
        s.observed.deleting = true;
        let d = s.reconcile();
        assert_eq!(d.status.phase, Some(*phase), "{name}");
        assert_eq!(actions(&d).contains(&"remove finalizer".to_owned()), *goes, "{name}: {:?}", actions(&d));
        if matches!(phase, Phase::Executing | Phase::RollingBack | Phase::RollbackFailed) || *goes {
            continue;
        }
        // The finalizer is removed after the triggers, and only then.
        for _ in 0..5 {
            s.reconcile();
        }
        assert!(s.observed.finalizer, "{name}: gone before the clean-up");
        s.succeed(Task::Cleanup);
        assert_eq!(actions(&s.reconcile()), ["remove finalizer"], "{name}");
        assert_eq!(actions(&s.reconcile()), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn deleted_inside_the_window_is_undone_and_then_gone() {
    let mut s = migrated();
    s.observed.deleting = true;
    s.settle();
    s.state(Task::Window, WindowState::RolledBack).succeed(Task::Window).settle();
    assert_eq!(s.status.phase, Some(Phase::RolledBack));
    assert!(s.observed.finalizer);
    s.succeed(Task::Cleanup).settle();
    assert!(!s.observed.finalizer);
}

#[test]
fn a_database_that_is_gone_does_not_hold_a_deletion_for_ever() {
    let mut s = completed();
    s.observed.deleting = true;
    for _ in 0..4 {
        s.fail(Task::Cleanup, Reason::HostUnreachable).settle().wait(300).settle();
        assert!(s.observed.finalizer);
    }
    s.fail(Task::Cleanup, Reason::HostUnreachable);
    let d = s.reconcile();
    assert_eq!(actions(&d), ["remove finalizer"]);
    assert!(events(&d).contains(&"TriggersLeft"), "{:?}", events(&d));
}

#[test]
fn a_deleted_namespace_lets_go_what_has_writes_unblocked() {
    let asked = || {
        let mut s = monitoring();
        s.submit("ann", DecisionKind::Rollback).reconcile();
        assert_eq!(s.status.phase, Some(Phase::RollingBack));
        s
    };
    // What is given, the phase after it, and whether the finalizer goes.
    let cases: &[(&str, Given, Phase, bool)] = &[
        ("Preparing", rehearsing, Phase::Cancelled, true),
        ("AwaitingApproval", awaiting, Phase::Cancelled, true),
        ("Executing, writes not blocked", approved, Phase::Cancelled, true),
        ("Observing", observing, Phase::Completed, true),
        ("Completed", completed, Phase::Completed, true),
        ("Failed", failed, Phase::Failed, true),
        ("RollingBack, writes not blocked", asked, Phase::Completed, true),
        ("Executing, writes blocked", blocking, Phase::RollingBack, false),
        ("RollingBack, writes blocked", blocked_for_rollback, Phase::RollingBack, false),
        ("RollbackFailed", rollback_failed, Phase::RollbackFailed, false),
    ];
    for (name, given, phase, goes) in cases {
        let mut s = given();
        (s.observed.deleting, s.observed.namespace_deleting) = (true, true);
        let d = s.reconcile();
        assert_eq!(d.status.phase, Some(*phase), "{name}");
        let actions = actions(&d);
        assert_eq!(actions == ["remove finalizer"], *goes, "{name}: {actions:?}");
        assert_eq!(events(&d).contains(&"TriggersLeft"), *goes, "{name}: {:?}", events(&d));
        assert!(!actions.iter().any(|a| a.starts_with("start ")), "{name}: {actions:?}");
    }
    // One statement removes them all.
    let mut s = awaiting();
    (s.observed.deleting, s.observed.namespace_deleting) = (true, true);
    let notes: Vec<String> = s
        .decide()
        .effects
        .into_iter()
        .filter_map(|e| if let Effect::Event(event) = e { Some(event.note) } else { None })
        .collect();
    let drop = "credit_migration.block_writes(), credit_migration.track_changes() CASCADE";
    assert!(notes.iter().any(|note| note.contains(drop) && note.contains("database shop")), "{notes:?}");
}

#[test]
fn no_event_is_begun_for_what_is_deleted() {
    let mut s = Scenario::new();
    s.observed.deleting = true;
    let d = s.decide();
    assert_eq!((d.status.phase, actions(&d)), (Some(Phase::Cancelled), vec!["remove finalizer".to_owned()]));
    s.observed.finalizer = false;
    assert_eq!(actions(&s.decide()), Vec::<String>::new());
}

#[test]
fn a_reported_time_far_off_ends_nobody() {
    let mut s = unblocking();
    s.wait(1).state(Task::Window, WindowState::Unblocked);
    s.progress(Task::Window, |w| w.unblocked_at = Some(Time::MAX)).succeed(Task::Window).settle();
    s.wait(20).settle();
    s.wait(30).measure(Task::Monitor, CheckOutcome::Pass, false).settle();
    assert_eq!((s.status.phase, s.status.step), (Some(Phase::Observing), Some(Step::DayCheck)));
}

/// With tables that are parked, and dropped an hour after the decision to keep.
fn parks(s: &mut Scenario) {
    let park = serde_json::json!({"tables": ["a", "b"], "dropAfter": "1h"});
    s.spec.migration.park = Some(serde_json::from_value(park).unwrap());
}

fn step_of(s: &Scenario, step: Step) -> Option<&crate::api::StepStatus> {
    s.status.steps.iter().find(|step_status| step_status.name == step)
}

#[test]
fn parked_tables_are_dropped_a_while_after_the_decision_to_keep() {
    let mut s = completed();
    parks(&mut s);
    s.settle();
    assert_eq!(step_of(&s, Step::DropParked), None, "not before Cleanup");
    let before = ready(&s.status);
    s.succeed(Task::Cleanup).settle();
    let planned = step_of(&s, Step::DropParked).unwrap();
    let kept_at = step_of(&s, Step::Decide).unwrap().finished_at.unwrap();
    assert_eq!(planned.retry_at, Some(kept_at + jiff::SignedDuration::from_hours(1)));
    assert!(planned.message.as_ref().unwrap().starts_with("a, b are dropped from schema credit_migration_parked at"));
    assert_eq!(actions(&s.decide()), Vec::<String>::new());
    assert_eq!(s.decide().wake_at, planned.retry_at);

    s.wait(3_600);
    assert_eq!(actions(&s.reconcile()), ["start m-drop-1"]);
    s.fail(Task::DropParked, Reason::ParkedTableInUse).settle();
    assert_eq!(step_of(&s, Step::DropParked).unwrap().reason.as_deref(), Some("ParkedTableInUse"));
    s.wait(2).settle();
    s.succeed(Task::DropParked).settle();
    assert_eq!(step_of(&s, Step::DropParked).unwrap().state, StepState::Succeeded);
    assert_eq!((s.status.phase, ready(&s.status)), (Some(Phase::Completed), before));
    s.wait(86_400);
    assert_eq!(actions(&s.reconcile()), Vec::<String>::new(), "once");
}

#[test]
fn nothing_is_dropped_that_no_one_decided_to_give_up() {
    for given in [rolled_back as Given, failed, cancelled, validating] {
        let mut s = given();
        parks(&mut s);
        // What is being watched is completed by its deletion.
        s.observed.deleting = s.status.phase == Some(Phase::Validating);
        s.settle();
        s.succeed(Task::Cleanup).settle().wait(86_400).settle();
        assert_eq!(step_of(&s, Step::DropParked), None, "{:?}", s.status.phase);
    }
}

/// The migration does not stay for weeks because of them.
#[test]
fn parked_tables_stay_where_the_migration_is_deleted_before() {
    let mut s = completed();
    parks(&mut s);
    s.succeed(Task::Cleanup).settle();
    s.observed.deleting = true;
    let d = s.reconcile();
    assert_eq!(actions(&d), ["remove finalizer"]);
    assert!(events(&d).contains(&"ParkedTablesLeft"), "{:?}", events(&d));
    // Those of a migration that was rolled back are where they were.
    let mut s = rolled_back();
    parks(&mut s);
    s.succeed(Task::Cleanup).settle();
    s.observed.deleting = true;
    let d = s.reconcile();
    assert_eq!((actions(&d), events(&d).contains(&"ParkedTablesLeft")), (vec!["remove finalizer".to_owned()], false));
}
