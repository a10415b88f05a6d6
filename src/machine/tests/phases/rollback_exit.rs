//! A rollback blocks writes only if the application can be switched back, and unblocks them if it could not be.

use super::super::notices::channel;
use crate::{
    api::{Audience, Occasion, Writes},
    machine::tests::*,
};

const BACK: Task = Task::RollbackWindow;

/// What keeps a rollback from switching the application back.
const OBSTACLES: &[(&str, When, &str)] = &[
    (
        "FlagConfigMapMissing",
        |s| s.observed.flag = ObservedFlag::ConfigMapMissing,
        "create configmap shop --from-literal=VERSION=v2",
    ),
    ("FlagKeyMissing", |s| s.observed.flag = ObservedFlag::KeyMissing, "ConfigMap shop has no key VERSION"),
    ("FlagConfigMapImmutable", make_immutable, "ConfigMap shop is immutable"),
    (
        "FlagWriteRefused",
        |s| s.observed.flag_write = DryRun::Refused("policy freeze denied the request".into()),
        "policy freeze denied the request",
    ),
    (
        "WorkloadWriteRefused",
        |s| s.observed.workloads[0].write = DryRun::Refused("policy freeze denied the request".into()),
        "Deployment shop cannot be restarted",
    ),
    ("WorkloadMissing", |s| s.observed.workloads[0].exists = false, "Deployment shop is missing"),
    ("WorkloadDoesNotReadFlag", |s| s.observed.workloads[0].reads_flag = false, "no container of Deployment shop"),
    ("WorkloadPaused", |s| s.observed.workloads[0].paused = true, "rollout resume deployment/shop"),
    (
        "QuotaExceeded",
        |s| s.observed.quota_shortages = Ok(vec![super::preparing::quota_shortage()]),
        "describe resourcequota compute",
    ),
    ("ForeignPods", |s| s.observed.workloads[0].foreign_pods = vec!["debug".into()], "debug"),
];

fn make_immutable(s: &mut Scenario) {
    if let ObservedFlag::Value { immutable, .. } = &mut s.observed.flag {
        *immutable = true;
    }
}

/// Status, reason and message of condition `RollbackReady`.
fn rollback_ready(s: &Scenario) -> Option<(&str, &str, &str)> {
    let found = s.status.conditions.iter().find(|c| c.type_ == "RollbackReady")?;
    Some((found.status.as_str(), found.reason.as_str(), found.message.as_str()))
}

fn interventions(s: &Scenario) -> usize {
    s.status.notices.iter().filter(|n| n.notice.occasion == Occasion::ManualInterventionRequired).count()
}

#[test]
fn a_rollback_that_could_not_switch_back_blocks_no_writes() {
    for (reason, harm, text) in OBSTACLES {
        let mut s = monitoring();
        s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
        let healthy = s.observed.clone();
        s.wait(1).submit("ann", DecisionKind::Rollback).settle();
        harm(s.state(BACK, WindowState::Ready));
        let d = s.reconcile();
        let (found, message) = ready(&d.status);
        assert_eq!((found.as_str(), d.status.step), (*reason, Some(Step::BlockWritesForRollback)));
        assert!(message.contains("writes are open") && message.contains(text), "{reason}: {message}");
        assert_eq!(d.status.writes, Some(Writes::Open), "{reason}");
        assert!(actions(&d).iter().all(|a| !a.starts_with("order")), "{reason}: {:?}", actions(&d));
        assert!(rollback_ready(&s).is_some_and(|c| c.0 == "False" && c.1 == *reason), "{:?}", rollback_ready(&s));
        // For as long as it takes, and people are notified once.
        s.settle().wait(3_600).settle();
        assert_eq!((s.status.phase, interventions(&s)), (Some(Phase::RollingBack), 1), "{reason}");
        // Fixed, it continues by itself.
        (s.observed.flag, s.observed.workloads) = (healthy.flag, healthy.workloads);
        s.observed.flag_write = healthy.flag_write;
        s.observed.quota_shortages = Ok(vec![]);
        let d = s.reconcile();
        assert!(actions(&d).contains(&"order m-rollback-1 BlockWrites".to_owned()), "{reason}: {:?}", actions(&d));
        assert_eq!((d.status.writes, rollback_ready(&s)), (Some(Writes::Blocked), None), "{reason}");
    }
}

