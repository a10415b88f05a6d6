//! The phases of a migration, one file each: how far the observations let the status go in that phase.
//!
//! Called by [`super::decide`], by way of [`advance`]; `effects`, `checks` and `window` ask which run a phase has.
//! Imports `shared`, `api` and `machine`.

mod application;
mod approval;
mod checking;
mod ended;
mod executing;
mod observing;
mod preparing;
mod rollback;
mod rollback_rehearsal;
mod scheduling;

pub(crate) use rollback_rehearsal::Doubt;

use super::Transition;
use crate::api::Phase;

/// Most phases, and steps of Preparing, that one call of `decide` may go through. A longer chain would be a circle.
pub(super) const MAX_ROUNDS: u32 = 16;

/// Whether a phase has more to do with the same observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Flow {
    /// Nothing more follows.
    Settled,
    /// The phase or the step has changed: what follows from the new one is to be found out.
    Continue,
}

/// Moves the status as far as the observations allow. Gives the number of rounds that it took.
///
/// At the bound it stops and asks to be called again at once: what was decided by then is persisted.
pub(super) fn advance(transition: &mut Transition<'_>) -> u32 {
    for round in 1..=MAX_ROUNDS {
        if advance_once(transition) == Flow::Settled {
            return round;
        }
    }
    debug_assert!(false, "{:?} does not settle in {MAX_ROUNDS} rounds", transition.phase());
    transition.wake_at(transition.now);
    MAX_ROUNDS
}

fn advance_once(transition: &mut Transition<'_>) -> Flow {
    match transition.phase() {
        Phase::Preparing => transition.advance_preparing(),
        Phase::AwaitingApproval => transition.advance_approval(),
        Phase::Executing => transition.advance_executing(),
        Phase::Validating | Phase::Monitoring => transition.advance_checking(),
        Phase::Observing => transition.advance_observing(),
        Phase::RollingBack => transition.advance_rolling_back(),
        Phase::RollbackFailed => transition.advance_rollback_failed(),
        Phase::Failed | Phase::Completed | Phase::RolledBack | Phase::Cancelled => transition.advance_ended(),
    }
}
