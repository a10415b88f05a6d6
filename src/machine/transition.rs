//! One call of `decide` at work: what is given, and what is decided so far.

use jiff::SignedDuration;

use super::{Event, Observed, StatusReason};
use crate::{
    api::{CreditMigrationSpec, CreditMigrationStatus, Phase, Problem, ReadyReason, Step, Time},
    shared::time::seconds,
};

/// One call of [`super::decide`] at work.
pub(crate) struct Transition<'a> {
    pub(crate) spec: &'a CreditMigrationSpec,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Time,
    pub(crate) status: CreditMigrationStatus,
    /// Reason of the `Ready` condition.
    pub(crate) reason: Option<StatusReason>,
    /// Message of the `Ready` condition.
    pub(crate) message: Option<String>,
    /// When to decide again although nothing happens.
    pub(crate) wake_at: Option<Time>,
    pub(crate) events: Vec<Event>,
    /// What is wrong now: replaces `status.problems` at the end of the call.
    problems: Vec<Problem>,
}

/// How far the report of a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reported {
    /// It may pass by itself: nothing is reported yet.
    NotYet,
    /// By this call.
    Now,
    /// By an earlier one.
    Before,
}

/// How long an effect is refused until the migration counts as stalled, in seconds.
const STALLED_AFTER_SECONDS: i64 = 30;

/// Type of the condition that sums up.
pub(crate) const READY: &str = "Ready";

impl<'a> Transition<'a> {
    pub(crate) fn new(
        spec: &'a CreditMigrationSpec,
        status: &CreditMigrationStatus,
        observed: &'a Observed,
        now: Time,
    ) -> Self {
        let ready = status.conditions.iter().find(|c| c.type_ == READY);
        Self {
            spec,
            observed,
            now,
            status: status.clone(),
            reason: ready.map(|c| StatusReason::read(&c.reason)),
            message: ready.map(|c| c.message.clone()),
            wake_at: None,
            events: vec![],
            problems: vec![],
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.status.phase.unwrap_or(Phase::Preparing)
    }

    /// Starts a migration that has no phase yet.
    pub(crate) fn start_if_new(&mut self) {
        if self.status.phase.is_none() {
            self.status.runner_image = Some(self.observed.runner_image.clone());
            self.enter(Phase::Preparing);
            self.start_step(Step::Preflight);
        }
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        self.status.phase = Some(phase);
        self.reason = None;
        self.message = None;
    }

    /// Sets reason and message of the condition `Ready`.
    pub(crate) fn set_ready(&mut self, reason: impl Into<StatusReason>, message: impl Into<String>) {
        self.reason = Some(reason.into());
        self.message = Some(message.into());
    }

    /// Reports what lasts: by an event when it starts, and in the condition `Ready` as long as it lasts.
    pub(crate) fn report_lasting(&mut self, reason: ReadyReason, message: String) -> Reported {
        let reported = self.report_problem(reason, None, message.clone(), SignedDuration::ZERO);
        self.set_ready(reason, message);
        reported
    }

    /// Records what is wrong, with the object if there can be several. An Event reports it, once for as long as it
    /// lasts, when it has lasted for `hold`. Which problems are reported is part of the status: neither a text nor the
    /// reason of `Ready`, which others set too, says so.
    pub(crate) fn report_problem(
        &mut self,
        reason: ReadyReason,
        subject: Option<&str>,
        message: String,
        hold: SignedDuration,
    ) -> Reported {
        let name = reason.as_str();
        let is_same = |p: &Problem| p.reason == name && p.subject.as_deref() == subject;
        // Found again in the same call: only the text may differ.
        if let Some(found) = self.problems.iter_mut().find(|p| is_same(p)) {
            found.message = message;
            return if found.reported { Reported::Before } else { Reported::NotYet };
        }
        let earlier = self.status.problems.iter().find(|p| is_same(p));
        let (since, before) = earlier.map_or((self.now, false), |p| (p.since, p.reported));
        let due = since + hold;
        let reported = match (before, self.now >= due) {
            (true, _) => Reported::Before,
            (false, true) => Reported::Now,
            (false, false) => Reported::NotYet,
        };
        match reported {
            Reported::Now => self.event(true, reason, message.clone()),
            Reported::NotYet => self.wake_at(due),
            Reported::Before => {}
        }
        self.problems.push(Problem {
            reason: name.to_owned(),
            subject: subject.map(ToOwned::to_owned),
            since,
            reported: reported != Reported::NotYet,
            message,
        });
        reported
    }

    /// What the API server refuses, in words.
    pub(crate) fn refused_effect(&self) -> Option<String> {
        self.observed.refused_effect.as_ref().map(|refused| format!("{refused}; retried"))
    }

    /// The same effects are applied again; until they are, they are not what the status says.
    pub(crate) fn report_refused_effect(&mut self) {
        let Some(text) = self.refused_effect() else { return };
        self.report_problem(ReadyReason::EffectRefused, None, text, SignedDuration::ZERO);
        if let Some((at, _)) = self.stall().filter(|(at, _)| self.now < *at) {
            self.wake_at(at);
        }
    }

    /// The refused effect, once it is more than a server that was busy for a moment.
    pub(crate) fn refused_for_long(&self) -> Option<String> {
        self.stall().filter(|(at, _)| self.now >= *at).map(|(_, refused)| refused.message.clone())
    }

    /// From when on the refused effect stalls the migration, and its problem.
    fn stall(&self) -> Option<(Time, &Problem)> {
        let refused = self.problems.iter().find(|p| p.reason == ReadyReason::EffectRefused.as_str())?;
        Some((refused.since + seconds(STALLED_AFTER_SECONDS), refused))
    }

    /// This call has found the problem, and it is reported.
    pub(crate) fn is_reported(&self, reason: ReadyReason, subject: Option<&str>) -> bool {
        let mut found = self.problems.iter().filter(|p| p.reason == reason.as_str());
        found.any(|p| p.subject.as_deref() == subject && p.reported)
    }

    /// Keeps what was found by this call: what was not found again has ended.
    pub(crate) fn keep_problems(&mut self) {
        self.status.problems = std::mem::take(&mut self.problems);
    }

    pub(crate) fn event(&mut self, warning: bool, reason: impl Into<String>, note: impl Into<String>) {
        self.events.push(Event { warning, reason: reason.into(), note: note.into() });
    }

    pub(crate) fn wake_at(&mut self, at: Time) {
        // The earliest wins; a wake-up in the past means "at once" and is the caller's to clamp.
        self.wake_at = Some(self.wake_at.map_or(at, |wake_at| wake_at.min(at)));
    }
}
