//! `status`: shows the state of a migration on one screen.

use std::fmt::Write as _;

use kube::{ResourceExt, api::ListParams};
use serde::Serialize;

use super::completion;
use crate::{
    api::{
        CheckOutcome, CreditMigration, DeliveryState, ExpectedWindow, NoticeState, Phase, ReadyReason,
        RollbackRehearsalStatus, ScheduleStatus, StatementEvidence, StepState, Time, WorkProgress, Writes, written,
    },
    plugin::{
        Exit, PluginError,
        connection::ClusterConnection,
        output::{Format, Output, seconds, table},
    },
    shared::message::Message,
    telemetry,
};

pub(crate) const EXAMPLES: &str = "\
Exit code 3: a migration is Failed or RollbackFailed.

Examples:
  kubectl creditmigration status
  kubectl creditmigration status simplify-credits
  kubectl creditmigration status simplify-credits -o json";

/// What to show.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Name of the CreditMigration; all of the namespace when absent.
    #[arg(add = completion::names())]
    name: Option<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// Shows the state.
pub(crate) async fn run(connection: &ClusterConnection, args: &Args) -> Result<Output, PluginError> {
    let now = telemetry::now();
    let (text, views) = if let Some(name) = &args.name {
        let view = View::of(&connection.migration(name).await?, now);
        (args.output.write(&view, || view.screen())?, vec![view])
    } else {
        let list = connection.api::<CreditMigration>().list(&ListParams::default()).await?;
        let views: Vec<View> = list.items.iter().map(|m| View::of(m, now)).collect();
        let none = || format!("no CreditMigration in namespace {}", connection.namespace);
        let text = args.output.write(&views, || if views.is_empty() { none() } else { overview(&views) })?;
        (text, views)
    };
    let failed = views.iter().any(View::failed);
    Ok(Output { text, exit: if failed { Exit::ProblemsFound } else { Exit::Success } })
}

/// State of a migration.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct View {
    /// Name.
    pub(crate) name: String,
    /// Namespace.
    pub(crate) namespace: String,
    /// Phase; absent before the operator has observed it.
    pub(crate) phase: Option<Phase>,
    /// `8/20 Approve`.
    pub(crate) progress: String,
    /// How far the long part of a task that is under way is.
    pub(crate) work: Option<WorkProgress>,
    /// Whether the application can write; absent until it is known.
    pub(crate) writes: Option<Writes>,
    /// `1/2`.
    pub(crate) approvals: Option<String>,
    /// `1/2`.
    pub(crate) presence: Option<String>,
    /// Earliest time at which the window may start.
    pub(crate) starts_at: Option<Time>,
    /// Number of the window's next attempt, of those allowed, and its start; after one that met a lock.
    pub(crate) attempt: Option<String>,
    /// When the current window must have ended.
    pub(crate) deadline: Option<Time>,
    /// Digest of the plan.
    pub(crate) digest: Option<String>,
    /// What the window is expected to take, with its parts.
    pub(crate) expected_window: Option<ExpectedWindow>,
    /// Users whose balance was written since the cutover, as last counted.
    pub(crate) users_written: Option<u64>,
    /// Credits by which the balances of those users differ from those at the cutover, as last measured.
    pub(crate) credits_written: Option<String>,
    /// Rehearsals of the rollback while the new version runs.
    pub(crate) rollback_rehearsal: Option<RollbackRehearsalStatus>,
    /// Reason of `Ready`.
    pub(crate) reason: String,
    /// Message of `Ready`.
    pub(crate) message: String,
    /// The next command.
    pub(crate) next: Option<String>,
    /// Steps that were started.
    pub(crate) steps: Vec<StepView>,
    /// Conditions.
    pub(crate) conditions: Vec<ConditionView>,
    /// What is wrong at present.
    pub(crate) problems: Vec<ProblemView>,
    /// The latest notices.
    pub(crate) notices: Vec<NoticeView>,
    /// Checks of the current or last stage.
    pub(crate) checks: Vec<CheckView>,
    /// Statements of the SQL as the rehearsal measured them, the longest first.
    pub(crate) statements: Vec<StatementEvidence>,
}

/// A step.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StepView {
    /// Name.
    pub(crate) name: String,
    /// State.
    pub(crate) state: StepState,
    /// A changed plan made its evidence void.
    #[serde(skip)]
    superseded: bool,
    /// Seconds from its start to its end, or to now.
    pub(crate) took_seconds: f64,
    /// Evidence, or the problem.
    pub(crate) evidence: String,
}

