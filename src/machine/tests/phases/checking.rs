//! Validating and Monitoring.

use crate::api::{OnBreach, RollbackPolicy};
use crate::machine::tests::*;

fn monitors(
    name: &'static str,
    when: When,
    reason: &'static str,
    effects: &'static [&'static str],
    wake: Option<i64>,
) -> Case {
    Case { name, given: monitoring, when, phase: Phase::Monitoring, step: Step::Monitor, reason, effects, wake }
}

fn on_breach(s: &mut Scenario, what: OnBreach) -> &mut Scenario {
    s.spec.monitoring.checks[0].on_breach = what;
    s
}

const BACK: &[&str] = &["remove m-monitor-1", "start m-rollback-1"];

#[test]
fn stages() {
    let ends = |name, when| Case {
        phase: Phase::Observing,
        step: Step::DayCheck,
        reason: "Observing",
        effects: &["remove m-monitor-1"],
        ..monitors(name, when, "", &[], Some(10))
    };
    let back = |name, when| Case {
        phase: Phase::RollingBack,
        step: Step::BlockWritesForRollback,
        reason: "RollingBack",
        effects: BACK,
        ..monitors(name, when, "", &[], Some(600))
    };
    assert_cases(&[
        Case {
            name: "validation without checks lasts its time",
            given: validating,
            when: no_event,
            phase: Phase::Validating,
            step: Step::Validate,
            reason: "Progressing",
            effects: &[],
            wake: Some(20),
        },
        Case {
            name: "... and monitoring follows",
            given: validating,
            when: |s| apply(s.wait(20)),
            phase: Phase::Monitoring,
            step: Step::Monitor,
            reason: "Progressing",
            effects: &["remove m-validate-1", "start m-monitor-1"],
            wake: Some(30),
        },
        monitors("passes, not yet over", |s| apply(s.wait(29)), "Progressing", &[], Some(1)),
        ends("passes to the end", |s| apply(s.wait(30))),
        monitors(
            "never measured",
            |s| apply(s.wait(30).report(Task::Monitor, |s| s.checks.clear())),
            "ChecksNotPassing",
            &[],
            Some(60),
        ),
        monitors(
            "NoData at the end",
            |s| apply(s.wait(30).measure(Task::Monitor, CheckOutcome::NoData, false)),
            "ChecksNotPassing",
            &[],
            Some(90),
        ),
        monitors(
            "NoData, long after",
            |s| apply(s.wait(9000).measure(Task::Monitor, CheckOutcome::NoData, false)),
            "ChecksNotPassing",
            &[],
            Some(90),
        ),
        monitors(
            "Error at the end",
            |s| apply(s.wait(30).measure(Task::Monitor, CheckOutcome::Error, false)),
            "ChecksNotPassing",
            &[],
            Some(90),
        ),
        monitors(
            "Fail at the end, not breached",
            |s| apply(s.wait(30).measure(Task::Monitor, CheckOutcome::Fail, false)),
            "ChecksNotPassing",
            &[],
            Some(90),
        ),
        monitors(
            "Fail before the end, not breached",
            |s| apply(s.measure(Task::Monitor, CheckOutcome::Fail, false)),
            "Progressing",
            &[],
            Some(30),
        ),
        back("breached", |s| apply(s.measure(Task::Monitor, CheckOutcome::Fail, true))),
        back("breached once, passes again", |s| apply(s.measure(Task::Monitor, CheckOutcome::Pass, true))),
        back("breached when the time has passed", |s| {
            apply(s.wait(30).measure(Task::Monitor, CheckOutcome::Fail, true))
        }),
        back("Rollback", |s| apply(s.submit("ann", DecisionKind::Rollback))),
        back("Abort", |s| apply(s.submit("author", DecisionKind::Abort))),
        back("Rollback in an unauthenticated name: a forged stop is the lesser harm", |s| {
            s.submit("ann", DecisionKind::Rollback).observed.policy_problem = Some("gone".into());
        }),
        monitors(
            "breached, an approver decides",
            |s| {
                s.spec.rollback.policy = RollbackPolicy::Manual;
                s.measure(Task::Monitor, CheckOutcome::Fail, true);
            },
            "Progressing",
            &[],
            Some(30),
        ),
        monitors(
            "... and it does not end by itself",
            |s| {
                s.spec.rollback.policy = RollbackPolicy::Manual;
                s.wait(30).measure(Task::Monitor, CheckOutcome::Fail, true);
            },
            "ChecksNotPassing",
            &[],
            Some(90),
        ),
        monitors(
            "Hold holds",
            |s| {
                on_breach(s, OnBreach::Hold).wait(30).measure(Task::Monitor, CheckOutcome::Fail, true);
            },
            "ChecksNotPassing",
            &[],
            Some(90),
        ),
        ends("... until it passes again", |s| {
            on_breach(s, OnBreach::Hold).wait(30).measure(Task::Monitor, CheckOutcome::Pass, true);
        }),
        ends("Warn does not hold", |s| {
            on_breach(s, OnBreach::Warn).wait(30).measure(Task::Monitor, CheckOutcome::Fail, true);
        }),
        monitors(
            "the pod was lost: it is measured again",
            |s| apply(s.wait(10).lose_job(Task::Monitor)),
            "PodFailed",
            &[],
            Some(80),
        ),
        monitors(
            "... the stage does not end meanwhile",
            |s| apply(s.wait(30).lose_job(Task::Monitor)),
            "PodFailed",
            &[],
            Some(60),
        ),
        monitors(
            "... by a fresh pod",
            |s| apply(s.wait(10).lose_job(Task::Monitor).settle().wait(2)),
            "PodFailed",
            &["remove m-monitor-1", "start m-monitor-2"],
            Some(78),
        ),
        monitors(
            "... and what it had reported counts: it goes on",
            |s| apply(s.measure(Task::Monitor, CheckOutcome::Pass, false).lose_job(Task::Monitor)),
            "PodFailed",
            &[],
            Some(90),
        ),
        back("breached, and the pod was lost before any decision", |s| {
            apply(s.measure(Task::Monitor, CheckOutcome::Fail, true).lose_job(Task::Monitor));
        }),
        back("breached, and the run reported a failure", |s| {
            apply(s.measure(Task::Monitor, CheckOutcome::Fail, true).fail(Task::Monitor, Reason::ConnectionLost));
        }),
        monitors("the up SQL is edited now", |s| s.observed.up = ObservedSql::Missing, "Progressing", &[], Some(30)),
    ]);
}

