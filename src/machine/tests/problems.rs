//! What is wrong for as long as it lasts: reported once, in Kubernetes' own words where it is about a pod.

use super::*;
use crate::api::{Occasion, OnBreach, OnDrift, RollbackPolicy, TriggerMode};

/// A channel for the notices.
fn with_channel(s: &mut Scenario) -> &mut Scenario {
    s.spec.notifications.channels = vec![
        serde_json::from_value(serde_json::json!({
            "name": "chat", "audiences": ["Team"], "slack": {"urlSecretRef": {"name": "chat", "key": "url"}},
        }))
        .unwrap(),
    ];
    s
}

/// Messages of the notices that ask for a person.
fn alerts(s: &Scenario) -> Vec<&str> {
    let all = s.status.notices.iter().map(|n| &n.notice);
    all.filter(|n| n.occasion == Occasion::ManualInterventionRequired).map(|n| n.message.as_str()).collect()
}

fn problem<'a>(s: &'a Scenario, reason: &str) -> Option<&'a crate::api::Problem> {
    s.status.problems.iter().find(|p| p.reason == reason)
}

#[test]
fn two_breaches_that_take_turns_are_two_events() {
    for policy in [RollbackPolicy::Automatic, RollbackPolicy::Manual] {
        let mut s = monitoring();
        s.spec.monitoring.duration = std::time::Duration::from_secs(3600).into();
        s.spec.rollback.policy = policy;
        let first = &mut s.spec.monitoring.checks[0];
        first.on_breach = if policy == RollbackPolicy::Manual { OnBreach::Rollback } else { OnBreach::Warn };
        let second = crate::api::Check { name: "second".into(), ..first.clone() };
        s.spec.monitoring.checks.push(second);
        let mut notes = std::collections::BTreeSet::new();
        let mut published = 0;
        for round in 0..200 {
            // Both are latched; the outcome and the value of each go up and down.
            s.wait(1).measure(Task::Monitor, CheckOutcome::Fail, true);
            s.report(Task::Monitor, |r| {
                let other = CheckResult { name: "second".into(), ..r.checks[0].clone() };
                r.checks.push(other);
                for (i, check) in r.checks.iter_mut().enumerate() {
                    check.outcome = if (round + i) % 2 == 0 { CheckOutcome::Fail } else { CheckOutcome::Pass };
                    check.message = format!("{} > 0", (round + i) % 3);
                }
            });
            if round == 100 {
                s.lose_job(Task::Monitor);
            }
            for effect in s.reconcile().effects {
                if let Effect::Event(event) = effect
                    && event.reason == "CheckBreached"
                {
                    published += 1;
                    notes.insert(event.note);
                }
            }
            s.settle();
        }
        assert_eq!((published, notes.len()), (2, 2), "{policy:?}: {notes:?}");
    }
}

#[test]
fn a_problem_that_others_speak_over_is_reported_once() {
    // The run fails again and again while the flag is wrong: `Ready` has two owners.
    let mut s = monitoring();
    s.spec.monitoring.duration = std::time::Duration::from_secs(3600).into();
    s.flag("v1", None);
    let mut reported = 0;
    for _ in 0..100 {
        s.wait(1);
        if s.run(Task::Monitor).job == Job::Active {
            s.lose_job(Task::Monitor);
        }
        for _ in 0..3 {
            reported += events(&s.reconcile()).iter().filter(|reason| **reason == "FlagDrifted").count();
        }
    }
    assert_eq!(reported, 1);
}

#[test]
fn a_write_that_is_refused_for_long_stalls_the_migration() {
    let mut s = monitoring();
    let stalled =
        |s: &Scenario| s.status.conditions.iter().any(|c| c.type_ == "Stalled" && c.reason == "EffectRefused");
    s.observed.refused_effect = Some("a webhook refuses it".into());
    assert!(events(&s.reconcile()).contains(&"EffectRefused"));
    for _ in 0..29 {
        assert!(!events(&s.wait(1).reconcile()).contains(&"EffectRefused"));
        assert!(!stalled(&s), "a server that is busy for a moment calls no one");
    }
    s.wait(1).reconcile();
    assert!(stalled(&s));
    s.observed.refused_effect = None;
    s.reconcile();
    assert!(!stalled(&s) && problem(&s, "EffectRefused").is_none());
}

