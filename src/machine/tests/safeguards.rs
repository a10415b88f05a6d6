//! After the window: what a rollback needs is measured in each stage, and what is missing is reported.

use super::{notices::channel, *};
use crate::api::{Audience, MissingSafeguard, Occasion, SafeguardKind, SafeguardReport, Writes};

/// Nothing is missing.
pub(super) fn complete(at: Time) -> SafeguardReport {
    SafeguardReport { at, reachable: true, missing: vec![] }
}

fn missing(kind: SafeguardKind) -> MissingSafeguard {
    MissingSafeguard {
        table: (kind != SafeguardKind::StoredDownSql).then(|| "public.user_credits".into()),
        trigger: Some("credit_migration_track_changes".into()),
        detail: Some("SQLSTATE 42703".into()),
        ..MissingSafeguard::new(kind)
    }
}

/// The stage's pod reports.
fn report(s: &mut Scenario, task: Task, missing: Vec<MissingSafeguard>) -> &mut Scenario {
    let at = s.now;
    s.report(task, |run| run.safeguards = Some(SafeguardReport { missing, ..complete(at) }))
}

/// Monitoring for an hour, with a channel.
fn long_monitoring() -> Scenario {
    let mut s = monitoring();
    s.spec.monitoring.duration = std::time::Duration::from_secs(3600).into();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    s
}

fn rollback_ready(s: &Scenario) -> (String, String, String) {
    let found = s.status.conditions.iter().find(|c| c.type_ == "RollbackReady").unwrap();
    (found.status.clone(), found.reason.clone(), found.message.clone())
}

fn interventions(s: &Scenario) -> usize {
    s.status.notices.iter().filter(|n| n.notice.occasion == Occasion::ManualInterventionRequired).count()
}

#[test]
fn what_is_missing_is_reported_and_notified_of_once() {
    for (kind, reason, next) in [
        (SafeguardKind::UnblockedWrites, "WritesRefused", "docs/emergency.md"),
        (SafeguardKind::WorkingChangeTracking, "ChangeTrackingFails", "spec.credits.balances"),
        (SafeguardKind::ChangeTracking, "ChangeTrackingMissing", "ENABLE ALWAYS TRIGGER"),
        (SafeguardKind::WriteBlock, "WriteBlockMissing", "ENABLE ALWAYS TRIGGER"),
        (SafeguardKind::StoredDownSql, "DownSqlNotStored", "edit configmap sql"),
        (SafeguardKind::ControlSchema, "ControlSchemaForeign", "remove it"),
    ] {
        let mut s = long_monitoring();
        s.wait(1);
        let d = report(&mut s, Task::Monitor, vec![missing(kind)]).reconcile();
        assert_eq!(events(&d).iter().filter(|event| **event == reason).count(), 1, "{kind}: {:?}", events(&d));
        let (status, found, message) = rollback_ready(&s);
        assert_eq!((status.as_str(), found.as_str()), ("False", reason), "{kind}");
        assert!(message.contains("next: ") && message.contains(next), "{kind}: {message}");
        let refused = kind.refuses_writes();
        assert_eq!((interventions(&s), ready(&s.status).0 == reason), (1, refused), "{kind}");
        let problems = s.status.problems.iter().filter(|problem| problem.reason == reason);
        assert_eq!(problems.count(), 1, "{kind}: {:?}", s.status.problems);
        for _ in 0..5 {
            s.wait(15);
            report(&mut s, Task::Monitor, vec![missing(kind)]);
            let d = s.reconcile();
            assert!(!events(&d).contains(&reason) && interventions(&s) == 1, "{kind}");
        }
        report(&mut s, Task::Monitor, vec![]).settle();
        assert_eq!(rollback_ready(&s).0, "True", "{kind}");
        assert!(s.status.problems.iter().all(|problem| problem.reason != reason), "{kind}: {:?}", s.status.problems);
    }
}

#[test]
fn what_is_not_measured_is_not_known() {
    let mut s = validating();
    let (status, reason, message) = rollback_ready(&s);
    assert_eq!((status.as_str(), reason.as_str()), ("Unknown", "SafeguardsNotMeasured"));
    assert!(message.contains("describe job/m-validate-1"), "{message}");
    s = long_monitoring();
    report(&mut s, Task::Monitor, vec![]).settle();
    let wake = s.decide().wake_at.unwrap();
    assert!(wake <= s.now + seconds(90), "{wake}");
    s.wait(89).settle();
    assert_eq!(rollback_ready(&s).0, "True");
    s.wait(1).settle();
    assert_eq!(rollback_ready(&s).1, "SafeguardsNotMeasured");
    // A report is never replaced by an older one.
    s.report(Task::Monitor, |run| run.safeguards = Some(complete(time(0)))).settle();
    assert_ne!(s.status.safeguards.as_ref().unwrap().at, time(0));
}