#[test]
fn a_breach_outlives_the_run_that_reported_it() {
    let mut s = monitoring();
    s.spec.rollback.policy = RollbackPolicy::Manual;
    s.measure(Task::Monitor, CheckOutcome::Fail, true).lose_job(Task::Monitor).settle();
    s.wait(2).settle();
    assert_eq!(s.run(Task::Monitor).run.spec.attempt, 2);
    assert!(s.status.checks[0].breached, "before the new run's first report");
    s.measure(Task::Monitor, CheckOutcome::Pass, false).settle();
    assert!(
        s.status.checks[0].breached && s.status.checks[0].outcome == CheckOutcome::Pass,
        "{:?}",
        s.status.checks[0]
    );
}

/// Monitoring with a check of the runner's and one of the workload, whose run has failed.
fn half_blind() -> Scenario {
    let mut s = validating();
    s.spec.monitoring.duration = std::time::Duration::from_secs(600).into();
    let workload = crate::api::Check {
        workload: Some(shop()),
        interval: std::time::Duration::from_secs(5).into(),
        on_breach: OnBreach::Rollback,
        ..crate::api::Check::named("ready")
    };
    s.spec.monitoring.checks.push(workload);
    s.wait(20).settle();
    s.lose_job(Task::Monitor).settle();
    assert_eq!(ready(&s.status).0, "PodFailed");
    s
}

#[test]
fn what_the_controller_sees_needs_no_run() {
    let mut s = half_blind();
    s.observed.workloads[0].available = (0, 2);
    for _ in 0..3 {
        // Each run fails as soon as it is there.
        s.wait(5).settle();
        if s.status.phase == Some(Phase::Monitoring) && s.run(Task::Monitor).job == Job::Active {
            s.lose_job(Task::Monitor).settle();
        }
    }
    assert_eq!(s.status.phase, Some(Phase::RollingBack));
    assert_eq!(s.status.rollback.as_ref().unwrap().message, "ready: 0 of 2 replicas available");
}