#[test]
fn a_flag_that_drifts_notifies_at_once_and_once() {
    for given in [validating as Given, monitoring, observing, deciding] {
        let mut s = given();
        with_channel(&mut s).flag("v1", None);
        assert!(events(&s.reconcile()).contains(&"FlagDrifted"));
        for _ in 0..5 {
            s.wait(1).reconcile();
        }
        let [alert] = alerts(&s)[..] else { panic!("{:?}", alerts(&s)) };
        assert!(alert.contains("is \"v1\", the schema is the one of \"v2\""), "{alert}");
        assert!(alert.ends_with("patch configmap shop --type=merge -p '{\"data\":{\"VERSION\":\"v2\"}}'"), "{alert}");
        assert_eq!(ready(&s.status).0, "FlagDrifted");
        // The next drift is another one.
        s.flag("v2", None);
        s.wait(1).reconcile();
        assert_eq!(problem(&s, "FlagDrifted"), None);
        s.flag("v1", None);
        s.wait(1).reconcile();
        assert_eq!(alerts(&s).len(), 2);
    }
}

#[test]
fn a_flag_that_drifts_is_set_again_only_if_the_spec_says_so() {
    let flag = "flag v2 uid-1.to";
    for given in [validating as Given, monitoring, observing, deciding] {
        let mut s = given();
        s.flag("v1", None);
        assert!(!actions(&s.decide()).contains(&flag.to_owned()), "{:?}", s.status.phase);
        s.spec.application.flag.on_drift = OnDrift::Restore;
        with_channel(&mut s);
        let d = s.reconcile();
        assert!(actions(&d).contains(&flag.to_owned()), "{:?}", actions(&d));
        assert!(ready(&d.status).1.contains("the operator sets it again"), "{}", ready(&d.status).1);
        assert_eq!(alerts(&s).len(), 1);
        assert!(!actions(&s.reconcile()).contains(&flag.to_owned()), "it is set");
        // A rollback is never worked against.
        s.flag("v1", None);
        s.submit("ann", DecisionKind::Rollback);
        let d = s.decide();
        assert_eq!(d.status.phase, Some(Phase::RollingBack));
        assert!(!actions(&d).contains(&flag.to_owned()));
    }
    // A sync from Git that sets it back each minute.
    let mut s = monitoring();
    s.spec.monitoring.duration = std::time::Duration::from_secs(7200).into();
    s.spec.application.flag.on_drift = OnDrift::Restore;
    with_channel(&mut s);
    for _ in 0..60 {
        s.flag("v1", None);
        s.wait(60).reconcile();
        s.reconcile();
    }
    let drifts = alerts(&s).iter().filter(|alert| alert.contains("the schema is the one of")).count();
    assert!((6..=7).contains(&drifts), "{drifts}");
    for broken in
        [ObservedFlag::ConfigMapMissing, ObservedFlag::Value { value: "v1".into(), immutable: true, set_for: None }]
    {
        let mut s = monitoring();
        s.spec.application.flag.on_drift = OnDrift::Restore;
        s.observed.flag = broken;
        assert!(actions(&s.decide()).is_empty(), "the API server would refuse it");
    }
}

fn refused() -> JobPod {
    JobPod::Waiting(Some(PodReason::new("FailedCreate", "exceeded quota: must specify limits.cpu")))
}