impl StepView {
    /// State as it is printed: a step that a changed plan voided did not fail.
    fn state_text(&self) -> String {
        match self.state {
            StepState::Failed if self.superseded => ReadyReason::Superseded.as_str().to_owned(),
            state => state.to_string(),
        }
    }
}

/// A condition.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConditionView {
    /// Type.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Status.
    pub(crate) status: String,
    /// Reason.
    pub(crate) reason: String,
    /// Message.
    pub(crate) message: String,
    /// Seconds since its last change of status.
    pub(crate) since_seconds: f64,
}

/// Something that is wrong.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProblemView {
    /// Reason.
    pub(crate) reason: String,
    /// Observed value, limit and next command.
    pub(crate) message: String,
    /// Seconds since it was first observed.
    pub(crate) since_seconds: f64,
}

impl ConditionView {
    /// Of condition `RollbackReady`: `ready`, or what is in its way.
    fn rollback_text(&self) -> String {
        if self.status == "True" { "ready".to_owned() } else { format!("not ready, {}: {}", self.reason, self.message) }
    }
}

/// A notice.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NoticeView {
    /// Kind of the notice.
    pub(crate) occasion: String,
    /// When it was created.
    pub(crate) at: Time,
    /// Its state.
    pub(crate) state: NoticeState,
    /// Channels that accepted it.
    pub(crate) delivered: Vec<String>,
    /// Channels that did not, with their answers.
    pub(crate) failed: Vec<String>,
}

/// A check.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CheckView {
    /// Name.
    pub(crate) name: String,
    /// Result of the last measurement.
    pub(crate) outcome: CheckOutcome,
    /// Measurements so far.
    pub(crate) measured: u64,
    /// Whether the limit was ever breached.
    pub(crate) breached: bool,
    /// Observed value and limit.
    pub(crate) message: String,
}

/// `2 of 3, at 2030-01-01T00:01:00Z`; `None` before the first attempt has failed.
fn attempt_text(schedule: &ScheduleStatus, attempts: u32) -> Option<String> {
    let at = schedule.retry_at?;
    Some(format!("{} of {attempts}, at {at:.0}", schedule.failed_windows + 1))
}

impl View {
    /// The state of a migration at a time.
    pub(crate) fn of(m: &CreditMigration, now: Time) -> Self {
        let status = m.status.clone().unwrap_or_default();
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
        let message = ready.map_or_else(|| "the operator has not observed it yet".to_owned(), |c| c.message.clone());
        let window = status.window.as_ref().filter(|w| w.unblocked_at.is_none());
        Self {
            name: m.name_any(),
            namespace: m.namespace().unwrap_or_default(),
            statements: m.measured_statements(),
            phase: status.phase,
            progress: status.progress.clone().unwrap_or_default(),
            work: status.work.clone(),
            writes: status.writes,
            approvals: status.approvals.clone(),
            presence: status.schedule.as_ref().and_then(|s| s.presence.clone()),
            starts_at: status.schedule.as_ref().and_then(|s| s.starts_at),
            attempt: status.schedule.as_ref().and_then(|s| attempt_text(s, m.spec.window.attempts)),
            deadline: window.and_then(|w| w.deadline),
            digest: status.plan.as_ref().and_then(|p| p.digest.clone()),
            expected_window: status.plan.as_ref().and_then(|p| p.expected_window.clone()),
            users_written: status.users_written,
            credits_written: status.credits_written.clone(),
            rollback_rehearsal: status.rollback_rehearsal.clone(),
            reason: ready.map(|c| c.reason.clone()).unwrap_or_default(),
            next: Message::parse(&message).next,
            message,
            steps: status
                .steps
                .iter()
                .map(|step| StepView {
                    name: step.name.to_string(),
                    state: step.state,
                    superseded: step.superseded,
                    took_seconds: (step.finished_at.unwrap_or(now) - step.started_at)
                        .total(jiff::Unit::Second)
                        .unwrap_or(0.0),
                    evidence: match (&step.reason, &step.message) {
                        (Some(reason), Some(message)) => format!("{reason}: {message}"),
                        (Some(one), None) | (None, Some(one)) => one.clone(),
                        (None, None) => String::new(),
                    },
                })
                .collect(),
            conditions: status
                .conditions
                .iter()
                .map(|condition| ConditionView {
                    kind: condition.type_.clone(),
                    status: condition.status.clone(),
                    reason: condition.reason.clone(),
                    message: condition.message.clone(),
                    since_seconds: (now - condition.last_transition_time.0).total(jiff::Unit::Second).unwrap_or(0.0),
                })
                .collect(),
            problems: status
                .problems
                .iter()
                // The others may pass by themselves.
                .filter(|problem| problem.reported)
                .map(|problem| ProblemView {
                    reason: problem.reason.clone(),
                    message: problem.message.clone(),
                    since_seconds: (now - problem.since).total(jiff::Unit::Second).unwrap_or(0.0),
                })
                .collect(),
            notices: status
                .notices
                .iter()
                .map(|notice| {
                    let of = |state| notice.deliveries.iter().filter(move |d| d.state == state);
                    NoticeView {
                        occasion: notice.notice.occasion.to_string(),
                        at: notice.notice.at,
                        state: notice.state,
                        delivered: of(DeliveryState::Delivered).map(|d| d.channel.clone()).collect(),
                        failed: of(DeliveryState::Failed).map(|d| format!("{} ({})", d.channel, d.message)).collect(),
                    }
                })
                .collect(),
            checks: status
                .checks
                .iter()
                .map(|check| CheckView {
                    name: check.name.clone(),
                    outcome: check.outcome,
                    measured: check.measured,
                    breached: check.breached,
                    message: check.message.clone(),
                })
                .collect(),
        }
    }

