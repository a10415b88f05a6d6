//! Notices: made when something happens, sent by runs of their own, retried, and given up with an Event. Only the steps
//! whose purpose is a notice wait for one.
//!
//! A notice is persisted before its run is made, and keeps its id when it is sent again: it is delivered at least once,
//! and a receiver can drop duplicates.

use std::collections::BTreeSet;

use super::{RunOutcome, Transition};
use crate::{
    api::{
        Delivery, DeliveryState, Notice, NoticeState, NoticeStatus, Occasion, Phase, ReadyReason, Reason, Task, Time,
    },
    shared::time::{saturating_add, seconds, to_signed},
};

/// Attempts after which a channel is given up: about an hour with [`RETRY_SECONDS`].
const MAX_ATTEMPTS: u32 = 16;
/// Longest wait between two attempts.
const RETRY_SECONDS: i64 = 300;
/// Notices that are kept in the status, those still to be sent besides.
const HISTORY_LENGTH: usize = 16;
/// Of those that ask for a person, besides: one for each cause of each of 16 workloads, and those of the switch itself.
const URGENT_LENGTH: usize = 40;

impl Transition<'_> {
    /// Names of the channels that get notices of this kind.
    pub(super) fn channels_for(&self, occasion: Occasion) -> BTreeSet<&str> {
        let audiences = occasion.audiences();
        let channels = &self.spec.notifications.channels;
        channels.iter().filter(|c| c.audiences.iter().any(|a| audiences.contains(a))).map(|c| c.name.as_str()).collect()
    }

    /// Id of the notice of this kind and key; `None` if there is no channel to send it to.
    pub(super) fn notice_id(&self, occasion: Occasion, key: &str) -> Option<String> {
        (!self.channels_for(occasion).is_empty()).then(|| format!("{}.{key}", self.observed.uid))
    }

    /// Makes a notice, once for each `key`, if there is a channel to send it to.
    pub(super) fn notify(&mut self, occasion: Occasion, key: &str, message: &str) {
        let Some(id) = self.notice_id(occasion, key) else { return };
        let report = match occasion {
            Occasion::DayReport => self.status.day_report.as_ref(),
            Occasion::WeekReport | Occasion::DecisionDue => self.status.week_report.as_ref(),
            _ => None,
        };
        let notice = Notice {
            id,
            occasion,
            at: self.now,
            message: message.into(),
            phase: self.phase(),
            starts_at: self.status.schedule.as_ref().and_then(|s| s.starts_at).or(self.spec.schedule.start_at),
            expected_window_seconds: self.status.plan.as_ref().and_then(|p| Some(p.expected_window.as_ref()?.seconds)),
            report_object: report.map(|r| r.object.clone()),
            delivered: vec![],
        };
        self.notice_queue().enqueue(notice);
    }

    /// Makes a notice now, and another one after each `followUps.reminderInterval` since `since`, as long as this is
    /// called.
    pub(super) fn remind(&mut self, occasion: Occasion, key: &str, since: Time, message: &str) {
        if self.channels_for(occasion).is_empty() {
            return;
        }
        let interval = to_signed(self.spec.follow_ups.reminder_interval).as_secs().max(1);
        let number = self.now.duration_since(since).as_secs().max(0) / interval;
        self.wake_at(saturating_add(since, seconds((number + 1).saturating_mul(interval))));
        self.notify(occasion, &format!("{key}.{number}"), message);
    }

    /// The planned start does not take place. Those who may have got its maintenance notice get another one, once.
    pub(super) fn cancel_maintenance(&mut self, why: &str) {
        let Some(schedule) = &mut self.status.schedule else { return };
        let (Some(id), Some(starts_at)) = (schedule.notice.take(), schedule.starts_at) else { return };
        if self.notice(&id).is_some_and(NoticeStatus::may_have_reached) {
            let text = format!("the maintenance of {} at {starts_at:.0} is cancelled: {why}", self.observed.name);
            self.notify(Occasion::MaintenanceCancelled, &notice_key("maintenance-cancelled", starts_at), &text);
        }
    }

    fn notice_queue(&mut self) -> NoticeQueue<'_> {
        NoticeQueue { notices: &mut self.status.notices, runs: &mut self.status.notice_runs }
    }

    /// The notice of an id, if it was made.
    pub(super) fn notice(&self, id: &str) -> Option<&NoticeStatus> {
        self.status.notices.iter().find(|n| n.notice.id == id)
    }

    /// Takes in what runs of task Notify have reported, and plans repetitions.
    pub(super) fn advance_notices(&mut self) {
        let pending = self.status.notices.iter().filter(|n| n.state == NoticeState::Pending);
        let ids: Vec<String> = pending.map(|n| n.notice.id.clone()).collect();
        for id in ids {
            match self.next_of_notice(&id) {
                Next::Wait => {}
                Next::WaitUntil(at) => self.wake_at(at),
                Next::GiveUp => self.notice_queue().finish(&id, NoticeState::Undelivered),
                Next::StartAttempt => self.notice_queue().start_attempt(&id),
                Next::Record { deliveries, answer } => {
                    self.notice_queue().record_deliveries(&id, deliveries);
                    self.judge_attempt(&id, &answer);
                }
            }
        }
    }

    /// What is to be done about a pending notice.
    fn next_of_notice(&self, id: &str) -> Next {
        let Some(n) = self.notice(id) else { return Next::Wait };
        // "Maintenance starts" must not be sent after it was cancelled, or has ended.
        if n.notice.occasion == Occasion::MaintenanceStarts && !self.is_awaited(id) {
            return Next::GiveUp;
        }
        match n.retry_at {
            Some(at) if self.now < at => return Next::WaitUntil(at),
            Some(_) => return Next::StartAttempt,
            None => {}
        }
        let answer = match self.observed.outcome(Task::Notify, n.attempt) {
            RunOutcome::Pending => return Next::Wait,
            RunOutcome::Succeeded(_) => String::new(),
            RunOutcome::Failed(_, message) => message.to_string(),
        };
        let run = self.observed.run(Task::Notify, n.attempt).and_then(|r| r.run.status.as_ref());
        let reported = run.filter(|s| s.phase.has_ended());
        Next::Record { deliveries: reported.map(|s| s.deliveries.clone()).unwrap_or_default(), answer }
    }

    /// An attempt has ended: every channel took the notice, or it is sent again, or given up.
    fn judge_attempt(&mut self, id: &str, answer: &str) {
        let Some(n) = self.notice(id) else { return };
        let (occasion, failures) = (n.notice.occasion, n.failures + 1);
        let channels = self.channels_for(occasion);
        let open: Vec<&str> = channels.iter().copied().filter(|c| !n.notice.delivered.iter().any(|d| d == c)).collect();
        let all = channels.len();
        if open.is_empty() {
            self.notice_queue().finish(id, NoticeState::Delivered);
            return self.event(
                false,
                ReadyReason::NoticeDelivered,
                format!("{occasion}: {all} of {all} channels took it"),
            );
        }
        // The start waits for its maintenance notice, which is therefore never given up before one channel has taken
        // it.
        let needed = occasion == Occasion::MaintenanceStarts && !n.reached();
        let text =
            format!("{occasion} was not taken by {} of {all} channels ({}): {answer}", open.len(), open.join(", "));
        self.notice_queue().record_failure(id);
        if failures >= MAX_ATTEMPTS && !needed {
            self.notice_queue().finish(id, NoticeState::Undelivered);
            return self.event(
                true,
                ReadyReason::NoticeGivenUp,
                format!("{text}; tried {failures} times; next: notify them yourself"),
            );
        }
        let at = self.now + retry_delay(failures);
        self.notice_queue().retry_at(id, at);
        self.wake_at(at);
        if failures == 1 {
            self.event(true, Reason::NoticeUndelivered, format!("{text}; it is retried, nothing waits for it"));
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

/// What is to be done about a pending notice.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Its run is under way.
    Wait,
    /// Its next attempt is due then.
    WaitUntil(Time),
    /// It is out of date.
    GiveUp,
    /// Its next attempt is due.
    StartAttempt,
    /// Its run has ended.
    Record {
        /// What each channel answered.
        deliveries: Vec<Delivery>,
        /// Why the run failed; empty if it did not.
        answer: String,
    },
}

/// The notices of a status, oldest first. Every change of the list is one of these functions.
struct NoticeQueue<'a> {
    notices: &'a mut Vec<NoticeStatus>,
    /// Number of the last run of task Notify.
    runs: &'a mut u32,
}

