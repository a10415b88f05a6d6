//! The machine: [`decide`] says what is to be, from what was seen. No client, no runtime, no clock, no randomness.
//!
//! ```text
//!  Preparing -> AwaitingApproval -> Executing -> Validating -> Monitoring -> Observing -> Completed
//!   |    ^        |       ^   |      |   |   |       |            |             |     Keep
//!   |    | inputs |       |   |      |   |   +-------+------------+-------------+--> RollingBack -> RolledBack
//!   v    | change |       +---|------+   |  breach (not when observing),           ^    |
//!  Failed<--------+   Abort   |  no lock |  Rollback, Abort, deadline              |    v
//!   ^    (nothing changed)    v          |                              Rollback  RollbackFailed
//!   +----------------------Cancelled     +--> Failed (SQL refused, nothing changed)
//! ```
//!
//! Two halves: *advance* moves the status as far as the observations allow; *effects* derives from that status alone
//! what has to be done. The caller persists the status before it acts, so a crash at any point is followed by the same
//! effects again. The guarantees rest on that order; see `docs/architecture.md`.

mod calendar;
mod checks;
mod commands;
mod conditions;
mod decision;
mod digest;
mod effects;
mod faults;
mod gates;
mod notices;
mod observed;
mod phases;
pub mod steps;
mod transition;
mod window;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use calendar::next_hours;
pub use decision::*;
pub use digest::plan_digest;
pub use observed::*;
pub use phases::preparing::SUPERSEDED;

use transition::Transition;

use crate::api::{CreditMigrationSpec, CreditMigrationStatus, Phase, Time};

/// Says what is to be.
///
/// In: the wanted (`spec`), the persisted (`status`), the seen (`observed`) and the time. Out: the next status, what to do once
/// it is persisted, and when to look again.
pub fn decide(spec: &CreditMigrationSpec, status: &CreditMigrationStatus, observed: &Observed, now: Time) -> Decision {
    let ready = status.conditions.iter().find(|c| c.type_ == conditions::READY);
    let mut transition = Transition {
        spec,
        observed,
        now,
        status: status.clone(),
        reason: ready.map(|c| c.reason.clone()),
        message: ready.map(|c| c.message.clone()),
        wake: None,
        events: vec![],
    };
    if transition.status.phase.is_none() {
        transition.initialize();
    }
    if observed.deleting {
        transition.advance_deletion();
    }
    transition.advance_notices();
    match transition.phase() {
        Phase::Preparing => transition.advance_preparing(),
        Phase::AwaitingApproval => transition.advance_awaiting_approval(),
        Phase::Executing => transition.advance_executing(),
        Phase::Validating | Phase::Monitoring => transition.advance_checking(),
        Phase::Observing => transition.advance_observing(),
        Phase::RollingBack => transition.advance_rolling_back(),
        Phase::RollbackFailed => transition.advance_rollback_failed(),
        Phase::Failed | Phase::Completed | Phase::RolledBack | Phase::Cancelled => transition.advance_ended(),
    }
    let mut effects = transition.effects();
    conditions::derive(&mut transition);
    effects.extend(transition.events.into_iter().map(Effect::Event));
    Decision { status: transition.status, effects, wake_at: transition.wake }
}