    /// Whether it ended in a failure, or manual intervention is required.
    pub(crate) fn failed(&self) -> bool {
        matches!(self.phase, Some(Phase::Failed | Phase::RollbackFailed))
    }

    /// `AwaitingApproval`, or `not started`.
    pub(crate) fn phase_text(&self) -> String {
        self.phase.map_or_else(|| "not started".into(), |p| p.to_string())
    }

    /// The whole screen.
    pub(crate) fn screen(&self) -> String {
        let mut text = format!("{}/{}: {}", self.namespace, self.name, self.phase_text());
        let mut line = |name: &str, value: Option<String>| {
            if let Some(value) = value.filter(|v| !v.is_empty()) {
                // Writing to a String cannot fail.
                let _ = write!(text, "\n  {:<10} {value}", format!("{name}:"));
            }
        };
        line("step", Some(self.progress.clone()));
        line("work", self.work.as_ref().map(WorkProgress::summary));
        line(
            "writes",
            self.writes.map(|writes| match (writes, self.deadline) {
                (Writes::Blocked, Some(deadline)) => format!("{writes}, until {deadline:.0} at the latest"),
                (Writes::Blocked, None) | (Writes::Open, _) => writes.to_string(),
            }),
        );
        line("rollback", self.conditions.iter().find(|c| c.kind == "RollbackReady").map(ConditionView::rollback_text));
        line("rehearsed", self.rollback_rehearsal.as_ref().and_then(RollbackRehearsalStatus::summary));
        let credits = self.credits_written.as_deref();
        line("written", self.users_written.map(|users| format!("{} since the cutover", written(users, credits))));
        line("approvals", self.approvals.clone());
        line("presence", self.presence.clone());
        line("starts", self.starts_at.map(|t| format!("{t:.0} at the earliest")));
        line("attempt", self.attempt.clone());
        line("plan", self.digest.clone());
        line("window", self.expected_window.as_ref().map(ExpectedWindow::summary));
        line("now", Some(self.message.clone()));
        line("next", self.next.clone());
        let mut part = |header: &[&str], rows: Vec<Vec<String>>| {
            if !rows.is_empty() {
                let _ = write!(text, "\n\n{}", table(header, rows));
            }
        };
        part(
            &["STEP", "STATE", "TOOK", "EVIDENCE"],
            self.steps
                .iter()
                .map(|s| vec![s.name.clone(), s.state_text(), seconds(s.took_seconds.max(0.0)), s.evidence.clone()])
                .collect(),
        );
        part(
            &["CONDITION", "STATUS", "FOR", "REASON", "MESSAGE"],
            self.conditions
                .iter()
                .map(|condition| {
                    let since = seconds(condition.since_seconds.max(0.0));
                    vec![
                        condition.kind.clone(),
                        condition.status.clone(),
                        since,
                        condition.reason.clone(),
                        condition.message.clone(),
                    ]
                })
                .collect(),
        );
        part(
            &["PROBLEM", "FOR", "MESSAGE"],
            self.problems
                .iter()
                .map(|p| vec![p.reason.clone(), seconds(p.since_seconds.max(0.0)), p.message.clone()])
                .collect(),
        );
        part(
            &["CHECK", "OUTCOME", "MEASURED", "BREACHED", "MESSAGE"],
            self.checks
                .iter()
                .map(|check| {
                    let breached = if check.breached { "yes" } else { "no" };
                    vec![
                        check.name.clone(),
                        check.outcome.to_string(),
                        check.measured.to_string(),
                        breached.to_owned(),
                        check.message.clone(),
                    ]
                })
                .collect(),
        );
        part(&StatementEvidence::COLUMNS, self.statements.iter().map(StatementEvidence::row).collect());
        part(
            &["NOTICE", "AT", "STATE", "DELIVERED", "FAILED"],
            self.notices
                .iter()
                .map(|notice| {
                    vec![
                        notice.occasion.clone(),
                        format!("{:.0}", notice.at),
                        notice.state.to_string(),
                        notice.delivered.join(", "),
                        notice.failed.join(", "),
                    ]
                })
                .collect(),
        );
        text
    }
}

