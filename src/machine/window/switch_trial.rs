//! Whether the API server accepts the writes of the next switch: the flag's, and the restarts. The controller tries
//! them as dry runs, because an object that refuses them may not be found only when writes are blocked.
//!
//! ```text
//!  before the window, after it   at most once a minute    gates, RollbackReady
//!  pod of a window is there      each time                the order to block writes waits
//!  writes are blocked            each time                the order Switch waits: until then the runner unblocks
//!                                                         writes by itself
//!  Switch is acknowledged        not any more             the write itself says
//! ```

use std::time::Duration;

use super::{
    cutover::{flag_marker, flag_value},
    stage::WindowStage,
};
use crate::{
    api::{CreditMigrationSpec, CreditMigrationStatus, Direction, Phase, ReadyReason, Task},
    machine::{
        DryRun, Transition,
        gates::{Violation, flag_cannot_be_changed, refused_restart},
    },
    shared::message::Message,
};

/// How old an answer may be while no window is near.
const IDLE_AGE: Duration = Duration::from_secs(60);

/// The switch whose writes are to be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchTrial {
    /// Value of the flag.
    pub value: String,
    /// Value of the annotations [`crate::api::FLAG_SET_FOR`] and [`crate::api::RESTARTED_FOR`].
    pub marker: String,
    /// How old an earlier answer that did not refuse it may be.
    pub max_age: Duration,
    /// Writes are, or may be, blocked: an answer that takes long is not waited for.
    pub in_window: bool,
}

/// The next switch; `None` if none may follow, or if it is under way.
pub fn switch_trial(spec: &CreditMigrationSpec, status: &CreditMigrationStatus, uid: &str) -> Option<SwitchTrial> {
    let window = status.window.as_ref();
    let near = match status.phase.unwrap_or(Phase::Preparing) {
        Phase::Preparing
        | Phase::AwaitingApproval
        | Phase::Validating
        | Phase::Monitoring
        | Phase::Observing
        | Phase::RollbackFailed => false,
        Phase::Executing | Phase::RollingBack if window.is_some_and(|w| w.switched) => return None,
        // The forward window has not set the flag: there is nothing to switch back.
        Phase::RollingBack if window.is_some_and(|w| w.task == Some(Task::Window)) => return None,
        Phase::Executing | Phase::RollingBack => true,
        Phase::Failed | Phase::Completed | Phase::RolledBack | Phase::Cancelled => return None,
    };
    let direction = match status.phase.unwrap_or(Phase::Preparing) {
        Phase::Preparing | Phase::AwaitingApproval | Phase::Executing => Direction::Forward,
        _ => Direction::Rollback,
    };
    Some(SwitchTrial {
        value: flag_value(spec, direction).to_owned(),
        marker: flag_marker(uid, direction),
        max_age: if near { Duration::ZERO } else { IDLE_AGE },
        in_window: window.is_some_and(|w| WindowStage::of(w).may_be_blocked()),
    })
}

impl Transition<'_> {
    /// Why the order `Switch` is not given: flag or workloads would not be changed. Until it is acknowledged the runner
    /// restores the state before the window by itself.
    pub(crate) fn switch_refusal(&self, direction: Direction) -> Option<Violation> {
        if self.is_switched() || self.is_flag_set(direction) {
            return None;
        }
        flag_cannot_be_changed(self, direction).or_else(|| refused_restart(self))
    }

    /// What was reported by this call: it has lasted for long enough to end the forward window.
    pub(crate) fn reported_switch_refusal(&self) -> Option<Violation> {
        self.switch_refusal(Direction::Forward).filter(|violation| self.is_reported(violation.reason, None))
    }

    /// What the switch waits for until the runner has acknowledged it.
    pub(crate) fn acknowledgement_message(&self) -> String {
        let direction = if self.phase() == Phase::Executing { Direction::Forward } else { Direction::Rollback };
        match self.switch_refusal(direction) {
            Some(violation) => format!("the switch waits: {}", violation.message.text),
            None => "waiting for the runner's acknowledgement".to_owned(),
        }
    }

    /// Whether the application could be switched back is not known: a webhook supports no dry run.
    pub(crate) fn unsupported_dry_run(&self) -> Option<Violation> {
        let flag = std::iter::once(&self.observed.flag_write);
        let mut writes = flag.chain(self.observed.workloads.iter().map(|workload| &workload.write));
        let answer = writes.find_map(|write| match write {
            DryRun::Unsupported(answer) => Some(answer),
            DryRun::Untried | DryRun::Accepted | DryRun::Refused(_) => None,
        })?;
        Some(Violation {
            reason: ReadyReason::DryRunUnsupported,
            message: Message::new(format!("whether flag and workloads can be changed is not known: {answer}"))
                .next("let the webhook support dry runs (sideEffects: None or NoneOnDryRun)"),
        })
    }
}
