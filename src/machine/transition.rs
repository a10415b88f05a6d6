//! One call of `decide` at work: what is given, and what is decided so far.

use super::{Event, Observed, StatusReason};
use crate::api::{CreditMigrationSpec, CreditMigrationStatus, Phase, ReadyReason, Step, Time};

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
}

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
    pub(crate) fn report_lasting(&mut self, reason: ReadyReason, message: String) {
        if self.reason != Some(StatusReason::Machine(reason)) {
            self.event(true, reason, message.clone());
        }
        self.set_ready(reason, message);
    }

    pub(crate) fn event(&mut self, warning: bool, reason: impl Into<String>, note: impl Into<String>) {
        self.events.push(Event { warning, reason: reason.into(), note: note.into() });
    }

    pub(crate) fn wake_at(&mut self, at: Time) {
        // The earliest wins; a wake-up in the past means "at once" and is the caller's to clamp.
        self.wake_at = Some(self.wake_at.map_or(at, |wake_at| wake_at.min(at)));
    }
}
