//! One call of `decide` at work: what is given, and what is decided so far.

use super::{Event, Observed};
use crate::api::{CreditMigrationSpec, CreditMigrationStatus, Phase, Step, Time};

/// One call of [`super::decide`] at work.
pub(crate) struct Transition<'a> {
    pub(crate) spec: &'a CreditMigrationSpec,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Time,
    pub(crate) status: CreditMigrationStatus,
    /// Reason and message of the `Ready` condition.
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) wake: Option<Time>,
    pub(crate) events: Vec<Event>,
}

impl Transition<'_> {
    pub(crate) fn phase(&self) -> Phase {
        self.status.phase.unwrap_or(Phase::Preparing)
    }

    pub(crate) fn initialize(&mut self) {
        self.status.runner_image = Some(self.observed.runner_image.clone());
        self.enter(Phase::Preparing);
        self.start_step(Step::Preflight);
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        self.status.phase = Some(phase);
        self.reason = None;
        self.message = None;
    }

    /// Why it stands where it stands.
    pub(crate) fn set_ready(&mut self, reason: impl Into<String>, message: impl Into<String>) {
        self.reason = Some(reason.into());
        self.message = Some(message.into());
    }

    pub(crate) fn event(&mut self, warning: bool, reason: impl Into<String>, note: impl Into<String>) {
        self.events.push(Event { warning, reason: reason.into(), note: note.into() });
    }

    pub(crate) fn wake_at(&mut self, at: Time) {
        // The earliest wins; a wake-up in the past means "at once" and is the caller's to clamp.
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }
}
