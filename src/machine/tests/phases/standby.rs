//! The database is checked before writes are blocked: what the window's pod finds keeps the order back.

use super::super::notices::channel;
use crate::{
    api::{Audience, NotShown, NotShownKind, Obstacle, ObstacleKind, Occasion, Writes},
    machine::tests::*,
};

const WINDOW: Task = Task::Window;
const BACK: Task = Task::RollbackWindow;

/// What each kind is reported as.
const OBSTACLES: &[(ObstacleKind, &str, &str)] = &[
    (ObstacleKind::PreparedTransaction, "TransactionPrepared", "pg_prepared_xacts WHERE transaction = '762'"),
    (ObstacleKind::Vacuum, "VacuumRunning", "pg_stat_progress_vacuum WHERE pid = 4711"),
    (ObstacleKind::SuperuserSession, "TableLocked", "as a superuser, SELECT pg_terminate_backend(4711)"),
    (ObstacleKind::LongTransaction, "TableLocked", "session 4711 (role report, application psql)"),
    (ObstacleKind::LockRefused, "TableLocked", "no session is seen"),
    (ObstacleKind::TooFewConnections, "TooFewConnections", "1 connections are free, at least 3"),
    (ObstacleKind::StandbyNotReplaying, "StandbyNotReplaying", "standby psql has not replayed what was committed"),
    (ObstacleKind::SearchFailed, "DatabaseNotSearched", "cannot be seen what would keep writes from being blocked"),
];

fn obstacle(kind: ObstacleKind) -> Obstacle {
    Obstacle {
        table: Some("public.user_credits".into()),
        pid: Some(4711),
        role: Some("report".into()),
        application_name: Some("psql".into()),
        transaction: Some("762".into()),
        since: Some(time(-60)),
        free_connections: Some(1),
        ..Obstacle::new(kind)
    }
}

fn find(s: &mut Scenario, task: Task, obstacles: Vec<Obstacle>) -> &mut Scenario {
    s.progress(task, |w| w.obstacles = obstacles)
}

fn interventions(s: &Scenario) -> usize {
    s.status.notices.iter().filter(|n| n.notice.occasion == Occasion::ManualInterventionRequired).count()
}

#[test]
fn writes_are_not_blocked_while_the_database_is_in_the_way() {
    for (kind, reason, text) in OBSTACLES {
        let mut s = approved();
        s.wait(1).state(WINDOW, WindowState::Ready);
        find(&mut s, WINDOW, vec![obstacle(*kind)]);
        let d = s.reconcile();
        let (found, message) = ready(&d.status);
        assert_eq!((found.as_str(), d.status.phase), (*reason, Some(Phase::Executing)), "{kind}");
        assert!(message.contains("writes are open") && message.contains(text), "{kind}: {message}");
        assert!(message.contains("next: "), "{kind}: {message}");
        assert_eq!((d.status.writes, actions(&d)), (Some(Writes::Open), vec![]), "{kind}");
        assert_eq!(events(&d), [*reason], "{kind}");
        assert!(d.status.problems.iter().any(|p| p.reason == *reason && p.reported), "{:?}", d.status.problems);
        // For longer than a pod may take to become ready, and reported once.
        s.settle().wait(900);
        let d = s.reconcile();
        assert_eq!((d.status.phase, events(&d)), (Some(Phase::Executing), vec![]), "{kind}");
        // It is gone: the window goes on by itself, with the same approvals.
        find(&mut s, WINDOW, vec![]);
        let d = s.reconcile();
        assert_eq!(actions(&d), ["order m-window-1 BlockWrites"], "{kind}");
        assert_eq!((d.status.approvals_after, d.status.problems.len()), (None, 0), "{kind}");
    }
}

#[test]
fn a_pod_that_lacks_connections_to_become_ready_is_waited_for() {
    for (mut s, task, phase) in [
        (approved(), WINDOW, Phase::Executing),
        (
            {
                let mut s = monitoring();
                s.wait(1).submit("ann", DecisionKind::Rollback).settle();
                s
            },
            BACK,
            Phase::RollingBack,
        ),
    ] {
        s.wait(1).state(task, WindowState::Starting);
        find(&mut s, task, vec![obstacle(ObstacleKind::TooFewConnections)]).settle().wait(900).settle();
        assert_eq!((ready(&s.status).0.as_str(), s.status.phase), ("TooFewConnections", Some(phase)));
        assert_eq!(s.status.writes, Some(Writes::Open));
    }
}