#[test]
fn each_cause_that_a_rollback_waits_for_is_notified_of_once() {
    let mut s = monitoring();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    s.wait(1).submit("ann", DecisionKind::Rollback).settle();
    s.state(BACK, WindowState::Ready);
    for (number, (reason, harm, _)) in OBSTACLES.iter().enumerate() {
        let healthy = s.observed.clone();
        for _ in 0..3 {
            harm(&mut s);
            s.wait(10).reconcile();
        }
        assert_eq!((ready(&s.status).0.as_str(), interventions(&s)), (*reason, number + 1));
        (s.observed.flag, s.observed.workloads) = (healthy.flag, healthy.workloads);
        (s.observed.flag_write, s.observed.quota_shortages) = (healthy.flag_write, Ok(vec![]));
    }
}

#[test]
fn a_workload_that_is_not_settled_refuses_no_rollback() {
    let mut s = monitoring();
    s.rollout(false, 0).submit("ann", DecisionKind::Rollback).settle();
    assert_eq!(rollback_ready(&s).map(|c| c.0), Some("True"));
    let d = s.state(BACK, WindowState::Ready).reconcile();
    assert!(actions(&d).contains(&"order m-rollback-1 BlockWrites".to_owned()), "{:?}", actions(&d));
}

#[test]
fn whether_a_rollback_is_possible_is_known_until_it_is_not_needed() {
    for given in [validating as Given, monitoring, observing, deciding] {
        let mut s = given();
        if s.status.phase == Some(Phase::Validating) {
            s.measure(Task::Validate, CheckOutcome::Pass, false).settle();
        }
        let found = rollback_ready(&s);
        assert!(
            found.is_some_and(|c| (c.0, c.1) == ("True", "Switchable")
                && c.2.starts_with("flag and workloads can be switched back to v1; the database ha")),
            "{:?}: {found:?}",
            s.status.step
        );
        make_immutable(&mut s);
        let d = s.reconcile();
        assert!(rollback_ready(&s).is_some_and(|c| c.1 == "FlagConfigMapImmutable"), "{:?}", rollback_ready(&s));
        assert!(events(&d).contains(&"FlagConfigMapImmutable"), "{:?}", events(&d));
        assert!(!events(&s.reconcile()).contains(&"FlagConfigMapImmutable"), "reported once");
    }
    for given in [preflight as Given, awaiting, approved, blocking, unblocking, completed, blocked_for_rollback] {
        assert_eq!(rollback_ready(&given()), None);
    }
    for given in [running_down_sql as Given, rolled_back, rollback_failed, cancelled] {
        assert_eq!(rollback_ready(&given()), None);
    }
}

/// Writes are blocked, and the ConfigMap became immutable before the flag could be set: the write is refused.
fn switch_refused() -> Scenario {
    let mut s = blocking_for_rollback();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    s.wait(1).state(BACK, WindowState::Blocked).settle();
    make_immutable(&mut s);
    s.acknowledge(BACK);
    let d = s.decide();
    assert!(actions(&d).contains(&"flag v1 uid-1.rollback".to_owned()), "{:?}", actions(&d));
    s.status = d.status;
    s
}

