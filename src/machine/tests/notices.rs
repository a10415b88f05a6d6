//! Notices: which are sent, and what becomes of them.

use serde_json::json;

use super::*;
use crate::api::{Audience, KeyRef, NoticeState, NotificationChannel, Occasion, SlackChannel};

pub(super) fn channel(name: &str, audience: Audience) -> NotificationChannel {
    let url_secret_ref = KeyRef { name: name.into(), key: "url".into() };
    NotificationChannel {
        name: name.into(),
        audiences: vec![audience],
        slack: Some(SlackChannel { url_secret_ref, ca_secret_ref: None }),
        webhook: None,
        email: None,
    }
}

/// A new migration with a channel for the team.
fn with_team_channel() -> Scenario {
    let mut s = Scenario::new();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    s
}

/// Carries a scenario through, taking each notice in the channel.
fn take(s: &mut Scenario) -> &mut Scenario {
    for _ in 0..5 {
        if s.status.notices.iter().any(|n| n.state == NoticeState::Pending) {
            s.deliver(&["chat"], &[]).settle();
        }
    }
    s
}

fn occasions(s: &Scenario) -> Vec<Occasion> {
    s.status.notices.iter().map(|n| n.notice.occasion).collect()
}

#[test]
fn the_team_hears_first_and_nothing_waits_for_a_channel_that_is_away() {
    let mut s = with_team_channel();
    s.settle();
    s.succeed(Task::Preflight).settle();
    assert_eq!(s.status.step, Some(Step::NotifyTeam));
    s.deliver(&[], &["chat"]);
    let d = s.reconcile();
    assert!(events(&d).contains(&"NoticeUndelivered"), "{:?}", events(&d));
    s.settle();
    let step = s.status.steps.iter().find(|step_status| step_status.name == Step::NotifyTeam).unwrap();
    assert_eq!(
        (step.state, step.reason.as_deref()),
        (StepState::Failed, Some("NoticeUndelivered")),
        "no box ticks itself"
    );
    assert_eq!(s.status.step, Some(Step::Baseline), "the migration goes on");
    // It is sent again, with the same id, and taken.
    let id = s.status.notices[0].notice.id.clone();
    s.wait(2).settle();
    assert_eq!(s.run(Task::Notify).run.spec.inputs.notice.as_ref().unwrap().id, id);
    assert_eq!(s.run(Task::Notify).run.spec.attempt, 2);
    s.deliver(&["chat"], &[]).settle();
    assert_eq!(s.status.notices[0].state, NoticeState::Delivered);
    assert!(s.observed.runs.iter().all(|r| r.run.spec.task != Task::Notify), "what became of it is in the status");
}

#[test]
fn a_channel_that_stays_away_is_given_up_with_a_word() {
    let mut s = with_team_channel();
    s.settle();
    s.succeed(Task::Preflight).settle();
    for _ in 0..15 {
        s.deliver(&[], &["chat"]).settle().wait(300).settle();
    }
    assert_eq!(s.status.notices[0].state, NoticeState::Pending);
    s.deliver(&[], &["chat"]);
    let d = s.reconcile();
    assert!(events(&d).contains(&"NoticeGivenUp"), "{:?}", events(&d));
    assert_eq!(s.settle().status.notices[0].state, NoticeState::Undelivered);
}

#[test]
fn a_run_that_dies_without_a_word_counts_as_a_try() {
    let mut s = with_team_channel();
    s.settle();
    s.succeed(Task::Preflight).settle();
    s.lose_job(Task::Notify).settle();
    assert_eq!((s.status.notices[0].failures, s.status.notices[0].state), (1, NoticeState::Pending));
}

#[test]
fn each_kind_of_notice_is_sent() {
    let channels = || vec![channel("chat", Audience::Team)];
    let mut s = deciding();
    // As if the channel had been there from the start: each kind is checked by itself.
    s.spec.notifications.channels = channels();
    s.wait(600).settle();
    take(&mut s);
    assert_eq!(occasions(&s), [Occasion::DecisionDue]);
    s.submit("ann", DecisionKind::Rollback).settle();
    take(&mut s);
    assert_eq!(occasions(&s), [Occasion::DecisionDue, Occasion::TriggerFired]);

    let mut s = unblocking();
    s.spec.notifications.channels = channels();
    s.wait(1).state(Task::Window, WindowState::Unblocked).succeed(Task::Window).settle();
    assert_eq!(occasions(&s), [Occasion::Finished]);

    let mut s = running_down_sql();
    s.spec.notifications.channels = channels();
    s.wait(1).stuck(Task::RollbackWindow).fail(Task::RollbackWindow, Reason::SqlFailed).settle();
    assert_eq!(occasions(&s), [Occasion::ManualInterventionRequired]);
    assert!(
        s.status.notices[0]
            .notice
            .message
            .contains("fix the cause (you can correct the down SQL in its ConfigMap); next: kubectl")
    );

    let mut s = running_down_sql();
    s.spec.notifications.channels = channels();
    s.wait(1).compared(Task::RollbackWindow, 0).state(Task::RollbackWindow, WindowState::RolledBack);
    s.succeed(Task::RollbackWindow).settle();
    assert_eq!(occasions(&s), [Occasion::RolledBack]);

    let mut s = monitoring();
    s.spec.notifications.channels = channels();
    s.measure(Task::Monitor, CheckOutcome::Fail, true).settle();
    assert_eq!(occasions(&s), [Occasion::TriggerFired]);
    assert!(s.status.notices[0].notice.message.contains("0.21 > 0.05"));

    let mut s = observing();
    s.spec.notifications.channels = channels();
    for task in [Task::DayCheck, Task::WeekReview] {
        s.wait(10).settle();
        s.succeed(task).settle();
    }
    assert_eq!(occasions(&s), [Occasion::DayReport, Occasion::WeekReport, Occasion::DecisionDue]);
    assert_eq!(s.status.notices[0].notice.report_object.as_deref(), Some("s3://b/o.report.json"));
}

#[test]
fn the_status_does_not_grow_without_end() {
    let mut s = deciding();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    for _ in 0..40 {
        s.wait(600).settle();
        take(&mut s);
    }
    assert_eq!(s.status.notices.len(), 16);
    assert_eq!(s.status.notice_runs, 40);
}

/// Reminders come every day until there is a decision: the record still has the maintenance notice.
#[test]
fn reminders_do_not_remove_the_maintenance_notice() {
    let mut s = deciding();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    let kept = |occasion: &str, n: u32| {
        json!({"state": "Delivered", "attempt": n, "deliveries": [],
               "notice": {"id": format!("{occasion}.{n}"), "occasion": occasion,
                    "at": "2030-01-01T01:00:00Z", "message": "x", "phase": "Preparing"}})
    };
    // The maintenance was planned twice: the last one counts.
    let before = [kept("Planned", 1), kept("MaintenanceStarts", 2), kept("MaintenanceStarts", 3), kept("Finished", 4)];
    s.status.notices = serde_json::from_value(json!(before)).unwrap();
    s.status.notice_runs = 4;
    for _ in 0..20 {
        s.wait(600).settle();
        take(&mut s);
    }
    assert_eq!(s.status.notices.len(), 16);
    let ids: Vec<&str> = s.status.notices.iter().take(2).map(|n| n.notice.id.as_str()).collect();
    assert_eq!(ids, ["Planned.1", "MaintenanceStarts.3"]);
    assert!(occasions(&s)[2..].iter().all(|o| *o == Occasion::DecisionDue), "{:?}", occasions(&s));
}
