//! How long the window is expected to take.

use super::*;
use crate::api::{ExpectedRollout, ExpectedWindow, RehearsalEvidence};

#[test]
fn the_expected_window_is_the_rehearsals_and_the_rollouts() {
    let mut s = rehearsing();
    s.observed.workloads[0].rollout = Some(ExpectedRollout::new("shop", 2, 1, 10, 5));
    s.succeed(Task::Rehearse)
        .report(Task::Rehearse, |s| {
            let rehearsal = RehearsalEvidence { compare_seconds: 2.5, ..fixtures::rehearsal(20.2) };
            s.rehearsal = Some(rehearsal);
        })
        .settle();
    let expected = |s: &Scenario| s.status.plan.clone().unwrap().expected_window.unwrap();
    let parts = |w: &ExpectedWindow| (w.seconds, w.sql_seconds, w.comparison_seconds, w.rollouts[0].seconds);
    assert_eq!(parts(&expected(&s)), (46, 21, 3, 25));
    // It follows the workload, and is no part of what is approved.
    let digest = s.status.plan.clone().unwrap().digest;
    s.observed.workloads[0].rollout = Some(ExpectedRollout::new("shop", 3, 1, 10, 5));
    s.settle();
    assert_eq!((expected(&s).seconds, s.status.plan.clone().unwrap().digest), (56, digest));
    s.observed.workloads[0].rollout = Some(ExpectedRollout::new("shop", 4, 1, 10, 5));
    let (reason, message) = ready(&s.settle().status);
    assert_eq!(reason, "WindowTooShort");
    assert!(
        message.contains("66 s: SQL 21 s, then the longest of comparison 3 s and rollout of shop 45 s"),
        "{message}"
    );
}
