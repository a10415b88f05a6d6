//! The machine: [`decide`] computes the next status and effects. No client, no runtime, no clock, no randomness.
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
//! In: the spec, the persisted status, the observations, the time. Out: the next status, the effects, when to call
//! again. The caller persists the status before it acts, so that a crash at any point is followed by the same effects
//! again. The guarantees rest on that order; see `docs/architecture.md`.
//!
//! ```no_run
//! use credit_migration::{
//!     api::{CreditMigrationSpec, CreditMigrationStatus, Time},
//!     machine::{Effect, Observed, decide},
//! };
//!
//! fn reconcile(
//!     spec: &CreditMigrationSpec,
//!     status: &mut CreditMigrationStatus,
//!     observed: &Observed,
//!     now: Time,
//! ) -> Vec<Effect> {
//!     let decision = decide(spec, status, observed, now);
//!     *status = decision.status; // Persisted here, and only then:
//!     decision.effects
//! }
//! ```
//!
//! Inside, a `Transition` goes through `phases` until it settles; `gates` ask; `effects` and `conditions` are derived
//! from the resulting status.
//!
//! Called by the controller; the plugin reads `steps`, the calendar and the digest. Imports `shared` and `api`.

mod calendar;
mod checks;
mod commands;
mod conditions;
mod decision;
mod digest;
mod effects;
#[cfg(test)]
mod emergency_page;
mod faults;
mod gates;
mod notices;
mod observed;
mod phases;
mod pods;
mod safeguards;
mod status_reason;
pub mod steps;
mod transition;
mod window;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use calendar::next_hours;
pub use conditions::cannot_observe;
pub use decision::*;
pub use digest::plan_digest;
pub use observed::*;
pub(crate) use status_reason::StatusReason;
pub use window::switch_trial::{SwitchTrial, switch_trial};

use transition::Transition;

use crate::api::{CreditMigrationSpec, CreditMigrationStatus, Time};

/// Computes the next status and what to do once it is persisted.
///
/// `spec` is what is wanted, `status` what was persisted last, `observed` what the controller has read, perhaps from a
/// stale cache, and `now` the time of the decision. The same arguments give the same decision.
pub fn decide(spec: &CreditMigrationSpec, status: &CreditMigrationStatus, observed: &Observed, now: Time) -> Decision {
    let mut transition = Transition::new(spec, status, observed, now);
    transition.start_if_new();
    transition.advance_deletion();
    transition.advance_notices();
    phases::advance(&mut transition);
    transition.end_rollback_rehearsal();
    transition.report_safeguards();
    transition.report_triggers_left();
    transition.report_parked_left();
    transition.plan_checks();
    transition.report_pods();
    transition.report_refused_effect();
    let mut effects = transition.effects();
    conditions::derive(&mut transition);
    transition.keep_problems();
    effects.extend(transition.events.into_iter().map(Effect::Event));
    Decision { status: transition.status, effects, wake_at: transition.wake_at }
}