impl NoticeQueue<'_> {
    /// Appends a notice to be sent, unless its id is there.
    fn enqueue(&mut self, notice: Notice) {
        if self.notices.iter().any(|n| n.notice.id == notice.id) {
            return;
        }
        *self.runs += 1;
        self.notices.push(NoticeStatus {
            notice,
            state: NoticeState::Pending,
            attempt: *self.runs,
            failures: 0,
            retry_at: None,
            deliveries: vec![],
        });
        self.prune(HISTORY_LENGTH);
    }

    /// Removes the oldest that are not pending until `keep` are left: a status must not grow without end. The last ones
    /// of the plan and of the maintenance stay: otherwise daily reminders would remove them from the record. Those that
    /// ask for a person are counted apart: one whose cause lasts would be sent again and again if it were not there.
    fn prune(&mut self, keep: usize) {
        let last = |occasion| self.notices.iter().rfind(|n| n.notice.occasion == occasion).map(|n| n.notice.id.clone());
        let stay = [last(Occasion::Planned), last(Occasion::MaintenanceStarts)];
        let is_urgent = |status: &NoticeStatus| status.notice.occasion == Occasion::ManualInterventionRequired;
        let urgent = self.notices.iter().filter(|status| is_urgent(status)).count();
        let [mut others_surplus, mut urgent_surplus] =
            [(self.notices.len() - urgent).saturating_sub(keep), urgent.saturating_sub(URGENT_LENGTH)];
        self.notices.retain(|status| {
            let last = stay.iter().flatten().any(|id| *id == status.notice.id);
            let surplus = if is_urgent(status) { &mut urgent_surplus } else { &mut others_surplus };
            let stays = status.state == NoticeState::Pending || last;
            let goes = *surplus > 0 && !stays;
            *surplus -= usize::from(goes);
            !goes
        });
    }

    fn change(&mut self, id: &str, change: impl FnOnce(&mut NoticeStatus)) {
        if let Some(n) = self.notices.iter_mut().find(|n| n.notice.id == id) {
            change(n);
        }
    }

    /// Ends a notice.
    fn finish(&mut self, id: &str, state: NoticeState) {
        self.change(id, |n| (n.state, n.retry_at) = (state, None));
    }

    /// Gives a notice a run of a new number.
    fn start_attempt(&mut self, id: &str) {
        *self.runs += 1;
        let attempt = *self.runs;
        self.change(id, |n| (n.retry_at, n.attempt) = (None, attempt));
    }

    /// Records each channel's last answer.
    fn record_deliveries(&mut self, id: &str, deliveries: Vec<Delivery>) {
        self.change(id, |status| {
            for delivery in deliveries {
                status.deliveries.retain(|earlier| earlier.channel != delivery.channel);
                status.deliveries.push(delivery);
            }
            let delivered = status.deliveries.iter().filter(|d| d.state == DeliveryState::Delivered);
            status.notice.delivered = delivered.map(|d| d.channel.clone()).collect();
        });
    }

    /// Counts an attempt that did not reach every channel.
    fn record_failure(&mut self, id: &str) {
        self.change(id, |n| n.failures += 1);
    }

    /// Plans the next attempt.
    fn retry_at(&mut self, id: &str, at: Time) {
        self.change(id, |n| n.retry_at = Some(at));
    }
}

