//! When the window may start, who is present, and which notices go out before.

use rstest::rstest;

use crate::machine::tests::*;
use crate::{
    api::{Audience, KeyRef, NotificationChannel, Occasion, Schedule, SlackChannel},
    machine::next_hours,
};

fn schedule(value: serde_json::Value) -> Schedule {
    serde_json::from_value(value).unwrap()
}

fn utc(text: &str) -> Time {
    text.parse().unwrap()
}

// 2026-03-02 is a Monday. In Berlin clocks go forward on 2026-03-29 at 02:00, and back on 2026-10-25 at 03:00.
#[rstest]
#[case::any_time("{}", "2026-03-02T10:00:00Z", "2026-03-02T10:00:00Z", None)]
#[case::start_at(r#"{"startAt": "2026-03-03T02:00:00Z"}"#, "2026-03-02T10:00:00Z", "2026-03-03T02:00:00Z", None)]
#[case::start_at_is_over(
    r#"{"startAt": "2026-03-01T02:00:00Z"}"#,
    "2026-03-02T10:00:00Z",
    "2026-03-02T10:00:00Z",
    None
)]
#[case::later_today(
    r#"{"allowedHours": [{"from": "22:00", "to": "23:00"}]}"#,
    "2026-03-02T10:00:00Z",
    "2026-03-02T22:00:00Z",
    Some("2026-03-02T23:00:00Z")
)]
#[case::inside(
    r#"{"allowedHours": [{"from": "09:00", "to": "11:00"}]}"#,
    "2026-03-02T10:00:00Z",
    "2026-03-02T10:00:00Z",
    Some("2026-03-02T11:00:00Z")
)]
#[case::the_end_is_not_part_of_it(
    r#"{"allowedHours": [{"from": "09:00", "to": "10:00"}]}"#,
    "2026-03-02T10:00:00Z",
    "2026-03-03T09:00:00Z",
    Some("2026-03-03T10:00:00Z")
)]
#[case::past_midnight_begun_yesterday(
    r#"{"allowedHours": [{"days": ["Sunday"], "from": "23:00", "to": "02:00"}]}"#,
    "2026-03-02T01:00:00Z",
    "2026-03-02T01:00:00Z",
    Some("2026-03-02T02:00:00Z")
)]
#[case::next_week(
    r#"{"allowedHours": [{"days": ["Monday"], "from": "02:00", "to": "04:00"}]}"#,
    "2026-03-02T10:00:00Z",
    "2026-03-09T02:00:00Z",
    Some("2026-03-09T04:00:00Z")
)]
#[case::the_earlier_of_two(
    r#"{"allowedHours": [{"days": ["Friday"], "from": "02:00", "to": "04:00"},
        {"days": ["Tuesday"], "from": "02:00", "to": "04:00"}]}"#,
    "2026-03-02T10:00:00Z",
    "2026-03-03T02:00:00Z",
    Some("2026-03-03T04:00:00Z")
)]
#[case::whole_day(
    r#"{"allowedHours": [{"days": ["Wednesday"], "from": "00:00", "to": "24:00"}]}"#,
    "2026-03-02T10:00:00Z",
    "2026-03-04T00:00:00Z",
    Some("2026-03-05T00:00:00Z")
)]
#[case::start_at_inside_hours(
    r#"{"startAt": "2026-03-03T02:30:00Z", "allowedHours": [{"from": "02:00", "to": "04:00"}]}"#,
    "2026-03-02T10:00:00Z",
    "2026-03-03T02:30:00Z",
    Some("2026-03-03T04:00:00Z")
)]
#[case::a_zone(
    r#"{"allowedHours": [{"from": "02:00", "to": "04:00", "timeZone": "Europe/Berlin"}]}"#,
    "2026-03-02T10:00:00Z",
    "2026-03-03T01:00:00Z",
    Some("2026-03-03T03:00:00Z")
)]
#[case::an_hour_that_clocks_leave_out(
    r#"{"allowedHours": [{"from": "02:30", "to": "04:00", "timeZone": "Europe/Berlin"}]}"#,
    "2026-03-28T10:00:00Z",
    "2026-03-29T01:30:00Z",
    Some("2026-03-29T02:00:00Z")
)]
#[case::an_hour_that_clocks_repeat(
    r#"{"allowedHours": [{"from": "02:30", "to": "04:00", "timeZone": "Europe/Berlin"}]}"#,
    "2026-10-24T10:00:00Z",
    "2026-10-25T00:30:00Z",
    Some("2026-10-25T03:00:00Z")
)]
fn allowed_hours(#[case] spec: &str, #[case] from: &str, #[case] start: &str, #[case] end: Option<&str>) {
    let spec = schedule(serde_json::from_str(spec).unwrap());
    assert_eq!(next_hours(&spec, utc(from)), Some((utc(start), end.map(utc))));
}

