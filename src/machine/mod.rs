//! The machine: [`decide`] says what is to be, from what was seen. No client, no runtime, no clock, no randomness.
//!
//! ```text
//!  Preparing -> AwaitingApproval -> Executing -> Validating -> Monitoring -> Observing -> Completed
//!   |    ^        |       ^   |      |   |   |       |            |             |     Keep
//!   |    | inputs |       |   |      |   |   +-------+------------+-------------+--> RollingBack -> RolledBack
//!   v    | change |       +---|------+   |  breach (not when observing),           ^    |
//!  Failed<--------+   Abort   |  no lock |  Revert, Abort, deadline                |    v
//!   ^    (nothing changed)    v          |                                Revert  RollbackFailed
//!   +----------------------Cancelled     +--> Failed (SQL refused, nothing changed)
//! ```
//!
//! Two halves: *advance* moves the status as far as the observations allow; *effects* derives from that status alone
//! what has to be done. The caller persists the status before it acts, so a crash at any point is followed by the same
//! effects again. The guarantees rest on that order; see `docs/architecture.md`.

mod commands;
mod conditions;
mod defects;
mod effect;
mod effects;
mod ending;
mod executing;
mod gates;
mod notices;
mod observed;
mod observing;
mod preparing;
mod rolling_back;
mod scheduling;
mod stages;
pub mod steps;
mod switching;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use effect::*;
pub use gates::plan_digest;
pub use observed::*;
pub use preparing::SUPERSEDED;
pub use scheduling::next_hours;

use crate::{
    api::{
        CreditMigrationSpec, CreditMigrationStatus, Occasion, Phase, Step, StepState, StepStatus, Time, WindowStatus,
    },
    shared::time::{saturating_add, seconds, to_signed},
};

/// Says what is to be.
///
/// In: the wanted (`spec`), the persisted (`status`), the seen (`o`) and the time. Out: the next status, what to do once
/// it is persisted, and when to look again.
pub fn decide(spec: &CreditMigrationSpec, status: &CreditMigrationStatus, o: &Observed, now: Time) -> Decision {
    let ready = status.conditions.iter().find(|c| c.type_ == conditions::READY);
    let mut m = Machine {
        spec,
        o,
        now,
        s: status.clone(),
        reason: ready.map(|c| c.reason.clone()),
        message: ready.map(|c| c.message.clone()),
        wake: None,
        events: vec![],
    };
    if m.s.phase.is_none() {
        m.begin();
    }
    if o.deleting {
        m.advance_deletion();
    }
    m.advance_notices();
    match m.phase() {
        Phase::Preparing => m.advance_preparing(),
        Phase::AwaitingApproval => m.advance_awaiting_approval(),
        Phase::Executing => m.advance_executing(),
        Phase::Validating | Phase::Monitoring => m.advance_stage(),
        Phase::Observing => m.advance_observing(),
        Phase::RollingBack => m.advance_rolling_back(),
        Phase::RollbackFailed => m.advance_rollback_failed(),
        Phase::Failed | Phase::Completed | Phase::RolledBack | Phase::Cancelled => m.advance_ended(),
    }
    let mut effects = m.effects();
    conditions::derive(&mut m);
    effects.extend(m.events.into_iter().map(Effect::Event));
    Decision { status: m.s, effects, wake_at: m.wake }
}

/// Reason of a window that should have been over.
const OVERDUE: &str = "WindowOverdue";

/// One call of [`decide`] at work.
struct Machine<'a> {
    spec: &'a CreditMigrationSpec,
    o: &'a Observed,
    now: Time,
    s: CreditMigrationStatus,
    /// Reason and message of the `Ready` condition.
    reason: Option<String>,
    message: Option<String>,
    wake: Option<Time>,
    events: Vec<Event>,
}

