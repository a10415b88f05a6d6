//! Notices: made when something happens, sent by runs of their own, tried again, and given up with a word. Nothing waits for
//! them but the steps that are there to tell somebody.
//!
//! A notice is persisted before its run is made and keeps its id in each repetition: it is told at least once, and a receiver can
//! drop what it has seen.

use std::collections::BTreeSet;

use super::{RunOutcome, Transition};
use crate::{
    api::{DeliveryState, Notice, NoticeState, NoticeStatus, Occasion, Phase, RunPhase, Task, Time},
    shared::time::seconds,
};

/// Tries after which a channel is given up: about an hour with [`RETRY_SECONDS`].
const MAX_ATTEMPTS: u32 = 16;
/// Longest wait between two tries.
const RETRY_SECONDS: i64 = 300;
/// Notices that are kept in the status, those still to be sent besides.
const HISTORY_LENGTH: usize = 16;

impl Transition<'_> {
    /// Names of the channels in which an occasion is told.
    pub(super) fn channels_for(&self, occasion: Occasion) -> BTreeSet<&str> {
        let told = occasion.audiences();
        let channels = &self.spec.notifications.channels;
        channels.iter().filter(|c| c.audiences.iter().any(|a| told.contains(a))).map(|c| c.name.as_str()).collect()
    }

    /// Makes a notice, once for each `key`. Gives its id; `None` if there is no channel to tell it in.
    pub(super) fn notify(&mut self, occasion: Occasion, key: &str, message: &str) -> Option<String> {
        if self.channels_for(occasion).is_empty() {
            return None;
        }
        let id = format!("{}.{key}", self.observed.uid);
        if self.status.notices.iter().any(|n| n.notice.id == id) {
            return Some(id);
        }
        self.status.notice_runs += 1;
        let report = match occasion {
            Occasion::DayReport => self.status.day_report.as_ref(),
            Occasion::WeekReport | Occasion::DecisionDue => self.status.week_report.as_ref(),
            _ => None,
        };
        let notice = Notice {
            id: id.clone(),
            occasion,
            at: self.now,
            message: message.into(),
            phase: self.phase(),
            starts_at: self.status.schedule.as_ref().and_then(|s| s.starts_at).or(self.spec.schedule.start_at),
            expected_window_seconds: self.status.rehearsal.as_ref().map(|r| whole_seconds(r.expected_window_seconds)),
            report_object: report.map(|r| r.object.clone()),
            delivered: vec![],
        };
        self.status.notices.push(NoticeStatus {
            notice,
            state: NoticeState::Pending,
            attempt: self.status.notice_runs,
            failures: 0,
            retry_at: None,
            deliveries: vec![],
        });
        // The oldest that are over go: a status must not grow without end. The last that told of the plan and of the maintenance stay: else
        // reminders, one a day, would leave the record without them.
        let last =
            |occasion| self.status.notices.iter().rfind(|n| n.notice.occasion == occasion).map(|n| n.notice.id.clone());
        let stay = [last(Occasion::Planned), last(Occasion::MaintenanceStarts)];
        let mut surplus = self.status.notices.len().saturating_sub(HISTORY_LENGTH);
        self.status.notices.retain(|n| {
            let stays = n.state == NoticeState::Pending || stay.iter().flatten().any(|id| *id == n.notice.id);
            let goes = surplus > 0 && !stays;
            surplus -= usize::from(goes);
            !goes
        });
        Some(id)
    }

    /// The notice of an id, if it was made.
    pub(super) fn notice(&self, id: &str) -> Option<&NoticeStatus> {
        self.status.notices.iter().find(|n| n.notice.id == id)
    }

    /// Takes in what runs of task Notify have reported, and plans repetitions.
    pub(super) fn advance_notices(&mut self) {
        for i in 0..self.status.notices.len() {
            if self.status.notices[i].state == NoticeState::Pending {
                self.advance_notice(i);
            }
        }
    }

    fn advance_notice(&mut self, i: usize) {
        let now = self.now;
        let notice = &self.status.notices[i].notice;
        // "Maintenance starts" must not be told after it was called off, or is over.
        if notice.occasion == Occasion::MaintenanceStarts && !self.is_awaited(&notice.id) {
            self.status.notices[i].state = NoticeState::Undelivered;
            self.status.notices[i].retry_at = None;
            return;
        }
        if let Some(at) = self.status.notices[i].retry_at {
            if now < at {
                return self.wake_at(at);
            }
            self.status.notice_runs += 1;
            let n = &mut self.status.notices[i];
            (n.retry_at, n.attempt) = (None, self.status.notice_runs);
            return;
        }
        let attempt = self.status.notices[i].attempt;
        let answer = match self.observed.outcome(Task::Notify, attempt) {
            RunOutcome::Pending => return,
            RunOutcome::Succeeded(_) => String::new(),
            RunOutcome::Failed(_, message) => message,
        };
        let run = self.observed.run(Task::Notify, attempt).and_then(|r| r.run.status.as_ref());
        let reported = run.filter(|s| matches!(s.phase, RunPhase::Succeeded | RunPhase::Failed));
        let deliveries = reported.map(|s| s.deliveries.clone()).unwrap_or_default();
        let n = &mut self.status.notices[i];
        for d in deliveries {
            n.deliveries.retain(|known| known.channel != d.channel);
            n.deliveries.push(d);
        }
        let taken = n.deliveries.iter().filter(|d| d.state == DeliveryState::Delivered);
        n.notice.delivered = taken.map(|d| d.channel.clone()).collect();
        let occasion = n.notice.occasion;
        let delivered: BTreeSet<String> = n.notice.delivered.iter().cloned().collect();
        let wanted = self.channels_for(occasion);
        let open: Vec<String> = wanted.iter().filter(|c| !delivered.contains(**c)).map(|c| (*c).to_owned()).collect();
        let all = wanted.len();
        let n = &mut self.status.notices[i];
        if open.is_empty() {
            n.state = NoticeState::Delivered;
            return self.event(false, "NoticeDelivered", format!("{occasion:?}: {all} of {all} channels took it"));
        }
        n.failures += 1;
        let failures = n.failures;
        // Nothing starts without a maintenance notice, so it is never given up while nobody has it and the start waits for it.
        let needed = occasion == Occasion::MaintenanceStarts && !n.reached();
        let text =
            format!("{occasion:?} was not taken by {} of {all} channels ({}): {answer}", open.len(), open.join(", "));
        if failures >= MAX_ATTEMPTS && !needed {
            n.state = NoticeState::Undelivered;
            return self.event(
                true,
                "NoticeGivenUp",
                format!("{text}; tried {failures} times; next: tell them yourself"),
            );
        }
        // 2, 4, 8 ... seconds.
        let at = now + seconds((1i64 << failures.min(10)).min(RETRY_SECONDS));
        n.retry_at = Some(at);
        self.wake_at(at);
        if failures == 1 {
            self.event(true, "NoticeUndelivered", format!("{text}; it is tried again, nothing waits for it"));
        }
    }

    /// A maintenance notice of the start that is planned now.
    fn is_awaited(&self, id: &str) -> bool {
        let planned = self.status.schedule.as_ref().and_then(|s| s.notice.as_deref());
        matches!(self.phase(), Phase::AwaitingApproval | Phase::Executing) && planned == Some(id)
    }

    /// The notice that a run of this number sends.
    pub(super) fn notice_of(&self, attempt: u32) -> Option<&Notice> {
        self.status.notices.iter().find(|n| n.attempt == attempt && n.state == NoticeState::Pending).map(|n| &n.notice)
    }

    /// Numbers of the runs that are to send something now.
    pub(super) fn runs_to_send(&self) -> Vec<u32> {
        let pending = self.status.notices.iter().filter(|n| n.state == NoticeState::Pending && n.retry_at.is_none());
        pending.map(|n| n.attempt).collect()
    }
}

/// Key of a notice that comes about once at a time.
pub(super) fn notice_key(what: &str, time: Time) -> String {
    format!("{what}.{}", time.as_second())
}

/// Whole seconds, rounded up; never negative.
fn whole_seconds(s: f64) -> u64 {
    std::time::Duration::try_from_secs_f64(s.ceil().max(0.0)).map_or(0, |d| d.as_secs())
}