#[test]
fn an_unknown_time_zone_is_named_in_preflight() {
    let mut s = Scenario::new();
    s.spec.schedule = schedule(serde_json::json!({
        "allowedHours": [{"from": "02:00", "to": "04:00", "timeZone": "Europe/Atlantis"}]
    }));
    let d = s.settle().decide();
    let (reason, message) = ready(&d.status);
    assert_eq!(reason, "ScheduleInvalid");
    assert!(message.contains("Europe/Atlantis") && message.contains("next: "), "{message}");
    assert!(s.observed.runs.is_empty(), "nothing is started");
}

fn channel(name: &str, audiences: &[Audience]) -> NotificationChannel {
    let url_secret_ref = KeyRef { name: name.into(), key: "url".into() };
    NotificationChannel {
        name: name.into(),
        audiences: audiences.to_vec(),
        slack: Some(SlackChannel { url_secret_ref, ca_secret_ref: None }),
        webhook: None,
        email: None,
    }
}

/// AwaitingApproval with one channel for users, a start an hour ahead; no one has approved or is present.
fn scheduled() -> Scenario {
    let mut s = at(Step::Approve);
    s.spec.schedule = schedule(serde_json::json!({"leadTime": "1h"}));
    s.spec.notifications.channels = vec![channel("status", &[Audience::StatusPage])];
    s.status.plan.as_mut().unwrap().digest = crate::machine::plan_digest("uid-1", &s.spec, &s.status);
    s.settle();
    s
}

/// A channel for the team; the plan, and what was decided on it, stay what they are.
fn with_team(s: &mut Scenario) -> &mut Scenario {
    s.spec.notifications.channels.push(channel("chat", &[Audience::Team]));
    let digest = crate::machine::plan_digest("uid-1", &s.spec, &s.status);
    s.status.plan.as_mut().unwrap().digest.clone_from(&digest);
    for decision in s.observed.decisions.iter_mut().filter(|decision| decision.digest.is_some()) {
        decision.digest.clone_from(&digest);
    }
    s
}

fn agreed() -> Scenario {
    let mut s = scheduled();
    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    assert_eq!(s.status.step, Some(Step::Schedule));
    s
}

#[test]
fn an_hour_before_the_notice_goes_out_and_people_come() {
    let mut s = agreed();
    let start = s.now + seconds(3600);
    assert_eq!(s.status.schedule.as_ref().unwrap().starts_at, Some(start));
    // No start was announced before: the notice goes out at once.
    assert_eq!(s.run(Task::Notify).run.spec.inputs.notice.as_ref().unwrap().occasion, Occasion::MaintenanceStarts);
    assert_eq!(s.run(Task::Notify).run.spec.inputs.notice.as_ref().unwrap().starts_at, Some(start));
    s.deliver(&["status"], &[]).settle();
    s.confirm_presence().settle();
    assert_eq!(s.status.phase, Some(Phase::AwaitingApproval), "not before its time");
    assert_eq!(ready(&s.status).0, "Scheduled");
    // Those who were there an hour ago may have gone.
    s.wait(3600).settle();
    let (reason, message) = ready(&s.status);
    assert_eq!(reason, "PresencePending");
    assert!(
        message.contains("0 of 2 people present") && message.contains("next: kubectl creditmigration -n shop ready m"),
        "{message}"
    );
    s.submit("dan", DecisionKind::Ready).settle();
    assert_eq!(s.status.schedule.as_ref().unwrap().presence.as_deref(), Some("1/2"));
    s.submit("dan", DecisionKind::Ready).settle();
    assert_eq!(s.status.phase, Some(Phase::AwaitingApproval), "one person twice is one person");
    s.submit_on("eve", DecisionKind::Ready, Some("sha256:other")).settle();
    assert_eq!(s.status.phase, Some(Phase::AwaitingApproval), "present for another plan");
    s.submit("author", DecisionKind::Ready).settle();
    assert_eq!(s.status.phase, Some(Phase::Executing), "the author may be one of those present");
    let step = s.status.steps.iter().find(|step_status| step_status.name == Step::Schedule).unwrap();
    assert_eq!(step.message.as_deref(), Some("present: author, dan; maintenance notice taken by status"));
}

