//! What people read: conditions and printer columns, derived from the phase in the same patch.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time as MetaTime};

use super::*;
use crate::api::Writes;

/// Conditions as `Ready=False Reconciling=True ...`, in a fixed order.
fn conditions(s: &Scenario) -> String {
    let order = ["Ready", "Reconciling", "Stalled", "BackupVerified", "RehearsalPassed", "WritesBlocked"];
    let found = |type_: &str| s.status.conditions.iter().find(|c| c.type_ == type_);
    order.iter().filter_map(|t| found(t).map(|c| format!("{t}={}", c.status))).collect::<Vec<_>>().join(" ")
}

#[test]
fn columns_and_conditions_of_each_phase() {
    const BUSY: &str = "Ready=False Reconciling=True";
    const STALLED: &str = "Ready=False Stalled=True";
    const NONE: &str = "BackupVerified=False RehearsalPassed=False";
    const BOTH: &str = "BackupVerified=True RehearsalPassed=True";
    let table: &[(Given, &str, Writes, String)] = &[
        (preflight, "1/20 Preflight", Writes::Open, format!("{BUSY} {NONE}")),
        (|| at(Step::VerifyBackup), "6/20 VerifyBackup", Writes::Open, format!("{BUSY} {NONE}")),
        (rehearsing, "8/20 Rehearse", Writes::Open, format!("{BUSY} BackupVerified=True RehearsalPassed=False")),
        (awaiting, "9/20 Approve", Writes::Open, format!("{BUSY} {BOTH}")),
        (approved, "11/20 BlockWrites", Writes::Open, format!("{BUSY} {BOTH}")),
        (blocking, "11/20 BlockWrites", Writes::Blocked, format!("{BUSY} {BOTH}")),
        (migrated, "14/20 SwitchApplication", Writes::Blocked, format!("{BUSY} {BOTH}")),
        (unblocking, "15/20 UnblockWrites", Writes::Blocked, format!("{BUSY} {BOTH}")),
        (validating, "16/20 Validate", Writes::Open, format!("{BUSY} {BOTH}")),
        (monitoring, "17/20 Monitor", Writes::Open, format!("{BUSY} {BOTH}")),
        (deciding, "20/20 Decide", Writes::Open, format!("{BUSY} {BOTH}")),
        (completed, "20/20 Decide", Writes::Open, format!("Ready=True {BOTH}")),
        (blocking_for_rollback, "1/5 BlockWritesForRollback", Writes::Blocked, format!("{BUSY} {BOTH}")),
        (blocked_for_rollback, "2/5 SwitchBack", Writes::Blocked, format!("{BUSY} {BOTH}")),
        (running_down_sql, "3/5 RollbackSql", Writes::Blocked, format!("{BUSY} {BOTH}")),
        (rolled_back, "5/5 UnblockWritesAfterRollback", Writes::Open, format!("Ready=False {BOTH}")),
        (rollback_failed, "3/5 RollbackSql", Writes::Blocked, format!("{STALLED} {BOTH}")),
        (failed, "8/20 Rehearse", Writes::Open, format!("{STALLED} BackupVerified=True RehearsalPassed=False")),
        (cancelled, "9/20 Approve", Writes::Open, format!("Ready=False {BOTH}")),
    ];
    let mut wrong = vec![];
    for (given, progress, writes, expected) in table {
        let s = given();
        let expected =
            format!("{expected} WritesBlocked={}", if *writes == Writes::Blocked { "True" } else { "False" });
        let found = (s.status.progress.clone().unwrap(), s.status.writes.unwrap(), conditions(&s));
        if found != ((*progress).to_owned(), *writes, expected.clone()) {
            wrong.push(format!(
                "{:?}:\n  expected {progress} {writes:?} {expected}\n  found    {found:?}",
                s.status.phase
            ));
        }
        assert_eq!(s.status.observed_generation, Some(1));
        for c in &s.status.conditions {
            assert!(!c.reason.is_empty() && c.reason.chars().all(char::is_alphanumeric), "{c:?}");
            assert!(!c.message.is_empty(), "{c:?}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_status_that_has_settled_stays_as_it_is() {
    for s in each_phase() {
        let again = s.decide();
        assert_eq!(again.status, s.status, "{:?}", s.status.phase);
        assert!(events(&again).is_empty(), "{:?}: {:?}", s.status.phase, events(&again));
        assert_eq!(s.decide(), again, "the same in, the same out");
    }
    // Nor does it change because time goes by, or the object would be written each second.
    for mut s in each_phase() {
        s.wait(1);
        assert_eq!(s.decide().status, s.status, "{:?} a second later", s.status.phase);
    }
}

#[test]
fn conditions_of_others_are_kept_and_transition_times_too() {
    let mut s = awaiting();
    let theirs = Condition {
        type_: "ArgoSynced".into(),
        status: "True".into(),
        reason: "Synced".into(),
        message: "by another controller".into(),
        last_transition_time: MetaTime(time(-100)),
        observed_generation: None,
    };
    s.status.conditions.insert(0, theirs.clone());
    s.wait(100).submit("ann", DecisionKind::Approve);
    let d = s.decide();
    assert_eq!(d.status.conditions[0], theirs);
    let since = |type_: &str| &d.status.conditions.iter().find(|c| c.type_ == type_).unwrap().last_transition_time;
    assert_eq!(since("Ready").0, time(0), "still False: the message changed, the state did not");
    let mut s = blocking();
    s.settle();
    let c = s.status.conditions.iter().find(|c| c.type_ == "WritesBlocked").unwrap();
    assert!(c.last_transition_time.0 > time(0), "{c:?}");
    assert!(c.message.contains("at the latest (limit 60s)") || c.message.contains("limit"), "{c:?}");
}

#[test]
fn blocked_writes_say_until_when() {
    let cases: &[(&str, Given, i64, &str)] = &[
        ("open", blocking, 49, "until 1970-01-12T13:47:47Z at the latest (limit 60s)"),
        ("unblocked, not reported", unblocking, 49, "at the latest (limit 60s)"),
        (
            "unblocked, not reported, past the deadline",
            unblocking,
            50,
            "should have ended at 1970-01-12T13:47:47Z (limit 60s)",
        ),
        ("rollback", running_down_sql, 58, "at the latest (limit 60s)"),
        ("rollback past its deadline", running_down_sql, 60, "should have ended at"),
        ("failed", rollback_failed, 1, "until an operator has fixed it; should have ended by"),
        ("failed, long since", rollback_failed, 3600, "until an operator has fixed it; should have ended by"),
    ];
    for (name, given, wait, expected) in cases {
        let mut s = given();
        s.settle().wait(*wait).settle();
        let c = s.status.conditions.iter().find(|c| c.type_ == "WritesBlocked").unwrap();
        assert_eq!(c.status, "True", "{name}");
        assert!(c.message.contains(expected), "{name}: {}", c.message);
        assert_eq!(c.message.contains("at the latest"), expected.contains("at the latest"), "{name}");
    }
}

#[test]
fn one_decision_in_each_phase_survives_a_crash_before_its_effects() {
    // The status was written, then the process died: the same effects come again from the status alone.
    let steps: &[(&str, Given, When)] = &[
        ("start", Scenario::new, no_event),
        ("next step", preflight, |s| apply(s.succeed(Task::Preflight))),
        ("approved", awaiting, |s| apply(s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve))),
        ("ready", approved, |s| apply(s.state(Task::Window, WindowState::Ready))),
        ("migrated", blocking, |s| apply(s.state(Task::Window, WindowState::Migrated))),
        ("acknowledged", migrated, |s| apply(s.acknowledge(Task::Window))),
        ("unblocking", switched, |s| apply(s.compared(Task::Window, 0))),
        ("rollback at the deadline", switching, |s| apply(s.wait(50))),
        ("reopen", monitoring, |s| apply(s.submit("ann", DecisionKind::Rollback))),
        ("rollback", blocked_for_rollback, |s| apply(s.acknowledge(Task::RollbackWindow))),
    ];
    for (name, given, when) in steps {
        let mut s = given();
        when(&mut s);
        let first = s.decide();
        assert!(!actions(&first).is_empty(), "{name}");
        s.status = first.status.clone();
        assert_eq!(actions(&s.decide()), actions(&first), "{name}");
    }
}
