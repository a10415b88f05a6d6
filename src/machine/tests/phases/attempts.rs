//! A window that met a lock is started again.

use crate::machine::tests::*;

/// Executing: ordered to block writes, with so many attempts in all.
fn blocking_with(attempts: u32) -> Scenario {
    let mut s = at(Step::Approve);
    s.spec.window.attempts = attempts;
    s.status.plan.as_mut().unwrap().digest = crate::machine::plan_digest("uid-1", &s.spec, &s.status);
    s.confirm_presence().submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    s.wait(1).state(Task::Window, WindowState::Ready).settle();
    s
}

fn meet(s: &mut Scenario, reason: Reason) -> &mut Scenario {
    s.wait(2).state(Task::Window, WindowState::RolledBack).fail(Task::Window, reason).settle()
}

#[test]
fn a_window_that_met_a_lock_is_tried_again_on_the_same_approvals() {
    let mut s = blocking_with(3);
    for (number, pause) in [(2, 60), (3, 300)] {
        meet(&mut s, Reason::LockTimeout);
        assert_eq!((s.status.phase, s.status.step), (Some(Phase::AwaitingApproval), Some(Step::Schedule)));
        let (reason, message) = ready(&s.status);
        let wanted =
            format!("attempt {number} of 3 starts at {:.0}; the last one: what was seen", s.now + seconds(pause));
        assert!(reason == "Scheduled" && message.contains(&wanted), "{wanted}: {message}");
        assert_eq!(s.decide().wake_at, Some(s.now + seconds(pause)));
        assert_eq!(s.status.schedule.as_ref().unwrap().retry_at, Some(s.now + seconds(pause)));
        s.wait(pause).settle();
        assert_eq!(s.status.phase, Some(Phase::Executing), "the approvals count, and people are still there");
        assert_eq!(s.run(Task::Window).run.spec.attempt, number);
        s.state(Task::Window, WindowState::Ready).settle();
    }
    // The third was the last one.
    meet(&mut s, Reason::LockTimeout);
    let (reason, message) = ready(&s.status);
    assert_eq!((s.status.step, reason.as_str()), (Some(Step::Approve), "ApprovalPending"));
    assert!(message.contains("no longer count (ann, bob): approve again"), "{message}");
}

#[test]
fn a_further_attempt_needs_people_and_the_same_hours_and_a_lock() {
    // Those who were present are not any more: presence counts at the new start.
    let mut s = blocking_with(3);
    s.spec.schedule.presence.within = std::time::Duration::from_secs(30).into();
    s.status.plan.as_mut().unwrap().digest = crate::machine::plan_digest("uid-1", &s.spec, &s.status);
    for d in &mut s.observed.decisions {
        d.digest = s.status.plan.as_ref().unwrap().digest.clone();
    }
    meet(&mut s, Reason::LockTimeout).wait(60).settle();
    assert_eq!((s.status.phase, ready(&s.status).0.as_str()), (Some(Phase::AwaitingApproval), "PresencePending"));
    s.confirm_presence().settle();
    assert_eq!(s.status.phase, Some(Phase::Executing));
    // The hours end before the next attempt.
    let mut s = blocking_with(3);
    s.status.schedule.as_mut().unwrap().ends_at = Some(s.now + seconds(62));
    meet(&mut s, Reason::LockTimeout);
    assert_eq!(s.status.step, Some(Step::Approve));
    // Another cause is no lock.
    let mut s = blocking_with(3);
    meet(&mut s, Reason::PodFailed);
    assert_eq!(s.status.step, Some(Step::Approve));
    // By default there is one attempt.
    let mut s = blocking_with(1);
    meet(&mut s, Reason::LockTimeout);
    assert_eq!(s.status.step, Some(Step::Approve));
}
