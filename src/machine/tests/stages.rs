//! Validating and Monitoring.

use super::*;
use crate::api::{OnBreach, RollbackPolicy};

fn monitors(
    name: &'static str,
    when: When,
    reason: &'static str,
    effects: &'static [&'static str],
    wake: Option<i64>,
) -> Case {
    Case { name, given: monitoring, when, phase: Phase::Monitoring, step: Step::Monitor, reason, effects, wake }
}

fn on_breach(s: &mut Story, what: OnBreach) -> &mut Story {
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
        step: Step::ReopenWindow,
        reason: "RollingBack",
        effects: BACK,
        ..monitors(name, when, "", &[], Some(600))
    };
    hold(&[
        Case {
            name: "validation without checks lasts its time",
            given: validating,
            when: nothing,
            phase: Phase::Validating,
            step: Step::Validate,
            reason: "Progressing",
            effects: &[],
            wake: Some(20),
        },
        Case {
            name: "... and monitoring follows",
            given: validating,
            when: |s| done(s.wait(20)),
            phase: Phase::Monitoring,
            step: Step::Monitor,
            reason: "Progressing",
            effects: &["start m-monitor-1"],
            wake: Some(30),
        },
        monitors("passes, not yet over", |s| done(s.wait(29)), "Progressing", &[], Some(1)),
        ends("passes to the end", |s| done(s.wait(30))),
        monitors(
            "never measured",
            |s| done(s.wait(30).report(Task::Monitor, |s| s.checks.clear())),
            "ChecksNotPassing",
            &[],
            None,
        ),
        monitors(
            "NoData at the end",
            |s| done(s.wait(30).measure(Task::Monitor, Outcome::NoData, false)),
            "ChecksNotPassing",
            &[],
            None,
        ),
        monitors(
            "NoData, long after",
            |s| done(s.wait(9000).measure(Task::Monitor, Outcome::NoData, false)),
            "ChecksNotPassing",
            &[],
            None,
        ),
        monitors(
            "Error at the end",
            |s| done(s.wait(30).measure(Task::Monitor, Outcome::Error, false)),
            "ChecksNotPassing",
            &[],
            None,
        ),
        monitors(
            "Fail at the end, not breached",
            |s| done(s.wait(30).measure(Task::Monitor, Outcome::Fail, false)),
            "ChecksNotPassing",
            &[],
            None,
        ),
        monitors(
            "Fail before the end, not breached",
            |s| done(s.measure(Task::Monitor, Outcome::Fail, false)),
            "Progressing",
            &[],
            Some(30),
        ),
        back("breached", |s| done(s.measure(Task::Monitor, Outcome::Fail, true))),
        back("breached once, passes again", |s| done(s.measure(Task::Monitor, Outcome::Pass, true))),
        back("breached when the time is over", |s| done(s.wait(30).measure(Task::Monitor, Outcome::Fail, true))),
        back("Revert", |s| done(s.say("ann", Word::Revert))),
        back("Abort", |s| done(s.say("author", Word::Abort))),
        back("Revert in an unproven name: a forged stop is the lesser harm", |s| {
            s.say("ann", Word::Revert).seen.policy_problem = Some("gone".into());
        }),
        monitors(
            "breached, a person decides",
            |s| {
                s.spec.rollback.policy = RollbackPolicy::Manual;
                s.measure(Task::Monitor, Outcome::Fail, true);
            },
            "Progressing",
            &[],
            Some(30),
        ),
        monitors(
            "... and it does not end by itself",
            |s| {
                s.spec.rollback.policy = RollbackPolicy::Manual;
                s.wait(30).measure(Task::Monitor, Outcome::Fail, true);
            },
            "ChecksNotPassing",
            &[],
            None,
        ),
        monitors(
            "Hold holds",
            |s| {
                on_breach(s, OnBreach::Hold).wait(30).measure(Task::Monitor, Outcome::Fail, true);
            },
            "ChecksNotPassing",
            &[],
            None,
        ),
        ends("... until it passes again", |s| {
            on_breach(s, OnBreach::Hold).wait(30).measure(Task::Monitor, Outcome::Pass, true);
        }),
        ends("Warn does not hold", |s| {
            on_breach(s, OnBreach::Warn).wait(30).measure(Task::Monitor, Outcome::Fail, true);
        }),
        monitors("the pod was lost: measured anew", |s| done(s.wait(10).lose(Task::Monitor)), "PodFailed", &[], None),
        monitors(
            "... the stage does not end meanwhile",
            |s| done(s.wait(30).lose(Task::Monitor)),
            "PodFailed",
            &[],
            None,
        ),
        monitors(
            "... by a fresh pod",
            |s| done(s.wait(10).lose(Task::Monitor).settle().wait(2)),
            "PodFailed",
            &["remove m-monitor-1", "start m-monitor-2"],
            None,
        ),
        monitors("the new SQL is edited now", |s| s.seen.up = Sql::Missing, "Progressing", &[], Some(30)),
    ]);
}

#[test]
fn a_breach_tells_value_and_limit() {
    let mut s = monitoring();
    s.measure(Task::Monitor, Outcome::Fail, true);
    let d = s.look();
    let rollback = d.status.rollback.unwrap();
    assert_eq!((rollback.cause.as_str(), rollback.message.as_str()), ("TriggerFired", "errors: 0.21 > 0.05"));

    let mut s = monitoring();
    on_breach(&mut s, OnBreach::Hold).measure(Task::Monitor, Outcome::Fail, true);
    assert_eq!(events(&s.turn()), ["CheckBreached"]);
    assert_eq!(events(&s.turn()), Vec::<&str>::new(), "told once");
    s.wait(30);
    let (_, message) = ready(&s.look().status);
    assert!(message.contains("errors Fail (0.21 > 0.05)") && message.contains("to go back: kubectl"), "{message}");
}

