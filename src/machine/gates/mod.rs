//! Gates: what must hold in the cluster and in the database before anything is changed, and before a rollback blocks
//! writes. Each is a function that asks and never acts.
//!
//! Called by the phases before a window, by `window` and by `effects`; `conditions` reports how the SQL differs, and
//! what a rollback lacks. Imports `shared`, `api` and `machine`.

mod clock;
mod database;
mod flag;
mod policy;
mod quota;
mod schedule;
mod sql;
mod window;
mod workloads;

pub(super) use flag::cannot_be_changed as flag_cannot_be_changed;
pub(super) use workloads::refused_restart;

use super::{
    Transition,
    faults::{Fault, fault},
};
use crate::{api::ReadyReason, shared::message::Message};

/// What blocks the migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Reason of the condition `Ready`.
    pub(crate) reason: ReadyReason,
    /// Observed value, limit and next command.
    pub(crate) message: Message,
}

/// A gate asks: it gives the violation, or `None` when it is passed.
type Question = fn(&Transition<'_>) -> Option<Violation>;

/// All gates, in order: the first violation decides, and its message is what the user reads.
const GATES: &[Question] = &[
    // Without SQL there is no plan to speak of.
    sql::check,
    // The flag can be switched, and was not switched yet.
    flag::check,
    // The release says that it can be rolled back.
    flag::check_rollback_enabled,
    // A start can be computed.
    schedule::check,
    // What is restarted exists, reads the flag, and can be restarted.
    workloads::check,
    // The pods of the rollout can be created.
    quota::check,
    // The window is long enough for it.
    window::check,
    // Its deadline is the one that was meant.
    clock::check,
    // Approvals are by those who are named.
    policy::check,
];

/// What a rollback after the window needs before it blocks writes again, in order.
const ROLLBACK_GATES: &[Question] = &[
    // The flag can be switched back.
    flag::check_for_rollback,
    // What is restarted exists, reads the flag, and can be restarted.
    workloads::check_for_rollback,
    // There is something to run.
    sql::check_for_rollback,
    // The pods of the rollout can be created.
    quota::check,
];

/// What shows who refuses a write.
fn refusal_command(transition: &Transition<'_>) -> String {
    transition.observed.kubectl("get validatingadmissionpolicies,validatingwebhookconfigurations")
        + "; change what refuses it, or give the operator the right"
}

impl Transition<'_> {
    /// The first gate that is not passed.
    pub(crate) fn cluster_violation(&self) -> Option<Violation> {
        self.first_violation(GATES)
    }

    /// The first gate of a rollback that is not passed: with it writes would be blocked, and the flag or the pods could
    /// not be switched back.
    pub(crate) fn rollback_violation(&self) -> Option<Violation> {
        self.first_violation(ROLLBACK_GATES)
    }

    /// Names in decisions and reports of runners are not authenticated. It refuses no rollback.
    pub(crate) fn policy_violation(&self) -> Option<Violation> {
        policy::check(self)
    }

    fn first_violation(&self, gates: &[Question]) -> Option<Violation> {
        if fault(Fault::BlocksWithoutExit) {
            return None;
        }
        gates.iter().find_map(|ask| ask(self))
    }
}