#[test]
fn a_failing_run_is_not_checked_all_the_time() {
    let mut s = half_blind();
    for _ in 0..100 {
        s.wait(1).settle();
        let d = s.decide();
        assert!(d.wake_at.is_none_or(|at| at > s.now), "{:?} at {}", d.wake_at, s.now);
        let moment = Scenario {
            now: s.now + jiff::SignedDuration::from_millis(1),
            spec: s.spec.clone(),
            status: s.status.clone(),
            observed: s.observed.clone(),
        };
        assert_eq!(moment.decide().status, s.status, "a status that changes with the clock is written without end");
        if s.run(Task::Monitor).job == Job::Active {
            s.lose_job(Task::Monitor);
        }
    }
}

#[test]
fn a_flag_that_drifts_is_reported_while_the_run_fails() {
    let mut s = half_blind();
    s.flag("v1", None);
    assert!(events(&s.reconcile()).contains(&"FlagDrifted"));
    assert_eq!(ready(&s.status).0, "FlagDrifted");
    assert!(!events(&s.reconcile()).contains(&"FlagDrifted"), "reported once");
    s.flag("v2", None);
    s.reconcile();
    assert_eq!(ready(&s.status).0, "PodFailed");
}

#[test]
fn a_lost_run_takes_no_measurement_of_another_kind_with_it() {
    let mut s = own_image();
    s.spec
        .monitoring
        .checks
        .push(crate::api::Check { max: Some("0".into()), ..monitoring().spec.monitoring.checks[0].clone() });
    s.settle();
    s.lose_job(Task::Monitor).settle();
    s.wait(2).settle();
    assert_eq!(s.run(Task::Monitor).run.spec.attempt, 2);
    assert_eq!(s.observed.check_jobs.len(), 1, "the one under way is waited for");
}

#[test]
fn down_sql_that_was_not_approved_is_reported_before_it_is_needed() {
    for given in [validating as Given, monitoring, observing, deciding] {
        for (sql, what) in
            [(ObservedSql::Present("sha256:other".into()), "sha256:other"), (ObservedSql::Missing, "missing")]
        {
            let mut s = given();
            let reason = ready(&s.status).0;
            s.observed.down = sql;
            let d = s.reconcile();
            assert_eq!(events(&d), ["DownSqlChanged"]);
            let c = d.status.conditions.iter().find(|c| c.type_ == "DownSqlChanged").unwrap();
            assert!(c.status == "True" && c.message.contains(&format!("is {what}, approved was sha256:down")), "{c:?}");
            assert!(c.message.ends_with("next: kubectl -n shop edit configmap sql"), "{}", c.message);
            assert_eq!(ready(&d.status).0, reason, "it holds nothing");
            assert_eq!(events(&s.reconcile()), Vec::<&str>::new(), "reported once");
            s.observed.down = ObservedSql::Present("sha256:down".into());
            assert!(s.decide().status.conditions.iter().all(|c| c.type_ != "DownSqlChanged"));
        }
    }
}

#[test]
fn a_breach_names_value_and_limit() {
    let mut s = monitoring();
    s.measure(Task::Monitor, CheckOutcome::Fail, true);
    let d = s.decide();
    let rollback = d.status.rollback.unwrap();
    assert_eq!((rollback.cause.as_str(), rollback.message.as_str()), ("TriggerFired", "errors: 0.21 > 0.05"));

    let mut s = monitoring();
    on_breach(&mut s, OnBreach::Hold).measure(Task::Monitor, CheckOutcome::Fail, true);
    assert_eq!(events(&s.reconcile()), ["CheckBreached"]);
    assert_eq!(events(&s.reconcile()), Vec::<&str>::new(), "reported once");
    s.wait(30);
    let (_, message) = ready(&s.decide().status);
    assert!(message.contains("errors Fail (0.21 > 0.05)") && message.contains("to roll back: kubectl"), "{message}");
}

