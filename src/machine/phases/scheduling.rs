//! The step Schedule: an hour before the start (`schedule.leadTime`) the maintenance notice goes out; at the start
//! people are present, and the backup is recent. Otherwise it does not start, reports why, and waits for the next
//! allowed time.
//!
//! ```text
//!   approved        startsAt - leadTime         startsAt                endsAt
//!      |  Scheduled       |  notice, Ready         |  starts as soon as    |  missed: the next hours
//!      +------------------+------------------------+---- all is so --------+-----------------------> time
//! ```

use super::Flow;
use crate::{
    api::{DecisionKind, NoticeState, Occasion, Phase, ReadyReason, ScheduleStatus, Step, StepState, Time},
    machine::{Transition, gates::Violation, next_hours, notices::notice_key},
    shared::{
        message::Message,
        time::{saturating_add, seconds, to_signed},
    },
};

impl Transition<'_> {
    /// Distinct people whose `Ready` on this digest is recent enough, and when the first of these expires.
    pub(crate) fn presence(&self, digest: &str) -> (Vec<String>, Option<Time>) {
        let within = to_signed(self.spec.schedule.presence.within);
        let mut last: std::collections::BTreeMap<&str, Time> = std::collections::BTreeMap::new();
        for d in self.decisions(DecisionKind::Ready, self.status.approvals_after) {
            if d.digest.as_deref() == Some(digest) && self.now < saturating_add(d.at, within) {
                let at = last.entry(d.by.as_str()).or_insert(d.at);
                *at = d.at.max(*at);
            }
        }
        let runs_out = last.values().min().map(|t| *t + within);
        (last.into_keys().map(str::to_owned).collect(), runs_out)
    }

    /// Keeps `status.schedule` up to date with who is present.
    pub(crate) fn record_presence(&mut self, digest: &str) {
        let (present, runs_out) = self.presence(digest);
        let needed = self.presence_required();
        let schedule = self.status.schedule.get_or_insert_default();
        schedule.presence = Some(format!("{}/{needed}", present.len()));
        schedule.present = present;
        if let Some(at) = runs_out {
            self.wake_at(at);
        }
    }

    fn presence_required(&self) -> usize {
        self.spec.schedule.presence.required.max(2) as usize
    }

    /// What allowed the start and does not apply any more: its hours, the people, the age of the backup.
    pub(crate) fn not_scheduled(&self, digest: &str) -> Option<String> {
        let end = self.status.schedule.as_ref().and_then(|schedule| schedule.ends_at);
        if let Some(end) = end.filter(|end| self.now >= *end) {
            return Some(format!("the hours until {end:.0} have passed"));
        }
        let (present, needed) = (self.presence(digest).0.len(), self.presence_required());
        if present < needed {
            return Some(format!(
                "{present} of {needed} people are present, by a Ready of the last {}",
                self.spec.schedule.presence.within
            ));
        }
        self.outdated_backup().map(|taken| {
            let limit = self.spec.schedule.backup_max_age;
            format!("the backup is of {taken:.0}, older than {limit} (spec.schedule.backupMaxAge)")
        })
    }

    /// When a backup was taken that is too old by now.
    fn outdated_backup(&self) -> Option<Time> {
        let limit = to_signed(self.spec.schedule.backup_max_age);
        let taken = self.status.backup.as_ref()?.finished_at;
        (self.now.duration_since(taken) > limit).then_some(taken)
    }

    /// Step Schedule: waits for the start, the maintenance notice and the people, then starts the window. With a
    /// violation, which is reported already, people are asked all the same; no start is planned or announced, and no
    /// window started.
    pub(crate) fn advance_scheduling(&mut self, digest: &str, violation: Option<&Violation>) -> Flow {
        self.record_presence(digest);
        if violation.is_none() {
            self.plan_start();
        }
        let Some(starts_at) = self.planned_start() else { return Flow::Settled };
        let lead = starts_at - self.lead_time();
        if self.now < lead {
            self.wake_at(lead);
            if violation.is_none() {
                let text = format!(
                    "starts at {starts_at:.0}; people say that they are present in the hour before: {}",
                    self.ready_command()
                );
                self.set_ready(ReadyReason::Scheduled, text);
            }
            return Flow::Settled;
        }
        if let Some(taken) = self.outdated_backup() {
            // It is taken again, with all that depends on it.
            self.restart(&format!(
                "the backup is of {taken:.0}, older than {} (spec.schedule.backupMaxAge)",
                self.spec.schedule.backup_max_age
            ));
            return Flow::Continue;
        }
        let message = format!("maintenance of {} starts at {starts_at:.0}", self.observed.name);
        let key = notice_key("maintenance", starts_at);
        if violation.is_none() {
            self.notify(Occasion::MaintenanceStarts, &key, &message);
        }
        let id = self.notice_id(Occasion::MaintenanceStarts, &key);
        let announced = id.clone().filter(|id| self.notice(id).is_some());
        let schedule = self.status.schedule.get_or_insert_default();
        schedule.notice.clone_from(&announced);
        if violation.is_some() && id.is_some() && announced.is_none() {
            // Those who get the notice have the whole lead time: the start is planned again.
            (schedule.starts_at, schedule.ends_at) = (None, None);
            return Flow::Settled;
        }
        self.request_presence(starts_at);
        let due = self.next_attempt().map(|(at, _)| at).unwrap_or(starts_at).max(starts_at);
        if let Some(violation) = violation {
            match self.now < due {
                true => self.wake_at(due),
                false => self.report_waiting_window(violation),
            }
            return Flow::Settled;
        }
        if let Some((at, text)) = self.next_attempt() {
            self.wake_at(at);
            self.set_ready(ReadyReason::Scheduled, text);
            return Flow::Settled;
        }
        if self.now < starts_at {
            self.wake_at(starts_at);
            let text = format!("starts at {starts_at:.0}; {}", self.presence_text());
            self.set_ready(ReadyReason::Scheduled, text);
            return Flow::Settled;
        }
        // One channel that took it is enough: the others delay nothing, and are listed in status.notices.
        if let Some(n) = announced.and_then(|id| self.notice(&id)).filter(|n| !n.reached()) {
            let next = match n.state {
                NoticeState::Pending if n.failures == 0 => "it is being sent".to_owned(),
                _ => format!(
                    "tried {} times, again until one takes it; next: see status.notices, and fix a channel",
                    n.failures
                ),
            };
            let text = format!("no channel has taken the maintenance notice yet; {next}");
            self.set_ready(ReadyReason::NoticePending, text);
            return Flow::Settled;
        }
        if self.status.schedule.as_ref().map_or(0, |s| s.present.len()) < self.presence_required() {
            let text = self.presence_text();
            self.set_ready(ReadyReason::PresencePending, text);
            return Flow::Settled;
        }
        self.start_window();
        Flow::Continue
    }

    /// When the window's next attempt starts, and what is said until then; `None` if there is none, or it is due.
    fn next_attempt(&self) -> Option<(Time, String)> {
        let schedule = self.status.schedule.as_ref()?;
        let (at, number) = (schedule.retry_at.filter(|at| self.now < *at)?, schedule.failed_windows + 1);
        let failed = self.status.steps.iter().filter(|s| s.state == StepState::Failed && !s.superseded);
        let why = failed.max_by_key(|s| s.finished_at).and_then(|s| s.message.as_deref()).unwrap_or_default();
        let text = format!(
            "attempt {number} of {} starts at {at:.0}; the last one: {}; {}",
            self.spec.window.attempts,
            Message::parse(why).text,
            self.presence_text()
        );
        Some((at, text))
    }

    /// The start has come, and something is in the way: people are notified of each cause, once for each start.
    pub(crate) fn report_waiting_window(&mut self, violation: &Violation) {
        let text = format!("the window waits, writes are open: {}", violation.message);
        let start = self.planned_start().unwrap_or(self.now);
        let key = notice_key(&format!("window-waits.{}", violation.reason.as_str()), start);
        self.notify(Occasion::ManualInterventionRequired, &key, &text);
        self.report_lasting(violation.reason, text);
    }

    fn start_window(&mut self) {
        let evidence = self.start_evidence();
        self.succeed_step(Step::Schedule, evidence);
        self.enter(Phase::Executing);
        self.status.window = None;
        self.status.safeguards = None;
        // Lost pods of an earlier window do not count against this one.
        self.ensure_step(Step::BlockWrites).failures = 0;
        self.start_step(Step::BlockWrites);
    }

    fn planned_start(&self) -> Option<Time> {
        self.status.schedule.as_ref()?.starts_at
    }

    /// Drops a planned start whose hours have passed.
    pub(crate) fn report_missed_start(&mut self) {
        let Some(end) = self.status.schedule.as_ref().and_then(|s| s.ends_at) else { return };
        if self.now < end {
            return self.wake_at(end);
        }
        let why = Message::parse(self.message.as_deref().unwrap_or_default()).text;
        let text = format!("the hours until {end:.0} have passed: {why}; it waits for the next allowed time");
        self.cancel_maintenance(&text);
        self.event(true, ReadyReason::StartMissed, text);
        let schedule = self.status.schedule.get_or_insert_default();
        *schedule = ScheduleStatus {
            present: std::mem::take(&mut schedule.present),
            presence: schedule.presence.take(),
            ..Default::default()
        };
    }

    /// Asks for people as long as too few are present: in the lead time, at the start, and again after it.
    fn request_presence(&mut self, starts_at: Time) {
        if self.status.schedule.as_ref().map_or(0, |s| s.present.len()) >= self.presence_required() {
            return;
        }
        let from = starts_at - to_signed(self.spec.schedule.presence.within);
        let until = self.status.schedule.as_ref().and_then(|s| s.ends_at);
        let until = until.map(|end| format!(", and until {end:.0} at the latest")).unwrap_or_default();
        let text = format!(
            "the window of {} starts at {starts_at:.0} if {} people confirm by Ready that they are present, after \
             {from:.0}{until}; {}",
            self.observed.name,
            self.presence_required(),
            self.presence_text()
        );
        if self.now < starts_at {
            self.notify(Occasion::PresenceDue, &notice_key("presence", starts_at), &text);
        } else {
            self.remind(Occasion::PresenceDue, &notice_key("presence-missing", starts_at), starts_at, &text);
        }
    }

    /// Plans a start when there is none.
    fn plan_start(&mut self) {
        if self.planned_start().is_some() {
            return;
        }
        // Those who get the notice have the lead time to prepare.
        let earliest = self.now + self.lead_time();
        // Hours that cannot be computed are a violation: see `gates::schedule`.
        let next = next_hours(&self.spec.schedule, earliest);
        let end = next.and_then(|(_, end)| end);
        let earlier = self.status.schedule.take().unwrap_or_default();
        self.status.schedule =
            Some(ScheduleStatus { starts_at: next.map(|(start, _)| start), ends_at: end, notice: None, ..earlier });
        if let Some(end) = end {
            self.wake_at(end);
        }
    }

    /// Time between notice and start; none when there is no channel.
    fn lead_time(&self) -> jiff::SignedDuration {
        match self.channels_for(Occasion::MaintenanceStarts).is_empty() {
            true => seconds(0),
            false => to_signed(self.spec.schedule.lead_time),
        }
    }

    fn ready_command(&self) -> String {
        self.observed.plugin("ready", "")
    }

    fn presence_text(&self) -> String {
        let schedule = self.status.schedule.clone().unwrap_or_default();
        let who =
            if schedule.present.is_empty() { String::new() } else { format!(" ({})", schedule.present.join(", ")) };
        let (present, needed) = (schedule.present.len(), self.presence_required());
        let next = if present < needed { format!("; next: {}", self.ready_command()) } else { String::new() };
        format!(
            "{present} of {needed} people present{who}, by a Ready of the last {}{next}",
            self.spec.schedule.presence.within
        )
    }

    /// What Schedule leaves as evidence.
    fn start_evidence(&self) -> String {
        let schedule = self.status.schedule.clone().unwrap_or_default();
        let notice = match schedule.notice.as_deref().and_then(|id| self.notice(id)) {
            Some(n) => format!("maintenance notice taken by {}", n.notice.delivered.join(", ")),
            None => "no channel for a maintenance notice (spec.notifications.channels)".to_owned(),
        };
        format!("present: {}; {notice}", schedule.present.join(", "))
    }
}
