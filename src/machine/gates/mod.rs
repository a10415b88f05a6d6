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
use crate::{
    api::{Direction, ReadyReason, WindowProgress},
    shared::message::Message,
};

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

/// What was approved does not hold without these, in order: the first violation decides, and its message is what the
/// user reads. A window that has yet to block writes is taken back.
const GATES: &[Question] = &[
    // Without SQL there is no plan to speak of.
    sql::check,
    // The flag can be switched, and was not switched yet.
    flag::check,
    // The release says that it can be rolled back.
    flag::check_rollback_enabled,
    // A start can be computed.
    schedule::check,
    // What is restarted exists, and reads the flag.
    workloads::check,
    // Approvals are by those who are named.
    policy::check,
];

/// What is in the way in the cluster and may pass by itself, in order. A window waits for it with writes open, as it
/// does for what its pod finds in the database.
const OBSTACLES: &[Question] = &[
    // The flag can be set.
    flag::check_obstacles,
    // A restart can replace the pods.
    workloads::check_obstacles,
    // The pods of the rollout can be created.
    quota::check,
    // The window is long enough for it.
    window::check,
    // Its deadline is the one that was meant.
    clock::check,
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
    /// What keeps a window from being started: the first gate that is not passed, or the first obstacle in the cluster.
    pub(crate) fn cluster_violation(&self) -> Option<Violation> {
        self.plan_violation().or_else(|| self.first_violation(OBSTACLES))
    }

    /// The first gate without which what was approved does not hold.
    pub(crate) fn plan_violation(&self) -> Option<Violation> {
        self.first_violation(GATES)
    }

    /// What a window that has yet to block writes waits for, in the cluster or in the database.
    pub(crate) fn window_obstacle(&self, progress: &WindowProgress) -> Option<Violation> {
        self.first_violation(OBSTACLES).or_else(|| self.standby_violation(progress))
    }

    /// The first gate of a rollback that is not passed: with it writes would be blocked, and the flag or the pods could
    /// not be switched back.
    pub(crate) fn rollback_violation(&self) -> Option<Violation> {
        self.first_violation(ROLLBACK_GATES)
    }

    /// What keeps a started switch from setting the flag, or from replacing pods. Room in a quota is not asked:
    /// the rollout itself takes it, and a refused pod is a failure of the rollout.
    pub(crate) fn switch_violation(&self, direction: Direction) -> Option<Violation> {
        flag::check_in_switch(self, direction).or_else(|| workloads::check_in_switch(self, direction))
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