/// Monitoring with a check of the workload alone.
fn watching_workload() -> Scenario {
    let mut s = validating();
    let check = &mut s.spec.monitoring.checks[0];
    (check.sql, check.workload) = (None, Some(shop()));
    s.wait(20).settle();
    assert_eq!(s.status.phase, Some(Phase::Monitoring));
    s
}

#[test]
fn workloads_are_measured_by_what_is_seen() {
    let mut s = watching_workload();
    assert!(s.run(Task::Monitor).run.status.is_none(), "its pod measures only what a rollback needs");
    assert_eq!(s.status.checks[0].outcome, CheckOutcome::Pass);
    // 3 of 3, five seconds apart; deciding more often does not count more.
    s.observed.workloads[0].available = (1, 2);
    s.wait(1).settle();
    assert_eq!((s.status.checks[0].outcome, s.status.checks[0].failed), (CheckOutcome::Fail, 1));
    assert_eq!(s.status.checks[0].message, "1 of 2 replicas available");
    assert_eq!(s.decide().wake_at, Some(s.now + seconds(5)), "it is checked again although nothing happens");
    s.wait(1).settle();
    assert_eq!(s.status.checks[0].failed, 1);
    s.wait(5).settle();
    assert_eq!((s.status.checks[0].failed, s.status.checks[0].breached), (2, false));
    s.wait(5);
    let d = s.decide();
    assert_eq!(d.status.phase, Some(Phase::RollingBack));
    assert_eq!(d.status.rollback.unwrap().message, "errors: 1 of 2 replicas available");

    for (name, harm) in
        [("gone", (|w| w.exists = false) as fn(&mut Workload)), ("scaled to nothing", |w| w.available = (0, 0))]
    {
        let mut s = watching_workload();
        harm(&mut s.observed.workloads[0]);
        s.wait(1).settle();
        assert_eq!(s.status.checks[0].outcome, CheckOutcome::Fail, "{name}");
    }
}

#[test]
fn failures_of_a_workload_are_counted_among_the_last_measurements() {
    // One letter for each interval; whether the last one starts a rollback.
    let cases: &[(&str, u32, u32, bool)] = &[
        ("xx", 3, 3, false),
        ("xxx", 3, 3, true),
        ("xx.x", 3, 3, false),
        ("xx.x", 3, 4, true),
        ("x.x", 2, 3, true),
        ("x..x", 2, 3, false),
        ("x..x", 2, 4, true),
        ("x.x.x", 3, 4, false),
        ("x.x.x", 3, 5, true),
        ("x", 1, 1, true),
    ];
    for (row, count, of, breached) in cases {
        let mut s = watching_workload();
        s.spec.monitoring.duration = std::time::Duration::from_secs(600).into();
        s.spec.monitoring.checks[0].failures = crate::api::Failures { count: *count, of: *of };
        for (i, letter) in row.chars().enumerate() {
            assert_eq!(s.status.phase, Some(Phase::Monitoring), "{row} {count}/{of} at {i}");
            s.observed.workloads[0].available = if letter == 'x' { (1, 2) } else { (2, 2) };
            s.wait(5).settle();
        }
        assert_eq!(s.status.phase == Some(Phase::RollingBack), *breached, "{row} {count}/{of}");
        if !breached {
            let c = &s.status.checks[0];
            assert!(c.recent.len() <= *of as usize && row.ends_with(c.recent.trim_start_matches('.')), "{row}: {c:?}");
            assert_eq!(c.failed as usize, c.recent.matches('x').count());
        }
    }
}

#[test]
fn a_check_of_the_same_name_in_the_next_stage_is_another_one() {
    let check = |on_breach: &str| {
        serde_json::from_value(serde_json::json!({
            "name": "ready", "workload": {"kind": "Deployment", "name": "shop"}, "interval": "5s",
            "failures": {"count": 1, "of": 1}, "onBreach": on_breach,
        }))
        .unwrap()
    };
    let mut s = validating();
    s.spec.validation.checks = vec![check("Hold")];
    s.spec.monitoring.checks.push(check("Rollback"));
    // Breached once, good again by the end of the stage.
    s.observed.workloads[0].available = (1, 2);
    s.wait(5).settle();
    assert!(s.status.checks[0].breached);
    s.observed.workloads[0].available = (2, 2);
    s.wait(20).settle();
    assert_eq!((s.status.phase, s.status.rollback.clone()), (Some(Phase::Monitoring), None));
}