/// Monitoring with a check of the workload alone.
fn watching_workload() -> Story {
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
    assert!(s.seen.runs.iter().all(|r| r.run.spec.task != Task::Monitor), "no pod is needed for it");
    assert_eq!(s.status.checks[0].outcome, Outcome::Pass);
    // 3 of 3, five seconds apart; looking more often does not count more.
    s.seen.workloads[0].available = (1, 2);
    s.wait(1).settle();
    assert_eq!((s.status.checks[0].outcome, s.status.checks[0].failed), (Outcome::Fail, 1));
    assert_eq!(s.status.checks[0].message, "1 of 2 replicas available");
    assert_eq!(s.look().wake_at, Some(s.now + seconds(5)), "it is looked at again although nothing happens");
    s.wait(1).settle();
    assert_eq!(s.status.checks[0].failed, 1);
    s.wait(5).settle();
    assert_eq!((s.status.checks[0].failed, s.status.checks[0].breached), (2, false));
    s.wait(5);
    let d = s.look();
    assert_eq!(d.status.phase, Some(Phase::RollingBack));
    assert_eq!(d.status.rollback.unwrap().message, "errors: 1 of 2 replicas available");

    for (name, harm) in
        [("gone", (|w| w.exists = false) as fn(&mut Workload)), ("scaled to nothing", |w| w.available = (0, 0))]
    {
        let mut s = watching_workload();
        harm(&mut s.seen.workloads[0]);
        s.wait(1).settle();
        assert_eq!(s.status.checks[0].outcome, Outcome::Fail, "{name}");
    }
}

#[test]
fn failures_of_a_workload_are_counted_among_the_last_measurements() {
    // One letter for each interval; whether the migration goes back with the last one.
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
            s.seen.workloads[0].available = if letter == 'x' { (1, 2) } else { (2, 2) };
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
    s.seen.workloads[0].available = (1, 2);
    s.wait(5).settle();
    assert!(s.status.checks[0].breached);
    s.seen.workloads[0].available = (2, 2);
    s.wait(20).settle();
    assert_eq!((s.status.phase, s.status.rollback.clone()), (Some(Phase::Monitoring), None));
}

/// Monitoring with a check that runs the team's own image each 10 s.
fn own_image() -> Story {
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
    let d = s.turn();
    assert_eq!(acts(&d), ["check m-monitor1c0n1"], "no runner is needed for it");
    assert!(acts(&s.look()).is_empty(), "it is under way");
    let check = |s: &Story| s.status.checks[0].clone();
    assert_eq!(check(&s).outcome, Outcome::NoData);
    s.seen.check_jobs[0].job = Job::Complete;
    s.settle();
    assert_eq!((check(&s).outcome, check(&s).measured), (Outcome::Pass, 1));
    assert!(s.seen.check_jobs.len() == 1 && s.look().wake_at == Some(s.now + seconds(10)), "not before its interval");
    for (n, phase) in [(2, Phase::Monitoring), (3, Phase::RollingBack)] {
        s.wait(10).settle();
        let job = s.seen.check_jobs.last_mut().unwrap();
        assert_eq!(job.name, format!("m-monitor1c0n{n}"));
        job.job = Job::Failed { reason: "BackoffLimitExceeded".into() };
        s.settle();
        assert_eq!(s.status.phase, Some(phase));
    }
    let message = &s.status.rollback.as_ref().unwrap().message;
    assert!(
        message.contains("own: Job m-monitor1c0n3 failed") && message.contains("kubectl logs job/m-monitor1c0n3"),
        "{message}"
    );
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
    for (outcome, phase) in
        [(Outcome::NoData, Phase::Observing), (Outcome::Error, Phase::Monitoring), (Outcome::Fail, Phase::Monitoring)]
    {
        let mut s = monitoring();
        s.spec.rollback.triggers.balance_errors.mode = crate::api::TriggerMode::Enabled;
        s.wait(30).measure(Task::Monitor, Outcome::Pass, false);
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
        s.wait(30).measure(Task::Monitor, Outcome::Pass, false);
        let at = s.now - seconds(age);
        s.report(Task::Monitor, |r| {
            let outcome = Outcome::NoData;
            r.checks.push(CheckResult { name: "balance-errors".into(), outcome, measured, at, ..r.checks[0].clone() });
        });
        s.settle().status.phase
    };
    assert_eq!(unmeasured(1, 0), Some(Phase::Observing));
    assert_eq!(unmeasured(0, 0), Some(Phase::Monitoring));
    assert_eq!(unmeasured(1, 60), Some(Phase::Monitoring));
}

#[test]
fn what_a_way_back_would_undo_is_known_before() {
    let mut s = monitoring();
    s.report(Task::Monitor, |r| r.users_written = Some(3)).settle();
    assert_eq!(s.status.users_written, Some(3));
    // A run that has yet to count says nothing of the last one's.
    s.report(Task::Monitor, |r| r.users_written = None).settle();
    assert_eq!(s.status.users_written, Some(3));
}
