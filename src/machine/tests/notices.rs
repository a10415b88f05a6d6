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

/// AwaitingApproval with one channel of an audience, and a start an hour after the approvals.
fn awaiting_with(audience: Audience) -> Scenario {
    let mut s = at(Step::Approve);
    s.spec.schedule = serde_json::from_value(json!({"leadTime": "1h"})).unwrap();
    s.spec.notifications.channels = vec![channel("chat", audience)];
    s.status.plan.as_mut().unwrap().digest = crate::machine::plan_digest("uid-1", &s.spec, &s.status);
    s.settle();
    take(&mut s);
    s
}

/// Both have approved, and the channel has taken what there is to take.
fn agreed_with(audience: Audience) -> Scenario {
    let mut s = awaiting_with(audience);
    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    take(&mut s);
    s
}

#[test]
fn approvers_are_asked_once_for_a_plan_and_reminded() {
    let mut s = awaiting_with(Audience::Team);
    assert_eq!(occasions(&s), [Occasion::ApprovalDue]);
    s.wait(1).submit("ann", DecisionKind::Approve).settle();
    assert_eq!(occasions(&s), [Occasion::ApprovalDue], "not for each decision");
    // Again after followUps.reminderInterval, 10 minutes here.
    assert_eq!(s.decide().wake_at, Some(s.now + seconds(599)));
    s.wait(599).settle();
    take(&mut s);
    assert_eq!(occasions(&s), [Occasion::ApprovalDue, Occasion::ApprovalDue]);
    let message = &s.status.notices[1].notice.message;
    let digest = s.status.plan.as_ref().unwrap().digest.clone().unwrap();
    for part in [
        &format!("1 of 2 people approved {digest} (ann)"),
        "expected window 20 s (limit 60s)",
        "not covered by the spec: tag and branch of the code, ",
        "next: kubectl creditmigration -n shop approve m",
    ] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    // Another plan is asked for at once.
    s.observed.up = ObservedSql::Present("sha256:other".into());
    s.settle();
    for task in [Task::Preflight, Task::Backup, Task::VerifyBackup, Task::ExportKeyUsers, Task::Rehearse] {
        s.succeed(task).settle();
        take(&mut s);
    }
    assert_eq!(occasions(&s).iter().filter(|o| **o == Occasion::ApprovalDue).count(), 3, "{:?}", occasions(&s));
}

#[test]
fn people_are_asked_to_be_present() {
    let mut s = agreed_with(Audience::Team);
    let start = s.status.schedule.as_ref().unwrap().starts_at.unwrap();
    assert_eq!(occasions(&s), [Occasion::ApprovalDue, Occasion::MaintenanceStarts, Occasion::PresenceDue]);
    let message = s.status.notices[2].notice.message.clone();
    for part in [
        &format!("starts at {start:.0} if 2 people"),
        "0 of 2 people present",
        "next: kubectl creditmigration -n shop ready m",
    ] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    // At the start no one is there: asked again, and then at each interval.
    s.wait(3600).settle();
    take(&mut s);
    s.wait(600).settle();
    take(&mut s);
    assert_eq!(occasions(&s)[3..], [Occasion::PresenceDue, Occasion::PresenceDue]);
    s.confirm_presence().settle();
    assert_eq!(s.status.phase, Some(Phase::Executing));
    // Who is there is not asked.
    let mut s = awaiting_with(Audience::Team);
    s.confirm_presence().submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    take(&mut s);
    assert_eq!(occasions(&s), [Occasion::ApprovalDue, Occasion::MaintenanceStarts]);
}