#[test]
fn without_the_maintenance_notice_it_does_not_start() {
    let mut s = agreed();
    s.wait(3600).confirm_presence().settle();
    assert_eq!(ready(&s.status).0, "NoticePending");
    // However often the channel is away.
    for _ in 0..30 {
        s.deliver(&[], &["status"]).settle().wait(300).settle();
        s.confirm_presence();
    }
    let (reason, message) = ready(&s.status);
    assert_eq!((s.status.phase, reason.as_str()), (Some(Phase::AwaitingApproval), "NoticePending"));
    assert!(message.contains("tried 30 times"), "{message}");
    s.deliver(&["status"], &[]).settle();
    assert_eq!(s.status.phase, Some(Phase::Executing));
}

#[test]
fn one_unreachable_channel_holds_nothing_up_but_is_seen() {
    let mut s = scheduled();
    s.spec.notifications.channels.push(channel("social", &[Audience::Social]));
    s.status.plan.as_mut().unwrap().digest = crate::machine::plan_digest("uid-1", &s.spec, &s.status);
    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    s.deliver(&["status"], &["social"]).settle();
    s.wait(3600).confirm_presence().settle();
    assert_eq!(s.status.phase, Some(Phase::Executing));
    // The repetition has the same id, and leaves out who has it.
    let notice = s.run(Task::Notify).run.spec.inputs.notice.clone().unwrap();
    assert_eq!((notice.delivered, s.status.notices[0].failures), (vec!["status".to_owned()], 1));
    assert_eq!(notice.id, s.status.notices[0].notice.id);
}

#[test]
fn missed_hours_wait_for_the_next_ones() {
    let mut s = scheduled();
    let clock = |t: Time| t.strftime("%H:%M").to_string();
    s.spec.schedule = schedule(serde_json::json!({
        "leadTime": "10m",
        "allowedHours": [{"from": clock(s.now + seconds(1800)), "to": clock(s.now + seconds(3600))}],
    }));
    s.status.plan.as_mut().unwrap().digest = crate::machine::plan_digest("uid-1", &s.spec, &s.status);
    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    let first = s.status.schedule.clone().unwrap();
    assert!(first.notice.is_none() && s.observed.runs.iter().all(|r| r.run.spec.task != Task::Notify), "not yet");
    let lead = first.starts_at.unwrap() - seconds(600);
    assert_eq!(s.decide().wake_at, Some(lead));
    s.now = lead;
    s.settle().deliver(&["status"], &[]).settle();
    s.now = first.ends_at.unwrap();
    let d = s.reconcile();
    assert!(events(&d).contains(&"StartMissed"), "{:?}", events(&d));
    let note = d.effects.iter().find_map(|e| match e {
        Effect::Event(e) if e.reason == "StartMissed" => Some(e.note.clone()),
        _ => None,
    });
    assert!(note.unwrap().contains("0 of 2 people present"));
    let next = s.settle().status.schedule.clone().unwrap();
    assert_eq!(next.starts_at, Some(first.starts_at.unwrap() + seconds(86_400)));
    // And the new start has a notice of its own.
    s.now = next.starts_at.unwrap();
    s.status.backup.as_mut().unwrap().finished_at = s.now;
    s.status.plan.as_mut().unwrap().digest = crate::machine::plan_digest("uid-1", &s.spec, &s.status);
    s.settle();
    let occasions: Vec<_> = s.status.notices.iter().map(|n| n.notice.occasion).collect();
    assert_eq!(occasions, [Occasion::MaintenanceStarts, Occasion::MaintenanceCancelled, Occasion::MaintenanceStarts]);
    assert_ne!(s.status.notices[0].notice.id, s.status.notices[2].notice.id);
}

#[test]
fn an_old_backup_is_taken_again() {
    let mut s = scheduled();
    s.wait(86_401).submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve);
    let d = s.reconcile();
    assert_eq!((d.status.phase, d.status.step), (Some(Phase::Preparing), Some(Step::Preflight)));
    assert!(events(&d).contains(&"PreparationRestarted"));
    assert!(actions(&d).contains(&"start m-preflight-2".to_owned()), "{:?}", actions(&d));
}

