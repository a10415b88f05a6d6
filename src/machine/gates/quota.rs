//! The quotas: is there room for the pods that a rollout has to create before an old one ends.

use super::Violation;
use crate::{api::ReadyReason, machine::Transition, shared::message::Message};

/// No quota of the namespace refuses the first pods of the rollout.
pub(super) fn check(transition: &Transition<'_>) -> Option<Violation> {
    let short = match &transition.observed.quota_shortages {
        Ok(shortages) => shortages.first()?,
        Err(refused) => {
            return Some(Violation {
                reason: ReadyReason::QuotaNotReadable,
                message: Message::new(format!("the operator cannot read the namespace's ResourceQuotas: {refused}"))
                    .next("helm upgrade, so that the operator's ClusterRole is that of its version"),
            });
        }
    };
    Some(Violation {
        reason: ReadyReason::QuotaExceeded,
        message: Message::new(format!(
            "ResourceQuota {} has no room for a pod of the rollout: {} used is {}, hard is {}, {} more are needed",
            short.quota, short.resource, short.used, short.hard, short.needed
        ))
        .next(transition.observed.kubectl(&format!("describe resourcequota {}", short.quota))),
    })
}
