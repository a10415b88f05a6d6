//! One table for each phase, in the file of the phase's name.
//!
//! Called by `cargo test` alone. Imports `shared`, `api` and `machine`.

mod approval;
mod attempts;
mod checking;
mod ended;
mod executing;
mod lost_pods;
mod observing;
mod preparing;
mod rollback;
mod rollback_exit;
mod rollback_rehearsal;
mod scheduling;
mod schema_drift;
mod standby;

use super::{Scenario, each_phase};
use crate::machine::{
    Transition,
    phases::{MAX_ROUNDS, advance},
};

/// Rounds that one decision takes.
fn rounds(s: &Scenario) -> u32 {
    let mut transition = Transition::new(&s.spec, &s.status, &s.observed, s.now);
    transition.start_if_new();
    advance(&mut transition)
}

#[test]
fn a_decision_settles_well_within_the_bound() {
    for s in each_phase() {
        assert_eq!(rounds(&s), 1, "{:?} has settled", s.status.phase);
    }
    // The longest chain: a step of Preparing is done, those that are not configured follow, and the next one waits.
    let mut s = super::preflight();
    s.succeed(crate::api::Task::Preflight);
    assert_eq!(rounds(&s), 4);
    assert!(rounds(&s) <= MAX_ROUNDS / 2);
}