#[test]
fn a_rollback_whose_switch_never_started_is_given_up_at_the_deadline() {
    let mut s = switch_refused();
    s.wait(59);
    let d = s.decide();
    // It is persisted first. Then the flag is written as it is, which an immutable ConfigMap accepts.
    assert!(d.status.window.as_ref().unwrap().unblocking);
    let marker = actions(&d).into_iter().find_map(|a| a.strip_prefix("flag v2 ").map(str::to_owned)).unwrap();
    assert!(marker.starts_with("uid-1.given-up."), "{marker}");
    assert!(actions(&d).iter().all(|a| !a.starts_with("order")), "{:?}", actions(&d));
    assert_eq!((ready(&d.status).0.as_str(), d.status.writes), ("RollbackNotStarted", Some(Writes::Blocked)));
    s.status = d.status;
    s.observed.flag = ObservedFlag::Value { value: "v2".into(), immutable: true, set_for: Some(marker) };
    assert_eq!(actions(&s.reconcile()), ["order m-rollback-1 UnblockWrites", "start m-notify-1"]);
    s.wait(1).state(BACK, WindowState::Unblocked).succeed(BACK).settle();
    let (reason, message) = ready(&s.status);
    assert_eq!((s.status.phase, reason.as_str()), (Some(Phase::RollbackFailed), "RollbackNotStarted"));
    assert!(message.contains("ConfigMap shop is immutable") && message.contains("writes are open again"), "{message}");
    // One that the flag cannot be set, one that the rollback was given up.
    assert_eq!((s.status.writes, interventions(&s)), (Some(Writes::Open), 2));
    assert!(rollback_ready(&s).is_some_and(|c| (c.0, c.1) == ("False", "FlagConfigMapImmutable")));
    // A new decision, after the fix, rolls back.
    s.flag("v2", None);
    s.settle();
    assert!(rollback_ready(&s).is_some_and(|c| (c.0, c.1) == ("False", "RollbackNotStarted")));
    s.wait(2).submit("bob", DecisionKind::Rollback).settle();
    s.state(BACK, WindowState::Ready).settle().state(BACK, WindowState::Blocked).settle();
    s.acknowledge(BACK).settle().rollout(true, 0).reconciled().probe(BACK, "v1").settle();
    assert_eq!(s.status.step, Some(Step::RollbackSql));
}

#[test]
fn of_a_rollback_that_is_given_up_and_unblocks_no_writes_people_are_notified_within_ten_seconds() {
    let mut s = switch_refused();
    s.wait(59);
    s.status = s.decide().status;
    // Of the flag that cannot be set they were notified at once.
    for (after, notified) in [(9, 1), (1, 2), (60, 2)] {
        s.wait(after);
        s.status = s.decide().status;
        assert_eq!(interventions(&s), notified, "{after} s later");
    }
}

#[test]
fn a_late_write_that_came_first_is_followed() {
    let mut s = switch_refused();
    s.wait(59);
    s.status = s.decide().status;
    // The write of a leader that slept arrives before the flag is confirmed.
    s.flag("v1", Some("uid-1.rollback"));
    let d = s.reconcile();
    assert!(!d.status.window.as_ref().unwrap().unblocking);
    assert!(actions(&d).contains(&"restart shop uid-1.rollback".to_owned()), "{:?}", actions(&d));
    assert_eq!(ready(&d.status).0, "WindowOverdue");
}

#[test]
fn a_mixed_state_that_cannot_settle_is_notified_of_at_once_and_once() {
    // Room in a quota is asked before a switch: the rollout itself takes it.
    let causes = OBSTACLES.iter().filter(|(reason, ..)| *reason != "QuotaExceeded");
    for (reason, harm, text) in causes {
        let inside: Given = || {
            let mut s = switching();
            s.submit("ann", DecisionKind::Abort).settle();
            s
        };
        let after: Given = || {
            let mut s = blocked_for_rollback();
            s.acknowledge(BACK).settle();
            s
        };
        for given in [inside, after] {
            let mut s = given();
            s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
            assert_eq!(s.status.step, Some(Step::SwitchBack));
            if reason.starts_with("Flag") {
                s.flag("v2", None);
            }
            harm(&mut s);
            for wait in [0, 1, 5, 30] {
                // What the operator orders is refused, or changes nothing.
                s.wait(wait);
                s.status = s.decide().status;
                assert_eq!(s.status.writes, Some(Writes::Blocked), "{reason}");
                assert_eq!(interventions(&s), 1, "{reason}: {:?}", s.status.notices);
            }
            assert!(s.status.notices.iter().any(|n| n.notice.message.contains(text)), "{reason}");
            assert!(ready(&s.status).1.contains(text), "{reason}: {}", ready(&s.status).1);
        }
    }
}