impl Machine<'_> {
    fn phase(&self) -> Phase {
        self.s.phase.unwrap_or(Phase::Preparing)
    }

    fn begin(&mut self) {
        self.s.runner_image = Some(self.o.runner_image.clone());
        self.enter(Phase::Preparing);
        self.start_step(Step::Preflight);
    }

    fn enter(&mut self, phase: Phase) {
        self.s.phase = Some(phase);
        self.reason = None;
        self.message = None;
    }

    /// Why it stands where it stands.
    fn explain(&mut self, reason: impl Into<String>, message: impl Into<String>) {
        self.reason = Some(reason.into());
        self.message = Some(message.into());
    }

    fn event(&mut self, warning: bool, reason: impl Into<String>, note: impl Into<String>) {
        self.events.push(Event { warning, reason: reason.into(), note: note.into() });
    }

    fn wake_at(&mut self, at: Time) {
        // The earliest wins; a wake-up in the past means "at once" and is the caller's to clamp.
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    fn step(&self, step: Step) -> Option<&StepStatus> {
        self.s.steps.iter().find(|x| x.name == step)
    }

    fn succeeded(&self, step: Step) -> bool {
        self.step(step).is_some_and(|x| x.state == StepState::Succeeded)
    }

    fn step_mut(&mut self, step: Step) -> &mut StepStatus {
        if let Some(i) = self.s.steps.iter().position(|x| x.name == step) {
            return &mut self.s.steps[i];
        }
        self.s.steps.push(StepStatus {
            name: step,
            state: StepState::Running,
            attempt: 0,
            failures: 0,
            started_at: self.now,
            finished_at: None,
            retry_at: None,
            reason: None,
            message: None,
        });
        let last = self.s.steps.len() - 1;
        &mut self.s.steps[last]
    }

    /// Marks a step as running with a fresh attempt. Persisted before its run is made.
    fn start_step(&mut self, step: Step) {
        let now = self.now;
        self.s.step = Some(step);
        let x = self.step_mut(step);
        x.attempt += 1;
        x.state = StepState::Running;
        x.started_at = now;
        x.finished_at = None;
        x.retry_at = None;
        x.reason = None;
        x.message = None;
    }

    fn succeed_step(&mut self, step: Step, message: impl Into<String>) {
        let (now, message) = (self.now, message.into());
        let x = self.step_mut(step);
        x.state = StepState::Succeeded;
        x.attempt = x.attempt.max(1);
        x.finished_at = Some(now);
        x.retry_at = None;
        x.reason = None;
        x.message = Some(message.clone());
        self.event(false, format!("{step:?}Succeeded"), message);
    }

    /// What the spec does not ask for: said, and not claimed.
    fn skip_step(&mut self, step: Step, message: impl Into<String>) {
        let now = self.now;
        self.s.step = Some(step);
        let x = self.step_mut(step);
        x.state = StepState::Skipped;
        x.attempt = x.attempt.max(1);
        x.finished_at = Some(now);
        x.retry_at = None;
        x.reason = Some("NotConfigured".into());
        x.message = Some(message.into());
    }

    fn fail_step(&mut self, step: Step, reason: impl Into<String>, message: impl Into<String>) {
        let (now, reason, message) = (self.now, reason.into(), message.into());
        let x = self.step_mut(step);
        x.state = StepState::Failed;
        x.finished_at = Some(now);
        x.reason = Some(reason.clone());
        x.message = Some(message.clone());
        self.explain(reason.clone(), message.clone());
        self.event(true, reason, message);
    }

    /// Plans another try of a running step after a failure that may pass. Returns how often it failed.
    fn retry_later(&mut self, step: Step, reason: &str, message: &str, longest_seconds: i64) -> u32 {
        let now = self.now;
        let x = self.step_mut(step);
        x.failures += 1;
        let failures = x.failures;
        // 2, 4, 8 ... seconds: soon enough for a slip, rare enough not to flood a server that is down.
        let wait = (1i64 << failures.min(10)).min(longest_seconds);
        x.state = StepState::Running;
        x.retry_at = Some(now + seconds(wait));
        x.reason = Some(reason.into());
        x.message = Some(message.into());
        self.explain(reason, message);
        // Without numbers that change: the same event again is counted, another one would be one more object for each try.
        self.event(true, reason, format!("{message}; tried again"));
        failures
    }

    /// Has the run of a step followed by another one at once.
    fn retry_now(&mut self, step: Step) {
        let now = self.now;
        let x = self.step_mut(step);
        x.failures += 1;
        x.attempt += 1;
        // Or the next one would be late from its beginning.
        x.started_at = now;
    }

    /// A retry of this step is planned.
    fn waiting(&self, step: Step) -> bool {
        self.step(step).is_some_and(|x| x.retry_at.is_some())
    }

    /// Whether a planned retry is due; begins it. `None` when none is planned.
    fn retry_due(&mut self, step: Step) -> Option<bool> {
        let at = self.step(step)?.retry_at?;
        if self.now < at {
            self.wake_at(at);
            return Some(false);
        }
        let failed = self.step(step).map(|x| (x.reason.clone(), x.message.clone()));
        self.start_step(step);
        // What went wrong is told until it goes right: between two tries of a few seconds nobody would see it.
        if let Some((reason, message)) = failed {
            let x = self.step_mut(step);
            (x.reason, x.message) = (reason, message);
        }
        Some(true)
    }

    fn attempt(&self, step: Step) -> u32 {
        self.step(step).map_or(0, |x| x.attempt)
    }

    fn window(&mut self) -> &mut WindowStatus {
        self.s.window.get_or_insert_default()
    }

    /// The order to block writes may be out, and the release is not known.
    fn may_be_blocked(&self) -> bool {
        let window = self.s.window.as_ref();
        window.is_some_and(|w| (w.deadline.is_some() || w.blocked_at.is_some()) && w.released_at.is_none())
    }

    /// When the present window should be, or should have been, over. One that a failed way back left closed counts from
    /// its beginning.
    fn window_due(&self) -> Option<Time> {
        let w = self.s.window.as_ref()?;
        let closed_since = w.blocked_at.filter(|_| w.released_at.is_none());
        w.deadline.or_else(|| Some(saturating_add(closed_since?, to_signed(self.spec.window.max_duration))))
    }

    /// Explains an open window. Past its time that is told as stalled: nobody may have to find out by a clock.
    fn explain_window(&mut self, reason: &str, message: String) {
        match self.window_due() {
            Some(due) if self.now >= due => {
                let (task, attempt) = self.way_back_run();
                let next = match self.s.step {
                    Some(Step::SwitchBack) => {
                        let workload = self.spec.application.workloads.first().map_or("", |w| w.name.as_str());
                        let command = self.o.kubectl(&format!("rollout status deployment/{workload}"));
                        format!(
                            "{command}; pods of the old version must become ready on the new schema, and nobody may set the flag again"
                        )
                    }
                    _ => {
                        let command = self.o.kubectl(&format!("describe job/{}", self.o.run_name(task, attempt)));
                        format!("{command}; see that its pod runs")
                    }
                };
                let text = format!("{message}; its window should have been over by {due:.0}; next: {next}");
                if self.reason.as_deref() != Some(OVERDUE) {
                    self.event(true, OVERDUE, text.clone());
                    self.tell(Occasion::PersonNeeded, &format!("overdue.{}", due.as_second()), &text);
                }
                self.explain(OVERDUE, text);
            }
            due => {
                if let Some(due) = due {
                    self.wake_at(due);
                }
                self.explain(reason, message);
            }
        }
    }
}