#[test]
fn an_approval_that_is_gone_takes_the_start_back() {
    let mut s = agreed();
    s.observed.decisions.retain(|d| d.by != "bob");
    s.settle();
    assert_eq!((s.status.step, ready(&s.status).0.as_str()), (Some(Step::Approve), "ApprovalPending"));
}

#[test]
fn whoever_was_there_hours_ago_lets_no_window_open() {
    // The operator was away for hours, and the window's pod waited all the time.
    let mut s = approved();
    s.state(Task::Window, WindowState::Ready);
    s.wait(3_601);
    let d = s.reconcile();
    assert!(events(&d).contains(&"WindowNotStarted"), "{:?}", events(&d));
    s.settle();
    assert_eq!((s.status.step, ready(&s.status).0.as_str()), (Some(Step::Schedule), "PresencePending"));
    assert!(s.status.window.as_ref().is_none_or(|w| w.deadline.is_none()));
    // Nor does a backup that has become too old meanwhile.
    let mut s = approved();
    s.state(Task::Window, WindowState::Ready);
    s.wait(86_401).confirm_presence().settle();
    assert_eq!((s.status.phase, s.status.step), (Some(Phase::Preparing), Some(Step::Preflight)));
}

#[test]
fn what_was_cancelled_is_not_announced_any_more() {
    let mut s = agreed();
    s.deliver(&[], &["status"]).settle();
    s.submit("ann", DecisionKind::Abort).settle();
    assert_eq!(s.status.phase, Some(Phase::Cancelled));
    s.wait(300).settle();
    assert!(
        s.observed.runs.iter().all(|r| r.run.spec.task != Task::Notify),
        "maintenance is announced after it was cancelled"
    );
    assert_eq!(s.status.notices[0].state, crate::api::NoticeState::Undelivered);
}

/// What may pass by itself: the window waits for it.
const OBSTACLES: [&str; 9] = [
    "FlagWriteRefused",
    "WorkloadPaused",
    "WorkloadWriteRefused",
    "ForeignPods",
    "WorkloadNotSettled",
    "QuotaExceeded",
    "QuotaNotReadable",
    "WindowTooShort",
    "ControllerClockSkew",
];

#[test]
fn nothing_may_be_in_the_way_at_the_last_moment() {
    let violations = super::preparing::VIOLATIONS.iter().filter(|v| v.0 != "SqlMissing");
    for (reason, harm, message) in violations {
        let mut s = approved();
        let healthy = s.observed.clone();
        harm(s.state(Task::Window, WindowState::Ready));
        let d = s.reconcile();
        let waits = OBSTACLES.contains(reason);
        let taken_back = d.effects.iter().find_map(|effect| match effect {
            Effect::Event(event) if event.reason == "WindowNotStarted" => Some(event.note.clone()),
            _ => None,
        });
        // The gate's own message says why.
        let says = |text: &str| text.contains(message.split("; next").next().unwrap());
        assert_eq!(taken_back.is_none(), waits, "{reason}: {taken_back:?}");
        assert!(waits || taken_back.as_deref().is_some_and(says), "{reason}: {taken_back:?}");
        let (found, text) = ready(&d.status);
        let phase = if waits { Phase::Executing } else { Phase::AwaitingApproval };
        assert_eq!((d.status.phase, found.as_str()), (Some(phase), *reason));
        assert!(says(&text), "{reason}: {text}");
        assert!(d.status.problems.iter().any(|p| p.reason == *reason && p.reported), "{reason}");
        assert_eq!(d.status.writes, Some(crate::api::Writes::Open), "{reason}");
        assert!(actions(&d).iter().all(|a| !a.starts_with("order")), "{reason}: {:?}", actions(&d));
        // Fixed, it continues by itself: the approvals still count.
        (s.observed.flag, s.observed.flag_write) = (healthy.flag, healthy.flag_write);
        s.observed.workloads = healthy.workloads;
        s.observed.rollback_enabled = healthy.rollback_enabled;
        (s.observed.policy_problem, s.observed.server_clock) = (None, None);
        s.observed.quota_shortages = Ok(vec![]);
        s.settle();
        assert_eq!(s.status.phase, Some(Phase::Executing), "{reason}");
    }
}