/// State of the migration in one line.
pub(crate) fn current_state(m: &CreditMigration) -> String {
    let status = m.status.clone().unwrap_or_default();
    let phase = status.phase.map_or_else(|| "not started".into(), |p| p.to_string());
    let writes = status.writes.map_or_else(String::new, |w| format!(", writes {w}"));
    let message = status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.message.clone()).unwrap_or_default();
    let step = status.progress.map_or_else(String::new, |p| format!(" ({p})"));
    let message = if message.is_empty() { message } else { format!(": {message}") };
    format!("{}: {phase}{step}{writes}{message}", m.name_any())
}

/// One line per migration.
fn overview(views: &[View]) -> String {
    table(
        &["NAME", "PHASE", "STEP", "APPROVALS", "PRESENT", "WRITES", "NOW"],
        views.iter().map(|view| {
            vec![
                view.name.clone(),
                view.phase_text(),
                view.progress.clone(),
                view.approvals.clone().unwrap_or_default(),
                view.presence.clone().unwrap_or_default(),
                view.writes.map(|w| w.to_string()).unwrap_or_default(),
                view.message.clone(),
            ]
        }),
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::{ExpectedRollout, Plan, fixtures::spec};

    pub(crate) fn time(text: &str) -> Time {
        text.parse().unwrap()
    }

    /// A migration that waits for approval, with a finished step, a check and a notice.
    pub(crate) fn waiting() -> CreditMigration {
        let mut m = CreditMigration::new("m", spec());
        m.metadata.namespace = Some("shop".into());
        m.metadata.uid = Some("1".into());
        m.status = Some(
            serde_json::from_value(json!({
                "phase": "AwaitingApproval", "step": "Approve", "progress": "9/20 Approve", "approvals": "1/2",
                "writes": "Open",
                "schedule": {"startsAt": "2030-01-01T03:00:00Z", "presence": "0/2"},
                "steps": [
                    {"name": "Preflight", "state": "Succeeded", "attempt": 1, "startedAt": "2030-01-01T00:00:00Z",
                     "finishedAt": "2030-01-01T00:01:30Z", "message": "12 of 12\nas they should be"},
                    {"name": "Approve", "state": "Running", "attempt": 1, "startedAt": "2030-01-01T00:10:00Z",
                     "reason": "AwaitingApproval"},
                ],
                "conditions": [{"type": "Ready", "status": "False", "reason": "AwaitingApproval",
                    "message": "1/2 for sha256:9c; next: kubectl creditmigration approve m",
                    "lastTransitionTime": "2030-01-01T00:10:00Z"}],
                "problems": [{"reason": "PodNotStarted", "subject": "m-notify-1", "since": "2030-01-01T00:11:50Z",
                    "reported": true, "message": "the pod of Job m-notify-1 does not start: FailedCreate"}],
                "checks": [{"name": "errors", "outcome": "Pass", "failed": 0, "measured": 3, "breached": false,
                    "message": "0 <= 0", "at": "2030-01-01T00:10:00Z"}],
                "notices": [{"state": "Pending", "attempt": 1,
                    "notice": {"id": "1", "occasion": "Planned", "at": "2030-01-01T00:00:00Z", "message": "x",
                        "phase": "Preparing"},
                    "deliveries": [
                        {"channel": "team", "state": "Delivered", "message": "200", "at": "2030-01-01T00:00:01Z"},
                        {"channel": "support", "state": "Failed", "message": "503", "at": "2030-01-01T00:00:01Z"},
                    ]}],
            }))
            .unwrap(),
        );
        m
    }

    #[test]
    fn one_screen_has_all_parts() {
        let view = View::of(&waiting(), time("2030-01-01T00:12:00Z"));
        let screen = view.screen();
        for part in [
            "shop/m: AwaitingApproval",
            "step:      9/20 Approve",
            "approvals: 1/2",
            "presence:  0/2",
            "starts:    2030-01-01T03:00:00Z at the earliest",
            "next:      kubectl creditmigration approve m",
            "Preflight  Succeeded  1m30s  12 of 12 as they should be",
            "Approve    Running    2m     AwaitingApproval",
            "errors  Pass     3         no        0 <= 0",
            "PodNotStarted  10s  the pod of Job m-notify-1 does not start: FailedCreate",
            "Planned  2030-01-01T00:00:00Z  Pending  team       support (503)",
        ] {
            assert!(screen.contains(part), "{part}:\n{screen}");
        }
        assert!(!view.failed());
    }

    #[test]
    fn the_expected_window_is_shown_with_its_parts() {
        let mut m = waiting();
        let now = time("2030-01-01T00:12:00Z");
        assert!(!View::of(&m, now).screen().contains("window:"), "nothing is measured yet");
        let rollouts = vec![ExpectedRollout::new("shop", 4, 1, 10, 5)];
        let expected_window = Some(ExpectedWindow::new(20.2, 2.5, rollouts));
        m.status.as_mut().unwrap().plan = Some(Plan { expected_window, ..Plan::default() });
        let screen = View::of(&m, now).screen();
        let line = "\n  window:    66 s: SQL 21 s, then the longest of comparison 3 s and rollout of shop 45 s (4 \
                    pods, 1 at once, 10 s each until available, up to 5 s to end)\n";
        assert!(screen.contains(line), "{screen}");
    }

    #[test]
    fn a_pod_that_does_not_start_is_shown_with_its_cause_and_the_next_command() {
        let text = "the pod of Job m-rehearse-1 does not start: FailedCreate: must specify limits.cpu; next: \
                    kubectl -n shop describe job m-rehearse-1; kubectl -n shop describe pods -l job-name=m-rehearse-1";
        let mut m = waiting();
        let status = m.status.as_mut().unwrap();
        (status.problems[0].subject, status.problems[0].message) = (Some("m-rehearse-1".into()), text.into());
        (status.conditions[0].reason, status.conditions[0].message) = ("PodNotStarted".into(), text.into());
        let screen = View::of(&m, time("2030-01-01T00:12:00Z")).screen();
        for part in [
            &format!("\n  now:       {text}\n"),
            "\n  next:      kubectl -n shop describe job m-rehearse-1; kubectl -n shop describe pods -l job-name=",
            &format!("Ready      False   2m   PodNotStarted  {text}\n"),
            &format!("\nPodNotStarted  10s  {text}\n"),
        ] {
            assert!(screen.contains(part), "{part}:\n{screen}");
        }
    }

    #[test]
    fn only_blocked_writes_have_a_deadline() {
        let mut m = waiting();
        let status = m.status.as_mut().unwrap();
        let deadline = Some(time("2030-01-01T03:05:00Z"));
        status.window = Some(crate::api::WindowStatus { deadline, ..Default::default() });
        for (writes, line) in [
            (Writes::Open, "writes:    Open\n"),
            (Writes::Blocked, "writes:    Blocked, until 2030-01-01T03:05:00Z at the latest\n"),
        ] {
            m.status.as_mut().unwrap().writes = Some(writes);
            let screen = View::of(&m, time("2030-01-01T03:01:00Z")).screen();
            assert!(screen.contains(line), "{line}:\n{screen}");
        }
    }

    #[test]
    fn a_failure_is_reported() {
        for (phase, failed) in [(Phase::Failed, true), (Phase::RollbackFailed, true), (Phase::RolledBack, false)] {
            let mut m = waiting();
            m.status.as_mut().unwrap().phase = Some(phase);
            assert_eq!(View::of(&m, time("2030-01-01T00:12:00Z")).failed(), failed, "{phase:?}");
        }
    }

    #[test]
    fn a_migration_that_was_not_observed_is_reported() {
        let m = CreditMigration::new("m", spec());
        let screen = View::of(&m, time("2030-01-01T00:12:00Z")).screen();
        assert!(screen.contains("not started") && screen.contains("has not observed it"), "{screen}");
    }
}
