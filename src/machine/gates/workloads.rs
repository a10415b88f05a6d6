//! The workloads: are they there, and do their pods read the flag.

use super::Violation;
use crate::{api::ReadyReason, machine::Transition, shared::message::Message};

/// Each workload exists, and reads the flag's key into its environment.
pub(super) fn check(transition: &Transition<'_>) -> Option<Violation> {
    let r = &transition.spec.application.flag.config_map_key_ref;
    for wanted in &transition.spec.application.workloads {
        let found = transition.observed.workloads.iter().find(|w| w.reference == *wanted);
        let kind = wanted.kind.as_str();
        let Some(found) = found.filter(|w| w.exists) else {
            return Some(Violation {
                reason: ReadyReason::WorkloadMissing,
                message: Message::new(format!("{kind} {} is missing (spec.application.workloads)", wanted.name))
                    .next(transition.observed.kubectl("get deployments")),
            });
        };
        if !found.reads_flag {
            return Some(Violation {
                reason: ReadyReason::WorkloadDoesNotReadFlag,
                message: Message::new(format!(
                    "no container of {kind} {} reads key {} of ConfigMap {} into its environment",
                    wanted.name, r.key, r.name
                ))
                .next("add env.valueFrom.configMapKeyRef or envFrom.configMapRef"),
            });
        }
    }
    None
}