#[test]
fn what_a_pod_measured_last_counts_when_another_one_follows_it() {
    let mut s = long_monitoring();
    report(&mut s, Task::Monitor, vec![missing(SafeguardKind::ChangeTracking)]);
    s.lose_job(Task::Monitor).settle();
    assert_eq!(rollback_ready(&s).1, "ChangeTrackingMissing");
}

#[test]
fn each_cause_that_makes_no_rollback_ready_is_notified_of_once() {
    let harms: [(&str, When); 6] = [
        ("FlagConfigMapMissing", |s| s.observed.flag = ObservedFlag::ConfigMapMissing),
        ("WorkloadMissing", |s| s.observed.workloads[0].exists = false),
        ("WorkloadPaused", |s| s.observed.workloads[0].paused = true),
        ("ForeignPods", |s| s.observed.workloads[0].foreign_pods = vec!["debug".into()]),
        ("DecisionPolicyMissing", |s| s.observed.policy_problem = Some("it is missing".into())),
        ("SafeguardsNotMeasured", no_event),
    ];
    for (reason, harm) in harms {
        let mut s = long_monitoring();
        report(&mut s, Task::Monitor, vec![]).settle();
        harm(&mut s);
        let mut reported = 0;
        // Longer than a report is recent, and than one may take to come.
        for _ in 0..20 {
            s.wait(10);
            if reason != "SafeguardsNotMeasured" {
                report(&mut s, Task::Monitor, vec![]);
            }
            reported += events(&s.reconcile()).iter().filter(|event| **event == reason).count();
        }
        assert_eq!((rollback_ready(&s).1.as_str(), reported), (reason, 1), "{reason}");
        let notices = s.status.notices.iter().filter(|n| n.notice.id.contains(reason));
        assert_eq!(notices.count(), 1, "{reason}: {:?}", s.status.notices);
    }
}

#[test]
fn between_the_follow_ups_the_last_measurement_counts() {
    let mut s = observing();
    let (status, _, message) = rollback_ready(&s);
    assert!(status == "True" && message.contains("when it was last measured"), "{message}");
    s.wait(20).settle();
    report(&mut s, Task::DayCheck, vec![missing(SafeguardKind::UnblockedWrites)]).settle();
    assert_eq!(ready(&s.status).0, "WritesRefused");
    s.succeed(Task::DayCheck).settle();
    assert_eq!((rollback_ready(&s).1.as_str(), s.status.writes), ("WritesRefused", Some(Writes::Open)));
}

#[test]
fn a_database_that_is_not_reached_and_a_missing_policy_make_no_rollback_ready() {
    let mut s = long_monitoring();
    let at = s.now;
    s.report(Task::Monitor, |run| run.safeguards = Some(SafeguardReport { reachable: false, ..complete(at) }));
    let d = s.reconcile();
    // A failover passes.
    assert_eq!((rollback_ready(&s).1.as_str(), events(&d)), ("DatabaseUnreachable", vec![]));
    let d = s.wait(30).reconcile();
    assert_eq!((events(&d), interventions(&s)), (vec!["DatabaseUnreachable"], 1));
    let mut s = long_monitoring();
    s.observed.policy_problem = Some("policy decisions.creditmigration.io is missing".into());
    let d = s.reconcile();
    let (status, reason, _) = rollback_ready(&s);
    assert_eq!((status.as_str(), reason.as_str()), ("Unknown", "DecisionPolicyMissing"));
    assert_eq!((events(&d), interventions(&s)), (vec!["DecisionPolicyMissing"], 1));
    // It refuses no rollback: a forged one is the lesser harm.
    s.wait(1).submit("ann", DecisionKind::Rollback).settle().state(Task::RollbackWindow, WindowState::Ready);
    assert!(actions(&s.reconcile()).contains(&"order m-rollback-1 BlockWrites".to_owned()));
}

#[test]
fn a_rollback_without_its_sql_waits_with_writes_open() {
    let mut s = long_monitoring();
    report(&mut s, Task::Monitor, vec![missing(SafeguardKind::StoredDownSql)]).settle();
    assert_eq!(rollback_ready(&s).1, "DownSqlNotStored");
    s.observed.down = ObservedSql::Missing;
    s.wait(1).submit("ann", DecisionKind::Rollback).settle().state(Task::RollbackWindow, WindowState::Ready);
    let d = s.reconcile();
    assert_eq!((ready(&d.status).0.as_str(), d.status.writes), ("DownSqlNotStored", Some(Writes::Open)));
    assert!(actions(&d).iter().all(|action| !action.starts_with("order")), "{:?}", actions(&d));
    // Restored, it continues by itself.
    s.observed.down = ObservedSql::Present("sha256:down".into());
    assert!(actions(&s.reconcile()).contains(&"order m-rollback-1 BlockWrites".to_owned()));
}