#[test]
fn a_pod_that_does_not_start_is_reported_in_the_words_of_the_api() {
    let cases: &[(Given, Task, &str)] = &[
        (preflight, Task::Preflight, "m-preflight-1"),
        (rehearsing, Task::Rehearse, "m-rehearse-1"),
        (monitoring, Task::Monitor, "m-monitor-1"),
        (preparing_window, Task::Window, "m-window-1"),
    ];
    for (given, task, name) in cases {
        let mut s = given();
        s.run(*task).pod = JobPod::Absent;
        s.reconcile();
        assert_eq!(s.decide().wake_at, Some(s.now + seconds(5)), "{name}: pods are not watched");
        s.wait(5).run(*task).pod = refused();
        let d = s.reconcile();
        assert!(!events(&d).contains(&"PodNotStarted"), "{name}: it may pass by itself");
        let (reason, message) = ready(&d.status);
        assert_eq!(reason, "PodNotStarted", "{name}");
        for part in [*name, "FailedCreate: exceeded quota: must specify limits.cpu", "next: kubectl -n shop describe"] {
            assert!(message.contains(part), "{message}");
        }
        let mut reported = 0;
        for n in 0..20 {
            // What Kubernetes says changes, the fact does not.
            let other = JobPod::Waiting(Some(PodReason::new("ErrImagePull", "")));
            s.wait(1).run(*task).pod = if n % 2 == 0 { refused() } else { other };
            reported += events(&s.reconcile()).iter().filter(|reason| **reason == "PodNotStarted").count();
        }
        assert_eq!(reported, 1, "{name}");
        s.run(*task).pod = JobPod::Started;
        s.reconcile();
        assert_eq!((problem(&s, "PodNotStarted"), ready(&s.status).0 == "PodNotStarted"), (None, false), "{name}");
    }
}

/// The window's pod is being started.
fn preparing_window() -> Scenario {
    let mut s = approved();
    s.settle();
    assert_eq!(ready(&s.status).0, "PreparingWindow");
    s
}

#[test]
fn a_pod_that_was_killed_says_by_what() {
    for (pod, why) in [
        (JobPod::Stopped(PodReason::new("OOMKilled", "")), "its pod: OOMKilled"),
        (JobPod::Stopped(PodReason::new("Evicted", "low on memory")), "its pod: Evicted: low on memory"),
        (refused(), "its pod: FailedCreate: exceeded quota"),
    ] {
        let mut s = rehearsing();
        s.lose_job(Task::Rehearse).run(Task::Rehearse).pod = pod;
        s.reconcile();
        let (reason, message) = ready(&s.status);
        assert_eq!(reason, "PodFailed");
        assert!(message.contains(why), "{message}");
    }
}

/// Monitoring for an hour with one trigger.
fn triggered() -> Scenario {
    let mut s = monitoring();
    s.spec.monitoring.duration = std::time::Duration::from_secs(3600).into();
    s.spec.rollback.triggers.balance_errors.mode = TriggerMode::Enabled;
    with_channel(&mut s);
    s
}

fn trigger(s: &mut Scenario, outcome: CheckOutcome) {
    trigger_of(s, Task::Monitor, outcome, false);
}

fn trigger_of(s: &mut Scenario, task: Task, outcome: CheckOutcome, breached: bool) {
    s.measure(task, CheckOutcome::Pass, false);
    s.report(task, |r| {
        let name = "balance-errors".into();
        r.checks.push(CheckResult { name, outcome, breached, ..r.checks[0].clone() });
    });
}

/// Monitoring has started, and the pod of Validating, which measures a trigger, is there.
fn handing_over() -> Scenario {
    let mut s = validating();
    s.spec.monitoring.duration = std::time::Duration::from_secs(3600).into();
    s.spec.rollback.triggers.balance_errors.mode = TriggerMode::Enabled;
    s.wait(20);
    trigger_of(&mut s, Task::Validate, CheckOutcome::Pass, false);
    s.settle();
    assert_eq!(s.status.phase, Some(Phase::Monitoring));
    s
}

fn has_run(s: &Scenario, task: Task) -> bool {
    s.observed.runs.iter().any(|run| run.run.spec.task == task)
}

#[test]
fn triggers_are_measured_without_a_gap_between_the_stages() {
    let mut s = handing_over();
    for outcome in [CheckOutcome::Pass, CheckOutcome::Fail] {
        s.wait(5);
        trigger_of(&mut s, Task::Validate, outcome, false);
        s.settle();
        let measured = s.status.checks.iter().find(|check| check.name == "balance-errors").unwrap();
        assert_eq!((measured.outcome, measured.at), (outcome, s.now));
        assert!(has_run(&s, Task::Validate) && has_run(&s, Task::Monitor));
    }
    // The next pod's first failure is the other's second: that one goes on.
    trigger(&mut s, CheckOutcome::Fail);
    s.settle();
    assert!(has_run(&s, Task::Validate));
    trigger(&mut s, CheckOutcome::Pass);
    s.settle();
    assert!(!has_run(&s, Task::Validate));

    let mut s = handing_over();
    trigger(&mut s, CheckOutcome::Fail);
    trigger_of(&mut s, Task::Validate, CheckOutcome::Fail, true);
    s.settle();
    assert_eq!(s.status.phase, Some(Phase::RollingBack));
}