/// 2, 4, 8 ... seconds.
fn retry_delay(failures: u32) -> jiff::SignedDuration {
    seconds((1i64 << failures.min(10)).min(RETRY_SECONDS))
}

/// Key of a notice that comes about once at a time.
pub(super) fn notice_key(what: &str, time: Time) -> String {
    format!("{what}.{}", time.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notices and the number of the last run; each test makes its own.
    #[derive(Default)]
    struct Status {
        notices: Vec<NoticeStatus>,
        runs: u32,
    }

    impl Status {
        fn queue(&mut self) -> NoticeQueue<'_> {
            NoticeQueue { notices: &mut self.notices, runs: &mut self.runs }
        }

        fn enqueue(&mut self, id: &str, occasion: Occasion) {
            self.queue().enqueue(Notice {
                id: id.into(),
                occasion,
                at: Time::UNIX_EPOCH,
                message: String::new(),
                phase: Phase::Preparing,
                starts_at: None,
                expected_window_seconds: None,
                report_object: None,
                delivered: vec![],
            });
        }

        fn ids(&self) -> Vec<&str> {
            self.notices.iter().map(|n| n.notice.id.as_str()).collect()
        }
    }

    #[test]
    fn an_id_is_enqueued_once() {
        let mut status = Status::default();
        status.enqueue("a", Occasion::Planned);
        status.enqueue("a", Occasion::Planned);
        status.enqueue("b", Occasion::Finished);
        assert_eq!((status.ids(), status.runs), (vec!["a", "b"], 2));
        assert_eq!(status.notices[1].attempt, 2);
    }

    #[test]
    fn the_oldest_that_have_ended_are_pruned() {
        let mut status = Status::default();
        status.enqueue("planned", Occasion::Planned);
        for id in ["one", "two", "three"] {
            status.enqueue(id, Occasion::DecisionDue);
        }
        for id in ["planned", "one", "three"] {
            status.queue().finish(id, NoticeState::Delivered);
        }
        status.queue().prune(3);
        assert_eq!(status.ids(), ["planned", "two", "three"], "the plan stays");
        status.queue().prune(0);
        assert_eq!(status.ids(), ["planned", "two"], "what is pending stays");
    }

    /// Each of 16 workloads fails in a rollback, and so does the write of the flag.
    #[test]
    fn what_asks_for_a_person_is_not_pruned_while_its_cause_lasts() {
        let mut status = Status::default();
        let causes: Vec<String> = (0..=16).map(|number| format!("cause-{number}")).collect();
        for _ in 0..2 {
            for cause in &causes {
                status.enqueue(cause, Occasion::ManualInterventionRequired);
                status.queue().finish(cause, NoticeState::Delivered);
            }
        }
        assert_eq!(
            (status.ids(), status.runs),
            (causes.iter().map(String::as_str).collect(), 17),
            "none is sent twice"
        );
        for number in 0..100 {
            let id = number.to_string();
            status.enqueue(&id, Occasion::ManualInterventionRequired);
            status.queue().finish(&id, NoticeState::Delivered);
        }
        assert_eq!(status.ids().len(), URGENT_LENGTH);
    }

    #[test]
    fn an_attempt_has_a_number_of_its_own_and_keeps_what_was_delivered() {
        let mut status = Status::default();
        status.enqueue("a", Occasion::Planned);
        let answer = |channel: &str, state| Delivery {
            channel: channel.into(),
            state,
            message: String::new(),
            at: Time::UNIX_EPOCH,
        };
        let answers = vec![answer("chat", DeliveryState::Delivered), answer("mail", DeliveryState::Failed)];
        status.queue().record_deliveries("a", answers);
        status.queue().record_failure("a");
        status.queue().retry_at("a", Time::UNIX_EPOCH);
        status.queue().start_attempt("a");
        status.queue().record_deliveries("a", vec![answer("mail", DeliveryState::Delivered)]);
        let n = &status.notices[0];
        assert_eq!((n.attempt, n.failures, n.retry_at), (2, 1, None));
        assert_eq!(n.notice.delivered, ["chat", "mail"]);
    }
}
