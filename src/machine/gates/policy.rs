//! The admission policies: are the names in decisions and the reports of runners authentic.

use super::Violation;
use crate::{api::ReadyReason, machine::Transition, shared::message::Message};

/// All policies and their bindings are in force.
pub(super) fn check(transition: &Transition<'_>) -> Option<Violation> {
    let problem = transition.observed.policy_problem.as_ref()?;
    Some(Violation {
        reason: ReadyReason::DecisionPolicyMissing,
        message: Message::new(format!("{problem}; without it neither names nor reports are authenticated"))
            .next("helm upgrade the operator with admissionPolicies.install=true"),
    })
}