/// Monitoring with a check that runs the team's own image each 10 s.
fn own_image() -> Scenario {
    let mut s = validating();
    s.spec.monitoring.checks = vec![crate::api::Check {
        job: serde_json::from_value(serde_json::json!({"image": "shop-check:1"})).unwrap(),
        interval: std::time::Duration::from_secs(10).into(),
        failures: crate::api::Failures { count: 2, of: 2 },
        on_breach: OnBreach::Rollback,
        ..crate::api::Check::named("own")
    }];
    s.wait(20);
    s
}

#[test]
fn a_job_check_is_a_job_for_each_measurement() {
    let mut s = own_image();
    let d = s.reconcile();
    assert_eq!(actions(&d), ["remove m-validate-1", "start m-monitor-1", "check m-monitor-c0n1"]);
    assert!(actions(&s.decide()).is_empty(), "it is under way");
    let check = |s: &Scenario| s.status.checks[0].clone();
    assert_eq!(check(&s).outcome, CheckOutcome::NoData);
    s.observed.check_jobs[0].job = Job::Complete;
    s.settle();
    assert_eq!((check(&s).outcome, check(&s).measured), (CheckOutcome::Pass, 1));
    assert!(
        s.observed.check_jobs.len() == 1 && s.decide().wake_at == Some(s.now + seconds(10)),
        "not before its interval"
    );
    for (n, phase) in [(2, Phase::Monitoring), (3, Phase::RollingBack)] {
        s.wait(10).settle();
        let job = s.observed.check_jobs.last_mut().unwrap();
        assert_eq!(job.name, format!("m-monitor-c0n{n}"));
        job.job = Job::Failed { reason: "BackoffLimitExceeded".into() };
        s.settle();
        assert_eq!(s.status.phase, Some(phase));
    }
    let message = &s.status.rollback.as_ref().unwrap().message;
    assert!(
        message.contains("own: Job m-monitor-c0n3 failed")
            && message.contains("kubectl -n shop logs job/m-monitor-c0n3"),
        "{message}"
    );
}

#[test]
fn a_job_whose_container_never_started_is_no_measurement() {
    let (failed, started) = (|reason: &str| Job::Failed { reason: reason.into() }, || JobPod::Started);
    let waiting = |why: &str| JobPod::Waiting((!why.is_empty()).then(|| PodReason::new(why, "")));
    let (timeout, limit) = ("DeadlineExceeded", "BackoffLimitExceeded");
    // Job, pod, and what the check of 2 of 2 has to say of two such measurements.
    let cases: &[(Job, JobPod, CheckOutcome, &str)] = &[
        (failed(limit), started(), CheckOutcome::Fail, "failed (BackoffLimitExceeded)"),
        (failed(limit), JobPod::Absent, CheckOutcome::Fail, "failed (BackoffLimitExceeded)"),
        (failed(limit), waiting(""), CheckOutcome::Error, "was not started (BackoffLimitExceeded)"),
        (failed(limit), waiting("OutOfcpu"), CheckOutcome::Error, "(BackoffLimitExceeded, OutOfcpu)"),
        (failed(timeout), JobPod::Absent, CheckOutcome::Error, "was not started (DeadlineExceeded)"),
        (failed(timeout), waiting("ImagePullBackOff"), CheckOutcome::Error, "(DeadlineExceeded, ImagePullBackOff)"),
        (failed(timeout), started(), CheckOutcome::Error, "(DeadlineExceeded)"),
    ];
    for (job, pod, outcome, text) in cases {
        let mut s = own_image();
        s.spec.monitoring.duration = std::time::Duration::from_secs(600).into();
        for _ in 0..2 {
            s.settle();
            let last = s.observed.check_jobs.last_mut().unwrap();
            (last.job, last.pod) = (job.clone(), pod.clone());
            s.settle().wait(10);
        }
        let phase = if *outcome == CheckOutcome::Fail { Phase::RollingBack } else { Phase::Monitoring };
        assert_eq!(s.status.phase, Some(phase), "{job:?} {pod:?}");
        if phase == Phase::Monitoring {
            let c = &s.status.checks[0];
            assert_eq!((c.outcome, c.failed, c.measured, c.recent.as_str(), c.breached), (*outcome, 0, 2, "", false));
            assert!(c.message.contains(text) && c.message.contains("next: kubectl -n shop describe job/"), "{c:?}");
        }
    }
}

