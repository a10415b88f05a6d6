//! A window's pod that is lost while writes may be blocked, and one that ends stuck.

use super::super::notices::channel;
use crate::{
    api::{Audience, Occasion, WindowCommand, Writes},
    machine::tests::*,
};

const WINDOW: Task = Task::Window;
const BACK: Task = Task::RollbackWindow;

#[test]
fn a_lost_pod_is_replaced_at_once_and_later_after_a_backoff_of_which_people_are_notified() {
    let mut s = migrated();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    let interventions = |s: &Scenario| {
        let all = s.status.notices.iter().map(|n| n.notice.occasion);
        all.filter(|occasion| *occasion == Occasion::ManualInterventionRequired).count()
    };
    for attempt in 2..6 {
        s.lose_job(WINDOW);
        let d = s.reconcile();
        assert_eq!(d.status.phase, Some(Phase::Executing));
        assert_eq!(events(&d), ["WindowPodLost"]);
        s.settle();
        assert_eq!(s.run(WINDOW).run.spec.attempt, attempt, "the next pod");
        let order = s.run(WINDOW).run.spec.window.clone().unwrap();
        assert_eq!(order.command, WindowCommand::Switch, "it learns at once how far it may go");
        assert_eq!(order.deadline, s.status.window.as_ref().unwrap().deadline, "the deadline stays");
    }
    assert_eq!(interventions(&s), 0);
    for (attempt, backoff) in [(6, 32), (7, 64), (8, 128), (9, 256), (10, 300), (11, 300)] {
        s.lose_job(WINDOW).settle().wait(backoff - 1).settle();
        assert_eq!(s.run(WINDOW).run.spec.attempt, attempt - 1, "not before its time");
        assert_eq!(s.status.writes, Some(Writes::Blocked));
        assert!(ready(&s.status).1.contains("the last pod was lost, the next one starts at"), "{:?}", ready(&s.status));
        s.wait(1).settle();
        assert_eq!(s.run(WINDOW).run.spec.attempt, attempt);
        let lost = s.status.notices.iter().filter(|n| n.notice.message.contains("5 pods were lost"));
        assert_eq!(lost.count(), 1, "once");
    }
    // The deadline has passed meanwhile: the pod that comes to work at last rolls back.
    assert_eq!((s.status.phase, s.status.step), (Some(Phase::RollingBack), Some(Step::RollbackSql)));
    s.state(WINDOW, WindowState::RolledBack).succeed(WINDOW).settle();
    assert_eq!((s.status.phase, s.status.writes), (Some(Phase::RolledBack), Some(Writes::Open)));
}

#[test]
fn with_writes_blocked_pods_are_tried_until_one_works() {
    let mut s = running_down_sql();
    for _ in 0..9 {
        s.lose_job(BACK).settle().wait(300).settle();
        assert_eq!((s.status.phase, s.status.step), (Some(Phase::RollingBack), Some(Step::RollbackSql)));
    }
    assert_eq!(s.run(BACK).run.spec.attempt, 10);
    s.compared(BACK, 0).state(BACK, WindowState::RolledBack).succeed(BACK).settle();
    assert_eq!((s.status.phase, s.status.writes), (Some(Phase::RolledBack), Some(Writes::Open)));
    // What the runner itself could not do is another matter: it is left to people.
    let mut s = running_down_sql();
    for _ in 0..5 {
        s.stuck(BACK).fail(BACK, Reason::LockTimeout).settle();
    }
    assert_eq!((s.status.phase, ready(&s.status).0.as_str()), (Some(Phase::RollbackFailed), "LockTimeout"));
}

#[test]
fn writes_that_are_refused_after_the_window_are_not_said_to_be_blocked_by_it() {
    let mut s = unblocking();
    s.stuck(WINDOW).fail(WINDOW, Reason::WritesStillBlocked).settle();
    let (reason, message) = ready(&s.status);
    assert_eq!((s.status.phase, reason.as_str()), (Some(Phase::RollbackFailed), "WritesStillBlocked"));
    assert_eq!(s.status.writes, Some(Writes::Blocked), "new sessions cannot write");
    assert!(message.contains("the write block is off") && !message.contains("writes stay blocked"), "{message}");
    assert!(message.contains("; to roll back; next: kubectl creditmigration -n shop rollback m"), "{message}");
}