#[test]
fn what_may_pass_by_itself_takes_no_announced_maintenance_back() {
    let mut s = agreed();
    s.deliver(&["status"], &[]).settle();
    s.wait(3600).confirm_presence().settle();
    assert_eq!(s.status.phase, Some(Phase::Executing));
    with_team(&mut s).state(Task::Window, WindowState::Ready);
    let (starts_at, approved_by) = (s.status.schedule.as_ref().unwrap().starts_at, s.status.approved_by.clone());
    let sent = |s: &Scenario, occasion| s.status.notices.iter().filter(|n| n.notice.occasion == occasion).count();
    for (number, harm) in [
        |s: &mut Scenario| s.observed.workloads[0].unsettled = Some("of 3 wanted replicas 2 are updated".into()),
        |s: &mut Scenario| s.observed.workloads[0].paused = true,
    ]
    .into_iter()
    .enumerate()
    {
        let healthy = s.observed.workloads.clone();
        for wait in [0, 1, 30] {
            harm(&mut s);
            s.wait(wait).reconcile();
            assert_eq!(s.status.phase, Some(Phase::Executing));
            assert_eq!(sent(&s, Occasion::MaintenanceCancelled), 0);
            assert_eq!(sent(&s, Occasion::ManualInterventionRequired), number + 1, "once for each cause");
        }
        s.observed.workloads = healthy;
        if number == 0 {
            // Gone for a moment, and back: the same cause.
            s.status.problems.clear();
        }
    }
    let d = s.reconcile();
    assert_eq!(actions(&d).iter().filter(|a| a.starts_with("order")).count(), 1, "{:?}", actions(&d));
    let schedule = d.status.schedule.as_ref().unwrap();
    assert_eq!((schedule.starts_at, d.status.approved_by.clone()), (starts_at, approved_by));
}

#[test]
fn a_violation_while_approvals_are_awaited_is_reported_and_the_rest_goes_on() {
    let mut s = scheduled();
    with_team(&mut s);
    s.observed.workloads[0].foreign_pods = vec!["debug".into()];
    let d = s.reconcile();
    assert_eq!(ready(&d.status).0, "ForeignPods");
    assert_eq!(events(&d).iter().filter(|reason| **reason == "ForeignPods").count(), 1);
    assert!(d.status.problems.iter().any(|p| p.reason == "ForeignPods" && p.reported));
    assert!(!events(&s.wait(1).reconcile()).contains(&"ForeignPods"), "reported once");
    assert!(s.status.notices.iter().any(|n| n.notice.occasion == Occasion::ApprovalDue), "approvals are asked for");
    let mut rejected = awaiting();
    rejected.observed.workloads[0].foreign_pods = vec!["debug".into()];
    rejected.submit("ann", DecisionKind::Reject).settle();
    assert_eq!(ready(&rejected.status).0, "Rejected");
    // Approved, nothing is announced while it is in the way, and nothing starts.
    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    assert_eq!((s.status.phase, s.status.step), (Some(Phase::AwaitingApproval), Some(Step::Schedule)));
    let announced = |s: &Scenario| s.status.notices.iter().any(|n| n.notice.occasion == Occasion::MaintenanceStarts);
    assert!(!announced(&s));
    let starts_at = |s: &Scenario| s.status.schedule.as_ref().unwrap().starts_at;
    s.wait(7200).settle();
    assert_eq!((announced(&s), starts_at(&s)), (false, None));
    // Those who get the notice have the whole lead time.
    s.observed.workloads[0].foreign_pods.clear();
    s.settle();
    assert_eq!((announced(&s), starts_at(&s)), (true, Some(s.now + seconds(3600))));
    // So they have if it comes before the notice is due.
    let mut s = scheduled();
    s.spec.schedule.start_at = Some(s.now + seconds(36_000));
    with_team(&mut s).submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    assert_eq!(starts_at(&s), s.spec.schedule.start_at);
    s.observed.workloads[0].foreign_pods = vec!["debug".into()];
    s.wait(33_000).settle();
    assert_eq!((announced(&s), starts_at(&s)), (false, None));
    s.observed.workloads[0].foreign_pods.clear();
    s.settle();
    assert_eq!((announced(&s), starts_at(&s)), (true, Some(s.now + seconds(3600))));
}