#[test]
fn triggers_that_are_not_measured_notify() {
    let blind: &[(&str, When)] = &[
        ("no pod", |s| s.run(Task::Monitor).pod = refused()),
        ("a pod that hangs", |_| {}),
        ("a run that fails again and again", |s| {
            if s.run(Task::Monitor).job == Job::Active {
                s.lose_job(Task::Monitor);
            }
        }),
        ("errors", |s| trigger(s, CheckOutcome::Error)),
    ];
    for (name, happens) in blind {
        let mut s = triggered();
        let (mut reported, mut first) = (0, None);
        for second in 1..=120 {
            happens(s.wait(1));
            let found = events(&s.reconcile()).iter().filter(|reason| **reason == "TriggersNotMeasured").count();
            reported += found;
            if found > 0 {
                first = Some(second);
            }
            s.settle();
        }
        assert_eq!(reported, 1, "{name}");
        assert!(first.is_some_and(|second| (28..=35).contains(&second)), "{name}: after {first:?} s");
        assert_eq!(ready(&s.status).0, "TriggersNotMeasured", "{name}");
        let [alert] = alerts(&s)[..] else { panic!("{name}: {:?}", alerts(&s)) };
        assert!(alert.contains("balance-errors (") && alert.contains("limit 30 s"), "{name}: {alert}");
        // A result at last.
        s.wait(70).settle();
        s.run(Task::Monitor).pod = JobPod::Started;
        trigger(&mut s, CheckOutcome::Pass);
        s.reconcile();
        assert_eq!(problem(&s, "TriggersNotMeasured"), None, "{name}");
    }
}

#[test]
fn triggers_that_are_measured_do_not_notify() {
    for outcome in [CheckOutcome::Pass, CheckOutcome::Fail, CheckOutcome::NoData] {
        let mut s = triggered();
        for _ in 0..60 {
            s.wait(2);
            trigger(&mut s, outcome);
            s.reconcile();
            assert_eq!(problem(&s, "TriggersNotMeasured"), None, "{outcome}");
        }
    }
    // One that stops is missed although nothing happens.
    let mut s = triggered();
    trigger(&mut s, CheckOutcome::Pass);
    s.reconcile();
    let (started, mut reported) = (s.now, false);
    while !reported && s.now < started + seconds(120) {
        let wake = s.decide().wake_at.unwrap();
        assert!(wake > s.now);
        s.now = wake;
        reported = events(&s.reconcile()).contains(&"TriggersNotMeasured");
    }
    assert!(reported && s.now <= started + seconds(45), "{}", s.now);
}

#[test]
fn a_runner_whose_clock_differs_fails_preflight() {
    // Its start and end by its own clock, in seconds after the step's start, and what is found 10 s after that.
    for (start, end, found) in [
        (3, 9, None),
        (-1, 9, None),
        (3, 12, None),
        (-5, 1, Some("5.0 s behind the controller's (limit 2 s)")),
        (60, 66, Some("56.0 s ahead of the controller's (limit 2 s)")),
    ] {
        let mut s = preflight();
        let began = s.status.steps[0].started_at;
        s.succeed(Task::Preflight).report(Task::Preflight, |r| {
            (r.started_at, r.finished_at) = (Some(began + seconds(start)), Some(began + seconds(end)));
        });
        s.now = began + seconds(10);
        let d = s.decide();
        match found {
            None => assert_ne!(d.status.step, Some(Step::Preflight), "{start} {end}"),
            Some(words) => {
                let (reason, message) = ready(&d.status);
                assert_eq!(reason, "ClockSkew");
                assert!(message.contains(words), "{message}");
            }
        }
    }
}
