//! The writes of the next switch are tried before they are needed: by which patch, how often, and what follows from a
//! refusal while writes are blocked.

use std::time::Duration;

use crate::{
    api::Writes,
    machine::{SwitchTrial, switch_trial, tests::*},
};

const BACK: Task = Task::RollbackWindow;

fn trial(s: &Scenario) -> Option<SwitchTrial> {
    switch_trial(&s.spec, &s.status, &s.observed.uid)
}

fn refuse(s: &mut Scenario) -> &mut Scenario {
    s.observed.flag_write = DryRun::Refused("policy freeze denied the request".into());
    s
}

fn rollback_ready(s: &Scenario) -> Option<(&str, &str)> {
    let found = s.status.conditions.iter().find(|c| c.type_ == "RollbackReady")?;
    Some((found.status.as_str(), found.reason.as_str()))
}

#[test]
fn what_is_tried_is_the_write_that_would_follow() {
    let waiting_rollback = || {
        let mut s = monitoring();
        s.wait(1).submit("ann", DecisionKind::Rollback).settle();
        s
    };
    let back_in_window = || {
        let mut s = blocking();
        s.submit("ann", DecisionKind::Rollback).settle();
        s
    };
    /// Value, seconds that an answer may be old, whether writes may be blocked.
    type Tried = Option<(&'static str, u64, bool)>;
    let cases: [(&str, Given, Tried); 17] = [
        ("preparing", preflight, Some(("v2", 60, false))),
        ("waiting for approvals", awaiting, Some(("v2", 60, false))),
        ("the last moment", approved, Some(("v2", 0, false))),
        ("writes are being blocked", blocking, Some(("v2", 0, true))),
        ("before the acknowledgement", migrated, Some(("v2", 0, true))),
        ("under way", switching, None),
        ("a rollback before the switch", back_in_window, None),
        ("validating", validating, Some(("v1", 60, false))),
        ("monitoring", monitoring, Some(("v1", 60, false))),
        ("observing", observing, Some(("v1", 60, false))),
        ("the last moment of a rollback", waiting_rollback, Some(("v1", 0, false))),
        ("before the acknowledgement of a rollback", blocked_for_rollback, Some(("v1", 0, true))),
        ("a rollback under way", running_down_sql, None),
        ("the rollback failed", rollback_failed, Some(("v1", 60, true))),
        ("rolled back", rolled_back, None),
        ("completed", completed, None),
        ("cancelled", cancelled, None),
    ];
    for (name, given, expected) in cases {
        let found = trial(&given());
        let expected = expected.map(|(value, seconds, in_window)| SwitchTrial {
            value: value.into(),
            marker: if value == "v2" { "uid-1.to".into() } else { "uid-1.rollback".into() },
            max_age: Duration::from_secs(seconds),
            in_window,
        });
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_window_whose_flag_is_refused_before_the_switch_ends_with_the_old_version() {
    let mut s = blocking();
    refuse(s.state(Task::Window, WindowState::Migrated));
    let d = s.reconcile();
    assert_eq!((d.status.step, actions(&d)), (Some(Step::SwitchApplication), vec![]), "no order Switch");
    let (reason, message) = ready(&d.status);
    assert_eq!(reason, "WritesBlocked");
    assert!(message.contains("the switch waits: ConfigMap shop cannot be changed"), "{message}");
    // A webhook that was restarting answers again.
    s.wait(5).observed.flag_write = DryRun::Accepted;
    assert_eq!(actions(&s.decide()), ["order m-window-1 Switch"]);
    refuse(&mut s).settle();
    s.wait(10);
    let d = s.reconcile();
    assert_eq!(d.status.phase, Some(Phase::RollingBack));
    assert_eq!(d.status.rollback.as_ref().unwrap().cause, "FlagWriteRefused");
    // Nothing was switched: the down SQL runs at once.
    assert_eq!(actions(&d), ["order m-window-1 Rollback"]);
}

#[test]
fn a_rollback_whose_flag_is_refused_before_the_switch_leaves_the_unblocking_to_its_runner() {
    let mut s = blocking_for_rollback();
    refuse(s.wait(1).state(BACK, WindowState::Blocked));
    let d = s.reconcile();
    assert_eq!((d.status.step, actions(&d)), (Some(Step::SwitchBack), vec![]), "no order Switch");
    let d = s.reconcile();
    assert!(events(&d).contains(&"FlagWriteRefused"), "{:?}", events(&d));
    // At the deadline the runner unblocks writes on the new schema. The next window waits with writes open.
    s.wait(59).state(BACK, WindowState::Unblocked).succeed(BACK).settle();
    s.wait(10).settle();
    s.state(BACK, WindowState::Ready).settle();
    assert_eq!((s.status.phase, ready(&s.status).0.as_str()), (Some(Phase::RollingBack), "FlagWriteRefused"));
    assert_eq!((s.status.writes, rollback_ready(&s)), (Some(Writes::Open), Some(("False", "FlagWriteRefused"))));
    s.observed.flag_write = DryRun::Accepted;
    assert_eq!(actions(&s.reconcile()), ["order m-rollback-2 BlockWrites"]);
}

#[test]
fn a_restart_that_is_refused_keeps_the_switch_back_as_well() {
    let mut s = blocking();
    s.observed.workloads[0].write = DryRun::Refused("policy freeze denied the request".into());
    assert_eq!(actions(&s.state(Task::Window, WindowState::Migrated).reconcile()), Vec::<String>::new());
    s.settle().wait(10);
    assert_eq!(s.reconcile().status.rollback.unwrap().cause, "WorkloadWriteRefused");
}

#[test]
fn a_flag_that_a_rollback_has_set_already_needs_no_write() {
    let mut s = blocking_for_rollback();
    s.wait(1).state(BACK, WindowState::Blocked);
    s.flag("v1", Some("uid-1.rollback"));
    assert_eq!(actions(&refuse(&mut s).reconcile()), ["order m-rollback-1 Switch"]);
}

#[test]
fn a_webhook_without_dry_runs_refuses_nothing_and_leaves_it_unknown() {
    let unsupported = || DryRun::Unsupported("webhook w does not support dry run".into());
    let mut s = approved();
    s.observed.flag_write = unsupported();
    s.wait(1).state(Task::Window, WindowState::Ready);
    assert_eq!(actions(&s.reconcile()), ["order m-window-1 BlockWrites"]);
    let mut s = monitoring();
    s.observed.flag_write = unsupported();
    s.settle();
    assert_eq!(rollback_ready(&s), Some(("Unknown", "DryRunUnsupported")));
    s.observed.flag_write = DryRun::Accepted;
    s.settle();
    assert_eq!(rollback_ready(&s), Some(("True", "Switchable")));
}