/// The window went on without it.
#[test]
fn what_a_window_could_not_show_is_an_event_once() {
    let mut s = blocking();
    let missing = |kind: NotShownKind| NotShown { kind, message: "permission denied".into() };
    s.progress(WINDOW, |w| {
        (w.state, w.not_shown) = (WindowState::Blocked, vec![missing(NotShownKind::StandbysReplayed)])
    });
    let d = s.reconcile();
    assert_eq!(events(&d).iter().filter(|e| **e == "NotShown").count(), 1, "{:?}", events(&d));
    s.settle();
    s.progress(WINDOW, |w| w.not_shown.push(missing(NotShownKind::WritesBlocked)));
    let d = s.reconcile();
    assert_eq!(events(&d).iter().filter(|e| **e == "NotShown").count(), 1, "{:?}", events(&d));
    assert_eq!(d.status.window.map(|w| w.not_shown.len()), Some(2));
}

#[test]
fn each_obstacle_that_a_window_waits_for_is_notified_of_once() {
    let mut s = approved();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    let digest = crate::machine::plan_digest("uid-1", &s.spec, &s.status);
    s.status.plan.as_mut().unwrap().digest.clone_from(&digest);
    for decision in &mut s.observed.decisions {
        decision.digest.clone_from(&digest);
    }
    s.wait(1).state(WINDOW, WindowState::Ready);
    let mut reasons = std::collections::BTreeSet::new();
    for (kind, reason, _) in OBSTACLES {
        find(&mut s, WINDOW, vec![obstacle(*kind)]);
        for _ in 0..3 {
            s.wait(1).reconcile();
        }
        reasons.insert(*reason);
        assert_eq!((ready(&s.status).0.as_str(), interventions(&s)), (*reason, reasons.len()), "{kind}");
    }
}

#[test]
fn several_obstacles_are_named_in_one_message() {
    let mut s = approved();
    s.wait(1).state(WINDOW, WindowState::Ready);
    find(&mut s, WINDOW, vec![obstacle(ObstacleKind::Vacuum); 5]);
    let (reason, message) = ready(&s.reconcile().status);
    assert_eq!((reason.as_str(), message.matches("autovacuum").count()), ("VacuumRunning", 3), "{message}");
    assert!(message.contains("and 2 more; next: "), "{message}");
}

#[test]
fn waiting_for_the_database_ends_with_what_allowed_the_start() {
    let mut s = approved();
    s.wait(1).state(WINDOW, WindowState::Ready);
    find(&mut s, WINDOW, vec![obstacle(ObstacleKind::Vacuum)]);
    // People are present for an hour, and the machine wakes up for it.
    let wake = s.reconcile().wake_at.unwrap();
    assert!(wake <= s.now + seconds(3_600), "{wake}");
    s.now = wake;
    s.settle();
    assert_eq!((s.status.phase, ready(&s.status).0.as_str()), (Some(Phase::AwaitingApproval), "PresencePending"));
    assert_eq!(s.status.approvals_after, None);
    // With people it starts again.
    s.confirm_presence().settle();
    assert_eq!((s.status.phase, s.status.step), (Some(Phase::Executing), Some(Step::BlockWrites)));
}

#[test]
fn an_obstacle_that_the_pod_finds_itself_takes_no_approval() {
    let mut s = blocking();
    find(&mut s, WINDOW, vec![obstacle(ObstacleKind::SuperuserSession)]);
    s.progress(WINDOW, |w| w.state = WindowState::RolledBack);
    s.fail(WINDOW, Reason::LockTimeout).settle();
    assert_eq!((s.status.phase, s.status.approvals_after), (Some(Phase::Executing), None));
    assert_eq!((s.run(WINDOW).run.spec.attempt, s.status.writes), (2, Some(Writes::Open)));
    s.state(WINDOW, WindowState::Ready);
    find(&mut s, WINDOW, vec![obstacle(ObstacleKind::SuperuserSession)]);
    assert_eq!(ready(&s.reconcile().status).0, "TableLocked");
    find(&mut s, WINDOW, vec![]);
    assert_eq!(actions(&s.reconcile()), ["order m-window-2 BlockWrites"]);
}

#[test]
fn a_rollback_waits_for_the_database_with_writes_open() {
    let mut s = monitoring();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    s.wait(1).submit("ann", DecisionKind::Rollback).settle();
    s.state(BACK, WindowState::Ready);
    find(&mut s, BACK, vec![obstacle(ObstacleKind::PreparedTransaction)]);
    let d = s.reconcile();
    let (reason, message) = ready(&d.status);
    assert_eq!((reason.as_str(), d.status.writes), ("TransactionPrepared", Some(Writes::Open)));
    assert!(message.contains("the rollback waits, writes are open"), "{message}");
    assert!(actions(&d).iter().all(|a| !a.starts_with("order")), "{:?}", actions(&d));
    let condition = d.status.conditions.iter().find(|c| c.type_ == "RollbackReady").unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "TransactionPrepared"));
    s.settle().wait(900).settle();
    assert_eq!((s.status.phase, interventions(&s)), (Some(Phase::RollingBack), 1));
    find(&mut s, BACK, vec![]);
    let d = s.reconcile();
    assert!(actions(&d).contains(&"order m-rollback-1 BlockWrites".to_owned()), "{:?}", actions(&d));
}