/// What an announced maintenance can meet instead of its start, and what those who were told of it hear.
#[test]
fn who_was_told_of_the_maintenance_is_told_that_it_is_called_off() {
    type Case<'a> = (&'a str, &'a dyn Fn(&mut Scenario), &'a str);
    let in_window = |s: &mut Scenario| {
        s.confirm_presence().wait(3600).confirm_presence().settle();
        s.state(Task::Window, WindowState::Ready).settle();
    };
    let cases: &[Case<'_>] = &[
        ("an Abort", &|s| apply(s.submit("ann", DecisionKind::Abort)), "cancelled by ann"),
        ("a Reject", &|s| apply(s.submit_on("ann", DecisionKind::Reject, None)), "ann rejected every plan"),
        ("other SQL", &|s| s.observed.up = ObservedSql::Present("sha256:other".into()), "spec or SQL changed"),
        ("a missing approval", &|s| s.observed.decisions.retain(|d| d.by != "bob"), "1 of 2 people approved"),
        ("a deletion", &|s| s.observed.deleting = true, "was deleted"),
        (
            "a lock",
            &|s| {
                in_window(s);
                s.state(Task::Window, WindowState::RolledBack).fail(Task::Window, Reason::LockTimeout);
            },
            "nothing was changed, writes are open",
        ),
        (
            "SQL that fails",
            &|s| {
                in_window(s);
                s.state(Task::Window, WindowState::RolledBack).fail(Task::Window, Reason::SqlFailed);
            },
            "nothing was changed, writes are open",
        ),
        (
            "a flag that is changed at the last moment",
            &|s| {
                s.wait(3600).confirm_presence().settle();
                s.flag("v7", None);
            },
            "the window was not started",
        ),
    ];
    for (name, meet, why) in cases {
        let mut s = agreed_with(Audience::StatusPage);
        assert_eq!(occasions(&s), [Occasion::MaintenanceStarts], "{name}");
        let start = s.status.notices[0].notice.starts_at;
        meet(&mut s);
        s.settle();
        take(&mut s);
        assert_eq!(occasions(&s)[..2], [Occasion::MaintenanceStarts, Occasion::CalledOff], "{name}");
        let notice = &s.status.notices[1].notice;
        assert_eq!(notice.starts_at, start, "{name}");
        assert!(notice.message.contains(why), "{name}: {}", notice.message);
        let told = occasions(&s).iter().filter(|o| **o == Occasion::CalledOff).count();
        assert_eq!(told, 1, "{name}: told once");
    }
}

#[test]
fn a_start_that_is_missed_while_something_is_in_the_way_is_called_off() {
    let mut s = awaiting_with(Audience::StatusPage);
    let clock = |t: Time| t.strftime("%H:%M").to_string();
    s.spec.schedule = serde_json::from_value(json!({
        "leadTime": "10m",
        "allowedHours": [{"from": clock(s.now + seconds(1800)), "to": clock(s.now + seconds(3600))}],
    }))
    .unwrap();
    s.status.plan.as_mut().unwrap().digest = crate::machine::plan_digest("uid-1", &s.spec, &s.status);
    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    let planned = s.status.schedule.clone().unwrap();
    s.now = planned.starts_at.unwrap();
    s.settle();
    take(&mut s);
    s.flag("v7", None);
    s.settle();
    assert_eq!(s.decide().wake_at, planned.ends_at);
    s.now = planned.ends_at.unwrap();
    s.settle();
    assert_eq!(occasions(&s), [Occasion::MaintenanceStarts, Occasion::CalledOff]);
    assert!(
        s.status.notices[1].notice.message.contains("VERSION of ConfigMap shop is \"v7\""),
        "{}",
        s.status.notices[1].notice.message
    );
}

#[test]
fn who_was_not_told_of_the_maintenance_hears_nothing_of_its_end() {
    // No channel has taken the maintenance notice.
    let mut s = awaiting_with(Audience::StatusPage);
    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    s.deliver(&[], &["chat"]).settle();
    s.submit("ann", DecisionKind::Abort).settle();
    assert_eq!(occasions(&s), [Occasion::MaintenanceStarts]);
    // Its attempt is under way: it may arrive.
    let mut s = awaiting_with(Audience::StatusPage);
    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    s.submit("ann", DecisionKind::Abort).settle();
    assert_eq!(occasions(&s), [Occasion::MaintenanceStarts, Occasion::CalledOff]);
}