#[test]
fn a_rollout_that_makes_progress_alerts_no_one_until_it_takes_twice_as_long_as_expected() {
    let mut s = blocked_for_rollback();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    s.acknowledge(BACK).settle().rollout(false, 2);
    s.observed.workloads[0].rollout = Some(crate::api::ExpectedRollout::new("shop", 2, 1, 10, 0));
    let limit = 2 * i64::try_from(s.observed.workloads[0].rollout.as_ref().unwrap().seconds).unwrap();
    for _ in 0..limit - 1 {
        s.wait(1).reconcile();
        assert_eq!((interventions(&s), s.status.problems.len()), (0, 0));
    }
    for _ in 0..3 {
        s.wait(1).reconcile();
        assert_eq!(interventions(&s), 1);
    }
    let notice = &s.status.notices.last().unwrap().notice.message;
    assert!(
        notice.contains("twice what was expected") && notice.contains("rollout status deployment/shop"),
        "{notice}"
    );
}

#[test]
fn a_rollout_that_has_not_started_is_not_late() {
    let mut s = switch_refused();
    s.observed.workloads[0].rollout = Some(crate::api::ExpectedRollout::new("shop", 2, 1, 1, 0));
    for _ in 0..58 {
        s.wait(1);
        s.status = s.decide().status;
        let reasons: Vec<&str> = s.status.problems.iter().map(|p| p.reason.as_str()).collect();
        assert_eq!((reasons, interventions(&s)), (vec!["FlagConfigMapImmutable"], 1));
    }
}

#[test]
fn a_forward_switch_that_cannot_start_is_notified_of_at_once() {
    let mut s = migrated();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    s.acknowledge(Task::Window);
    make_immutable(&mut s);
    for _ in 0..3 {
        s.wait(1);
        s.status = s.decide().status;
    }
    assert_eq!((s.status.phase, interventions(&s)), (Some(Phase::Executing), 1));
    let notice = &s.status.notices.last().unwrap().notice.message;
    assert!(notice.contains("blocked until the deadline") && notice.contains("shop is immutable"), "{notice}");
}

#[test]
fn writes_stay_blocked_while_both_versions_may_serve() {
    let mixed: [(&str, When); 5] = [
        ("the flag was switched", |s| s.flag("v1", Some("uid-1.rollback"))),
        ("the flag is at from by another writer", |s| s.flag("v1", None)),
        ("the flag is unknown", |s| s.observed.flag = ObservedFlag::ConfigMapMissing),
        ("pods were restarted", |s| s.observed.workloads[0].restarted_for = Some("uid-1.rollback".into())),
        ("a pod answers the old version", |s| apply(s.probe(BACK, "v1"))),
    ];
    for (name, harm) in mixed {
        let mut s = switch_refused();
        harm(&mut s);
        s.wait(120);
        let d = s.decide();
        assert!(!d.status.window.as_ref().unwrap().unblocking, "{name}");
        assert_eq!((ready(&d.status).0.as_str(), d.status.writes), ("WindowOverdue", Some(Writes::Blocked)), "{name}");
    }
}

#[test]
fn a_lost_pod_does_not_bring_the_given_up_rollback_back() {
    let mut s = switch_refused();
    s.wait(59);
    s.status = s.decide().status;
    s.lose_job(BACK).settle();
    assert_eq!(s.run(BACK).run.spec.attempt, 2);
    s.state(BACK, WindowState::Blocked).settle();
    assert_eq!(s.observed.flag_value(), Some("v2"));
    assert_eq!(s.run(BACK).run.spec.window.as_ref().unwrap().command, crate::api::WindowCommand::UnblockWrites);
    s.state(BACK, WindowState::Unblocked).succeed(BACK).settle();
    assert_eq!((s.status.phase, s.status.writes), (Some(Phase::RollbackFailed), Some(Writes::Open)));
}