#[test]
fn what_keeps_a_container_from_starting_is_reported_at_once_and_remembered() {
    let mut s = own_image();
    s.settle();
    s.observed.check_jobs[0].pod = JobPod::Waiting(Some(PodReason::new("ImagePullBackOff", "")));
    s.settle();
    let c = s.status.checks[0].clone();
    assert_eq!((c.outcome, c.measured), (CheckOutcome::NoData, 0));
    assert!(c.message.starts_with("waits for Job m-monitor-c0n1 ImagePullBackOff; next: kubectl"), "{}", c.message);
    s.observed.check_jobs[0].pod = JobPod::Started;
    assert_eq!(s.decide().status.checks[0].message, "Job m-monitor-c0n1 is under way");
    // At its time-out the kubelet calls the container terminated, and the reason is gone.
    s.observed.check_jobs[0].job = Job::Failed { reason: "BackoffLimitExceeded".into() };
    s.observed.check_jobs[0].pod = JobPod::Waiting(None);
    s.settle();
    let c = &s.status.checks[0];
    assert!(c.message.contains("(BackoffLimitExceeded, ImagePullBackOff)"), "{}", c.message);
}

#[test]
fn a_job_that_hangs_is_no_data() {
    let mut s = own_image();
    s.settle();
    s.wait(30).settle();
    assert_eq!((s.status.phase, ready(&s.status).0.as_str()), (Some(Phase::Monitoring), "ChecksNotPassing"));
}

#[test]
fn a_trigger_without_data_holds_nothing_and_a_check_does() {
    for (outcome, phase) in [
        (CheckOutcome::NoData, Phase::Observing),
        (CheckOutcome::Error, Phase::Monitoring),
        (CheckOutcome::Fail, Phase::Monitoring),
    ] {
        let mut s = monitoring();
        s.spec.rollback.triggers.balance_errors.mode = crate::api::TriggerMode::Enabled;
        s.wait(30).measure(Task::Monitor, CheckOutcome::Pass, false);
        s.report(Task::Monitor, |r| {
            let trigger =
                CheckResult { name: "balance-errors".into(), outcome, breached: false, ..r.checks[0].clone() };
            r.checks.push(trigger);
        });
        assert_eq!(s.settle().status.phase, Some(phase), "{outcome:?}");
    }
    // Never measured, or long ago: that is not the same as nothing to measure.
    let unmeasured = |measured: u64, age: i64| {
        let mut s = monitoring();
        s.spec.rollback.triggers.balance_errors.mode = crate::api::TriggerMode::Enabled;
        s.wait(30).measure(Task::Monitor, CheckOutcome::Pass, false);
        let at = s.now - seconds(age);
        s.report(Task::Monitor, |r| {
            let outcome = CheckOutcome::NoData;
            r.checks.push(CheckResult { name: "balance-errors".into(), outcome, measured, at, ..r.checks[0].clone() });
        });
        s.settle().status.phase
    };
    assert_eq!(unmeasured(1, 0), Some(Phase::Observing));
    assert_eq!(unmeasured(0, 0), Some(Phase::Monitoring));
    assert_eq!(unmeasured(1, 60), Some(Phase::Monitoring));
}

#[test]
fn what_a_rollback_would_undo_is_known_before() {
    let mut s = monitoring();
    let written = |s: &Scenario| (s.status.users_written, s.status.credits_written.clone());
    let measured = (Some(3), Some("9.5".to_owned()));
    s.report(Task::Monitor, |r| (r.users_written, r.credits_written) = measured.clone()).settle();
    assert_eq!(written(&s), measured);
    // A run that has yet to measure says nothing of the last one's.
    s.report(Task::Monitor, |r| (r.users_written, r.credits_written) = (None, None)).settle();
    assert_eq!(written(&s), measured);
}
